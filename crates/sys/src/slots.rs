//! Memory for page contents: fixed slots of one page, cut from blocks on transparent huge pages.
//!
//! The general allocator is the wrong tool for pages that live as long as checkpoints do: on a thread of its own it
//! grows its heap by one `mprotect(2)` for each page, and gives freed memory back only to fault it in again. Here a
//! block is one mapping of 2 MB, and empty ones are made resident ahead ([`Slots::prepare`]) for the next delta, because
//! the first touch of memory is what a virtual machine charges most for.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Bytes of a slot: a page (x86-64).
pub const SLOT: usize = 4096;

/// Bytes of a block: a huge page (x86-64).
const BLOCK: usize = 2 << 20;

const SLOTS: usize = BLOCK / SLOT;

/// Most empty blocks that are kept for the next delta.
pub const WARM: usize = 16;

/// One mapping.
struct Block {
    start: NonNull<u8>,
    /// Free slots; the last is taken first, being the one most likely still in a cache.
    free: Vec<u16>,
}

#[derive(Default)]
struct Blocks {
    /// By number; a number without a block may be given to the next one.
    all: Vec<Option<Block>>,
    /// Blocks with free slots but not only those.
    partial: Vec<u32>,
    /// Blocks without any slot in use.
    empty: Vec<u32>,
    unused_numbers: Vec<u32>,
}

// SAFETY: a block's memory is reached through slots only, each of which has one owner; the lists are behind a lock.
unsafe impl Send for Blocks {}

/// Gives out slots. Blocks are unmapped with the last reference.
#[derive(Default)]
pub struct Slots(Mutex<Blocks>);

/// One page of memory, owned.
pub struct Slot {
    owner: Arc<Slots>,
    start: NonNull<[u8; SLOT]>,
    block: u32,
}

// SAFETY: a slot is the only owner of its memory and hands out references under the usual rules.
unsafe impl Send for Slot {}
// SAFETY: as above; a shared slot can only be read.
unsafe impl Sync for Slot {}

impl Slots {
    /// Slots of a block.
    pub const PER_BLOCK: usize = SLOTS;

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot that holds a copy of `bytes`.
    ///
    /// # Panics
    /// When the kernel has no memory left, as the general allocator does.
    #[must_use]
    pub fn store(self: &Arc<Slots>, bytes: &[u8; SLOT]) -> Slot {
        let (block, mut start) = self.lock().take();
        // SAFETY: the slot was free, so nobody else refers to its memory, which is mapped and writable.
        unsafe { start.as_mut() }.copy_from_slice(bytes);
        Slot {
            owner: Arc::clone(self),
            start,
            block,
        }
    }

    /// Sees to it that there are `blocks` empty blocks (at most [`WARM`]) that are resident.
    pub fn prepare(&self, blocks: usize) {
        while self.lock().empty.len() < blocks.min(WARM) {
            let start = map_block();
            // SAFETY: the block was mapped just now. Without this the first write to each page makes it resident.
            let _ = unsafe { madvise(start.as_ptr().cast(), BLOCK, Advice::LinuxPopulateWrite) };
            let mut blocks = self.lock();
            let number = blocks.add(start);
            blocks.empty.push(number);
        }
    }

    /// Bytes of memory that are mapped for slots, in use or not.
    #[must_use]
    pub fn mapped(&self) -> u64 {
        let blocks = self.lock();
        (blocks.all.iter().flatten().count() * BLOCK) as u64
    }
}

impl Blocks {
    fn take(&mut self) -> (u32, NonNull<[u8; SLOT]>) {
        let number = match self.partial.last() {
            Some(&number) => number,
            None => {
                let number = self.empty.pop().unwrap_or_else(|| self.add(map_block()));
                self.partial.push(number);
                number
            }
        };
        let block = self.all[number as usize]
            .as_mut()
            .expect("listed blocks are mapped");
        let place = block.free.pop().expect("listed blocks have a free slot");
        if block.free.is_empty() {
            self.partial.pop();
        }
        // SAFETY: the place is below SLOTS, so the result lies within the block's mapping.
        let start = unsafe { block.start.byte_add(usize::from(place) * SLOT) };
        (number, start.cast())
    }

    fn add(&mut self, start: NonNull<u8>) -> u32 {
        let block = Block {
            start,
            free: (0..SLOTS as u16).rev().collect(),
        };
        if let Some(number) = self.unused_numbers.pop() {
            self.all[number as usize] = Some(block);
            return number;
        }
        self.all.push(Some(block));
        (self.all.len() - 1) as u32
    }

