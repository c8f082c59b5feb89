//! The mappings of a process, from `/proc/PID/maps`, with how they are advised, locked and sealed.
//!
//! The latter may change without a trace in `maps` (a whole mapping is advised), so it is read each time, from the
//! kernel's own words ([`vmas`]). Where that is not possible, `/proc/PID/smaps` is read instead of `maps`: it tells
//! the same, but takes 10 ms for each gigabyte of resident memory.

use std::sync::LazyLock;

use deltabox_sys::vmas::{self, Flags, flag};
use serde::{Deserialize, Serialize};

use crate::error::TraceError;
use crate::ids::HostPid;
use crate::procfs;

/// Which file is behind a mapping, as `/proc` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backing {
    /// Device, major and minor number.
    pub device: (u32, u32),
    /// Inode number.
    pub inode: u64,
    /// Path as the process sees it, with ` (deleted)` if it was.
    pub path: String,
    /// Offset in the file in bytes.
    pub offset: u64,
}

/// What is behind a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Private memory without a file.
    Anonymous,
    /// A private, copy-on-write view of a file.
    PrivateFile(Backing),
    /// A shared view of a file (also shared memory and memfds, which are files to the kernel).
    Shared(Backing),
    /// Memory the kernel put there: vDSO and its data.
    Kernel(String),
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// `PROT_READ`, `PROT_WRITE`, `PROT_EXEC` bits.
    pub protection: u8,
    /// What is behind it.
    pub kind: Kind,
    /// The kernel's label for an anonymous mapping: `[heap]`, `[stack]`, `[anon:...]` or nothing.
    pub label: String,
    /// How it is advised, locked and sealed: bits of [`flag`].
    pub flags: u16,
}

impl Vma {
    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.end - self.start
    }

    /// Whether the content of changed pages belongs to this process alone.
    #[must_use]
    pub fn is_private(&self) -> bool {
        matches!(self.kind, Kind::Anonymous | Kind::PrivateFile(_))
    }

    /// Whether all of these flags are set.
    #[must_use]
    pub fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// The part of the mapping in `start .. end`, which must overlap it.
    #[must_use]
    pub fn clipped(&self, start: u64, end: u64) -> Vma {
        let mut part = self.clone();
        part.start = self.start.max(start);
        part.end = self.end.min(end);
        if let Kind::PrivateFile(backing) | Kind::Shared(backing) = &mut part.kind {
            backing.offset += part.start - self.start;
        }
        part
    }
}

/// What reads the flags, where the kernel has it.
static FLAGS: LazyLock<Option<vmas::Reader>> = LazyLock::new(|| {
    vmas::Reader::new()
        .inspect_err(
            |error| tracing::info!(%error, "no BPF: flags of mappings are read from smaps, which is slow"),
        )
        .ok()
});

/// Gets ready to read mappings: takes some milliseconds, once.
pub fn prepare() {
    LazyLock::force(&FLAGS);
}

/// Reads all mappings of a stopped process, in the order of their addresses.
pub fn read(pid: HostPid) -> Result<Vec<Vma>, TraceError> {
    match &*FLAGS {
        Some(reader) => {
            let mut found =
                parse_all(&procfs::read(pid, "maps")?).ok_or_else(|| procfs::malformed(pid, "maps"))?;
            let flags = reader
                .read(pid.pid())
                .map_err(|source| procfs::failed(pid, "maps", source))?;
            add_flags(&mut found, &flags).ok_or_else(|| procfs::malformed(pid, "maps"))?;
            Ok(found)
        }
        None => parse_all(&procfs::read(pid, "smaps")?).ok_or_else(|| procfs::malformed(pid, "smaps")),
    }
}

/// Parses `maps`, or `smaps`, where each line of the same form is followed by some of the form `Name: value`.
fn parse_all(text: &[u8]) -> Option<Vec<Vma>> {
    let mut found: Vec<Vma> = Vec::with_capacity(text.len() / 80);
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        if let Some(letters) = line.strip_prefix(b"VmFlags:") {
            let vma = found.last_mut()?;
            vma.flags = parse_flags(letters, matches!(vma.kind, Kind::Shared(_)));
        } else if !line[0].is_ascii_uppercase() {
            found.push(parse(line)?);
        }
    }
    // The old vsyscall page is the kernel's and outside of every process.
    found.retain(|vma| vma.start < super::TASK_SIZE);
    Some(found)
}

