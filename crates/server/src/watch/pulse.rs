//! Whether the store takes writes now, and what it does not promise.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::{Clock, Code};
use countersign_store::{Lease, PRESENCE, PRESENCE_TTL, Store};
use tokio_util::sync::CancellationToken;

use crate::refusal::Refused;

/// How often a shared store is written to for this.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// How long the store may take before it counts as away.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);
/// So many writes in a row are taken by a store that had refused one before it counts as writable. Where a disk is full,
/// there is room for a few small ones behind a large one that was taken back.
const TAKEN_AGAIN: u32 = 4;
/// What is written to a store of our own to find out. Its name is that of no duty.
const PROBE: &str = "store/probe";
/// How many looks lie between two readings of the store's settings.
const CAVEATS_EVERY: u32 = 60;

/// What the last look found.
#[derive(Debug, Default)]
pub(crate) struct Pulse(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    trouble: Option<String>,
    caveats: Vec<String>,
}

impl Pulse {
    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the store took the last write.
    ///
    /// # Errors
    /// `not-ready`, with what it said.
    pub(crate) fn beats(&self) -> Result<(), Refused> {
        match &self.found().trouble {
            None => Ok(()),
            Some(why) => Err(Refused::new(
                Code::NotReady,
                format!("nothing can be recorded, and so nothing is issued: {why}"),
            )),
        }
    }

    /// What an operator should know of the store.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let found = self.found();
        let trouble = found.trouble.iter().map(|why| format!("the store takes no writes: {why}"));
        trouble.chain(found.caveats.iter().cloned()).collect()
    }

    /// Reads what the store does not promise, and says what is new of it.
    pub(crate) async fn look_at_promises(&self, store: &dyn Store) {
        // While it does not answer, what it said before stands.
        let Ok(caveats) = store.caveats().await else { return };
        let mut found = self.found();
        for caveat in caveats.iter().filter(|caveat| !found.caveats.contains(caveat)) {
            tracing::warn!("{caveat}");
        }
        found.caveats = caveats;
    }

    /// Writes to a shared store now and then, which is the one way to know that it can be written to. What is written
    /// tells the other replicas that this one is there.
    pub(crate) async fn run(
        self: Arc<Self>,
        store: Arc<dyn Store>,
        replica: String,
        clock: Arc<dyn Clock>,
        stop: CancellationToken,
    ) {
        let name = format!("{PRESENCE}{replica}");
        for round in 1_u32.. {
            let lease = Lease { holder: replica.clone(), ends: clock.now() + PRESENCE_TTL };
            let writing = store.lease(&name, lease, None);
            let trouble = match tokio::time::timeout(ANSWER_TIMEOUT, writing).await {
                Ok(Ok(true)) => None,
                Ok(Ok(false)) => Some(format!("another server calls itself `{replica}`")),
                Ok(Err(error)) => Some(error.to_string()),
                Err(_late) => Some(format!("no answer in {ANSWER_TIMEOUT:?}")),
            };
            self.note(trouble);
            if round.is_multiple_of(CAVEATS_EVERY) {
                self.look_at_promises(&*store).await;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(clock.beat(LOOK_PAUSE)) => {}
            }
        }
    }

    /// Listens to what a store of our own says of its writes, and once it has refused one tries small ones until it takes them
    /// again. While all is well nothing is written for this.
    pub(crate) async fn follow(
        self: Arc<Self>,
        store: Arc<dyn Store>,
        replica: String,
        clock: Arc<dyn Clock>,
        stop: CancellationToken,
    ) {
        let Some(mut failures) = store.failures() else { return stop.cancelled().await };
        let mut seen = 0;
        let mut missing = 0_u32;
        loop {
            let failed = failures.borrow_and_update().clone();
            if seen != failed.count {
                seen = failed.count;
                missing = TAKEN_AGAIN;
                self.note(Some(failed.last));
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = failures.changed() => if changed.is_err() {
                    return stop.cancelled().await;
                },
                () = tokio::time::sleep(clock.beat(LOOK_PAUSE)), if 0 < missing => {
                    let lease = Lease { holder: replica.clone(), ends: clock.now() + PRESENCE_TTL };
                    let writing = store.lease(PROBE, lease, None);
                    let taken = tokio::time::timeout(ANSWER_TIMEOUT, writing).await;
                    // One that failed was told of as well, which begins the count anew.
                    missing -= u32::from(matches!(taken, Ok(Ok(_))));
                    if missing == 0 && !failures.has_changed().unwrap_or(true) {
                        self.note(None);
                    }
                }
            }
        }
    }

    fn note(&self, trouble: Option<String>) {
        let mut found = self.found();
        match (&found.trouble, &trouble) {
            (None, Some(why)) => tracing::error!(why, "the store takes no writes"),
            (Some(_), None) => tracing::info!("the store takes writes again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        found.trouble = trouble;
    }
}
