//! The process half: the engine of one sandbox, and what ties it to the cell.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use deltabox_api::Refusal;
use deltabox_isolation::SkeletonSpec;
use deltabox_process::descriptor::{ContentDirectory, ContentId, ExternalId};
use deltabox_process::{Engine, FirstId, Host, HostPid, Image, InsidePid, PageStore, StopError, SurveyError};

use super::checkpoint::Phases;
use deltabox_sys::fsids::with_file_owner;

use crate::clocks::{Clocks, Moment};
use crate::error::{Error, Result};
use crate::id::ExecId;
use crate::pool::OwnedCell;
use crate::segments::SavedState;

/// How long the processes may take to freeze.
const FREEZE_LIMIT: Duration = Duration::from_secs(2);

/// All processes of a sandbox at one instant; immutable, shared by reference.
#[derive(Clone)]
pub(crate) struct ProcessState {
    image: Arc<Image>,
    /// The commands whose callers were listening.
    pub execs: Vec<ExecId>,
    /// Their streams.
    externals: Vec<ExternalId>,
    pub moment: Moment,
}

impl ProcessState {
    pub fn len(&self) -> usize {
        self.image.processes.len()
    }

    /// As it is written to disk.
    pub fn save(&self) -> SavedState {
        SavedState {
            image: Image::clone(&self.image),
            execs: self.execs.clone(),
            externals: self.externals.clone(),
        }
    }

    /// As it was read from disk.
    pub fn from_saved(saved: SavedState, moment: Option<Moment>) -> Self {
        Self {
            image: Arc::new(saved.image),
            execs: saved.execs,
            externals: saved.externals,
            moment: moment.unwrap_or_default(),
        }
    }

    /// Contents of open files without a name.
    pub fn contents(&self) -> impl Iterator<Item = ContentId> + '_ {
        self.image.descriptors.contents()
    }
}

/// What a rollback did to the processes.
#[derive(Default)]
pub(super) struct Restored {
    pub kept: usize,
    pub recreated: usize,
    pub ended: usize,
    /// The processes that init has made again.
    pub born: Vec<Born>,
}

/// A process that init has made, and under which number it will tell of its end.
#[derive(Clone, Copy)]
pub(super) struct Born {
    pub pid_inside: i32,
    pub start: u64,
}

/// The cell as the process engine sees it.
pub(super) struct CellHost {
    cell: Arc<OwnedCell>,
    root: OwnedFd,
    network: OwnedFd,
    born: Vec<Born>,
}

fn other(error: deltabox_isolation::Error) -> io::Error {
    io::Error::other(error)
}

impl Host for CellHost {
    fn freeze(&mut self) -> io::Result<()> {
        self.cell.cgroup().freeze(FREEZE_LIMIT).map_err(other)
    }

    fn thaw(&mut self) -> io::Result<()> {
        self.cell.cgroup().thaw().map_err(other)
    }

    fn pids(&mut self) -> io::Result<Vec<HostPid>> {
        let pids = self.cell.cgroup().procs().map_err(other)?;
        Ok(pids.into_iter().filter_map(HostPid::new).collect())
    }

    fn init_pid(&self) -> HostPid {
        HostPid::new(self.cell.init_pid()).expect("the kernel gives out positive process ids")
    }

    fn first_id(&self) -> FirstId {
        FirstId(self.cell.uid_base())
    }

    fn set_next_pid(&mut self, pid: InsidePid) -> io::Result<()> {
        self.cell.set_last_pid(pid.0 - 1).map_err(other)
    }

    fn skeleton(&mut self, pid: InsidePid) -> io::Result<HostPid> {
        let spec = SkeletonSpec {
            pid_inside: Some(pid.0),
            confine: true,
        };
        let started = self.cell.skeleton(&spec).map_err(other)?;
        self.born.push(Born {
            pid_inside: started.pid_inside,
            start: started.start,
        });
        HostPid::new(started.pid).ok_or_else(|| io::Error::other("init gave no process id"))
    }

    fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn net_namespace(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }
}

/// The processes of a live sandbox. Belongs to the sandbox's thread, because ptrace does.
pub(super) struct Processes {
    engine: Engine<CellHost>,
    /// The state captured or restored last: what did not change since is shared with it.
    last: Option<Arc<Image>>,
    externals: BTreeSet<ExternalId>,
    /// How far the cell's clocks are ahead of the machine's.
    clocks: Clocks,
}

