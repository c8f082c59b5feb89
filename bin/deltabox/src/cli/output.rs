//! What goes to standard output.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use deltabox_api::{ApiError, ErrorKind};
use serde::Serialize;

use super::failure::Failure;

/// Writes text to standard output; a reader that went away ends the command quietly.
pub fn emit(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| output_failed(&error))
}

/// The API's object as JSON.
pub fn emit_json(object: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(object)
        .map_err(|error| ApiError::new(ErrorKind::Internal, format!("cannot encode the answer: {error}")))?;
    emit(&(text + "\n"))
}

/// A remark for a person: on standard error, and only where a person reads it.
pub fn note(text: &str) {
    if io::stderr().is_terminal() {
        // A remark that cannot be shown is not worth failing for.
        let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
    }
}

/// Why writing output failed.
pub fn output_failed(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::OutputClosed;
    }
    ApiError::new(ErrorKind::Exhausted, format!("cannot write the output: {error}")).into()
}

/// A table without lines, fit for `awk` as for eyes.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().copied());
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    table
}

/// The table's lines without blanks at their ends.
pub fn render(table: &Table) -> String {
    table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// `text` with control characters escaped: names from inside must not steer the caller's terminal.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_letters_are_not() {
        assert_eq!(printable("a\x1b[31m\nü"), "a\\u{1b}[31m\\nü");
    }

    #[test]
    fn a_table_has_no_blanks_at_line_ends() {
        let mut table = table(&["NAME", "STATUS"]);
        table.add_row(["longer-name", "x"]);
        assert_eq!(render(&table), "NAME         STATUS\nlonger-name  x\n");
    }
}
