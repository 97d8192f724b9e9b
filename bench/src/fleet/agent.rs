//! A simulated agent: one connection, its enforcement points, and an acknowledgement of whatever it is told, at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use countersign_api::standing::{Reader, write};
use countersign_api::v1::call::Asked;
use countersign_api::v1::from_agent::Step as Out;
use countersign_api::v1::from_server::Step as In;
use countersign_api::v1::sync_response::Step;
use countersign_api::{v1, wire};
use countersign_identity::{Clock as _, SystemClock};
use countersign_pki::Bundle;
use countersign_tls::Stream;
use tokio::time::Instant as Moment;
use tokio_util::sync::CancellationToken;

use super::node::Node;

/// The kind of the records that hold whom to trust.
const BUNDLE: &str = "Bundle";
/// Statuses that did not change are told once in so many times as the server may be silent, as real agents do.
const QUIETS: u32 = 8;
/// However few agents there are.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// A message that has begun is whole within so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries to come back.
const PAUSE: Duration = Duration::from_millis(200);

/// What all agents of a fleet have seen.
#[derive(Default)]
pub(super) struct Seen {
    /// Each change with when an agent had applied it.
    applied: Mutex<Vec<(u64, Instant)>>,
    /// How many records came with changes.
    pub(super) records: AtomicU64,
    /// Streams that were told something.
    pub(super) opened: AtomicU64,
    /// Streams that ended before their time.
    pub(super) lost: AtomicU64,
    /// The first reason for that.
    trouble: Mutex<Option<String>>,
}

impl Seen {
    /// How long after `begin` each agent had applied the change of this number or a later one, shortest first.
    pub(super) fn since(&self, begin: Instant, number: u64) -> Vec<Duration> {
        let applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let of_it = applied.iter().filter(|(of, _)| number <= *of);
        let mut took: Vec<_> = of_it.map(|(_, at)| at.saturating_duration_since(begin)).collect();
        took.sort();
        took
    }

    /// Forgets what was seen so far.
    pub(super) fn forget(&self) {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.records.store(0, Ordering::Relaxed);
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, number: u64) {
        let now = Instant::now();
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).push((number, now));
    }

    fn ended(&self, why: &anyhow::Error) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.get_or_insert_with(|| format!("{why:#}"));
    }
}

/// One agent of a fleet.
pub(super) struct Agent {
    pub(super) node: Arc<Node>,
    pub(super) seen: Arc<Seen>,
    /// The workloads whose SVIDs it holds, each with the identity of its enforcement point.
    pub(super) workloads: Arc<[(String, String)]>,
    /// Where in a span for all agents its turn is, from 0 to 1.
    pub(super) turn: f64,
}

/// Why a stream is opened again.
enum Again {
    /// There is a newer SVID to show.
    Renewed,
    Stopped,
}

/// What is true of one connection.
struct Session {
    stream: Stream,
    reader: Reader,
    have: v1::Revision,
    /// For how long the server may say nothing.
    quiet: Duration,
}

impl Session {
    async fn say(&mut self, step: Out) -> Result<()> {
        Ok(write(&mut self.stream, &v1::FromAgent { step: Some(step) }).await?)
    }
}

