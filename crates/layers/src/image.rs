//! A store in a file: a sparse image with a filesystem that has what the state directory's lacks.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use deltabox_sys::loopdev;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::error::{Context, Error, Result};

/// A filesystem that an image can hold: in order of what it gives, how to make it, and how to mount it.
struct Kind {
    name: &'static str,
    make: &'static [&'static str],
    options: &'static [&'static str],
    /// Where its superblock says which filesystem it is.
    magic_at: u64,
    magic: &'static [u8],
    size_min: u64,
}

const KINDS: [Kind; 3] = [
    // One copy of the metadata: the image lies on a filesystem that looks after its own redundancy.
    Kind {
        name: "btrfs",
        make: &["mkfs.btrfs", "-q", "-K", "-m", "single", "-d", "single"],
        options: &["discard=async"],
        magic_at: 0x10040,
        magic: b"_BHRfS_M",
        size_min: 128 << 20,
    },
    Kind {
        name: "xfs",
        make: &["mkfs.xfs", "-q", "-K", "-m", "reflink=1"],
        options: &["discard"],
        magic_at: 0,
        magic: b"XFSB",
        size_min: 300 << 20,
    },
    Kind {
        name: "ext4",
        make: &["mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-I", "256"],
        options: &["discard"],
        magic_at: 0x438,
        magic: b"\x53\xef",
        size_min: 32 << 20,
    },
];

/// Makes an image of the named filesystem, or of the best one that can be made here. It appears under its name only
/// when complete.
pub(crate) fn create(path: &Path, size: u64, only: Option<&'static str>) -> Result<()> {
    let mut reasons = Vec::new();
    for kind in KINDS
        .iter()
        .filter(|kind| only.is_none_or(|name| name == kind.name))
    {
        let draft = path.with_extension("draft");
        match make(kind, &draft, size) {
            Ok(()) => {
                File::open(&draft)
                    .and_then(|file| file.sync_all())
                    .doing("flushing", &draft)?;
                return fs::rename(&draft, path).doing("naming", path);
            }
            Err(reason) => {
                let _ = fs::remove_file(&draft);
                reasons.push(format!("{}: {reason}", kind.name));
            }
        }
    }
    Err(Error::CannotMake {
        filesystem: only.unwrap_or("image"),
        path: path.into(),
        reason: reasons.join("; "),
    })
}

fn make(kind: &Kind, path: &Path, size: u64) -> std::result::Result<(), String> {
    if size < kind.size_min {
        return Err(format!("needs an image of at least {} MB", kind.size_min >> 20));
    }
    if !filesystems()?.iter().any(|name| name == kind.name) {
        return Err("the kernel does not have it".into());
    }
    let file = File::create(path).map_err(|error| error.to_string())?;
    file.set_len(size).map_err(|error| error.to_string())?;
    drop(file);
    let (program, arguments) = kind.make.split_first().expect("a program");
    let output = Command::new(program)
        .args(arguments)
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program} cannot be run ({error}); install it"))?;
    if !output.status.success() {
        return Err(format!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    Ok(())
}

/// Filesystems the running kernel knows now (a module may still be loaded by the first mount, which is why a kind
/// that is missing here is asked for once).
fn filesystems() -> std::result::Result<Vec<String>, String> {
    let read = || fs::read_to_string("/proc/filesystems").map_err(|error| error.to_string());
    let parse = |text: String| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.split_whitespace().last().map(str::to_owned))
            .collect()
    };
    let known = parse(read()?);
    for kind in &KINDS {
        if !known.iter().any(|name| name == kind.name) {
            let _ = fsopen(kind.name, FsOpenFlags::FSOPEN_CLOEXEC);
        }
    }
    Ok(parse(read()?))
}

/// Mounts the image at `target`.
pub(crate) fn mount(path: &Path, target: &Path) -> Result<()> {
    let damaged = |reason: String| Error::ImageDamaged {
        path: path.into(),
        reason,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .doing("opening", path)?;
    let kind = KINDS
        .iter()
        .find(|kind| has_magic(&file, kind))
        .ok_or_else(|| damaged("its start is not that of a known filesystem".into()))?;
    let device = loopdev::attach(file.as_fd(), 0, false).doing("making a block device of", path)?;
    let source = device.path().to_path_buf();
    let mounted = || -> io::Result<OwnedFd> {
        let context = fsopen(kind.name, FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", &source)?;
        for option in kind.options {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                None => fsconfig_set_flag(&context, *option)?,
            }
        }
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOATIME;
        Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
    };
    let mount =
        mounted().map_err(|error| damaged(format!("mounting it as {} failed: {error}", kind.name)))?;
    move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing("mounting at", target)
}

fn has_magic(file: &File, kind: &Kind) -> bool {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; kind.magic.len()];
    file.read_exact_at(&mut bytes, kind.magic_at).is_ok() && bytes == kind.magic
}
