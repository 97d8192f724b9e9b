//! What a process remembers of chains: that a signature was right, which never becomes false.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use countersign_identity::{KeyId, Sha256, Timestamp, TrustDomain};

use crate::Certificate;

/// One signature: the certificate that carries it, byte for byte, and the key that made it. Whether it is right depends on
/// nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Step {
    certificate: Sha256,
    key: KeyId,
}

impl Hash for Step {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // As a rule a certificate has one signature that is right.
        self.certificate.hash(state);
    }
}

impl Step {
    pub(crate) fn of(certificate: &Certificate, authority: &Certificate) -> Self {
        Self::verified(certificate, authority.key_id())
    }

    /// The signature that this key made.
    pub(crate) fn verified(certificate: &Certificate, key: KeyId) -> Self {
        Self { certificate: certificate.digest(), key }
    }
}

/// The signatures that one verification found right and that nobody remembered.
///
/// They are remembered when they are given to [`ChainMemory::remember`]: after the peer has proven that it holds
/// the leaf's key, so that chains copied from elsewhere take no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    domain: TrustDomain,
    steps: Vec<(Step, Timestamp)>, // Each with the end of the certificate that carries it.
}

impl Findings {
    /// Those among `found` that the path is made of, the anchor last. What led nowhere is not kept.
    pub(crate) fn on_path(domain: TrustDomain, path: &[&Certificate], found: &[Step]) -> Self {
        // Everything was remembered, as a rule.
        let pairs = if found.is_empty() { &[] } else { path };
        let steps = pairs.windows(2).map(|pair| (pair, Step::of(pair[0], pair[1])));
        let steps = steps.filter(|(_, step)| found.contains(step));
        let steps = steps.map(|(pair, step)| (step, pair[0].validity().not_after));
        Self { steps: steps.collect(), domain }
    }
}

/// Signatures of certificates that were verified before, so that the next handshake of the same peer need not do so.
///
/// It holds arithmetic and nothing else: that exactly these bytes were signed by exactly this key. That the key is
/// still one to trust, that the certificates are valid now, may do what they do and are not revoked, is asked
/// at every verification, and its verdict is the same with a memory as without.
///
/// It is bounded, and an entry is not used after its certificate has ended. A trust domain whose authorities sign more
/// than there is room for displaces its own entries before those of domains that have fewer.
pub struct ChainMemory {
    shards: [RwLock<Shard>; SHARDS],
    recalled: AtomicU64,
    verified: AtomicU64,
}

/// How many signatures were asked about so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignatureCounts {
    /// Those that were remembered.
    pub recalled: u64,
    /// Those that had to be verified, right or not.
    pub verified: u64,
}

/// Apart, so that two cores hardly ever want the same lock; looking something up is a read of some 50 ns under it.
const SHARDS: usize = 16;
/// With some 250 bytes each, 4 MiB at most in all: enough for 10,000 peers.
const STEPS_PER_SHARD_MAX: usize = 1024;

#[derive(Default)]
struct Shard {
    domains: HashMap<TrustDomain, Known>, // INVARIANT: none of them empty
    held: usize,                          // INVARIANT: the sum of their steps
}

#[derive(Default)]
struct Known {
    ends: HashMap<Step, Timestamp>,
    by_end: BTreeSet<(Timestamp, Step)>, // INVARIANT: the same entries
}

impl ChainMemory {
    /// Remembers nothing yet.
    pub fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| RwLock::default()),
            recalled: AtomicU64::new(0),
            verified: AtomicU64::new(0),
        }
    }

    /// Remembers what a verification found.
    pub fn remember(&self, findings: &Findings, now: Timestamp) {
        for (step, end) in &findings.steps {
            self.write(step).add(&findings.domain, *step, *end, now);
        }
    }

    /// How many signatures were remembered when they were asked about, and how many were not.
    pub fn counts(&self) -> SignatureCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SignatureCounts { recalled: read(&self.recalled), verified: read(&self.verified) }
    }

    /// Whether this signature, under an authority of this domain, was verified before. Counts the question.
    pub(crate) fn recalls(&self, domain: &TrustDomain, step: &Step, now: Timestamp) -> bool {
        let recalled = self.read(step).holds(domain, step, now);
        let counter = if recalled { &self.recalled } else { &self.verified };
        counter.fetch_add(1, Ordering::Relaxed);
        recalled
    }

    fn read(&self, step: &Step) -> RwLockReadGuard<'_, Shard> {
        self.shard(step).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, step: &Step) -> RwLockWriteGuard<'_, Shard> {
        self.shard(step).write().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, step: &Step) -> &RwLock<Shard> {
        &self.shards[usize::from(step.certificate.as_bytes()[0]) % SHARDS]
    }
}

impl Default for ChainMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ChainMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainMemory({:?})", self.counts())
    }
}

impl Shard {
    fn holds(&self, domain: &TrustDomain, step: &Step, now: Timestamp) -> bool {
        let end = self.domains.get(domain).and_then(|known| known.ends.get(step));
        end.is_some_and(|end| now <= *end)
    }

