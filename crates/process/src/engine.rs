//! The engine of one sandbox: what it remembers of the live processes between stops, and the operations.
//!
//! ```text
//! stop -> survey -> capture | restore -> resume
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use crate::ahead::Ahead;
use crate::descriptor::{self, Contents, Environment, Externals, Member, Terminals};
use crate::error::TraceError;
use crate::host::Host;
use crate::ids::{Addr, HostPid, InsidePid};
use crate::image::{Identity, ProcessImage, Report};
use crate::ipc::{self, Ipc};
use crate::memory::capture::{Reader, Taken};
use crate::memory::maps::{self, Vma};
use crate::memory::page_store::PageStore;
use crate::memory::page_tree::PageTree;
use crate::memory::roots::Roots;
use crate::memory::track::{Run, Tracker};
use crate::shared::{Key, SharedMemory};
use crate::stop::{self, Process, StopError, Tree};
use crate::survey::{self, Refusal, SurveyError};
use crate::task;

/// What the engine knows of a live process.
pub(crate) struct Live {
    pub(crate) identity: Identity,
    /// When the process started, in clock ticks since boot: pids are used again.
    start_time: u64,
    /// Where the program's parts are: another place means another program (`execve`).
    program: [u64; 4],
    /// A `syscall` instruction of the program.
    instruction: Addr,
    /// What it was when it was last let go, if that is known.
    pub(crate) known: Option<Arc<ProcessImage>>,
    pub(crate) tracker: Tracker,
    pub(crate) reader: Reader,
    /// The pages as they were last seen; whatever was written since is reported by the tracker.
    pub(crate) seen: PageTree,
    /// What has been done ahead of the next stop.
    pub(crate) ahead: Ahead,
    /// Bytes that the last checkpoint had to read; `None` before the first.
    pub(crate) delta: Option<u64>,
}

impl Live {
    /// Whether this is the process, and the program, that was looked at before.
    fn is_still(&self, stat: &task::Stat) -> bool {
        self.is_program(stat) && self.tracker.is_alive()
    }

    fn is_program(&self, stat: &task::Stat) -> bool {
        self.start_time == stat.start_time && self.program == stat.layout.program()
    }
}

/// The mappings of a process now, and what was written into them since they were last seen.
pub(crate) struct Scanned {
    pub(crate) vmas: Vec<Vma>,
    pub(crate) runs: Vec<Run>,
    /// What was written since it was last let go, which is more where memory has been copied ahead.
    pub(crate) written: Vec<(u64, u64)>,
    /// What has been copied ahead.
    pub(crate) taken_ahead: Taken,
    /// What it was then, if that is known. The writes having been looked at, this is the only chance to compare.
    pub(crate) known: Option<Arc<ProcessImage>>,
}

/// One per sandbox. Must be used from one thread only.
pub struct Engine<H: Host> {
    pub(crate) host: H,
    pub(crate) store: PageStore,
    pub(crate) live: HashMap<HostPid, Live>,
    pub(crate) externals: Externals,
    pub(crate) contents: Box<dyn Contents + Send>,
    pub(crate) roots: Roots,
    pub(crate) shared: SharedMemory,
    pub(crate) ipc: Ipc,
    /// Room for pages on their way into the store.
    pub(crate) buffer: Vec<u8>,
    next_identity: u64,
}

impl<H: Host> Engine<H> {
    /// An engine that knows nothing yet. `store` may be shared with other engines; `contents` keeps what deleted files
    /// and memfds hold.
    pub fn new(host: H, store: PageStore, contents: Box<dyn Contents + Send>) -> Engine<H> {
        maps::prepare();
        Engine {
            host,
            store,
            live: HashMap::new(),
            externals: Externals::new(),
            contents,
            roots: Roots::default(),
            shared: SharedMemory::default(),
            ipc: Ipc::default(),
            buffer: Vec::new(),
            next_identity: 1,
        }
    }

    /// Objects whose other end the caller holds.
    pub fn externals(&mut self) -> &mut Externals {
        &mut self.externals
    }

