//! What a point says on its stream, message by message.

use countersign_api::v1::enforcement_request::Step;
use countersign_api::{v1, wire};
use countersign_identity::{Code, Revision};
use tonic::Status;

use super::points::Registered;
use crate::reports::{Facts, Ours};

/// Takes what one stream says, in the order that it has to be said in.
pub(crate) struct Ears {
    facts: Facts,
    /// What it registered with, once it has.
    pub(super) register: Option<v1::Register>,
    /// Its place among the points, once it is known as whom.
    pub(super) registered: Option<Registered>,
}

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The first message of all.
    Registration,
    /// One that follows it.
    Word,
}

impl Ears {
    /// Nothing was said yet.
    pub(crate) fn new(facts: Facts) -> Self {
        Self { facts, register: None, registered: None }
    }

    /// What it registered with, while it has no place.
    pub(crate) fn waiting(&self) -> Option<&v1::Register> {
        self.register.as_ref().filter(|_| self.registered.is_none())
    }

    /// The point has this place from now on.
    pub(crate) fn place(&mut self, registered: Registered) {
        self.registered = Some(registered);
    }

    /// Takes one message of a point that was told everything up to `told`, and who speaks for these.
    ///
    /// # Errors
    /// When it is not understood, comes out of order, or acknowledges what was never sent.
    pub(crate) fn hear(
        &mut self,
        request: v1::EnforcementRequest,
        told: Option<Revision>,
        ours: &Ours<'_>,
    ) -> Result<Heard, Status> {
        match (request.step, &self.registered) {
            (Some(Step::Register(register)), None) if self.register.is_none() => {
                self.register = Some(register);
                return Ok(Heard::Registration);
            }
            (Some(Step::Register(_)), _) => {
                return Err(misplaced("a point registers once, first of all"));
            }
            (Some(Step::Acknowledge(acknowledge)), Some(registered)) => {
                let revision = wire::revision(acknowledge.revision)
                    .map_err(|bad| misplaced(&bad.to_string()))?;
                if told < Some(revision) {
                    return Err(misplaced("a revision was acknowledged that was never sent"));
                }
                registered.acknowledge(revision, acknowledge.cut, acknowledge.draining);
            }
            (Some(Step::Facts(facts)), Some(registered)) => {
                self.facts.take(registered.name(), facts, ours);
            }
            (Some(Step::Status(status)), Some(registered)) => registered.status(&status),
            // A point may speak of itself before its first slice; it is not known under a name yet.
            (Some(Step::Facts(_) | Step::Status(_)), None) if self.register.is_some() => {}
            (Some(Step::Acknowledge(_) | Step::Facts(_) | Step::Status(_)), None) => {
                return Err(misplaced("a point registers first of all"));
            }
            (None, _) => return Err(misplaced("a step of an unknown kind")),
        }
        Ok(Heard::Word)
    }
}

fn misplaced(what: &str) -> Status {
    wire::refusal_status(tonic::Code::InvalidArgument, Code::NotUnderstood, what)
}