    fn add(&mut self, domain: &TrustDomain, step: Step, end: Timestamp, now: Timestamp) {
        self.forget_ended(now);
        if end < now || self.holds(domain, &step, now) {
            return;
        }
        if STEPS_PER_SHARD_MAX <= self.held {
            self.displace();
        }
        let known = self.domains.entry(domain.clone()).or_default();
        known.ends.insert(step, end);
        known.by_end.insert((end, step));
        self.held += 1;
    }

    fn forget_ended(&mut self, now: Timestamp) {
        for known in self.domains.values_mut() {
            while known.by_end.first().is_some_and(|(end, _)| *end < now) {
                known.pop();
                self.held -= 1;
            }
        }
        self.domains.retain(|_, known| !known.ends.is_empty());
    }

    /// The domain that holds most gives up what ends first.
    fn displace(&mut self) {
        let most = self.domains.values_mut().max_by_key(|known| known.ends.len());
        if most.is_some_and(Known::pop) {
            self.held -= 1;
        }
        self.domains.retain(|_, known| !known.ends.is_empty());
    }
}

impl Known {
    /// Gives up what ends first. False when there is nothing.
    fn pop(&mut self) -> bool {
        let Some((_, step)) = self.by_end.pop_first() else { return false };
        self.ends.remove(&step).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn domain(text: &str) -> TrustDomain {
        text.parse().unwrap()
    }

    /// All of one shard: the worst that somebody who chooses bytes can do.
    fn step(number: u32) -> Step {
        let mut bytes = [0; 32];
        bytes[1..5].copy_from_slice(&number.to_be_bytes());
        Step { certificate: Sha256::from_bytes(bytes), key: KeyId::from_bytes([9; 32]) }
    }

    fn findings(text: &str, number: u32, end: Timestamp) -> Findings {
        Findings { domain: domain(text), steps: vec![(step(number), end)] }
    }

    fn held(memory: &ChainMemory) -> usize {
        let shards = memory.shards.iter().map(|shard| shard.read().unwrap());
        shards
            .map(|shard| {
                let (ends, by_end) =
                    shard.domains.values().fold((0, 0), |(ends, by_end), known| {
                        (ends + known.ends.len(), by_end + known.by_end.len())
                    });
                assert_eq!((ends, by_end), (shard.held, shard.held));
                shard.held
            })
            .sum()
    }

    #[test]
    fn what_is_remembered_is_of_one_certificate_one_key_and_one_domain() {
        let memory = ChainMemory::new();
        memory.remember(&findings("shop.example", 1, NOW + HOUR), NOW);
        assert!(memory.recalls(&domain("shop.example"), &step(1), NOW));
        assert!(!memory.recalls(&domain("shop.example"), &step(2), NOW));
        assert!(!memory.recalls(&domain("bank.example"), &step(1), NOW));
        let other_key = Step { key: KeyId::from_bytes([8; 32]), ..step(1) };
        assert!(!memory.recalls(&domain("shop.example"), &other_key, NOW));
        assert_eq!(memory.counts(), SignatureCounts { recalled: 1, verified: 3 });
    }

    #[test]
    fn nothing_is_recalled_after_its_end_and_the_next_one_takes_it_out() {
        let memory = ChainMemory::new();
        memory.remember(&findings("shop.example", 1, NOW + HOUR), NOW);
        assert!(memory.recalls(&domain("shop.example"), &step(1), NOW + HOUR));
        let after = NOW + HOUR + Duration::from_micros(1);
        assert!(!memory.recalls(&domain("shop.example"), &step(1), after));
        memory.remember(&findings("bank.example", 2, NOW), after);
        assert_eq!(held(&memory), 0, "what has ended is neither kept nor taken in");
    }

    #[test]
    fn a_flood_of_chains_goes_over_no_bound_and_displaces_nobody_of_another_domain() {
        let memory = ChainMemory::new();
        for number in 0..100 {
            memory.remember(&findings("shop.example", number, NOW + HOUR), NOW);
        }
        for number in 1000..20_000 {
            // They last longer than ours, and so would stay if only the end counted.
            memory.remember(&findings("flood.example", number, NOW + HOUR * 9), NOW);
            assert!(held(&memory) <= STEPS_PER_SHARD_MAX);
        }
        assert_eq!(held(&memory), STEPS_PER_SHARD_MAX);
        let ours = |number| memory.recalls(&domain("shop.example"), &step(number), NOW);
        assert!((0..100).all(ours));
    }

    #[test]
    fn within_a_domain_what_ends_first_gives_way() {
        let memory = ChainMemory::new();
        let most = u32::try_from(STEPS_PER_SHARD_MAX).unwrap();
        memory.remember(&findings("shop.example", 0, NOW + HOUR * 2), NOW);
        for number in 1..=most {
            let end = NOW + HOUR + Duration::from_secs(number.into());
            memory.remember(&findings("shop.example", number, end), NOW);
        }
        let recalls = |number| memory.recalls(&domain("shop.example"), &step(number), NOW);
        assert!(!recalls(1) && recalls(0) && recalls(2) && recalls(most));
    }

    #[test]
    fn remembering_twice_takes_one_place() {
        let memory = ChainMemory::new();
        for _ in 0..10 {
            memory.remember(&findings("shop.example", 1, NOW + HOUR), NOW);
        }
        assert_eq!(held(&memory), 1);
    }
}
