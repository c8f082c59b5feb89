//! A daemon of our own for one scenario, in a temporary state directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::{Client, Result};

/// Stopped and removed when dropped.
pub struct Daemon {
    home: tempfile::TempDir,
    process: Child,
    store: String,
}

impl Daemon {
    /// Starts the `deltabox` beside this program (build it in the same profile first), or `DELTABOX_BIN`.
    pub fn start(store: &str) -> Result<Self> {
        let home = tempfile::Builder::new()
            .prefix("deltabox-bench-")
            .tempdir_in("/var/tmp")?;
        let process = spawn(home.path(), store)?;
        let store = store.to_owned();
        let daemon = Self { home, process, store };
        daemon.wait_until_it_answers()?;
        Ok(daemon)
    }

    fn wait_until_it_answers(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.client().is_err() {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.home().join("daemon.log"))?;
                return Err(format!("the daemon does not answer: {log}").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends the daemon and starts another one on the same state; returns how long the start took in milliseconds.
    pub fn restart(&mut self) -> Result<f64> {
        self.stop();
        let start = Instant::now();
        self.process = spawn(self.home.path(), &self.store)?;
        self.wait_until_it_answers()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    fn stop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.process.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.process.wait();
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
        self.stop();
    }
}

fn spawn(home: &Path, store: &str) -> Result<Child> {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(home.join("daemon.log"))?;
    let mut command = Command::new(program()?);
    command
        .args(["serve", "--store", store])
        .env("DELTABOX_HOME", home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    Ok(command.spawn()?)
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
