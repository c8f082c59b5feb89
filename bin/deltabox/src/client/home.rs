//! The state directory and the names in it that a client must know.

use std::path::{Path, PathBuf};

use deltabox_api::{ApiError, ErrorKind};

/// State directory of a daemon. Several daemons with different ones run side by side.
#[derive(Debug, Clone)]
pub struct Home(PathBuf);

impl Home {
    /// `DELTABOX_HOME`, or `/var/lib/deltabox` for root.
    pub fn from_env() -> Result<Self, ApiError> {
        match std::env::var_os("DELTABOX_HOME").filter(|home| !home.is_empty()) {
            Some(home) => Self::at(Path::new(&home)),
            None if rustix::process::geteuid().is_root() => Ok(Self(PathBuf::from("/var/lib/deltabox"))),
            None => Err(ApiError::new(
                ErrorKind::Unsupported,
                "deltabox needs root: it makes namespaces, mounts and cgroups",
            )
            .hint("run it with sudo, or set DELTABOX_HOME to the state directory of a daemon you may use")),
        }
    }

    /// This directory; made absolute, because the daemon runs elsewhere.
    pub fn at(path: &Path) -> Result<Self, ApiError> {
        let path = std::path::absolute(path).map_err(|error| {
            ApiError::new(
                ErrorKind::Usage,
                format!("cannot use the state directory '{}': {error}", path.display()),
            )
        })?;
        let home = Self(path);
        // sockaddr_un(7): 108 bytes with the terminating zero.
        let length = home.socket().as_os_str().len();
        if length > 107 {
            return Err(ApiError::new(
                ErrorKind::Usage,
                format!(
                    "the path of the socket '{}' is too long: {length} of 107 bytes",
                    home.socket().display()
                ),
            )
            .hint("set DELTABOX_HOME to a shorter path"));
        }
        Ok(home)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn socket(&self) -> PathBuf {
        self.0.join("daemon.sock")
    }

    pub fn log(&self) -> PathBuf {
        self.0.join("daemon.log")
    }

    /// Held by the daemon for as long as it lives.
    pub fn daemon_lock(&self) -> PathBuf {
        self.0.join("daemon.lock")
    }

    /// Held by a client while it starts the daemon.
    pub fn start_lock(&self) -> PathBuf {
        self.0.join("start.lock")
    }
}
