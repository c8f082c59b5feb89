//! Attaching a root filesystem, and putting another in its place.

use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, chmodat, fstat, mkdirat, openat, openat2, statat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
use rustix::process::{fchdir, pivot_root};

use super::furniture::Furniture;
use crate::error::{Context, Failure};

/// The root that is attached now.
#[derive(Default)]
pub(super) struct Root {
    current: Option<OwnedFd>,
    /// Mounts given with the root: where, and the mount.
    binds: Vec<(String, OwnedFd)>,
    /// The last root lies on top of the current one's mount until it is let go.
    old_attached: bool,
}

/// One mount on its way to the new root.
struct Move<'a> {
    mount: &'a OwnedFd,
    target: OwnedFd,
    shown: &'a str,
}

impl Root {
    pub(super) fn is_attached(&self) -> bool {
        self.current.is_some()
    }

    /// The first root, with the mounts that are to be in it and in its successors.
    pub(super) fn attach(
        &mut self,
        furniture: &Furniture,
        mount: OwnedFd,
        targets: Vec<String>,
        binds: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        if self.current.is_some() || targets.len() != binds.len() {
            return Err(Failure {
                what: "attach a first root".into(),
                errno: libc::EBUSY,
            });
        }
        self.binds = targets.into_iter().zip(binds).collect();
        let switched = self.switch(furniture, mount);
        if switched.is_err() {
            self.binds.clear();
        }
        switched
    }

    /// Puts `mount` in the place of the root: moves the furniture and the binds over, then pivots, which moves the
    /// root and working directory of every process that has the old root (man 2 pivot_root). The old root stays
    /// hidden below until [`Self::drop_old`]. On failure everything is where it was.
    pub(super) fn switch(&mut self, furniture: &Furniture, mount: OwnedFd) -> Result<(), Failure> {
        self.drop_old();
        let moves = self.plan(furniture, &mount)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&mount, "", CWD, "/", flags).inside("attach the new root")?;
        let mut done = 0;
        let mut result = Ok(());
        for step in &moves {
            let both = flags | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            result = move_mount(step.mount, "", &step.target, "", both)
                .inside(format!("move {} to the new root", step.shown));
            if result.is_err() {
                break;
            }
            done += 1;
        }
        if result.is_ok() {
            result = fchdir(&mount)
                .and_then(|()| pivot_root(".", "."))
                .inside("switch to the new root");
        }
        if let Err(failure) = result {
            self.undo(&moves[..done], &mount);
            return Err(failure);
        }
        drop(moves);
        self.old_attached = true;
        self.current = Some(mount);
        Ok(())
    }

    /// Finds or makes every place in the new root before anything is moved.
    fn plan<'a>(&'a self, furniture: &'a Furniture, mount: &OwnedFd) -> Result<Vec<Move<'a>>, Failure> {
        let mut moves = Vec::new();
        for (name, furniture) in &furniture.mounts {
            moves.push(Move {
                mount: furniture,
                target: place(mount, name, true)?,
                shown: name,
            });
        }
        // Shared memory is in the layers, so that checkpoints carry it.
        shared_memory_dir(mount)?;
        for (target, bind) in &self.binds {
            let is_dir = FileType::from_raw_mode(fstat(bind).inside("look at a bind")?.st_mode).is_dir();
            moves.push(Move {
                mount: bind,
                target: place(mount, target, is_dir)?,
                shown: target,
            });
        }
        Ok(moves)
    }

    /// Moves back what was moved; the old root's places are still there.
    fn undo(&self, moved: &[Move<'_>], mount: &OwnedFd) {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        for step in moved.iter().rev() {
            let home = match &self.current {
                Some(root) => find(root, step.shown),
                None => openat(
                    CWD,
                    format!("/cell/{}", step.shown),
                    OFlags::PATH | OFlags::CLOEXEC,
                    Mode::empty(),
                ),
            };
            if let Ok(home) = home {
                // Nothing better can be done if this fails: the caller learns of the first failure.
                let _ = move_mount(step.mount, "", &home, "", flags);
            }
        }
        // The new root is on top of "/", which only "." of a process inside it reaches.
        if fchdir(mount).is_ok() {
            let _ = unmount(".", UnmountFlags::DETACH);
        }
        let _ = rustix::process::chdir("/");
    }

    /// Lets go of the replaced root. Apart from the switch because it waits for an RCU grace period.
    pub(super) fn drop_old(&mut self) {
        if !self.old_attached {
            return;
        }
        self.old_attached = false;
        // It is mounted on top of the current root, where pivot_root(".", ".") put it; lookups do not see it.
        if let Some(current) = &self.current
            && fchdir(current).is_ok()
        {
            // A failure leaves it hidden until the cell ends.
            let _ = unmount(".", UnmountFlags::DETACH);
            let _ = rustix::process::chdir("/");
        }
    }
}

/// A path of the new root, which may be hostile: symbolic links are taken as seen from inside it.
fn find(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    openat2(
        root,
        if path.is_empty() { "." } else { path },
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Finds a directory or file of the new root, or makes it, parents included.
fn place(root: &OwnedFd, path: &str, is_dir: bool) -> Result<OwnedFd, Failure> {
    let path = path.trim_matches('/');
    let found = match find(root, path) {
        Err(Errno::NOENT) => make(root, path, is_dir),
        other => other.inside(format!("look up /{path} in the root")),
    }?;
    let found_dir = FileType::from_raw_mode(fstat(&found).inside("look at a path")?.st_mode).is_dir();
    match (is_dir, found_dir) {
        (true, false) => Err(Failure {
            what: format!("mount on /{path} of the root"),
            errno: libc::ENOTDIR,
        }),
        (false, true) => Err(Failure {
            what: format!("mount a file on /{path} of the root"),
            errno: libc::EISDIR,
        }),
        _ => Ok(found),
    }
}

fn make(root: &OwnedFd, path: &str, is_dir: bool) -> Result<OwnedFd, Failure> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = if parent.is_empty() {
        find(root, "").inside("open the root")?
    } else {
        place(root, parent, true)?
    };
    let made = if is_dir {
        mkdirat(&parent, name, Mode::from_raw_mode(0o755))
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
    };
    made.inside(format!("make /{path} in the root"))?;
    find(root, path).inside(format!("look up /{path} in the root"))
}

/// /run/shm, where /dev/shm leads: a sticky directory open to everyone. Debian has a link there, back to /dev/shm.
fn shared_memory_dir(root: &OwnedFd) -> Result<(), Failure> {
    let run = place(root, "run", true)?;
    match statat(&run, "shm", AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if FileType::from_raw_mode(found.st_mode).is_dir() => return Ok(()),
        Ok(_) => unlinkat(&run, "shm", AtFlags::empty()).inside("replace /run/shm in the root")?,
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error).inside("look at /run/shm in the root"),
    }
    mkdirat(&run, "shm", Mode::from_raw_mode(0o1777)).inside("make /run/shm in the root")?;
    // The mask of this process took bits away.
    chmodat(&run, "shm", Mode::from_raw_mode(0o1777), AtFlags::empty()).inside("open /run/shm to everyone")
}
