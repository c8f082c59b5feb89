//! Directories seen through the id mapping of a sandbox.
//!
//! On disk, owner 0 of a layer is the sandbox's root. An idmapped mount (mount_setattr(2)) shows it as the host
//! user that the sandbox's user namespace maps to its 0, so one layer serves sandboxes with different ranges.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use deltabox_sys::mount::{MountChange, change_mount};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::error::{Context, Error, Result};

/// The ids of a sandbox.
#[derive(Clone, Copy, Debug)]
pub struct IdMap<'a> {
    /// Host id that is the sandbox's 0.
    pub first: u32,
    /// How many ids the sandbox has.
    pub count: u32,
    /// The sandbox's user namespace (`/proc/<pid>/ns/user`), which maps exactly these ids. Without it owners are
    /// shown as they are on disk.
    pub userns: Option<BorrowedFd<'a>>,
}

impl IdMap<'_> {
    /// Ids as on disk, for a sandbox without a user namespace.
    pub const IDENTITY: IdMap<'static> = IdMap {
        first: 0,
        count: u32::MAX,
        userns: None,
    };
}

/// A directory as one sandbox sees it. A path below `/proc/thread-self/fd/<fd>` leads into it.
#[derive(Debug)]
pub(crate) struct View {
    root: OwnedFd,
    attached: Option<PathBuf>,
    /// Host id that is the sandbox's 0.
    first: u32,
}

impl View {
    /// Who owns, on the host's side, what belongs to the sandbox's root.
    pub(crate) fn owner(&self) -> u32 {
        self.first
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(path) = &self.attached {
            let _ = unmount(path, UnmountFlags::DETACH);
            let _ = fs::remove_dir(path);
        }
    }
}

/// All views of a store. One mount serves all sandboxes with the same ids.
#[derive(Debug)]
pub(crate) struct Views {
    dir: PathBuf,
    counter: AtomicU64,
    known: Mutex<HashMap<(u32, u32, PathBuf), Weak<View>>>,
}

impl Views {
    /// `dir` holds the mount points, which have to be attached somewhere: before Linux 6.15 a layer on a mount that
    /// is in no mount namespace is refused.
    pub(crate) fn open(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).doing("creating", &dir)?;
        for entry in fs::read_dir(&dir).doing("listing", &dir)? {
            // Left by a daemon that was killed; its mounts went with its namespace.
            let path = entry.doing("listing", &dir)?.path();
            let _ = fs::remove_dir(path);
        }
        Ok(Self {
            dir,
            counter: AtomicU64::new(0),
            known: Mutex::default(),
        })
    }

    pub(crate) fn get(&self, path: &Path, ids: &IdMap<'_>) -> Result<Arc<View>> {
        let mut known = self.known.lock().expect("no panic while held");
        let key = match ids.userns {
            Some(_) => (ids.first, ids.count, path.to_path_buf()),
            None => (0, u32::MAX, path.to_path_buf()),
        };
        if let Some(view) = known.get(&key).and_then(Weak::upgrade) {
            return Ok(view);
        }
        let view = Arc::new(match ids.userns {
            Some(userns) => self.mapped(path, userns, ids.first)?,
            None => View {
                root: open_dir(path)?,
                attached: None,
                first: 0,
            },
        });
        known.retain(|_, view| view.strong_count() > 0);
        known.insert(key, Arc::downgrade(&view));
        Ok(view)
    }

    fn mapped(&self, path: &Path, userns: BorrowedFd<'_>, first: u32) -> Result<View> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(CWD, path, flags).doing("cloning the mount of", path)?;
        let change = MountChange {
            nodev: true,
            noatime: true,
            idmap: Some(userns),
            ..MountChange::default()
        };
        change_mount(mount.as_fd(), change).map_err(|source| Error::NotMappable {
            path: path.to_path_buf(),
            source,
        })?;
        let target = self
            .dir
            .join(self.counter.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir_all(&target).doing("creating", &target)?;
        move_mount(&mount, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .doing("attaching a mount at", &target)?;
        let mut view = View {
            root: mount,
            attached: Some(target.clone()),
            first,
        };
        view.root = open_dir(&target)?;
        Ok(view)
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).doing("opening", path)
}
