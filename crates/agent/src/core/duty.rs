//! One credential that must be kept fresh: when to ask for it, and when to stop trying.

use std::time::Duration;

use countersign_identity::{
    Backoff, BackoffPolicy, Code, Entropy, SKEW_ALLOWED, Sha256, Spread, Timestamp, renewal_due,
    retry_ends,
};

/// What the machine knows of a credential that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// SHA-256 of the leaf, by which this credential is told from the ones before it.
    pub digest: Sha256,
    /// The moment of issue, by the server's clock.
    pub issued: Timestamp,
    /// The end of the whole chain: never beyond the issuer's.
    pub expires: Timestamp,
}

impl Term {
    /// When its successor is due.
    pub fn due(&self) -> Timestamp {
        renewal_due(self.issued, self.expires, Spread::of(&self.digest))
    }

    fn lifetime(&self) -> Duration {
        self.expires.since(self.issued)
    }
}

/// How one duty stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What is held.
    pub term: Option<Term>,
    /// Why the last try failed.
    pub trouble: Option<String>,
}

/// A credential to be kept fresh.
#[derive(Debug)]
pub(super) struct Duty {
    held: Option<Held>,
    /// What is held is not what the manifest asks for any more.
    outdated: bool,
    backoff: Backoff,
    retry: Option<Timestamp>,
    refusal: Option<(Code, String)>,
    trouble: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    term: Term,
    /// By our own clock, so that a clock that was set back is noticed.
    since: Timestamp,
}

/// A failed try waits at most this long, or a twentieth of the lifetime when that is shorter.
const RETRY: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(500), longest: Duration::from_secs(60) };

/// A workload that is not open to this node may become so.
const ELSEWHERE_RETRY: Duration = Duration::from_secs(600);

impl Duty {
    pub(super) fn new() -> Self {
        Self {
            held: None,
            outdated: false,
            backoff: Backoff::new(RETRY),
            retry: None,
            refusal: None,
            trouble: None,
        }
    }

    pub(super) fn holding(term: Term, now: Timestamp) -> Self {
        Self { held: Some(Held { term, since: now }), ..Self::new() }
    }

    pub(super) fn term(&self) -> Option<Term> {
        self.held.map(|held| held.term)
    }

    /// The server's word that there is nothing to have.
    pub(super) fn refusal(&self) -> Option<&(Code, String)> {
        self.refusal.as_ref()
    }

    /// Whether the server said that this workload is not open to this node.
    pub(super) fn is_elsewhere(&self) -> bool {
        let unknown = matches!(&self.refusal, Some((Code::UnknownWorkload, _)));
        self.held.is_none() && unknown
    }

    pub(super) fn standing(&self) -> Standing {
        Standing { term: self.term(), trouble: self.trouble.clone() }
    }

    /// When to ask next.
    pub(super) fn due(&self, now: Timestamp) -> Timestamp {
        let wanted = match &self.held {
            None => Timestamp::EPOCH,
            // Set back by more than any skew: what is held may not be valid yet for anybody.
            Some(held) if now + SKEW_ALLOWED < held.since => Timestamp::EPOCH,
            Some(_) if self.outdated => Timestamp::EPOCH,
            Some(held) => held.term.due(),
        };
        match (self.retry, &self.held) {
            (None, _) => wanted,
            (Some(retry), None) => wanted.max(retry),
            (Some(retry), Some(Held { term, .. })) => {
                let at = wanted.max(retry);
                // A failed renewal is not tried again in the last 20th; after the end it is a new request.
                if retry_ends(term.issued, term.expires) < at { at.max(term.expires) } else { at }
            }
        }
    }

    pub(super) fn obtained(&mut self, term: Term, now: Timestamp) {
        *self = Self::holding(term, now);
    }

    /// The manifest changed: a successor is due at once, and until then what is held goes on.
    pub(super) fn outdate(&mut self) {
        self.outdated = self.held.is_some();
        self.retry = None;
        self.refusal = None;
    }

    /// What is held is of no use any more.
    pub(super) fn lose(&mut self) {
        self.held = None;
        self.outdated = false;
        self.retry = None;
    }

    pub(super) fn failed(&mut self, why: String, now: Timestamp, entropy: &dyn Entropy) {
        let wait = self.backoff.failed(now, entropy).since(now);
        // Scaled, not cut, so that the jitter stays.
        let longest = self.held.map_or(RETRY.longest, |held| held.term.lifetime() / 20);
        let wait = match longest < RETRY.longest {
            true => {
                wait.mul_f64(longest.as_secs_f64() / RETRY.longest.as_secs_f64()).max(longest / 8)
            }
            false => wait,
        };
        self.retry = Some(now + wait);
        self.trouble = Some(why);
    }

    pub(super) fn refused(
        &mut self,
        code: Code,
        why: String,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) {
        self.failed(why.clone(), now, entropy);
        if code == Code::UnknownWorkload {
            // It runs on other nodes only; this one merely knows its name, as a peer's.
            self.retry = Some(now + ELSEWHERE_RETRY);
            self.trouble = None;
        }
        self.refusal = Some((code, why));
    }

    /// There is a server again after an absence: a request now is no retry of the old one.
    ///
    /// What has come due meanwhile is asked for at a moment drawn from a span as long as the absence, so that a fleet that
    /// was cut off together does not come back together; and within three quarters of the time that is left for tries.
    pub(super) fn fresh_chance(
        &mut self,
        now: Timestamp,
        absence: Duration,
        entropy: &dyn Entropy,
    ) {
        self.retry = None;
        self.backoff.reset();
        let Some(Held { term, .. }) = self.held else { return };
        let left = retry_ends(term.issued, term.expires).since(now) * 3 / 4;
        // Where nothing is left to wait in, it is asked for at once.
        if !self.outdated && term.due() <= now && !left.is_zero() {
            self.retry = Some(now + share(absence.min(left), entropy));
        }
    }

    /// The clock was set back: waits that were reckoned on it mean nothing any more.
    pub(super) fn forget_waits(&mut self) {
        self.retry = None;
    }
}

/// A random part of a span.
fn share(span: Duration, entropy: &dyn Entropy) -> Duration {
    let mut bytes = [0; 2];
    // Without randomness the whole: late, but in time.
    let drawn = entropy.fill(&mut bytes).map_or(u16::MAX, |()| u16::from_be_bytes(bytes));
    span.mul_f64(f64::from(drawn) / f64::from(u16::MAX))
}
