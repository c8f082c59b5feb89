//! All sandboxes of one state directory.

mod fork;
mod fsck;
mod gc;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use deltabox_api::{CreateRequest, ErrorKind, Health, SandboxInfo, StoreInfo};
use deltabox_layers::{Frozen, Horizon, Store, StoreKind, StoreOptions};

use deltabox_process::PageStore;

use crate::background::{Background, Means, Needed, Work};
use crate::base;
use crate::catalog::{Catalog, CheckpointRecord, SandboxRecord};
use crate::clocks::Clocks;
use crate::config::{EngineConfig, StoreChoice};
use crate::contents::Contents;
use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::ledger::Disk;
use crate::pool::Pool;
use crate::sandbox::{Handle, Live, Sandbox};
use crate::segments::{Saved, Segments};
use crate::squasher::Squasher;
use crate::steps;

/// What the sandboxes of an engine share.
pub(crate) struct Shared {
    pub config: EngineConfig,
    pub store: Store,
    pub pool: Arc<Pool>,
    pub background: Background,
    pub squasher: Squasher,
    pub kept: Arc<Kept>,
    /// Page contents of all checkpoints of all sandboxes.
    pub pages: PageStore,
    /// The process halves of checkpoints on disk.
    pub segments: Arc<Segments>,
    /// What open files without a name held.
    pub contents: Contents,
    /// /dev/null, opened once.
    pub null: OwnedFd,
}

fn segments_of(known: &[(SandboxRecord, Vec<CheckpointRecord>)]) -> Needed {
    let all = |nodes: &[CheckpointRecord]| {
        let saved = |node: &CheckpointRecord| Some((node.id.clone(), node.saved.clone()?));
        nodes.iter().filter_map(saved).collect()
    };
    known
        .iter()
        .map(|(record, nodes)| (record.id.clone(), all(nodes)))
        .collect()
}

impl Shared {
    pub fn disk(&self) -> Disk<'_> {
        Disk {
            store: &self.store,
            segments: &self.segments,
            contents: &self.contents,
        }
    }
}

/// The frozen file states that checkpoints refer to: what must be left when rubbish is collected.
#[derive(Default)]
pub(crate) struct Kept {
    states: Mutex<HashMap<SandboxId, Vec<Frozen>>>,
    /// Held shared while anything is made in the store, from before it is there until it is in use or noted here.
    changing: RwLock<()>,
}

impl Kept {
    /// To be held while a state is frozen and noted, or made live. Not twice by one thread.
    pub fn changing(&self) -> RwLockReadGuard<'_, ()> {
        self.changing.read().expect("not poisoned")
    }

    pub fn add(&self, sandbox: &SandboxId, frozen: impl IntoIterator<Item = Frozen>) {
        self.states
            .lock()
            .expect("not poisoned")
            .entry(sandbox.clone())
            .or_default()
            .extend(frozen);
    }

    /// One checkpoint that refers to this state is no more; others may.
    pub fn remove(&self, sandbox: &SandboxId, frozen: Frozen) {
        let mut states = self.states.lock().expect("not poisoned");
        if let Some(states) = states.get_mut(sandbox)
            && let Some(at) = states.iter().position(|state| *state == frozen)
        {
            states.swap_remove(at);
        }
    }

    pub fn remove_all(&self, sandbox: &SandboxId) {
        self.states.lock().expect("not poisoned").remove(sandbox);
    }

    /// Removes everything from the store that no checkpoint and nothing live needs.
    pub fn collect(&self, store: &Store) -> Result<()> {
        let (horizon, frozen) = self.now(store);
        store.collect(horizon, &frozen)?;
        Ok(())
    }

    /// The same, also of files that later states hide from all that need their layer; with `all` whatever it costs.
    pub fn collect_hidden(&self, store: &Store, all: bool) -> Result<()> {
        self.collect(store)?;
        let (_, frozen) = self.now(store);
        if store.compact(&frozen, all)? > 0 {
            self.collect(store)?;
        }
        Ok(())
    }

    /// All states, and the point in time at which there were no others.
    fn now(&self, store: &Store) -> (Horizon, Vec<Frozen>) {
        let _nobody_changes = self.changing.write().expect("not poisoned");
        let states = self.states.lock().expect("not poisoned");
        let frozen = states.values().flatten().copied().collect();
        (store.horizon(), frozen)
    }
}

