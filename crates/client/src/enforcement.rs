//! The stream of slices, acknowledgements and facts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1::enforcement_client::EnforcementClient;
use countersign_api::v1::enforcement_request::Step as Out;
use countersign_api::v1::enforcement_response::Step as In;
use countersign_api::{v1, wire};
use countersign_identity::{Backoff, BackoffPolicy, Clock, Entropy, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Streaming};

use crate::endpoint::explain;
use crate::fact::{Counted, Facts};
use crate::keeper::{Acknowledgement, Keeper, Taken};
use crate::slice::SLICE_BYTES_MAX;
use crate::workload_api::{LASTING, OPEN_TIMEOUT, RETRY, workload_request};
use crate::{Choice, Endpoint, Enforcement, Point};

/// Messages under way to the agent.
const SENDING_MAX: usize = 8;
/// Facts in one message.
const FACTS_MAX: usize = 128;
/// Flows in one message.
const FLOWS_MAX: usize = 256;
const STATUS_EVERY: Duration = Duration::from_secs(3);
/// How long the agent may take to take note of a goodbye. A program that ends must not hang on an agent that does.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// An agent that does not offer the service may be succeeded by one that does.
const NOT_OFFERED_RETRY: BackoffPolicy =
    BackoffPolicy { first: Duration::from_secs(30), longest: Duration::from_secs(300) };

/// Follows the stream, and comes again when it ends.
pub(crate) struct Subscription {
    pub(crate) endpoint: Endpoint,
    pub(crate) choice: Choice,
    pub(crate) point: Point,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) facts: Facts,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
}

/// Why a stream ended.
enum Ended {
    Stopped,
    NotOffered,
    Lost(String),
}

/// What can wake the loop.
enum Event {
    Stop,
    Received(Result<Option<v1::EnforcementResponse>, tonic::Status>),
    Room(mpsc::OwnedPermit<v1::EnforcementRequest>),
    Fact(Option<Counted>),
    /// Connections that retire were closed, or others retire.
    Draining,
    StatusDue,
}

impl Subscription {
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut lost = Backoff::new(RETRY);
        let mut not_offered = Backoff::new(NOT_OFFERED_RETRY);
        loop {
            let begun = self.clock.now();
            let ended = self.follow(&stop).await;
            let now = self.clock.now();
            if LASTING <= now.since(begun) {
                lost.reset();
            }
            let again = match ended {
                Ended::Stopped => return,
                Ended::NotOffered => {
                    tracing::warn!("the agent does not offer policies, so nothing is allowed");
                    self.keeper.enforcement(Enforcement::NotOffered);
                    not_offered.failed(now, &*self.entropy)
                }
                Ended::Lost(why) => {
                    tracing::warn!(%why, "the agent's policies are away; what it said stays");
                    self.keeper.enforcement(Enforcement::Lost { since: now, why });
                    lost.failed(now, &*self.entropy)
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.clock.sleep_until(again) => {}
            }
        }
    }

    async fn follow(&mut self, stop: &CancellationToken) -> Ended {
        let (requests, stream) = tokio::select! {
            () = stop.cancelled() => return Ended::Stopped,
            opened = self.open() => match opened {
                Ok(opened) => opened,
                Err(ended) => return ended,
            },
        };
        Conversation::new(self, requests, stream).run(stop).await
    }

    async fn open(
        &self,
    ) -> Result<(mpsc::Sender<v1::EnforcementRequest>, Streaming<v1::EnforcementResponse>), Ended>
    {
        let channel =
            self.endpoint.channel().await.map_err(|error| {
                Ended::Lost(format!("`{}`: {}", self.endpoint, explain(&error)))
            })?;
        let mut client = EnforcementClient::new(channel).max_decoding_message_size(SLICE_BYTES_MAX);
        let (requests, outgoing) = mpsc::channel(SENDING_MAX);
        let register = v1::Register {
            point: self.point.name.to_string(),
            kind: self.point.kind.as_str().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            spiffe_id: self.choice.id().map(ToString::to_string).unwrap_or_default(),
        };
        let first = v1::EnforcementRequest { step: Some(Out::Register(register)) };
        requests.try_send(first).expect("a new queue has room");
        let request = workload_request(ReceiverStream::new(outgoing));
        let late = self.clock.now() + OPEN_TIMEOUT;
        let opened = tokio::select! {
            opened = client.subscribe(request) => opened,
            () = self.clock.sleep_until(late) => {
                return Err(Ended::Lost("the agent does not answer".to_owned()));
            }
        };
        match opened {
            Ok(response) => Ok((requests, response.into_inner())),
            Err(status) => Err(ended_by(&status)),
        }
    }

