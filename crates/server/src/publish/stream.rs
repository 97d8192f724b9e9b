//! One agent's stream: what it is told, and what ends it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use countersign_api::standing::put;
use countersign_api::v1;
use countersign_api::v1::from_server::Step as Said;
use countersign_api::v1::sync_response::Step as Told;
use countersign_api::wire::clip;
use countersign_identity::{Code, NodeId, Timestamp};
use countersign_store::{Batch, Op, PointKey, PointRow};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::attest::{Caller, caller};
use crate::control::Control;
use crate::edge::Peer;
use crate::publish::arrival::{Arrival, reckon};
use crate::publish::leash::Leashed;
use crate::publish::publication::{Next, Publication, silence};
use crate::publish::slice::{Shared, Slice};
use crate::refusal::Refused;
use crate::revoke::forget;
use crate::state::State;

/// A stream that is served.
pub(crate) struct Live {
    control: Arc<Control>,
    peer: Arc<Peer>,
    caller: Caller,
    publication: Publication,
    states: watch::Receiver<Arc<State>>,
    leashed: Leashed,
    number: u64,
    /// The slice of the caller's labels.
    shared: Arc<Shared>,
    /// Rings when there is something to say though nothing has moved, or before.
    alarm: Pin<Box<Sleep>>,
}

/// What can wake a stream.
enum Event {
    Ended(Refused),
    Moved(bool),
    Time,
}

/// Opens the stream of a caller: a snapshot, or what changed since the revision that it has, and then every change.
///
/// # Errors
/// When the caller is not who it was any more, or the store is behind what it has seen.
pub(crate) async fn open(
    control: Arc<Control>,
    peer: Arc<Peer>,
    caller: Caller,
    hello: &v1::SyncHello,
) -> Result<Live, Refused> {
    behind(&control, hello).await?;
    let states = control.feed.watch();
    let (caller, number, leashed) = attend(&control, &peer, caller, hello).await?;
    let known = known(&control, &caller, hello);
    let mut publication = Publication::new(known, number, control.clock.now());
    // Streams that open later make it longer for all: each is told the longer time with what it is told next.
    publication.be_silent_for(silence(control.roster.streams()));
    tracing::info!(node = %caller.id(), version = %clip(&hello.version, 64), "agent connected");
    let shared = control.slices.of(&caller.labels);
    let alarm = Box::pin(tokio::time::sleep(Duration::ZERO));
    Ok(Live { control, peer, caller, publication, states, leashed, number, shared, alarm })
}

/// Registers a stream, and only then decides whether it may be: a removal that came before is seen by the look-up, and
/// one that comes after finds the stream.
///
/// # Errors
/// When the caller is not who it was any more.
pub(crate) async fn attend(
    control: &Control,
    peer: &Peer,
    before: Caller,
    hello: &v1::SyncHello,
) -> Result<(Caller, u64, Leashed), Refused> {
    let now = control.clock.now();
    let node = before.id();
    let (number, leashed) = control.roster.attend(node, hello, now);
    if let Some(arrival) = Arrival::of(hello, &control.desk.time, &*control.clock) {
        control.roster.came(node, number, arrival);
        reckon(control);
    }
    let leaves = Leaves { control, node, number };
    let domain = control.feed.current().domain().trust_domain.clone();
    match caller(peer, control, &domain, now).await {
        Ok(caller) => {
            std::mem::forget(leaves);
            Ok((caller, number, leashed))
        }
        Err(refused) => {
            drop(leaves);
            if refused.code == Code::UnknownNode {
                control.roster.remove(node);
            }
            Err(refused)
        }
    }
}

/// A stream that is registered, and taken off again when nothing comes of it: it may be dropped at any moment.
struct Leaves<'a> {
    control: &'a Control,
    node: NodeId,
    number: u64,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.control.roster.leave(self.node, self.number);
    }
}

