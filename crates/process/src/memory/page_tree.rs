//! A map from page numbers to stored pages that is cheap to copy and to compare.
//!
//! A radix tree of 64-way nodes whose branches are shared between copies: a copy costs one reference count, a change
//! copies the path to it, and a comparison skips whatever both trees share. So the work of a checkpoint or rollback
//! follows what changed, not what a process has.

use std::sync::Arc;

use super::PAGE;
use super::page_store::PageRef;

const BITS: u32 = 6;
const WAYS: usize = 1 << BITS;
/// 6 levels of 6 bits: page numbers of a 48-bit address space.
const TOP: u32 = 5;

/// A page number: an address divided by the page size.
pub type PageNumber = u64;

#[derive(Clone)]
enum Node {
    Inner([Option<Arc<Node>>; WAYS]),
    Leaf([Option<PageRef>; WAYS]),
}

impl Node {
    fn empty(level: u32) -> Node {
        if level == 0 {
            Node::Leaf([const { None }; WAYS])
        } else {
            Node::Inner([const { None }; WAYS])
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Node::Inner(children) => children.iter().all(Option::is_none),
            Node::Leaf(pages) => pages.iter().all(Option::is_none),
        }
    }
}

/// See the module's documentation.
#[derive(Clone, Default)]
pub struct PageTree {
    root: Option<Arc<Node>>,
}

fn slot(page: PageNumber, level: u32) -> usize {
    ((page >> (BITS * level)) & (WAYS as u64 - 1)) as usize
}

/// Number of pages below one slot of a node at `level`.
fn span(level: u32) -> u64 {
    1 << (BITS * level)
}

impl PageTree {
    /// An empty map.
    #[must_use]
    pub fn new() -> PageTree {
        PageTree::default()
    }

    /// The page stored at `page`.
    #[must_use]
    pub fn get(&self, page: PageNumber) -> Option<&PageRef> {
        let mut node = self.root.as_deref()?;
        let mut level = TOP;
        loop {
            match node {
                Node::Inner(children) => node = children[slot(page, level)].as_deref()?,
                Node::Leaf(pages) => return pages[slot(page, 0)].as_ref(),
            }
            level = level.saturating_sub(1);
        }
    }

    /// Stores a page.
    pub fn set(&mut self, page: PageNumber, content: PageRef) {
        let mut node = Arc::make_mut(self.root.get_or_insert_with(|| Arc::new(Node::empty(TOP))));
        let mut level = TOP;
        loop {
            match node {
                Node::Inner(children) => {
                    level -= 1;
                    let child =
                        children[slot(page, level + 1)].get_or_insert_with(|| Arc::new(Node::empty(level)));
                    node = Arc::make_mut(child);
                }
                Node::Leaf(pages) => {
                    pages[slot(page, 0)] = Some(content);
                    return;
                }
            }
        }
    }

    /// Removes the pages `start .. end`.
    pub fn remove(&mut self, start: PageNumber, end: PageNumber) {
        if start < end {
            remove_from(&mut self.root, TOP, 0, start, end);
        }
    }

    /// Whether there is any page in `start .. end`.
    #[must_use]
    pub fn any_in(&self, start: PageNumber, end: PageNumber) -> bool {
        any_in(self.root.as_ref(), TOP, 0, start, end)
    }

    /// Calls `visit` for every page in `start .. end`, in order.
    pub fn for_each<'a>(
        &'a self,
        start: PageNumber,
        end: PageNumber,
        visit: &mut dyn FnMut(PageNumber, &'a PageRef),
    ) {
        for_each(self.root.as_ref(), TOP, 0, start, end, visit);
    }

    /// Calls `visit` for every page number at which the trees differ, in order, with what `self` and `other` have.
    pub fn differences<'a>(
        &'a self,
        other: &'a PageTree,
        visit: &mut dyn FnMut(PageNumber, Option<&'a PageRef>, Option<&'a PageRef>),
    ) {
        differences(self.root.as_ref(), other.root.as_ref(), TOP, 0, visit);
    }

    /// Number of pages. Walks the whole tree.
    #[must_use]
    pub fn len(&self) -> usize {
        let mut count = 0;
        self.for_each(0, u64::MAX / PAGE, &mut |_, _| count += 1);
        count
    }

    /// Whether there is no page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }
}

/// The slots of a node at `level` that starts at page `base`, which overlap `start .. end`.
fn slots(level: u32, base: u64, start: u64, end: u64) -> std::ops::Range<usize> {
    let size = span(level);
    let first = start.saturating_sub(base) / size;
    let last = end.saturating_sub(base).div_ceil(size);
    first.min(WAYS as u64) as usize..last.min(WAYS as u64) as usize
}

fn remove_from(node: &mut Option<Arc<Node>>, level: u32, base: u64, start: u64, end: u64) {
    if !any_in(node.as_ref(), level, base, start, end) {
        return;
    }
    if start <= base && base + span(level + 1) <= end {
        *node = None;
        return;
    }
    let Some(shared) = node else { return };
    let inner = Arc::make_mut(shared);
    match inner {
        Node::Inner(children) => {
            for place in slots(level, base, start, end) {
                remove_from(
                    &mut children[place],
                    level - 1,
                    base + place as u64 * span(level),
                    start,
                    end,
                );
            }
        }
        Node::Leaf(pages) => {
            for place in slots(0, base, start, end) {
                pages[place] = None;
            }
        }
    }
    if inner.is_empty() {
        *node = None;
    }
}

