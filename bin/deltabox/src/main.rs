//! DeltaBox: one program that is command line, daemon, and the daemon's helpers.
//!
//! Architecture invariant: which of them it becomes is decided on the first argument, before any of their libraries
//! is touched, because the helpers must be single-threaded and the command line must start in a few milliseconds.
#![forbid(unsafe_code)]

mod cli;
mod client;
mod daemon;
mod inside;
mod pack;

fn main() {
    let first = std::env::args_os().nth(1);
    let code = match first.as_ref().and_then(|argument| argument.to_str()) {
        Some("__spawner") => deltabox_isolation::spawner::main(),
        Some(deltabox_doctor::PROBE_ARGUMENT) => {
            deltabox_doctor::probe_main(&std::env::args().nth(2).unwrap_or_default())
        }
        Some("__files") => inside::main(),
        _ => cli::main(),
    };
    std::process::exit(code);
}
