//! Whether a request may be answered: asked for each one, over a connection that was let in.

use std::collections::HashMap;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use countersign_identity::{CanonicalPath, Code, Mode, Name, SpiffeId, Timestamp, Verb};
use countersign_policy::{
    Basis, CallRequest, Called, ConnectRequest, Context as Handshake, Decision, Operation,
    TopicAct, TopicRequest, Verdict,
};

use countersign_pki::Refused;

use crate::register::{Entry, Standing};
use crate::rule::principal;
use crate::{Admitted, Slice, Trust, admission};

impl Trust {
    /// What is enforced at this moment, for all that is asked about one request.
    pub fn enforced(&self) -> Enforced {
        let (slice, now) = self.slice_now();
        Enforced { slice, now }
    }

    /// What is decided about a connection of this peer to a service of ours, whose handshake agreed on this version and
    /// group, by one whose certificate is a minute old, who comes from nobody knows where.
    pub fn decision_on(
        &self,
        peer: &SpiffeId,
        service: &Name,
        (version, group): (&str, &str),
    ) -> Decision {
        let (slice, now) = self.slice_now();
        let context = Handshake {
            tls_version: version.to_owned(),
            group: group.to_owned(),
            peer_age_seconds: 60,
            ..Handshake::default()
        };
        let (principal, service) = (principal(peer, &slice), service.as_str());
        let request = ConnectRequest { principal: &principal, service, context: &context, now };
        slice.policies.decide(&request)
    }

    /// Decides on something that a peer does with a topic of a service of ours, on the slice that is current. What is not declared is
    /// denied. A change of policy ends nothing here: whoever carries on for long asks again.
    pub fn decide_topic(
        &self,
        admitted: &Admitted,
        service: &Name,
        topic: &Name,
        act: TopicAct,
    ) -> Decision {
        let (slice, now) = self.slice_now();
        let Some(Standing { peer, context, .. }) = &admitted.entry().standing else {
            return nobody().decision;
        };
        let (principal, service) = (&principal(&peer.id, &slice), service.as_str());
        let request = TopicRequest { principal, service, topic, act, context, now };
        slice.policies.decide_topic(&request)
    }

    /// Begins a call: until it is dropped, whatever is enforced from now on is asked about it. To be asked for before the first
    /// decision about it, so that no change slips between the two; and also where nothing is decided on yet, since the service may
    /// come to declare operations.
    pub fn begin_call(&self, admitted: &Admitted, call: LastingCall) -> LiveCall {
        let (entry, course) = (Arc::clone(admitted.entry()), Arc::new(Course::of(call)));
        let number = entry.calls.enter(Arc::clone(&course));
        // Entered first, asked second: whoever ends the connection between the two finds it.
        if let Some(code) = entry.ended() {
            course.end(code);
        }
        LiveCall {
            place: course.take_place(),
            under_way: Arc::new(UnderWay { entry, number, course }),
        }
    }

    /// From now on the connection is nothing but this call, such as one that was upgraded by it: it ends as soon as the call is not
    /// permitted any more. False when that is so already.
    pub fn is_now(&self, admitted: &Admitted, call: &LastingCall) -> bool {
        let entry = admitted.entry();
        // Told first, asked second, as with admission: a slice that comes between the two finds it.
        if *entry.lasting.get_or_init(|| call.clone()) != *call {
            return false;
        }
        let (slice, now) = self.slice_now();
        admission::review_one(&self.register, entry, &slice, now)
    }
}

/// What is enforced at one moment.
#[derive(Clone, Debug)]
pub struct Enforced {
    slice: Arc<Slice>,
    now: Timestamp,
}

/// What a decision about a request rests on: as long as it is [in force](Enforced::is_by), the same request over the same connection is
/// decided in the same way.
#[derive(Clone, Debug)]
pub struct Grounds {
    policies: Basis,
    /// Names nothing that is alive once another set of names is enforced, and no other can have its address.
    names: Weak<HashMap<SpiffeId, Name>>,
}

