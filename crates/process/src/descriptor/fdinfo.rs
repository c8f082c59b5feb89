//! `/proc/pid/fdinfo`: one read per descriptor.
//!
//! Opening and closing such a file costs four times as much as reading it, so this thread keeps them open from one
//! stop to the next: an open one always tells of what is at that number now, and of nothing once the descriptor is
//! closed or the process gone. It keeps neither the process nor what the descriptor leads to alive.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, getrlimit};

/// One descriptor as fdinfo shows it.
#[derive(Debug)]
pub(super) struct Entry {
    /// Position of its process.
    pub process: usize,
    pub fd: i32,
    pub close_on_exec: bool,
    pub flags: u32,
    pub pos: i64,
    pub mount: u64,
    pub ino: u64,
    /// The lines after `ino:`.
    pub info: String,
}

/// The open files of one process, by descriptor.
#[derive(Default)]
struct Kept {
    files: HashMap<i32, OwnedFd>,
}

thread_local! {
    static KEPT: RefCell<HashMap<i32, Kept>> = RefCell::default();
}

/// Closes the files of all processes but these.
pub(super) fn forget_others(pids: impl Iterator<Item = Pid>) {
    let present: std::collections::HashSet<i32> = pids.map(|pid| pid.as_raw_nonzero().get()).collect();
    KEPT.with_borrow_mut(|kept| kept.retain(|pid, _| present.contains(pid)));
}

/// Appends all descriptors of a process, whose directory in `/proc` is `dir`.
pub(super) fn read_all(
    process: usize,
    pid: Pid,
    dir: &OwnedFd,
    entries: &mut Vec<Entry>,
) -> Result<(), Errno> {
    let mut kept = KEPT
        .with_borrow_mut(|all| all.remove(&pid.as_raw_nonzero().get()))
        .unwrap_or_default();
    let result = read_listed(process, dir, &mut kept, entries);
    KEPT.with_borrow_mut(|all| all.insert(pid.as_raw_nonzero().get(), kept));
    result
}

fn read_listed(
    process: usize,
    dir: &OwnedFd,
    kept: &mut Kept,
    entries: &mut Vec<Entry>,
) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fdinfo = rustix::fs::openat(dir, "fdinfo", flags, Mode::empty())?;
    let mut names = [const { MaybeUninit::<u8>::uninit() }; 8192];
    let mut listing = RawDir::new(&fdinfo, &mut names);
    let mut text = vec![0_u8; 4096];
    let mut previous = std::mem::take(&mut kept.files);
    // A quarter of the numbers this process may use at most; the rest is opened each time.
    let limit = getrlimit(Resource::Nofile)
        .current
        .map_or(i32::MAX, |n| i32::try_from(n / 4).unwrap_or(i32::MAX));
    while let Some(name) = listing.next() {
        let name = name?;
        let Some(fd) = name.file_name().to_str().ok().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        let again = previous
            .remove(&fd)
            .and_then(|file| Some((read_whole(&file, &mut text).ok()?, file)));
        let (len, file) = match again {
            Some(read) => read,
            None => {
                let file = open(&fdinfo, name.file_name())?;
                (read_whole(&file, &mut text)?, file)
            }
        };
        entries.push(parse(process, fd, &text[..len]).ok_or(Errno::INVAL)?);
        if file.as_raw_fd() < limit {
            kept.files.insert(fd, file);
        }
    }
    Ok(())
}

fn open(fdinfo: &OwnedFd, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(fdinfo, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Reads a single descriptor of the process whose directory in `/proc` is `dir`.
pub(super) fn read_one(process: usize, dir: &OwnedFd, fd: i32) -> Result<Entry, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, format!("fdinfo/{fd}"), flags, Mode::empty())?;
    let mut text = vec![0; 4096];
    let len = read_whole(&file, &mut text)?;
    parse(process, fd, &text[..len]).ok_or(Errno::INVAL)
}

/// Reads a file of `/proc` whole, from its beginning, growing the buffer as needed; a short read is its end.
fn read_whole(file: &OwnedFd, buffer: &mut Vec<u8>) -> Result<usize, Errno> {
    let mut len = 0;
    loop {
        let room = buffer.len() - len;
        let n = rustix::io::pread(file, &mut buffer[len..], len as u64)?;
        len += n;
        if n == 0 || n < room {
            return Ok(len);
        }
        buffer.resize(buffer.len() * 2, 0);
    }
}

fn parse(process: usize, fd: i32, text: &[u8]) -> Option<Entry> {
    let text = std::str::from_utf8(text).ok()?;
    let mut lines = text.splitn(5, '\n');
    let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(':').map(str::trim);
    let pos = value("pos")?.parse().ok()?;
    let flags = u32::from_str_radix(value("flags")?, 8).ok()?;
    let mount = value("mnt_id")?.parse().ok()?;
    let ino = value("ino")?.parse().ok()?;
    let info = lines.next().unwrap_or("").to_owned();
    let close_on_exec = flags & libc::O_CLOEXEC as u32 != 0;
    let flags = flags & !(libc::O_CLOEXEC as u32);
    Some(Entry {
        process,
        fd,
        close_on_exec,
        flags,
        pos,
        mount,
        ino,
        info,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_is_parsed() {
        let text = b"pos:\t12\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\neventfd-count: 3\n";
        let entry = parse(3, 7, text).unwrap();
        assert_eq!((entry.process, entry.fd, entry.pos, entry.flags), (3, 7, 12, 2));
        assert_eq!((entry.mount, entry.ino, entry.close_on_exec), (17, 1038, true));
        assert_eq!(entry.info, "eventfd-count: 3\n");
        assert!(parse(0, 0, b"pos:\t1\n").is_none());
    }

    #[test]
    fn kept_files_tell_what_is_there_now() {
        use std::process::{Command, Stdio};
        let script =
            "exec 9</dev/null; echo; read a; exec 9>&-; exec 9</etc/passwd 8</dev/null; echo; read a";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        use std::io::{Read, Write};
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dir = rustix::fs::open(format!("/proc/{}", child.id()), flags, Mode::empty()).unwrap();
        let look = |child: &mut std::process::Child| {
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            let mut entries = Vec::new();
            read_all(0, pid, &dir, &mut entries).unwrap();
            entries
        };
        let before = look(&mut child);
        writeln!(child.stdin.as_mut().unwrap()).unwrap();
        let after = look(&mut child);
        let at = |entries: &[Entry], fd| entries.iter().find(|e| e.fd == fd).map(|e| e.ino);
        assert_ne!(at(&before, 9), at(&after, 9));
        assert_eq!((at(&before, 8), at(&after, 8)), (None, at(&before, 9)));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(read_all(0, pid, &dir, &mut Vec::new()).is_err());
        forget_others(std::iter::empty());
    }
}
