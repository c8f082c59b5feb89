//! Owners: on disk the sandbox's, in the mount the host's.

mod support;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use deltabox_layers::{Base, FileState, IdMap, Mask, MaskEntry, Restored, StoreKind, Way};
use deltabox_sys::fsids::with_file_owner;
use rustix::fs::{XattrFlags, lsetxattr};
use support::{STORES, Sandbox, isolated, open, small_base};

const FIRST: u32 = 300_000;

/// A process in a user namespace of its own, which maps the ids from `FIRST` on.
struct Namespace(Child);

impl Namespace {
    fn create() -> Self {
        let child = Command::new("unshare")
            .args(["--user", "sh", "-c", "echo ready; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut namespace = Self(child);
        use std::io::Read;
        namespace
            .0
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut [0; 6])
            .unwrap();
        for map in ["uid_map", "gid_map"] {
            fs::write(
                format!("/proc/{}/{map}", namespace.0.id()),
                format!("0 {FIRST} 65536"),
            )
            .unwrap();
        }
        namespace
    }

    fn open(&self) -> fs::File {
        fs::File::open(format!("/proc/{}/ns/user", self.0.id())).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn owner(path: PathBuf) -> (u32, u32) {
    let metadata = path.symlink_metadata().unwrap();
    (metadata.uid(), metadata.gid())
}

fn each(test: impl Fn(&Path, StoreKind, Way) + Send + Copy + 'static) {
    for (kind, ways) in STORES {
        for way in ways {
            isolated(move |dir| test(dir, kind, *way));
        }
    }
}

fn mask() -> Mask {
    let path = PathBuf::from;
    Mask {
        entries: vec![
            MaskEntry::Hide {
                path: path("/etc/shadow"),
            },
            MaskEntry::Directory {
                path: path("/tmp"),
                mode: 0o1777,
                uid: 0,
                gid: 0,
            },
            MaskEntry::Directory {
                path: path("/root"),
                mode: 0o700,
                uid: 0,
                gid: 0,
            },
            MaskEntry::File {
                path: path("/etc/hostname"),
                mode: 0o644,
                uid: 0,
                gid: 0,
                content: b"box\n".to_vec(),
            },
            MaskEntry::Link {
                path: path("/etc/mtab"),
                target: path("/proc/mounts"),
            },
        ],
    }
}

#[test]
fn the_sandbox_owns_its_files_and_the_disk_knows_no_range() {
    each(|dir, kind, way| {
        let namespace = Namespace::create();
        let userns = namespace.open();
        let ids = IdMap {
            first: FIRST,
            count: 65536,
            userns: Some(userns.as_fd()),
        };
        let base_dir = small_base(dir);
        for (name, content) in [
            ("etc/shadow", "secret"),
            ("tmp/secret", "x"),
            ("etc/hostname", "host\n"),
        ] {
            fs::write(base_dir.join(name), content).unwrap();
        }
        fs::hard_link(base_dir.join("etc/passwd"), base_dir.join("etc/passwd-")).unwrap();
        chown(base_dir.join("home/user/notes"), Some(1000), Some(1000)).unwrap();
        let base = Base {
            layers: vec![base_dir],
            mask: mask(),
        };
        let store = open(dir, kind);
        let files = FileState::create(&store, base.clone(), &ids).unwrap();
        let mut sandbox = Sandbox::over(files, dir, "root");

        assert!(!sandbox.has("etc/shadow") && !sandbox.has("tmp/secret") && !sandbox.has("root/x"));
        assert_eq!(sandbox.read("etc/hostname"), "box\n");
        assert_eq!(
            fs::metadata(sandbox.path("tmp")).unwrap().permissions().mode() & 0o7777,
            0o1777
        );
        assert_eq!(owner(sandbox.path("etc/passwd")), (FIRST, FIRST));
        assert_eq!(owner(sandbox.path("root")), (FIRST, FIRST));
        assert_eq!(
            owner(sandbox.path("home/user/notes")),
            (FIRST + 1000, FIRST + 1000)
        );

        // As a program of the sandbox's root would.
        with_file_owner(FIRST, || {
            sandbox.write("new", "1");
            sandbox.write("etc/passwd", "1");
            sandbox.write("home/user/notes", "1");
            fs::create_dir(sandbox.path("tmp/dir")).unwrap();
        })
        .unwrap();
        chown(sandbox.path("new"), Some(FIRST + 7), Some(FIRST + 8)).unwrap();
        let acl = acl(FIRST + 55);
        lsetxattr(
            sandbox.path("new"),
            "system.posix_acl_access",
            &acl,
            XattrFlags::empty(),
        )
        .unwrap();
        let one = sandbox.freeze(way);
        assert_eq!(sandbox.read("etc/passwd-"), "1", "the other name too");
        let view = store.view(&base, &one).unwrap();
        let entry = view.entry(Path::new("/new")).unwrap().unwrap();
        assert_eq!((entry.uid, entry.gid), (7, 8));
        let entry = view.entry(Path::new("/etc/passwd")).unwrap().unwrap();
        assert_eq!((entry.uid, entry.names), (0, 2));

        with_file_owner(FIRST, || {
            fs::remove_file(sandbox.path("new")).unwrap();
            fs::remove_dir(sandbox.path("tmp/dir")).unwrap();
            sandbox.write("tmp/dir", "a file now");
        })
        .unwrap();
        for path in ["/new", "/tmp/dir"] {
            assert_eq!(
                sandbox.files.restore_path(&view, Path::new(path)).unwrap(),
                Restored::Copied
            );
        }
        assert_eq!(owner(sandbox.path("new")), (FIRST + 7, FIRST + 8));
        assert_eq!(
            support::scan::xattrs(&sandbox.path("new"))["system.posix_acl_access"],
            acl
        );
        assert!(sandbox.path("tmp/dir").is_dir());
        assert_eq!(owner(sandbox.path("tmp/dir")), (FIRST, FIRST));
        sandbox.rollback(&one);
        assert_eq!(owner(sandbox.path("new")), (FIRST + 7, FIRST + 8));
        assert_eq!(sandbox.read("home/user/notes"), "1");

        // Another range sees the same state as its own.
        let as_on_disk = Sandbox::fork(&store, dir, "disk", base.clone(), &one);
        assert_eq!(owner(as_on_disk.path("new")), (7, 8));
        assert!(!as_on_disk.has("etc/shadow"), "the mask is part of the state");
    });
}

/// A user with all rights beside the owner.
fn acl(user: u32) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 7, user),
        (4, 4, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 4, u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}
