//! Start, life and end of the daemon.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use deltabox_api::{ApiError, ErrorKind};
use deltabox_state::{Engine, EngineConfig, StoreChoice};
use rustix::fs::FlockOperation;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::UnshareFlags;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tracing_subscriber::EnvFilter;

use super::exec::Commands;
use super::routes;

/// How the daemon is started.
pub struct ServeOptions {
    pub home: PathBuf,
    pub store: StoreChoice,
    /// Size of a store image that has to be made.
    pub store_bytes: Option<u64>,
    pub pool_size: Option<usize>,
}

/// What all handlers share.
pub struct Daemon {
    pub home: PathBuf,
    pub engine: Engine,
    pub commands: Arc<Commands>,
    pub stop: Notify,
}

/// Runs the daemon until it is told to stop. Removes its socket and everything it holds before it returns.
pub fn serve(options: ServeOptions) -> Result<(), ApiError> {
    start_log();
    let home = prepare_home(&options.home)?;
    // Held until the process ends; the kernel releases it after a crash.
    let _lock = lock(&home)?;
    // Before any thread exists: mounts of this daemon are nobody else's business and end with it.
    isolate_mounts()?;
    raise_descriptor_limit();
    let mut config = EngineConfig::new(home.clone(), own_program()?);
    config.store = options.store;
    config.store_image_bytes = options.store_bytes.unwrap_or(config.store_image_bytes);
    config.pool_size = options.pool_size.unwrap_or(config.pool_size);
    let engine = Engine::open(config).map_err(deltabox_state::Error::into_api)?;
    let daemon = Arc::new(Daemon {
        home: home.clone(),
        engine,
        commands: Arc::default(),
        stop: Notify::new(),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| failure("cannot start the runtime", &error))?;
    let result = runtime.block_on(listen(&home, daemon.clone()));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    daemon.engine.shutdown();
    let _ = std::fs::remove_file(home.join("daemon.sock"));
    let _ = std::fs::remove_file(home.join("daemon.pid"));
    result
}

/// Log lines go to standard error; `DELTABOX_LOG` filters them.
fn start_log() {
    let filter = EnvFilter::try_from_env("DELTABOX_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).init();
}

async fn listen(home: &Path, daemon: Arc<Daemon>) -> Result<(), ApiError> {
    let path = home.join("daemon.sock");
    // A socket left by a crash; the lock says that nobody serves it.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)
        .map_err(|e| failure(&format!("cannot listen on {}", path.display()), &e))?;
    // Whoever can talk to the daemon is root on this machine.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| failure("cannot protect the socket", &e))?;
    write_pid(home)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| failure("cannot watch signals", &e))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| failure("cannot watch signals", &e))?;
    let stopping = daemon.clone();
    let server = axum::serve(listener, routes::router(daemon)).into_future();
    tokio::select! {
        result = server => result.map_err(|error| failure("the server failed", &error)),
        () = stopping.stop.notified() => {
            // The answer to the request that stops us is still on its way.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            Ok(())
        }
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

fn failure(what: &str, error: &std::io::Error) -> ApiError {
    deltabox_state::Error::io(what, error).into_api()
}

fn prepare_home(home: &Path) -> Result<PathBuf, ApiError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ApiError::new(
            ErrorKind::Unsupported,
            "the daemon has to run as root: it makes namespaces, mounts and cgroups",
        )
        .hint("run it with sudo; programs inside a sandbox are not root on this machine"));
    }
    let unusable = |error: std::io::Error| {
        ApiError::new(
            ErrorKind::Unsupported,
            format!("cannot use the state directory {}: {error}", home.display()),
        )
        .hint("set DELTABOX_HOME to a directory that can be written")
    };
    std::fs::create_dir_all(home).map_err(unusable)?;
    std::fs::set_permissions(home, std::fs::Permissions::from_mode(0o700)).map_err(unusable)?;
    home.canonicalize().map_err(unusable)
}

fn lock(home: &Path) -> Result<File, ApiError> {
    let path = home.join("daemon.lock");
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|e| failure("cannot open the lock", &e))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        ApiError::new(
            ErrorKind::Conflict,
            format!("another daemon serves {}", home.display()),
        )
        .hint("stop it with `deltabox stop`, or set another DELTABOX_HOME")
    })?;
    Ok(file)
}

/// Each sandbox takes some ten descriptors, and more while it is stopped for a checkpoint.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // The soft limit may always be raised to the hard one (man 2 getrlimit); if not, it stays as it was.
    let _ = setrlimit(Resource::Nofile, raised);
    // With threads, each doubling of the table makes its cause wait for all processors (an RCU grace period, often
    // 10 ms), and that would be somebody who has stopped a sandbox.
    let _ = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 4095);
}

fn isolate_mounts() -> Result<(), ApiError> {
    let isolate = || -> std::io::Result<()> {
        deltabox_sys::clone::unshare_namespaces(UnshareFlags::NEWNS)?;
        // What the host unmounts goes away here too; nothing goes from here to the host.
        let down = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        Ok(mount_change("/", down)?)
    };
    isolate().map_err(|error| {
        ApiError::new(
            ErrorKind::Unsupported,
            format!("cannot make a private mount namespace: {error}"),
        )
        .hint("the daemon needs CAP_SYS_ADMIN: run it as root, outside of an unprivileged container")
    })
}

/// This program's file even if it was replaced on disk meanwhile.
fn own_program() -> Result<PathBuf, ApiError> {
    std::env::current_exe().map_err(|error| failure("cannot find this program's file", &error))
}

fn write_pid(home: &Path) -> Result<(), ApiError> {
    let write = || -> std::io::Result<()> {
        let partial = home.join("daemon.pid.new");
        File::create(&partial)?.write_all(format!("{}\n", std::process::id()).as_bytes())?;
        std::fs::rename(partial, home.join("daemon.pid"))
    };
    write().map_err(|error| failure("cannot write daemon.pid", &error))
}
