//! Stores: loop devices, filesystems with reflink and snapshots, and what the state directory itself offers.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use deltabox_sys::{btrfs as sys_btrfs, loopdev};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, move_mount,
};

use super::{Doing, Step, all, ensure, private_mounts};
use crate::report::Outcome;

/// Big enough for the smallest XFS that its tool makes; all of it holes.
const IMAGE_BYTES: u64 = 512 << 20;
const DISK_WANTED_MB: u64 = 4096;

fn image(work: &Path) -> Step<File> {
    let path = work.join("image");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .doing("create an image file")?;
    file.set_len(IMAGE_BYTES).doing("size an image file")?;
    Ok(file)
}

/// Writes through the device and finds it in the file.
pub(crate) fn loop_device(work: &Path) -> Outcome {
    all((|| {
        let backing = image(work)?;
        let device = loopdev::attach(backing.as_fd(), 0, false).doing("attach a loop device")?;
        let out = File::options()
            .write(true)
            .open(device.path())
            .doing("open the loop device")?;
        rustix::io::pwrite(&out, &[0x5a; 4096], 8192).doing("write to the loop device")?;
        out.sync_all().doing("sync the loop device")?;
        let mut seen = [0; 4096];
        rustix::io::pread(&backing, &mut seen, 8192).doing("read the image file")?;
        ensure(seen == [0x5a; 4096], "a write to the device is not in the file")?;
        Ok(format!("a file became {}", device.path().display()))
    })())
}

/// Makes a filesystem in an image, and mounts it in a private namespace.
fn mounted(work: &Path, kind: &str, tool: &str, arguments: &[&str]) -> Step<PathBuf> {
    private_mounts()?;
    let backing = image(work)?;
    let output = Command::new(tool)
        .args(arguments)
        .arg(work.join("image"))
        .output()
        .doing(&format!("run {tool}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{tool} failed: {}", said.lines().last().unwrap_or("")));
    }
    let device = loopdev::attach(backing.as_fd(), 0, false).doing("attach a loop device")?;
    // A filesystem in a module is loaded by asking for it.
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).doing(&format!("find {kind} in the kernel"))?;
    fsconfig_set_string(&context, "source", device.path()).doing("name the device")?;
    fsconfig_create(&context).doing(&format!("mount {kind}"))?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .doing(&format!("mount {kind}"))?;
    let at = work.join("store");
    fs::create_dir(&at).doing("create a directory")?;
    move_mount(&mount, "", CWD, &at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing("attach a mount")?;
    Ok(at)
}

/// A clone that shares its content, until one of the two is changed.
fn reflink(dir: &Path) -> Step {
    let content = vec![3u8; 64 << 10];
    fs::write(dir.join("original"), &content).doing("write")?;
    let from = File::open(dir.join("original")).doing("open")?;
    let to = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(dir.join("clone"))
        .doing("create")?;
    rustix::fs::ioctl_ficlone(&to, &from).doing("reflink")?;
    rustix::io::pwrite(&to, b"x", 0).doing("write")?;
    ensure(
        fs::read(dir.join("original")).doing("read")? == content,
        "a write to a clone is seen in the original",
    )
}

/// A read-only snapshot that a later write does not reach.
fn snapshot(dir: &Path) -> Step {
    let parent = File::open(dir).doing("open")?;
    let [volume, frozen] = ["volume", "frozen"].map(OsStr::new);
    sys_btrfs::create_subvolume(parent.as_fd(), volume).doing("create a subvolume")?;
    let result = (|| {
        fs::write(dir.join("volume/file"), "old").doing("write")?;
        let source = File::open(dir.join("volume")).doing("open")?;
        sys_btrfs::create_snapshot(parent.as_fd(), frozen, source.as_fd(), true).doing("snapshot")?;
        fs::write(dir.join("volume/file"), "new").doing("write")?;
        let kept = fs::read(dir.join("frozen/file")).doing("read")?;
        ensure(kept == b"old", "a snapshot changed")?;
        ensure(
            fs::write(dir.join("frozen/file"), "x").is_err(),
            "a read-only snapshot was written",
        )
    })();
    // Both go also where only a plain removal of directories will follow.
    let _ = sys_btrfs::delete_subvolume(parent.as_fd(), frozen);
    let _ = sys_btrfs::delete_subvolume(parent.as_fd(), volume);
    result
}

pub(crate) fn btrfs(work: &Path) -> Outcome {
    all((|| {
        let at = mounted(work, "btrfs", "mkfs.btrfs", &["--quiet"])?;
        reflink(&at)?;
        snapshot(&at)?;
        Ok("an image was made and mounted; reflink and snapshot are right".into())
    })())
}

pub(crate) fn xfs(work: &Path) -> Outcome {
    all((|| {
        let at = mounted(work, "xfs", "mkfs.xfs", &["-q", "-m", "reflink=1"])?;
        reflink(&at)?;
        Ok("an image was made and mounted; reflink is right".into())
    })())
}

/// What the filesystem of the state directory can do itself.
pub(crate) fn native(work: &Path) -> Outcome {
    match (reflink(work), snapshot(work)) {
        (Ok(()), Ok(())) => Outcome::works("the state directory has reflink and snapshots"),
        (Ok(()), Err(why)) => Outcome::degraded(format!("reflink works; {why}")),
        (Err(why), Ok(())) => Outcome::degraded(format!("snapshots work; {why}")),
        (Err(reflink), Err(snapshot)) => Outcome::degraded(format!("{reflink}; {snapshot}")),
    }
}

pub(crate) fn space(work: &Path) -> Outcome {
    match rustix::fs::statvfs(work) {
        Ok(stat) => {
            let mb = stat.f_bavail.saturating_mul(stat.f_frsize) >> 20;
            let said = format!("{mb} MB are free");
            if mb >= DISK_WANTED_MB {
                Outcome::works(said)
            } else {
                Outcome::degraded(said)
            }
        }
        Err(error) => Outcome::missing(format!("the free space is unknown: {error}")),
    }
}
