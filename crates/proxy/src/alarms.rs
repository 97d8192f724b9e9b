//! One sleeper for all connections: each asks to be woken at a moment, one task waits for the earliest.
//!
//! A clock that follows suspended machines and stepped clocks looks at the time twice a second; one of those per
//! process is free, one per connection is not.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use countersign_identity::{Clock, Timestamp};
use countersign_tls::{Shards, Soonest};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// The lists of who waits for when.
pub(crate) struct Alarms {
    clock: Arc<dyn Clock>,
    waiting: Shards<Waiting>, // By number
    last: AtomicU64,
    soonest: Soonest,
}

type Waiting = BTreeMap<(Timestamp, u64), oneshot::Sender<()>>;

/// Ready once the moment has come. Dropping it takes it off the list.
pub(crate) struct Alarm {
    alarms: Arc<Alarms>,
    key: (Timestamp, u64),
    rings: oneshot::Receiver<()>,
}

impl Alarms {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        let (waiting, last) = (Shards::default(), AtomicU64::new(0));
        Arc::new(Self { clock, waiting, last, soonest: Soonest::new() })
    }

    /// Rings at `when`, or at once if that has passed.
    pub(crate) fn at(self: &Arc<Self>, when: Timestamp) -> Alarm {
        let (ring, rings) = oneshot::channel();
        let key = (when, self.last.fetch_add(1, Ordering::Relaxed));
        self.waiting.of_number(key.1).insert(key, ring);
        self.soonest.tell(when);
        Alarm { alarms: self.clone(), key, rings }
    }

    /// Rings every alarm in time, until stopped.
    pub(crate) async fn run(&self, stop: &CancellationToken) {
        loop {
            let next = self.ring_due();
            let due = async {
                match next {
                    Some(next) => self.clock.sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.soonest.sooner() => {}
                () = due => {}
            }
        }
    }

    /// Rings what is due, and says when to look again.
    fn ring_due(&self) -> Option<Timestamp> {
        let (now, mut next) = (self.clock.now(), None);
        self.soonest.forget();
        for mut waiting in self.waiting.each() {
            while let Some(first) = waiting.first_entry() {
                let (when, _) = *first.key();
                if now < when {
                    next = Some(next.map_or(when, |next| when.min(next)));
                    break;
                }
                // Whoever no longer waits needs no alarm.
                let _ = first.remove().send(());
            }
        }
        self.soonest.awaits(next);
        next
    }
}

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // A sender that is gone without a word counts as a ring: waking early is harmless, never waking is not.
        Pin::new(&mut self.rings).poll(cx).map(|_| ())
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.alarms.waiting.of_number(self.key.1).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use countersign_identity::SystemClock;

    use super::*;

    #[tokio::test]
    async fn alarms_ring_in_order_and_dropped_ones_leave_nothing_behind() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let alarms = Alarms::new(clock.clone());
        let stop = CancellationToken::new();
        let runner = tokio::spawn({
            let (alarms, stop) = (alarms.clone(), stop.clone());
            async move { alarms.run(&stop).await }
        });
        let start = clock.now();
        let late = alarms.at(start + Duration::from_millis(40));
        let soon = alarms.at(start + Duration::from_millis(10));
        drop(alarms.at(start + Duration::from_secs(3600)));
        soon.await;
        assert!(start + Duration::from_millis(10) <= clock.now());
        late.await;
        assert!(start + Duration::from_millis(40) <= clock.now());
        alarms.at(start).await;
        assert!(alarms.waiting.each().all(|waiting| waiting.is_empty()));
        stop.cancel();
        runner.await.unwrap();
    }
}