/// A number for a stream of a command that no other one of any sandbox has or had: a state may be restored into another
/// cell than it came from, and by another daemon.
fn next_external() -> ExternalId {
    static NEXT: OnceLock<AtomicU64> = OnceLock::new();
    let next = NEXT.get_or_init(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        AtomicU64::new(now.map_or(1, |age| age.as_nanos() as u64))
    });
    ExternalId(next.fetch_add(1, Ordering::Relaxed))
}

impl Processes {
    /// `contents` is a directory for what has no name in the files: deleted but open files and memfds.
    pub fn new(cell: Arc<OwnedCell>, pages: PageStore, contents: &Path, clocks: Clocks) -> Result<Self> {
        let failed = |error: io::Error| Error::io("cannot keep contents of open files", &error);
        std::fs::create_dir_all(contents).map_err(failed)?;
        let contents = Box::new(ContentDirectory::open(contents).map_err(failed)?);
        let host = CellHost {
            root: cell.root()?,
            network: cell.namespace("net")?,
            cell,
            born: Vec::new(),
        };
        Ok(Self {
            engine: Engine::new(host, pages, contents),
            last: None,
            externals: BTreeSet::new(),
            clocks,
        })
    }

    /// Tells of a new root; the processes' own roots have followed it already.
    pub fn root_switched(&mut self, root: OwnedFd) {
        self.engine.host().root = root;
    }

    /// Registers the ends of a command's streams that the sandbox holds: they are outside the state.
    pub fn add_external(&mut self, sandbox_end: BorrowedFd<'_>, duplicate: bool) -> Result<ExternalId> {
        let id = next_external();
        let externals = self.engine.externals();
        let registered = if duplicate {
            externals.register(id, sandbox_end)
        } else {
            externals.register_object(id, sandbox_end)
        };
        registered.map_err(|error| Error::io("cannot keep a command's stream", &error))?;
        self.externals.insert(id);
        Ok(id)
    }

    pub fn remove_external(&mut self, id: ExternalId) {
        self.externals.remove(&id);
        self.engine.externals().remove(id);
    }

    /// Copies memory while the processes run, so that they have to stand still for less.
    pub fn copy_ahead(&mut self) {
        self.engine.copy_ahead();
    }

    /// Whether there is something to capture although no process is there.
    pub fn left_something(&mut self) -> Result<bool> {
        let has = self.engine.has_ipc_objects();
        has.map_err(|error| Error::internal("cannot look for IPC objects", error))
    }

    /// Removes what the processes, which have ended, left.
    pub fn remove_leftovers(&mut self) -> Result<()> {
        if !self.left_something()? {
            return Ok(());
        }
        let mut stopped = self.engine.stop().map_err(stop_failed)?;
        let restored = stopped.restore(&Image::default());
        restored.map_err(|error| Error::internal("cannot remove IPC objects", error))?;
        let resumed = stopped.resume();
        resumed.map_err(|error| Error::internal("cannot remove IPC objects", error))?;
        Ok(())
    }

    /// Stops all processes, captures them while `files` runs on another thread, and lets them go when both are done.
    /// On any error they run on as if nothing had been asked.
    pub fn capture<T: Send>(
        &mut self,
        execs: Vec<ExecId>,
        phases: &mut Phases,
        files: impl FnOnce() -> Result<T> + Send,
    ) -> Result<(ProcessState, T, u64)> {
        let mut stopped = self.engine.stop().map_err(stop_failed)?;
        let moment = self.clocks.moment();
        let survey = stopped.survey().map_err(survey_failed)?;
        let last = self.last.as_deref();
        let (image, (files, files_took)) = std::thread::scope(|scope| {
            let files = scope.spawn(|| {
                let start = Instant::now();
                (files(), start.elapsed())
            });
            let image = stopped.capture(survey, last).map_err(survey_failed);
            let files = files
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (image, files)
        });
        phases.add("files (beside)", files_took);
        let (image, files) = (image?, files?);
        let report = stopped
            .resume()
            .map_err(|error| Error::internal("cannot let the processes go on", error))?;
        phases.extend(&report.phases);
        let image = Arc::new(image);
        self.last = Some(image.clone());
        let externals = self.externals.iter().copied().collect();
        Ok((
            ProcessState {
                image,
                execs,
                externals,
                moment,
            },
            files,
            report.bytes_stored,
        ))
    }

