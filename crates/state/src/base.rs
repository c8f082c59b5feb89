//! Where a sandbox's root comes from: the host's own root, a directory, or an image.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use deltabox_api::{Mount, Root};
use deltabox_image::{ImageSource, ImportOptions};
use deltabox_layers::{Base, Mask, MaskEntry};

use crate::catalog::SandboxRecord;
use crate::engine::Shared;
use crate::error::{Error, Result};

/// The read-only part of a sandbox's root, and what its image says of commands.
pub(crate) struct PreparedBase {
    /// Lower directories, top first.
    pub layers: Vec<PathBuf>,
    pub env: BTreeMap<String, String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
}

/// Directories of the host whose content a sandbox on the host's root does not see: (path, mode, why).
const HIDDEN_DIRECTORIES: &[(&str, u32, &str)] = &[
    ("/root", 0o700, "home directory"),
    ("/home", 0o755, "home directories"),
    ("/tmp", 0o1777, "other programs' temporary files"),
    ("/var/tmp", 0o1777, "other programs' temporary files"),
    ("/run", 0o755, "sockets and state of the host's services"),
    ("/proc", 0o555, "mounted anew inside"),
    ("/sys", 0o555, "mounted anew inside"),
    ("/dev", 0o755, "mounted anew inside"),
    ("/mnt", 0o755, "other filesystems"),
    ("/media", 0o755, "other filesystems"),
    ("/boot", 0o755, "kernels, boot loader passwords"),
    ("/lost+found", 0o700, "fragments of anyone's files"),
    ("/etc/ssh", 0o755, "host keys"),
    ("/etc/ssl/private", 0o700, "private keys"),
    ("/etc/letsencrypt", 0o700, "private keys"),
    ("/etc/wireguard", 0o700, "private keys"),
    ("/etc/kubernetes", 0o700, "cluster credentials"),
    ("/etc/docker", 0o755, "registry credentials"),
    ("/etc/sudoers.d", 0o750, "who may become root"),
    ("/etc/NetworkManager", 0o755, "network passwords"),
    ("/var/lib/docker", 0o711, "other containers"),
    ("/var/lib/containerd", 0o711, "other containers"),
    ("/var/lib/kubelet", 0o700, "cluster credentials"),
    ("/var/lib/NetworkManager", 0o700, "network passwords"),
    ("/var/spool/cron", 0o755, "other users' jobs"),
    ("/var/spool/mail", 0o755, "mail"),
    ("/var/mail", 0o755, "mail"),
    ("/var/backups", 0o755, "copies of hidden files"),
    ("/var/log", 0o755, "the host's logs"),
];

/// Files of the host that a sandbox on the host's root does not see: (path, why).
const HIDDEN_FILES: &[(&str, &str)] = &[
    ("/etc/shadow", "password hashes"),
    ("/etc/shadow-", "password hashes"),
    ("/etc/gshadow", "password hashes"),
    ("/etc/gshadow-", "password hashes"),
    ("/etc/sudoers", "who may become root"),
    ("/etc/krb5.keytab", "Kerberos keys"),
    ("/etc/machine-id", "identity of the host"),
];

/// What hidden directories of the host have inside all the same.
const WITHIN_HIDDEN: &[(&str, u32)] = &[("/run/shm", 0o1777), ("/run/lock", 0o1777)];

/// Directories every root has, whatever it came with.
const SCAFFOLD: &[(&str, u32)] = &[
    ("/proc", 0o555),
    ("/sys", 0o555),
    ("/dev", 0o755),
    ("/tmp", 0o1777),
    ("/run", 0o755),
    ("/run/shm", 0o1777),
    ("/root", 0o700),
    ("/var", 0o755),
    ("/var/tmp", 0o1777),
    ("/etc", 0o755),
];

/// Finds or makes the lower directories of a root.
pub(crate) fn prepare(shared: &Shared, root: &Root) -> Result<PreparedBase> {
    let plain = |layers| PreparedBase {
        layers,
        env: BTreeMap::new(),
        workdir: None,
        user: None,
    };
    let mut base = match root {
        Root::Host => plain(vec![PathBuf::from("/")]),
        Root::Directory { path } => plain(vec![directory(path)?]),
        Root::Image { reference } => image(shared, reference)?,
    };
    // On the host's root the mask brings these directories; a layer inside another one is refused by overlayfs.
    if *root != Root::Host {
        base.layers.push(scaffold(shared)?);
    }
    Ok(base)
}

