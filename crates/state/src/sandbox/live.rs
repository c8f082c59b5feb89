//! The live half of a sandbox: its cell, its file state, its running commands.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use deltabox_api::{ExecInfo, Mount, Stats};
use deltabox_isolation::spawner::UIDS_PER_CELL;
use deltabox_isolation::{Bind, RootSpec};
use deltabox_layers::{FileState, Frozen, IdMap};
use deltabox_sys::mount::{MountChange, change_mount};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::checkpoint::ms;
use super::exec::Exec;
use super::processes::Processes;
use crate::background::Work;
use crate::base;
use crate::catalog::SandboxRecord;
use crate::clocks::Clocks;
use crate::engine::Shared;
use crate::error::{Error, Result};
use crate::id::ExecId;
use crate::pool::OwnedCell;

/// How long the processes may take to freeze.
const HOLD_LIMIT: Duration = Duration::from_secs(2);

/// Everything of a sandbox that ends with its processes.
pub(crate) struct Live {
    pub(super) cell: Arc<OwnedCell>,
    pub(super) processes: Processes,
    pub(super) files: FileState,
    /// The sandbox's root directory as its processes see it.
    pub(super) root: OwnedFd,
    pub(super) execs: HashMap<ExecId, Exec>,
    /// Commands that some checkpoint holds.
    pub(super) checkpointed: HashSet<ExecId>,
    pub(super) shared: Arc<Shared>,
    pub created_phases: BTreeMap<String, f64>,
}

impl Live {
    /// Makes a cell whose files are the base's, or a frozen state's, and whose clocks are ahead of the machine's.
    pub fn start(
        record: &SandboxRecord,
        shared: &Arc<Shared>,
        from: Option<&Frozen>,
        clocks: Clocks,
    ) -> Result<Self> {
        let mut phases = BTreeMap::new();
        let mut clock = Instant::now();
        let mut lap = |name: &str, phases: &mut BTreeMap<String, f64>| {
            phases.insert(name.to_owned(), ms(clock.elapsed()));
            clock = Instant::now();
        };
        let cell = Arc::new(shared.pool.take(&record.limits)?);
        if clocks != Clocks::default() {
            cell.set_clock_offsets(clocks.monotonic, clocks.boottime)?;
        }
        lap("cell", &mut phases);
        let userns = cell.namespace("user")?;
        let ids = IdMap {
            first: cell.uid_base(),
            count: UIDS_PER_CELL,
            userns: Some(userns.as_fd()),
        };
        let base = base::of_record(shared, record);
        let files = match from {
            None => FileState::create(&shared.store, base, &ids)?,
            Some(frozen) => FileState::from_frozen(&shared.store, base, frozen, &ids)?,
        };
        lap("files", &mut phases);
        let binds = record
            .mounts
            .iter()
            .map(|mount| bind(mount, userns.as_fd()))
            .collect::<Result<_>>()?;
        cell.attach_root(
            files.mount()?,
            RootSpec {
                hostname: Some(record.name.clone()),
                binds,
            },
        )?;
        let root = cell.root()?;
        lap("attach", &mut phases);
        let contents = shared.contents.of(&record.id);
        let processes = Processes::new(cell.clone(), shared.pages.clone(), &contents, clocks)?;
        Ok(Self {
            cell,
            processes,
            files,
            root,
            execs: HashMap::new(),
            checkpointed: HashSet::new(),
            shared: shared.clone(),
            created_phases: phases,
        })
    }

    /// Keeps all processes from going on.
    pub fn hold(&self) -> Result<()> {
        Ok(self.cell.cgroup().freeze(HOLD_LIMIT)?)
    }

    /// Undoes [`Live::hold`].
    pub fn let_go(&self) -> Result<()> {
        Ok(self.cell.cgroup().thaw()?)
    }

    pub fn init_pid(&self) -> i32 {
        self.cell.init_pid()
    }

    pub fn exec_infos(&self) -> Vec<ExecInfo> {
        self.execs
            .iter()
            .map(|(id, exec)| super::exec_info(id, exec))
            .collect()
    }

    /// Readable when the cell has events.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.cell.event_fd()
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub fn open_null(&self) -> Result<OwnedFd> {
        self.shared
            .null
            .try_clone()
            .map_err(|error| Error::io("cannot duplicate a descriptor", &error))
    }

    pub fn add_stats(&self, stats: &mut Stats) -> Result<()> {
        let usage = self.cell.stats()?;
        stats.processes = self.cell.cgroup().procs()?.len() as u64;
        stats.memory_bytes = usage.memory_bytes;
        stats.memory_peak_bytes = usage.memory_peak_bytes;
        stats.cpu_usec = usage.cpu_usec;
        stats.page_store_bytes = self.shared.pages.bytes();
        Ok(())
    }

    /// Puts a new mount in the root's place; the old one, and what was kept for it, goes in the background.
    pub(super) fn switch_root(&mut self, mount: OwnedFd, retired: impl Send + 'static) -> Result<()> {
        let root = switch_root(&self.cell, &mut self.root, &self.shared, mount, retired)?;
        self.processes.root_switched(root);
        Ok(())
    }
}

/// Puts a new mount in the root's place and returns the new root; the old one goes in the background.
pub(super) fn switch_root(
    cell: &OwnedCell,
    root: &mut OwnedFd,
    shared: &Shared,
    mount: OwnedFd,
    retired: impl Send + 'static,
) -> Result<OwnedFd> {
    let old_mount = cell.switch_root(mount)?;
    let old_root = std::mem::replace(root, cell.root()?);
    shared
        .background
        .send(Work::Drop(Box::new((old_root, old_mount, retired))));
    Ok(cell.root()?)
}

/// A directory of the host, seen inside with the host's root as the sandbox's.
fn bind(mount: &Mount, userns: BorrowedFd<'_>) -> Result<Bind> {
    let failed =
        |what: &str, error: std::io::Error| Error::io(&format!("cannot {what} {}", mount.source), &error);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree =
        open_tree(CWD, &mount.source, flags).map_err(|error| failed("clone the mount of", error.into()))?;
    let change = MountChange {
        read_only: mount.read_only,
        nodev: true,
        idmap: Some(userns),
        ..MountChange::default()
    };
    change_mount(tree.as_fd(), change).map_err(|error| failed("map the owners of", error))?;
    Ok(Bind {
        mount: tree,
        target: mount.target.clone(),
    })
}
