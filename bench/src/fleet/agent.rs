//! A simulated agent: one stream, its enforcement points, and an acknowledgement of whatever it is told, at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use countersign_api::v1;
use countersign_api::v1::sync_response::Step;
use countersign_identity::{Clock as _, SystemClock};
use countersign_pki::Bundle;
use h2::client::SendRequest;
use tokio_util::sync::CancellationToken;

use super::node::Node;
use super::wire::{self, Call};

/// The kind of the records that hold whom to trust.
const BUNDLE: &str = "Bundle";
/// Statuses that did not change are told once in so many times as the server may be silent, as real agents do.
const QUIETS: u64 = 8;
/// However few agents there are.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Between two tries to come back.
const PAUSE: Duration = Duration::from_millis(200);

/// What all agents of a fleet have seen.
#[derive(Default)]
pub(super) struct Seen {
    /// Each change with when an agent had applied it.
    applied: Mutex<Vec<(u64, Instant)>>,
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

/// What is true of one stream.
struct Session<'a> {
    call: Call,
    have: v1::Revision,
    /// For how many milliseconds the server may say nothing.
    quiet: &'a AtomicU64,
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
        let (sender, connection) = self.node.connect().await?;
        let stay = async {
            let mut call = Call::begin(&sender, "Sync").await?;
            let version = env!("CARGO_PKG_VERSION").to_owned();
            let clock_micros = SystemClock::new().now().micros();
            let hello = v1::SyncHello { version, clock_micros, ..Default::default() };
            say(&mut call, v1::sync_request::Step::Hello(hello))?;
            let quiet = AtomicU64::new(0);
            let session = Session { call, have: v1::Revision::default(), quiet: &quiet };
            tokio::select! {
                () = stop.cancelled() => Ok(Again::Stopped),
                again = self.stay(session) => again,
                lost = self.report(&sender, &quiet) => Err(lost),
            }
        };
        wire::driving(connection, stay).await
    }

    /// Tells its statuses, as often as a real agent does whose statuses do not change; ends when they are not taken.
    async fn report(&self, sender: &SendRequest<Bytes>, quiet: &AtomicU64) -> anyhow::Error {
        loop {
            let every = Duration::from_millis(quiet.load(Ordering::Relaxed) * QUIETS);
            tokio::time::sleep(every.max(REPORT_EVERY).mul_f64(0.5 + self.turn)).await;
            let process = |(name, _): &(String, String)| v1::ProcessStatus {
                name: name.clone(),
                kind: "library".to_owned(),
                pid: 1,
                ..Default::default()
            };
            let processes = self.workloads.iter().map(process).collect();
            let clock_micros = SystemClock::new().now().micros();
            let report = v1::ReportRequest { processes, clock_micros, ..Default::default() };
            let told = wire::ask::<v1::ReportResponse>(sender, "Report", &report).await;
            if let Err(lost) = told {
                return lost;
            }
        }
    }

    async fn stay(&self, mut session: Session<'_>) -> Result<Again> {
        loop {
            let Some(message) = session.call.hear::<v1::SyncResponse>().await? else {
                bail!("the server ended the stream");
            };
            session.quiet.store(message.quiet_millis.into(), Ordering::Relaxed);
            let records = match message.step {
                Some(Step::Snapshot(snapshot)) => {
                    self.seen.opened.fetch_add(1, Ordering::Relaxed);
                    session.have = snapshot.revision.unwrap_or_default();
                    snapshot.records
                }
                Some(Step::Changes(changes)) => {
                    session.have = changes.revision.unwrap_or_default();
                    self.seen.note(session.have.number);
                    changes.put
                }
                Some(Step::Mark(mark)) => {
                    let before = session.have;
                    session.have = mark.revision.unwrap_or_default();
                    // What was acknowledged already is not acknowledged again.
                    if before == session.have {
                        continue;
                    }
                    Vec::new()
                }
                // What a restored server is shown; no fleet is restored.
                Some(Step::Signed(_)) => continue,
                None => bail!("a step of an unknown kind"),
            };
            let bundle = self.enforce(&records)?;
            self.acknowledge(&mut session)?;
            if let Some(bundle) = bundle.filter(|bundle| self.node.is_under(&bundle.retiring)) {
                self.reissue(bundle.reissue_within).await?;
                self.node.leave(&bundle.retiring);
                return Ok(Again::Renewed);
            }
        }
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

    fn acknowledge(&self, session: &mut Session<'_>) -> Result<()> {
        let point = |(name, id): &(String, String)| v1::PointAck {
            point: name.clone(),
            spiffe_id: id.clone(),
            revision: Some(session.have),
            ..Default::default()
        };
        let points = self.workloads.iter().map(point).collect();
        let ack = v1::SyncAck { revision: Some(session.have), points, unaware: 0 };
        say(&mut session.call, v1::sync_request::Step::Ack(ack))
    }

    /// Renews its own SVID and those of its workloads, at its turn.
    async fn reissue(&self, within: Duration) -> Result<()> {
        tokio::time::sleep(within.mul_f64(self.turn)).await;
        self.node.renew().await?;
        let names: Vec<_> = self.workloads.iter().map(|(name, _)| name.clone()).collect();
        self.node.sign(&names).await.map(drop)
    }
}

fn say(call: &mut Call, step: v1::sync_request::Step) -> Result<()> {
    call.say(&v1::SyncRequest { step: Some(step) })
}
