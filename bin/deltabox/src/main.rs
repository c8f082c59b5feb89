//! DeltaBox: one program that is command line, daemon, and the daemon's helpers.
//!
//! Architecture invariant: which of them it becomes is decided on the first argument, before any of their libraries
//! is touched, because the helpers must be single-threaded and the command line must start in a few milliseconds.
#![forbid(unsafe_code)]

mod cli;
mod client;

fn main() {
    // Hidden entry points of the daemon's helpers (`__spawner`, `__doctor-probe`) are matched here on `argv[1]`.
    std::process::exit(cli::main());
}
