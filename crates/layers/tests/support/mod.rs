//! What the tests share: a mount namespace of their own, a store in it, and a sandbox root to work in.
#![allow(dead_code)]

pub mod changes;
pub mod ops;
pub mod rng;
pub mod scan;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use deltabox_layers::{
    Base, Error, FileState, Freeze, Frozen, IdMap, Retired, Store, StoreKind, StoreOptions, Way,
};
use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount};
use rustix::thread::UnshareFlags;

/// Runs `test` in a thread with a mount namespace of its own, which takes everything mounted in it along when the
/// thread ends, also when it panics. `test` gets an empty directory.
pub fn isolated(test: impl FnOnce(&Path) + Send + 'static) {
    let dir = tempfile::tempdir().unwrap();
    isolated_in(dir.path(), test);
}

/// The same in a directory that is there.
pub fn isolated_in(dir: &Path, test: impl FnOnce(&Path) + Send + 'static) {
    let path = dir.to_path_buf();
    let thread = std::thread::spawn(move || {
        deltabox_sys::clone::unshare_namespaces(UnshareFlags::NEWNS).expect("this test has to run as root");
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        test(&path);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub fn open(dir: &Path, kind: StoreKind) -> Store {
    let options = StoreOptions {
        dir: dir.join("store"),
        kind,
        image_size: 2 << 30,
        bases: Vec::new(),
    };
    // A store that was dropped is held until its background work has let go of it.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        match Store::open(options.clone()) {
            Err(deltabox_layers::Error::StoreBusy(_)) if std::time::Instant::now() < deadline => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            opened => return opened.unwrap(),
        }
    }
}

/// A base with a little of everything.
pub fn small_base(dir: &Path) -> PathBuf {
    let base = dir.join("base");
    for sub in ["etc", "usr/bin", "home/user", "tmp"] {
        std::fs::create_dir_all(base.join(sub)).unwrap();
    }
    std::fs::write(base.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    std::fs::write(base.join("usr/bin/tool"), vec![7u8; 10_000]).unwrap();
    std::fs::write(base.join("home/user/notes"), "from the base").unwrap();
    base
}

/// A file state with its mount attached, as a sandbox would have it.
pub struct Sandbox {
    pub root: PathBuf,
    pub files: FileState,
}

impl Sandbox {
    pub fn create(store: &Store, dir: &Path, name: &str, base: Base) -> Self {
        Self::over(
            FileState::create(store, base, &IdMap::IDENTITY).unwrap(),
            dir,
            name,
        )
    }

    pub fn fork(store: &Store, dir: &Path, name: &str, base: Base, frozen: &Frozen) -> Self {
        Self::over(
            FileState::from_frozen(store, base, frozen, &IdMap::IDENTITY).unwrap(),
            dir,
            name,
        )
    }

    pub fn over(files: FileState, dir: &Path, name: &str) -> Self {
        let root = dir.join(name);
        std::fs::create_dir(&root).unwrap();
        attach(&files.mount().unwrap(), &root);
        Self { root, files }
    }

    pub fn freeze(&mut self, way: Way) -> Frozen {
        self.freeze_fully(way).frozen
    }

    pub fn freeze_fully(&mut self, way: Way) -> Freeze {
        self.try_freeze(way).unwrap()
    }

    pub fn try_freeze(&mut self, way: Way) -> Result<Freeze, Error> {
        let mut freeze = self.files.freeze(way)?;
        if let Some(mount) = &freeze.mount {
            self.replace(mount, freeze.retired.take());
        }
        Ok(freeze)
    }

    pub fn rollback(&mut self, frozen: &Frozen) {
        let switched = self.files.rollback(frozen).unwrap();
        self.replace(&switched.mount, Some(switched.retired));
    }

    fn replace(&self, mount: &OwnedFd, retired: Option<Retired>) {
        unmount(&self.root, UnmountFlags::DETACH).unwrap();
        attach(mount, &self.root);
        drop(retired);
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub fn write(&self, path: &str, content: &str) {
        std::fs::write(self.path(path), content).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    pub fn has(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = unmount(&self.root, UnmountFlags::DETACH);
    }
}

pub fn attach(mount: &OwnedFd, at: &Path) {
    move_mount(mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
}

/// Every kind of store, and the ways to freeze it has.
pub const STORES: [(StoreKind, &[Way]); 4] = [
    (StoreKind::Btrfs, &[Way::Switch, Way::Snapshot]),
    (StoreKind::Xfs, &[Way::Switch]),
    (StoreKind::Ext4, &[Way::Switch]),
    (StoreKind::Directory, &[Way::Switch]),
];
