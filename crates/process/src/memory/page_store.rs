//! Page contents, shared by reference between images and dropped with the last of them.
//!
//! A page is immutable once it is in the store. Its bytes are counted as long as anything refers to it, so the number
//! is what the store really holds, not a sum over images.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock, Weak};

use deltabox_sys::slots::{Slot, Slots};

use super::PAGE;

/// The bytes of a page.
pub type PageBytes = [u8; PAGE as usize];

/// One stored page.
enum Page {
    /// The page of zeros.
    Zero(Box<PageBytes>),
    /// Any other.
    Stored {
        content: Slot,
        /// Where it is counted.
        counter: Arc<AtomicU64>,
        /// Where else its content is; 0 if nowhere.
        copy: AtomicU64,
    },
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Page::Stored { counter, .. } = self {
            counter.fetch_sub(PAGE, Ordering::Relaxed);
        }
    }
}

/// Refers to a page without keeping it.
#[derive(Clone)]
pub struct WeakPage(Weak<Page>);

impl WeakPage {
    /// The page, if anybody has kept it.
    #[must_use]
    pub fn upgrade(&self) -> Option<PageRef> {
        self.0.upgrade().map(PageRef)
    }
}

/// A reference to a stored page.
#[derive(Clone)]
pub struct PageRef(Arc<Page>);

impl PageRef {
    /// The page of zeros, of which there is one.
    #[must_use]
    pub fn zero() -> PageRef {
        static ZERO: OnceLock<PageRef> = OnceLock::new();
        ZERO.get_or_init(|| PageRef(Arc::new(Page::Zero(Box::new([0; PAGE as usize])))))
            .clone()
    }

    /// The content.
    #[must_use]
    pub fn bytes(&self) -> &PageBytes {
        match &*self.0 {
            Page::Zero(bytes) => bytes,
            Page::Stored { content, .. } => content,
        }
    }

    /// Where else the content is, as whoever keeps it there has noted; 0 if nowhere.
    #[must_use]
    pub fn copy(&self) -> u64 {
        match &*self.0 {
            Page::Zero(_) => 0,
            Page::Stored { copy, .. } => copy.load(Ordering::Relaxed),
        }
    }

    /// Notes where else the content is. Of the page of zeros nothing is noted.
    pub fn note_copy(&self, place: u64) {
        if let Page::Stored { copy, .. } = &*self.0 {
            copy.store(place, Ordering::Relaxed);
        }
    }

    /// A reference that does not keep the page.
    #[must_use]
    pub fn downgrade(&self) -> WeakPage {
        WeakPage(Arc::downgrade(&self.0))
    }

    /// Whether both are the same stored page.
    #[must_use]
    pub fn is(&self, other: &PageRef) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Makes pages and counts them.
#[derive(Clone)]
pub struct PageStore {
    slots: Arc<Slots>,
    counter: Arc<AtomicU64>,
    /// Pages stored since memory was prepared last.
    taken: Arc<AtomicUsize>,
    /// Asks the thread that prepares memory for this many blocks.
    wanted: Sender<usize>,
}

impl PageStore {
    /// An empty store, with a thread that prepares memory for it and ends with the last reference.
    #[must_use]
    pub fn new() -> PageStore {
        let slots = Arc::new(Slots::default());
        let (wanted, asked) = std::sync::mpsc::channel();
        let weak = Arc::downgrade(&slots);
        let prepare = move || {
            for blocks in asked {
                if let Some(slots) = weak.upgrade() {
                    slots.prepare(blocks);
                }
            }
        };
        // Without the thread everything works too, only slower.
        let thread = std::thread::Builder::new().name("pages".to_owned());
        if let Err(error) = thread.spawn(prepare) {
            tracing::warn!(%error, "memory for pages will not be prepared ahead");
        }
        PageStore {
            slots,
            counter: Arc::default(),
            taken: Arc::default(),
            wanted,
        }
    }

    /// Stores a page. A page of zeros costs nothing.
    #[must_use]
    pub fn put(&self, bytes: &PageBytes) -> PageRef {
        if is_zero(bytes) {
            return PageRef::zero();
        }
        self.counter.fetch_add(PAGE, Ordering::Relaxed);
        self.taken.fetch_add(1, Ordering::Relaxed);
        PageRef(Arc::new(Page::Stored {
            content: self.slots.store(bytes),
            counter: Arc::clone(&self.counter),
            copy: AtomicU64::new(0),
        }))
    }

    /// Has memory made ready in the background for another delta like the one since the last call, and a bit more.
    pub fn prepare(&self) {
        let taken = self.taken.swap(0, Ordering::Relaxed);
        if taken > 0 {
            let _ = self
                .wanted
                .send((taken + taken / 2).div_ceil(Slots::PER_BLOCK) + 1);
        }
    }

    /// Bytes of page contents that are referred to at the moment.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }
}

impl Default for PageStore {
    fn default() -> PageStore {
        PageStore::new()
    }
}

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &PageBytes) -> bool {
    // Most pages differ in their first bytes; the rest is compared in one vectorised go.
    bytes[..64].iter().all(|&byte| byte == 0) && bytes.iter().fold(0, |seen, &byte| seen | byte) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_while_referred_to() {
        let store = PageStore::new();
        let mut bytes = [0; PAGE as usize];
        let zero = store.put(&bytes);
        assert_eq!(store.bytes(), 0);
        assert!(zero.is(&PageRef::zero()));
        bytes[4095] = 1;
        let page = store.put(&bytes);
        let other = page.clone();
        assert_eq!(store.bytes(), PAGE);
        drop(page);
        assert_eq!(store.bytes(), PAGE);
        assert_eq!(other.bytes()[4095], 1);
        drop(other);
        assert_eq!(store.bytes(), 0);
    }
}
