//! Cells prepared ahead, so that nobody waits for one.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cell::Cell;
use crate::error::{Error, Result};
use crate::spawner::{CellSpec, Spawner};

/// How long to wait before trying again after a cell could not be made.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Says what the next cell is to be: a fresh id and a free range of identities. Called by one thread at a time.
pub type SpecSource = Box<dyn FnMut() -> Result<CellSpec> + Send>;

/// A bounded stock of cells, refilled by a thread of its own.
pub struct CellPool {
    shared: Arc<Shared>,
    filler: Option<JoinHandle<()>>,
}

struct Shared {
    spawner: Arc<Spawner>,
    size: usize,
    specs: Mutex<SpecSource>,
    stock: Mutex<Stock>,
    changed: Condvar,
}

#[derive(Default)]
struct Stock {
    cells: VecDeque<Cell>,
    closed: bool,
}

impl CellPool {
    /// Starts to prepare `size` cells.
    pub fn new(spawner: Arc<Spawner>, size: usize, specs: SpecSource) -> Result<Self> {
        let shared = Arc::new(Shared {
            spawner,
            size,
            specs: Mutex::new(specs),
            stock: Mutex::new(Stock::default()),
            changed: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        let filler = std::thread::Builder::new()
            .name("cell-pool".into())
            .spawn(move || own.fill())
            .map_err(|source| Error::System {
                what: "start the pool's thread".into(),
                source,
            })?;
        Ok(Self {
            shared,
            filler: Some(filler),
        })
    }

    /// A prepared cell that is alive, or a new one if none is there.
    pub fn take(&self) -> Result<Cell> {
        loop {
            let Some(cell) = self.shared.lock().cells.pop_front() else {
                return self.shared.make();
            };
            self.shared.changed.notify_all();
            if cell.ping().is_ok() {
                return Ok(cell);
            }
        }
    }

    /// How many cells are prepared now.
    pub fn prepared(&self) -> usize {
        self.shared.lock().cells.len()
    }

    /// Waits until the stock is full, at most `bound`; says whether it is.
    pub fn wait_full(&self, bound: Duration) -> bool {
        let stock = self.shared.lock();
        let (stock, _) = self
            .shared
            .changed
            .wait_timeout_while(stock, bound, |stock| stock.cells.len() < self.shared.size)
            .unwrap_or_else(PoisonError::into_inner);
        stock.cells.len() >= self.shared.size
    }
}

impl Drop for CellPool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(filler) = self.filler.take() {
            // It can only have panicked; its cells end below all the same.
            let _ = filler.join();
        }
        self.shared.lock().cells.clear();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self) -> Result<Cell> {
        let spec = (self.specs.lock().unwrap_or_else(PoisonError::into_inner))()?;
        self.spawner.cell(&spec)
    }

    fn fill(&self) {
        loop {
            let stock = self.lock();
            let stock = self
                .changed
                .wait_while(stock, |stock| !stock.closed && stock.cells.len() >= self.size)
                .unwrap_or_else(PoisonError::into_inner);
            if stock.closed {
                return;
            }
            drop(stock);
            match self.make() {
                Ok(cell) => {
                    self.lock().cells.push_back(cell);
                    self.changed.notify_all();
                }
                Err(error) => {
                    tracing::warn!(%error, "a cell could not be prepared");
                    let stock = self.lock();
                    if stock.closed {
                        return;
                    }
                    // Not at once: whatever is exhausted needs time to come back.
                    drop(self.changed.wait_timeout(stock, RETRY_PAUSE));
                }
            }
        }
    }
}