/// The base of a sandbox as the file half wants it.
pub(crate) fn of_record(shared: &Shared, record: &SandboxRecord) -> Base {
    let mask = if record.root == Root::Host {
        host_mask(&shared.config.home)
    } else {
        Mask::default()
    };
    Base {
        layers: record.base.clone(),
        mask,
    }
}

/// What a sandbox on the host's root does not see of it.
fn host_mask(home: &Path) -> Mask {
    let directory = |path: &Path, mode| MaskEntry::Directory {
        path: path.into(),
        mode,
        uid: 0,
        gid: 0,
    };
    let mut entries = Vec::new();
    for &(path, mode, _) in HIDDEN_DIRECTORIES {
        if Path::new(path).symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            entries.push(directory(Path::new(path), mode));
        }
    }
    let covered = |path: &Path| {
        HIDDEN_DIRECTORIES
            .iter()
            .any(|(hidden, _, _)| path.starts_with(hidden))
    };
    if !covered(home) {
        entries.push(directory(home, 0o700));
    }
    entries.extend(
        WITHIN_HIDDEN
            .iter()
            .map(|&(path, mode)| directory(Path::new(path), mode)),
    );
    for (path, _) in HIDDEN_FILES {
        if Path::new(path).symlink_metadata().is_ok() {
            entries.push(MaskEntry::Hide { path: path.into() });
        }
    }
    let content = b"127.0.0.1 localhost\n::1 localhost ip6-localhost\n".to_vec();
    entries.push(MaskEntry::File {
        path: "/etc/hosts".into(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        content,
    });
    Mask { entries }
}

/// A directory with what every root must have; below all other layers, so that it only fills gaps.
fn scaffold(shared: &Shared) -> Result<PathBuf> {
    let path = shared.config.home.join("scaffold");
    if path.exists() {
        return Ok(path);
    }
    let partial = shared.config.home.join("scaffold.new");
    let make = || -> std::io::Result<()> {
        std::fs::create_dir_all(&partial)?;
        std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o755))?;
        for (directory, mode) in SCAFFOLD {
            let directory = partial.join(directory.trim_start_matches('/'));
            std::fs::create_dir_all(&directory)?;
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(*mode))?;
        }
        std::fs::rename(&partial, &path)
    };
    make().map_err(|error| Error::io("cannot make the scaffold of root directories", &error))?;
    Ok(path)
}

fn directory(path: &str) -> Result<PathBuf> {
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err(Error::usage(format!(
            "the root directory {} is not an absolute path",
            path.display()
        )));
    }
    match std::fs::metadata(&path) {
        Ok(meta) if meta.is_dir() => Ok(path
            .canonicalize()
            .map_err(|e| Error::io("cannot resolve the root directory", &e))?),
        Ok(_) => Err(Error::usage(format!("{} is not a directory", path.display()))
            .hint("for an image tar use --image")),
        Err(error) => Err(Error::not_found(format!(
            "cannot use {} as a root: {error}",
            path.display()
        ))),
    }
}

fn image(shared: &Shared, reference: &str) -> Result<PreparedBase> {
    let source = ImageSource::parse(reference).map_err(Error::from)?;
    let imported = deltabox_image::import(
        &source,
        &shared.config.home.join("images"),
        &ImportOptions::default(),
    )?;
    for warning in &imported.warnings {
        tracing::warn!(image = reference, "{warning}");
    }
    let config = imported.config;
    let env = config
        .env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let (workdir, user) = (given(config.workdir), given(config.user));
    Ok(PreparedBase {
        layers: imported.layers,
        env: env.collect(),
        workdir,
        user,
    })
}

/// Mounts name existing absolute paths of the host and absolute places inside that hide nothing the sandbox needs.
pub(crate) fn check_mounts(mounts: &[Mount]) -> Result<()> {
    for Mount { source, target, .. } in mounts {
        if !Path::new(source).is_absolute() || !Path::new(target).is_absolute() {
            return Err(Error::usage(format!(
                "mount {source}:{target}: both paths have to be absolute"
            )));
        }
        if !Path::new(source).exists() {
            return Err(Error::not_found(format!(
                "mount {source}:{target}: {source} does not exist on the host"
            )));
        }
        let reserved = ["/", "/proc", "/sys", "/dev"];
        let inside = |root: &&str| {
            Path::new(target) == Path::new(root) || (**root != *"/" && Path::new(target).starts_with(root))
        };
        if reserved.iter().any(inside) || target.contains("..") {
            return Err(Error::usage(format!(
                "mount {source}:{target}: that place inside is the sandbox's own"
            )));
        }
    }
    Ok(())
}
