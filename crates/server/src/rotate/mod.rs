//! Authorities walk: a new root in the place of an old one, gated on acknowledgements; out of service at once when its key
//! has leaked (design, section 6).
//!
//! `walk` is the pure machine: each `root` in its place, the `order` that says which step comes next, and the `gate` that the
//! step waits for. `ledger` is what is out under which authority, `walker` the hands: it takes the steps that the machine
//! allows, each as one commit for the very revision that it was decided on. `approval` is the word of people, `next_key` where
//! the next root's key is to be.

mod approval;
mod ceremony;
mod gate;
mod ledger;
#[cfg(test)]
mod model;
mod next_key;
mod order;
mod recover;
mod root;
mod shown;
#[cfg(test)]
mod tests;
mod walk;
mod walker;

pub(crate) use ceremony::{import, request};
pub(crate) use gate::Gate;
pub(crate) use next_key::NextKey;
pub(crate) use recover::recover;
pub(crate) use shown::{report, shown};
pub(crate) use walk::Walk;
pub(crate) use walker::Walker;
