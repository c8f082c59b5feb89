//! Checkpoints and rollbacks of real programs, in a small PID namespace of their own.

mod ahead;
mod faults;
mod in_place;
mod measure;
mod probes;
mod sandbox;
mod tree;
