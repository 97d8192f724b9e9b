//! What a review finds, and how that is told.

use std::fmt;

use countersign_identity::Revision;

/// Something that is not as it was when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Events are not there.
    Missing {
        /// The first of them.
        from: u64,
        /// The last of them.
        to: u64,
    },
    /// An event stands behind a later one.
    Misplaced {
        /// Which.
        index: u64,
        /// Which one was to follow.
        expected: u64,
    },
    /// An event says something else than what was hashed.
    Changed {
        /// Which.
        index: u64,
    },
    /// An event is not one of this version.
    Unreadable {
        /// Which.
        index: u64,
        /// Why.
        why: String,
    },
    /// The details beside an event are others.
    DetailsChanged {
        /// Of which.
        index: u64,
    },
    /// An event is of an earlier revision than the one before it, or of one that was never reached.
    OutOfOrder {
        /// Which.
        index: u64,
        /// Of which revision it says it is.
        revision: Revision,
    },
    /// Two events have changed places: put back, they give what was signed.
    Swapped {
        /// The one.
        one: u64,
        /// The other.
        other: u64,
    },
    /// One or more of these events are not those that were signed, or stand in another order.
    Rewritten {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
        /// What shows it.
        against: String,
    },
    /// The log ends before a size that it once had.
    Truncated {
        /// Where it ends.
        leaves: u64,
        /// How many it had.
        size: u64,
        /// What shows it.
        against: String,
    },
    /// A stored hash of the tree is not that of its leaves.
    TileChanged {
        /// Its level.
        level: u8,
        /// Its place.
        position: u64,
    },
    /// Two statements of the log's own key exclude each other.
    Forked {
        /// The size of the one that does not belong to these events.
        size: u64,
        /// Where it is from.
        against: String,
    },
}

impl Finding {
    /// The first event that it is about, if it is about events.
    pub fn index(&self) -> Option<u64> {
        match self {
            Self::Missing { from, .. } | Self::Rewritten { from, .. } => Some(*from),
            Self::Changed { index }
            | Self::Misplaced { index, .. }
            | Self::Unreadable { index, .. }
            | Self::DetailsChanged { index }
            | Self::OutOfOrder { index, .. } => Some(*index),
            Self::Swapped { one, .. } => Some(*one),
            Self::Truncated { leaves, .. } => Some(*leaves),
            Self::TileChanged { .. } | Self::Forked { .. } => None,
        }
    }

    /// A stable word for what it is.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing",
            Self::Misplaced { .. } => "misplaced",
            Self::Changed { .. } => "changed",
            Self::Unreadable { .. } => "unreadable",
            Self::DetailsChanged { .. } => "details-changed",
            Self::OutOfOrder { .. } => "out-of-order",
            Self::Swapped { .. } => "swapped",
            Self::Rewritten { .. } => "rewritten",
            Self::Truncated { .. } => "truncated",
            Self::TileChanged { .. } => "tile-changed",
            Self::Forked { .. } => "forked",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { from, to } if from == to => write!(f, "event {from} is missing"),
            Self::Missing { from, to } => write!(f, "events {from} to {to} are missing"),
            Self::Misplaced { index, expected } => {
                write!(f, "event {index} stands where event {expected} is to follow")
            }
            Self::Changed { index } => {
                write!(f, "event {index} was changed: it does not have the hash that it had")
            }
            Self::Unreadable { index, why } => write!(f, "event {index} cannot be read: {why}"),
            Self::DetailsChanged { index } => {
                write!(f, "the details of event {index} were changed")
            }
            Self::OutOfOrder { index, revision } => {
                write!(f, "event {index} of revision {revision} is out of order")
            }
            Self::Swapped { one, other } => {
                write!(f, "events {one} and {other} have changed places")
            }
            Self::Rewritten { from, to, against } if from == to => {
                write!(f, "event {from} is not the one of {against}")
            }
            Self::Rewritten { from, to, against } => {
                write!(
                    f,
                    "events {from} to {to} are not those of {against}: at least one was changed or moved"
                )
            }
            Self::Truncated { leaves, size, against } => {
                write!(
                    f,
                    "the log was cut off: it ends after {leaves} events, {against} counts {size}"
                )
            }
            Self::TileChanged { level, position } => {
                write!(f, "hash {position} of the tree's level {level} was changed")
            }
            Self::Forked { size, against } => {
                write!(
                    f,
                    "{against} is of another log than these events: two logs of {size} events were signed"
                )
            }
        }
    }
}
