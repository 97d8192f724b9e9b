//! Enforcement: each enforcement point gets its slice of the state, and says what it enforces.
//!
//! Only attested callers with a workload, and at most 8 points a process. A slice holds what the caller's
//! own services need and nothing else. An acknowledgement counts for the point whose stream sent it, and only up to the
//! revision that was sent to it.

mod ears;
mod forgotten;
mod holders;
mod points;
mod service;
pub(crate) mod slice;

pub(crate) use ears::Ears;
pub(crate) use holders::Holding;
pub(crate) use points::{Points, Tryable};
pub(crate) use service::EnforcementService;
pub use slice::{cut, withdrawn};

/// How many points one process may have.
const POINTS_MAX: usize = 8;
