//! Runs the probes, each in a process of its own, within a bound of time.

use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::report::{CheckResult, Outcome, Report, Status};
use crate::table::{Check, checks};
use crate::{DIRECTORY, PROBE_ARGUMENT};

/// Longest output of a probe, in bytes; the rest is not read.
const OUTPUT_MAX: u64 = 64 << 10;
/// Name of a probe's directory, before the doctor's process id.
const PREFIX: &str = ".deltabox-doctor-";
const POLL: Duration = Duration::from_millis(2);

/// What to run, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program that calls [`crate::probe_main`] when started with [`PROBE_ARGUMENT`] and a name.
    pub program: PathBuf,
    /// The state directory, whose filesystem is tested. It, or its nearest existing ancestor, must be writable.
    pub store: PathBuf,
    /// How long one probe may take.
    pub timeout: Duration,
}

impl Options {
    /// This program, for a state directory.
    ///
    /// Errors: the path of the running program is unknown.
    pub fn new(store: impl Into<PathBuf>) -> Result<Self, Error> {
        let program = std::env::current_exe().map_err(Error::Program)?;
        Ok(Options {
            program,
            store: store.into(),
            timeout: Duration::from_secs(20),
        })
    }
}

/// Why nothing could be tested.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No probe can be started.
    #[error("cannot find out which program is running: {0}; start it by its full path")]
    Program(#[source] std::io::Error),
    /// The probes have no place to work.
    #[error("cannot create a directory in {}: {source}; choose a writable state directory", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
}

/// Runs all checks, one after another (some would disturb each other). Takes a few seconds.
pub fn run(options: &Options) -> Result<Report, Error> {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let store = nearest(&options.store);
    sweep(store);
    let results = checks()
        .iter()
        .map(|check| examine(check, store, options))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Report::new(kernel, results))
}

/// The path itself or the nearest ancestor that exists.
fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/"))
}

fn examine(check: &Check, store: &Path, options: &Options) -> Result<CheckResult, Error> {
    let work = Work::new(store)?;
    let outcome = probe(check, &work.path, options);
    let fine = outcome.status == Status::Works;
    let unless_fine = |text: &str| if fine { String::new() } else { text.to_owned() };
    Ok(CheckResult {
        name: check.name.into(),
        title: check.title.into(),
        required: check.required,
        status: outcome.status,
        detail: outcome.detail,
        lost: unless_fine(check.lost),
        remedy: unless_fine(check.remedy),
    })
}

/// Removes directories that a killed doctor left.
fn sweep(store: &Path) {
    for entry in std::fs::read_dir(store).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|n| n.strip_prefix(PREFIX))
            .and_then(|n| n.split('-').next());
        if owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// A directory for one probe, removed whatever becomes of the probe.
struct Work {
    path: PathBuf,
}

impl Work {
    fn new(store: &Path) -> Result<Self, Error> {
        for attempt in 0u32.. {
            let path = store.join(format!("{PREFIX}{}-{attempt}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Work { path }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && attempt < 1000 => {}
                Err(source) => {
                    return Err(Error::Directory {
                        path: store.into(),
                        source,
                    });
                }
            }
        }
        Err(Error::Directory {
            path: store.into(),
            source: std::io::ErrorKind::AlreadyExists.into(),
        })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn probe(check: &Check, work: &Path, options: &Options) -> Outcome {
    let started = Command::new(&options.program)
        .args([PROBE_ARGUMENT, check.name])
        .env(DIRECTORY, work)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that what a hanging probe started can be ended with it.
        .process_group(0)
        .spawn();
    match started {
        Ok(child) => wait(child, check, options.timeout),
        Err(error) => Outcome::missing(format!("the probe could not be started: {error}")),
    }
}

fn wait(mut child: Child, check: &Check, timeout: Duration) -> Outcome {
    let deadline = Instant::now() + timeout;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
            Ok(None) => {
                end(&mut child);
                if let Some(clean) = check.after_timeout {
                    clean();
                }
                return Outcome::missing(format!("the probe did not end within {} s", timeout.as_secs()));
            }
            Err(error) => {
                end(&mut child);
                return Outcome::missing(format!("the probe was lost: {error}"));
            }
        }
    };
    // The probe is gone, and with it everyone who could write: both reads end. Its output is a line and fits a pipe.
    let read = |from: Option<&mut dyn Read>| {
        let mut text = String::new();
        let _ = from.map(|f| f.take(OUTPUT_MAX).read_to_string(&mut text));
        text
    };
    let printed = read(child.stdout.as_mut().map(|o| o as &mut dyn Read));
    match serde_json::from_str(printed.trim()) {
        Ok(outcome) if status.success() => outcome,
        _ => {
            let said = read(child.stderr.as_mut().map(|o| o as &mut dyn Read));
            let said: String = said
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .take(200)
                .collect();
            Outcome::missing(
                format!("the probe died ({status}) {}", said.trim())
                    .trim_end()
                    .to_owned(),
            )
        }
    }
}

fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}
