//! What the agent makes of what others say to it, each as one step: without sockets, tasks and waiting, for fuzzing.
//!
//! What is read, bounded and kept here is read, bounded and kept by the code that serves.

use std::sync::Arc;

use bytes::Bytes;
use countersign::Decider;
use countersign_api::envoy::{AttributeContext, CheckResponse};
use countersign_api::v1;
use countersign_identity::{Clock, Revision, SpiffeId, Timestamp};
use tonic::Status;

use crate::attest::Caller;
use crate::enforcement::{Ears, Points};
use crate::envoy;
use crate::lists::RevocationLists;
use crate::reports::{Facts, Ours, Reports};
use crate::server_link::LinkFault;

/// The stream of one enforcement point.
pub struct PointStream {
    caller: Arc<dyn Caller>,
    id: SpiffeId,
    ears: Ears,
    points: Points,
    reports: Reports,
    told: Option<Revision>,
}

impl PointStream {
    /// A stream of this process, which is this workload, and to which a slice of this revision is sent once it registers.
    pub fn open(
        clock: Arc<dyn Clock>,
        caller: Arc<dyn Caller>,
        id: SpiffeId,
        told: Revision,
    ) -> Self {
        let (facts, points) = (Facts::default(), Points::new(Arc::clone(&clock)));
        let ears = Ears::new(facts.clone());
        let reports = Reports { clock, facts, points: points.clone() };
        Self { caller, id, ears, points, reports, told: Some(told) }
    }

    /// Takes one message. Of facts, those of doors of these services and of its own dialling only.
    ///
    /// # Errors
    /// When the stream ends by it.
    pub fn hear(
        &mut self,
        request: v1::EnforcementRequest,
        owns: impl Fn(&str) -> bool,
    ) -> Result<(), Status> {
        let ours = Ours { ids: std::slice::from_ref(&self.id), owns: &owns };
        self.ears.hear(request, self.told, &ours)?;
        if let Some(register) = self.ears.waiting() {
            let registered = self.points.register(&self.caller, &self.id, register);
            let registered =
                registered.map_err(|why| Status::resource_exhausted(why.to_string()))?;
            self.ears.place(registered);
        }
        Ok(())
    }

    /// What the server is told that the point enforces.
    pub fn acknowledgements(&self) -> Vec<v1::PointAck> {
        self.points.acknowledgements(self.told)
    }

    /// What the server is told in the next report.
    pub fn report(&self) -> v1::ReportRequest {
        self.reports.next(Vec::new(), None)
    }
}

/// The answer to what Envoy asks, by what decides for who asks.
pub fn check(attributes: &AttributeContext, decider: &Decider, now: Timestamp) -> CheckResponse {
    envoy::answer(attributes, decider, now).0
}

/// The revocation lists that a server gave, as programs get them.
///
/// # Errors
/// When they are nothing, too much, or not what lists look like.
pub fn lists(answer: v1::ListsResponse) -> Result<Vec<Bytes>, LinkFault> {
    RevocationLists::read(answer.lists).map(|lists| lists.ders)
}