    fn give_back(&mut self, number: u32, start: NonNull<[u8; SLOT]>) {
        let block = self.all[number as usize]
            .as_mut()
            .expect("a slot's block is mapped");
        let place = (start.addr().get() - block.start.addr().get()) / SLOT;
        block.free.push(place as u16);
        match block.free.len() {
            SLOTS => {
                self.partial.retain(|other| *other != number);
                self.retire(number);
            }
            1 => self.partial.push(number),
            _ => {}
        }
    }

    fn retire(&mut self, number: u32) {
        if self.empty.len() < WARM {
            self.empty.push(number);
        } else if let Some(block) = self.all[number as usize].take() {
            unmap_block(&block);
            self.unused_numbers.push(number);
        }
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.all.iter().flatten().for_each(unmap_block);
    }
}

/// Maps twice the size and cuts the aligned half out, so that a huge page fits.
fn map_block() -> NonNull<u8> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new anonymous mapping where the kernel likes touches nothing that exists.
    let raw = unsafe { mmap_anonymous(std::ptr::null_mut(), 2 * BLOCK, protection, flags) }
        .expect("no memory left for page contents");
    let before = raw.addr().next_multiple_of(BLOCK) - raw.addr();
    let start = raw.wrapping_byte_add(before);
    for (at, size) in [(raw, before), (start.wrapping_byte_add(BLOCK), BLOCK - before)] {
        if size > 0 {
            // SAFETY: the range is a part of the mapping made above to which there is no reference.
            let _ = unsafe { munmap(at, size) };
        }
    }
    // SAFETY: as above. Without huge pages it works too, only slower.
    let _ = unsafe { madvise(start, BLOCK, Advice::LinuxHugepage) };
    NonNull::new(start.cast()).expect("a mapping is never at address 0")
}

fn unmap_block(block: &Block) {
    // SAFETY: no slot of the block is in use (or the whole store is being dropped, which slots keep from happening).
    let _ = unsafe { munmap(block.start.as_ptr().cast(), BLOCK) };
}

impl std::ops::Deref for Slot {
    type Target = [u8; SLOT];

    fn deref(&self) -> &[u8; SLOT] {
        // SAFETY: the slot is owned by `self`, initialised by `store`, and never written again.
        unsafe { self.start.as_ref() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.owner.lock().give_back(self.block, self.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_hold_what_was_stored_and_are_used_again() {
        let slots = Arc::new(Slots::default());
        let mut kept = Vec::new();
        for round in 0..3u8 {
            let stored: Vec<Slot> = (0..1500u32)
                .map(|n| {
                    let mut bytes = [round; SLOT];
                    bytes[..4].copy_from_slice(&n.to_ne_bytes());
                    slots.store(&bytes)
                })
                .collect();
            for (n, slot) in stored.iter().enumerate() {
                assert_eq!(slot[..4], (n as u32).to_ne_bytes());
                assert!(slot[4..].iter().all(|&byte| byte == round));
            }
            kept.extend(stored.into_iter().step_by(100));
        }
        assert_eq!(kept.len(), 45);
        assert!(kept.iter().enumerate().all(|(n, slot)| slot[5] == (n / 15) as u8));
        // 1,500 slots fit into 3 blocks; what is kept of each round holds a few more.
        assert!(slots.mapped() <= 5 * BLOCK as u64, "{} bytes", slots.mapped());
    }

    #[test]
    fn only_a_few_empty_blocks_are_kept() {
        let slots = Arc::new(Slots::default());
        let many: Vec<Slot> = (0..40 * SLOTS).map(|_| slots.store(&[1; SLOT])).collect();
        assert_eq!(slots.mapped(), 40 * BLOCK as u64);
        drop(many);
        assert_eq!(slots.mapped(), (WARM * BLOCK) as u64);
        let again = slots.store(&[2; SLOT]);
        assert_eq!((again[0], slots.mapped()), (2, (WARM * BLOCK) as u64));
    }

    #[test]
    fn blocks_can_be_prepared() {
        let slots = Arc::new(Slots::default());
        slots.prepare(3);
        assert_eq!(slots.mapped(), 3 * BLOCK as u64);
        let _kept: Vec<Slot> = (0..3 * SLOTS).map(|_| slots.store(&[1; SLOT])).collect();
        assert_eq!(slots.mapped(), 3 * BLOCK as u64);
        slots.prepare(1000);
        assert_eq!(slots.mapped(), ((3 + WARM) * BLOCK) as u64);
    }

    #[test]
    fn threads_share_a_store() {
        let slots = Arc::new(Slots::default());
        std::thread::scope(|scope| {
            for tag in 1..5u8 {
                let slots = &slots;
                scope.spawn(move || {
                    for _ in 0..200 {
                        let mine: Vec<Slot> = (0..50).map(|_| slots.store(&[tag; SLOT])).collect();
                        assert!(mine.iter().all(|slot| slot.iter().all(|&byte| byte == tag)));
                    }
                });
            }
        });
    }
}
