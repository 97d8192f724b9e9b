//! Where requests and connections go: several addresses in order of priority, tried until one takes them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign::requests::ended;
use countersign_identity::{Code, Entropy, Timestamp};
use countersign_tls::{Direction, HandshakeFact, LiveCall};
use http::header::HeaderValue;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::body::{Body, Coming};
use crate::bounds::{
    ADDRESSES_MAX, IDLE_BACKEND, IDLE_DIALLED, RESPONSE_HEAD_TIMEOUT, SWEEP_EVERY, UPLOAD_TIMEOUT,
};
use crate::complaints::Complaints;
use crate::dial::{DialFailure, Dialer, Dialled, Want};
use crate::facts::blank_fact;
use crate::headers::{self, BadAnswer};
use crate::health::Health;
use crate::lease::{Lease, SendFailure, breaks_http, told};
use crate::plane::Plane;
use crate::pool::Pool;
use crate::replay::Replay;
use crate::target::address_to;
use crate::tries::{Fate, Fault, Next, Tries};

/// One thing to reach, at one or more addresses.
pub(crate) struct Upstream {
    plane: Arc<Plane>,
    pools: Vec<Arc<Pool>>,
    health: Mutex<Health>,
    ejected: Notify,
    complaints: Complaints,
    carries: Carries,
}

/// What goes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    Requests,
    Bytes,
}

/// Why nothing came back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct Failed {
    pub(crate) code: Code,
    pub(crate) detail: String,
    /// In which time it may be otherwise, where that is known.
    pub(crate) again: Option<Duration>,
}

impl From<DialFailure> for Failed {
    fn from(failure: DialFailure) -> Self {
        Self { code: failure.code, detail: failure.detail, again: None }
    }
}

/// Whether the call may go on by now.
///
/// # Errors
/// Why it may not.
pub(crate) fn permitted(call: Option<&LiveCall>) -> Result<(), Failed> {
    call.and_then(LiveCall::over).map_or(Ok(()), |code| Err(ended(code).into()))
}

/// A try without a response.
struct Missed {
    left: Left,
    fault: Fault,
    why: Failed,
}

/// What is left of its request.
enum Left {
    /// Nobody has read it: here it is again.
    Unread(Box<Request<Body>>),
    /// It is not sent again.
    Not(Fate),
}

impl Left {
    const fn fate(&self) -> Fate {
        match self {
            Self::Unread(_) => Fate::Unread,
            Self::Not(fate) => *fate,
        }
    }
}

impl Missed {
    /// The address is at fault, or we are.
    const fn by_address(left: Left, why: Failed) -> Self {
        let fault = Fault::Address(why.code);
        Self { left, fault, why }
    }
}

impl Upstream {
    /// At most [`ADDRESSES_MAX`] ways, best first.
    pub(crate) fn new(plane: &Arc<Plane>, ways: Vec<Dialer>, carries: Carries) -> Arc<Self> {
        let pools: Vec<_> = ways
            .into_iter()
            .take(ADDRESSES_MAX)
            .map(|dialer| {
                let idle = match dialer {
                    Dialer::Mutual { .. } => IDLE_DIALLED,
                    Dialer::Program(_) | Dialer::ProgramHttp2(_) => IDLE_BACKEND,
                };
                Pool::new(plane, dialer, idle)
            })
            .collect();
        let health = Mutex::new(Health::new(pools.len()));
        let (plane, ejected) = (plane.clone(), Notify::new());
        let complaints = Complaints::new(plane.clock.now());
        Arc::new(Self { plane, pools, health, ejected, complaints, carries })
    }

