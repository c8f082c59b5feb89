//! Making the mappings and pages of a process what an image says, given what it has now.

use deltabox_sys::vmas::flag;

use super::PAGE;
use super::maps::{Backing, Kind, Vma};
use super::page_store::PageRef;
use super::page_tree::{PageNumber, PageTree};
use super::roots::BASE;
use super::track::Run;
use crate::shared::is_memory;

/// One step from the present mappings to the wanted ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing may be mapped in this range.
    Unmap { start: u64, end: u64 },
    /// This has to be mapped, in place of whatever is there.
    Map(Vma),
    /// Only the protection differs.
    Protect { start: u64, end: u64, protection: u8 },
    /// The label of anonymous memory (`PR_SET_VMA_ANON_NAME`) differs.
    Label { start: u64, end: u64, label: String },
    /// The advice given for it differs: bits of [`flag`] as they are, and as they have to be.
    Advise {
        start: u64,
        end: u64,
        now: u16,
        wanted: u16,
    },
}

/// Flags that a mapping has from the moment it is made.
const INBORN: u16 = flag::GROWS_DOWN | flag::NEVER_WRITABLE;

/// Flags that are put back last, when nothing is to be changed any more.
const HELD: u16 = LOCKS | flag::SEALED;

/// How a mapping is locked.
pub const LOCKS: u16 = flag::LOCKED | flag::ON_FAULT;

/// Advice about huge pages, which can be turned around but not taken back.
const HUGE: u16 = flag::HUGE_PAGE | flag::NO_HUGE_PAGE;

/// The changes that turn `now` into `wanted`, but for locks and seals, in the order of addresses.
#[must_use]
pub fn layout_changes(now: &[Vma], wanted: &[Vma]) -> Vec<Change> {
    let mut changes = Vec::new();
    each_piece(
        now,
        wanted,
        &mut |start, end, present, target| match (present, target) {
            (None, None) => {}
            (Some(present), None) => {
                if !matches!(present.kind, Kind::Kernel(_)) {
                    push(&mut changes, Change::Unmap { start, end });
                }
            }
            (None, Some(target)) => push(&mut changes, Change::Map(target)),
            (Some(present), Some(target)) => compare(&present, target, &mut changes),
        },
    );
    changes
}

/// Ranges of equal mappings that are locked or sealed otherwise, with the flags wanted.
#[must_use]
pub fn held_otherwise(now: &[Vma], wanted: &[Vma]) -> Vec<(u64, u64, u16)> {
    let mut found = Vec::new();
    each_piece(now, wanted, &mut |start, end, present, target| {
        if let (Some(present), Some(target)) = (present, target)
            && (present.flags ^ target.flags) & HELD != 0
            && !matches!(present.kind, Kind::Kernel(_))
        {
            found.push((start, end, target.flags & HELD));
        }
    });
    found
}

/// Whether a mapping would have to change that is sealed.
#[must_use]
pub fn seals_hold(now: &[Vma], wanted: &[Vma]) -> bool {
    let mut hold = false;
    each_piece(now, wanted, &mut |_, _, present, target| {
        let Some(present) = present else { return };
        if !is_sealed(&present) {
            return;
        }
        let mut changes = Vec::new();
        let stays = target.is_some_and(|target| {
            let stays = is_sealed(&target);
            compare(&present, target, &mut changes);
            stays
        });
        hold |= !stays || !changes.is_empty();
    });
    hold
}

/// Whether a mapping of the program is sealed. Those of the kernel may always be.
#[must_use]
pub fn is_sealed(vma: &Vma) -> bool {
    vma.has(flag::SEALED) && !matches!(vma.kind, Kind::Kernel(_))
}

/// Calls `visit` for each range that lies in at most one mapping of either layout, with its parts.
fn each_piece(now: &[Vma], wanted: &[Vma], visit: &mut dyn FnMut(u64, u64, Option<Vma>, Option<Vma>)) {
    let mut borders: Vec<u64> = now
        .iter()
        .chain(wanted)
        .flat_map(|vma| [vma.start, vma.end])
        .collect();
    borders.sort_unstable();
    borders.dedup();
    let (mut have, mut want) = (now.iter().peekable(), wanted.iter().peekable());
    for pair in borders.windows(2) {
        let (start, end) = (pair[0], pair[1]);
        while have.next_if(|vma| vma.end <= start).is_some() {}
        while want.next_if(|vma| vma.end <= start).is_some() {}
        let part = |vma: &&Vma| (vma.start <= start).then(|| vma.clipped(start, end));
        visit(start, end, have.peek().and_then(part), want.peek().and_then(part));
    }
}

