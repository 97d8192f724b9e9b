//! Whether a request may be answered: asked for each one, over a connection that was let in.

use countersign_identity::{CanonicalPath, Code, Mode, Name, SpiffeId, Verb};
use countersign_policy::{CallRequest, Called, ConnectRequest, Context, Decision, Verdict};

use crate::rule::principal;
use crate::{Admitted, Trust};

impl Trust {
    /// Whether requests to this service are decided on one by one: it declares operations.
    pub fn decides_calls(&self, service: &Name) -> bool {
        self.slice().policies.operations().of(service.as_str()).is_some()
    }

    /// What is decided about a connection of this peer to a service of ours, whose handshake agreed on this version and
    /// group, by one whose certificate is a minute old.
    pub fn decision_on(
        &self,
        peer: &SpiffeId,
        service: &Name,
        (version, group): (&str, &str),
    ) -> Decision {
        let slice = self.slice();
        let context = Context {
            tls_version: version.to_owned(),
            group: group.to_owned(),
            peer_age_seconds: 60,
        };
        let (principal, service) = (principal(peer, &slice), service.as_str());
        let request = ConnectRequest { principal: &principal, service, context: &context };
        slice.policies.decide(&request)
    }

    /// Decides on a request to a service of ours, on the slice that is current. `None` where the service declares no
    /// operations, and the connection is all that is decided on.
    pub fn decide_call(
        &self,
        admitted: &Admitted,
        service: &Name,
        verb: Option<Verb>,
        path: &CanonicalPath,
    ) -> Option<Called> {
        let slice = self.slice();
        slice.policies.operations().of(service.as_str())?;
        let entry = admitted.entry();
        let Some(standing) = &entry.standing else { return Some(nobody()) };
        let principal = principal(&standing.peer.id, &slice);
        slice.policies.decide_call(&CallRequest {
            principal: &principal,
            service: service.as_str(),
            verb,
            path,
            context: &standing.context,
        })
    }
}

/// Who has shown nothing may ask for nothing.
fn nobody() -> Called {
    let verdict = Verdict::Deny(Code::PolicyDenied);
    let decision = Decision { verdict, mode: Mode::Enforce, policies: Vec::new() };
    Called { decision, operation: None }
}
