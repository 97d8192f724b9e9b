//! Whether a request may be answered, and in which form: for proxies, and for programs that answer by themselves.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{CanonicalPath, Code, Mode, Name, Timestamp, Verb};
use countersign_policy::{Called, Decision, Verdict};
use countersign_tls::{Admitted, Enforced, LastingCall, LiveCall, Trust};
use http::uri::{PathAndQuery, Uri};
use http::{Method, request};

use crate::limits::{Exceeded, Held, Limits};
use crate::recent::{Asked, Decided, Recent};
use crate::{Flow, Flows, is_overriding};

/// Decides on requests to services that declare operations, puts each decision on record, and counts what policies limit.
/// Clones count together.
#[derive(Clone)]
pub struct Requests {
    trust: Arc<Trust>,
    flows: Flows,
    limits: Limits,
}

/// What a request that was let in leaves behind. It is under way until the last clone is dropped: one goes with what is still asked,
/// one with what is answered.
#[derive(Clone)]
pub struct Entered {
    /// A place among those that may be under way at once, where its policy limits them.
    _held: Option<Arc<Held>>,
    /// Ends when it is not permitted any more.
    pub live: LiveCall,
}

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Unanswered {
    /// The reason.
    pub code: Code,
    /// One sentence without secrets: what may not be done, and not by which policy.
    pub detail: String,
    /// In which time it may be otherwise, where that is known.
    pub again: Option<Duration>,
}

impl Requests {
    /// Decides on what `trust` enforces.
    pub fn new(trust: Arc<Trust>, flows: Flows) -> Self {
        Self { trust, flows, limits: Limits::default() }
    }

    /// What was decided, counted.
    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    /// Decides on a request of this peer, if the service declares operations, and writes its path in the form that was
    /// decided on. Where it declares none, the connection is all that is decided on, until it does.
    ///
    /// # Errors
    /// When it may not be answered.
    pub fn enter(
        &self,
        service: &Name,
        admitted: &Admitted,
        head: &mut request::Parts,
    ) -> Result<Entered, Unanswered> {
        let (verb, path) = (verb(&head.method), understood(head));
        let asked = path.as_ref().ok().cloned();
        let call = LastingCall { service: service.clone(), verb, path: asked };
        let live = self.trust.begin_call(admitted, call);
        let enforced = self.trust.enforced();
        if !enforced.decides_calls(service) {
            return Ok(Entered { live, _held: None });
        }
        let path = path?;
        let held = match decided(&enforced, admitted, live.call(), &path) {
            Some(decided) => {
                self.record(admitted, &decided, live.call(), &head.method, &enforced)?
            }
            None => None,
        };
        if head.uri.path() != path.as_str() {
            let target = rewritten(&head.uri, &path);
            head.uri = target.map_err(|why| not_understood(why.to_string()))?;
        }
        Ok(Entered { live, _held: held.map(Arc::new) })
    }

    /// The connection goes on with this request and takes no other.
    ///
    /// # Errors
    /// When it is not permitted any more.
    pub fn upgraded(&self, admitted: &Admitted, entered: &Entered) -> Result<(), Unanswered> {
        let call = entered.live.call();
        if self.trust.is_now(admitted, call) { Ok(()) } else { Err(ended(Code::PolicyDenied)) }
    }

    /// Puts what was decided on record, and does it.
    fn record(
        &self,
        admitted: &Admitted,
        decided: &Decided,
        call: &LastingCall,
        method: &Method,
        enforced: &Enforced,
    ) -> Result<Option<Held>, Unanswered> {
        let (called, now) = (&decided.called, enforced.now());
        let entered = self.within_limits(admitted, called, now);
        if let Some(peer) = admitted.peer() {
            let flow = |called: &Called| {
                Flow::call(peer.id.clone(), call.service.clone(), call.verb, called)
            };
            match &entered {
                Ok(_held) => decided.count(&self.flows, now, || flow(called)),
                Err(exceeded) => self.flows.count(flow(&exceeded.instead_of(called)), now),
            }
        }
        match entered {
            Ok(held) if called.decision.is_allowed() => Ok(held),
            Ok(_) => Err(denied(&call.service, admitted, called, method)),
            Err(Exceeded { again, .. }) => Err(limited(&call.service, again)),
        }
    }

