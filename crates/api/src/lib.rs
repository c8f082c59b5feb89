//! Types of DeltaBox's HTTP API (JSON over a unix socket), shared by the daemon and the command line.
//!
//! Architecture invariant: data only. No transport, no behaviour beyond parsing names, so that any client can be
//! written against this file. Durations are milliseconds as floating point (`*_ms`), sizes are bytes (`*_bytes`).
#![forbid(unsafe_code)]

mod checkpoint;
mod error;
mod exec;
mod files;
mod fork;
mod sandbox;

pub use checkpoint::*;
pub use error::*;
pub use exec::*;
pub use files::*;
pub use fork::*;
pub use sandbox::*;

/// Version of the API: the first segment of every path.
pub const API_PREFIX: &str = "/v1";

/// Answer of `GET /v1/health`.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Health {
    pub version: String,
    pub pid: u32,
    pub home: String,
    pub store: StoreInfo,
    pub sandboxes: usize,
    /// What the machine does not offer, in words; empty when everything works.
    pub lost: Vec<String>,
}

/// The filesystem that holds the layers.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct StoreInfo {
    pub filesystem: String,
    pub reflink: bool,
    pub snapshots: bool,
    pub used_bytes: u64,
    pub total_bytes: u64,
}