    /// Sends a request for `host`, and returns the head of the response with a body that is on its way.
    ///
    /// It goes to the next address when this one cannot be connected to, and is sent again only when it
    /// provably was not read. Nothing is sent of a call that may not go on by then.
    pub(crate) async fn send(
        &self,
        (mut request, call): (Box<Request<Body>>, Option<&LiveCall>),
        host: &HeaderValue,
        want: Want,
    ) -> Result<Response<Body>, Failed> {
        let mut tries = Tries::begin(&self.health()).ok_or_else(nowhere)?;
        loop {
            let address = tries.address();
            let missed = match self.attempt(address, (request, call), host, want).await {
                Ok(response) => return Ok(response),
                Err(missed) => missed,
            };
            let (fate, Missed { left, fault, why }) = (missed.left.fate(), missed);
            match (self.after(&mut tries, (fate, fault), why.code), left) {
                (Next::Try(_), Left::Unread(again)) => request = again,
                (Next::Try(_) | Next::GiveUp, _) => return Err(why),
            }
        }
    }

    async fn attempt(
        &self,
        address: usize,
        (mut request, call): (Box<Request<Body>>, Option<&LiveCall>),
        host: &HeaderValue,
        want: Want,
    ) -> Result<Response<Body>, Missed> {
        let pool = &self.pools[address];
        let mut lease = match pool.lease(want).await {
            Ok(lease) => lease,
            Err(failure) => {
                return Err(Missed::by_address(Left::Unread(request), failure.into()));
            }
        };
        if let Err(failed) = address_to(&mut request, lease.spoken(), host) {
            return Err(Missed::by_address(Left::Not(Fate::Over), failed));
        }
        // What is enforced may have changed since it was decided on.
        if let Err(failed) = permitted(call) {
            lease.give_back();
            return Err(Missed::by_address(Left::Not(Fate::Over), failed));
        }
        let spare = if lease.may_refuse() { Spare::of(&request) } else { Spare::none(&request) };
        let patience = if spare.replay.is_some() { UPLOAD_TIMEOUT } else { RESPONSE_HEAD_TIMEOUT };
        let Ok(sent) = tokio::time::timeout(patience, lease.send(request)).await else {
            let detail =
                format!("{} did not answer within {} s", pool.dialer(), patience.as_secs());
            let why = Failed { code: Code::TimedOut, detail, again: None };
            let why = self.complain(address, why);
            return Err(Missed::by_address(Left::Not(Fate::Perhaps), why));
        };
        match sent {
            Ok(mut response) => {
                spare.release();
                self.answered(address);
                if let Err(bad) = check(&mut response, want) {
                    let why = self.complain(address, bad.into());
                    return Err(Missed::by_address(Left::Not(Fate::Perhaps), why));
                }
                Ok(passing(response, lease, spare.replay))
            }
            Err(failure) => Err(self.missed(failure, address, &lease, spare)),
        }
    }

    /// What is known of a request that got no response.
    fn missed(&self, failure: SendFailure, address: usize, lease: &Lease, spare: Spare) -> Missed {
        let dialer = self.pools[address].dialer();
        let refusal = lease.refusal();
        let again = match failure {
            SendFailure::Unsent(request) => Some(request),
            SendFailure::NotRead => {
                lease.leave();
                spare.again()
            }
            SendFailure::Lost(_) if refusal.is_some() => spare.again(),
            SendFailure::Lost(error) => {
                let why = self.unanswered(&error, address, &spare);
                return Missed::by_address(Left::Not(Fate::Perhaps), why);
            }
        };
        let Some(request) = again else {
            let detail =
                format!("{dialer} closed while a long body was on its way, and did not read it");
            let why = Failed { code: Code::Unavailable, detail, again: None };
            return Missed::by_address(Left::Not(Fate::Spent), why);
        };
        let left = Left::Unread(request);
        if let Some(alert) = refusal {
            let why = Failed::from(DialFailure::refused(dialer, alert));
            self.report(address, &why);
            return Missed::by_address(left, why);
        }
        let code = Code::PeerClosed;
        if lease.reused {
            let detail = format!("{dialer} closes every connection");
            let why = Failed { code, detail, again: None };
            return Missed { left, fault: Fault::Connection, why };
        }
        // A connection that was just opened and takes nothing: another address may do better.
        let detail = format!("{dialer} closed the connection before the request");
        Missed::by_address(left, Failed { code, detail, again: None })
    }