impl Enforced {
    /// When that is.
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// Whether requests to this service are decided on one by one: it declares operations.
    pub fn decides_calls(&self, service: &Name) -> bool {
        declares(&self.slice, service)
    }

    /// Which operation a request to a service of ours is.
    pub fn operation(
        &self,
        service: &Name,
        verb: Option<Verb>,
        path: &CanonicalPath,
    ) -> Option<&Operation> {
        self.slice.policies.operations().find(service.as_str(), verb?, path)
    }

    /// Whether what was decided on these grounds would be decided so now.
    pub fn is_by(&self, grounds: &Grounds) -> bool {
        let named = ptr::eq(Arc::as_ptr(&self.slice.names), grounds.names.as_ptr());
        named && self.slice.policies.basis() == grounds.policies
    }

    /// Decides on a request to a service of ours. `None` where the service declares no operations, and the connection is all that is
    /// decided on. No grounds of what may be decided otherwise at any time.
    pub fn decide_call(
        &self,
        admitted: &Admitted,
        service: &Name,
        verb: Option<Verb>,
        path: &CanonicalPath,
    ) -> Option<(Called, Option<Grounds>)> {
        let standing = admitted.entry().standing.as_ref();
        let (called, basis) = decided(&self.slice, (standing, self.now), service, verb, path)?;
        let names = || Arc::downgrade(&self.slice.names);
        Some((called, basis.map(|policies| Grounds { policies, names: names() })))
    }
}

/// A request, for as long as it is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastingCall {
    /// The service.
    pub service: Name,
    /// The method of the request; `None` when it is none that an operation could have.
    pub verb: Option<Verb>,
    /// The path, in its one form; `None` for what can be asked only of a service that declares no operations.
    pub path: Option<CanonicalPath>,
}

/// A hold on a call under way, which is under way until the last of its holds is dropped: what asks and what is answered may each
/// have one.
#[derive(Debug)]
pub struct LiveCall {
    under_way: Arc<UnderWay>,
    /// Of whoever waits with this hold.
    place: usize,
}

impl LiveCall {
    /// What is asked for.
    pub fn call(&self) -> &LastingCall {
        &self.under_way.course.call
    }

    /// Why it may not go on by now, if it may not. Asked right before what is to be done once: a task that is to do it may have
    /// waited for its turn.
    pub fn over(&self) -> Option<Code> {
        let UnderWay { entry, course, .. } = &*self.under_way;
        course.ended.get().copied().or_else(|| entry.ended())
    }

    /// Why it may not go on, once it may not. Until then the task is woken when that changes: of each hold, the last one that asked.
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<Code> {
        let course = &self.under_way.course;
        // Noted first: an end that comes between the two wakes.
        course.note(self.place, cx.waker());
        course.ended.get().map_or(Poll::Pending, |code| Poll::Ready(*code))
    }
}

impl Clone for LiveCall {
    fn clone(&self) -> Self {
        let under_way = Arc::clone(&self.under_way);
        Self { place: under_way.course.take_place(), under_way }
    }
}

impl Drop for LiveCall {
    fn drop(&mut self) {
        self.under_way.course.leave_place(self.place);
    }
}

/// Among the calls of its connection for as long as it lives.
#[derive(Debug)]
struct UnderWay {
    entry: Arc<Entry>,
    number: u64,
    course: Arc<Course>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.entry.calls.leave(self.number);
    }
}

/// What is asked for, whether it was ended, and who waits for that.
#[derive(Debug)]
struct Course {
    call: LastingCall,
    ended: OnceLock<Code>,
    places: Mutex<Vec<Place>>,
}

/// Where one hold leaves its waker. As many as there were holds at once.
#[derive(Debug)]
enum Place {
    Free,
    Taken(Option<Waker>),
}

impl Course {
    const fn of(call: LastingCall) -> Self {
        Self { call, ended: OnceLock::new(), places: Mutex::new(Vec::new()) }
    }

    fn end(&self, code: Code) {
        if self.ended.set(code).is_err() {
            return;
        }
        let waiting = |place: &mut Place| match place {
            Place::Taken(waker) => waker.take(),
            Place::Free => None,
        };
        // Woken without the lock: whoever is woken may ask again at once.
        let waiting: Vec<Waker> = self.places().iter_mut().filter_map(waiting).collect();
        waiting.into_iter().for_each(Waker::wake);
    }

