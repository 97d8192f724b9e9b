//! Duties that one of several servers does at a time: who has one, and who takes it over when.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_identity::Timestamp;

use crate::{Lease, Result, Store};

/// What only one server does at a time.
#[derive(Clone, Copy, Debug)]
pub struct Duty {
    /// The name of its lease.
    pub name: &'static str,
    /// How long it stays with a server that does not renew it.
    pub ttl: Duration,
}

/// The duties, as one server sees them.
///
/// The clocks of servers may be apart by any amount. So nobody asks whether a lease has ended: who wants a duty takes it
/// over when it has itself found the same lease for the ttl, looking again and again. A server that was restarted has its
/// duties at once, by its name.
///
/// Two servers have a duty at the same time only when the first one stands still in the middle of its work until the ttl is
/// over, of which half is left to it when it is told that it has the duty. That half is also what a clock may do that is
/// set: back, under who has the duty (its memory of having renewed it counts for half of the ttl, and not at all before the
/// moment of renewing), or forth, under who wants it (of the time between two looks no more than half of the ttl counts). So
/// what is done under a duty is done in commits that would fail, or do no harm, when another has done it meanwhile.
pub struct Duties {
    store: Arc<dyn Store>,
    holder: String,
    known: Mutex<BTreeMap<&'static str, Known>>,
}

#[derive(Clone, Debug)]
enum Known {
    /// This server has it, and began to take or to renew it at this moment.
    Ours(Timestamp),
    /// Another has it.
    Theirs(Watched),
}

/// A lease of another, found again and again.
#[derive(Clone, Debug)]
struct Watched {
    lease: Lease,
    /// When it was found last.
    seen: Timestamp,
    /// For how long, as far as that counts.
    unrenewed: Duration,
}

impl Duties {
    /// Those of the server of this name.
    pub fn new(store: Arc<dyn Store>, holder: String) -> Self {
        Self { store, holder, known: Mutex::default() }
    }

