//! One stream per enforcement point.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1::enforcement_request::Step as In;
use countersign_api::v1::enforcement_response::{Mark, Step as Out};
use countersign_api::v1::enforcement_server::{Enforcement, EnforcementServer};
use countersign_api::{v1, wire};
use countersign_identity::{Code, Revision, Timestamp};
use futures_util::stream;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::points::Registered;
use super::{Points, slice};
use crate::reception::{Counted, Reception, Unknown, Visitor, visitor};
use crate::reports::Facts;
use crate::view::{Holdings, View};

/// The service.
pub(crate) struct EnforcementService {
    reception: Reception,
    points: Points,
    facts: Facts,
}

/// A message of facts holds some hundred of them at most.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// The first message must come within this.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// At most one mark a second.
const MARK_EVERY: Duration = Duration::from_secs(1);
/// How long a first slice may be waited for, while this agent is about to know.
const FIRST_SLICE_TIMEOUT: Duration = Duration::from_secs(10);

impl EnforcementService {
    pub(crate) fn server(
        reception: Reception,
        points: Points,
        facts: Facts,
    ) -> EnforcementServer<Self> {
        EnforcementServer::new(Self { reception, points, facts })
            .max_decoding_message_size(REQUEST_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Enforcement for EnforcementService {
    type SubscribeStream =
        Pin<Box<dyn Stream<Item = Result<v1::EnforcementResponse, Status>> + Send + 'static>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::EnforcementRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let visitor = visitor(&request)?;
        let place = self.reception.stream_place(visitor.caller.peer())?;
        let now = self.reception.clock.now();
        let mut views = self.reception.views.clone();
        views.mark_changed();
        let conversation = Conversation {
            reception: self.reception.clone(),
            points: self.points.clone(),
            facts: self.facts.clone(),
            views,
            visitor,
            incoming: request.into_inner(),
            registered: None,
            register: None,
            deadline: now + REGISTER_TIMEOUT,
            sent: None,
            mark_due: None,
            _place: place,
        };
        let messages = stream::try_unfold(conversation, |mut conversation| async move {
            let next = conversation.next().await?;
            Ok(next.map(|step| (v1::EnforcementResponse { step: Some(step) }, conversation)))
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

struct Conversation {
    reception: Reception,
    points: Points,
    facts: Facts,
    views: watch::Receiver<Option<Arc<View>>>,
    visitor: Visitor,
    incoming: Streaming<v1::EnforcementRequest>,
    register: Option<v1::Register>,
    registered: Option<Registered>,
    deadline: Timestamp,
    sent: Option<Sent>,
    mark_due: Option<Timestamp>,
    _place: Counted<u32>,
}

/// What the point was told last.
struct Sent {
    /// Without its revision, so that it can be compared.
    slice: v1::Slice,
    revision: Revision,
    at: Timestamp,
}

enum Event {
    Heard(Result<Option<v1::EnforcementRequest>, Status>),
    Changed,
    Stopped,
    Late,
    MarkDue,
}

impl Conversation {
    /// The next message to the point; `None` at the end.
    async fn next(&mut self) -> Result<Option<Out>, Status> {
        loop {
            let message = match self.event().await {
                Event::Stopped => return Ok(None),
                Event::Heard(heard) => match heard? {
                    None => return Ok(None),
                    Some(request) => {
                        self.hear(request)?;
                        // The first slice follows the registration at once.
                        if self.sent.is_none() { self.look().await? } else { None }
                    }
                },
                Event::Changed => self.look().await?,
                Event::MarkDue => {
                    self.mark_due = None;
                    self.look().await?
                }
                Event::Late => return Err(self.late()),
            };
            if message.is_some() {
                return Ok(message);
            }
        }
    }

    async fn event(&mut self) -> Event {
        let clock = Arc::clone(&self.reception.clock);
        let mark_due = self.mark_due.unwrap_or(Timestamp::LAST);
        tokio::select! {
            heard = self.incoming.message() => Event::Heard(heard),
            changed = self.views.changed(), if self.register.is_some() => {
                if changed.is_ok() { Event::Changed } else { Event::Stopped }
            }
            () = clock.sleep_until(self.deadline), if self.sent.is_none() => Event::Late,
            () = clock.sleep_until(mark_due), if self.mark_due.is_some() => Event::MarkDue,
        }
    }

    fn late(&self) -> Status {
        let (code, why) = match self.register {
            None => (Code::TimedOut, "no registration came"),
            Some(_) => (Code::NotReady, "this agent cannot know yet what the caller needs"),
        };
        wire::refusal_status(tonic::Code::Unavailable, code, why)
    }

    /// Takes one message of the point.
    fn hear(&mut self, request: v1::EnforcementRequest) -> Result<(), Status> {
        let misplaced = |what: &str| {
            wire::refusal_status(tonic::Code::InvalidArgument, Code::NotUnderstood, what)
        };
        match (request.step, &self.registered) {
            (Some(In::Register(register)), None) if self.register.is_none() => {
                self.register = Some(register);
                self.deadline = self.reception.clock.now() + FIRST_SLICE_TIMEOUT;
                Ok(())
            }
            (Some(In::Register(_)), _) => Err(misplaced("a point registers once, first of all")),
            (Some(In::Acknowledge(acknowledge)), Some(registered)) => {
                let revision = wire::revision(acknowledge.revision)
                    .map_err(|bad| misplaced(&bad.to_string()))?;
                let told = self.sent.as_ref().map(|sent| sent.revision);
                if told < Some(revision) {
                    return Err(misplaced("a revision was acknowledged that was never sent"));
                }
                registered.acknowledge(revision, acknowledge.cut, acknowledge.draining);
                Ok(())
            }
            (Some(In::Facts(facts)), Some(registered)) => {
                self.facts.take(registered.name(), facts);
                Ok(())
            }
            (Some(In::Status(status)), Some(registered)) => {
                registered.status(&status);
                Ok(())
            }
            // A point may speak of itself before its first slice; it is not known under a name yet.
            (Some(In::Facts(_) | In::Status(_)), None) if self.register.is_some() => Ok(()),
            (Some(In::Acknowledge(_) | In::Facts(_) | In::Status(_)), None) => {
                Err(misplaced("a point registers first of all"))
            }
            (None, _) => Err(misplaced("a step of an unknown kind")),
        }
    }

    /// Attests the caller anew, and says what is new for it.
    async fn look(&mut self) -> Result<Option<Out>, Status> {
        let Some(register) = self.register.clone() else { return Ok(None) };
        let Some(view) = self.views.borrow_and_update().clone() else { return Ok(None) };
        let caller = Arc::clone(&self.visitor.caller);
        let workloads = match self.reception.who(&caller, &view).await {
            Ok(workloads) => workloads,
            Err(Unknown::CannotKnow(Code::NotReady, _)) => return Ok(None),
            Err(unknown) => return Err(unknown.status(caller.peer())),
        };
        // Only what the server issues to this node: a workload of others may have selectors that hold here, too.
        let workloads: Vec<_> = match view.holdings(&workloads, self.reception.clock.now()) {
            Holdings::Svids(svids) => svids.into_iter().map(|(workload, _)| workload).collect(),
            Holdings::Pending(_) => return Ok(None),
            Holdings::Refused(code, why) => {
                return Err(wire::refusal_status(tonic::Code::PermissionDenied, code, &why));
            }
        };
        let Some(own) = workloads.first() else { return Ok(None) };
        if self.registered.is_none() {
            let registered =
                self.points.register(&caller, &own.id, &register).map_err(|refused| {
                    let grpc = tonic::Code::ResourceExhausted;
                    wire::refusal_status(grpc, refused.code(), &refused.to_string())
                })?;
            self.registered = Some(registered);
        }
        let revision = view.replica.revision();
        let mut slice = slice::cut(&view.replica, &workloads);
        slice.revision = None;
        let now = self.reception.clock.now();
        match &mut self.sent {
            Some(sent) if sent.slice == slice && revision <= sent.revision => Ok(None),
            Some(sent) if sent.slice == slice && now < sent.at + MARK_EVERY => {
                self.mark_due = Some(sent.at + MARK_EVERY);
                Ok(None)
            }
            Some(sent) if sent.slice == slice => {
                sent.revision = revision;
                sent.at = now;
                Ok(Some(Out::EnforceMark(Mark { revision: Some(revision.into()) })))
            }
            Some(_) | None => {
                let whole = v1::Slice { revision: Some(revision.into()), ..slice.clone() };
                self.sent = Some(Sent { slice, revision, at: now });
                self.mark_due = None;
                Ok(Some(Out::Slice(whole)))
            }
        }
    }
}
