//! Which layer lies on which: the tree of a volume, kept in the names of its directories.
//!
//! A layer's directory is named after what it lies on, so the tree needs no file of its own, travels with every
//! snapshot, and changes by one atomic rename:
//!
//! | name | is |
//! |---|---|
//! | `<id>.mask` | the bottom layer that hides parts of the base |
//! | `<id>.<parent>` | a frozen layer on `parent` (`0`: directly on the base) |
//! | `<id>.<top>.<below>` | all layers from `top` down to, but without, `below` merged into one |

use std::collections::HashMap;

use crate::ids::LayerId;

/// Meaning of the name of a layer's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LayerName {
    Mask {
        id: LayerId,
    },
    Plain {
        id: LayerId,
        parent: Option<LayerId>,
    },
    Merged {
        id: LayerId,
        top: LayerId,
        below: Option<LayerId>,
    },
}

impl LayerName {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('.');
        let id: LayerId = parts.next()?.parse().ok()?;
        let second = parts.next()?;
        let third = parts.next();
        if parts.next().is_some() {
            return None;
        }
        let reference = |text: &str| -> Option<Option<LayerId>> {
            let id: LayerId = text.parse().ok()?;
            Some((id.0 != 0).then_some(id))
        };
        match third {
            None if second == "mask" => Some(Self::Mask { id }),
            None => Some(Self::Plain {
                id,
                parent: reference(second)?,
            }),
            Some(below) => Some(Self::Merged {
                id,
                top: second.parse().ok()?,
                below: reference(below)?,
            }),
        }
    }

    pub(crate) fn id(self) -> LayerId {
        match self {
            Self::Mask { id } | Self::Plain { id, .. } | Self::Merged { id, .. } => id,
        }
    }

    /// The uppermost layer of those it shows.
    pub(crate) fn top(self) -> LayerId {
        match self {
            Self::Merged { top, .. } => top,
            other => other.id(),
        }
    }

    /// What comes below this layer in a chain.
    pub(crate) fn below(self) -> Option<LayerId> {
        match self {
            Self::Mask { .. } => None,
            Self::Plain { parent, .. } => parent,
            Self::Merged { below, .. } => below,
        }
    }
}

impl std::fmt::Display for LayerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = |id: Option<LayerId>| id.map_or(0, |id| id.0);
        match *self {
            Self::Mask { id } => write!(f, "{id}.mask"),
            Self::Plain { id, parent } => write!(f, "{id}.{:x}", number(parent)),
            Self::Merged { id, top, below } => write!(f, "{id}.{top}.{:x}", number(below)),
        }
    }
}

/// The layers of a volume.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    plain: HashMap<LayerId, LayerName>,
    /// By the uppermost layer merged. Of several, the last one made covers most.
    merged: HashMap<LayerId, Vec<LayerName>>,
}

impl Tree {
    pub(crate) fn insert(&mut self, name: LayerName) {
        match name {
            LayerName::Merged { id, top, .. } => {
                let list = self.merged.entry(top).or_default();
                let at = list.partition_point(|other| other.id() < id);
                list.insert(at, name);
            }
            _ => {
                self.plain.insert(name.id(), name);
            }
        }
    }

    pub(crate) fn remove(&mut self, name: LayerName) {
        match name {
            LayerName::Merged { top, .. } => {
                if let Some(list) = self.merged.get_mut(&top) {
                    list.retain(|other| *other != name);
                    if list.is_empty() {
                        self.merged.remove(&top);
                    }
                }
            }
            _ => {
                self.plain.remove(&name.id());
            }
        }
    }

    /// The chain of `top` without merged layers. `None` when one of them was removed.
    pub(crate) fn plain_chain(&self, top: Option<LayerId>) -> Option<Vec<LayerName>> {
        let mut chain = Vec::new();
        let mut at = top;
        while let Some(id) = at {
            let name = *self.plain.get(&id)?;
            chain.push(name);
            at = name.below();
        }
        Some(chain)
    }