/// `VmFlags` of `smaps`: words of two letters (Documentation/filesystems/proc.rst).
fn parse_flags(letters: &[u8], shared: bool) -> u16 {
    let mut flags = if shared { flag::NEVER_WRITABLE } else { 0 };
    for word in letters.split(|&byte| byte == b' ') {
        flags |= match word {
            b"lo" => flag::LOCKED,
            b"lf" => flag::ON_FAULT,
            b"dc" => flag::DONT_FORK,
            b"wf" => flag::WIPE_ON_FORK,
            b"dd" => flag::DONT_DUMP,
            b"hg" => flag::HUGE_PAGE,
            b"nh" => flag::NO_HUGE_PAGE,
            b"mg" => flag::MERGEABLE,
            b"sr" => flag::SEQUENTIAL,
            b"rr" => flag::RANDOM,
            b"gd" => flag::GROWS_DOWN,
            b"sl" => flag::SEALED,
            _ => 0,
        };
        if word == b"mw" {
            flags &= !flag::NEVER_WRITABLE;
        }
    }
    flags
}

/// Notes the flags of each mapping; `None` if they are not of the same mappings.
fn add_flags(vmas: &mut [Vma], flags: &[Flags]) -> Option<()> {
    let mut flags = flags.iter();
    for vma in vmas {
        vma.flags = flags.find(|flags| flags.start == vma.start)?.flags;
        if !matches!(vma.kind, Kind::Shared(_)) {
            vma.flags &= !flag::NEVER_WRITABLE;
        }
    }
    Some(())
}

/// The mappings without what lies in `hole`.
#[must_use]
pub fn without(vmas: Vec<Vma>, hole: Option<std::ops::Range<u64>>) -> Vec<Vma> {
    let Some(hole) = hole else { return vmas };
    let mut kept = Vec::with_capacity(vmas.len() + 1);
    for vma in vmas {
        if vma.end <= hole.start || hole.end <= vma.start {
            kept.push(vma);
            continue;
        }
        if vma.start < hole.start {
            kept.push(vma.clipped(vma.start, hole.start));
        }
        if hole.end < vma.end {
            kept.push(vma.clipped(hole.end, vma.end));
        }
    }
    kept
}

/// An address with `size` free bytes in both layouts, high up but not where the kernel would put something next.
#[must_use]
pub fn gap(one: &[Vma], two: &[Vma], size: u64) -> Option<u64> {
    let mut taken: Vec<(u64, u64)> = one.iter().chain(two).map(|vma| (vma.start, vma.end)).collect();
    taken.sort_unstable();
    let mut at = super::TASK_SIZE;
    for &(start, end) in taken.iter().rev() {
        // A page of distance on both sides, so that nothing merges, and room for a stack to grow.
        if end + size + (64 << 20) <= at {
            return Some(at - size - super::PAGE);
        }
        at = at.min(start);
    }
    (at > size + (64 << 20)).then(|| at - size - super::PAGE)
}

fn parse(line: &[u8]) -> Option<Vma> {
    // address perms offset major:minor inode path
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let (start, end) = split(fields.next()?, b'-')?;
    let permissions = fields.next()?;
    let offset = hex(fields.next()?)?;
    let (major, minor) = split(fields.next()?, b':')?;
    let inode: u64 = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let name = fields.next().unwrap_or_default();
    let name = String::from_utf8_lossy(name.trim_ascii_start()).into_owned();
    let bit = |place: usize, letter: u8, bit: u8| {
        if permissions.get(place) == Some(&letter) {
            bit
        } else {
            0
        }
    };
    let protection = bit(0, b'r', 1) | bit(1, b'w', 2) | bit(2, b'x', 4);
    let shared = *permissions.get(3)? == b's';
    let device = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    let (kind, label) = if matches!(
        name.as_str(),
        "[vdso]" | "[vvar]" | "[vvar_vclock]" | "[vsyscall]" | "[uprobes]"
    ) {
        (Kind::Kernel(name), String::new())
    } else if inode != 0 || name.starts_with('/') {
        let backing = Backing {
            device,
            inode,
            path: name,
            offset,
        };
        (
            if shared {
                Kind::Shared(backing)
            } else {
                Kind::PrivateFile(backing)
            },
            String::new(),
        )
    } else if shared {
        (
            Kind::Shared(Backing {
                device,
                inode,
                path: name,
                offset,
            }),
            String::new(),
        )
    } else {
        (Kind::Anonymous, name)
    };
    Some(Vma {
        start,
        end,
        protection,
        kind,
        label,
        flags: 0,
    })
}

