//! Whether a peer's request may go on to the program, and in which form.

use countersign::Flow;
use countersign_identity::{CanonicalPath, Code, Name, Verb};
use countersign_policy::Called;
use countersign_tls::Admitted;
use http::uri::{PathAndQuery, Uri};
use http::{Method, request};

use crate::headers;
use crate::plane::Plane;
use crate::upstream::Failed;

/// The peer of one connection, and the service whose door it came through.
pub(crate) struct Guard {
    pub(crate) service: Name,
    pub(crate) admitted: Admitted,
}

impl Guard {
    /// Decides on the request, if its service declares operations, and writes its path in the form that was decided on.
    pub(crate) fn check(&self, plane: &Plane, head: &mut request::Parts) -> Result<(), Failed> {
        if !plane.trust.decides_calls(&self.service) {
            return Ok(());
        }
        let bad = |detail: String| Failed { code: Code::NotUnderstood, detail };
        headers::overriding(&head.headers)?;
        let path = CanonicalPath::of(head.uri.path()).map_err(|why| bad(why.to_string()))?;
        let verb = verb(&head.method);
        let decided = plane.trust.decide_call(&self.admitted, &self.service, verb, &path);
        if let Some(called) = &decided {
            if let Some(peer) = self.admitted.peer() {
                let flow = Flow::call(peer.id.clone(), self.service.clone(), verb, called);
                plane.flows.count(flow, plane.clock.now());
            }
            if !called.decision.is_allowed() {
                return Err(self.denied(called, &head.method));
            }
        }
        head.uri = rewritten(&head.uri, &path).map_err(|why| bad(why.to_string()))?;
        Ok(())
    }

    /// A peer is told what it may not do, and not by which policy.
    fn denied(&self, called: &Called, method: &Method) -> Failed {
        use countersign_policy::Verdict;
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
        Failed { code, detail }
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
