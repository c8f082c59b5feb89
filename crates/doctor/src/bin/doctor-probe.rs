//! Runs one probe: the entry point that tests use instead of the whole program.
#![forbid(unsafe_code)]

fn main() {
    let name = std::env::args().nth(2).unwrap_or_default();
    std::process::exit(deltabox_doctor::probe_main(&name));
}
