//! The tree of a sandbox's checkpoints: a pure data structure.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::id::CheckpointId;

/// What the tree itself has to know of a checkpoint.
pub trait Node {
    fn id(&self) -> &CheckpointId;
    fn parent(&self) -> Option<&CheckpointId>;
    fn label(&self) -> Option<&str>;
    fn set_parent(&mut self, parent: Option<CheckpointId>);
}

/// Checkpoints in the order they were made, and the one the live state descends from.
#[derive(Debug, Clone)]
pub struct Tree<N> {
    nodes: Vec<N>,
    index: HashMap<CheckpointId, usize>,
    current: Option<CheckpointId>,
}

impl<N: Node> Tree<N> {
    /// A tree from nodes of which each parent precedes its children.
    pub fn new(nodes: Vec<N>, current: Option<CheckpointId>) -> Self {
        let index = nodes
            .iter()
            .enumerate()
            .map(|(i, node)| (node.id().clone(), i))
            .collect();
        Self {
            nodes,
            index,
            current,
        }
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &N> {
        self.nodes.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut N> {
        self.nodes.iter_mut()
    }

    pub fn current(&self) -> Option<&CheckpointId> {
        self.current.as_ref()
    }

    pub fn set_current(&mut self, id: CheckpointId) {
        debug_assert!(self.index.contains_key(&id));
        self.current = Some(id);
    }

    pub fn get(&self, id: &CheckpointId) -> Option<&N> {
        self.index.get(id).map(|&i| &self.nodes[i])
    }

    pub fn get_mut(&mut self, id: &CheckpointId) -> Option<&mut N> {
        self.index.get(id).map(|&i| &mut self.nodes[i])
    }

    /// Adds a node whose parent is in the tree (or absent) and makes it current.
    pub fn push(&mut self, node: N) {
        let id = node.id().clone();
        self.index.insert(id.clone(), self.nodes.len());
        self.nodes.push(node);
        self.current = Some(id);
    }

    /// Takes a node out, which must not be the current one. Its children become its parent's, and are returned too.
    pub fn remove(&mut self, id: &CheckpointId) -> Option<(N, Vec<CheckpointId>)> {
        debug_assert!(self.current.as_ref() != Some(id));
        let place = self.index.remove(id)?;
        let node = self.nodes.remove(place);
        for at in self.index.values_mut().filter(|at| **at > place) {
            *at -= 1;
        }
        let mut children = Vec::new();
        for child in self.nodes.iter_mut().filter(|child| child.parent() == Some(id)) {
            child.set_parent(node.parent().cloned());
            children.push(child.id().clone());
        }
        Some((node, children))
    }

    /// Refuses a label that is taken or that could be read as another kind of reference.
    pub fn check_label(&self, label: &str) -> Result<()> {
        if label.is_empty()
            || label.len() > 200
            || label.starts_with(['@', '~'])
            || label.chars().any(char::is_control)
        {
            return Err(Error::usage(format!(
                "bad label {label:?}: 1 to 200 printable characters, not starting with @ or ~"
            )));
        }
        match self.nodes.iter().find(|node| node.label() == Some(label)) {
            Some(node) => Err(Error::conflict(format!(
                "label {label:?} is taken by checkpoint {}",
                node.id()
            ))
            .hint("choose another label")),
            None => Ok(()),
        }
    }

    /// Finds a checkpoint by `@`, `~N`, `@~N`, `NAME~N`, label, id or unique prefix of an id.
    pub fn resolve(&self, reference: &str) -> Result<&N> {
        if let Some(node) = self.nodes.iter().find(|node| node.label() == Some(reference)) {
            return Ok(node);
        }
        let (name, steps) = split_ancestor(reference)?;
        let mut node = self.resolve_name(name)?;
        for _ in 0..steps {
            let parent = node.parent().and_then(|id| self.get(id));
            node = parent.ok_or_else(|| {
                Error::not_found(format!(
                    "checkpoint {reference:?} does not exist: {} has no parent",
                    node.id()
                ))
                .hint("`deltabox log` shows the tree")
            })?;
        }
        Ok(node)
    }

    fn resolve_name(&self, name: &str) -> Result<&N> {
        if name.is_empty() || name == "@" {
            let current = self.current.as_ref().and_then(|id| self.get(id));
            return current.ok_or_else(|| {
                Error::not_found("there is no checkpoint yet").hint("make one with `deltabox checkpoint`")
            });
        }
        if let Some(node) = self.nodes.iter().find(|n| n.label() == Some(name)) {
            return Ok(node);
        }
        if let Some(node) = self.get(&CheckpointId::from(name)) {
            return Ok(node);
        }
        let mut matching = self.nodes.iter().filter(|n| n.id().as_str().starts_with(name));
        match (matching.next(), matching.next()) {
            (Some(node), None) => Ok(node),
            (Some(_), Some(_)) => Err(Error::usage(format!(
                "checkpoint {name:?} is ambiguous: several ids begin so"
            ))
            .hint("give more digits")),
            (None, _) => Err(Error::not_found(format!(
                "no checkpoint {name:?}: neither a label nor the beginning of an id"
            ))
            .hint("`deltabox log` shows what exists")),
        }
    }
}

/// `~2` is the grandparent of the current one, `x~` the parent of x.
fn split_ancestor(reference: &str) -> Result<(&str, usize)> {
    match reference.rfind('~') {
        None => Ok((reference, 0)),
        Some(at) => {
            let (name, count) = (&reference[..at], &reference[at + 1..]);
            let steps = if count.is_empty() { Ok(1) } else { count.parse() };
            steps
                .map(|n| (name, n))
                .map_err(|_| Error::usage(format!("bad checkpoint {reference:?}: ~ takes a number")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct N(CheckpointId, Option<CheckpointId>, Option<String>);
    impl Node for N {
        fn id(&self) -> &CheckpointId {
            &self.0
        }
        fn parent(&self) -> Option<&CheckpointId> {
            self.1.as_ref()
        }
        fn label(&self) -> Option<&str> {
            self.2.as_deref()
        }
        fn set_parent(&mut self, parent: Option<CheckpointId>) {
            self.1 = parent;
        }
    }

    fn node(id: &str, parent: Option<&str>, label: Option<&str>) -> N {
        N(id.into(), parent.map(Into::into), label.map(Into::into))
    }

    fn tree() -> Tree<N> {
        let mut tree = Tree::new(Vec::new(), None);
        tree.push(node("aa11", None, Some("start")));
        tree.push(node("aa22", Some("aa11"), None));
        tree.push(node("bb33", Some("aa22"), Some("fix one")));
        tree
    }

    fn found(tree: &Tree<N>, reference: &str) -> String {
        tree.resolve(reference)
            .map_or_else(|e| e.to_string(), |n| n.0.to_string())
    }

    #[test]
    fn references_name_nodes() {
        let tree = tree();
        assert_eq!(found(&tree, "@"), "bb33");
        assert_eq!(found(&tree, "~"), "aa22");
        assert_eq!(found(&tree, "~2"), "aa11");
        assert_eq!(found(&tree, "@~2"), "aa11");
        assert_eq!(found(&tree, "fix one~1"), "aa22");
        assert_eq!(found(&tree, "b"), "bb33");
        assert_eq!(found(&tree, "aa2"), "aa22");
        assert_eq!(found(&tree, "start"), "aa11");
        let mut tree = tree;
        tree.push(node("cc44", None, Some("about ~2 seconds")));
        assert_eq!(found(&tree, "about ~2 seconds"), "cc44");
    }

    #[test]
    fn wrong_references_say_why() {
        let tree = tree();
        assert!(found(&tree, "aa").contains("ambiguous"));
        assert!(found(&tree, "zz").contains("no checkpoint \"zz\""));
        assert!(found(&tree, "~3").contains("has no parent"));
        assert!(found(&tree, "~x").contains("takes a number"));
        assert!(found(&Tree::<N>::new(vec![], None), "@").contains("no checkpoint yet"));
    }

    #[test]
    fn children_of_a_removed_node_become_its_parents() {
        let mut tree = tree();
        tree.push(node("cc44", Some("aa22"), None));
        let (removed, children) = tree.remove(&"aa22".into()).unwrap();
        assert_eq!(
            (removed.0, children),
            ("aa22".into(), vec!["bb33".into(), "cc44".into()])
        );
        assert_eq!(found(&tree, "~"), "aa11");
        assert_eq!(found(&tree, "bb33~1"), "aa11");
        assert!(found(&tree, "aa22").contains("no checkpoint"));
        let (_, children) = tree.remove(&"aa11".into()).unwrap();
        assert_eq!(children, ["bb33".into(), "cc44".into()]);
        assert!(found(&tree, "~").contains("has no parent"));
        assert_eq!(
            (found(&tree, "bb"), found(&tree, "cc")),
            ("bb33".into(), "cc44".into())
        );
        assert!(tree.remove(&"aa11".into()).is_none());
    }

    #[test]
    fn labels_are_unique_and_never_look_like_other_references() {
        let tree = tree();
        assert!(tree.check_label("start").is_err());
        assert!(tree.check_label("@x").is_err());
        assert!(tree.check_label("~1").is_err());
        assert!(tree.check_label("").is_err());
        assert!(tree.check_label("new").is_ok());
    }
}
