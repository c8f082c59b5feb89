//! What a process has besides memory, threads and descriptors: signal actions, timers, limits, settings.

use deltabox_sys::attributes;
use serde::{Deserialize, Serialize};

use crate::credentials::{self, Credentials};
use crate::descriptor;
use crate::error::TraceError;
use crate::hold;
use crate::ids::HostPid;
use crate::inject::{Arg, Batch, Buffer, CallId};
use crate::procfs;
use crate::stop::Process;
use crate::thread::{Signal, drain, word};
use crate::timer::{self, PosixTimer};

/// Highest signal number.
const SIGNALS: i32 = 64;
/// `sizeof(struct sigaction)` of the kernel: handler, flags, restorer, mask.
const ACTION_SIZE: usize = 32;
/// Where the program's parts are in memory (`struct prctl_mm_map` without the auxiliary vector and the exe link).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLayout {
    /// `start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start,
    /// env_end`, in this order.
    pub words: [u64; 11],
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskImage {
    /// Signals whose action is not the default, with `struct sigaction` as the kernel has it.
    pub actions: Vec<(i32, Vec<u8>)>,
    /// Signals pending for the process, oldest first.
    pub pending: Vec<Signal>,
    /// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`.
    pub interval_timers: Vec<Vec<u8>>,
    /// POSIX timers.
    pub timers: Vec<PosixTimer>,
    /// Soft and hard limits (`struct rlimit64`) in the order of the kernel's numbers.
    pub limits: Vec<Vec<u8>>,
    /// File mode creation mask.
    pub umask: u32,
    /// `personality(2)`.
    pub personality: u64,
    /// Settings of `prctl(2)`, in the order of [`SETTINGS`].
    pub settings: Vec<u64>,
    /// Out-of-memory score adjustment.
    pub oom_score_adj: i32,
    /// What of its memory goes into a core file (core(5)).
    pub coredump_filter: u32,
    /// Who it is.
    pub credentials: Credentials,
    /// Where things are.
    pub layout: MemoryLayout,
    /// How memory that will be mapped is locked (`MCL_FUTURE`): bits of `deltabox_sys::vmas::flag`.
    pub future_locks: u16,
}

/// How the answer of a `prctl` comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Returned,
    Stored,
}

/// `prctl` settings of a process that can be read and set again: (get, set, how it is read).
const SETTINGS: [(i32, i32, Answer); 6] = [
    (libc::PR_GET_DUMPABLE, libc::PR_SET_DUMPABLE, Answer::Returned),
    (libc::PR_GET_KEEPCAPS, libc::PR_SET_KEEPCAPS, Answer::Returned),
    (
        libc::PR_GET_CHILD_SUBREAPER,
        libc::PR_SET_CHILD_SUBREAPER,
        Answer::Stored,
    ),
    (
        libc::PR_GET_THP_DISABLE,
        libc::PR_SET_THP_DISABLE,
        Answer::Returned,
    ),
    (libc::PR_GET_TSC, libc::PR_SET_TSC, Answer::Stored),
    (libc::PR_MCE_KILL_GET, libc::PR_MCE_KILL, Answer::Returned),
];

/// capabilities(7).
const CAP_SETPCAP: u32 = 8;

/// Number of resource limits (`RLIM_NLIMITS`).
const RESOURCES: usize = 16;

pub(crate) struct Questions {
    /// Timers, but for what is left of them.
    timers_now: Vec<PosixTimer>,
    actions: Vec<(i32, Buffer)>,
    timers: [Buffer; 3],
    personality: CallId,
    brk: CallId,
    future_locks: CallId,
    credentials: credentials::Questions,
    settings: Vec<(CallId, Buffer)>,
    posix: Vec<Buffer>,
}