    /// Whether this server has the duty, for half of its ttl at least. It is renewed when it was not for so long, and taken
    /// when nobody has it, or whoever has it does not renew it. `now` is this server's own time, whatever that is.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn is_ours(&self, duty: Duty, now: Timestamp) -> Result<bool> {
        if self.is_known_ours(duty, now) {
            return Ok(true);
        }
        let theirs = self.theirs(duty, now).await?;
        if theirs.as_ref().is_some_and(|theirs| theirs.unrenewed < duty.ttl) {
            return Ok(false);
        }
        let over = theirs.map(|theirs| theirs.lease);
        let from = over.as_ref().map(|lease| lease.holder.clone());
        let lease = Lease { holder: self.holder.clone(), ends: now + duty.ttl };
        let taken = self.store.lease(duty.name, lease, over).await?;
        if taken {
            self.known().insert(duty.name, Known::Ours(now));
        } else {
            self.known().remove(duty.name);
        }
        if let Some(from) = from.filter(|_from| taken) {
            tracing::info!(duty = duty.name, from, "took over a duty of another server");
        }
        Ok(taken)
    }

    /// Looks whether another has the duty. Who does so now and then knows, once it wants the duty, for how long it was not
    /// renewed.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn watch(&self, duty: Duty, now: Timestamp) -> Result<()> {
        self.theirs(duty, now).await.map(drop)
    }

    /// The lease of another, if another has the duty.
    async fn theirs(&self, duty: Duty, now: Timestamp) -> Result<Option<Watched>> {
        let found = self.store.lease_of(duty.name).await?;
        let theirs = found.filter(|found| found.holder != self.holder);
        Ok(theirs.map(|theirs| self.note(duty, theirs, now)))
    }

    fn is_known_ours(&self, duty: Duty, now: Timestamp) -> bool {
        match self.known().get(duty.name) {
            Some(Known::Ours(since)) => *since <= now && now < *since + duty.ttl / 2,
            Some(Known::Theirs(_)) | None => false,
        }
    }

    /// Notes that another's lease was found now, and says for how long it was.
    fn note(&self, duty: Duty, found: Lease, now: Timestamp) -> Watched {
        let mut known = self.known();
        let unrenewed = match known.get(duty.name) {
            Some(Known::Theirs(before)) if before.lease == found => {
                before.unrenewed + now.since(before.seen).min(duty.ttl / 2)
            }
            _ => Duration::ZERO,
        };
        let watched = Watched { lease: found, seen: now, unrenewed };
        known.insert(duty.name, Known::Theirs(watched.clone()));
        watched
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<&'static str, Known>> {
        // The map is whole after every statement, so a panic elsewhere does not spoil it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use countersign_identity::{Entropy, SeededEntropy};

    use super::*;
    use crate::MemoryStore;

    const DUTY: Duty = Duty { name: "sweep", ttl: Duration::from_secs(10) };
    const TICK: Duration = Duration::from_millis(100);
    const TTL_TICKS: u64 = 100;
    /// How often a server looks, at most.
    const POLL_TICKS_MAX: u64 = 20;
    /// Between two falls; a server is gone for half of it.
    const FALL_TICKS: u64 = 4 * TTL_TICKS;
    const HOUR: u64 = 3_600_000_000;

    /// Whether clocks are set while the servers run: one of them in twice the ttl.
    #[derive(Clone, Copy, PartialEq)]
    enum Clocks {
        Apart,
        Set,
    }

    struct Server {
        duties: Duties,
        /// How many microseconds its clock is ahead.
        ahead: i64,
        poll: u64,
        back: u64,
    }

    impl Server {
        fn now(&self, tick: u64) -> Timestamp {
            let true_time =
                Timestamp::from_secs(1_795_262_400) + TICK * u32::try_from(tick).unwrap();
            Timestamp::from_micros(true_time.micros() + self.ahead)
        }

        fn has_in_mind(&self, tick: u64) -> bool {
            self.back <= tick && self.duties.is_known_ours(DUTY, self.now(tick))
        }
    }

    fn below(entropy: &SeededEntropy, limit: u64) -> u64 {
        let mut drawn = [0; 8];
        entropy.fill(&mut drawn).unwrap();
        u64::from_le_bytes(drawn) % limit
    }

    /// So many microseconds either way.
    fn within(entropy: &SeededEntropy, limit: u64) -> i64 {
        below(entropy, 2 * limit).cast_signed() - limit.cast_signed()
    }

    /// Ten minutes of three servers, one of which falls now and then, or stands still. Tells how often another took over,
    /// and for how many ticks nobody had the duty at most.
    async fn ten_minutes(seed: u64, clocks: Clocks) -> (usize, u64) {
        let entropy = Arc::new(SeededEntropy::new(seed));
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::clone(&entropy) as _));
        let duties = |server: usize| Duties::new(Arc::clone(&store), format!("s{server}"));
        let mut servers: Vec<_> = (0..3)
            .map(|server| Server {
                duties: duties(server),
                ahead: within(&entropy, HOUR),
                poll: 1 + below(&entropy, POLL_TICKS_MAX),
                back: 0,
            })
            .collect();
        let any = || usize::try_from(below(&entropy, 3)).unwrap();
        let (mut holder, mut taken, mut since, mut longest) = (None, 0, 0, 0);
        for tick in 0..6000 {
            if tick % FALL_TICKS == FALL_TICKS / 2 {
                let server = any();
                servers[server].back = tick + FALL_TICKS / 2;
                // Else it only stands still, and goes on with what it has in mind.
                if below(&entropy, 2) == 0 {
                    servers[server].duties = duties(server);
                }
            }
            let set = &mut servers[any()];
            if clocks == Clocks::Set && tick % (2 * TTL_TICKS) == TTL_TICKS && set.back <= tick {
                let by = if below(&entropy, 2) == 0 { HOUR } else { 10_000_000 };
                set.ahead += within(&entropy, by);
            }
            for looking in 0..3 {
                if servers[looking].back <= tick && tick % servers[looking].poll == 0 {
                    let now = servers[looking].now(tick);
                    servers[looking].duties.is_ours(DUTY, now).await.unwrap();
                }
                let have: Vec<_> = (0..3).filter(|one| servers[*one].has_in_mind(tick)).collect();
                assert!(have.len() <= 1, "seed {seed}, tick {tick}: {have:?}");
                if let Some(one) = have.first() {
                    longest = longest.max(tick - since);
                    since = tick;
                    taken += usize::from(holder.replace(*one).is_some_and(|before| before != *one));
                }
            }
        }
        (taken, longest)
    }

    async fn is_with_one(clocks: Clocks, ticks_max: u64) {
        let (mut taken, mut longest) = (0, 0);
        for seed in 0..50 {
            let (also, without) = ten_minutes(seed, clocks).await;
            (taken, longest) = (taken + also, longest.max(without));
        }
        println!("taken over {taken} times, within {longest} ticks");
        assert!(100 < taken, "{taken}");
        assert!(longest <= ticks_max, "{longest} ticks");
    }

    #[tokio::test]
    async fn however_far_clocks_are_apart_a_duty_is_with_one_and_taken_over_in_time() {
        // A renewal is seen a poll later, and that there was no other, a poll after the ttl.
        is_with_one(Clocks::Apart, TTL_TICKS + 2 * POLL_TICKS_MAX).await;
    }

    #[tokio::test]
    async fn clocks_that_are_set_give_a_duty_to_no_second_server() {
        // A clock that is set back takes a look's time away.
        is_with_one(Clocks::Set, TTL_TICKS + 3 * POLL_TICKS_MAX).await;
    }
}
