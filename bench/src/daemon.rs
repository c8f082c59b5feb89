//! A daemon of our own for one scenario, in a temporary state directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::{Client, Result};

/// Stopped and removed when dropped.
pub struct Daemon {
    home: tempfile::TempDir,
    process: Child,
}

impl Daemon {
    /// Starts the `deltabox` beside this program (build it in the same profile first), or `DELTABOX_BIN`.
    pub fn start(store: &str) -> Result<Self> {
        let home = tempfile::Builder::new()
            .prefix("deltabox-bench-")
            .tempdir_in("/var/tmp")?;
        let program = program()?;
        let log = std::fs::File::create(home.path().join("daemon.log"))?;
        let process = Command::new(&program)
            .args(["serve", "--store", store])
            .env("DELTABOX_HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let daemon = Self { home, process };
        let deadline = Instant::now() + Duration::from_secs(20);
        while daemon.client().is_err() {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(daemon.home().join("daemon.log"))?;
                return Err(format!("the daemon does not answer: {log}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn client(&self) -> Result<Client> {
        Client::connect(&self.home().join("daemon.sock"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.process.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.process.wait();
    }
}

fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("DELTABOX_BIN") {
        return Ok(program.into());
    }
    let program = std::env::current_exe()?.with_file_name("deltabox");
    if program.exists() {
        Ok(program)
    } else {
        Err("build it first: cargo build --release -p deltabox".into())
    }
}