/// Adds the questions to a batch.
pub(crate) fn ask(batch: &mut Batch, process: &Process) -> Result<Questions, TraceError> {
    let timers = timer::posix(process)?;
    let credentials = credentials::ask(batch, process.status());
    let mut actions = Vec::new();
    // Flags may be set where the handler is the default one, which /proc does not tell.
    for signal in changeable() {
        let action = batch.output(ACTION_SIZE);
        batch.call(
            libc::SYS_rt_sigaction,
            &[signal.into(), 0.into(), action.into(), 8.into()],
        );
        actions.push((signal, action));
    }
    let interval_timers = [0, 1, 2].map(|which: i32| {
        let timer = batch.output(timer::SIZE);
        batch.call(libc::SYS_getitimer, &[which.into(), timer.into()]);
        timer
    });
    let personality = batch.call(libc::SYS_personality, &[0xffff_ffffu32.into()]);
    let brk = batch.call(libc::SYS_brk, &[]);
    let future_locks = hold::ask(batch);
    let settings = SETTINGS
        .iter()
        .map(|&(get, _, how)| {
            let stored = batch.output(8);
            let target: Arg = if how == Answer::Stored {
                stored.into()
            } else {
                0.into()
            };
            (batch.call(libc::SYS_prctl, &[get.into(), target]), stored)
        })
        .collect();
    let posix = timers
        .iter()
        .map(|timer| {
            let setting = batch.output(timer::SIZE);
            batch.call(libc::SYS_timer_gettime, &[timer.id.into(), setting.into()]);
            setting
        })
        .collect();
    Ok(Questions {
        timers_now: timers,
        actions,
        timers: interval_timers,
        personality,
        brk,
        future_locks,
        credentials,
        settings,
        posix,
    })
}

/// The resource limits of a process.
pub(crate) fn limits(pid: HostPid) -> Result<Vec<Vec<u8>>, TraceError> {
    let read = (0..RESOURCES).map(|number| attributes::limit(pid.pid(), number));
    read.collect::<std::io::Result<_>>()
        .map_err(|source| TraceError::Request {
            tid: pid,
            what: "read the limits of",
            source,
        })
}

/// Whether a process can have the limits of `image` (again): who may not raise hard limits has to make it anew.
pub(crate) fn limits_can_be_had(pid: HostPid, image: &TaskImage) -> Result<bool, TraceError> {
    let may_raise = rustix::thread::capabilities(None).is_ok_and(|have| {
        have.effective
            .contains(rustix::thread::CapabilitySet::SYS_RESOURCE)
    });
    if may_raise {
        return Ok(true);
    }
    // struct rlimit64: soft, hard.
    let hard = |limit: &Vec<u8>| word(limit.get(8..).unwrap_or_default());
    let now = limits(pid)?;
    Ok(image
        .limits
        .iter()
        .zip(&now)
        .all(|(wanted, now)| hard(wanted) <= hard(now)))
}

/// The adjustment of the out-of-memory score.
pub(crate) fn oom_score(pid: HostPid) -> Result<i32, TraceError> {
    let text = procfs::read_text(pid, "oom_score_adj")?;
    text.trim()
        .parse()
        .map_err(|_| procfs::malformed(pid, "oom_score_adj"))
}

/// What goes into a core file; 0 where the kernel writes none.
pub(crate) fn coredump_filter(pid: HostPid) -> Result<u32, TraceError> {
    match procfs::read_text(pid, "coredump_filter") {
        Ok(text) => {
            u32::from_str_radix(text.trim(), 16).map_err(|_| procfs::malformed(pid, "coredump_filter"))
        }
        Err(TraceError::Gone { .. }) => Ok(0),
        Err(error) => Err(error),
    }
}

