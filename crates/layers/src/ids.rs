//! Names of volumes and layers: numbers that are never used twice in one store.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::nodes::write_durably;

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub(crate) u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
                u64::from_str_radix(text, 16).map($name)
            }
        }
    };
}

id_type! {
    /// A layer. Unique in the store, with one exception: the writable layer of a volume has the same number in all
    /// snapshots taken of it.
    LayerId
}
id_type! {
    /// A volume of the store.
    VolumeId
}

/// Numbers reserved per write of the file; what is left of a block is lost at the next start.
const BLOCK: u64 = 1 << 20;

/// Hands out numbers. A block at a time is reserved on disk, so a crash never makes a number appear twice.
#[derive(Debug)]
pub(crate) struct IdSource {
    file: PathBuf,
    state: Mutex<(u64, u64)>,
}

impl IdSource {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let file = root.join("next-id");
        let next = match fs::read_to_string(&file) {
            Ok(text) => text.trim().parse().map_err(|_| Error::BadLayer {
                path: file.clone(),
                why: "the number in it cannot be read".into(),
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 1,
            Err(error) => return Err(error).doing("reading", &file),
        };
        Ok(Self {
            file,
            state: Mutex::new((next, next)),
        })
    }

    pub(crate) fn next(&self) -> Result<u64> {
        let mut state = self.state.lock().expect("no panic while held");
        if state.0 == state.1 {
            write_durably(&self.file, format!("{}\n", state.1 + BLOCK).as_bytes())?;
            state.1 += BLOCK;
        }
        state.0 += 1;
        Ok(state.0 - 1)
    }

    /// The number that will be handed out next.
    pub(crate) fn peek(&self) -> u64 {
        self.state.lock().expect("no panic while held").0
    }
}
