//! Taking the state of all processes of a stopped sandbox.

use std::sync::Arc;
use std::time::Instant;

use crate::credentials::Seen;
use crate::descriptor::{self, Tables};
use crate::engine::{Engine, Scanned, Stopped, Survey, parent_of};
use crate::error::TraceError;
use crate::host::Host;
use crate::ids::{HostPid, InsidePid};
use crate::image::{Image, Place, ProcessImage};
use crate::inject::Batch;
use crate::memory::capture::{absorb, forget_unmapped};
use crate::process::Process;
use crate::survey::SurveyError;
use crate::task::{self, TaskImage};
use crate::thread::{self, ThreadImage};
use crate::{idle, job_control, zombie};

impl<H: Host> Stopped<'_, H> {
    /// Captures all processes. `previous` is the state the sandbox came from: what did not change is shared with it.
    pub fn capture(&mut self, survey: Survey, previous: Option<&Image>) -> Result<Image, SurveyError> {
        let mut processes = Vec::with_capacity(self.tree.processes.len());
        for place in 0..self.tree.processes.len() {
            let image = self.capture_process(place);
            if image.is_err() {
                // What was found to be written has not been stored: next time everything counts as written.
                let pid = self.tree.processes[place].pid();
                self.engine.live.remove(&pid);
            }
            processes.push(image?);
        }
        self.engine.forget_others(&self.tree);
        let start = Instant::now();
        let mapped = processes.iter().zip(&self.tree.processes);
        let mapped = mapped.map(|(image, process)| (process.pid(), image.vmas.as_slice()));
        let Engine {
            shared, ipc, store, ..
        } = &mut *self.engine;
        let (shared, stored) = shared.capture(mapped, ipc.detached(), store)?;
        self.report.bytes_stored += stored;
        self.report.add("pages", start.elapsed());
        let start = Instant::now();
        let zombies = zombie::find(&self.tree)?;
        parents_first(&mut processes);
        self.report.add("state", start.elapsed());
        let start = Instant::now();
        let Survey {
            descriptors,
            ipc: mut objects,
        } = survey;
        let Engine { host, ipc, .. } = &mut *self.engine;
        ipc.capture_named(&mut objects, host.first_id())?;
        let previous: Option<&Tables> = previous.map(|image| &image.descriptors);
        let mut descriptors = self.capture_descriptors(descriptors, previous)?;
        let Engine {
            shared: names, roots, ..
        } = &*self.engine;
        descriptors.note_mapped(|numbers| {
            let key = names.name(roots, numbers);
            shared.iter().any(|image| image.key == key).then_some(key)
        });
        self.report.add("descriptors", start.elapsed());
        Ok(Image {
            processes,
            zombies,
            shared,
            ipc: objects,
            descriptors,
        })
    }

    fn capture_descriptors(
        &mut self,
        mut live: descriptor::Live,
        previous: Option<&Tables>,
    ) -> Result<Tables, descriptor::Error> {
        let Engine {
            externals, contents, ..
        } = &mut *self.engine;
        let tables = descriptor::capture(&mut live, externals, previous, &mut **contents);
        descriptor::settle(&live, &mut self.tree.processes)?;
        tables
    }

    fn capture_process(&mut self, place: usize) -> Result<Arc<ProcessImage>, TraceError> {
        let Stopped { engine, tree, report } = self;
        let parent = parent_of(tree, place, engine.host.init_pid());
        let first = engine.host.first_id();
        let group_stop = job_control::of(tree, place, parent)?;
        let process = &mut tree.processes[place];
        let start = Instant::now();
        let scanned = engine.scan(process)?;
        report.add("scan", start.elapsed());

        let start = Instant::now();
        let store = engine.store.clone();
        let mut buffer = std::mem::take(&mut engine.buffer);
        let live = engine.live(process)?;
        let Scanned { vmas, runs, .. } = &scanned;
        let taken = absorb(&live.reader, vmas, runs, &mut live.seen, &store, &mut buffer)?;
        forget_unmapped(vmas, &mut live.seen);
        live.delta = Some(scanned.taken_ahead.read + taken.read);
        report.bytes_read += taken.read;
        report.bytes_stored += scanned.taken_ahead.stored + taken.stored;
        report.add("pages", start.elapsed());

        let start = Instant::now();
        let (mut task, threads) = state(process, &scanned, &mut report.disturbed)?;
        task.credentials.seen = Seen::of(process.status(), first);
        // Settled by execve; prctl(PR_SET_MM_MAP) takes what programs of a sandbox are not given.
        let (auxv, executable) = match &scanned.known {
            Some(known) => (known.auxv.clone(), known.executable.clone()),
            None => (
                crate::procfs::read(process.pid(), "auxv")?,
                executable_of(process.pid())?,
            ),
        };
        let image = Arc::new(ProcessImage {
            identity: live.identity,
            pid: process.inside(),
            parent,
            group: InsidePid(process.status().group),
            session: InsidePid(process.status().session),
            terminal: process.stat().terminal,
            name: process.name().to_owned(),
            group_stop,
            auxv,
            exit_signal: process.stat().exit_signal,
            executable,
            task,
            threads,
            vmas: scanned.vmas,
            pages: live.seen.clone(),
        });
        live.known = Some(Arc::clone(&image));
        engine.buffer = buffer;
        report.add("state", start.elapsed());
        Ok(image)
    }
}

