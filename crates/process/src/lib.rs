#![forbid(unsafe_code)]
//! DeltaCR: stops the processes of a sandbox, captures what changed, and puts live processes back in place.
//!
//! Architecture invariant: nothing here knows what a daemon, a layer or an image registry is. The sandbox around the
//! processes is a [`Host`]; one OS thread owns an engine, because ptrace belongs to a thread.

mod ahead;
mod capture;
pub mod create;
pub mod credentials;
pub mod descriptor;
pub mod engine;
pub mod error;
mod hold;
pub mod host;
mod idle;
pub mod ids;
pub mod image;
pub mod inject;
pub mod interrupted;
pub mod ipc;
pub mod job_control;
pub mod layout;
pub mod memory;
pub mod plan;
pub mod process;
pub mod procfs;
pub mod restore;
pub mod shared;
pub mod stop;
pub mod survey;
pub mod task;
pub mod thread;
pub mod timer;
pub mod tracee;
pub mod zombie;

#[cfg(test)]
mod test_images;

pub use engine::{Engine, Stopped};
pub use error::TraceError;
pub use host::Host;
pub use ids::{Addr, FirstId, HostPid, InsidePid};
pub use image::{Image, ProcessImage, Report};
pub use inject::{Arg, Batch, Buffer, CallId};
pub use memory::page_store::{PageRef, PageStore, WeakPage};
pub use memory::page_tree::PageTree;
pub use restore::RestoreError;
pub use stop::{Process, StopError, Thread, Tree, stop};
pub use survey::{Refusal, SurveyError};
