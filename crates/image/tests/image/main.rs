//! Imports, exports and applications of images, on real filesystems; they need root, like the program.
mod apply;
mod common;
mod export;
mod fuzz;
mod hostile;
mod import;
#[cfg(feature = "registry")]
mod registry;
