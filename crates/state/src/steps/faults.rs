//! What a test has go wrong, as `DELTABOX_FAULT` says when the daemon starts:
//!
//! | value | at step N |
//! |---|---|
//! | `kill:N` | the daemon is killed; of a write, half is done |
//! | `cut:N` | the power is cut: what was not synced is undone, and the daemon is killed |
//! | `fail:N:COUNT` | this step and those after it, COUNT in all, fail; of a write, half is done |

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Kill,
    Cut,
    Fail,
}

struct Plan {
    fault: Fault,
    steps: std::ops::Range<u64>,
}

static PLAN: LazyLock<Option<Plan>> = LazyLock::new(|| {
    let text = std::env::var("DELTABOX_FAULT").ok()?;
    Some(parse(&text).unwrap_or_else(|| panic!("DELTABOX_FAULT={text} is not understood")))
});
static TAKEN: AtomicU64 = AtomicU64::new(0);
static UNSYNCED: Mutex<Vec<Undo>> = Mutex::new(Vec::new());

fn parse(text: &str) -> Option<Plan> {
    let (fault, rest) = text.split_once(':')?;
    let (first, count) = rest.split_once(':').unwrap_or((rest, "1"));
    let (first, count): (u64, u64) = (first.parse().ok()?, count.parse().ok()?);
    let fault = match fault {
        "kill" => Fault::Kill,
        "cut" => Fault::Cut,
        "fail" => Fault::Fail,
        _ => return None,
    };
    Some(Plan {
        fault,
        steps: first..first + count,
    })
}

/// How to undo what would not survive a loss of power.
enum Undo {
    Write {
        file: File,
        at: u64,
        old: Vec<u8>,
        length: u64,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
}

impl Undo {
    fn is_synced_with(&self, synced: (u64, u64)) -> bool {
        let place = match self {
            Self::Write { file, .. } => identity(file.metadata()),
            Self::Rename { to, .. } => identity(to.parent().unwrap_or(Path::new("/")).metadata()),
        };
        place == Some(synced)
    }

    fn undo(self) -> io::Result<()> {
        match self {
            Self::Write {
                file,
                at,
                old,
                length,
            } => {
                file.write_all_at(&old, at)?;
                file.set_len(length)
            }
            Self::Rename { from, to } => fs::rename(to, from),
        }
    }
}

fn identity(metadata: io::Result<fs::Metadata>) -> Option<(u64, u64)> {
    metadata.ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Counts a step; what is to go wrong at it, if anything.
fn take() -> Option<Fault> {
    let plan = PLAN.as_ref()?;
    let step = TAKEN.fetch_add(1, Ordering::Relaxed) + 1;
    plan.steps.contains(&step).then_some(plan.fault)
}

fn go_wrong(fault: Fault) -> io::Result<()> {
    if fault == Fault::Fail {
        tracing::warn!("the disk fails, as DELTABOX_FAULT says");
        return Err(rustix::io::Errno::IO.into());
    }
    if fault == Fault::Cut {
        for undo in UNSYNCED.lock().expect("not poisoned").drain(..).rev() {
            undo.undo().expect("what was not synced can be undone");
        }
    }
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    unreachable!("the daemon has been killed");
}

pub fn before() -> io::Result<()> {
    take().map_or(Ok(()), go_wrong)
}

pub fn before_write(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let fault = take();
    note(file, at, bytes.len())?;
    match fault {
        None => Ok(()),
        Some(fault) => {
            file.write_all_at(&bytes[..bytes.len() / 2], at)?;
            go_wrong(fault)
        }
    }
}

pub fn before_length(file: &File, length: u64) -> io::Result<()> {
    before()?;
    let lost = file.metadata()?.len().saturating_sub(length);
    note(file, length, lost as usize)
}

/// Notes how to undo a write.
fn note(file: &File, at: u64, length: usize) -> io::Result<()> {
    if !matches!(&*PLAN, Some(plan) if plan.fault == Fault::Cut) {
        return Ok(());
    }
    let now = file.metadata()?.len();
    let mut old = vec![0; now.saturating_sub(at).min(length as u64) as usize];
    file.read_exact_at(&mut old, at)?;
    UNSYNCED.lock().expect("not poisoned").push(Undo::Write {
        file: file.try_clone()?,
        at,
        old,
        length: now,
    });
    Ok(())
}

pub fn synced(file: &File) {
    if PLAN.is_some()
        && let Some(synced) = identity(file.metadata())
    {
        let mut unsynced = UNSYNCED.lock().expect("not poisoned");
        unsynced.retain(|undo| !undo.is_synced_with(synced));
    }
}

pub fn renamed(from: &Path, to: &Path) {
    if PLAN.is_none() {
        return;
    }
    let (from, to) = (from.to_owned(), to.to_owned());
    UNSYNCED
        .lock()
        .expect("not poisoned")
        .push(Undo::Rename { from, to });
}