    /// Why a slice is not for the identity that was asked for, if it is not: an agent that does not know the question
    /// answers for the first.
    fn is_for_another(&self, slice: &v1::Slice) -> Option<String> {
        let id = self.choice.id().filter(|id| id.as_str() != slice.spiffe_id)?;
        let other: String = slice.spiffe_id.chars().take(200).collect();
        Some(format!(
            "it is for `{other}` and not for `{id}`, which the agent was asked about; a newer agent answers for that one"
        ))
    }
}

fn ended_by(status: &tonic::Status) -> Ended {
    if status.code() == Code::Unimplemented {
        return Ended::NotOffered;
    }
    Ended::Lost(format!("{}: {}", status.code(), status.message()))
}

/// One stream.
struct Conversation<'a> {
    subscription: &'a mut Subscription,
    requests: mpsc::Sender<v1::EnforcementRequest>,
    stream: Streaming<v1::EnforcementResponse>,
    outbox: Outbox,
    status_due: Timestamp,
    /// What was said last on this stream.
    acknowledged: Option<Acknowledgement>,
    draining: watch::Receiver<usize>,
    doors: watch::Receiver<Vec<SocketAddr>>,
}

/// What waits for room on the stream. Bounded: acknowledgements are cumulative, so the newest stands for all.
#[derive(Default)]
struct Outbox {
    acknowledgement: Option<Acknowledgement>,
    status: Option<v1::ProcessStatus>,
    facts: Vec<v1::HandshakeFact>,
    dropped: u64,
    flows: Vec<v1::Flow>,
    flows_dropped: u64,
    served: Vec<v1::Served>,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.acknowledgement.is_none()
            && self.status.is_none()
            && self.facts.is_empty()
            && self.flows.is_empty()
            && self.served.is_empty()
    }

    /// Acknowledgements first: somebody may be waiting for them.
    fn next(&mut self) -> Option<v1::EnforcementRequest> {
        let step = if let Some(Acknowledgement { revision, cut, draining }) =
            self.acknowledgement.take()
        {
            Out::Acknowledge(v1::Acknowledge { revision: Some(revision.into()), cut, draining })
        } else if let Some(status) = self.status.take() {
            Out::Status(status)
        } else if self.facts.is_empty() && self.flows.is_empty() && self.served.is_empty() {
            return None;
        } else {
            let handshakes = std::mem::take(&mut self.facts);
            let dropped = std::mem::take(&mut self.dropped);
            let flows = std::mem::take(&mut self.flows);
            let flows_dropped = std::mem::take(&mut self.flows_dropped);
            let served = std::mem::take(&mut self.served);
            Out::Facts(v1::Facts { handshakes, dropped, flows, flows_dropped, served })
        };
        Some(v1::EnforcementRequest { step: Some(step) })
    }
}

impl<'a> Conversation<'a> {
    fn new(
        subscription: &'a mut Subscription,
        requests: mpsc::Sender<v1::EnforcementRequest>,
        stream: Streaming<v1::EnforcementResponse>,
    ) -> Self {
        let status_due = subscription.clock.now();
        let draining = subscription.keeper.trust().draining();
        let doors = subscription.keeper.doors();
        let outbox = Outbox::default();
        Self {
            subscription,
            requests,
            stream,
            outbox,
            status_due,
            acknowledged: None,
            draining,
            doors,
        }
    }

    async fn run(mut self, stop: &CancellationToken) -> Ended {
        loop {
            match self.next_event(stop).await {
                Event::Stop => {
                    self.say_goodbye().await;
                    return Ended::Stopped;
                }
                Event::Received(Ok(Some(message))) => {
                    if let Err(ended) = self.receive(message).await {
                        return ended;
                    }
                }
                Event::Received(Ok(None)) => {
                    return Ended::Lost("the agent ended the stream".to_owned());
                }
                Event::Received(Err(status)) => return ended_by(&status),
                Event::Room(room) => {
                    if let Some(request) = self.outbox.next() {
                        room.send(request);
                    }
                }
                Event::Fact(Some(fact)) => self.add(fact),
                Event::Draining => self.drained(),
                Event::Fact(None) | Event::StatusDue => self.status_is_due(),
            }
        }
    }

    async fn next_event(&mut self, stop: &CancellationToken) -> Event {
        let facts_wanted = self.outbox.facts.len() < FACTS_MAX;
        tokio::select! {
            // Whatever is ready, what the agent says goes before what it is told.
            biased;
            () = stop.cancelled() => Event::Stop,
            received = self.stream.message() => Event::Received(received),
            Ok(room) = self.requests.clone().reserve_owned(), if !self.outbox.is_empty() => {
                Event::Room(room)
            }
            Some(fact) = self.subscription.facts.queue.recv(), if facts_wanted => {
                Event::Fact(Some(fact))
            }
            Ok(()) = self.draining.changed(), if self.acknowledged.is_some() => Event::Draining,
            // Where it lets peers in is told at once: it may be about to be tried there.
            Ok(()) = self.doors.changed() => Event::StatusDue,
            () = self.subscription.clock.sleep_until(self.status_due) => Event::StatusDue,
        }
    }

