//! What happened, in lines that two runs of one seed have in common byte for byte.

use std::fmt::Write as _;
use std::time::Duration;

/// The lines of a run. They hold simulated time, names and numbers: no keys, and no real time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    text: String,
    /// So many bytes are kept at least, and about twice as many at most.
    keeps: usize,
    lines: u64,
    sum: u64,
}

impl Default for Trace {
    fn default() -> Self {
        Self { text: String::new(), keeps: usize::MAX, lines: 0, sum: FNV_BASIS }
    }
}

impl Trace {
    pub(crate) fn add(&mut self, at: Duration, what: &str) {
        let before = self.text.len();
        writeln!(self.text, "{:>6}.{:06} {what}", at.as_secs(), at.subsec_micros())
            .expect("a string takes all that is written");
        self.lines += 1;
        let line = &self.text.as_bytes()[before..];
        let add = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        self.sum = line.iter().fold(self.sum, add);
        if self.keeps.saturating_mul(2) < self.text.len() {
            let before = &self.text.as_bytes()[..self.text.len() - self.keeps];
            let line = before.iter().rposition(|byte| *byte == b'\n');
            self.text.drain(..line.map_or(0, |end| end + 1));
        }
    }

    pub(crate) fn keep(&mut self, bytes: usize) {
        self.keeps = bytes;
    }

    /// How many lines there were, and a sum over all their bytes, also of those that are not kept.
    pub fn sum(&self) -> (u64, u64) {
        (self.lines, self.sum)
    }

    /// All lines that are kept.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The last lines, for a failure's message.
    pub fn tail(&self, lines: usize) -> String {
        let all: Vec<&str> = self.text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// FNV-1a, of 64 bits: nobody forges a trace.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
