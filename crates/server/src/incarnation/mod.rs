//! A store that lost its tail (a restored backup, a standby that was behind) begins a new life (design, section 5).
//!
//! Its log starts anew and names the one before, nothing is issued during a hold-off, revocations and suspensions are
//! taken back from the agents that remember them, everything is issued anew, and what is of an earlier incarnation is
//! covered one SVID lifetime later.

mod begin;
mod hand_back;
mod journal;
mod life;
mod log_key;
mod seen;
mod settle;
mod take_in;

pub(crate) use begin::{Beginning, ClockIs, Known, begin, first_start};
pub(crate) use hand_back::{Handed, hand_back, taken_back};
pub(crate) use journal::{Journal, check_kept, line, read_lines, read_rules};
#[cfg(test)]
pub(crate) use life::{Before, Served};
pub(crate) use life::{CURRENT, Cause, Life};
pub(crate) use log_key::LogKey;
pub(crate) use seen::{Beside, Found, Seen, remember};
pub(crate) use settle::{resume_issuing, settle};
pub(crate) use take_in::take_in_the_rest;
