//! One type per identifier, so that they cannot be mixed up.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $bytes:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(String);

        impl $name {
            /// A new random identifier: lower-case hexadecimal digits.
            pub fn random() -> Self {
                Self(random_hex($bytes))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id_type!(
    /// A sandbox, for as long as its state directory exists.
    SandboxId,
    6
);
id_type!(
    /// A checkpoint; unique among all sandboxes of a state directory.
    CheckpointId,
    6
);
id_type!(
    /// A command started with `exec`.
    ExecId,
    4
);

fn random_hex(bytes: usize) -> String {
    let mut buffer = [0u8; 16];
    let slice = &mut buffer[..bytes];
    let mut filled = 0;
    while filled < slice.len() {
        // getrandom(2) does not fail for small requests once the pool is ready; a signal may shorten it.
        match rustix::rand::getrandom(&mut slice[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("getrandom failed: {error}"),
        }
    }
    slice.iter().map(|byte| format!("{byte:02x}")).collect()
}