    /// The shortest list of directories that shows what `run`, a part of a plain chain, shows.
    pub(crate) fn chain_of(&self, run: &[LayerName]) -> Vec<LayerName> {
        let mut chain = Vec::new();
        let mut at = 0;
        while let Some(name) = run.get(at) {
            // How many layers of the run a merged one covers, if it ends in it.
            let covers = |merged: &LayerName| match merged.below() {
                None => (run.last().and_then(|last| last.below()).is_none()).then_some(run.len() - at),
                below => match run[at..].iter().position(|other| Some(other.id()) == below) {
                    Some(count) => Some(count),
                    None => (run.last().and_then(|last| last.below()) == below).then_some(run.len() - at),
                },
            };
            let merged = self.merged.get(&name.id()).into_iter().flatten();
            let best = merged
                .filter_map(|merged| Some((covers(merged)?, *merged)))
                .max_by_key(|(count, _)| *count);
            match best {
                Some((count, merged)) if count > 0 => {
                    chain.push(merged);
                    at += count;
                }
                _ => {
                    chain.push(*name);
                    at += 1;
                }
            }
        }
        chain
    }

    /// The shortest chain of directories that shows what `top` shows, uppermost first. `None` when a layer of it is
    /// not there.
    pub(crate) fn chain(&self, top: Option<LayerId>) -> Option<Vec<LayerName>> {
        let mut chain = Vec::new();
        let mut at = top;
        while let Some(id) = at {
            let name = match self.merged.get(&id).and_then(|list| list.last()) {
                Some(merged) => *merged,
                None => *self.plain.get(&id)?,
            };
            chain.push(name);
            at = name.below();
        }
        Some(chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> LayerId {
        LayerId(number)
    }

    #[test]
    fn names_survive_a_round_trip() {
        for name in [
            LayerName::Mask { id: id(0x1f) },
            LayerName::Plain {
                id: id(7),
                parent: None,
            },
            LayerName::Plain {
                id: id(8),
                parent: Some(id(7)),
            },
            LayerName::Merged {
                id: id(9),
                top: id(8),
                below: None,
            },
            LayerName::Merged {
                id: id(10),
                top: id(8),
                below: Some(id(7)),
            },
        ] {
            assert_eq!(LayerName::parse(&name.to_string()), Some(name));
        }
        for bad in ["", "x", "1", "1.2.3.4", "1.zz", "tmp.3"] {
            assert_eq!(LayerName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_merged_layer_replaces_what_it_covers() {
        let mut tree = Tree::default();
        tree.insert(LayerName::Mask { id: id(1) });
        for number in 2..=9 {
            tree.insert(LayerName::Plain {
                id: id(number),
                parent: Some(id(number - 1)),
            });
        }
        assert_eq!(tree.chain(Some(id(9))).unwrap().len(), 9);
        tree.insert(LayerName::Merged {
            id: id(20),
            top: id(8),
            below: Some(id(4)),
        });
        let numbers = |top| -> Vec<u64> {
            tree.chain(Some(id(top)))
                .unwrap()
                .iter()
                .map(|n| n.id().0)
                .collect()
        };
        assert_eq!(numbers(9), [9, 20, 4, 3, 2, 1]);
        assert_eq!(numbers(6), [6, 5, 4, 3, 2, 1]);
        tree.insert(LayerName::Merged {
            id: id(21),
            top: id(8),
            below: Some(id(1)),
        });
        assert_eq!(tree.chain(Some(id(8))).unwrap().len(), 2);
        let plain = tree.plain_chain(Some(id(9))).unwrap();
        assert_eq!(plain.len(), 9);
        let ids =
            |run: &[LayerName]| -> Vec<u64> { tree.chain_of(run).iter().map(|name| name.id().0).collect() };
        assert_eq!(ids(&plain), [9, 21, 1]);
        assert_eq!(ids(&plain[..8]), [9, 21]);
        assert_eq!(ids(&plain[..7]), [9, 20, 4, 3]);
        assert_eq!(ids(&plain[..4]), [9, 8, 7, 6]);
        assert_eq!(ids(&plain[2..]), [7, 6, 5, 4, 3, 2, 1]);
        tree.remove(LayerName::Plain {
            id: id(3),
            parent: Some(id(2)),
        });
        assert!(tree.chain(Some(id(6))).is_none());
        assert!(tree.chain(None).unwrap().is_empty());
    }
}
