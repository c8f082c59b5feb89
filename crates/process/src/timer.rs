//! Timers whose expiry is a signal: interval timers (setitimer(2)) and POSIX timers (timer_create(2)).

use rustix::time::{ClockId, clock_getres};
use serde::{Deserialize, Serialize};

use crate::error::TraceError;
use crate::ids::InsidePid;
use crate::inject::Batch;
use crate::procfs;
use crate::stop::Process;
use crate::task::TaskImage;
use crate::thread::{Signal, ThreadImage};

/// `sizeof(struct itimerval)` and of `struct itimerspec`.
pub(crate) const SIZE: usize = 32;

/// One POSIX timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// The kernel's id.
    pub id: i32,
    /// Clock.
    pub clock: i32,
    /// How it notifies (`SIGEV_*`), whether to one thread.
    pub notify: i32,
    /// Signal.
    pub signal: i32,
    /// Value passed along.
    pub value: u64,
    /// The thread to notify.
    pub thread: InsidePid,
    /// Interval and remaining time (`struct itimerspec`).
    pub setting: Vec<u8>,
}

impl PosixTimer {
    /// Whether a pending signal is the one that this timer sends when it goes off. One that goes by processor time is
    /// not asked: it goes off in a process that does something only.
    pub(crate) fn sends(&self, signal: &Signal) -> bool {
        /// `si_code` of a timer's signal.
        const SI_TIMER: i32 = -2;
        let raw = signal.raw();
        let word = |at: usize| {
            raw[at..]
                .first_chunk()
                .map_or(0, |bytes| i32::from_ne_bytes(*bytes))
        };
        let on_processor = self.clock < 0
            || self.clock == libc::CLOCK_PROCESS_CPUTIME_ID
            || self.clock == libc::CLOCK_THREAD_CPUTIME_ID;
        !on_processor && word(8) == SI_TIMER && word(16) == self.id && word(0) == self.signal
    }

    /// Its setting, but for the time left: almost none.
    fn at_once(&self) -> Vec<u8> {
        let (interval, rest) = self.setting.split_at(self.setting.len() / 2);
        let mut soon = vec![0; rest.len()];
        soon[8..].copy_from_slice(&1_i64.to_ne_bytes());
        [interval, &soon].concat()
    }
}

