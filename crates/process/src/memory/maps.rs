//! The mappings of a process, from `/proc/PID/maps`.

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

/// Reads all mappings, in the order of their addresses.
pub fn read(pid: HostPid) -> Result<Vec<Vma>, TraceError> {
    let text = procfs::read(pid, "maps")?;
    let mut found = Vec::with_capacity(text.len() / 80);
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let vma = parse(line).ok_or_else(|| procfs::malformed(pid, "maps"))?;
        // The old vsyscall page is the kernel's and outside of every process.
        if vma.start < super::TASK_SIZE {
            found.push(vma);
        }
    }
    Ok(found)
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
    fn own_mappings_are_in_order() {
        let found = read(HostPid::from(rustix::process::getpid())).unwrap();
        assert!(found.len() > 5);
        assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert!(found.iter().any(|vma| vma.label == "[stack]"));
    }
}
