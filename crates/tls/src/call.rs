//! Whether a request may be answered: asked for each one, over a connection that was let in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use countersign_identity::{CanonicalPath, Code, Mode, Name, SpiffeId, Timestamp, Verb};
use countersign_policy::{
    CallRequest, Called, ConnectRequest, Context as Handshake, Decision, Verdict,
};

use countersign_pki::Refused;

use crate::register::{Entry, Standing};
use crate::rule::principal;
use crate::{Admitted, Slice, Trust, admission};

impl Trust {
    /// Whether requests to this service are decided on one by one: it declares operations.
    pub fn decides_calls(&self, service: &Name) -> bool {
        self.slice().policies.operations().of(service.as_str()).is_some()
    }

    /// What is decided about a connection of this peer to a service of ours, whose handshake agreed on this version and
    /// group, by one whose certificate is a minute old, who comes from nobody knows where.
    pub fn decision_on(
        &self,
        peer: &SpiffeId,
        service: &Name,
        (version, group): (&str, &str),
    ) -> Decision {
        let slice = self.slice_now();
        let context = Handshake {
            tls_version: version.to_owned(),
            group: group.to_owned(),
            peer_age_seconds: 60,
            ..Handshake::default()
        };
        let (principal, service) = (principal(peer, &slice), service.as_str());
        let now = self.now();
        let request = ConnectRequest { principal: &principal, service, context: &context, now };
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
        let (slice, standing) = (self.slice_now(), admitted.entry().standing.as_ref());
        decided(&slice, (standing, self.now()), service, verb, path)
    }

    /// Begins a call: until it is dropped, whatever is enforced from now on is asked about it. To be asked for before the first
    /// decision about it, so that no change slips between the two.
    pub fn begin_call(&self, admitted: &Admitted, call: LastingCall) -> LiveCall {
        let entry = Arc::clone(admitted.entry());
        let ended = Arc::new(Ending::default());
        let number = entry.calls.enter(call, Arc::clone(&ended));
        LiveCall { entry, number, ended }
    }

    /// From now on the connection is nothing but this call, such as one that was upgraded by it: it ends as soon as the call is not
    /// permitted any more. False when that is so already.
    pub fn is_now(&self, admitted: &Admitted, call: LastingCall) -> bool {
        let entry = admitted.entry();
        // Told first, asked second, as with admission: a slice that comes between the two finds it.
        entry.lasting.set(call).is_ok()
            && admission::review_one(&self.register, entry, &self.slice_now(), self.now())
    }
}

/// A request that takes its whole connection, for as long as that is open.
#[derive(Clone, Debug)]
pub struct LastingCall {
    /// The service.
    pub service: Name,
    /// The method of the request; `None` when it is none that an operation could have.
    pub verb: Option<Verb>,
    /// The path, in the form that was sent on.
    pub path: CanonicalPath,
}

/// A call under way.
#[derive(Debug)]
pub struct LiveCall {
    entry: Arc<Entry>,
    number: u64,
    ended: Arc<Ending>,
}

impl LiveCall {
    /// Why it may not go on, once it may not. Until then the task is woken when that changes; the last one that asked is.
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<Code> {
        // Noted first: an end that comes between the two wakes.
        *self.ended.waker() = Some(cx.waker().clone());
        self.ended.code.get().map_or(Poll::Pending, |code| Poll::Ready(*code))
    }
}

impl Drop for LiveCall {
    fn drop(&mut self) {
        self.entry.calls.leave(self.number);
    }
}

/// Whether a call was ended, and who waits for it.
#[derive(Debug, Default)]
struct Ending {
    code: OnceLock<Code>,
    waker: Mutex<Option<Waker>>,
}

impl Ending {
    fn end(&self, code: Code) {
        if self.code.set(code).is_ok()
            && let Some(waker) = self.waker().take()
        {
            waker.wake();
        }
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The calls under way over one connection.
#[derive(Debug, Default)]
pub(crate) struct Calls(Mutex<Live>);

#[derive(Debug, Default)]
struct Live {
    next: u64,
    calls: HashMap<u64, (LastingCall, Arc<Ending>)>,
}

impl Calls {
    fn enter(&self, call: LastingCall, ended: Arc<Ending>) -> u64 {
        let mut live = self.live();
        let number = live.next;
        live.next += 1;
        live.calls.insert(number, (call, ended));
        number
    }

    fn leave(&self, number: u64) {
        self.live().calls.remove(&number);
    }

    /// Ends those that the slice does not permit any more.
    pub(crate) fn review(&self, slice: &Slice, standing: &Standing, now: Timestamp) {
        for (call, ended) in self.live().calls.values() {
            if let Err(refused) = call.permitted(slice, standing, now) {
                ended.end(refused.code);
            }
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LastingCall {
    /// Whether it is permitted still.
    pub(crate) fn permitted(
        &self,
        slice: &Slice,
        standing: &Standing,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let Self { service, verb, path } = self;
        let Some(called) = decided(slice, (Some(standing), now), service, *verb, path) else {
            return Ok(());
        };
        match called.decision.verdict {
            Verdict::Deny(code) if !called.decision.is_allowed() => {
                let peer = &standing.peer.id;
                let why =
                    format!("`{peer}` may not ask `{service}` any more for what it goes on with");
                Err(Refused { code, why })
            }
            Verdict::Allow | Verdict::Deny(_) => Ok(()),
        }
    }
}

fn decided(
    slice: &Slice,
    (standing, now): (Option<&Standing>, Timestamp),
    service: &Name,
    verb: Option<Verb>,
    path: &CanonicalPath,
) -> Option<Called> {
    slice.policies.operations().of(service.as_str())?;
    let Some(standing) = standing else { return Some(nobody()) };
    let principal = principal(&standing.peer.id, slice);
    let (service, context) = (service.as_str(), &standing.context);
    let principal = &principal;
    slice.policies.decide_call(&CallRequest { principal, service, verb, path, context, now })
}

/// Who has shown nothing may ask for nothing.
fn nobody() -> Called {
    let verdict = Verdict::Deny(Code::PolicyDenied);
    let decision = Decision { verdict, mode: Mode::Enforce, policies: Vec::new() };
    Called { decision, operation: None, limits: Vec::new() }
}