/// The stopped process in whose first thread the batch has been run.
pub(crate) fn answers(
    process: &mut Process,
    batch: &Batch,
    asked: &Questions,
) -> Result<TaskImage, TraceError> {
    let pid = process.pid();
    let umask = process.status().umask;
    let mut timers = asked.timers_now.clone();
    for (timer, setting) in timers.iter_mut().zip(&asked.posix) {
        timer.setting = batch.bytes(*setting).to_vec();
    }
    let settings = asked
        .settings
        .iter()
        .zip(SETTINGS)
        .map(|(&(call, stored), (_, _, how))| {
            let returned = batch.result(call).unwrap_or(0);
            if how == Answer::Stored {
                word(batch.bytes(stored)) & 0xffff_ffff
            } else {
                returned
            }
        });
    let mut layout = process.stat().layout.clone();
    layout.words[5] = batch.result(asked.brk).unwrap_or(0);
    let credentials = credentials::answers(process, batch, &asked.credentials)?;
    let future_locks = hold::future_locks(process, batch, asked.future_locks)?;
    let context = process
        .threads
        .first_mut()
        .ok_or(TraceError::Gone { tid: pid })?
        .tracee
        .context()?;
    Ok(TaskImage {
        pending: context.process_pending.iter().map(Signal::from).collect(),
        actions: asked
            .actions
            .iter()
            .map(|&(signal, buffer)| (signal, batch.bytes(buffer).to_vec()))
            .filter(|(_, action)| action.iter().any(|&byte| byte != 0))
            .collect(),
        interval_timers: asked
            .timers
            .iter()
            .map(|&timer| batch.bytes(timer).to_vec())
            .collect(),
        timers,
        limits: limits(pid)?,
        umask,
        personality: batch.result(asked.personality).unwrap_or(0),
        settings: settings.collect(),
        oom_score_adj: oom_score(pid)?,
        coredump_filter: coredump_filter(pid)?,
        credentials,
        layout,
        future_locks,
    })
}

impl MemoryLayout {
    /// What another program would have elsewhere: code, start of the heap, stack.
    #[must_use]
    pub fn program(&self) -> [u64; 4] {
        [self.words[0], self.words[1], self.words[4], self.words[6]]
    }
}

/// What is needed of `/proc/PID/stat`.
#[derive(Debug, Clone)]
pub struct Stat {
    /// Start of the process in clock ticks since boot.
    pub start_time: u64,
    /// Where the program's parts are; `brk` is not among it.
    pub layout: MemoryLayout,
    /// Wait status of a process that has ended.
    pub exit_code: i32,
    /// The signal the parent gets when the process ends.
    pub exit_signal: i32,
    /// The number of its controlling terminal (`/dev/pts/N`).
    pub terminal: Option<u32>,
}

