//! Mappings of files of the sandbox's root, across changes of the mount behind it.
//!
//! A rollback of the files puts a new overlay mount in the root's place, and its files have another device number.
//! A file of the base is the same file through every mount. A file of a layer is not: its content may differ.

use std::os::fd::BorrowedFd;

use super::maps::{Kind, Vma};

/// What a file of the base is noted with, in place of the device of some mount of the root.
pub const BASE: (u32, u32) = (0, 0);
/// What a file of a layer is noted with: one of the mount that was the root then.
const LAYER: (u32, u32) = (0, u32::MAX);

/// Overlayfs marks the inode numbers of other filesystems than the upper layer's in the highest bits (`xino`,
/// Documentation/filesystems/overlayfs.rst); the store holds layers only, so these are the base's.
const XINO_BITS: u64 = 0b11 << 62;

/// The devices of the mounts that have been the sandbox's root.
#[derive(Debug, Default)]
pub struct Roots {
    known: Vec<(u32, u32)>,
    current: (u32, u32),
}

impl Roots {
    /// Takes note of what the root is now.
    ///
    /// # Errors
    /// When the descriptor is not good.
    pub fn update(&mut self, root: BorrowedFd<'_>) -> std::io::Result<()> {
        let device = rustix::fs::fstat(root)?.st_dev;
        self.current = (rustix::fs::major(device), rustix::fs::minor(device));
        // A device number may come back for a later mount; it is then the current one.
        if !self.known.contains(&self.current) {
            self.known.push(self.current);
        }
        Ok(())
    }

    /// Notes files of the root in a way that does not depend on the mount. What belongs to a layer of a former root
    /// stays as it is, so that it is equal to nothing that is wanted.
    #[must_use]
    pub fn normalize(&self, mut vmas: Vec<Vma>) -> Vec<Vma> {
        for vma in &mut vmas {
            let (Kind::PrivateFile(backing) | Kind::Shared(backing)) = &mut vma.kind else {
                continue;
            };
            backing.device = self.device(backing.device, backing.inode);
        }
        vmas
    }

    /// The same for one file: what it is noted with in place of its device.
    #[must_use]
    pub fn device(&self, device: (u32, u32), inode: u64) -> (u32, u32) {
        if inode & XINO_BITS != 0 && self.known.contains(&device) {
            BASE
        } else if device == self.current {
            LAYER
        } else {
            device
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::maps::Backing;

    fn file(device: (u32, u32), inode: u64) -> Vma {
        let backing = Backing {
            device,
            inode,
            path: "/x".into(),
            offset: 0,
        };
        Vma {
            start: 0x1000,
            end: 0x2000,
            protection: 1,
            kind: Kind::PrivateFile(backing),
            label: String::new(),
            flags: 0,
        }
    }

    #[test]
    fn files_of_the_base_are_the_same_through_every_mount_and_those_of_layers_are_not() {
        let before = Roots {
            known: vec![(0, 41)],
            current: (0, 41),
        };
        let after = Roots {
            known: vec![(0, 41), (0, 45)],
            current: (0, 45),
        };
        let base = 1 << 63 | 7;
        let noted = before.normalize(vec![file((0, 41), base), file((0, 41), 7), file((8, 1), 7)]);
        let still_mapped = after.normalize(vec![file((0, 41), base), file((0, 41), 7), file((8, 1), 7)]);
        let mapped_anew = after.normalize(vec![file((0, 45), base), file((0, 45), 7), file((8, 1), 7)]);
        assert_eq!(noted, mapped_anew);
        assert_eq!(noted[0], still_mapped[0]);
        assert_ne!(noted[1], still_mapped[1]);
        assert_eq!(noted[2], still_mapped[2]);
    }
}
