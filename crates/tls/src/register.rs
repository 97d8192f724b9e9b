//! The live connections, and under what each of them was let in.

mod entry;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use arc_swap::ArcSwapOption;
use countersign_identity::{Code, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use self::entry::{Arrival, Entry, Standing};
use self::entry::{Holder, Later, Retirement};
use crate::Direction;
use crate::call::Calls;
use crate::shards::Shards;
use crate::shares::{Share, Shares};
use crate::soonest::Soonest;

/// The live connections of a process.
#[derive(Debug)]
pub(crate) struct Register {
    connections_max: usize,
    /// How many of them those who dial us leave.
    dialled_min: usize,
    shards: Shards<Live>, // By number
    shares: Shares<Holder>,
    count: AtomicUsize, // INVARIANT: as many as the shards hold, or more while one enters or leaves
    next: AtomicU64,
    /// Until when the one who sweeps sleeps: the last moment of whoever ends first.
    soonest: Soonest,
    draining: watch::Sender<usize>,
    revoked: AtomicU64,
}

/// Why there is no place for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// There are as many as there may be.
    All,
    /// Its peer has as many as one may have.
    OfPeer,
}

/// What a re-proof is to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proved {
    /// It may go on for longer, at one of its ends at least.
    More,
    /// The peer shows what lasts exactly as long as what it has proven before. Whoever asks again may not have heard the answer.
    Again,
    /// No more than there was, or the connection may not go on anyway.
    Nothing,
}

/// Some of them. Whole at every step, should there be a panic under its lock.
#[derive(Debug, Default)]
struct Live {
    entries: HashMap<u64, Arc<Entry>>,
    by_end: BTreeSet<(Timestamp, u64)>, // INVARIANT: only numbers that `entries` holds
    /// Those that retire and are not ended yet.
    draining: HashSet<u64>, // INVARIANT: likewise
}

impl Register {
    pub(crate) fn new(connections_max: usize, dialled_min: usize) -> Self {
        Self {
            connections_max,
            dialled_min,
            shards: Shards::default(),
            shares: Shares::new(|| ()),
            count: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            soonest: Soonest::new(),
            draining: watch::Sender::new(0),
            revoked: AtomicU64::new(0),
        }
    }

