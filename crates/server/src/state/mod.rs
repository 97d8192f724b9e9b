//! The trust domain's state in memory: one snapshot, shared by all who decide on it, fed by the store's changes.

mod follow;
mod index;
mod shown;
mod snapshot;

pub(crate) use follow::{Feeder, StateFeed, Trouble};
pub(crate) use snapshot::{Entry, Key, Parsed, State, declared};