    /// Streams of commands whose callers are gone lead nowhere when their processes are made again.
    pub fn substitute_externals(&mut self, target: &ProcessState, null: &OwnedFd) -> Result<()> {
        for &id in &target.externals {
            if !self.engine.externals().knows(id) {
                let end = null
                    .try_clone()
                    .map_err(|error| Error::io("cannot duplicate a descriptor", &error))?;
                self.engine.externals().substitute(id, end);
            }
        }
        Ok(())
    }

    /// Stops all processes, calls `files` to put the target's files in place, and makes the processes what `target`
    /// says. `files` returns the new root.
    pub fn restore(
        &mut self,
        target: &ProcessState,
        phases: &mut Phases,
        files: impl FnOnce() -> std::result::Result<OwnedFd, Failed>,
    ) -> std::result::Result<Restored, Failed> {
        let moved = target.moment.ahead.minus(self.clocks);
        let image = match moved == Clocks::default() {
            true => target.image.clone(),
            false => Arc::new(target.image.with_clocks_moved(moved.monotonic, moved.boottime)),
        };
        let mut stopped = match self.engine.stop() {
            Ok(stopped) => stopped,
            Err(StopError::Vfork(_)) => {
                // They cannot be changed in place, so all are made again.
                let killed = self.engine.host().cell.kill_all();
                killed.map_err(|error| Failed::Broken(error.into()))?;
                let stopped = self.engine.stop();
                stopped.map_err(|error| Failed::Broken(stop_failed(error)))?
            }
            Err(error) => return Err(Failed::Untouched(stop_failed(error))),
        };
        stopped.host().root = phases.time("files", files)?;
        stopped.host().born.clear();
        let broken = |error: &dyn std::fmt::Display| {
            Failed::Broken(Error::internal("cannot restore the processes", error))
        };
        // What has to be made in the files belongs to the sandbox: our own id has no place in their id mapping.
        let owner = stopped.host().cell.uid_base();
        let restored = with_file_owner(owner, || stopped.restore(&image)).map_err(|error| broken(&error))?;
        restored.map_err(|error| broken(&error))?;
        let report = stopped.resume().map_err(|error| broken(&error))?;
        phases.extend(&report.phases);
        self.last = Some(image);
        Ok(Restored {
            kept: report.in_place,
            recreated: report.created,
            ended: report.killed,
            born: std::mem::take(&mut self.engine.host().born),
        })
    }
}

/// How a restore failed.
pub(super) enum Failed {
    /// Before anything was changed.
    Untouched(Error),
    /// Past the point of no return.
    Broken(Error),
}

fn stop_failed(error: StopError) -> Error {
    if let StopError::Vfork(refusal) = error {
        return refused(vec![refusal]);
    }
    Error::refused(format!("the sandbox could not be stopped: {error}"), Vec::new())
}

fn survey_failed(error: SurveyError) -> Error {
    match error {
        SurveyError::Refused(refusals) => refused(refusals),
        error => Error::internal("cannot capture the processes", error),
    }
}

/// One line for all, details for those who ask.
fn refused(refusals: Vec<deltabox_process::Refusal>) -> Error {
    let Some(first) = refusals.first() else {
        return Error::refused("the state cannot be checkpointed", Vec::new());
    };
    let others = if refusals.len() > 1 {
        format!(" (and {} more)", refusals.len() - 1)
    } else {
        String::new()
    };
    let line = format!(
        "process {} ({}): {}: {}{others}",
        first.pid, first.name, first.what, first.why
    );
    let remedy = first.remedy.clone();
    let refusals = refusals.into_iter().map(|refusal| Refusal {
        pid: Some(refusal.pid.0),
        process: refusal.name,
        what: refusal.what,
        why: refusal.why,
        remedy: refusal.remedy,
    });
    Error::refused(format!("cannot be checkpointed: {line}"), refusals.collect()).hint(remedy)
}
