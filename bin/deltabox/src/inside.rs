//! `deltabox __files`: packs or unpacks files as the root of a sandbox, from inside its namespaces.
//!
//! Runs as a process of its own: only a single-threaded process may enter a user namespace, and whatever the files
//! in the sandbox are (symbolic links, FIFOs, very large), they are met with the sandbox's privileges and view.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use deltabox_api::{ApiError, ErrorKind};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{
    CapabilitySet, CapabilitySets, ThreadNameSpaceType, move_into_thread_name_spaces, set_capabilities,
    set_thread_gid, set_thread_groups, set_thread_uid,
};

/// What root needs to handle files of all owners inside.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID);

/// Entry point: `__files get|put|restore INIT_PID PATH`, tar on standard output or input. An error goes to standard error as
/// one JSON line.
pub fn main() -> i32 {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let result = match arguments.as_slice() {
        [what, init, path] => run(what, init, Path::new(path)),
        _ => Err(ApiError::new(ErrorKind::Usage, "__files is an internal command")),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            let line = serde_json::to_string(&error).unwrap_or_else(|_| error.message.clone());
            // Without a reader there is nobody to tell.
            let _ = writeln!(io::stderr(), "{line}");
            1
        }
    }
}

fn run(what: &str, init: &str, path: &Path) -> Result<(), ApiError> {
    let init = init.parse().ok().and_then(Pid::from_raw);
    let init = init.ok_or_else(|| ApiError::new(ErrorKind::Usage, "__files takes a process id"))?;
    enter(init)
        .map_err(|error| ApiError::new(ErrorKind::Internal, format!("cannot enter the sandbox: {error}")))?;
    match what {
        "get" => get(path),
        "put" => put(path),
        "restore" => restore(path),
        _ => Err(ApiError::new(ErrorKind::Usage, "__files gets or puts")),
    }
}

/// Becomes the sandbox's root, in its view of the files, with no privilege beyond files.
fn enter(init: Pid) -> io::Result<()> {
    let number = init.as_raw_nonzero();
    let init = pidfd_open(init, PidfdFlags::empty())?;
    let spaces = ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT;
    // The root as init has it: the namespace's own may still have the mount of before a rollback on top of it.
    let root = rustix::fs::open(
        format!("/proc/{number}/root"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    move_into_thread_name_spaces(init.as_fd(), spaces)?;
    rustix::process::fchdir(&root)?;
    rustix::process::chroot(".")?;
    set_thread_groups(&[])?;
    set_thread_gid(rustix::thread::Gid::ROOT)?;
    set_thread_uid(rustix::thread::Uid::ROOT)?;
    rustix::thread::set_no_new_privs(true)?;
    let sets = CapabilitySets {
        effective: CAPABILITIES,
        permitted: CAPABILITIES,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)?;
    rustix::process::umask(Mode::empty());
    Ok(())
}

fn failed(what: &str, path: &Path) -> impl Fn(io::Error) -> ApiError {
    let text = format!("cannot {what} {} in the sandbox", path.display());
    move |error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
            io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                ErrorKind::Usage
            }
            _ => ErrorKind::Internal,
        };
        ApiError::new(kind, format!("{text}: {}", with_causes(&error)))
    }
}

/// The tar library names the file in one error and the reason in the one below.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn get(path: &Path) -> Result<(), ApiError> {
    let failed = failed("read", path);
    let meta = std::fs::symlink_metadata(path).map_err(&failed)?;
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(1 << 18, io::stdout().lock()));
    // The root itself has no name.
    let name = path.file_name().map_or_else(|| ".".into(), Into::into);
    let special = !(meta.is_dir() || meta.is_file() || meta.is_symlink());
    if special {
        let text = format!("{} in the sandbox is no file, directory or link", path.display());
        return Err(ApiError::new(ErrorKind::Usage, text));
    }
    let packed = crate::pack::append(&mut tar, path.to_path_buf(), name, &mut |_| {});
    packed.and_then(|()| tar.into_inner()?.flush()).map_err(failed)
}

fn put(path: &Path) -> Result<(), ApiError> {
    let failed = failed("write to", path);
    if !std::fs::metadata(path).map_err(&failed)?.is_dir() {
        return Err(ApiError::new(
            ErrorKind::Usage,
            format!("{} in the sandbox is not a directory", path.display()),
        ));
    }
    unpack(path, false).map_err(failed)
}

/// Replaces `path` by what the tar holds, with owners and all.
fn restore(path: &Path) -> Result<(), ApiError> {
    let failed = failed("restore", path);
    let parent = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent).map_err(&failed)?;
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path).map_err(&failed)?,
        Ok(_) => std::fs::remove_file(path).map_err(&failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    unpack(parent, true).map_err(failed)
}

fn unpack(directory: &Path, with_owners: bool) -> io::Result<()> {
    let input: Box<dyn Read> = Box::new(io::BufReader::with_capacity(1 << 18, File::from(stdin_fd()?)));
    let mut tar = tar::Archive::new(input);
    tar.set_preserve_permissions(true);
    tar.set_preserve_mtime(true);
    tar.set_preserve_ownerships(with_owners);
    tar.set_unpack_xattrs(with_owners);
    tar.set_overwrite(true);
    tar.unpack(directory)
}

/// Standard input without the buffer of the standard library, which would read ahead of ours.
fn stdin_fd() -> io::Result<std::os::fd::OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?)
}