fn split(field: &[u8], at: u8) -> Option<(u64, u64)> {
    let place = field.iter().position(|&byte| byte == at)?;
    Some((hex(&field[..place])?, hex(&field[place + 1..])?))
}

fn hex(digits: &[u8]) -> Option<u64> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(u64::from);
    (!digits.is_empty() && digits.len() <= 16).then(|| {
        digits
            .iter()
            .try_fold(0, |value, &byte| digit(byte).map(|digit| value << 4 | digit))
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_kind() {
        let vma = parse(b"7f0000000000-7f0000021000 rw-p 00000000 00:00 0 ").unwrap();
        assert_eq!(
            (vma.start, vma.end, vma.protection),
            (0x7f00_0000_0000, 0x7f00_0002_1000, 3)
        );
        assert_eq!(vma.kind, Kind::Anonymous);
        let vma =
            parse(b"55d000-55e000 r-xp 00003000 08:01 1234                       /usr/bin/a b (deleted)")
                .unwrap();
        let backing = Backing {
            device: (8, 1),
            inode: 1234,
            path: "/usr/bin/a b (deleted)".into(),
            offset: 0x3000,
        };
        assert_eq!(vma.kind, Kind::PrivateFile(backing.clone()));
        let part = vma.clipped(0x55d800, u64::MAX);
        assert_eq!(
            part.kind,
            Kind::PrivateFile(Backing {
                offset: 0x3800,
                ..backing
            })
        );
        let vma = parse(b"7ffd-7ffe rw-s 00000000 00:01 2052 /dev/zero (deleted)").unwrap();
        assert!(matches!(vma.kind, Kind::Shared(_)));
        let vma = parse(b"7ffd-7ffe r-xp 00000000 00:00 0                          [vdso]").unwrap();
        assert_eq!(vma.kind, Kind::Kernel("[vdso]".into()));
        let vma = parse(b"7ffd-7ffe rw-p 00000000 00:00 0                          [heap]").unwrap();
        assert_eq!((vma.kind, vma.label.as_str()), (Kind::Anonymous, "[heap]"));
        assert_eq!(parse(b"nonsense"), None);
    }

    #[test]
    fn mappings_are_in_order_and_both_sources_tell_the_same_flags() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = HostPid::new(i32::try_from(child.id()).unwrap()).unwrap();
        let waits = || procfs::read_text(pid, "wchan").is_ok_and(|at| at.contains("pipe_read"));
        while !waits() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let types = std::path::Path::new("/sys/kernel/btf/vmlinux").exists();
        assert_eq!(FLAGS.is_some(), types, "the fast way is there, but does not work");
        let found = read(pid).unwrap();
        let slow = parse_all(&procfs::read(pid, "smaps").unwrap()).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(found.len() > 5);
        assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start));
        let stack = found.iter().find(|vma| vma.label == "[stack]").unwrap();
        assert!(stack.has(flag::GROWS_DOWN));
        assert_eq!(found, slow);
    }

    #[test]
    fn smaps_are_understood() {
        let text = b"1000-2000 rw-s 00000000 08:01 7   /f\nSize:   4 kB\nVmFlags: rd wr sh mr mw me ms sd \n\
            2000-3000 r--s 00000000 08:01 7   /f\nVmFlags: rd mr me ms dc nh lo sd \n\
            4000-5000 rw-p 00000000 00:00 0 \nVmFlags: rd wr mr mw me ac \n";
        let flags: Vec<u16> = parse_all(text).unwrap().iter().map(|vma| vma.flags).collect();
        let advised = flag::DONT_FORK | flag::NO_HUGE_PAGE | flag::LOCKED | flag::NEVER_WRITABLE;
        assert_eq!(flags, [0, advised, 0]);
    }
}
