//! Connecting to the daemon, and starting it where none listens.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use deltabox_api::{API_PREFIX, ApiError, ErrorKind};
use rustix::fs::FlockOperation;

use super::Home;

/// How long a start may take, waiting for another client's start included.
const START_MAX: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// A log larger than this is put aside at the next start.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// How much of the log is read to find out why a start failed.
const LOG_TAIL_BYTES: u64 = 64 << 10;

/// A connection to the daemon of `home`, which is started first if nothing listens there.
pub fn connect(home: &Home) -> Result<UnixStream, ApiError> {
    match try_connect(home)? {
        Some(stream) => Ok(stream),
        None => start(home),
    }
}

/// A connection, if somebody listens.
fn try_connect(home: &Home) -> Result<Option<UnixStream>, ApiError> {
    match UnixStream::connect(home.socket()) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
            io::ErrorKind::PermissionDenied => Err(ApiError::new(
                ErrorKind::Unreachable,
                format!("no permission to use the daemon at '{}'", home.socket().display()),
            )
            .hint("run as root, like the daemon")),
            _ => Err(ApiError::new(
                ErrorKind::Unreachable,
                format!("cannot connect to '{}': {error}", home.socket().display()),
            )
            .hint("is DELTABOX_HOME a directory on a local filesystem?")),
        },
    }
}

/// Whether a daemon listens.
pub fn is_running(home: &Home) -> Result<bool, ApiError> {
    try_connect(home).map(|stream| stream.is_some())
}

fn start(home: &Home) -> Result<UnixStream, ApiError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ApiError::new(
            ErrorKind::Unsupported,
            format!(
                "no daemon runs for '{}', and starting one needs root",
                home.path().display()
            ),
        )
        .hint("run it with sudo"));
    }
    let deadline = Instant::now() + START_MAX;
    create_home(home)?;
    // Held until the daemon answers, so that clients that come at once start one daemon, not several.
    let _lock = lock(home, deadline)?;
    if let Some(stream) = wait_for_predecessor(home, deadline)? {
        return Ok(stream);
    }
    let (log, log_start) = open_log(home)?;
    let mut daemon = spawn(home, log)?;
    loop {
        // The daemon's end is looked at before the socket, so that a last look follows its last words.
        let ended = daemon.try_wait().ok().flatten();
        if answers(home, deadline) {
            return try_connect(home)?.ok_or_else(|| failed(home, log_start, "it ended at once"));
        }
        if let Some(status) = ended {
            return Err(failed(home, log_start, &format!("it ended with {status}")));
        }
        if Instant::now() > deadline {
            // Half started, it would hold the state directory and never serve.
            let _ = daemon.kill();
            return Err(failed(
                home,
                log_start,
                &format!("it did not answer within {} s", START_MAX.as_secs()),
            ));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A daemon that is ending does not listen any more and still holds the state directory; one started by hand may
/// not listen yet. Returns a connection if there is somebody to talk to after all.
fn wait_for_predecessor(home: &Home, deadline: Instant) -> Result<Option<UnixStream>, ApiError> {
    loop {
        if let Some(stream) = try_connect(home)? {
            return Ok(Some(stream));
        }
        let held = File::open(home.daemon_lock())
            .is_ok_and(|file| rustix::fs::flock(file, FlockOperation::NonBlockingLockShared).is_err());
        if !held {
            return Ok(None);
        }
        if Instant::now() > deadline {
            return Err(ApiError::new(
                ErrorKind::Unreachable,
                format!("a daemon holds '{}' and does not listen", home.path().display()),
            )
            .hint(format!("see {} and daemon.pid beside it", home.log().display())));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn create_home(home: &Home) -> Result<(), ApiError> {
    // Layers hold whatever was read inside: for root only.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(home.path())
        .map_err(|error| unusable(home, "create", &error))
}

fn unusable(home: &Home, action: &str, error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(
        ErrorKind::Unreachable,
        format!(
            "cannot {action} the state directory '{}': {error}",
            home.path().display()
        ),
    )
    .hint("set DELTABOX_HOME to a directory that root can write to")
}

fn lock(home: &Home, deadline: Instant) -> Result<File, ApiError> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(home.start_lock())
        .map_err(|error| unusable(home, "write to", &error))?;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(POLL_INTERVAL);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(ApiError::new(
                    ErrorKind::Unreachable,
                    "another command has been starting the daemon for too long",
                )
                .hint(format!("see {}", home.log().display())));
            }
            Err(error) => return Err(unusable(home, "lock", &error)),
        }
    }
}

/// The log, and where what the new daemon writes will begin.
fn open_log(home: &Home) -> Result<(File, u64), ApiError> {
    let path = home.log();
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        std::fs::rename(&path, path.with_extension("log.old"))
            .map_err(|error| unusable(home, "write to", &error))?;
    }
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| unusable(home, "write to", &error))?;
    let length = log
        .metadata()
        .map_err(|error| unusable(home, "read", &error))?
        .len();
    Ok((log, length))
}

