//! What happened, in lines that two runs of one seed have in common byte for byte.

use std::fmt::Write as _;
use std::time::Duration;

/// The lines of a run. They hold simulated time, names and numbers: no keys, and no real time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    text: String,
}

impl Trace {
    pub(crate) fn add(&mut self, at: Duration, what: &str) {
        writeln!(self.text, "{:>6}.{:06} {what}", at.as_secs(), at.subsec_micros())
            .expect("a string takes all that is written");
    }

    /// All lines.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The last lines, for a failure's message.
    pub fn tail(&self, lines: usize) -> String {
        let all: Vec<&str> = self.text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}