/// Notices that the store is behind what the caller has seen, in the word of a server of this trust domain. Then a new
/// incarnation begins, rather than that an older state is served.
async fn behind(control: &Control, hello: &v1::SyncHello) -> Result<(), Refused> {
    let Some(reached) = hello.reached.map(countersign_identity::Revision::from) else {
        return Ok(());
    };
    let current = control.feed.current().revision;
    let Some(key) = &control.log_key else { return Ok(()) };
    if reached <= current || !key.was_reached(reached, &hello.witness) {
        return Ok(());
    }
    // Another server of the same store may be ahead of this one's snapshot: that is no loss.
    let current = control.store.head().await?.revision;
    if reached <= current {
        return Ok(());
    }
    control.lost.send_if_modified(|lost| {
        let more = lost.is_none_or(|known| known < reached);
        if more {
            *lost = Some(reached);
        }
        more
    });
    let why = format!(
        "the store is at revision {current}, and an agent has seen {reached}: a new incarnation is about to begin"
    );
    Err(Refused::new(Code::Unavailable, why))
}

/// The slice that the caller says it has, if that can still be known.
pub(crate) fn known(
    control: &Control,
    caller: &Caller,
    hello: &v1::SyncHello,
) -> Option<Arc<Slice>> {
    let have = hello.have.as_ref()?;
    let state = control.feed.at((*have).into())?;
    let incarnation = control.feed.current().revision.incarnation;
    if state.revision.incarnation != incarnation {
        return None;
    }
    Some(control.slices.then(&state, &caller.labels))
}

impl Live {
    /// The next thing to tell, as it travels. Nothing is lost when it is dropped.
    ///
    /// # Errors
    /// When the stream ends.
    pub(crate) async fn next(&mut self) -> Result<Bytes, Refused> {
        self.frames().await.inspect_err(|refused| {
            tracing::info!(node = %self.caller.id(), code = %refused.code, "agent's stream ended");
        })
    }

    async fn frames(&mut self) -> Result<Bytes, Refused> {
        loop {
            if self.leashed.is_over() {
                return Err(self.leashed.ended().await);
            }
            let now = self.control.clock.now();
            if self.caller.expires < now {
                return Err(expired(self.caller.expires));
            }
            let state = Arc::clone(&self.states.borrow_and_update());
            self.caller.not_suspended(&state)?;
            let current = self.shared.at(&state, &self.caller.labels);
            let until = match self.publication.next(&current, now) {
                Next::Say(step) => {
                    let quiet = self.quiet();
                    return Ok(self.framed(step, quiet));
                }
                Next::Change(delta) => {
                    let quiet = self.quiet();
                    let make = |changes| self.framed(Told::Changes(changes), quiet);
                    return Ok(delta.frames(quiet, make));
                }
                Next::Wait(until) => until.min(self.caller.expires + Duration::from_micros(1)),
            };
            match self.event(until.since(now)).await {
                Event::Ended(refused) => return Err(refused),
                Event::Moved(true) | Event::Time => {}
                Event::Moved(false) => {
                    return Err(Refused::new(Code::Unavailable, "the server's state has ended"));
                }
            }
        }
    }

    /// How long the caller may be told nothing from now on, in milliseconds.
    fn quiet(&mut self) -> u32 {
        let silence = silence(self.control.roster.streams());
        self.publication.be_silent_for(silence);
        silence.as_millis().try_into().unwrap_or(u32::MAX)
    }

    /// A step as it travels. The signatures of its rules come before it, so that whoever keeps the rules can keep them with
    /// their signatures from the first.
    fn framed(&self, mut step: Told, quiet: u32) -> Bytes {
        let records = self.vouch(&mut step);
        let signed = (!records.is_empty()).then(|| Told::Signed(v1::Signed { records }));
        let mut out = BytesMut::new();
        for step in signed.into_iter().chain([step]) {
            let sync = v1::SyncResponse { step: Some(step), quiet_millis: quiet };
            put(&v1::FromServer { step: Some(Said::Sync(sync)) }, &mut out);
        }
        out.freeze()
    }

