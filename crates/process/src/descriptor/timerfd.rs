//! timerfd. A relative timer goes on with the time that was left; an absolute one fires when it was meant to.

use std::os::fd::{BorrowedFd, OwnedFd};

use deltabox_sys::fd::set_timer_ticks;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_gettime, timerfd_settime,
};
use serde::{Deserialize, Serialize};

use super::error::{Error, bad_state, making};
use super::live::{Live, LiveDescription};

/// A timerfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub clock: i32,
    /// `TFD_TIMER_ABSTIME` and `TFD_TIMER_CANCEL_ON_SET` as it was set.
    pub flags: u32,
    /// Expirations not yet read.
    pub ticks: u64,
    /// Nanoseconds to the next expiration: from the instant of capture, or, of an absolute timer, on its clock. 0
    /// when it is not armed.
    pub next: i64,
    /// Period in nanoseconds; 0 for a single shot.
    pub interval: i64,
}

const ABSOLUTE: u32 = 1;
const SECOND: i64 = 1_000_000_000;

impl State {
    /// Moves the time of an absolute timer on a clock that begins with the machine.
    pub(super) fn move_clocks(&mut self, monotonic: i64, boottime: i64) {
        let by = match self.clock {
            libc::CLOCK_MONOTONIC => monotonic,
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => boottime,
            _ => 0,
        };
        if self.flags & ABSOLUTE != 0 && self.next > 0 {
            // One that is due must not become one that is not armed.
            self.next = self.next.saturating_add(by).max(1);
        }
    }
}

pub(super) fn capture(live: &Live, position: usize) -> Result<State, Error> {
    let description = &live.descriptions[position];
    let unreadable = || bad_state("a timerfd", "its settings cannot be read from fdinfo");
    let mut state = parse(description).ok_or_else(unreadable)?;
    if state.interval > 0 && state.next == 0 && state.ticks > 0 {
        // A periodic one that has fired stands still until it is looked at, which changes nothing else.
        let setting = timerfd_gettime(live.pull(position)?).map_err(making("a timerfd"))?;
        state.next = setting.it_value.tv_sec * SECOND + setting.it_value.tv_nsec;
        if state.flags & ABSOLUTE != 0 {
            state.next += now(state.clock).ok_or_else(unreadable)?;
        }
    }
    Ok(state)
}

fn parse(live: &LiveDescription) -> Option<State> {
    let clock = live.field("clockid")?.parse().ok()?;
    let flags = u32::from_str_radix(live.field("settime flags")?, 8).ok()?;
    let ticks = live.field("ticks")?.parse().ok()?;
    let left = nanoseconds(live.field("it_value")?)?;
    let interval = nanoseconds(live.field("it_interval")?)?;
    // fdinfo has the time left for absolute timers too.
    let next = if flags & ABSOLUTE != 0 && left > 0 {
        now(clock)? + left
    } else {
        left
    };
    Some(State {
        clock,
        flags,
        ticks,
        next,
        interval,
    })
}

/// Parses `(seconds, nanoseconds)`.
fn nanoseconds(text: &str) -> Option<i64> {
    let (seconds, rest) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    let (seconds, rest): (i64, i64) = (seconds.trim().parse().ok()?, rest.trim().parse().ok()?);
    Some(seconds.saturating_mul(SECOND).saturating_add(rest))
}

fn now(clock: i32) -> Option<i64> {
    let clock = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM => ClockId::Realtime,
        libc::CLOCK_MONOTONIC => ClockId::Monotonic,
        libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => ClockId::Boottime,
        _ => return None,
    };
    let time = clock_gettime(clock);
    Some(time.tv_sec * SECOND + time.tv_nsec)
}

fn timespec(nanoseconds: i64) -> Timespec {
    Timespec {
        tv_sec: nanoseconds / SECOND,
        tv_nsec: nanoseconds % SECOND,
    }
}

pub(super) fn same(wanted: &State, live: &LiveDescription) -> bool {
    live.field("clockid").and_then(|c| c.parse().ok()) == Some(wanted.clock)
}

pub(super) fn restore(wanted: &State, fd: BorrowedFd<'_>) -> Result<(), Error> {
    let setting = Itimerspec {
        it_interval: timespec(wanted.interval),
        it_value: timespec(wanted.next),
    };
    let flags = TimerfdTimerFlags::from_bits_retain(wanted.flags);
    timerfd_settime(fd, flags, &setting).map_err(making("a timerfd"))?;
    if wanted.ticks > 0 {
        set_timer_ticks(fd, wanted.ticks).map_err(making("the expirations of a timerfd"))?;
    }
    Ok(())
}

/// Is there nothing to set? Only of a timer that stands still, since time itself moves the others.
pub(super) fn idle(wanted: &State, now: &State) -> bool {
    wanted.next == 0 && wanted == now
}

pub(super) fn make(wanted: &State) -> Result<OwnedFd, Error> {
    let clock = match wanted.clock {
        libc::CLOCK_REALTIME => TimerfdClockId::Realtime,
        libc::CLOCK_MONOTONIC => TimerfdClockId::Monotonic,
        libc::CLOCK_BOOTTIME => TimerfdClockId::Boottime,
        libc::CLOCK_REALTIME_ALARM => TimerfdClockId::RealtimeAlarm,
        libc::CLOCK_BOOTTIME_ALARM => TimerfdClockId::BoottimeAlarm,
        _ => return Err(bad_state("a timerfd", "its clock is not known")),
    };
    timerfd_create(clock, TimerfdFlags::CLOEXEC).map_err(making("a timerfd"))
}