/// What a process has besides memory and descriptors. Only threads that have done something are asked, and
/// what concerns the process as a whole is asked along with its first one.
fn state(
    process: &mut Process,
    scanned: &Scanned,
    disturbed: &mut usize,
) -> Result<(TaskImage, Vec<ThreadImage>), TraceError> {
    let known = scanned.known.as_deref();
    let idle = idle::threads(process, known, &scanned.vmas, &scanned.written)?;
    let settled = known.filter(|known| idle::task_is_settled(process, known, &idle));
    let mut task = match settled {
        Some(known) => Some(idle::task(process, &known.task)?),
        None => None,
    };
    let mut threads = Vec::with_capacity(idle.len());
    for (place, idle) in idle.into_iter().enumerate() {
        let mut batch = Batch::new();
        let of_task = match task {
            None => Some(task::ask(&mut batch, process)?),
            Some(_) => None,
        };
        let of_thread = idle.is_none().then(|| thread::ask(&mut batch));
        *disturbed += usize::from(!batch.is_empty());
        process.run_in(place, &mut batch)?;
        if let Some(asked) = of_task {
            task = Some(task::answers(process, &batch, &asked)?);
        }
        threads.push(match (of_thread, idle) {
            (Some(asked), _) => thread::answers(process, place, &batch, &asked)?,
            (None, Some(was)) => idle::thread(process, place, was)?,
            (None, None) => return Err(TraceError::Gone { tid: process.pid() }),
        });
    }
    let task = task.ok_or(TraceError::Gone { tid: process.pid() })?;
    Ok((task, threads))
}

fn executable_of(pid: HostPid) -> Result<Place, TraceError> {
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::MetadataExt;
    let failed = |source| crate::procfs::failed(pid, "exe", source);
    let name = format!("/proc/{pid}/exe");
    let path = std::fs::read_link(&name).map_err(failed)?;
    let metadata = std::fs::metadata(&name).map_err(failed)?;
    Ok(Place {
        path: path.into_os_string().into_vec(),
        device: metadata.dev(),
        inode: metadata.ino(),
    })
}

/// Orders processes so that each comes after its parent.
fn parents_first(processes: &mut Vec<Arc<ProcessImage>>) {
    let mut ordered: Vec<Arc<ProcessImage>> = Vec::with_capacity(processes.len());
    let mut waiting = std::mem::take(processes);
    while !waiting.is_empty() {
        let (ready, rest): (Vec<_>, Vec<_>) = waiting
            .iter()
            .cloned()
            .partition(|image| !waiting.iter().any(|other| other.pid == image.parent));
        if ready.is_empty() {
            // A cycle cannot be; better out of order than never ending.
            ordered.extend(rest);
            break;
        }
        ordered.extend(ready);
        waiting = rest;
    }
    *processes = ordered;
}
