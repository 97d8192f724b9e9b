//! One enforcement point without its streams: what a source does with each thing that it is told, for simulations.

use std::sync::Arc;

use countersign_api::v1;
use countersign_api::workload::X509svidResponse;
use countersign_identity::{Clock, Revision, Timestamp};
use countersign_pki::Bundle;
use countersign_policy::Policies;
use countersign_tls::{Identity, Slice, Trust};

use crate::keeper::{Keeper, Taken};
use crate::svid::{self, Update};
use crate::{Choice, Enforcement, Services, Status};

/// The rules by which a source replaces what it enforces and who it is.
#[derive(Debug)]
pub struct Steps(Keeper);

/// What came of something that the agent said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is enforced up to this revision; so many connections were ended for changes so far.
    Acknowledged {
        /// The revision.
        revision: Revision,
        /// How many connections were ended.
        cut: u64,
    },
    /// It is not, and what was enforced before stays.
    Refused(String),
}

impl Steps {
    /// A source that was told nothing yet.
    pub fn new(trust: Arc<Trust>) -> Self {
        let status = Status::begin(Enforcement::Waiting);
        Self(Keeper::new(trust, Arc::new(Policies::none()), status))
    }

    /// The same, with trust of its own.
    pub fn begin(clock: Arc<dyn Clock>) -> Self {
        Self::new(Trust::new(clock, Slice::nothing()))
    }

    /// What it enforces.
    pub fn trust(&self) -> &Arc<Trust> {
        self.0.trust()
    }

    /// What it was told of services.
    pub fn services(&self) -> Option<Arc<Services>> {
        self.0.services().borrow().clone()
    }

    /// A message of the Workload API.
    pub fn identity(&self, identity: Identity, bundles: Vec<Bundle>) {
        self.0.update(Ok(Update { identity, bundles, left_out: Vec::new() }));
    }

    /// A message of the Workload API as it came. Says why it is not used, if it is not.
    pub fn svids(
        &self,
        response: X509svidResponse,
        choice: &Choice,
        now: Timestamp,
    ) -> Result<(), String> {
        let read = svid::read(response, choice, now);
        let unusable = read.as_ref().err().map(ToString::to_string);
        self.0.update(read);
        unusable.map_or(Ok(()), Err)
    }

    /// The Workload API says that there is nothing for it any more.
    pub fn withdraw(&self, why: &str) {
        self.0.withdraw(why.to_owned());
    }

    /// A slice of the Enforcement stream.
    pub fn slice(&self, slice: v1::Slice) -> Step {
        match self.0.slice(slice) {
            Ok(Taken::Enforced(done)) => {
                Step::Acknowledged { revision: done.revision, cut: done.cut }
            }
            Ok(Taken::Older) => Step::Refused("it is older than what is enforced".to_owned()),
            Err(bad) => Step::Refused(bad.to_string()),
        }
    }

    /// A mark of the Enforcement stream.
    pub fn mark(&self, revision: Revision) -> Step {
        match self.0.mark(revision) {
            Some(done) => Step::Acknowledged { revision: done.revision, cut: done.cut },
            None => Step::Refused("what is enforced is not of that revision".to_owned()),
        }
    }
}
