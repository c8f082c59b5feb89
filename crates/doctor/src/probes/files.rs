//! The file half: overlayfs and idmapped mounts, on the state directory's filesystem.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use deltabox_sys::clone::{ForkOptions, unshare_namespaces};
use deltabox_sys::mount::{MountChange, change_mount};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use rustix::thread::UnshareFlags;

use super::{Doing, Step, all, ensure, private_mounts};
use crate::child::{Child, PATIENCE};
use crate::report::Outcome;

/// The directories of one overlay.
struct Scene {
    lower: PathBuf,
    lowest: PathBuf,
    upper: PathBuf,
    inner: PathBuf,
    merged: PathBuf,
}

impl Scene {
    fn new(work: &Path) -> Step<Self> {
        let dir = |name: &str| -> Step<PathBuf> {
            let path = work.join(name);
            fs::create_dir(&path).doing("create a directory")?;
            Ok(path)
        };
        private_mounts()?;
        Ok(Scene {
            lower: dir("lower")?,
            lowest: dir("lowest")?,
            upper: dir("upper")?,
            inner: dir("inner")?,
            merged: dir("merged")?,
        })
    }

    /// Mounts an overlay of two lower directories by the new mount API, and attaches it.
    fn mount(&self, lower: &Path, options: &[(&str, &str)]) -> Step {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).doing("open overlayfs")?;
        for path in [lower, &self.lowest] {
            fsconfig_set_string(&context, "lowerdir+", path).doing("add a lower directory with lowerdir+")?;
        }
        fsconfig_set_string(&context, "upperdir", &self.upper).doing("set the upper directory")?;
        fsconfig_set_string(&context, "workdir", &self.inner).doing("set the work directory")?;
        for (name, value) in options {
            match *value {
                "" => fsconfig_set_flag(&context, *name),
                value => fsconfig_set_string(&context, *name, value),
            }
            .doing(&format!("set the option {name}"))?;
        }
        fsconfig_create(&context).doing("create the overlay")?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
            .doing("mount the overlay")?;
        attach(&mount, &self.merged)
    }
}

fn attach(mount: &impl AsFd, at: &Path) -> Step {
    move_mount(mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing("attach a mount")
}

/// Reads through, copies up, removes, and looks what became of the layers.
pub(crate) fn overlay(work: &Path) -> Outcome {
    all((|| {
        let scene = Scene::new(work)?;
        fs::write(scene.lower.join("changed"), "old").doing("write")?;
        fs::write(scene.lower.join("removed"), "x").doing("write")?;
        fs::write(scene.lowest.join("deep"), "deep").doing("write")?;
        scene.mount(&scene.lower, &[])?;
        let read = |path: PathBuf| fs::read_to_string(path).doing("read");
        ensure(
            read(scene.merged.join("deep"))? == "deep",
            "a file of the lowest layer reads differently",
        )?;
        fs::write(scene.merged.join("changed"), "new").doing("write into a file of a lower layer")?;
        fs::remove_file(scene.merged.join("removed")).doing("remove a file of a lower layer")?;
        ensure(
            read(scene.lower.join("changed"))? == "old",
            "a write went into the lower layer",
        )?;
        ensure(
            read(scene.upper.join("changed"))? == "new",
            "a write is not in the upper layer",
        )?;
        let mark = fs::symlink_metadata(scene.upper.join("removed")).doing("look at the whiteout")?;
        ensure(
            mark.file_type().is_char_device() && mark.rdev() == 0,
            "a removal left no whiteout",
        )?;
        Ok("read, copy-up and removal are right".into())
    })())
}

/// Hard links survive copy-up (index), and directories of a lower layer can be renamed (redirect_dir).
pub(crate) fn overlay_options(work: &Path) -> Outcome {
    all((|| {
        let scene = Scene::new(work)?;
        fs::write(scene.lower.join("a"), "1").doing("write")?;
        fs::hard_link(scene.lower.join("a"), scene.lower.join("b")).doing("link")?;
        fs::create_dir(scene.lower.join("dir")).doing("create a directory")?;
        fs::write(scene.lower.join("dir/file"), "2").doing("write")?;
        let options = [
            ("index", "on"),
            ("redirect_dir", "on"),
            ("metacopy", "off"),
            ("xino", "on"),
            ("volatile", ""),
        ];
        scene.mount(&scene.lower, &options)?;
        let at = |name: &str| scene.merged.join(name);
        let inode = |name: &str| fs::metadata(at(name)).doing("stat").map(|m| m.ino());
        let before = inode("a")?;
        fs::write(at("a"), "changed").doing("write")?;
        ensure(
            fs::read_to_string(at("b")).doing("read")? == "changed",
            "index=on: a hard link broke at copy-up",
        )?;
        ensure(
            inode("a")? == before && inode("b")? == before,
            "xino=on: an inode number changed at copy-up",
        )?;
        fs::rename(at("dir"), at("renamed")).doing("redirect_dir=on: rename a directory of a lower layer")?;
        ensure(
            fs::read_to_string(at("renamed/file")).doing("read")? == "2",
            "a renamed directory lost its content",
        )?;
        Ok("hard links, inode numbers and renamed directories survive".into())
    })())
}

/// A layer owned by 0 is seen as owned by another user, through a mapped mount below an overlay.
pub(crate) fn idmapped(work: &Path) -> Outcome {
    const SHIFT: u32 = 100_000;
    all((|| {
        let scene = Scene::new(work)?;
        fs::write(scene.lower.join("file"), "x").doing("write")?;
        let mapped = work.join("mapped");
        fs::create_dir(&mapped).doing("create a directory")?;
        let (ready_r, ready_w) = rustix::pipe::pipe().doing("make a pipe")?;
        let holder = Child::new(&ForkOptions::default(), || {
            unshare_namespaces(UnshareFlags::NEWUSER)?;
            rustix::io::write(&ready_w, b"1")?;
            loop {
                std::thread::sleep(PATIENCE);
            }
        })
        .doing("make a child")?;
        drop(ready_w);
        ensure(
            rustix::io::read(&ready_r, &mut [0; 1]).doing("wait")? == 1,
            "a user namespace could not be made",
        )?;
        let proc = PathBuf::from(format!("/proc/{}", holder.pid.as_raw_nonzero()));
        for map in ["uid_map", "gid_map"] {
            fs::write(proc.join(map), format!("0 {SHIFT} 65536\n")).doing("write an id map")?;
        }
        let namespace = fs::File::open(proc.join("ns/user")).doing("open the user namespace")?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, &scene.lower, flags).doing("clone a mount")?;
        let change = MountChange {
            idmap: Some(namespace.as_fd()),
            ..MountChange::default()
        };
        change_mount(tree.as_fd(), change).doing("map the owners of a mount")?;
        attach(&tree, &mapped)?;
        scene.mount(&mapped, &[])?;
        let owner = fs::metadata(scene.merged.join("file")).doing("stat")?.uid();
        ensure(
            owner == SHIFT,
            &format!("the owner is {owner} where {SHIFT} was mapped"),
        )?;
        Ok("an overlay shows the mapped owner of a layer's file".into())
    })())
}