    /// A policy that only observes limits nobody.
    fn within_limits(
        &self,
        admitted: &Admitted,
        called: &Called,
        now: Timestamp,
    ) -> Result<Option<Held>, Exceeded> {
        let Decision { verdict, mode, policies } = &called.decision;
        match (verdict, mode, admitted.peer()) {
            (Verdict::Allow, Mode::Enforce, Some(peer)) => {
                let permits = policies.iter().map(String::as_str).zip(&called.limits);
                self.limits.take(permits, &peer.id, now)
            }
            (Verdict::Allow | Verdict::Deny(_), _, _) => Ok(None),
        }
    }
}

/// What is decided on a request; for one like those before it on the same connection, what was decided then. `None` where requests
/// are not decided on.
fn decided(
    enforced: &Enforced,
    admitted: &Admitted,
    call: &LastingCall,
    path: &CanonicalPath,
) -> Option<Arc<Decided>> {
    let LastingCall { service, verb, .. } = call;
    let operation = enforced.operation(service, *verb, path).map(|operation| &operation.name);
    let asked = Asked { service, verb: *verb, operation };
    let recent: Option<&Recent> = admitted.kept();
    if let Some(known) = recent.and_then(|recent| recent.recall(asked, enforced)) {
        return Some(known);
    }
    let decided = enforced.decide_call(admitted, service, *verb, path)?;
    let decided = Arc::new(Decided::new(decided));
    if let Some(recent) = recent {
        recent.keep(asked.owned(), &decided);
    }
    Some(decided)
}

impl Exceeded {
    /// What is on record of a request that was permitted, and too much.
    fn instead_of(&self, called: &Called) -> Called {
        let (verdict, mode) = (Verdict::Deny(Code::RateLimited), Mode::Enforce);
        let decision = Decision { verdict, mode, policies: vec![self.policy.clone()] };
        Called { decision, ..called.clone() }
    }
}

/// The path in its one form, of a request that means the same to everybody.
fn understood(head: &request::Parts) -> Result<CanonicalPath, Unanswered> {
    if head.method == Method::CONNECT {
        let why = "`CONNECT` opens a way through which nobody sees requests".to_owned();
        return Err(not_understood(why));
    }
    if let Some(name) = head.headers.keys().find(|name| is_overriding(name.as_str())) {
        let why = "asks some programs for another request than the one that is decided on";
        return Err(not_understood(format!("the field `{name}` {why}")));
    }
    CanonicalPath::of(head.uri.path()).map_err(|why| not_understood(why.to_string()))
}

/// What is under way is not permitted any more.
pub fn ended(code: Code) -> Unanswered {
    let detail = "what is enforced has changed while the request was under way".to_owned();
    Unanswered { code, detail, again: None }
}

/// What gRPC says of a request that may not be, or not now: `PERMISSION_DENIED` and `RESOURCE_EXHAUSTED`.
pub fn grpc_status(code: Code) -> Option<&'static str> {
    match code {
        Code::PolicyDenied | Code::PolicyError => Some("7"),
        Code::RateLimited => Some("8"),
        _ => None,
    }
}

/// Rounded up: whoever comes back then is let in.
pub fn whole_seconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis().div_ceil(1000)).unwrap_or(u64::MAX)
}

fn not_understood(detail: String) -> Unanswered {
    Unanswered { code: Code::NotUnderstood, detail, again: None }
}

fn limited(service: &Name, again: Option<Duration>) -> Unanswered {
    let when = match again {
        Some(again) => format!("; again in {} s", whole_seconds(again)),
        None => " at once".to_owned(),
    };
    let detail = format!("`{service}` permits this caller no more of it{when}");
    Unanswered { code: Code::RateLimited, detail, again }
}

/// A peer is told what it may not do, and not by which policy.
fn denied(service: &Name, admitted: &Admitted, called: &Called, method: &Method) -> Unanswered {
    let code = match called.decision.verdict {
        Verdict::Deny(code) => code,
        Verdict::Allow => Code::PolicyDenied,
    };
    let peer = admitted.peer().map(|peer| peer.id.to_string()).unwrap_or_default();
    let what = match &called.operation {
        Some(operation) => format!("`{operation}`"),
        None => format!("`{method}` on a path that no operation declares"),
    };
    let detail = format!("`{peer}` may not ask `{service}` for {what}");
    Unanswered { code, detail, again: None }
}

fn verb(method: &Method) -> Option<Verb> {
    method.as_str().parse().ok()
}

/// The target with the path that was decided on.
fn rewritten(uri: &Uri, path: &CanonicalPath) -> Result<Uri, http::Error> {
    let mut parts = uri.clone().into_parts();
    let text = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_string(),
    };
    parts.path_and_query = Some(PathAndQuery::try_from(text)?);
    Ok(Uri::from_parts(parts)?)
}
