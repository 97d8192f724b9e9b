//! The stream of changes as it is heard: hello, then what the server says, until it is silent for too long.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use countersign_api::standing;
use countersign_api::v1;
use countersign_identity::{Clock, Code, Revision, Timestamp};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::server_link::alert::Alerts;
use crate::server_link::wire;
use crate::server_link::{LinkFault, Quiet};

/// A server that was silent for so many times as long as it said is lost, whatever the connection says.
const SILENCES: u32 = 2;

/// Moves messages between the wire and the session's queues.
pub(super) struct Pump {
    pub(super) calls: standing::Calls,
    pub(super) ears: Ears,
    pub(super) alerts: Alerts,
    pub(super) clock: Arc<dyn Clock>,
    /// What the clock had run when this agent began.
    pub(super) began: Duration,
    /// Whether no other agent was this node before.
    pub(super) first: bool,
    pub(super) witnessed: Arc<Witnessed>,
    pub(super) quiet: Quiet,
    /// When the server has been silent for longer than it said it would be.
    pub(super) quiet_until: Timestamp,
}

impl Pump {
    /// Says hello; gives the first thing that the server says.
    pub(super) async fn begin(&mut self, have: Option<Revision>) -> Said {
        let (reached, witness) = self.witnessed.get().unzip();
        let ran = self.clock.ran().saturating_sub(self.began);
        let hello = v1::SyncHello {
            have: have.map(Into::into),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            clock_micros: self.clock.now().micros(),
            reached: reached.map(Into::into),
            witness: witness.unwrap_or_default(),
            // Not by the time of day: an agent whose clock was set forward since would seem to have run since before it
            // did, and what another gave out then would not count.
            ran_micros: u64::try_from(ran.as_micros()).unwrap_or(u64::MAX).max(1),
            first: self.first,
        };
        // Why it could not be sent is what is heard next.
        self.calls.sync(v1::sync_request::Step::Hello(hello)).await.ok();
        let first = self.ears.told.recv().await;
        self.read(first)
    }

    pub(super) async fn run(
        mut self,
        first: crate::core::SyncMessage,
        mut acks: mpsc::Receiver<v1::SyncAck>,
        messages: mpsc::Sender<Said>,
    ) {
        if messages.send(Ok(first)).await.is_err() {
            return;
        }
        loop {
            tokio::select! {
                () = self.clock.sleep_until(self.quiet_until) => {
                    if self.was_set_back() {
                        continue;
                    }
                    return silent(&messages).await;
                }
                ack = acks.recv() => {
                    let Some(ack) = ack else { return };
                    let say = self.calls.sync(v1::sync_request::Step::Ack(ack));
                    tokio::select! {
                        // Why it could not be sent is what is heard next.
                        _said = say => {}
                        // Also where the clock was set back: what was not said here is said on the next session.
                        () = self.clock.sleep_until(self.quiet_until) => return silent(&messages).await,
                    }
                }
                told = self.ears.told.recv() => {
                    let message = self.read(told);
                    let ends = message.is_err();
                    if messages.send(message).await.is_err() || ends {
                        return;
                    }
                }
            }
        }
    }

    fn read(&mut self, told: Option<v1::SyncResponse>) -> Said {
        let Some(response) = told else {
            return Err(self.alerts.explain(wire::failed(self.calls.why_ended())));
        };
        self.compare_clocks(&response);
        self.quiet.told(response.quiet_millis);
        self.listen_anew();
        if let Some(witness) = wire::witness(&response) {
            self.witnessed.see(witness);
        }
        wire::sync_message(response)
    }

    /// From now on the server may say nothing for as long as it has promised to say something.
    fn listen_anew(&mut self) {
        let quiet = self.quiet.get();
        self.quiet_until =
            quiet.map_or(Timestamp::LAST, |quiet| self.clock.now() + SILENCES * quiet);
    }

    /// Whether a sleep ended because the clock was set back, before its moment: it says nothing of the server, to which it is
    /// listened anew.
    fn was_set_back(&mut self) -> bool {
        let set_back = self.clock.now() < self.quiet_until;
        if set_back {
            self.listen_anew();
        }
        set_back
    }

    fn compare_clocks(&self, response: &v1::SyncResponse) {
        let Some(theirs) = wire::server_clock(response) else { return };
        let ours = self.clock.now();
        let apart = ours.since(theirs).max(theirs.since(ours));
        if countersign_identity::SKEW_ALLOWED / 12 < apart {
            let apart = countersign_identity::DurationText(apart);
            tracing::warn!(%apart, "this machine's clock and the server's differ");
        }
    }
}

/// What is heard, and what moves the bytes meanwhile.
pub(super) struct Ears {
    pub(super) told: mpsc::Receiver<v1::SyncResponse>,
    pub(super) _moving: AbortOnDropHandle<()>,
}

/// The highest revision that a server has vouched for, so that one whose store lost its tail can be told.
#[derive(Default)]
pub(super) struct Witnessed(Mutex<Option<(Revision, Bytes)>>);

impl Witnessed {
    fn get(&self) -> Option<(Revision, Bytes)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn see(&self, more: (Revision, Bytes)) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|(reached, _)| *reached < more.0) {
            *known = Some(more);
        }
    }
}

pub(super) type Said = Result<crate::core::SyncMessage, LinkFault>;

/// Ends the session of a server that has broken its promise.
async fn silent(messages: &mpsc::Sender<Said>) {
    let why = "the server says nothing any more, and had promised to";
    // Nobody hears it when the session has ended meanwhile.
    messages.send(Err(LinkFault::new(Code::TimedOut, why))).await.ok();
}