/// Reads `/proc/PID/stat`.
pub fn stat(pid: HostPid) -> Result<Stat, TraceError> {
    let text = procfs::read_text(pid, "stat")?;
    // The name may hold anything, also spaces and parentheses.
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .map_or("", |parts| parts.1)
        .split_whitespace()
        .collect();
    // Field 3 (the state) is the first one here.
    let field = |number: usize| {
        fields
            .get(number - 3)
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let words =
        [26, 27, 45, 46, 47, 0, 28, 48, 49, 50, 51].map(|number| if number == 0 { 0 } else { field(number) });
    Ok(Stat {
        start_time: field(22),
        layout: MemoryLayout { words },
        exit_code: i32::try_from(field(52)).unwrap_or(0),
        exit_signal: i32::try_from(field(38)).unwrap_or(libc::SIGCHLD),
        terminal: descriptor::terminal(field(7) as u32).map(|terminal| terminal.number),
    })
}

/// Makes a live process what `image` says, except for its credentials.
pub fn restore(process: &mut Process, image: &TaskImage) -> Result<(), TraceError> {
    let live_timers = timer::posix(process)?;
    let mut batch = Batch::new();
    if let Some(thread) = process.threads.first_mut() {
        // Signals of the thread are taken before those of the process.
        thread.tracee.refresh_pending()?;
        let context = thread.tracee.context()?;
        drain(&mut batch, context.pending.len() + context.process_pending.len());
        thread.tracee.set_pending(Vec::new(), Vec::new());
        if image
            .pending
            .iter()
            .any(|signal| signal.number() == libc::SIGTRAP)
        {
            thread.tracee.block_traps()?;
        }
    }
    set_actions(&mut batch, image);
    timer::set_interval_timers(&mut batch, &image.interval_timers);
    batch.call(libc::SYS_brk, &[image.layout.words[5].into()]);
    batch.call(libc::SYS_umask, &[image.umask.into()]);
    batch.call(libc::SYS_personality, &[image.personality.into()]);
    for (&value, (_, set, _)) in image.settings.iter().zip(SETTINGS) {
        set_setting(&mut batch, set, value);
    }
    let securebits = image.credentials.securebits;
    // Those without the capability cannot have changed them.
    let may = image.credentials.capabilities[2] & (1 << CAP_SETPCAP) != 0;
    let securebits = may.then(|| {
        let option = libc::PR_SET_SECUREBITS;
        batch.call(libc::SYS_prctl, &[option.into(), securebits.into()])
    });
    timer::set(&mut batch, &live_timers, &image.timers);
    let pid = process.inside();
    let queued = |signal: &&Signal| !image.timers.iter().any(|timer| timer.sends(signal));
    for signal in image.pending.iter().filter(queued) {
        let info = batch.input(&signal.raw());
        batch.call(
            libc::SYS_rt_sigqueueinfo,
            &[pid.0.into(), signal.number().into(), info.into()],
        );
    }
    process.run(&mut batch)?;
    if let Some(Err(errno)) = securebits.map(|call| batch.result(call)) {
        let (pid, name) = (process.pid(), "prctl(PR_SET_SECUREBITS)");
        return Err(TraceError::Call { pid, name, errno });
    }
    restore_limits(process.pid(), image)?;
    restore_oom_score(process.pid(), image.oom_score_adj)?;
    if coredump_filter(process.pid())? != image.coredump_filter {
        let pid = process.pid();
        std::fs::write(
            format!("/proc/{pid}/coredump_filter"),
            format!("{:#x}", image.coredump_filter),
        )
        .map_err(|source| procfs::failed(pid, "coredump_filter", source))?;
    }
    Ok(())
}

/// From outside: the program itself could not raise its hard limits again.
fn restore_limits(pid: HostPid, image: &TaskImage) -> Result<(), TraceError> {
    let now = limits(pid)?;
    for (number, (limit, now)) in image.limits.iter().zip(now).enumerate() {
        if let Some(limit) = limit.first_chunk().filter(|_| *limit != now) {
            attributes::set_limit(pid.pid(), number, limit).map_err(|source| TraceError::Request {
                tid: pid,
                what: "set the limits of",
                source,
            })?;
        }
    }
    Ok(())
}

fn set_setting(batch: &mut Batch, option: i32, value: u64) {
    match option {
        // 2 (readable by root only) cannot be set; the process being what it was, it still has it.
        libc::PR_SET_DUMPABLE if value > 1 => {}
        libc::PR_MCE_KILL => {
            batch.call(libc::SYS_prctl, &[option.into(), 1.into(), value.into()]);
        }
        _ => {
            batch.call(libc::SYS_prctl, &[option.into(), value.into()]);
        }
    }
}

fn set_actions(batch: &mut Batch, image: &TaskImage) {
    let default = vec![0; ACTION_SIZE];
    for signal in changeable() {
        let wanted = image
            .actions
            .iter()
            .find(|(other, _)| *other == signal)
            .map(|(_, action)| action);
        let action = batch.input(wanted.unwrap_or(&default));
        batch.call(
            libc::SYS_rt_sigaction,
            &[signal.into(), action.into(), 0.into(), 8.into()],
        );
    }
}

/// The signals whose action can be set.
fn changeable() -> impl Iterator<Item = i32> {
    (1..=SIGNALS).filter(|signal| !matches!(*signal, libc::SIGKILL | libc::SIGSTOP))
}

fn restore_oom_score(pid: HostPid, score: i32) -> Result<(), TraceError> {
    if oom_score(pid)? != score {
        std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
            .map_err(|source| procfs::failed(pid, "oom_score_adj", source))?;
    }
    Ok(())
}