    /// The sandbox.
    pub fn host(&mut self) -> &mut H {
        &mut self.host
    }

    /// Where page contents are.
    pub fn store(&self) -> &PageStore {
        &self.store
    }

    /// Whether the sandbox has IPC objects, which it may have without any process.
    pub fn has_ipc_objects(&mut self) -> Result<bool, TraceError> {
        self.ipc.has_objects(self.host.init_pid())
    }

    /// Stops the whole sandbox. Dropping the result lets it go on.
    pub fn stop(&mut self) -> Result<Stopped<'_, H>, StopError> {
        self.ipc.look(self.host.init_pid())?;
        let start = Instant::now();
        let live = &self.live;
        let tree = stop::stop_known(&mut self.host, &|pid, stat| {
            let live = live.get(&pid).filter(|live| live.is_program(stat));
            live.map(|live| live.instruction)
        })?;
        self.note_root()?;
        let mut report = Report::default();
        report.add("stop", start.elapsed());
        Ok(Stopped {
            engine: self,
            tree,
            report,
        })
    }

    /// Takes note of which mount is the sandbox's root.
    pub(crate) fn note_root(&mut self) -> Result<(), TraceError> {
        let failed = |source| TraceError::Request {
            tid: self.host.init_pid(),
            what: "look at the root of",
            source,
        };
        self.roots.update(self.host.root()).map_err(failed)
    }

    /// What is known of a live process; it is looked at for the first time if necessary.
    pub(crate) fn live(&mut self, process: &mut Process) -> Result<&mut Live, TraceError> {
        let pid = process.pid();
        let stat = process.stat().clone();
        let known = self.live.get(&pid).is_some_and(|live| live.is_still(&stat));
        if !known {
            self.live.remove(&pid);
            let live = Live {
                identity: Identity(self.next_identity),
                start_time: stat.start_time,
                program: stat.layout.program(),
                instruction: process.injector().0.instruction(),
                known: None,
                tracker: Tracker::new(process)?,
                reader: Reader::new(pid)?,
                seen: PageTree::new(),
                ahead: Ahead::default(),
                delta: None,
            };
            self.next_identity += 1;
            self.live.insert(pid, live);
        }
        self.live.get_mut(&pid).ok_or(TraceError::Gone { tid: pid })
    }

    /// Which program a process is, if it has been looked at before.
    pub(crate) fn identity(&self, process: &Process) -> Option<Identity> {
        self.live
            .get(&process.pid())
            .filter(|live| live.is_still(process.stat()))
            .map(|live| live.identity)
    }

    /// Finds out what was written in a process since it was last seen.
    pub(crate) fn scan(&mut self, process: &mut Process) -> Result<Scanned, TraceError> {
        let vmas = self.shared.normalize(&self.roots, process.take_maps()?);
        self.live(process)?.tracker.register(&vmas)?;
        // The first look injects a call, whose memory must not be taken for the program's.
        let scratch = process.injector().0.scratch_range();
        let vmas = maps::without(vmas, scratch);
        let live = self.live(process)?;
        let known = live.known.take();
        let ahead = std::mem::take(&mut live.ahead);
        let runs = ahead.complete(live.tracker.scan(&vmas, &live.seen)?, &vmas);
        let taken_ahead = ahead.taken;
        let written = ahead.all_written(&runs);
        Ok(Scanned {
            vmas,
            runs,
            written,
            taken_ahead,
            known,
        })
    }

    /// Notes that a process that has just been made continues the one with this identity.
    pub(crate) fn adopt(&mut self, process: &mut Process, identity: Identity) -> Result<(), TraceError> {
        self.live(process)?.identity = identity;
        self.next_identity = self.next_identity.max(identity.0 + 1);
        Ok(())
    }

    /// Notes where a program's parts are after they have been put elsewhere.
    pub(crate) fn program_moved(&mut self, process: &mut Process) -> Result<(), TraceError> {
        process.refresh_stat()?;
        let instruction = process.injector().0.instruction();
        if let Some(live) = self.live.get_mut(&process.pid()) {
            live.program = process.stat().layout.program();
            live.instruction = instruction;
        }
        Ok(())
    }

    /// What descriptors are restored from. `terminals` are those that had to be made before, `mapped` the files of
    /// what processes map.
    pub(crate) fn environment<'a>(
        &'a self,
        terminals: &'a Terminals,
        mapped: &'a HashMap<Key, File>,
    ) -> Environment<'a> {
        Environment {
            root: self.host.root(),
            first_id: self.host.first_id(),
            network: Some(self.host.net_namespace()),
            ipc: self.ipc.namespace(),
            externals: &self.externals,
            contents: &*self.contents,
            terminals,
            mapped,
        }
    }

    /// Drops what is known of processes that are not there any more.
    pub(crate) fn forget_others(&mut self, tree: &Tree) {
        self.live
            .retain(|pid, _| tree.processes.iter().any(|process| process.pid() == *pid));
    }
}

