//! DeltaState: sandboxes, their tree of checkpoints, and the one transaction over files and processes.
//!
//! Architecture invariant: no network and no async runtime. Requests reach a sandbox through a queue and are carried
//! out by the one OS thread that owns it ([`sandbox`]); callers wait for a reply in whatever way suits them.
#![forbid(unsafe_code)]

mod background;
mod base;
mod catalog;
mod clocks;
mod config;
mod contents;
mod engine;
mod error;
mod id;
mod ledger;
mod pool;
mod retention;
mod sandbox;
mod segments;
mod squasher;
mod steps;
mod tree;

pub use config::{EngineConfig, StoreChoice};
pub use engine::Engine;
pub use error::{Error, Result};
pub use id::{CheckpointId, ExecId, SandboxId};
pub use sandbox::{DurableReply, ExecEnd, ExecStarted, ExecStdio, Export, Handle, Notice, Sandbox};
