//! Cells prepared ahead, so that nobody waits for one.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cell::Cell;
use crate::error::{Context, Result};
use crate::spawner::{CellSpec, Spawner};

/// How long to wait before trying again after a cell could not be made.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Cells that are made at the same time. Most of the making is waiting for the kernel, which several cells can do
/// together.
const FILLERS: usize = 4;
/// How long to wait for a cell in the making before making another one.
const ARRIVAL_WAIT: Duration = Duration::from_millis(30);

/// While the stock is at least half full, it is not refilled before nobody took anything for so long: the kernel
/// holds its one lock of all cgroups while it moves an init, which would keep the command that a taker is about to
/// start waiting for milliseconds (clone into a cgroup takes that lock).
const QUIET: Duration = Duration::from_millis(30);

/// Says what the next cell is to be: a fresh id and a free range of identities. Called by one thread at a time.
pub type SpecSource = Box<dyn FnMut() -> Result<CellSpec> + Send>;

/// A bounded stock of cells, refilled by threads of its own.
pub struct CellPool {
    shared: Arc<Shared>,
    fillers: Vec<JoinHandle<()>>,
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
    /// In the making.
    coming: usize,
    last_take: Option<Instant>,
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
        let mut pool = Self {
            shared,
            fillers: Vec::new(),
        };
        for _ in 0..FILLERS.min(size) {
            let own = Arc::clone(&pool.shared);
            let filler = std::thread::Builder::new()
                .name("cell-pool".into())
                .spawn(move || own.fill());
            pool.fillers.push(filler.context("start a thread of the pool")?);
        }
        Ok(pool)
    }

    /// A prepared cell that is alive; without one in stock, one in the making or a new one.
    pub fn take(&self) -> Result<Cell> {
        loop {
            let stock = self.shared.lock();
            let (mut stock, _) = self
                .shared
                .changed
                .wait_timeout_while(stock, ARRIVAL_WAIT, |stock| {
                    stock.cells.is_empty() && stock.coming > 0
                })
                .unwrap_or_else(PoisonError::into_inner);
            let Some(cell) = stock.cells.pop_front() else {
                drop(stock);
                return self.shared.make();
            };
            stock.last_take = Some(Instant::now());
            drop(stock);
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
        for filler in self.fillers.drain(..) {
            // It can only have panicked; the cells end below all the same.
            let _ = filler.join();
        }
        self.shared.lock().cells.clear();
    }
}

impl Stock {
    /// How long to keep quiet after the last take.
    fn quiet_left(&self) -> Option<Duration> {
        QUIET
            .checked_sub(self.last_take?.elapsed())
            .filter(|left| !left.is_zero())
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
            let mut stock = self
                .changed
                .wait_while(stock, |stock| {
                    !stock.closed && stock.cells.len() + stock.coming >= self.size
                })
                .unwrap_or_else(PoisonError::into_inner);
            if stock.closed {
                return;
            }
            let disturbs = stock.quiet_left().filter(|_| 2 * stock.cells.len() >= self.size);
            if let Some(left) = disturbs {
                drop(self.changed.wait_timeout(stock, left));
                continue;
            }
            stock.coming += 1;
            drop(stock);
            let made = self.make();
            let mut stock = self.lock();
            stock.coming -= 1;
            match made {
                Ok(cell) => {
                    stock.cells.push_back(cell);
                    drop(stock);
                    self.changed.notify_all();
                }
                Err(error) => {
                    tracing::warn!(%error, "a cell could not be prepared");
                    self.changed.notify_all();
                    // Not at once: whatever is exhausted needs time to come back.
                    drop(
                        self.changed
                            .wait_timeout_while(stock, RETRY_PAUSE, |stock| !stock.closed),
                    );
                }
            }
        }
    }
}
