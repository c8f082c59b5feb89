//! Cells: the namespaces, cgroup and init (PID 1) in which one sandbox lives.
//!
//! Three kinds of process take part. The owner (a daemon, any number of threads) holds [`Spawner`] and [`Cell`]
//! values. The *spawner* is a single-threaded process with an almost empty mount namespace that clones inits and
//! reaps them. Each *init* is PID 1 of its cell: it attaches roots, starts commands and reaps.
//!
//! Architecture invariants: the owner never forks; init takes orders from its socket only, is undumpable and keeps
//! capabilities that commands do not have; everything ends when the owner's sockets close.
#![forbid(unsafe_code)]

pub mod cell;
pub mod cgroup;
mod error;
mod files;
mod init;
mod netlink;
pub mod pool;
mod protocol;
pub mod seccomp;
pub mod spawner;
pub mod users;
mod wire;

pub use cell::{Bind, Cell, Event, ExecSpec, ExitStatus, KillTarget, RootSpec, SkeletonSpec, Started, Stdio};
pub use cgroup::{CgroupDriver, Limits};
pub use error::{Error, Result};
pub use pool::CellPool;
pub use spawner::{CellSpec, Spawner};