    /// Enters a connection, unless there are too many already.
    pub(crate) fn enter(&self, arrival: Arrival) -> Result<Arc<Entry>, Full> {
        let share = self.share(&arrival)?;
        let most = match arrival.rule.direction {
            Direction::Inbound => self.connections_max.saturating_sub(self.dialled_min),
            Direction::Outbound => self.connections_max,
        };
        let room = |count| (count < most).then_some(count + 1);
        let entered = self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, room);
        entered.map_err(|_count| Full::All)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            number,
            rule: arrival.rule,
            agreed: arrival.agreed,
            standing: arrival.standing,
            shown: arrival.shown,
            opened: arrival.opened,
            address: arrival.address,
            is_proof: arrival.is_proof,
            name: OnceLock::new(),
            later: ArcSwapOption::empty(),
            expires: AtomicI64::new(arrival.expires.micros()),
            unprovable: AtomicBool::new(false),
            proof_pause: AtomicI64::new(arrival.opened.micros()),
            lasting: OnceLock::new(),
            calls: Calls::default(),
            kept: OnceLock::new(),
            session: Mutex::new(arrival.session),
            share: Mutex::new(share),
            cut: OnceLock::new(),
            ended: CancellationToken::new(),
            retirement: OnceLock::new(),
            retiring: CancellationToken::new(),
        });
        let (expires, entered) = (entry.expires(), Arc::clone(&entry));
        let mut live = self.shards.of_number(number);
        live.entries.insert(number, entered);
        live.by_end.insert((expires, number));
        drop(live);
        self.soonest.tell(expires);
        Ok(entry)
    }

    /// A place among those of its peer, where these are counted.
    fn share(&self, arrival: &Arrival) -> Result<Option<Share<Holder>>, Full> {
        let (Some(most), Some(standing)) = (arrival.rule.each_max, &arrival.standing) else {
            return Ok(None);
        };
        let holder = Holder { id: standing.peer.id.clone(), is_proof: arrival.is_proof };
        self.shares.take(&holder, most).map(Some).ok_or(Full::OfPeer)
    }

    /// Takes a connection out whose owner has let go of its session, which closes it for good.
    pub(crate) fn evict(&self, entry: &Entry) {
        entry.session().take();
        entry.give_up_share();
        let mut live = self.shards.of_number(entry.number);
        if live.entries.remove(&entry.number).is_some() {
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        live.by_end.remove(&(entry.expires(), entry.number));
        if let Some(Retirement { deadline, .. }) = entry.retirement.get() {
            live.by_end.remove(&(*deadline, entry.number));
            self.drained(&mut live, entry);
        }
    }

    /// Ends a connection at once. True the first time.
    pub(crate) fn end(&self, entry: &Entry, code: Code) -> bool {
        if !entry.end(code) {
            return false;
        }
        if entry.retirement.get().is_some() {
            self.drained(&mut self.shards.of_number(entry.number), entry);
        } else if code == Code::Revoked {
            self.revoked.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// Lets nothing new begin on a connection, and cuts it at the deadline. True the first time.
    pub(crate) fn retire(&self, entry: &Entry, code: Code, deadline: Timestamp) -> bool {
        let mut live = self.shards.of_number(entry.number);
        let over = !live.entries.contains_key(&entry.number) || entry.ended().is_some();
        if over || entry.retirement.set(Retirement { code, deadline }).is_err() {
            return false;
        }
        live.by_end.insert((deadline, entry.number));
        live.draining.insert(entry.number);
        self.draining.send_modify(|count| *count += 1);
        if entry.ended().is_some() {
            // Ended between the two: whoever ended it may have looked before we were here.
            self.drained(&mut live, entry);
        }
        drop(live);
        if code == Code::Revoked {
            self.revoked.fetch_add(1, Ordering::Relaxed);
        }
        entry.retiring.cancel();
        self.soonest.tell(deadline);
        true
    }

    /// It drains no longer: it is closed.
    fn drained(&self, live: &mut Live, entry: &Entry) {
        if live.draining.remove(&entry.number) {
            self.draining.send_modify(|count| *count -= 1);
        }
    }

    /// How many retire and are not closed yet.
    pub(crate) fn draining(&self) -> watch::Receiver<usize> {
        self.draining.subscribe()
    }

    /// How many connections revocations have ended or retired so far.
    pub(crate) fn revoked(&self) -> u64 {
        self.revoked.load(Ordering::Relaxed)
    }

    /// Lets what `proof` showed count for `held`, each of the two credentials where it lasts longer than before.
    pub(crate) fn prove(&self, held: &Entry, proof: &Entry) -> Proved {
        let mut live = self.shards.of_number(held.number);
        if !live.entries.contains_key(&held.number) || !held.may_be_proven() {
            return Proved::Nothing;
        }
        let before = held.later.load_full();
        let mut later = before.map_or_else(
            || Later { at: held.opened, peer: None, shown: None },
            |before| Later::clone(&before),
        );
        let (expires, longer) = (held.expires(), proof.expires());
        let mut grew = false;
        if expires < longer {
            later.peer = proof.credentials(|peer, _| peer.cloned());
            grew = true;
        }
        if held.shown_until() < proof.shown_until() {
            later.shown = proof.credentials(|_, own| own.cloned());
            grew = true;
        }
        if !grew {
            // By its end, not by the certificate: either side may have another since, of the same second or of a slower clock.
            let known = held.later.load().is_some() && expires == longer;
            return if known { Proved::Again } else { Proved::Nothing };
        }
        later.at = proof.opened;
        held.later.store(Some(Arc::new(later)));
        if expires < longer {
            live.by_end.remove(&(expires, held.number));
            live.by_end.insert((longer, held.number));
            held.expires.store(longer.micros(), Ordering::Release);
            drop(live);
            // One that had expired and was kept ends then, after all.
            self.soonest.tell(longer);
        }
        Proved::More
    }

    /// All that are live: who was entered before this is asked is among them.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.entries_where(|_| true)
    }

    /// Those of them that are asked for, by what never changes.
    pub(crate) fn entries_where(&self, asked: impl Fn(&Entry) -> bool) -> Vec<Arc<Entry>> {
        let mut found = Vec::new();
        for live in self.shards.each() {
            found.extend(live.entries.values().filter(|entry| asked(entry)).cloned());
        }
        found
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Ends those whose last moment has passed, and tells the last moment of the next.
    pub(crate) fn sweep(&self, now: Timestamp) -> Option<Timestamp> {
        let mut over = Vec::new();
        let mut next = None;
        self.soonest.forget();
        for mut live in self.shards.each() {
            while let Some(&(expires, number)) = live.by_end.first() {
                if now <= expires {
                    next = Some(next.map_or(expires, |next| expires.min(next)));
                    break;
                }
                live.by_end.pop_first();
                over.extend(live.entries.get(&number).cloned().map(|entry| (expires, entry)));
            }
        }
        self.soonest.awaits(next);
        over.sort_by_key(|(expires, entry)| (*expires, entry.number));
        for (_, entry) in over {
            let retired = entry.retirement.get().is_some_and(|it| it.deadline < now);
            if !retired && entry.outlives() {
                continue;
            }
            let code = match (entry.retirement.get(), &entry.standing) {
                (Some(retirement), _) if retirement.deadline < now => retirement.code,
                (_, Some(_)) => Code::Expired,
                (_, None) => Code::Unauthenticated,
            };
            self.end(&entry, code);
        }
        next
    }

    /// Until when the one who sweeps sleeps.
    pub(crate) const fn soonest(&self) -> &Soonest {
        &self.soonest
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};
    use std::time::Duration;

    use countersign_identity::{TlsGroup, TlsSuite, TlsVersion};

    use super::*;
    use crate::config::Agreed;
    use crate::rule::{Inbound, Rule};

    const START: Timestamp = Timestamp::from_secs(1000);
    const SECOND: Duration = Duration::from_secs(1);

    fn arrival(expires: Timestamp) -> Arrival {
        let (version, group, suite) = (TlsVersion::V13, TlsGroup::X25519, TlsSuite::Aes128);
        Arrival {
            rule: Rule::inbound(&Inbound::service("orders".parse().unwrap())),
            agreed: Agreed { version, group, suite },
            standing: None,
            shown: None,
            opened: START,
            expires,
            address: None,
            is_proof: false,
            session: None,
        }
    }

    /// Whether whoever sweeps was told to look again, since this was asked last.
    fn told(register: &Register) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(register.soonest.sooner()).poll(&mut context).is_ready()
    }

    #[test]
    fn who_sweeps_is_told_of_what_ends_before_what_it_waits_for_and_of_nothing_else() {
        let register = Register::new(100, 0);
        register.enter(arrival(START + SECOND * 10)).unwrap();
        assert!(told(&register));
        assert_eq!(register.sweep(START), Some(START + SECOND * 10));
        register.enter(arrival(START + SECOND * 11)).unwrap();
        assert!(!told(&register));
        let soon = register.enter(arrival(START + SECOND * 9)).unwrap();
        assert!(told(&register));
        assert_eq!(register.sweep(START), Some(START + SECOND * 9));
        assert!(register.retire(&soon, Code::Revoked, START + SECOND));
        assert!(told(&register));
        assert_eq!(register.sweep(START + SECOND * 2), Some(START + SECOND * 9));
        assert_eq!(soon.ended(), Some(Code::Revoked));
    }

    /// What whoever sweeps waited for is over, and it has looked at the first shard already.
    #[test]
    fn who_sweeps_is_told_of_what_is_entered_where_it_has_looked_already() {
        let register = Register::new(100, 0);
        // By number: one in each of the first three shards, then past those in between.
        let last_end = START + SECOND * 300;
        register.enter(arrival(last_end)).unwrap();
        register.enter(arrival(START)).unwrap();
        register.enter(arrival(last_end)).unwrap();
        register.next.store(16, Ordering::Relaxed);
        assert_eq!(register.sweep(START), Some(START));
        while told(&register) {}

        let waits = std::thread::scope(|scope| {
            let third = register.shards.of_number(2);
            let sweeping = scope.spawn(|| register.sweep(START + SECOND));
            let looked = || register.shards.of_number(1).by_end.is_empty();
            while !looked() && !sweeping.is_finished() {
                std::thread::yield_now();
            }
            register.enter(arrival(START + SECOND * 200)).unwrap();
            drop(third);
            sweeping.join().unwrap()
        });
        assert_eq!(waits, Some(last_end), "it did not see it");
        assert!(told(&register), "and looks again");
        assert_eq!(register.sweep(START + SECOND), Some(START + SECOND * 200));
    }
}