impl Agent {
    /// Lives until stopped.
    pub(super) async fn run(self, stop: CancellationToken) {
        loop {
            match self.attend(&stop).await {
                Ok(Again::Stopped) => return,
                Ok(Again::Renewed) => {}
                Err(_) if stop.is_cancelled() => return,
                Err(why) => {
                    self.seen.ended(&why);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn attend(&self, stop: &CancellationToken) -> Result<Again> {
        let mut session = Session {
            stream: self.node.connect().await?,
            reader: Reader::new(wire::MESSAGE_SIZE_MAX, PATIENCE),
            have: v1::Revision::default(),
            quiet: Duration::ZERO,
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let clock_micros = SystemClock::new().now().micros();
        let hello = v1::SyncHello { version, clock_micros, ..Default::default() };
        session.say(sync(v1::sync_request::Step::Hello(hello))).await?;
        tokio::select! {
            () = stop.cancelled() => Ok(Again::Stopped),
            again = self.stay(session) => again,
        }
    }

    /// When its statuses are told next, as often as a real agent does whose statuses do not change.
    fn report_at(&self, session: &Session) -> Moment {
        let every = (session.quiet * QUIETS).max(REPORT_EVERY);
        Moment::now() + every.mul_f64(0.5 + self.turn)
    }

    async fn stay(&self, mut session: Session) -> Result<Again> {
        let mut report_at = self.report_at(&session);
        loop {
            let Session { stream, reader, .. } = &mut session;
            let message: Option<v1::FromServer> = tokio::select! {
                message = reader.next(stream) => message?,
                () = tokio::time::sleep_until(report_at) => {
                    session.say(self.report()).await?;
                    report_at = self.report_at(&session);
                    continue;
                }
            };
            match message.context("the server ended the connection")?.step {
                Some(In::Sync(response)) => {
                    if let Some(again) = self.told(&mut session, response).await? {
                        return Ok(again);
                    }
                }
                Some(In::Answer(answer)) => reported(answer)?,
                Some(In::Ended(refusal)) => bail!("refused: {}", refusal.message),
                None => bail!("a message of an unknown kind"),
            }
        }
    }

    fn report(&self) -> Out {
        let process = |(name, _): &(String, String)| v1::ProcessStatus {
            name: name.clone(),
            kind: "library".to_owned(),
            pid: 1,
            ..Default::default()
        };
        let processes = self.workloads.iter().map(process).collect();
        let clock_micros = SystemClock::new().now().micros();
        let report = v1::ReportRequest { processes, clock_micros, ..Default::default() };
        Out::Call(v1::Call { number: 0, asked: Some(Asked::Report(report)) })
    }

    async fn told(
        &self,
        session: &mut Session,
        message: v1::SyncResponse,
    ) -> Result<Option<Again>> {
        session.quiet = Duration::from_millis(message.quiet_millis.into());
        let records = match message.step {
            Some(Step::Snapshot(snapshot)) => {
                self.seen.opened.fetch_add(1, Ordering::Relaxed);
                session.have = snapshot.revision.unwrap_or_default();
                snapshot.records
            }
            Some(Step::Changes(changes)) => {
                session.have = changes.revision.unwrap_or_default();
                self.seen.note(session.have.number);
                self.seen.records.fetch_add(changes.put.len() as u64, Ordering::Relaxed);
                changes.put
            }
            Some(Step::Mark(mark)) => {
                let before = session.have;
                session.have = mark.revision.unwrap_or_default();
                // What was acknowledged already is not acknowledged again.
                if before == session.have {
                    return Ok(None);
                }
                Vec::new()
            }
            // What a restored server is shown; no fleet is restored.
            Some(Step::Signed(_)) => return Ok(None),
            None => bail!("a step of an unknown kind"),
        };
        let bundle = self.enforce(&records)?;
        self.acknowledge(session).await?;
        if let Some(bundle) = bundle.filter(|bundle| self.node.is_under(&bundle.retiring)) {
            self.reissue(bundle.reissue_within).await?;
            self.node.leave(&bundle.retiring);
            return Ok(Some(Again::Renewed));
        }
        Ok(None)
    }

    /// Takes what is new; gives the bundle, if there is another.
    fn enforce(&self, records: &[v1::Record]) -> Result<Option<Bundle>> {
        let Some(record) = records.iter().find(|record| record.kind == BUNDLE) else {
            return Ok(None);
        };
        let bundle = self.node.read(&record.value)?;
        self.node.trusts(bundle.clone());
        Ok(Some(bundle))
    }

    async fn acknowledge(&self, session: &mut Session) -> Result<()> {
        let point = |(name, id): &(String, String)| v1::PointAck {
            point: name.clone(),
            spiffe_id: id.clone(),
            revision: Some(session.have),
            ..Default::default()
        };
        let points = self.workloads.iter().map(point).collect();
        let ack = v1::SyncAck { revision: Some(session.have), points, unaware: 0 };
        session.say(sync(v1::sync_request::Step::Ack(ack))).await
    }

    /// Renews its own SVID and those of its workloads, at its turn.
    async fn reissue(&self, within: Duration) -> Result<()> {
        tokio::time::sleep(within.mul_f64(self.turn)).await;
        self.node.renew().await?;
        let names: Vec<_> = self.workloads.iter().map(|(name, _)| name.clone()).collect();
        self.node.sign(&names).await.map(drop)
    }
}

fn sync(step: v1::sync_request::Step) -> Out {
    Out::Sync(v1::SyncRequest { step: Some(step) })
}

fn reported(answer: v1::Answer) -> Result<()> {
    match answer.outcome {
        Some(v1::answer::Outcome::Report(_)) => Ok(()),
        other => bail!("a report was answered with {other:?}"),
    }
}