fn spawn(home: &Home, log: File) -> Result<Child, ApiError> {
    let cannot = |error: io::Error| {
        ApiError::new(
            ErrorKind::Unreachable,
            format!("cannot start the daemon: {error}"),
        )
    };
    let stderr = log.try_clone().map_err(cannot)?;
    // Whatever our caller left open (locks, pipes that somebody reads to their end) is none of the daemon's business.
    deltabox_sys::clone::close_from_on_exec(3).map_err(cannot)?;
    // Itself and not a name: the file may have been replaced or removed since, and PATH may lead elsewhere.
    Command::new("/proc/self/exe")
        .arg0("deltabox")
        .args(["serve", "--background"])
        .env("DELTABOX_HOME", home.path())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(stderr)
        .spawn()
        .map_err(cannot)
}

/// Whether the daemon answers that it is well.
fn answers(home: &Home, deadline: Instant) -> bool {
    let Ok(Some(mut stream)) = try_connect(home) else {
        return false;
    };
    let left = deadline
        .saturating_duration_since(Instant::now())
        .max(POLL_INTERVAL);
    let request = format!("GET {API_PREFIX}/health HTTP/1.1\r\nhost: deltabox\r\nconnection: close\r\n\r\n");
    let mut status = [0; "HTTP/1.1 200".len()];
    stream.set_read_timeout(Some(left)).is_ok()
        && stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut status).is_ok()
        && status.ends_with(b" 200")
}

/// Why the start failed, in the daemon's own words where it has left any.
fn failed(home: &Home, log_start: u64, how: &str) -> ApiError {
    let text = read_log(home, log_start).unwrap_or_default();
    let (cause, hint) = last_words(&text);
    let message = match cause {
        Some(cause) => format!("the daemon did not start: {cause}"),
        None => format!("the daemon did not start: {how}"),
    };
    ApiError::new(ErrorKind::Unreachable, message)
        .hint(hint.unwrap_or_else(|| format!("see {}", home.log().display())))
}

fn read_log(home: &Home, start: u64) -> io::Result<String> {
    let mut log = File::open(home.log())?;
    let length = log.metadata()?.len();
    log.seek(SeekFrom::Start(start.max(length.saturating_sub(LOG_TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    log.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The lines that matter: the last `error: ...` (or the last line at all) and the last `hint: ...`.
fn last_words(log: &str) -> (Option<String>, Option<String>) {
    let lines = || log.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let after =
        |mark: &str| lines().find_map(|line| line.strip_prefix(mark).map(|rest| rest.trim().to_owned()));
    let cause = after("error:").or_else(|| lines().next().map(str::to_owned));
    (cause, after("hint:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_error_and_hint_are_found_among_other_lines() {
        let log = "starting\nerror: first\nerror: no loop devices\nhint: load the module\nbacktrace\n\n";
        let (cause, hint) = last_words(log);
        assert_eq!(cause.as_deref(), Some("no loop devices"));
        assert_eq!(hint.as_deref(), Some("load the module"));
    }

    #[test]
    fn without_an_error_line_the_last_line_is_the_cause() {
        assert_eq!(
            last_words("a\nthread 'main' panicked\n\n").0.as_deref(),
            Some("thread 'main' panicked")
        );
        assert_eq!(last_words("\n"), (None, None));
    }
}
