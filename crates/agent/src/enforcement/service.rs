//! One stream per enforcement point.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1::enforcement_response::{Mark, Step as Out};
use countersign_api::v1::enforcement_server::{Enforcement, EnforcementServer};
use countersign_api::{v1, wire};
use countersign_identity::{Code, Revision, SpiffeId, Timestamp};
use futures_util::stream;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::ears::{Ears, Heard};
use super::points::Registered;
use super::{Points, slice};
use crate::core::{Knowledge, Workload};
use crate::reception::{Counted, Reception, Unknown, Visitor, visitor};
use crate::reports::{Facts, Ours};
use crate::view::{Own, View};

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
/// Who ends a stream in an orderly way waits for our end of it; one that was dropped is reset a moment later. For so long
/// it is not known which of the two it is: only the first is a goodbye.
const GOODBYE_GRACE: Duration = Duration::from_millis(50);
/// How many of the workloads that a caller is are named to one that should be another.
const NAMED_MAX: usize = 5;
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
            views,
            visitor,
            incoming: request.into_inner(),
            ears: Ears::new(self.facts.clone()),
            own: None,
            ours: Vec::new(),
            leaves: None,
            ends_with: None,
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
    views: watch::Receiver<Option<Arc<View>>>,
    visitor: Visitor,
    incoming: Streaming<v1::EnforcementRequest>,
    ears: Ears,
    /// The workload that it was registered for.
    own: Option<Arc<Workload>>,
    /// All that it was at the last look at which it was any.
    ours: Vec<Arc<Workload>>,
    /// When it will have said goodbye.
    leaves: Option<Timestamp>,
    /// What its stream ends with, once the last slice is on its way.
    ends_with: Option<Status>,
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
    Left,
}

/// Who the caller is at one moment.
enum Who {
    /// These workloads; and when the last SVID ends that the process can have, as one of these or as another.
    These(Vec<Arc<Workload>>, Option<Timestamp>),
    /// What it was, but the server issues nothing for it any more.
    Refused(Status),
    /// None, on the server's word.
    Nobody(Status),
    /// That cannot be known now.
    CannotKnow,
}

