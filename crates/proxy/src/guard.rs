//! Whether a peer's request may go on to the program, and in which form.

use std::time::Duration;

use countersign::Flow;
use countersign_identity::{CanonicalPath, Code, Mode, Name, Verb};
use countersign_policy::{Called, Decision, Verdict};
use countersign_tls::{Admitted, LastingCall, LiveCall};
use http::uri::{PathAndQuery, Uri};
use http::{Method, request};

use crate::headers;
use crate::limits::{Exceeded, Held};
use crate::plane::Plane;
use crate::relay::whole_seconds;
use crate::upstream::Failed;

/// The peer of one connection, and the service whose door it came through.
pub(crate) struct Guard {
    pub(crate) service: Name,
    pub(crate) admitted: Admitted,
}

/// What a request that was let in leaves behind.
pub(crate) struct Entered {
    /// A place among those that may be under way at once, where its policy limits them.
    _held: Option<Held>,
    /// What was decided on.
    pub(crate) call: LastingCall,
    /// Ends when it is not permitted any more.
    pub(crate) live: LiveCall,
}

impl Guard {
    /// Decides on the request, if its service declares operations, and writes its path in the form that was decided on.
    ///
    /// `None` where the service declares none.
    pub(crate) fn check(
        &self,
        plane: &Plane,
        head: &mut request::Parts,
    ) -> Result<Option<Entered>, Failed> {
        if !plane.trust.decides_calls(&self.service) {
            return Ok(None);
        }
        let bad = |detail: String| Failed { code: Code::NotUnderstood, detail, again: None };
        headers::overriding(&head.headers)?;
        let path = CanonicalPath::of(head.uri.path()).map_err(|why| bad(why.to_string()))?;
        let verb = verb(&head.method);
        let call = LastingCall { service: self.service.clone(), verb, path: path.clone() };
        let live = plane.trust.begin_call(&self.admitted, call.clone());
        let decided = plane.trust.decide_call(&self.admitted, &self.service, verb, &path);
        let held = match decided {
            Some(called) => self.enter(plane, verb, called, &head.method)?,
            None => None,
        };
        head.uri = rewritten(&head.uri, &path).map_err(|why| bad(why.to_string()))?;
        Ok(Some(Entered { live, call, _held: held }))
    }

    /// The connection goes on with this request and takes no other.
    pub(crate) fn upgraded(&self, plane: &Plane, call: LastingCall) -> Result<(), Failed> {
        if plane.trust.is_now(&self.admitted, call) {
            return Ok(());
        }
        let detail = "policies have changed while the request was under way".to_owned();
        Err(Failed { code: Code::PolicyDenied, detail, again: None })
    }

    /// Puts what was decided on record, and does it.
    fn enter(
        &self,
        plane: &Plane,
        verb: Option<Verb>,
        mut called: Called,
        method: &Method,
    ) -> Result<Option<Held>, Failed> {
        let entered = self.within_limits(plane, &called);
        if let Err(exceeded) = &entered {
            let (verdict, mode) = (Verdict::Deny(Code::RateLimited), Mode::Enforce);
            called.decision = Decision { verdict, mode, policies: vec![exceeded.policy.clone()] };
        }
        if let Some(peer) = self.admitted.peer() {
            let flow = Flow::call(peer.id.clone(), self.service.clone(), verb, &called);
            plane.flows.count(flow, plane.clock.now());
        }
        match entered {
            Ok(held) if called.decision.is_allowed() => Ok(held),
            Ok(_) => Err(self.denied(&called, method)),
            Err(Exceeded { again, .. }) => Err(self.limited(again)),
        }
    }

    /// A policy that only observes limits nobody.
    fn within_limits(&self, plane: &Plane, called: &Called) -> Result<Option<Held>, Exceeded> {
        let Decision { verdict, mode, policies } = &called.decision;
        match (verdict, mode, self.admitted.peer()) {
            (Verdict::Allow, Mode::Enforce, Some(peer)) => {
                let permits = policies.iter().map(String::as_str).zip(&called.limits);
                plane.limits.take(permits, &peer.id, plane.clock.now())
            }
            (Verdict::Allow | Verdict::Deny(_), _, _) => Ok(None),
        }
    }

    fn limited(&self, again: Option<Duration>) -> Failed {
        let when = match again {
            Some(again) => format!("; again in {} s", whole_seconds(again)),
            None => " at once".to_owned(),
        };
        let detail = format!("`{}` permits this caller no more of it{when}", self.service);
        Failed { code: Code::RateLimited, detail, again }
    }

    /// A peer is told what it may not do, and not by which policy.
    fn denied(&self, called: &Called, method: &Method) -> Failed {
        let code = match called.decision.verdict {
            Verdict::Deny(code) => code,
            Verdict::Allow => Code::PolicyDenied,
        };
        let peer = self.admitted.peer().map(|peer| peer.id.to_string()).unwrap_or_default();
        let what = match &called.operation {
            Some(operation) => format!("`{operation}`"),
            None => format!("`{method}` on a path that no operation declares"),
        };
        let detail = format!("`{peer}` may not ask `{}` for {what}", self.service);
        Failed { code, detail, again: None }
    }
}

fn verb(method: &Method) -> Option<Verb> {
    method.as_str().parse().ok()
}

/// The target with the path that was decided on.
fn rewritten(uri: &Uri, path: &CanonicalPath) -> Result<Uri, http::Error> {
    if uri.path() == path.as_str() {
        return Ok(uri.clone());
    }
    let mut parts = uri.clone().into_parts();
    let text = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_string(),
    };
    parts.path_and_query = Some(PathAndQuery::try_from(text)?);
    Ok(Uri::from_parts(parts)?)
}