    /// Why a request that was sent has no answer, or none that can be read.
    fn unanswered(&self, error: &hyper::Error, address: usize, spare: &Spare) -> Failed {
        if let Some(why) = spare.broken() {
            let detail = format!("the body of the request did not come as a whole: {why}");
            return Failed { code: Code::NotUnderstood, detail, again: None };
        }
        let (dialer, told) = (self.pools[address].dialer(), told(error));
        let why = if breaks_http(error) {
            bad_answer(&told)
        } else {
            let detail = format!("{dialer} ended the connection before it answered: {told}");
            Failed { code: Code::PeerClosed, detail, again: None }
        };
        self.complain(address, why)
    }

    /// Says it where operators look, unless much was said of late.
    fn complain(&self, address: usize, why: Failed) -> Failed {
        if let Some(unsaid) = self.complaints.next(self.plane.clock.now()) {
            let (address, code) = (self.pools[address].dialer(), why.code);
            tracing::warn!(%address, %code, %why, unsaid, "gave no good answer to a request");
        }
        why
    }

    /// A byte stream to the first address that takes one.
    pub(crate) async fn connect(&self) -> Result<Dialled, Failed> {
        let mut tries = Tries::begin(&self.health()).ok_or_else(nowhere)?;
        loop {
            let address = tries.address();
            let failure = match self.pools[address].dialer().dial(&self.plane, Want::Raw).await {
                Ok(dialled) => {
                    self.answered(address);
                    return Ok(dialled);
                }
                Err(failure) => failure,
            };
            let missed = (Fate::Unread, Fault::Address(failure.code));
            match self.after(&mut tries, missed, failure.code) {
                Next::Try(_) => {}
                Next::GiveUp => return Err(failure.into()),
            }
        }
    }

