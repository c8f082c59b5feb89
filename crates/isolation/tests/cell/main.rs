//! Real cells: needs root, and cleans up after itself whatever happens (the kernel ends cells with their owner).

mod commands;
mod confinement;
mod figures;
mod lifecycle;
mod limits;
mod roots;
mod support;
