#![forbid(unsafe_code)]
//! DeltaCR: stops the processes of a sandbox, captures what changed, and puts live processes back in place.
//!
//! Architecture invariant: nothing here knows what a daemon, a layer or an image registry is. The sandbox around the
//! processes is a [`Host`]; one OS thread owns an engine, because ptrace belongs to a thread.

pub mod error;
pub mod host;
pub mod ids;
pub mod inject;
pub mod procfs;
pub mod stop;
pub mod tracee;

pub use error::TraceError;
pub use host::Host;
pub use ids::{Addr, HostPid, InsidePid};
pub use inject::{Arg, Batch, Buffer, CallId};
pub use stop::{Process, StopError, Thread, Tree, stop};
