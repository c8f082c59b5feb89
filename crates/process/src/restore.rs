//! Making the processes of a stopped sandbox what an image says.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::{Signal, kill_process};
use thiserror::Error;

use crate::credentials::Seen;
use crate::descriptor::{self, Terminals, terminals};
use crate::engine::{Engine, Scanned, Stopped, parent_of};
use crate::error::TraceError;
use crate::hold::Hold;
use crate::host::Host;
use crate::ids::{Addr, HostPid, InsidePid};
use crate::image::{Identity, Image, ProcessImage, Report};
use crate::layout::Sources;
use crate::memory::PAGE;
use crate::memory::maps::{self, Vma};
use crate::memory::restore::{is_sealed, page_changes, seals_hold};
use crate::plan::{self, Plan, PlanError, Present};
use crate::shared::{Key, SharedMemory};
use crate::stop::{Process, StopError, Tree};
use crate::{create, credentials, idle, inject, job_control, layout, task, thread, timer, zombie};

/// Why a restore did not succeed.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Anything ptrace says.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The sandbox around the processes did not do its part.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// A mapping could not be made again.
    #[error("cannot {what} {start:#x}-{end:#x} in process {pid}: {errno}")]
    Mapping {
        pid: InsidePid,
        what: &'static str,
        start: u64,
        end: u64,
        errno: Errno,
    },
    /// A process that has to be the parent is not there.
    #[error("process {pid} cannot be created again without its parent {parent}")]
    NoParent { pid: InsidePid, parent: InsidePid },
    /// The program of a process cannot be started again.
    #[error("process {pid} cannot be created again: cannot execute {path}: {errno}")]
    Executable {
        pid: InsidePid,
        path: String,
        errno: Errno,
    },
    /// The tree of processes cannot be made again.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Something behind a descriptor could not be restored.
    #[error(transparent)]
    Descriptors(#[from] descriptor::Error),
    /// The mappings did not become what was wanted.
    #[error("the mappings of process {pid} do not become what the checkpoint holds: {detail}")]
    Layout { pid: InsidePid, detail: String },
}