    fn note(&self, place: usize, waker: &Waker) {
        if let Some(Place::Taken(noted)) = self.places().get_mut(place)
            && !noted.as_ref().is_some_and(|noted| noted.will_wake(waker))
        {
            *noted = Some(waker.clone());
        }
    }

    fn take_place(&self) -> usize {
        let mut places = self.places();
        if let Some(free) = places.iter().position(|place| matches!(place, Place::Free)) {
            places[free] = Place::Taken(None);
            return free;
        }
        places.push(Place::Taken(None));
        places.len() - 1
    }

    fn leave_place(&self, place: usize) {
        if let Some(place) = self.places().get_mut(place) {
            *place = Place::Free;
        }
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The calls under way over one connection.
#[derive(Debug, Default)]
pub(crate) struct Calls(Mutex<Live>);

#[derive(Debug, Default)]
struct Live {
    next: u64,
    /// With their numbers. There are few at once, of which each is soon found.
    calls: Vec<(u64, Arc<Course>)>,
}

impl Calls {
    fn enter(&self, course: Arc<Course>) -> u64 {
        let mut live = self.live();
        let number = live.next;
        live.next += 1;
        live.calls.push((number, course));
        number
    }

    fn leave(&self, number: u64) {
        let mut live = self.live();
        let place = live.calls.iter().position(|(of, _)| *of == number);
        let left = place.map(|place| live.calls.swap_remove(place));
        // Let go of without the lock.
        drop((live, left));
    }

    /// Ends all of them, with their connection.
    pub(crate) fn end(&self, code: Code) {
        for course in self.under_way() {
            course.end(code);
        }
    }

    /// Ends those that the slice does not permit any more.
    pub(crate) fn review(&self, slice: &Slice, standing: Option<&Standing>, now: Timestamp) {
        for course in self.under_way() {
            if let Err(refused) = course.call.permitted(slice, standing, now) {
                course.end(refused.code);
            }
        }
    }

    fn under_way(&self) -> Vec<Arc<Course>> {
        self.live().calls.iter().map(|(_, course)| course.clone()).collect()
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
        standing: Option<&Standing>,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let Self { service, verb, path } = self;
        if !declares(slice, service) {
            return Ok(());
        }
        let Some(path) = path else {
            let why = format!("`{service}` has come to decide on requests, and this is none");
            return Err(Refused { code: Code::NotUnderstood, why });
        };
        let called = decided(slice, (standing, now), service, *verb, path);
        match called.as_ref().map(|(called, _basis)| &called.decision) {
            Some(Decision { verdict: Verdict::Deny(code), mode: Mode::Enforce, .. }) => {
                let peer = standing.map_or("nobody", |standing| standing.peer.id.as_str());
                let why =
                    format!("`{peer}` may not ask `{service}` any more for what it goes on with");
                Err(Refused { code: *code, why })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Whether requests to the service are decided on.
fn declares(slice: &Slice, service: &Name) -> bool {
    slice.policies.operations().of(service.as_str()).is_some()
}

fn decided(
    slice: &Slice,
    (standing, now): (Option<&Standing>, Timestamp),
    service: &Name,
    verb: Option<Verb>,
    path: &CanonicalPath,
) -> Option<(Called, Option<Basis>)> {
    if !declares(slice, service) {
        return None;
    }
    let Some(standing) = standing else { return Some((nobody(), None)) };
    let principal = principal(&standing.peer.id, slice);
    let (service, context) = (service.as_str(), &standing.context);
    let principal = &principal;
    slice.policies.decide_call_on(&CallRequest { principal, service, verb, path, context, now })
}

/// Who has shown nothing may ask for nothing.
fn nobody() -> Called {
    let verdict = Verdict::Deny(Code::PolicyDenied);
    let decision = Decision { verdict, mode: Mode::Enforce, policies: Vec::new() };
    Called { decision, operation: None, limits: Vec::new() }
}