    /// Probes addresses that rest, and closes what is idle, until stopped.
    pub(crate) async fn tend(self: &Arc<Self>, stop: &CancellationToken) {
        let mut sweeps = tokio::time::interval(SWEEP_EVERY);
        sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Cut with whoever tends, should they not have ended.
        let mut probes = JoinSet::new();
        loop {
            let next = self.health().next_probe(self.plane.clock.now());
            let due = async {
                match next {
                    Some(next) => self.plane.alarms.at(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                _ = sweeps.tick() => self.sweep(),
                () = self.ejected.notified() => {}
                // A probe that fails by a defect would leave its address resting for good, and nobody would know.
                Some(ended) = probes.join_next() => ended.expect("no probe fails"),
                () = due => {
                    for address in self.health().begin_probes(self.plane.clock.now()) {
                        let upstream = self.clone();
                        probes.spawn(async move { upstream.probe(address).await });
                    }
                }
            }
        }
        for pool in &self.pools {
            pool.close();
        }
    }

    async fn probe(&self, address: usize) {
        let pool = &self.pools[address];
        let probed = match self.carries {
            Carries::Requests => pool.probe().await,
            Carries::Bytes => pool.dialer().dial(&self.plane, Want::Raw).await.map(drop),
        };
        let mut health = self.health();
        health.probe_ended(address);
        match probed {
            Ok(()) => {
                tracing::info!(address = %pool.dialer(), "answers again");
                health.succeeded(address);
            }
            Err(_still) => health.failed(address, self.plane.clock.now(), &*self.plane.entropy),
        }
    }

    fn sweep(&self) {
        let now = self.plane.clock.now();
        for pool in &self.pools {
            pool.sweep(now);
        }
    }

    /// The handshake was a success as far as we could see then, and is not one.
    fn report(&self, address: usize, failed: &Failed) {
        if let Dialer::Mutual { service, peer, .. } = self.pools[address].dialer() {
            let blank = blank_fact(&self.plane, Direction::Outbound, service, None);
            let detail = failed.detail.clone();
            let peer = Some(peer.clone());
            self.plane.facts.report(HandshakeFact {
                peer,
                code: Some(failed.code),
                detail,
                ..blank
            });
        }
    }

    /// What comes after a try that failed with this code.
    fn after(&self, tries: &mut Tries, missed: (Fate, Fault), code: Code) -> Next {
        self.tell(tries.address(), code, |health, now, entropy| {
            tries.after(missed, health, now, entropy)
        })
    }

    /// Has the addresses hear of something, and wakes the one who probes, should it have waited for none of them, when one begins to
    /// rest.
    fn tell<T>(
        &self,
        address: usize,
        code: Code,
        tell: impl FnOnce(&mut Health, Timestamp, &dyn Entropy) -> T,
    ) -> T {
        let now = self.plane.clock.now();
        let mut health = self.health();
        let before = health.next_probe(now);
        let told = tell(&mut health, now, &*self.plane.entropy);
        let after = health.next_probe(now);
        drop(health);
        if before.is_none() && after.is_some() {
            tracing::warn!(address = %self.pools[address].dialer(), %code, "rests after a failure");
            self.ejected.notify_one();
        }
        told
    }

    fn answered(&self, address: usize) {
        self.health().succeeded(address);
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nowhere() -> Failed {
    Failed {
        code: Code::PeerUnreachable,
        detail: "no address is known for it".to_owned(),
        again: None,
    }
}

/// What is needed to send a request a second time, if the first was not read.
struct Spare {
    head: Option<Box<Request<()>>>,
    replay: Option<Replay<Coming>>,
}

impl Spare {
    fn of(request: &Request<Body>) -> Self {
        let mut head = Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.version_mut() = request.version();
        *head.headers_mut() = request.headers().clone();
        Self { head: Some(Box::new(head)), replay: request.body().replay() }
    }

    /// For a connection on which nobody can say that a request was not read.
    fn none(request: &Request<Body>) -> Self {
        let spare = Self { head: None, replay: request.body().replay() };
        spare.release();
        spare
    }

    /// The request, unless too much of its body has passed.
    fn again(self) -> Option<Box<Request<Body>>> {
        let body = match self.replay {
            Some(replay) => Body::again(replay.again()?),
            None => Body::empty(),
        };
        Some(Box::new(self.head?.map(|()| body)))
    }

    /// Why its body has no end, if that is its sender's doing.
    fn broken(&self) -> Option<String> {
        self.replay.as_ref()?.ask(|coming| coming.broken.clone())
    }

    /// It is being answered.
    fn release(&self) {
        if let Some(replay) = &self.replay {
            replay.release();
        }
    }
}

/// Whether an answer can be passed on, which it then says in one way only where it ends.
fn check(response: &mut Response<Incoming>, want: Want) -> Result<(), BadAnswer> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        if want != Want::Http1 {
            return Err(BadAnswer::Unasked);
        }
        headers::upgrade(response.headers()).ok_or(BadAnswer::NoProtocol)?;
    }
    headers::frame(response.headers_mut())
}

fn bad_answer(why: &str) -> Failed {
    let detail = format!("the answer breaks the rules of HTTP: {why}");
    Failed { code: Code::BadAnswer, detail, again: None }
}

impl From<BadAnswer> for Failed {
    fn from(bad: BadAnswer) -> Self {
        bad_answer(&bad.to_string())
    }
}

fn passing(
    response: Response<Incoming>,
    lease: Lease,
    sending: Option<Replay<Coming>>,
) -> Response<Body> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // The connection becomes something else and never comes back to its pool.
        let mut response = response.map(|_none| Body::empty());
        if let Some(admitted) = lease.admitted() {
            response.extensions_mut().insert(admitted.clone());
        }
        return response;
    }
    response.map(|incoming| Body::leased(incoming, lease, sending))
}
