//! Waiting for what ptrace reports of a thread.

use std::time::{Duration, Instant};

use deltabox_sys::ptrace;
use rustix::io::Errno;

use crate::error::TraceError;
use crate::ids::HostPid;

/// A stop or end that `waitpid` reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Stopped by `signal`; `event` is one of `PTRACE_EVENT_*` or 0.
    Stopped { signal: i32, event: i32 },
    /// The thread has ended; the raw wait status.
    Ended(i32),
}

impl Status {
    fn from_raw(raw: i32) -> Status {
        if raw & 0xff == 0x7f {
            Status::Stopped {
                signal: (raw >> 8) & 0xff,
                event: raw >> 16,
            }
        } else {
            Status::Ended(raw)
        }
    }
}

/// Waits until `tid` stops or ends, not longer than `limit`. `Ok(None)` when the time is over.
///
/// Stops come within microseconds, so this looks often at first and sleeps only when it takes longer.
pub fn wait(tid: HostPid, limit: Duration) -> Result<Option<Status>, TraceError> {
    let start = Instant::now();
    let mut rounds = 0u32;
    loop {
        match rustix::process::waitpid(Some(tid.pid()), ptrace::wait_options(true)) {
            Ok(Some((_, status))) => return Ok(Some(Status::from_raw(status.as_raw()))),
            Ok(None) => {}
            Err(Errno::INTR) => continue,
            Err(Errno::CHILD) => return Err(TraceError::Gone { tid }),
            Err(error) => {
                return Err(TraceError::Request {
                    tid,
                    what: "wait for",
                    source: error.into(),
                });
            }
        }
        rounds += 1;
        if rounds < 64 {
            rustix::thread::sched_yield();
            continue;
        }
        let elapsed = start.elapsed();
        if elapsed > limit {
            return Ok(None);
        }
        if elapsed < Duration::from_millis(1) {
            rustix::thread::sched_yield();
        } else {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