impl<H: Host> Stopped<'_, H> {
    /// Makes the sandbox's processes what `image` says. If this fails, the processes may be in between: they have to
    /// be killed, and re-created by another restore.
    pub fn restore(&mut self, image: &Image) -> Result<(), RestoreError> {
        let start = Instant::now();
        self.engine.note_root()?;
        let plan = self.plan(image)?;
        self.report.add("plan", start.elapsed());

        let start = Instant::now();
        let foreign: Vec<HostPid> = self.tree.untraceable.iter().map(|process| process.pid).collect();
        kill_untraceable(&foreign)?;
        create::kill_all(&mut self.tree, &plan.kill)?;
        self.free_ids(&plan, image)?;
        self.report.killed += plan.kill.len() + foreign.len();
        self.report.add("kill", start.elapsed());

        let start = Instant::now();
        let terminals = self.create(&plan, image)?;
        self.report.add("create", start.elapsed());

        let start = Instant::now();
        let files = self.restore_shared(image)?;
        self.report.add("pages", start.elapsed());

        job_control::restore(&mut self.tree, image)?;
        for wanted in &image.processes {
            let process = self.tree.by_inside(wanted.pid);
            let process = process.ok_or(RestoreError::NoParent {
                pid: wanted.pid,
                parent: wanted.parent,
            })?;
            let fresh = !plan.keep.contains(&wanted.pid);
            restore_process(self.engine, process, wanted, fresh, &files, &mut self.report)?;
        }
        let start = Instant::now();
        let first = self.engine.host.first_id();
        self.engine.ipc.restore(first, &mut self.tree, image)?;
        let environment = self.engine.environment(&terminals, &files);
        descriptor::restore(&mut self.tree.processes, &image.descriptors, &environment)?;
        SharedMemory::seal(&files, &image.shared)?;
        self.report.add("descriptors", start.elapsed());
        self.engine.forget_others(&self.tree);
        Ok(())
    }

    /// Puts the content of shared memory back, before anybody is made to map it.
    fn restore_shared(&mut self, image: &Image) -> Result<HashMap<Key, File>, RestoreError> {
        let Engine { host, ipc, .. } = &mut *self.engine;
        let files = ipc.restore_segments(host.first_id(), &mut self.tree, image)?;
        let mut mapped = Vec::new();
        if !image.shared.is_empty() {
            for process in &self.tree.processes {
                mapped.push((process.pid(), maps::read(process.pid())?));
            }
        }
        let mut shared = std::mem::take(&mut self.engine.shared);
        let (terminals, none) = (Terminals::new(), HashMap::new());
        let environment = self.engine.environment(&terminals, &none);
        let make = |key| Ok(descriptor::make_mapped(&image.descriptors, key, &environment)?.map(File::from));
        let restored = shared.restore(&self.engine.roots, &mapped, files, &image.shared, make);
        self.engine.shared = shared;
        restored
    }

    fn plan(&mut self, image: &Image) -> Result<Plan, RestoreError> {
        let (init, first) = (self.engine.host.init_pid(), self.engine.host.first_id());
        let mut present = Vec::new();
        let sealed = self.sealed_since(image)?;
        for (place, process) in self.tree.processes.iter().enumerate() {
            let wanted = image
                .processes
                .iter()
                .find(|wanted| wanted.pid == process.inside());
            let same = match wanted {
                Some(wanted) => {
                    !process.has_mixed_credentials
                        && Seen::of(process.status(), first) == wanted.task.credentials.seen
                        && task::limits_can_be_had(process.pid(), &wanted.task)?
                        && !sealed[place]
                        && self.terminal_fits(process, wanted, image)
                }
                None => false,
            };
            let identity = self.engine.identity(process);
            present.push(Present {
                pid: process.inside(),
                parent: parent_of(&self.tree, place, init),
                session: InsidePid(process.status().session),
                identity: identity.unwrap_or(Identity(0)),
                reversible: same,
            });
        }
        let zombies = zombie::find(&self.tree)?;
        Ok(plan::plan(&present, &zombies, image)?)
    }

    /// Whether a live process has the wanted controlling terminal, or can take it: only a leader can.
    fn terminal_fits(&self, process: &Process, wanted: &ProcessImage, image: &Image) -> bool {
        let from = source(self.engine, image);
        match (process.stat().terminal, wanted.terminal) {
            (now, then) if now == then => true,
            (None, Some(then)) => wanted.session == wanted.pid || !terminals::can_be_had(then, &from),
            _ => false,
        }
    }

    /// For each process: whether it has sealed memory that would have to change.
    fn sealed_since(&mut self, image: &Image) -> Result<Vec<bool>, RestoreError> {
        let Engine { roots, shared, .. } = &*self.engine;
        let mut found = Vec::with_capacity(self.tree.processes.len());
        for process in &mut self.tree.processes {
            let pid = process.inside();
            let now = process.look_at_maps()?;
            let wanted = image.processes.iter().find(|wanted| wanted.pid == pid);
            found.push(match wanted {
                Some(wanted) if now.iter().any(is_sealed) => {
                    seals_hold(&shared.normalize(roots, now.to_vec()), &wanted.vmas)
                }
                _ => false,
            });
        }
        Ok(found)
    }

    /// Ends and moves what has ids that others are to get again: zombies, threads, members of groups without leader.
    fn free_ids(&mut self, plan: &Plan, image: &Image) -> Result<(), RestoreError> {
        for zombie in &plan.reap {
            if let Some(parent) = self.tree.by_inside(zombie.parent) {
                let parent = parent.pid().raw();
                create::reap(&mut self.tree, parent, zombie.pid)?;
            }
        }
        for wanted in &image.processes {
            let Some(process) = self.tree.by_inside(wanted.pid) else {
                continue;
            };
            let tids: Vec<InsidePid> = wanted.threads.iter().map(|thread| thread.tid).collect();
            process.end_threads(&tids)?;
            if plan.makes(InsidePid(process.status().group)) {
                create::lead_group(process)?;
            }
        }
        Ok(())
    }

    fn create(&mut self, plan: &Plan, image: &Image) -> Result<Terminals, RestoreError> {
        let Stopped { engine, tree, report } = self;
        let mut terminals = Terminals::new();
        for leader in leaders(image).filter(|leader| plan.keep.contains(&leader.pid)) {
            give_terminal(&mut terminals, engine, tree, leader, image)?;
        }
        for birth in &plan.births {
            create::birth(&mut engine.host, tree, birth, image)?;
            if let Some(leader) = leaders(image).find(|leader| leader.pid == birth.pid) {
                give_terminal(&mut terminals, engine, tree, leader, image)?;
            }
            report.created += 1;
        }
        take_terminals(&mut terminals, engine, tree, image)?;
        create::group_leaders(tree, image)?;
        for wanted in &plan.deaths {
            create::zombie(&mut engine.host, tree, wanted)?;
        }
        create::group_members(&mut engine.host, tree, image)?;
        for birth in plan.births.iter().filter(|birth| birth.temporary) {
            create::remove(tree, birth.pid)?;
        }
        Ok(terminals)
    }
}