fn any_in(node: Option<&Arc<Node>>, level: u32, base: u64, start: u64, end: u64) -> bool {
    let Some(node) = node else { return false };
    if start <= base && base + span(level + 1) <= end {
        // Empty nodes are never kept.
        return true;
    }
    let mut places = slots(level, base, start, end);
    match &**node {
        Node::Inner(children) => places.any(|place| {
            any_in(
                children[place].as_ref(),
                level - 1,
                base + place as u64 * span(level),
                start,
                end,
            )
        }),
        Node::Leaf(pages) => places.any(|place| pages[place].is_some()),
    }
}

fn for_each<'a>(
    node: Option<&'a Arc<Node>>,
    level: u32,
    base: u64,
    start: u64,
    end: u64,
    visit: &mut dyn FnMut(PageNumber, &'a PageRef),
) {
    let Some(node) = node else { return };
    for place in slots(level, base, start, end) {
        let at = base + place as u64 * span(level);
        match &**node {
            Node::Inner(children) => for_each(children[place].as_ref(), level - 1, at, start, end, visit),
            Node::Leaf(pages) => {
                if let Some(page) = &pages[place] {
                    visit(at, page);
                }
            }
        }
    }
}

fn differences<'a>(
    one: Option<&'a Arc<Node>>,
    two: Option<&'a Arc<Node>>,
    level: u32,
    base: u64,
    visit: &mut dyn FnMut(PageNumber, Option<&'a PageRef>, Option<&'a PageRef>),
) {
    match (one, two) {
        (None, None) => return,
        (Some(one), Some(two)) if Arc::ptr_eq(one, two) => return,
        _ => {}
    }
    for place in 0..WAYS {
        let at = base + place as u64 * span(level);
        if level == 0 {
            let (one, two) = (leaf(one, place), leaf(two, place));
            let same = match (one, two) {
                (None, None) => true,
                (Some(one), Some(two)) => one.is(two),
                _ => false,
            };
            if !same {
                visit(at, one, two);
            }
        } else {
            differences(child(one, place), child(two, place), level - 1, at, visit);
        }
    }
}

fn child(node: Option<&Arc<Node>>, place: usize) -> Option<&Arc<Node>> {
    match node.map(|node| &**node) {
        Some(Node::Inner(children)) => children[place].as_ref(),
        _ => None,
    }
}

fn leaf(node: Option<&Arc<Node>>, place: usize) -> Option<&PageRef> {
    match node.map(|node| &**node) {
        Some(Node::Leaf(pages)) => pages[place].as_ref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::page_store::PageStore;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn page(store: &PageStore, tag: u8) -> PageRef {
        store.put(&[tag; PAGE as usize])
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set(u64, u8),
        Remove(u64, u64),
        Copy,
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0u64..300, 4000u64..4200, 0x7_ffff_ff00u64..0x7_ffff_ffff]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (number(), 1u8..255).prop_map(|(at, tag)| Step::Set(at, tag)),
            2 => (number(), number()).prop_map(|(a, b)| Step::Remove(a.min(b), a.max(b))),
            1 => Just(Step::Copy),
        ]
    }

    type Model = BTreeMap<u64, u8>;

    fn content(tree: &PageTree) -> Model {
        let mut found = Model::new();
        tree.for_each(0, u64::MAX / PAGE, &mut |at, page| {
            found.insert(at, page.bytes()[0]);
        });
        found
    }

    proptest! {
        #[test]
        fn behaves_like_a_plain_map(steps in proptest::collection::vec(step(), 1..80)) {
            let store = PageStore::new();
            let (mut tree, mut model) = (PageTree::new(), Model::new());
            let mut copies: Vec<(PageTree, Model)> = Vec::new();
            for step in steps {
                match step {
                    Step::Set(at, tag) => {
                        tree.set(at, page(&store, tag));
                        model.insert(at, tag);
                    }
                    Step::Remove(start, end) => {
                        let any = model.range(start..end).next().is_some();
                        prop_assert_eq!(tree.any_in(start, end), any);
                        tree.remove(start, end);
                        model.retain(|at, _| !(start..end).contains(at));
                    }
                    Step::Copy => copies.push((tree.clone(), model.clone())),
                }
                prop_assert_eq!(content(&tree), model.clone());
            }
            for (copy, kept) in &copies {
                prop_assert_eq!(&content(copy), kept);
                let mut changed = Model::new();
                let mut patched = kept.clone();
                copy.differences(&tree, &mut |at, _, new| {
                    changed.insert(at, 0);
                    match new {
                        Some(new) => { patched.insert(at, new.bytes()[0]); }
                        None => { patched.remove(&at); }
                    }
                });
                prop_assert_eq!(&patched, &model);
                for at in kept.keys().chain(model.keys()) {
                    prop_assert!(kept.get(at) == model.get(at) || changed.contains_key(at));
                    prop_assert_eq!(tree.get(*at).map(|page| page.bytes()[0]), model.get(at).copied());
                }
            }
        }
    }

    #[test]
    fn an_unchanged_copy_has_no_differences() {
        let store = PageStore::new();
        let mut tree = PageTree::new();
        for at in 0..1000 {
            tree.set(at * 7, page(&store, 1));
        }
        let copy = tree.clone();
        let mut count = 0;
        tree.differences(&copy, &mut |_, _, _| count += 1);
        assert_eq!(count, 0);
        tree.set(14, page(&store, 2));
        tree.differences(&copy, &mut |at, _, _| {
            assert_eq!(at, 14);
            count += 1;
        });
        assert_eq!((count, tree.len()), (1, 1000));
    }
}
