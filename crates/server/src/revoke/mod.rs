//! What was issued is taken out of service, and what would be issued is stopped; who enforces it, and until when it
//! matters if somebody does not (design, section 11).

mod converge;
mod exposure;
mod holdings;
mod inherited;
mod living;
#[cfg(test)]
mod model;
mod order;
mod plan;
mod prune;
mod remembered;
mod replicas;
mod stops;
mod trial;
mod unaware;
mod watched;

pub(crate) use converge::{Progress, converged, look, progress};
pub(crate) use holdings::{held, is_covered};
pub(crate) use living::forget;
pub(crate) use order::{
    Suspending, in_force, revoke, shown, suspend, trial_batch, try_out, unjournaled,
};
pub(crate) use plan::{condemned, removed, retired, suspension_change, suspension_name};
pub(crate) use prune::{drop_moot, prune};
pub(crate) use remembered::Remembered;
pub(crate) use replicas::{Replicas, talk};
pub(crate) use unaware::unaware;
pub(crate) use watched::{Advance, Converging, Watched};
