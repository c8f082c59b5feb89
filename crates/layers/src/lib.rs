//! DeltaFS: the file half of a checkpoint.
//!
//! The root of a sandbox is a stock overlayfs. Its layers are directories of one *volume* of the [`Store`]; a
//! [`FileState`] is the live end of a chain of layers, a [`Frozen`] an immutable point of it. Nothing here knows
//! processes: whether a freeze may move to a new mount is the caller's decision ([`Way`]).
//!
//! Architecture invariants: all layers of one mount lie in one volume, so inode numbers never collide; a frozen
//! layer is never written again; no file of a layer has a name in another layer.
#![forbid(unsafe_code)]

mod builder;
mod changed;
mod collect;
mod copy;
mod diff;
mod error;
mod features;
mod hardlinks;
mod idmap;
mod ids;
mod image;
mod links;
mod live;
mod mask;
mod mounting;
mod nodes;
mod package;
mod reaper;
mod restore;
mod space;
mod squash;
mod stack;
mod store;
mod tree;
mod view;
mod volume;

pub use collect::{Collected, Horizon, LayerSize};
pub use diff::{Change, ChangeKind, TEXT_BYTES_MAX, TextDiff};
pub use error::{Error, Result};
pub use features::Features;
pub use idmap::IdMap;
pub use ids::{LayerId, VolumeId};
pub use live::{Base, FileState, Freeze, Phases, Retired, SquashJob, Switched, Way};
pub use mask::{Mask, MaskEntry};
pub use restore::Restored;
pub use squash::Squashed;
pub use store::{Store, StoreKind, StoreOptions, Usage};
pub use view::{Entry, EntryKind, FileView};
pub use volume::{Frozen, Top};