/// What [`Stopped::survey`] found.
pub struct Survey {
    pub(crate) descriptors: descriptor::Live,
    pub(crate) ipc: ipc::State,
}

/// A sandbox that stands still.
pub struct Stopped<'e, H: Host> {
    pub(crate) engine: &'e mut Engine<H>,
    pub(crate) tree: Tree,
    pub(crate) report: Report,
}

impl<H: Host> Stopped<'_, H> {
    /// The sandbox.
    pub fn host(&mut self) -> &mut H {
        &mut self.engine.host
    }

    /// The processes.
    pub fn tree(&mut self) -> &mut Tree {
        &mut self.tree
    }

    /// What this stop has taken so far.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Finds out whether everything can be carried. Nothing is touched. The result is what [`Stopped::capture`] needs;
    /// it must be dropped before the sandbox goes on.
    pub fn survey(&mut self) -> Result<Survey, SurveyError> {
        let start = Instant::now();
        let mut refusals = survey::refusals(&mut self.tree)?;
        let Engine { host, ipc, .. } = &mut *self.engine;
        let ipc = ipc.survey(host.first_id(), &mut self.tree, &mut refusals)?;
        let members: Vec<Member> = self.tree.processes.iter().map(Member::of).collect();
        let found = descriptor::survey(
            &members,
            self.engine.host.root(),
            self.engine.host.first_id(),
            &self.engine.externals,
        );
        self.report.add("survey", start.elapsed());
        match found {
            Ok(descriptors) if refusals.is_empty() => Ok(Survey { descriptors, ipc }),
            Ok(_) => Err(SurveyError::Refused(refusals)),
            Err(descriptor::Error::Refused(others)) => {
                refusals.extend(others.into_iter().map(|other| self.named(other)));
                Err(SurveyError::Refused(refusals))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn named(&self, refusal: descriptor::Refusal) -> Refusal {
        let process = self
            .tree
            .processes
            .iter()
            .find(|process| process.inside() == refusal.process);
        let what = if refusal.fd < 0 {
            refusal.what
        } else {
            format!("descriptor {} ({})", refusal.fd, refusal.what)
        };
        Refusal {
            pid: refusal.process,
            name: process.map_or_else(String::new, |process| process.name().to_owned()),
            what,
            why: refusal.why,
            remedy: refusal.remedy,
        }
    }

    /// Lets the sandbox go on.
    pub fn resume(self) -> Result<Report, TraceError> {
        let Stopped {
            engine,
            tree,
            mut report,
        } = self;
        let start = Instant::now();
        tree.resume()?;
        report.add("resume", start.elapsed());
        engine.store.prepare();
        Ok(report)
    }
}

/// The parent of a process as the sandbox sees it: another process, or init.
pub(crate) fn parent_of(tree: &Tree, place: usize, init: HostPid) -> InsidePid {
    let parent = tree.processes[place].status().parent;
    if parent == init.raw() {
        return InsidePid(1);
    }
    let found = tree
        .processes
        .iter()
        .find(|process| process.pid().raw() == parent);
    found.map_or(InsidePid(0), Process::inside)
}
