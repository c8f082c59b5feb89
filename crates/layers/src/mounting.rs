//! Mounting an overlay from its layers, detached.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use deltabox_sys::fsids::with_file_owner;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use crate::error::{Error, Result};

/// Overlayfs takes 500 lower layers; some are left for the base.
pub(crate) const CHAIN_MAX: usize = 450;

/// The parts of an overlay. Paths are relative to `store`.
pub(crate) struct Parts<'a> {
    pub store: BorrowedFd<'a>,
    pub upper: &'a str,
    pub work: &'a str,
    /// Frozen layers, uppermost first.
    pub lowers: &'a [String],
    /// Directories of the base, uppermost first.
    pub base: &'a [BorrowedFd<'a>],
    /// Who owns what overlayfs makes for itself (host id of the sandbox's 0). The mount's maker cannot: its own id has
    /// no place in the layers' id mapping, and the overlay would come up read-only (`EOVERFLOW`).
    pub owner: u32,
}

/// Mounts the parts and returns the detached mount. It goes away with the last descriptor, if it was not attached.
///
/// - `index`: a file with several names stays one file when it is first written to.
/// - `redirect_dir`: directories of lower layers can be renamed.
/// - `metacopy=off`: a frozen layer holds whole files, which squash, diff and export rely on.
/// - `volatile`: no flushing at unmount (which took up to 180 ms); layers are made durable as a whole.
/// - `uuid=null`: no attribute is written to an upper just to name the mount.
///
/// Layers are named through `/proc/thread-self/fd`, because a value of fsconfig(2) is at most 255 bytes long and
/// must not tell the sandbox (in its mountinfo) where the store is. `FSCONFIG_SET_FD` would need Linux 6.13.
pub(crate) fn mount(parts: &Parts<'_>) -> Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(plain)?;
    let below = |path: &str| format!("/proc/thread-self/fd/{}/{path}", parts.store.as_raw_fd());
    let configure = || -> rustix::io::Result<OwnedFd> {
        fsconfig_set_string(&context, "source", "deltabox")?;
        for lower in parts.lowers {
            fsconfig_set_string(&context, "lowerdir+", below(lower))?;
        }
        for base in parts.base {
            fsconfig_set_string(
                &context,
                "lowerdir+",
                format!("/proc/thread-self/fd/{}", base.as_raw_fd()),
            )?;
        }
        fsconfig_set_string(&context, "upperdir", below(parts.upper))?;
        fsconfig_set_string(&context, "workdir", below(parts.work))?;
        for (key, value) in [
            ("index", "on"),
            ("redirect_dir", "on"),
            ("metacopy", "off"),
            ("xino", "auto"),
            ("uuid", "null"),
        ] {
            fsconfig_set_string(&context, key, value)?;
        }
        fsconfig_set_flag(&context, "volatile")?;
        with_file_owner(parts.owner, || fsconfig_create(&context)).map_err(errno)??;
        fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NODEV,
        )
    };
    configure().map_err(|error| Error::Mount {
        detail: detail(error, context.as_fd()),
        source: error.into(),
    })
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn plain(error: Errno) -> Error {
    let detail = match error {
        Errno::NODEV => "; the kernel has no overlayfs (CONFIG_OVERLAY_FS)".to_owned(),
        _ => String::new(),
    };
    Error::Mount {
        detail,
        source: error.into(),
    }
}

/// What the kernel says about a failed mount, and what the usual reasons are.
fn detail(error: Errno, context: BorrowedFd<'_>) -> String {
    let mut text = String::new();
    let mut buffer = [0u8; 1024];
    // Each read returns one message of the mount's own log; see fsopen(2).
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        text.push_str("; ");
        text.push_str(String::from_utf8_lossy(&buffer[..length]).trim());
    }
    text.push_str(match error {
        Errno::LOOP => "; the base and the store overlap",
        Errno::BUSY => "; a layer is still the writable layer of another mount",
        Errno::STALE => "; the writable layer was used with other layers before",
        Errno::PERM => "; this needs CAP_SYS_ADMIN and the store in this mount namespace",
        Errno::NOENT => "; a layer is missing, or /proc is not mounted",
        _ => "",
    });
    text
}

/// Another descriptor of the same open mount.
pub(crate) fn duplicate(mount: &OwnedFd) -> Result<OwnedFd> {
    mount.try_clone().map_err(|source: io::Error| Error::Mount {
        source,
        detail: String::new(),
    })
}
