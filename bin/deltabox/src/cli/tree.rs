//! The tree of checkpoints as lines of text.
//!
//! The path to the current checkpoint is the trunk and goes straight down; other children branch off to the right.
//! So a long history without branches has no indentation at all.

use std::collections::{HashMap, HashSet};

use deltabox_api::{CheckpointInfo, Log};

use super::output::printable;
use super::units::{age, count, size, size_or_dash};

/// Draws the tree, roots first, the trunk last.
pub fn draw(log: &Log) -> String {
    let rows = layout(log);
    let graph_width = rows
        .iter()
        .map(|row| row.graph.chars().count())
        .max()
        .unwrap_or(0);
    let columns: Vec<[String; 8]> = rows
        .iter()
        .map(|row| columns(row.checkpoint, log.current.as_deref()))
        .collect();
    let mut widths = [0; 8];
    for row in &columns {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (row, columns) in rows.iter().zip(&columns) {
        let mut line = format!("{:graph_width$}", row.graph);
        for (cell, width) in columns.iter().zip(widths).filter(|(_, width)| *width > 0) {
            line += &format!("  {cell:width$}");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn columns(checkpoint: &CheckpointInfo, current: Option<&str>) -> [String; 8] {
    [
        checkpoint.id.clone(),
        checkpoint.label.as_deref().map(printable).unwrap_or_default(),
        format!("{} ago", age(checkpoint.created_unix_ms)),
        format!("files {}", size_or_dash(checkpoint.file_bytes)),
        match checkpoint.processes {
            0 => String::new(),
            n => format!(
                "memory {}, {}",
                size(checkpoint.memory_bytes),
                count(n, "process", "processes")
            ),
        },
        checkpoint.disk.map_or_else(String::new, |disk| {
            format!(
                "disk {} + {} shared",
                size(disk.private_bytes),
                size(disk.shared_bytes)
            )
        }),
        if checkpoint.pinned { "pinned" } else { "" }.to_owned(),
        match (current == Some(&checkpoint.id), checkpoint.durable) {
            (true, true) => "durable  <- current".to_owned(),
            (true, false) => "         <- current".to_owned(),
            (false, true) => "durable".to_owned(),
            (false, false) => String::new(),
        },
    ]
}

struct Row<'a> {
    graph: String,
    checkpoint: &'a CheckpointInfo,
}

fn layout(log: &Log) -> Vec<Row<'_>> {
    let known: HashMap<&str, &CheckpointInfo> = log.checkpoints.iter().map(|c| (c.id.as_str(), c)).collect();
    let trunk = trunk(&known, log.current.as_deref());
    // A parent that was dropped from the history leaves its children as roots.
    let parent_of = |c: &CheckpointInfo| {
        c.parent
            .as_deref()
            .and_then(|id| known.get(id))
            .map(|p| p.id.as_str())
    };
    let mut children: HashMap<Option<&str>, Vec<&CheckpointInfo>> = HashMap::new();
    for checkpoint in &log.checkpoints {
        let parent = parent_of(checkpoint);
        let parent = parent.map(|id| known[id].id.as_str());
        children.entry(parent).or_default().push(checkpoint);
    }
    for siblings in children.values_mut() {
        siblings.sort_by_key(|c| (trunk.contains(c.id.as_str()), c.created_unix_ms));
    }
    // A stack instead of recursion: histories are thousands of checkpoints deep.
    let mut rows = Vec::new();
    let roots = children.get(&None).map_or(&[][..], Vec::as_slice);
    let mut stack: Vec<(String, bool, &CheckpointInfo)> = roots
        .iter()
        .rev()
        .map(|root| (String::new(), false, *root))
        .collect();
    while let Some((prefix, branches, checkpoint)) = stack.pop() {
        let mark = if log.current.as_deref() == Some(&checkpoint.id) {
            "●"
        } else {
            "○"
        };
        let fork = if branches { "├─" } else { "" };
        rows.push(Row {
            graph: format!("{prefix}{fork}{mark}"),
            checkpoint,
        });
        let below = if branches { format!("{prefix}│ ") } else { prefix };
        let children = children
            .get(&Some(checkpoint.id.as_str()))
            .map_or(&[][..], Vec::as_slice);
        for (index, child) in children.iter().enumerate().rev() {
            // The last one goes straight down.
            stack.push((below.clone(), index + 1 < children.len(), child));
        }
    }
    rows
}

/// The current checkpoint and its ancestors.
fn trunk<'a>(known: &HashMap<&str, &'a CheckpointInfo>, current: Option<&str>) -> HashSet<&'a str> {
    let mut trunk = HashSet::new();
    let mut next = current.and_then(|id| known.get(id)).copied();
    while let Some(checkpoint) = next {
        if !trunk.insert(checkpoint.id.as_str()) {
            break;
        }
        next = checkpoint.parent.as_deref().and_then(|id| known.get(id)).copied();
    }
    trunk
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(edges: &[(&str, &str)], current: &str) -> Log {
        let checkpoints = edges
            .iter()
            .enumerate()
            .map(|(index, (id, parent))| CheckpointInfo {
                id: (*id).to_owned(),
                parent: (!parent.is_empty()).then(|| (*parent).to_owned()),
                label: None,
                token: None,
                created_unix_ms: index as u64,
                file_bytes: Some(0),
                memory_bytes: 0,
                processes: 0,
                pinned: false,
                durable: false,
                disk: None,
            });
        Log {
            disk: None,
            checkpoints: checkpoints.collect(),
            current: Some(current.to_owned()),
        }
    }

    fn graph(log: &Log) -> Vec<String> {
        layout(log)
            .iter()
            .map(|row| format!("{} {}", row.graph, row.checkpoint.id))
            .collect()
    }

    #[test]
    fn the_current_path_is_the_trunk_and_others_branch_off() {
        let edges = [
            ("a", ""),
            ("b", "a"),
            ("c", "b"),
            ("d", "b"),
            ("e", "a"),
            ("f", "e"),
            ("g", "b"),
        ];
        let expected = ["○ a", "├─○ e", "│ ○ f", "├─○ c", "├─○ d", "● g"];
        let drawn = graph(&log(&edges, "g"));
        assert_eq!(
            drawn
                .iter()
                .filter(|row| !row.ends_with(" b"))
                .collect::<Vec<_>>(),
            expected.iter().collect::<Vec<_>>()
        );
        assert_eq!(drawn[3], "○ b");
    }

    #[test]
    fn a_branch_of_a_branch_is_indented_below_it() {
        let edges = [("a", ""), ("b", "a"), ("c", "b"), ("d", "b"), ("e", "a")];
        assert_eq!(
            graph(&log(&edges, "e")),
            ["○ a", "├─○ b", "│ ├─○ c", "│ ○ d", "● e"]
        );
    }

    #[test]
    fn a_long_history_is_not_indented_and_does_not_exhaust_the_stack() {
        let ids: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();
        let edges: Vec<(&str, &str)> = ids
            .iter()
            .enumerate()
            .map(|(n, id)| (id.as_str(), if n == 0 { "" } else { ids[n - 1].as_str() }))
            .collect();
        let drawn = graph(&log(&edges, "19999"));
        assert_eq!(drawn.len(), 20_000);
        assert_eq!(drawn[19_999], "● 19999");
    }

    #[test]
    fn checkpoints_whose_parent_is_gone_are_roots() {
        assert_eq!(
            graph(&log(&[("b", "gone"), ("c", "b"), ("d", "")], "c")),
            ["○ d", "○ b", "● c"]
        );
    }

    #[test]
    fn columns_are_aligned_and_the_current_one_is_marked() {
        let mut log = log(&[("aaaa", ""), ("bbbb", "aaaa")], "bbbb");
        log.checkpoints[0].label = Some("before\x1b".to_owned());
        let text = draw(&log);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("○  aaaa  before\\u{1b}  "), "{text}");
        assert!(lines[1].starts_with("●  bbbb                "), "{text}");
        assert!(lines[1].ends_with("<- current"), "{text}");
    }
}