/// The leaders of sessions.
fn leaders(image: &Image) -> impl Iterator<Item = &ProcessImage> {
    let all = image.processes.iter().map(|process| &**process);
    all.filter(|process| process.session == process.pid)
}

fn source<'a, H: Host>(engine: &'a Engine<H>, image: &'a Image) -> terminals::Source<'a> {
    terminals::Source {
        tables: &image.descriptors,
        root: engine.host.root(),
        externals: &engine.externals,
    }
}

/// Gives a leader the controlling terminal it had, unless it has it.
fn give_terminal<H: Host>(
    terminals: &mut Terminals,
    engine: &Engine<H>,
    tree: &mut Tree,
    leader: &ProcessImage,
    image: &Image,
) -> Result<(), RestoreError> {
    let process = tree.by_inside(leader.pid);
    let process = process.filter(|process| process.stat().terminal != leader.terminal);
    if let (Some(process), Some(number)) = (process, leader.terminal)
        && terminals.give(process, number, &source(engine, image))?
    {
        process.refresh_stat()?;
    }
    Ok(())
}

/// Takes away what was inherited, once nobody inherits it any more, from those who had no terminal.
fn take_terminals<H: Host>(
    terminals: &mut Terminals,
    engine: &Engine<H>,
    tree: &mut Tree,
    image: &Image,
) -> Result<(), RestoreError> {
    for wanted in image.processes.iter().filter(|wanted| wanted.terminal.is_none()) {
        if let Some(process) = tree.by_inside(wanted.pid)
            && let Some(number) = process.stat().terminal
        {
            terminals.take_away(process, number, &source(engine, image))?;
        }
    }
    Ok(())
}

/// Ends processes that somebody else traces.
fn kill_untraceable(pids: &[HostPid]) -> Result<(), TraceError> {
    for &pid in pids {
        match kill_process(pid.pid(), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => {
                return Err(TraceError::Request {
                    tid: pid,
                    what: "kill",
                    source: errno.into(),
                });
            }
        }
    }
    Ok(())
}

