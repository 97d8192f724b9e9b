//! The trust domain's state in memory: one snapshot, shared by all who decide on it, fed by the store's changes.

mod entry;
mod follow;
mod index;
mod shown;
mod snapshot;

pub(crate) use entry::{Entry, Key, Parsed, declared};
pub(crate) use follow::{Feeder, StateFeed, Trouble};
pub(crate) use snapshot::State;