/// The open state directory. One per process and directory (the daemon holds a lock on it).
pub struct Engine {
    shared: Arc<Shared>,
    /// By name. A name is taken from the start of its creation to the end of its removal.
    sandboxes: Mutex<HashMap<String, Slot>>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

enum Slot {
    Busy,
    Ready(Handle),
}

impl Engine {
    /// Opens the store and the catalog, clears away what an earlier daemon left, and starts the spawner. Known
    /// sandboxes come back stopped, with all their durable checkpoints.
    pub fn open(config: EngineConfig) -> Result<Self> {
        let store = Store::open(StoreOptions {
            dir: config.home.join("store"),
            kind: match config.store {
                StoreChoice::Auto => StoreKind::Auto,
                StoreChoice::Btrfs => StoreKind::Btrfs,
                StoreChoice::Xfs => StoreKind::Xfs,
                StoreChoice::Directory => StoreKind::Directory,
            },
            image_size: config.store_image_bytes,
            bases: vec!["/".into()],
        })?;
        let catalog = Arc::new(Catalog::open(&config.home.join("catalog.redb"))?);
        let known = catalog.load()?;
        let kept = Kept::default();
        for (record, nodes) in &known {
            kept.add(&record.id, nodes.iter().map(|node| node.frozen));
        }
        let pool = Arc::new(Pool::start(&config)?);
        let kept = Arc::new(kept);
        let needed = segments_of(&known);
        let segments = Segments::open(
            config.home.join("segments"),
            &needed
                .values()
                .flat_map(HashMap::values)
                .flat_map(Saved::all)
                .collect(),
        )
        .map_err(|error| Error::io("cannot open the segments", &error))?;
        let segments = Arc::new(segments);
        let contents = Contents::new(&config.home);
        let swept = contents.sweep(&known);
        swept.map_err(|error| Error::io("cannot look at the contents of open files", &error))?;
        // The names of what has been made in the state directory.
        let named = std::fs::File::open(&config.home).and_then(|home| steps::sync(&home));
        named.map_err(|error| Error::io("cannot sync the state directory", &error))?;
        let (background, worker) = Background::start(Means {
            store: store.clone(),
            catalog: catalog.clone(),
            kept: kept.clone(),
            segments: segments.clone(),
            contents: contents.clone(),
            needed,
        })?;
        // With a long history this takes long, and nobody has to wait for it.
        background.send(Work::Sweep);
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        let null = null
            .map_err(|error| Error::io("cannot open /dev/null", &error))?
            .into();
        let shared = Arc::new(Shared {
            config,
            store,
            pool,
            background,
            squasher: Squasher::start()?,
            kept,
            pages: PageStore::new(),
            segments,
            contents,
            null,
        });
        let mut sandboxes = HashMap::new();
        for (record, nodes) in known {
            let name = record.name.clone();
            let handle = Handle::spawn(record, nodes, shared.clone(), |_, _| Ok(None))?;
            sandboxes.insert(name, Slot::Ready(handle));
        }
        Ok(Self {
            shared,
            sandboxes: Mutex::new(sandboxes),
            worker: Mutex::new(Some(worker)),
        })
    }

    pub fn health(&self) -> Result<Health> {
        let features = self.shared.store.features();
        let usage = self.shared.store.usage()?;
        let mut lost = features.lost.clone();
        lost.extend(self.shared.pool.lost());
        Ok(Health {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            home: self.shared.config.home.display().to_string(),
            store: StoreInfo {
                filesystem: features.filesystem.clone(),
                reflink: features.reflink,
                snapshots: features.snapshots,
                used_bytes: usage.used_bytes,
                total_bytes: usage.total_bytes,
            },
            sandboxes: self.sandboxes.lock().expect("not poisoned").len(),
            lost,
        })
    }

    /// Makes a sandbox and starts its cell.
    pub fn create(&self, request: CreateRequest) -> Result<SandboxInfo> {
        let id = SandboxId::random();
        let name = request.name.clone().unwrap_or_else(|| format!("sb-{id}"));
        check_name(&name)?;
        self.make(&name, || self.create_reserved(id, name.clone(), request))
    }

    /// Takes a name, and gives it to what `start` makes.
    fn make(&self, name: &str, start: impl FnOnce() -> Result<(Handle, SandboxInfo)>) -> Result<SandboxInfo> {
        self.reserve(name)?;
        let result = start();
        let mut sandboxes = self.sandboxes.lock().expect("not poisoned");
        match result {
            Ok((handle, info)) => {
                sandboxes.insert(name.to_owned(), Slot::Ready(handle));
                Ok(info)
            }
            Err(error) => {
                sandboxes.remove(name);
                Err(error)
            }
        }
    }

    fn reserve(&self, name: &str) -> Result<()> {
        let mut sandboxes = self.sandboxes.lock().expect("not poisoned");
        if sandboxes.contains_key(name) {
            return Err(
                Error::conflict(format!("a sandbox named {name} exists")).hint(format!(
                    "choose another name, or remove it with `deltabox rm {name}`"
                )),
            );
        }
        sandboxes.insert(name.to_owned(), Slot::Busy);
        Ok(())
    }

    fn create_reserved(
        &self,
        id: SandboxId,
        name: String,
        request: CreateRequest,
    ) -> Result<(Handle, SandboxInfo)> {
        let base = base::prepare(&self.shared, &request.root)?;
        base::check_mounts(&request.mounts)?;
        let mut env = base.env;
        env.extend(request.env);
        let record = SandboxRecord {
            id,
            name,
            root: request.root,
            limits: request.limits,
            mounts: request.mounts,
            env,
            workdir: base.workdir,
            user: base.user,
            base: base.layers,
            created_unix: now_unix(),
            retention: request.retention,
            current: None,
        };
        let handle = Handle::spawn(record, Vec::new(), self.shared.clone(), |record, shared| {
            let _making = shared.kept.changing();
            Live::start(record, shared, None, Clocks::default()).map(Some)
        })?;
        let info = handle.call(|sandbox| {
            sandbox.queue_durable(Vec::new());
            Ok(sandbox.info())
        })?;
        Ok((handle, info))
    }