fn compare(present: &Vma, target: Vma, changes: &mut Vec<Change>) {
    if !same_kind(present, &target) {
        push(changes, Change::Map(target));
        return;
    }
    if present.protection != target.protection {
        let (start, end, protection) = (target.start, target.end, target.protection);
        push(
            changes,
            Change::Protect {
                start,
                end,
                protection,
            },
        );
    }
    let advised = !(INBORN | HELD);
    let (now, wanted) = (present.flags & advised, target.flags & advised);
    if now != wanted && !matches!(target.kind, Kind::Kernel(_)) {
        let (start, end) = (target.start, target.end);
        push(
            changes,
            Change::Advise {
                start,
                end,
                now,
                wanted,
            },
        );
    }
    if own_label(&present.label) != own_label(&target.label) {
        let (start, end) = (target.start, target.end);
        push(
            changes,
            Change::Label {
                start,
                end,
                label: target.label,
            },
        );
    }
}

/// Whether the target can be had by changing what is there and writing pages into it.
fn same_kind(present: &Vma, target: &Vma) -> bool {
    if let (Kind::Kernel(one), Kind::Kernel(two)) = (&present.kind, &target.kind) {
        return one == two;
    }
    let takes_back = present.flags & HUGE != 0 && target.flags & HUGE == 0;
    if takes_back || (present.flags ^ target.flags) & INBORN != 0 {
        return false;
    }
    match (&present.kind, &target.kind) {
        (Kind::Anonymous, Kind::Anonymous) => true,
        (Kind::PrivateFile(one), Kind::PrivateFile(two)) | (Kind::Shared(one), Kind::Shared(two)) => {
            same_file(one, two)
        }
        _ => false,
    }
}

/// Memory made in place of a file whose name was removed goes by that file's numbers, but is not the file that has its
/// name again.
fn same_file(present: &Backing, target: &Backing) -> bool {
    let numbers = |backing: &Backing| (backing.device, backing.inode, backing.offset);
    let named = |backing: &Backing| !is_memory(backing);
    let serves = named(present) == named(target) || named(present) && present.device == BASE;
    numbers(present) == numbers(target) && serves
}

/// The label a program gave, as opposed to those of the kernel.
fn own_label(label: &str) -> &str {
    label
        .strip_prefix("[anon:")
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or("")
}

/// Adds a change, joined to the one before where both are one.
fn push(changes: &mut Vec<Change>, change: Change) {
    match (changes.last_mut(), &change) {
        (Some(Change::Unmap { end, .. }), Change::Unmap { start, end: next }) if end == start => *end = *next,
        (
            Some(Change::Protect { end, protection, .. }),
            Change::Protect {
                start,
                end: next,
                protection: other,
            },
        ) if end == start && protection == other => {
            *end = *next;
        }
        (Some(Change::Map(last)), Change::Map(next)) if continues(last, next) => last.end = next.end,
        _ => changes.push(change),
    }
}

fn continues(last: &Vma, next: &Vma) -> bool {
    let backing = match (&last.kind, &next.kind) {
        (Kind::Anonymous, Kind::Anonymous) => true,
        (Kind::PrivateFile(one), Kind::PrivateFile(two)) | (Kind::Shared(one), Kind::Shared(two)) => {
            let moved = Backing {
                offset: one.offset + last.size(),
                ..one.clone()
            };
            moved == *two
        }
        _ => false,
    };
    let alike = |vma: &Vma| (vma.protection, vma.flags & !HELD);
    backing && last.end == next.start && alike(last) == alike(next) && last.label == next.label
}

