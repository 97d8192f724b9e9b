//! The one order of every change that a verifier enforces or an agent serves.

use std::fmt;
use std::str::FromStr;

/// Which life of the store a revision belongs to. A restored or fallen-behind store begins a new one.
pub type Incarnation = u64;

/// A point in the one order of changes: pairs compare by incarnation first.
///
/// Written `3.412`; within the first incarnation often just `412`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision {
    /// The life of the store.
    pub incarnation: Incarnation,
    /// The number of the change within it, from 1.
    pub number: u64,
}

/// Why a text is not a revision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a revision: expected `INCARNATION.NUMBER`, such as `1.412`")]
pub struct BadRevision(String);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.number)
    }
}

impl FromStr for Revision {
    type Err = BadRevision;

    fn from_str(text: &str) -> Result<Self, BadRevision> {
        let bad = || BadRevision(text.chars().take(80).collect());
        let (incarnation, number) = text.split_once('.').ok_or_else(bad)?;
        Ok(Self {
            incarnation: incarnation.parse().map_err(|_| bad())?,
            number: number.parse().map_err(|_| bad())?,
        })
    }
}

impl serde::Serialize for Revision {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Revision {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_incarnation_is_after_every_number_of_the_one_before() {
        let old = Revision { incarnation: 1, number: 900 };
        let new = Revision { incarnation: 2, number: 1 };
        assert!(old < new);
        assert_eq!("2.1".parse(), Ok(new));
        assert!("2".parse::<Revision>().is_err());
    }
}
