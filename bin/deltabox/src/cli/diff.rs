//! `deltabox diff`

use std::fmt::Write;
use std::io::IsTerminal;

use deltabox_api::{Change, ChangeKind, Diff};

use super::failure::Outcome;
use super::output::{emit, emit_json, printable};
use super::units::size;
use crate::client::{Client, escape, sandbox_path};

/// List what differs between two states of the files
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    /// The older state; the current checkpoint when absent
    a: Option<String>,
    /// The newer state; the live one when absent
    b: Option<String>,
    /// Show unified diffs of text files
    #[arg(long)]
    text: bool,
    /// Only this path and what is below it
    #[arg(long)]
    path: Option<String>,
    /// Print the differences as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let mut query = format!("/diff?text={}", args.text);
    for (key, value) in [("from", &args.a), ("to", &args.b), ("path", &args.path)] {
        if let Some(value) = value {
            query += &format!("&{key}={}", escape(value));
        }
    }
    let diff: Diff = Client::from_env()?.get(&sandbox_path(&args.name, &query))?;
    if args.json {
        emit_json(&diff)?;
    } else {
        emit(&describe(&diff.changes, std::io::stdout().is_terminal()))?;
    }
    Ok(0)
}

/// One line per change, followed by its text if there is any.
pub fn describe(changes: &[Change], terminal: bool) -> String {
    let mut text = String::new();
    for change in changes {
        let letter = match change.kind {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'M',
            ChangeKind::Deleted => 'D',
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{letter} {}{}", printable(&change.path), sizes(change));
        if let Some(diff) = &change.text {
            if terminal {
                diff.lines().for_each(|line| {
                    let _ = writeln!(text, "{}", printable(line).replace("\\t", "\t"));
                });
            } else {
                text += diff;
                if !diff.ends_with('\n') {
                    text.push('\n');
                }
            }
        }
    }
    text
}

fn sizes(change: &Change) -> String {
    let kind = match change.file_type.as_str() {
        "file" => "",
        other => other,
    };
    let sizes = match (change.size_before_bytes, change.size_after_bytes) {
        _ if !kind.is_empty() => return format!("  ({kind})"),
        (Some(before), Some(after)) if before != after => format!("{} -> {}", size(before), size(after)),
        (_, Some(bytes)) | (Some(bytes), None) => size(bytes),
        (None, None) => return String::new(),
    };
    format!("  ({sizes})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: ChangeKind, file_type: &str, before: Option<u64>, after: Option<u64>) -> Change {
        Change {
            path: "/a\x1bb".to_owned(),
            kind,
            file_type: file_type.to_owned(),
            size_before_bytes: before,
            size_after_bytes: after,
            text: None,
        }
    }

    #[test]
    fn each_change_is_one_line_that_cannot_steer_a_terminal() {
        let changes = [
            change(ChangeKind::Added, "directory", None, None),
            change(ChangeKind::Changed, "file", Some(10), Some(2048)),
            change(ChangeKind::Deleted, "file", Some(10), None),
        ];
        let text = describe(&changes, false);
        assert_eq!(
            text,
            "A /a\\u{1b}b  (directory)\nM /a\\u{1b}b  (10 B -> 2.0 KiB)\nD /a\\u{1b}b  (10 B)\n"
        );
    }

    #[test]
    fn text_is_passed_on_byte_for_byte_except_to_a_terminal() {
        let mut changed = change(ChangeKind::Changed, "file", Some(1), Some(1));
        changed.text = Some("-a\x1b\n+b\t\n".to_owned());
        assert!(describe(std::slice::from_ref(&changed), false).ends_with("\n-a\x1b\n+b\t\n"));
        assert!(describe(&[changed], true).ends_with("\n-a\\u{1b}\n+b\t\n"));
    }
}
