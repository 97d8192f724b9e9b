//! Certificates: who may have which, and the one way in which they come to be.
//!
//! authorise on the snapshot → build → review → record → sign → verify → answer (design, section 7).

mod authorise;
mod desk;
mod own;
mod sign;

pub(crate) use authorise::{authorise, open_to};
pub(crate) use desk::{Cause, Desk, Order, Svid, Wanted};
pub(crate) use own::Own;
pub(crate) use sign::sign;
