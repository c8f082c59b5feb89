//! Root filesystems and file layers from and to OCI images.
//!
//! - [`import`] and [`import_flat`]: an OCI layout (directory or tar), the output of `docker save`, or (with
//!   the `registry` feature) an image of a registry, into directories in overlayfs format, or one root.
//! - [`export`]: entries of a layer into an OCI image or a plain root tar.
//! - [`apply`]: entries of a layer onto a directory of the host, with a preview.
//!
//! Images are read as hostile input: nothing is reached but from the descriptor of the directory being
//! filled, all content is checked against its digest, everything is bounded by [`Limits`], and a failure
//! leaves nothing behind.
//!
//! Architecture invariant: no async runtime and no network client without the `registry` feature, and no
//! knowledge of the layers crate: the two meet in [`Entry`].
#![forbid(unsafe_code)]

mod apply;
mod blobs;
mod compress;
mod digest;
mod entry;
mod error;
mod export;
mod flatten;
mod import;
mod limits;
mod oci;
#[cfg(feature = "registry")]
mod registry;
mod root;
mod source;
mod staging;
mod tar;
mod unpack;
mod walk;

pub use apply::{Action, ApplyOptions, PlannedChange, apply};
pub use compress::Compression;
pub use digest::Digest;
pub use entry::{Content, Entry, Extent, Kind};
pub use error::{Error, Result};
pub use export::{ExportOptions, Exported, export, export_rootfs, export_to};
pub use import::{ImportOptions, ImportedImage, import, import_flat};
pub use limits::Limits;
pub use oci::{ImageConfig, Platform};
#[cfg(feature = "registry")]
pub use registry::Credentials;
pub use source::{ImageSource, Reference};
pub use walk::{Walk, walk};