    /// Vouches for a message by the log key; gives the signatures of its rules.
    fn vouch(&self, step: &mut Told) -> Vec<v1::SignedRecord> {
        let Some(key) = &self.control.log_key else { return Vec::new() };
        let (revision, witness, records) = match step {
            Told::Snapshot(snapshot) => {
                (snapshot.revision, &mut snapshot.witness, snapshot.records.as_slice())
            }
            Told::Changes(changes) => {
                (changes.revision, &mut changes.witness, changes.put.as_slice())
            }
            Told::Mark(mark) => (mark.revision, &mut mark.witness, &[][..]),
            Told::Signed(_) => return Vec::new(),
        };
        *witness = revision.map(|revision| key.witness(revision.into())).unwrap_or_default();
        key.sign(records)
    }

    async fn event(&mut self, wait: Duration) -> Event {
        let due = Instant::now() + wait;
        // One that rings early costs less than one that is set anew with each message.
        if due < self.alarm.deadline() || self.alarm.is_elapsed() {
            self.alarm.as_mut().reset(due);
        }
        tokio::select! {
            refused = self.leashed.ended() => Event::Ended(refused),
            moved = self.states.changed() => Event::Moved(moved.is_ok()),
            () = &mut self.alarm => Event::Time,
        }
    }

    /// Who is at the other end, where that needs no look at the store: what is done to it here ends its stream at once, and
    /// nobody else does anything to it.
    pub(crate) fn known(&self) -> Option<&Caller> {
        let alone = self.control.replicas.is_none();
        let stands = self.control.clock.now() <= self.caller.expires && !self.leashed.is_over();
        (alone && stands).then_some(&self.caller)
    }

    /// Takes an acknowledgement. The caller is looked up again where another server can have removed it; what is done to it
    /// here ends its stream at once, which is cheaper than to ask for each of ten thousand acknowledgements. A server that
    /// is cut off from the store keeps the streams that it has, and tells on them what it knows.
    ///
    /// # Errors
    /// When the caller is not who it was any more.
    pub(crate) async fn hear(&mut self, ack: v1::SyncAck) -> Result<(), Refused> {
        if self.leashed.is_over() {
            return Err(self.leashed.ended().await);
        }
        let now = self.control.clock.now();
        if self.control.replicas.is_some() {
            let domain = self.control.feed.current().domain().trust_domain.clone();
            match caller(&self.peer, &self.control, &domain, now).await {
                Ok(caller) => {
                    self.shared = self.control.slices.of(&caller.labels);
                    self.caller = caller;
                }
                Err(away) if away.code == Code::Unavailable => {}
                Err(refused) => return Err(refused),
            }
        }
        let told = self.publication.told();
        hear(&self.control, self.caller.id(), ack, told, now).await;
        Ok(())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.control.roster.leave(self.caller.id(), self.number);
    }
}

/// Takes an acknowledgement: points that are new are on record before they count, and those that are gone are taken off.
pub(crate) async fn hear(
    control: &Control,
    node: NodeId,
    ack: v1::SyncAck,
    told: Option<&Slice>,
    now: Timestamp,
) {
    let new = control.roster.unregistered(node, &ack, told);
    let mut registered = false;
    if !new.is_empty() {
        let row = |key: &PointKey| PointRow { key: key.clone(), registered_at: now };
        let ops = new.iter().map(|key| Op::PutPoint(row(key))).collect();
        match control.store.commit(Batch { ops, ..Batch::default() }).await {
            Ok(_committed) => registered = true,
            // It counts all the same, and is put on record with its next acknowledgement.
            Err(error) => tracing::warn!(%node, %error, "enforcement points are not on record yet"),
        }
    }
    let heard = control.roster.acknowledge(node, ack, told, now);
    if registered {
        control.roster.registered(&new);
    }
    control.converging.advanced(&heard.advances, now);
    forget(control, heard.gone).await;
}

pub(crate) fn expired(at: Timestamp) -> Refused {
    Refused::new(Code::Expired, format!("the certificate of this connection ended at {at}"))
}