    pub fn get(&self, name: &str) -> Result<Handle> {
        match self.sandboxes.lock().expect("not poisoned").get(name) {
            Some(Slot::Ready(handle)) => Ok(handle.clone()),
            Some(Slot::Busy) => Err(Error::conflict(format!(
                "sandbox {name} is being made or removed"
            ))),
            None => {
                Err(Error::not_found(format!("no sandbox named {name}")).hint("`deltabox ls` lists them"))
            }
        }
    }

    pub fn list(&self) -> Result<Vec<SandboxInfo>> {
        let handles: Vec<Handle> = {
            let sandboxes = self.sandboxes.lock().expect("not poisoned");
            sandboxes
                .values()
                .filter_map(|slot| {
                    if let Slot::Ready(h) = slot {
                        Some(h.clone())
                    } else {
                        None
                    }
                })
                .collect()
        };
        // One that is removed meanwhile is left out.
        let mut infos: Vec<_> = handles
            .iter()
            .filter_map(|handle| handle.call(|s| Ok(s.info())).ok())
            .collect();
        infos.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(infos)
    }

    /// Removes a sandbox with its checkpoints. While commands run in it only with `force`.
    pub fn remove(&self, name: &str, force: bool) -> Result<()> {
        let handle = self.get(name)?;
        if !force {
            let running = handle.call(|sandbox| Ok(sandbox.info().execs.len()))?;
            if running > 0 {
                return Err(Error::conflict(format!(
                    "sandbox {name} runs {running} command{}",
                    if running == 1 { "" } else { "s" }
                ))
                .hint("end them first, or remove it with --force"));
            }
        }
        self.reserve_removal(name, &handle)?;
        let result = self.remove_reserved(&handle);
        let mut sandboxes = self.sandboxes.lock().expect("not poisoned");
        match &result {
            Ok(()) => drop(sandboxes.remove(name)),
            Err(_) => drop(sandboxes.insert(name.to_owned(), Slot::Ready(handle))),
        }
        result
    }

    /// Takes the name for the removal of this very sandbox: whoever else removes it at the same time is refused.
    fn reserve_removal(&self, name: &str, handle: &Handle) -> Result<()> {
        let mut sandboxes = self.sandboxes.lock().expect("not poisoned");
        match sandboxes.get_mut(name) {
            Some(slot) if matches!(&*slot, Slot::Ready(other) if other.id() == handle.id()) => {
                *slot = Slot::Busy;
                Ok(())
            }
            _ => Err(Error::conflict(format!("sandbox {name} is being removed"))),
        }
    }

    /// When this fails the sandbox is stopped and has all its durable checkpoints.
    fn remove_reserved(&self, handle: &Handle) -> Result<()> {
        handle.call(|sandbox| {
            sandbox.begin_removal();
            Ok(())
        })?;
        let (done, receive) = std::sync::mpsc::channel();
        self.shared.background.send(Work::Forget {
            sandbox: handle.id().clone(),
            done,
        });
        let stopping = |_| Error::new(ErrorKind::Conflict, "the daemon is stopping");
        let forgotten = receive.recv().map_err(stopping).flatten();
        match &forgotten {
            Ok(()) => handle.close(),
            Err(_) => handle.submit(Sandbox::give_up_removal),
        }
        forgotten
    }

    /// Ends all sandboxes; their durable checkpoints stay. The last pending checkpoints are made durable first.
    pub fn shutdown(&self) {
        let slots: Vec<Slot> = {
            let mut sandboxes = self.sandboxes.lock().expect("not poisoned");
            sandboxes.drain().map(|(_, slot)| slot).collect()
        };
        for slot in slots {
            if let Slot::Ready(handle) = slot {
                // An error says that it has ended already.
                let _ = handle.call(|sandbox| {
                    sandbox.end("the daemon was stopped");
                    Ok(())
                });
                handle.close();
            }
        }
        self.shared.squasher.stop();
        self.shared.background.send(Work::Stop);
        if let Some(worker) = self.worker.lock().expect("not poisoned").take() {
            let _ = worker.join();
        }
        self.shared.pool.close();
    }
}

fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| age.as_secs())
}

/// A name is part of paths, of a host name and of cgroup names.
fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    let first = name
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if first && name.len() <= 63 && name.chars().all(good) {
        return Ok(());
    }
    Err(Error::usage(format!("bad name {name:?}"))
        .hint("up to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit"))
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        for name in ["a", "sb-1", "x.y_z", "0"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "-a", "A", "a/b", "a b", "é", &"x".repeat(64)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
