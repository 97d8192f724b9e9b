//! What every part of the data plane shares.

use std::sync::Arc;

use countersign::requests::Requests;
use countersign_identity::{Clock, Entropy};
use countersign_program::trace::Tracer;
use countersign_tls::{Room, Source, Standings, Trust};

use crate::alarms::Alarms;
use crate::facts::Facts;
use crate::metrics::Metrics;
use crate::retire::Jitter;
use crate::tasks::Tasks;

/// Trust, time, chance, and where facts and tasks go. One per proxy.
pub(crate) struct Plane {
    pub(crate) trust: Arc<Trust>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) alarms: Arc<Alarms>,
    pub(crate) tasks: Tasks,
    pub(crate) facts: Facts,
    /// Decides on requests, and knows what peers have taken of what policies permit, by all doors together.
    pub(crate) requests: Requests,
    pub(crate) metrics: Metrics,
    pub(crate) tracer: Tracer,
    /// Of all doors together: who floods one is not welcome at another.
    pub(crate) standings: Standings,
    /// Handshakes with those who come, at all doors together: crowds at two of them keep nobody from a third.
    pub(crate) under_way: Room<Source>,
}

impl Plane {
    /// A share by which one connection retires earlier than others of its age.
    pub(crate) fn jitter(&self) -> Jitter {
        let mut byte = [0];
        // Without randomness all retire together, which is a burst and not a fault.
        let filled = self.entropy.fill(&mut byte);
        Jitter(filled.map_or(0, |()| byte[0]))
    }
}
