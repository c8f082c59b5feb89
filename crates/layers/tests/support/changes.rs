//! Checks a list of changes against the two trees it is about.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use deltabox_layers::{Change, ChangeKind, Entry, EntryKind};

use super::scan::Node;

type Nodes = BTreeMap<PathBuf, Node>;

/// What is wrong with the changes, one line each.
pub fn check_changes(changes: &[Change], before: &Nodes, after: &Nodes) -> Vec<String> {
    let mut problems = Vec::new();
    let rebuilt = rebuild(changes, before, after, &mut problems);
    for (path, node) in after {
        match rebuilt.get(path) {
            None => problems.push(format!("{}: not among the additions", path.display())),
            Some(other) if !alike(other, node) => problems.push(format!("{}: not told", path.display())),
            Some(_) => {}
        }
    }
    for path in rebuilt.keys().filter(|path| !after.contains_key(*path)) {
        problems.push(format!("{}: its removal is not told", path.display()));
    }
    problems
}

/// Applies the changes to the first tree, taking each changed file from the second.
fn rebuild(changes: &[Change], before: &Nodes, after: &Nodes, problems: &mut Vec<String>) -> Nodes {
    let mut tree = before.clone();
    // Removals and replaced directories first: what follows may lie at their place.
    for change in changes {
        let was_dir =
            change.before.is_some() && before.get(&change.path).is_some_and(|node| node.kind == 'd');
        let is_dir = change.after.is_some() && after.get(&change.path).is_some_and(|node| node.kind == 'd');
        if change.before.is_some() != before.contains_key(&change.path)
            && !moved_parent(changes, &change.path)
        {
            problems.push(format!(
                "{}: what was there before is told wrong",
                change.path.display()
            ));
        }
        if change.kind == ChangeKind::Deleted || (was_dir && !is_dir) {
            remove(&mut tree, &change.path);
        }
    }
    for change in changes {
        if let Some(from) = &change.moved_from {
            for (path, node) in before
                .range(from.clone()..)
                .take_while(|(path, _)| path.starts_with(from))
            {
                let rest = path.strip_prefix(from).unwrap();
                let to = if rest.as_os_str().is_empty() {
                    change.path.clone()
                } else {
                    change.path.join(rest)
                };
                tree.insert(to, node.clone());
            }
            for inner in changes.iter().filter(|inner| inner.path != change.path) {
                if inner.path.starts_with(&change.path) && removes(inner) {
                    remove(&mut tree, &inner.path);
                }
            }
        }
        if change.kind != ChangeKind::Deleted {
            match after.get(&change.path) {
                Some(node) => drop(tree.insert(change.path.clone(), node.clone())),
                None => problems.push(format!("{}: does not exist after", change.path.display())),
            }
        }
    }
    tree
}

fn removes(change: &Change) -> bool {
    let is_dir = |entry: &Option<Entry>| {
        entry
            .as_ref()
            .is_some_and(|entry| entry.kind == EntryKind::Directory)
    };
    change.kind == ChangeKind::Deleted || (is_dir(&change.before) && !is_dir(&change.after))
}

fn moved_parent(changes: &[Change], path: &Path) -> bool {
    changes
        .iter()
        .any(|change| change.moved_from.is_some() && path.starts_with(&change.path))
}

fn remove(tree: &mut Nodes, path: &Path) {
    tree.retain(|other, _| !other.starts_with(path));
}

/// Names of a file and times of a directory are not told by a comparison.
fn alike(one: &Node, other: &Node) -> bool {
    let about = |node: &Node| {
        let mtime = if node.kind == 'd' { (0, 0) } else { node.mtime };
        let target = node.target.clone();
        (
            node.kind,
            node.mode,
            node.owner,
            mtime,
            node.size,
            node.content,
            node.device,
            target,
            node.xattrs.clone(),
        )
    };
    about(one) == about(other)
}
