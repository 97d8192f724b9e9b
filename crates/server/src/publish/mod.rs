//! What each agent is told of the state: its slice, then every change of it, in order.

mod arrival;
mod leash;
mod publication;
mod report;
mod roster;
mod slice;
mod stream;

pub(crate) use arrival::reckon;
pub(crate) use leash::Leashed;
pub(crate) use publication::{Next, Publication, SILENCE_LIMIT};
pub(crate) use report::report;
pub(crate) use roster::standing::{Fleet, Reach, Standing, Told};
pub(crate) use roster::{Presence, Roster};
pub(crate) use slice::{Slice, Slices};
pub(crate) use stream::{Live, attend, expired, hear, known, open};
