//! The memory of processes: mappings, which pages changed, their content, and putting it back.

pub mod capture;
pub mod maps;
pub mod page_store;
pub mod page_tree;
pub mod restore;
pub mod roots;
pub mod track;

/// Size of a page in bytes (x86-64).
pub const PAGE: u64 = 4096;

/// The end of the address space of programs (47 bits).
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;