/// Makes a live process what `wanted` says. `fresh`: it has just been made and shares nothing with it but its id.
fn restore_process<H: Host>(
    engine: &mut Engine<H>,
    process: &mut Process,
    wanted: &Arc<ProcessImage>,
    fresh: bool,
    files: &HashMap<Key, File>,
    report: &mut Report,
) -> Result<(), RestoreError> {
    let start = Instant::now();
    choose_place(process, &wanted.vmas)?;
    thread::release_rseq(process, &wanted.threads)?;
    if fresh {
        engine.adopt(process, wanted.identity)?;
        layout::move_kernel_mappings(process, &wanted.vmas)?;
        process.forget_maps();
    }
    let scanned = engine.scan(process)?;
    let unchanged = Unchanged::find(process, wanted, &scanned)?;
    report.add("scan", start.elapsed());

    let start = Instant::now();
    let future = match (fresh, unchanged.task) {
        (true, _) => Some(0),
        (false, true) => Some(wanted.task.future_locks),
        (false, false) => None,
    };
    let hold = Hold::loosen(process, &scanned.vmas, wanted, future)?;
    let remapped = layout::restore(process, scanned.vmas, wanted, fresh, &sources(engine, files))?;
    engine.program_moved(process)?;
    let live = engine.live(process)?;
    live.tracker.register(&wanted.vmas)?;
    report.add("mappings", start.elapsed());

    let start = Instant::now();
    let mut changes = page_changes(&wanted.vmas, &wanted.pages, &live.seen, &scanned.runs, &remapped);
    layout::drop_pages(process, &changes.drop)?;
    report.bytes_written += (changes.fill.len() + changes.write.len()) as u64 * PAGE;
    changes.write.extend(live.tracker.fill(&changes.fill));
    live.reader.write_pages(&changes.write)?;
    let mut touched: Vec<(u64, u64)> = Vec::new();
    for (at, _) in &changes.write {
        match touched.last_mut() {
            Some((_, end)) if *end == *at => *end += PAGE,
            _ => touched.push((*at, *at + PAGE)),
        }
    }
    live.tracker.protect(&touched)?;
    live.seen = wanted.pages.clone();
    hold.fasten(process, wanted, &sources(engine, files))?;
    report.add("pages", start.elapsed());

    let start = Instant::now();
    if fresh {
        credentials::restore(process, &wanted.task.credentials, engine.host.first_id())?;
    }
    let tids: Vec<InsidePid> = wanted.threads.iter().map(|thread| thread.tid).collect();
    process.create_threads(&mut engine.host, &tids)?;
    report.disturbed += restore_state(process, wanted, &unchanged)?;
    engine.live(process)?.known = Some(Arc::clone(wanted));
    report.in_place += usize::from(!fresh);
    report.add("state", start.elapsed());
    Ok(())
}

fn sources<'a, H: Host>(engine: &'a Engine<H>, files: &'a HashMap<Key, File>) -> Sources<'a> {
    Sources {
        roots: &engine.roots,
        shared: &engine.shared,
        files,
    }
}

/// What need not be restored, because it has not changed.
struct Unchanged {
    task: bool,
    threads: HashSet<InsidePid>,
}

impl Unchanged {
    fn find(
        process: &mut Process,
        wanted: &ProcessImage,
        scanned: &Scanned,
    ) -> Result<Unchanged, TraceError> {
        let known = scanned.known.as_deref();
        let idle = idle::threads(process, known, &scanned.vmas, &scanned.written)?;
        let settled = known.filter(|known| idle::task_is_settled(process, known, &idle));
        let task = match settled {
            Some(known) => idle::task(process, &known.task)? == wanted.task,
            None => false,
        };
        let mut threads = HashSet::new();
        for (place, was) in idle.into_iter().enumerate() {
            let Some(was) = was else { continue };
            let now = idle::thread(process, place, was)?;
            if wanted.threads.contains(&now) {
                threads.insert(now.tid);
            }
        }
        Ok(Unchanged { task, threads })
    }
}

/// Restores what has changed; returns in how many threads.
fn restore_state(
    process: &mut Process,
    wanted: &ProcessImage,
    unchanged: &Unchanged,
) -> Result<usize, TraceError> {
    let mut disturbed = 0;
    let mut timers = [].as_slice();
    if !unchanged.task {
        task::restore(process, &wanted.task)?;
        timers = &wanted.task.timers;
    }
    for (place, image) in wanted.threads.iter().enumerate() {
        if !unchanged.threads.contains(&image.tid) {
            thread::restore(process, place, image, timers)?;
            disturbed += 1;
        }
    }
    if !unchanged.task {
        timer::send_pending(process, &wanted.task, &wanted.threads)?;
    }
    Ok(disturbed)
}

/// Keeps the injected memory out of the way of the wanted mappings.
fn choose_place(process: &mut Process, wanted: &[Vma]) -> Result<(), RestoreError> {
    let gap = maps::gap(process.look_at_maps()?, wanted, inject::ROOM).ok_or(RestoreError::Layout {
        pid: process.inside(),
        detail: "there is no free address range to work in".to_owned(),
    })?;
    let (injector, threads) = process.injector();
    if let Some(thread) = threads.first_mut() {
        injector.clear(&mut thread.tracee)?;
    }
    injector.set_place(Addr(gap));
    Ok(())
}