    async fn receive(&mut self, message: v1::EnforcementResponse) -> Result<(), Ended> {
        let keeper = &self.subscription.keeper;
        keeper.enforcement(Enforcement::Subscribed);
        let acknowledgement = match message.step {
            Some(In::Slice(slice)) => {
                if let Some(why) = self.subscription.is_for_another(&slice) {
                    keeper.bad_slice(why);
                    return Ok(());
                }
                // Compiling policies takes long for a worker thread that others wait for.
                let taking = Arc::clone(keeper);
                let taken = tokio::task::spawn_blocking(move || taking.slice(slice)).await;
                match taken {
                    Ok(Ok(Taken::Enforced(acknowledgement))) => Some(acknowledgement),
                    Ok(Ok(Taken::Older)) => {
                        let why = "the agent is behind what is enforced here";
                        return Err(Ended::Lost(why.to_owned()));
                    }
                    Ok(Err(_said)) => None,
                    // A defect of ours, or the program ends. Whether it was applied is unknown, so it is not acknowledged.
                    Err(failed) => {
                        keeper.bad_slice(format!("it could not be read: {failed}"));
                        None
                    }
                }
            }
            Some(In::EnforceMark(mark)) => mark.revision.and_then(|wire| keeper.mark(wire.into())),
            // A step that this version does not know may be one that takes rights away.
            None => {
                keeper
                    .bad_slice("the agent sent a step that this version does not know".to_owned());
                return Err(Ended::Lost("the agent is newer than this program".to_owned()));
            }
        };
        if let Some(acknowledgement) = acknowledgement {
            self.acknowledge(acknowledgement);
        }
        Ok(())
    }

    fn acknowledge(&mut self, acknowledgement: Acknowledgement) {
        self.acknowledged = Some(acknowledgement);
        self.outbox.acknowledgement = Some(acknowledgement);
    }

    /// The end is told at once, since somebody may wait for it; the way there with the next status.
    fn drained(&mut self) {
        if *self.draining.borrow_and_update() == 0 {
            self.tell_draining();
        }
    }

    fn tell_draining(&mut self) {
        let draining = u64::try_from(*self.draining.borrow()).unwrap_or(u64::MAX);
        if let Some(said) = self.acknowledged
            && said.draining != draining
        {
            self.acknowledge(Acknowledgement { draining, ..said });
        }
    }

    fn add(&mut self, fact: Counted) {
        let point = self.subscription.point.name.as_str();
        self.outbox.facts.push(fact.into_wire(point));
        self.outbox.dropped += self.subscription.facts.newly_dropped();
    }

    /// What was counted since the last time, unless that is still waiting.
    fn add_flows(&mut self) {
        if self.outbox.flows.is_empty() {
            let (flows, dropped) = self.subscription.facts.flows.take(FLOWS_MAX);
            self.outbox.flows = flows;
            self.outbox.flows_dropped += dropped;
        }
        if self.outbox.served.is_empty() {
            let now = self.subscription.clock.now();
            self.outbox.served = self.subscription.facts.served.take(now);
        }
    }

    fn status_is_due(&mut self) {
        self.status_due = self.subscription.clock.now() + STATUS_EVERY;
        self.add_flows();
        self.tell_draining();
        let Subscription { point, keeper, .. } = &*self.subscription;
        self.outbox.status = Some(v1::ProcessStatus {
            name: point.name.to_string(),
            kind: point.kind.as_str().to_owned(),
            pid: std::process::id(),
            resident_bytes: resident_bytes(),
            connections: u64::try_from(keeper.trust().connections()).unwrap_or(u64::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            doors: self.doors.borrow_and_update().iter().map(ToString::to_string).collect(),
            parts: wire::parts_of(&keeper.parts().vitals()),
        });
    }

    /// Lets nobody in any more, hands over what there is room for, and ends its half of the stream, which says that the
    /// point is gone. The agent's end says that it has heard: a stream that was dropped is a lost one, which says nothing.
    async fn say_goodbye(mut self) {
        self.subscription.keeper.close();
        while let Ok(fact) = self.subscription.facts.queue.try_recv() {
            self.add(fact);
        }
        self.add_flows();
        while let Some(request) = self.outbox.next() {
            if self.requests.try_send(request).is_err() {
                break;
            }
        }
        let Self { subscription, requests, mut stream, .. } = self;
        drop(requests);
        let late = subscription.clock.now() + GOODBYE_TIMEOUT;
        let heard = async { while let Ok(Some(_said)) = stream.message().await {} };
        tokio::select! {
            () = heard => {}
            () = subscription.clock.sleep_until(late) => {
                tracing::info!("the agent did not hear the goodbye; it sees the process end");
            }
        }
    }
}

/// What the process holds in memory; 0 where the kernel does not tell.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024)
}
