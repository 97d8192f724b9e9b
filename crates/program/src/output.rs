//! What the program says, to people and to scripts.

use std::io::{ErrorKind, Write as _};

use anyhow::Result;
use countersign_identity::is_unseen;

use crate::exit::OutputClosed;

/// The widest that a cell of a table may be which others follow.
const CELL_CHARS_MAX: usize = 120;

/// For whom the program speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Sentences and tables.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Writes to standard output as a whole.
///
/// # Errors
/// [`OutputClosed`] when nobody reads it any more; `main` then ends without a word.
pub fn write(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to standard output")),
    }
}

/// Writes a line to standard output.
///
/// # Errors
/// As [`write`].
pub fn line(text: &str) -> Result<()> {
    write(format!("{text}\n").as_bytes())
}

/// Writes a line to standard error, for whoever looks. That nobody can, since its disk is full or its reader has gone, ends no
/// program.
pub fn aside(text: &str) {
    let _unheard = writeln!(std::io::stderr(), "{text}");
}

/// Writes one JSON object as a line.
///
/// # Errors
/// As [`write`].
pub fn json(value: &impl serde::Serialize) -> Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Columns for people: as wide as their widest cell, two blanks between them.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these names of columns.
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![head.iter().map(|cell| cell.to_uppercase()).collect()] }
    }

    /// Adds a line. Its last cell, which pushes nothing out of sight, is whole.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        let mut cells: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        if let Some((_last, others)) = cells.split_last_mut() {
            others.iter_mut().for_each(shorten);
        }
        self.rows.push(cells);
    }

    /// Whether it has no line but the names.
    pub fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    /// The lines, each with a blank margin of `indent`.
    pub fn render(&self, indent: usize) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            text.push_str(format!("{:indent$}{}", "", cells.join("  ")).trim_end());
            text.push('\n');
        }
        text
    }
}

/// A text of unknown origin, without what would move a terminal's cursor or turn the order of what is read.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_unseen(c) { '\u{fffd}' } else { c }).collect()
}

/// Leaves the beginning and the end of what is too long for a cell; the JSON form tells all of it.
fn shorten(text: &mut String) {
    let chars = text.chars().count();
    if CELL_CHARS_MAX < chars {
        let begin = text.chars().take(CELL_CHARS_MAX * 2 / 3);
        let end = text.chars().skip(chars - CELL_CHARS_MAX / 3);
        *text = begin.chain(['\u{2026}']).chain(end).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_cells_cannot_move_the_cursor() {
        let mut table = Table::new(["name", "id"]);
        table.row(["é".to_owned(), "spiffe://a\u{1b}[2J".to_owned()]);
        table.row(["orders".to_owned(), String::new()]);
        assert_eq!(table.render(2), "  NAME    ID\n  é       spiffe://a\u{fffd}[2J\n  orders\n");
    }

    #[test]
    fn name_of_2048_bytes_leaves_the_others_in_sight() {
        let mut table = Table::new(["name", "id"]);
        table.row([format!("a{}z", "é".repeat(1023)), "\u{202e}\u{200b}x".to_owned()]);
        table.row(["web".to_owned(), "y".to_owned()]);
        let text = table.render(0);
        assert!(text.lines().all(|line| line.chars().count() < 2 * CELL_CHARS_MAX), "{text}");
        let line = text.lines().nth(1).unwrap();
        assert!(line.starts_with("aé") && line.contains("éz  \u{fffd}\u{fffd}x"), "{line}");
    }
}