/// What has to be done to pages, once the mappings are as wanted.
#[derive(Default)]
pub struct PageChanges<'a> {
    /// Pages to put into anonymous memory that holds nothing, by address, in order.
    pub fill: Vec<(u64, &'a PageRef)>,
    /// Pages to write over what is there, by address, in order.
    pub write: Vec<(u64, &'a PageRef)>,
    /// Ranges that must hold what the mapping alone makes them (`MADV_DONTNEED`), in order.
    pub drop: Vec<(u64, u64)>,
}

/// The pages that differ between the process and `wanted`. `seen` is what was last known of the process, `runs` what
/// was written since, `remapped` the ranges whose mappings were made anew (and hold nothing).
#[must_use]
pub fn page_changes<'a>(
    wanted_vmas: &[Vma],
    wanted: &'a PageTree,
    seen: &'a PageTree,
    runs: &[Run],
    remapped: &[(u64, u64)],
) -> PageChanges<'a> {
    let mut empty: Vec<(u64, u64)> = remapped.to_vec();
    empty.sort_unstable();
    // Every page that may differ, with what it has to be and whether nothing is there. Of several entries for a page
    // the first counts: a new mapping outdoes what was written before, which outdoes what was last seen.
    let mut touched: Vec<(PageNumber, Option<&PageRef>, bool)> = Vec::new();
    for &(start, end) in &empty {
        wanted.for_each(start / PAGE, end / PAGE, &mut |page, target| {
            touched.push((page, Some(target), true));
        });
    }
    let within = |ranges: &[(u64, u64)], page: PageNumber| {
        let after = ranges.partition_point(|range| range.0 <= page * PAGE);
        after > 0 && page * PAGE < ranges[after - 1].1
    };
    for run in runs {
        let pages = run.start / PAGE..run.end / PAGE;
        if run.content {
            touched.extend(pages.map(|page| (page, wanted.get(page), false)));
        } else {
            // Nothing is there: only what is wanted there is to do.
            wanted.for_each(pages.start, pages.end, &mut |page, target| {
                touched.push((page, Some(target), false));
            });
        }
    }
    let gone: Vec<(u64, u64)> = runs
        .iter()
        .filter(|run| !run.content)
        .map(|run| (run.start, run.end))
        .collect();
    seen.differences(wanted, &mut |page, _, target| {
        if target.is_some() || !within(&gone, page) {
            touched.push((page, target, false));
        }
    });
    // Stable, and made for lists that are sorted in parts.
    touched.sort_by_key(|entry| entry.0);
    touched.dedup_by_key(|entry| entry.0);
    let mut changes = PageChanges::default();
    let mut vmas = wanted_vmas.iter().filter(|vma| vma.is_private()).peekable();
    for (page, target, is_new) in touched {
        let address = page * PAGE;
        while vmas.next_if(|vma| vma.end <= address).is_some() {}
        let Some(vma) = vmas.peek().filter(|vma| vma.start <= address) else {
            continue;
        };
        match target {
            Some(target) if is_new && matches!(vma.kind, Kind::Anonymous) => {
                changes.fill.push((address, target));
            }
            Some(target) => changes.write.push((address, target)),
            None if within(&empty, page) => {}
            None => match changes.drop.last_mut() {
                Some((_, end)) if *end == address => *end += PAGE,
                _ => changes.drop.push((address, address + PAGE)),
            },
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::page_store::PageStore;

    fn anonymous(start: u64, end: u64, protection: u8) -> Vma {
        Vma {
            start,
            end,
            protection,
            kind: Kind::Anonymous,
            label: String::new(),
            flags: 0,
        }
    }

    fn file(start: u64, end: u64, inode: u64, offset: u64) -> Vma {
        let backing = Backing {
            device: (8, 1),
            inode,
            path: "/f".into(),
            offset,
        };
        Vma {
            start,
            end,
            protection: 1,
            kind: Kind::PrivateFile(backing),
            label: String::new(),
            flags: 0,
        }
    }

    #[test]
    fn equal_layouts_need_nothing_however_they_are_cut() {
        let now = [
            anonymous(0x1000, 0x3000, 3),
            anonymous(0x3000, 0x5000, 3),
            file(0x9000, 0xb000, 7, 0),
        ];
        let wanted = [
            anonymous(0x1000, 0x5000, 3),
            file(0x9000, 0xa000, 7, 0),
            file(0xa000, 0xb000, 7, 0x1000),
        ];
        assert_eq!(layout_changes(&now, &wanted), []);
    }

    #[test]
    fn each_difference_is_one_change() {
        let now = [
            anonymous(0x1000, 0x5000, 3),
            file(0x9000, 0xb000, 7, 0),
            anonymous(0xc000, 0xd000, 3),
        ];
        let wanted = [
            anonymous(0x2000, 0x4000, 1),
            file(0x9000, 0xb000, 7, 0x1000),
            anonymous(0xe000, 0xf000, 3),
        ];
        assert_eq!(
            layout_changes(&now, &wanted),
            [
                Change::Unmap {
                    start: 0x1000,
                    end: 0x2000
                },
                Change::Protect {
                    start: 0x2000,
                    end: 0x4000,
                    protection: 1
                },
                Change::Unmap {
                    start: 0x4000,
                    end: 0x5000
                },
                Change::Map(file(0x9000, 0xb000, 7, 0x1000)),
                Change::Unmap {
                    start: 0xc000,
                    end: 0xd000
                },
                Change::Map(anonymous(0xe000, 0xf000, 3)),
            ]
        );
    }

    #[test]
    fn what_stands_for_a_removed_file_is_not_the_file() {
        let removed = |mut vma: Vma| {
            if let Kind::PrivateFile(backing) = &mut vma.kind {
                backing.path += " (deleted)";
            }
            vma
        };
        let of = |device| {
            let mut vma = file(0x1000, 0x2000, 7, 0);
            if let Kind::PrivateFile(backing) = &mut vma.kind {
                backing.device = device;
            }
            vma
        };
        let changes = |now: Vma, wanted: Vma| layout_changes(&[now], &[wanted]).len();
        assert_eq!(changes(removed(of((8, 1))), of((8, 1))), 1);
        assert_eq!(changes(of((8, 1)), removed(of((8, 1)))), 1);
        assert_eq!(changes(removed(of((8, 1))), removed(of((8, 1)))), 0);
        // The base never changes.
        assert_eq!(changes(of(BASE), removed(of(BASE))), 0);
        assert_eq!(changes(removed(of(BASE)), of(BASE)), 1);
    }

    fn flagged(start: u64, end: u64, flags: u16) -> Vma {
        Vma {
            flags,
            ..anonymous(start, end, 3)
        }
    }

    #[test]
    fn flags_are_changed_where_they_can_be() {
        let both = flag::DONT_FORK | flag::LOCKED;
        let now = [
            flagged(0x1000, 0x3000, 0),
            flagged(0x4000, 0x5000, flag::NO_HUGE_PAGE),
            flagged(0x6000, 0x7000, flag::NO_HUGE_PAGE),
            flagged(0x8000, 0x9000, flag::SEALED),
        ];
        let wanted = [
            flagged(0x1000, 0x2000, both),
            flagged(0x2000, 0x3000, 0),
            flagged(0x4000, 0x5000, flag::HUGE_PAGE),
            flagged(0x6000, 0x7000, 0),
            flagged(0x8000, 0x9000, flag::SEALED),
        ];
        let advise = |start, end, now, wanted| Change::Advise {
            start,
            end,
            now,
            wanted,
        };
        assert_eq!(
            layout_changes(&now, &wanted),
            [
                advise(0x1000, 0x2000, 0, flag::DONT_FORK),
                advise(0x4000, 0x5000, flag::NO_HUGE_PAGE, flag::HUGE_PAGE),
                Change::Map(flagged(0x6000, 0x7000, 0)),
            ]
        );
        assert_eq!(held_otherwise(&now, &wanted), [(0x1000, 0x2000, flag::LOCKED)]);
        assert!(!seals_hold(&now, &wanted));
        assert!(seals_hold(&now, &wanted[..4]));
        assert!(seals_hold(&now, &[flagged(0x8000, 0x9000, 0)]));
        assert!(seals_hold(
            &now,
            &[Vma {
                protection: 1,
                ..now[3].clone()
            }]
        ));
    }

    #[test]
    fn only_pages_that_may_differ_are_touched() {
        let store = PageStore::new();
        let page = |tag: u8| store.put(&[tag; PAGE as usize]);
        let (mut seen, mut wanted) = (PageTree::new(), PageTree::new());
        for at in 0..16 {
            wanted.set(at, page(1));
        }
        let all = wanted.clone();
        all.for_each(0, 16, &mut |at, page| seen.set(at, page.clone()));
        wanted.remove(3, 5);
        wanted.set(7, page(9));
        let vmas = [anonymous(0, 16 * PAGE, 3)];
        let run = |start: u64, end: u64, content| Run {
            start: start * PAGE,
            end: end * PAGE,
            vma: 0,
            content,
        };
        // 5 was written, 4 and 10 were given back.
        let runs = [run(4, 5, false), run(5, 6, true), run(10, 11, false)];
        let changes = page_changes(&vmas, &wanted, &seen, &runs, &[]);
        let written: Vec<u64> = changes.write.iter().map(|(at, _)| at / PAGE).collect();
        assert_eq!(written, [5, 7, 10]);
        assert_eq!(changes.drop, [(3 * PAGE, 4 * PAGE)]);
        let changes = page_changes(&vmas, &wanted, &seen, &runs, &[(0, 6 * PAGE)]);
        let filled: Vec<u64> = changes.fill.iter().map(|(at, _)| at / PAGE).collect();
        let written: Vec<u64> = changes.write.iter().map(|(at, _)| at / PAGE).collect();
        assert_eq!((filled, written), (vec![0, 1, 2, 5], vec![7, 10]));
        assert_eq!(changes.drop, []);
    }
}
