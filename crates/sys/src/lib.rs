//! Kernel interfaces as safe functions. The only crate of the workspace that contains `unsafe`.
//!
//! Architecture invariant: nothing here knows what a sandbox or a checkpoint is. One module per kernel
//! interface; what `rustix` already offers safely is used from there and not wrapped again.

pub mod attributes;
pub mod btrfs;
pub mod clone;
pub mod epoll;
pub mod extents;
pub mod fd;
pub mod fsids;
pub mod kcmp;
pub mod loopdev;
pub mod mount;
pub mod mqueue;
pub mod pagemap;
pub mod prctl;
pub mod process_vm;
pub mod ptrace;
pub mod shared;
pub mod slots;
pub mod socket;
pub mod sysvipc;
pub mod uffd;
pub mod view;
pub mod vmas;