impl Conversation {
    /// The next message to the point; `None` at the end.
    async fn next(&mut self) -> Result<Option<Out>, Status> {
        loop {
            if let Some(status) = self.ends_with.take() {
                return Err(status);
            }
            let message = match self.event().await {
                Event::Stopped => return Ok(None),
                Event::Left => {
                    if let Some(registered) = &self.ears.registered {
                        registered.goodbye();
                    }
                    return Ok(None);
                }
                Event::Heard(heard) => match heard? {
                    None => {
                        self.leaves = Some(self.reception.clock.now() + GOODBYE_GRACE);
                        None
                    }
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
        if let Some(leaves) = self.leaves {
            clock.sleep_until(leaves).await;
            return Event::Left;
        }
        tokio::select! {
            heard = self.incoming.message() => Event::Heard(heard),
            changed = self.views.changed(), if self.ears.register.is_some() => {
                if changed.is_ok() { Event::Changed } else { Event::Stopped }
            }
            () = clock.sleep_until(self.deadline), if self.sent.is_none() => Event::Late,
            () = clock.sleep_until(mark_due), if self.mark_due.is_some() => Event::MarkDue,
        }
    }

    fn late(&self) -> Status {
        let (code, why) = match self.ears.register {
            None => (Code::TimedOut, "no registration came"),
            Some(_) => (Code::NotReady, "this agent cannot know yet what the caller needs"),
        };
        wire::refusal_status(tonic::Code::Unavailable, code, why)
    }

    /// Takes one message of the point.
    fn hear(&mut self, request: v1::EnforcementRequest) -> Result<(), Status> {
        let told = self.sent.as_ref().map(|sent| sent.revision);
        let view = self.views.borrow().clone();
        let owns = |service: &str| {
            let Some(view) = &view else { return false };
            let service = service.parse().ok();
            let spec = service.and_then(|service| view.replica.services().get(&service));
            spec.is_some_and(|spec| self.ours.iter().any(|own| spec.workload == own.name))
        };
        let ids: Vec<_> = self.ours.iter().map(|own| own.id.clone()).collect();
        let ours = Ours { ids: &ids, owns: &owns };
        if self.ears.hear(request, told, &ours)? == Heard::Registration {
            self.deadline = self.reception.clock.now() + FIRST_SLICE_TIMEOUT;
        }
        Ok(())
    }

    /// Says what is new for the caller, as whom it is now.
    async fn look(&mut self) -> Result<Option<Out>, Status> {
        let Some(register) = self.ears.register.clone() else { return Ok(None) };
        let Some(view) = self.views.borrow_and_update().clone() else { return Ok(None) };
        let slice = match (self.who(&register, &view).await?, &self.own) {
            (Who::CannotKnow, _) => return Ok(None),
            (Who::These(workloads, presents), _) => {
                let Some(own) = workloads.first() else { return Ok(None) };
                let registered = self.registered(&register, own)?;
                registered.presents(presents);
                self.ours.clone_from(&workloads);
                slice::cut(&view.replica, &workloads)
            }
            (Who::Refused(status) | Who::Nobody(status), None) => return Err(status),
            // The stream stays, so that the point can say that it enforces this, and what comes after.
            (Who::Refused(_), Some(own)) => slice::withdrawn(&view.replica, own),
            (Who::Nobody(status), Some(own)) => {
                self.ends_with = Some(status);
                slice::withdrawn(&view.replica, own)
            }
        };
        Ok(self.tell(slice, view.replica.revision()))
    }

    /// Attests the caller anew. Only what the server issues to this node counts: a workload of others may have selectors
    /// that hold here, too.
    async fn who(&self, register: &v1::Register, view: &View) -> Result<Who, Status> {
        let caller = &self.visitor.caller;
        let all = match self.reception.who(&self.visitor, view).await {
            Ok(workloads) => workloads,
            Err(Unknown::CannotKnow(Code::NotReady, _)) => return Ok(Who::CannotKnow),
            Err(nobody @ Unknown::Nobody) => return Ok(Who::Nobody(nobody.status(caller.peer()))),
            Err(unknown @ Unknown::CannotKnow(..)) => return Err(unknown.status(caller.peer())),
        };
        let presents = view.last_expiry(&all);
        let workloads = match chosen(register, all)? {
            Chosen::These(workloads) => workloads,
            // Only the server's word says that it is not the one that it is meant to be.
            Chosen::Nobody(_) if view.knowledge != Knowledge::Synced => return Ok(Who::CannotKnow),
            Chosen::Nobody(status) => return Ok(Who::Nobody(status)),
        };
        let now = self.reception.clock.now();
        let own = match &self.own {
            // It is registered as whom it is first, which is not known before all is known.
            None => view.own(&workloads, now),
            Some(own) => view.own_about(&workloads, &own.name, now),
        };
        Ok(match own {
            Own::These(own) => Who::These(own, presents),
            Own::Pending => Who::CannotKnow,
            Own::Refused(code, why) => {
                Who::Refused(wire::refusal_status(tonic::Code::PermissionDenied, code, &why))
            }
        })
    }

    fn registered(
        &mut self,
        register: &v1::Register,
        own: &Arc<Workload>,
    ) -> Result<&Registered, Status> {
        let registered = match self.ears.registered.take() {
            Some(registered) => registered,
            None => {
                let caller = &self.visitor.caller;
                self.points.register(caller, &own.id, register).map_err(|refused| {
                    let grpc = tonic::Code::ResourceExhausted;
                    wire::refusal_status(grpc, refused.code(), &refused.to_string())
                })?
            }
        };
        self.own = Some(Arc::clone(own));
        Ok(self.ears.registered.insert(registered))
    }

    /// The message that brings the point from what it was told last to this; none when nothing is to be said yet.
    fn tell(&mut self, mut slice: v1::Slice, revision: Revision) -> Option<Out> {
        slice.revision = None;
        let now = self.reception.clock.now();
        match &mut self.sent {
            Some(sent) if sent.slice == slice && revision <= sent.revision => None,
            Some(sent) if sent.slice == slice && now < sent.at + MARK_EVERY => {
                self.mark_due = Some(sent.at + MARK_EVERY);
                None
            }
            Some(sent) if sent.slice == slice => {
                sent.revision = revision;
                sent.at = now;
                Some(Out::EnforceMark(Mark { revision: Some(revision.into()) }))
            }
            Some(_) | None => {
                let whole = v1::Slice { revision: Some(revision.into()), ..slice.clone() };
                self.sent = Some(Sent { slice, revision, at: now });
                self.mark_due = None;
                Some(Out::Slice(whole))
            }
        }
    }
}

/// Which of the workloads that a caller is a point of it speaks for.
enum Chosen {
    These(Vec<Arc<Workload>>),
    /// The caller is not the one for which it was said to speak.
    Nobody(Status),
}

/// All of them, or the one with the SPIFFE ID that it registered for: of no other is it told, and as no other is it known.
fn chosen(register: &v1::Register, all: Vec<Arc<Workload>>) -> Result<Chosen, Status> {
    if register.spiffe_id.is_empty() {
        return Ok(Chosen::These(all));
    }
    let id: SpiffeId = register.spiffe_id.parse().map_err(|why| {
        let why = format!("the SPIFFE ID that the point speaks for: {why}");
        wire::refusal_status(tonic::Code::InvalidArgument, Code::NotUnderstood, &why)
    })?;
    if let Some(own) = all.iter().find(|workload| workload.id == id) {
        return Ok(Chosen::These(vec![Arc::clone(own)]));
    }
    let given: Vec<_> = all.iter().take(NAMED_MAX).map(|one| format!("`{}`", one.id)).collect();
    let why = format!("this process is not `{id}`: it is {}", given.join(" and "));
    Ok(Chosen::Nobody(wire::refusal_status(tonic::Code::PermissionDenied, Code::NoMatch, &why)))
}
