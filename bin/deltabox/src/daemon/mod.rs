//! The daemon: HTTP over a unix socket in front of the engine. Thin: parsing, streaming and error mapping only.

mod exec;
mod routes;
mod server;
mod transfer;
mod wire;

pub use server::{ServeOptions, serve};
