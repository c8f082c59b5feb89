//! The spawner as a program of its own, for tests of the crates that make cells. The product calls
//! `spawner::main` from its one binary.
#![forbid(unsafe_code)]

fn main() {
    std::process::exit(deltabox_isolation::spawner::main());
}