/// `/proc/PID/timers`, without the remaining times.
pub(crate) fn posix(process: &Process) -> Result<Vec<PosixTimer>, TraceError> {
    let pid = process.pid();
    let text = match procfs::read_text(pid, "timers") {
        Ok(text) => text,
        // A kernel without CONFIG_CHECKPOINT_RESTORE does not tell.
        Err(TraceError::Gone { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        if key == "ID" {
            let id = value.parse().map_err(|_| procfs::malformed(pid, "timers"))?;
            let thread = process.inside();
            let empty = PosixTimer {
                id,
                clock: 0,
                notify: 0,
                signal: 0,
                value: 0,
                thread,
                setting: vec![0; SIZE],
            };
            timers.push(empty);
            continue;
        }
        let Some(timer) = timers.last_mut() else { continue };
        match key {
            "signal" => {
                let (signal, pointer) = value.split_once('/').unwrap_or((value, "0"));
                timer.signal = signal.parse().unwrap_or(0);
                timer.value = u64::from_str_radix(pointer, 16).unwrap_or(0);
            }
            "notify" => {
                let (how, who) = value.split_once('/').unwrap_or((value, ""));
                timer.notify = match how {
                    "none" => libc::SIGEV_NONE,
                    "thread" => libc::SIGEV_THREAD,
                    _ => libc::SIGEV_SIGNAL,
                };
                if let Some(thread) = who.strip_prefix("tid.") {
                    timer.notify |= libc::SIGEV_THREAD_ID;
                    timer.thread = inside_of(process, thread.parse().unwrap_or(0));
                }
            }
            "ClockID" => timer.clock = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    // The kernel lists the newest first; ids are given out in order.
    timers.sort_by_key(|timer| timer.id);
    Ok(timers)
}

/// `/proc/PID/timers` has ids as the reader sees them.
fn inside_of(process: &Process, host: i32) -> InsidePid {
    let thread = process
        .threads
        .iter()
        .find(|thread| thread.tracee.tid().raw() == host);
    thread.map_or(process.inside(), |thread| thread.inside)
}

/// Sets the three interval timers.
pub(crate) fn set_interval_timers(batch: &mut Batch, settings: &[Vec<u8>]) {
    for (which, setting) in settings.iter().enumerate() {
        let on_processor = which != libc::ITIMER_REAL as usize;
        let setting = batch.input(&if on_processor {
            without_tick(&armed(setting))
        } else {
            armed(setting)
        });
        batch.call(libc::SYS_setitimer, &[which.into(), setting.into(), 0.into()]);
    }
}

/// A periodic timer whose signal is pending has no time left and starts again only when the signal is taken; set to
/// that it would never go off.
fn armed(setting: &[u8]) -> Vec<u8> {
    let (interval, rest) = setting.split_at(setting.len() / 2);
    if rest.iter().all(|&byte| byte == 0) {
        [interval, interval].concat()
    } else {
        setting.to_vec()
    }
}

/// To the time left on a timer of processor time the kernel adds a tick each time it is set.
fn without_tick(setting: &[u8]) -> Vec<u8> {
    const MICROSECONDS: i64 = 1_000_000;
    let mut changed = setting.to_vec();
    let (_, rest) = changed.split_at_mut(setting.len() / 2);
    let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |bytes| i64::from_ne_bytes(*bytes));
    let left = word(rest) * MICROSECONDS + word(&rest[8..]);
    if left > 0 {
        // The coarse clock moves with the ticks.
        let tick = clock_getres(ClockId::RealtimeCoarse).tv_nsec / 1000;
        let left = (left - tick).max(1);
        rest[..8].copy_from_slice(&(left / MICROSECONDS).to_ne_bytes());
        rest[8..].copy_from_slice(&(left % MICROSECONDS).to_ne_bytes());
    }
    changed
}

/// Brings the POSIX timers back. A timer's id is the lowest the kernel has not used lately, so a missing one is had by
/// asking for that very id (`PR_TIMER_CREATE_RESTORE_IDS`, kernel 6.15).
pub(crate) fn set(batch: &mut Batch, live: &[PosixTimer], wanted: &[PosixTimer]) {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    let same = |one: &PosixTimer, two: &PosixTimer| {
        (one.id, one.clock, one.notify, one.signal, one.value, one.thread)
            == (two.id, two.clock, two.notify, two.signal, two.value, two.thread)
    };
    for timer in live
        .iter()
        .filter(|timer| !wanted.iter().any(|other| same(timer, other)))
    {
        batch.call(libc::SYS_timer_delete, &[timer.id.into()]);
    }
    let missing: Vec<&PosixTimer> = wanted
        .iter()
        .filter(|timer| !live.iter().any(|other| same(timer, other)))
        .collect();
    if !missing.is_empty() {
        batch.call(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS.into(), 1.into()]);
        for timer in missing {
            let mut event = Vec::with_capacity(64);
            event.extend_from_slice(&timer.value.to_ne_bytes());
            event.extend_from_slice(&timer.signal.to_ne_bytes());
            event.extend_from_slice(&timer.notify.to_ne_bytes());
            event.extend_from_slice(&timer.thread.0.to_ne_bytes());
            event.resize(64, 0);
            let event = batch.input(&event);
            let id = batch.input(&timer.id.to_ne_bytes());
            batch.call(
                libc::SYS_timer_create,
                &[timer.clock.into(), event.into(), id.into()],
            );
        }
        batch.call(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS.into(), 0.into()]);
    }
    for timer in wanted {
        let setting = batch.input(&timer.setting);
        batch.call(
            libc::SYS_timer_settime,
            &[timer.id.into(), 0.into(), setting.into(), 0.into()],
        );
    }
}

/// Has the timers whose signals are pending go off at once, when all else is restored: those signals then are the
/// timers' own, as they were, each of which stands for all further ones until it is taken. What is queued in place of one
/// would be just another.
pub(crate) fn send_pending(
    process: &mut Process,
    image: &TaskImage,
    threads: &[ThreadImage],
) -> Result<(), TraceError> {
    let of_threads = threads.iter().flat_map(|thread| &thread.pending);
    let pending: Vec<&Signal> = of_threads.chain(&image.pending).collect();
    let sends = |timer: &&PosixTimer| pending.iter().any(|signal| timer.sends(signal));
    let mut batch = Batch::new();
    for timer in image.timers.iter().filter(sends) {
        let setting = batch.input(&timer.at_once());
        batch.call(
            libc::SYS_timer_settime,
            &[timer.id.into(), 0.into(), setting.into(), 0.into()],
        );
    }
    if batch.is_empty() {
        return Ok(());
    }
    process.run(&mut batch)
}
