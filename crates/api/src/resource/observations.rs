//! How much is remembered of what was observed: handshakes, and requests that were answered.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use countersign_identity::Lifetime;
use serde::Serialize;

use super::reader::{Fields, Problems};
use super::tree::Tree;

/// A week, so that last week's deployment can be looked at beside this one's.
const RETENTION: &str = "7d";
/// Of the size that a laptop looks through in a second, and a minute's worth of a large fleet.
const ENTRIES_MAX: u32 = 100_000;
/// More than this would make every look slow.
const ENTRIES_LIMIT: u32 = 5_000_000;

/// How much is remembered of handshakes and of answered requests. Those alike of one minute are one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Observations {
    /// For how long; a week by default.
    #[schemars(with = "Option<super::schema::LifetimeText>")]
    pub retention: Lifetime,
    /// How many entries of each of the two; 100,000 by default. The oldest go first.
    #[schemars(with = "Option<u32>", range(min = 1, max = 5_000_000))]
    pub entries_max: EntriesMax,
}

/// A number of entries from 1 to five million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EntriesMax(NonZeroU32); // INVARIANT: at most ENTRIES_LIMIT

/// A text that is no such number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a number of entries: expected one from 1 to {ENTRIES_LIMIT}")]
pub struct BadEntriesMax(String);

impl EntriesMax {
    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl FromStr for EntriesMax {
    type Err = BadEntriesMax;

    fn from_str(text: &str) -> Result<Self, BadEntriesMax> {
        let number = text.parse().ok().filter(|number: &NonZeroU32| number.get() <= ENTRIES_LIMIT);
        number.map(Self).ok_or_else(|| BadEntriesMax(text.chars().take(80).collect()))
    }
}

impl fmt::Display for EntriesMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Default for Observations {
    fn default() -> Self {
        Self {
            retention: RETENTION.parse().expect("the constant of this file is a lifetime"),
            entries_max: EntriesMax(NonZeroU32::new(ENTRIES_MAX).expect("it is not zero")),
        }
    }
}

impl Observations {
    /// Reads the fields of `spec.observations`.
    pub(super) fn read(tree: &Tree, path: &str, problems: &mut Problems) -> Option<Self> {
        let mut fields = Fields::open(tree, path, problems)?;
        let retention = fields.optional("retention", problems);
        let entries_max = fields.number("entriesMax", problems);
        fields.close(problems);
        let defaults = Self::default();
        Some(Self {
            retention: retention?.unwrap_or(defaults.retention),
            entries_max: entries_max?.unwrap_or(defaults.entries_max),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_entries_has_bounds() {
        for fine in ["1", "100000", "5000000"] {
            assert_eq!(fine.parse::<EntriesMax>().unwrap().to_string(), fine);
        }
        for bad in ["0", "-1", "5000001", "1e3", "", "4294967296"] {
            let why = format!("`{bad}` is not a number of entries: expected one from 1 to 5000000");
            assert_eq!(bad.parse::<EntriesMax>().unwrap_err().to_string(), why);
        }
        assert_eq!(Observations::default().entries_max.get(), ENTRIES_MAX);
    }
}
