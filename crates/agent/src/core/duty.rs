//! One credential that must be kept fresh: when to ask for it, and when to stop trying.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{
    Attested, Backoff, BackoffPolicy, Code, Entropy, Failed, Incarnation, KeyId, Revocation,
    Revocations, SKEW_ALLOWED, Timestamp, retry_ends,
};

use super::credential::{Credential, Term};

/// How one duty stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What is held.
    pub term: Option<Term>,
    /// Why the last try failed.
    pub trouble: Option<String>,
    /// The last try that failed, be it long mended.
    pub failed: Option<Failed>,
}

/// A credential to be kept fresh.
#[derive(Debug)]
pub(super) struct Duty {
    held: Option<Held>,
    /// What is held is not what the manifest asks for any more.
    outdated: bool,
    /// A revocation covers what was held last, and its successor is not there yet.
    covered: bool,
    /// How many successors in a row were covered themselves.
    stale: u32,
    /// The server's word that nothing is issued, until it takes that back.
    suspended: Option<(Code, String)>,
    /// The server has issued it to this node before, and has not said that it belongs to others.
    ours: bool,
    backoff: Backoff,
    retry: Option<Timestamp>,
    refusal: Option<(Code, String)>,
    trouble: Option<String>,
    failed: Option<Failed>,
}

#[derive(Clone, Debug)]
struct Held {
    credential: Credential,
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
            covered: false,
            stale: 0,
            suspended: None,
            ours: false,
            backoff: Backoff::new(RETRY),
            retry: None,
            refusal: None,
            trouble: None,
            failed: None,
        }
    }

    pub(super) fn holding(credential: Credential, now: Timestamp) -> Self {
        Self { held: Some(Held { credential, since: now }), ours: true, ..Self::new() }
    }

    pub(super) fn term(&self) -> Option<Term> {
        self.held.as_ref().map(|held| held.credential.term)
    }

    /// The server's word that there is nothing to have.
    pub(super) fn refusal(&self) -> Option<&(Code, String)> {
        self.suspended.as_ref().or(self.refusal.as_ref())
    }

    /// Whether issuance was stopped by a record that is in force.
    pub(super) fn is_suspended(&self) -> bool {
        self.suspended.is_some()
    }

    /// Whether the server has issued it to this node, so that the workload is one of ours also while nothing is held.
    pub(super) fn is_ours(&self) -> bool {
        self.ours
    }

    /// Whether a revocation covers what is or was held, and nothing has taken its place yet.
    pub(super) fn is_covered(&self) -> bool {
        self.covered
    }

    /// Whose turn it is when several are due: those without any come first, and those that were answered in vain after them.
    pub(super) fn turn(&self) -> (bool, u32) {
        (self.held.is_some(), self.stale)
    }

    /// Whether what is held says that it was attested by what the manifest does not ask for: whoever is handed it now may not have
    /// shown that.
    pub(super) fn says_more_than(&self, asked: Attested) -> bool {
        self.held.as_ref().is_some_and(|held| !held.credential.shown.attested.is_within(asked))
    }

    /// The rule that covers what is held.
    pub(super) fn covering(&self, rules: &Revocations) -> Option<Arc<Revocation>> {
        rules.covering(&self.held.as_ref()?.credential.shown.presented()).cloned()
    }

    /// Whether the server said that this workload is not open to this node.
    pub(super) fn is_elsewhere(&self) -> bool {
        let unknown = matches!(&self.refusal, Some((Code::UnknownWorkload, _)));
        self.held.is_none() && unknown
    }

    pub(super) fn standing(&self) -> Standing {
        Standing { term: self.term(), trouble: self.trouble.clone(), failed: self.failed.clone() }
    }

    /// When to ask next.
    pub(super) fn due(&self, now: Timestamp) -> Timestamp {
        if self.is_suspended() {
            return Timestamp::LAST;
        }
        let wanted = match &self.held {
            None => Timestamp::EPOCH,
            // Set back by more than any skew: what is held may not be valid yet for anybody.
            Some(held) if now + SKEW_ALLOWED < held.since => Timestamp::EPOCH,
            Some(_) if self.outdated => Timestamp::EPOCH,
            Some(held) => held.credential.term.due(),
        };
        match (self.retry, &self.held) {
            (None, _) => wanted,
            (Some(retry), None) => wanted.max(retry),
            (Some(retry), Some(Held { credential: Credential { term, .. }, .. })) => {
                let at = wanted.max(retry);
                // A failed renewal is not tried again in the last 20th; after the end it is a new request.
                if retry_ends(term.issued, term.expires) < at { at.max(term.expires) } else { at }
            }
        }
    }

    pub(super) fn obtained(&mut self, credential: Credential, now: Timestamp) {
        *self = Self { failed: self.failed.take(), ..Self::holding(credential, now) };
    }

    /// A revocation covers what a workload holds: it is served no longer, and its successor is due at once.
    pub(super) fn revoke(&mut self, rule: &Revocation) {
        self.lose();
        self.cover(rule);
    }

    /// A revocation covers the agent's own credential. It stays known, because its key is the registered one still.
    pub(super) fn cover(&mut self, rule: &Revocation) {
        self.covered = true;
        self.outdated = self.held.is_some();
        self.retry = None;
        self.refusal = None;
        self.backoff.reset();
        self.trouble =
            Some(format!("the certificate was revoked ({}): {}", rule.reason, rule.target));
    }

    /// The server says that the agent's own credential is revoked, by a rule that this agent does not know.
    pub(super) fn cover_unseen(&mut self) {
        self.covered = true;
        self.outdate();
    }

    /// The successor that came is covered itself: it was authorised before the rule was made.
    pub(super) fn came_covered(
        &mut self,
        rule: &Revocation,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) {
        let why = format!("the server issued what is revoked ({}): {}", rule.reason, rule.target);
        self.covered = true;
        self.stale = self.stale.saturating_add(1);
        // Once is the race of an answer that was under way; whoever does it again is behind.
        match self.stale {
            0 | 1 => self.trouble = Some(why),
            2.. => self.failed(why, now, entropy),
        }
    }

    /// What was revoked may have become possible: a rule or an authority has changed.
    pub(super) fn try_again_if_covered(&mut self) {
        if self.covered && self.held.is_none() {
            self.retry = None;
            self.backoff.reset();
        }
    }

    /// The server's word that nothing is issued any more: what is held is withdrawn.
    pub(super) fn suspend(&mut self, why: String) {
        self.lose();
        self.refusal = None;
        self.trouble = Some(why.clone());
        self.suspended = Some((Code::Suspended, why));
    }

    /// The suspension was lifted: an SVID is due at once.
    pub(super) fn resume(&mut self) {
        self.suspended = None;
        self.refusal = None;
        self.retry = None;
        self.trouble = None;
        self.backoff.reset();
    }

    /// The manifest changed: a successor is due at once, and until then what is held goes on.
    pub(super) fn outdate(&mut self) {
        self.outdated = self.held.is_some();
        self.retry = None;
        self.refusal = None;
    }

    /// Roots are on their way out: a successor of what they vouch for is due, at a moment drawn from a span, so that a fleet
    /// that is told at once does not ask at once.
    pub(super) fn leave_roots(
        &mut self,
        roots: &[KeyId],
        within: Duration,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) {
        let Some(Held { credential, .. }) = &self.held else { return };
        let anchor = credential.shown.authorities.last();
        if self.outdated || !anchor.is_some_and(|anchor| roots.contains(anchor)) {
            return;
        }
        let Term { issued, expires, .. } = credential.term;
        let left = retry_ends(issued, expires).since(now) * 3 / 4;
        self.outdated = true;
        self.retry = Some(now + share(within.min(left), entropy));
    }

    /// What an earlier incarnation has issued is asked for anew, at a moment drawn from a span, so that a fleet that is told
    /// at once does not ask at once.
    pub(super) fn outdate_earlier(
        &mut self,
        current: Incarnation,
        within: Duration,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) {
        let Some(Held { credential: Credential { term, shown }, .. }) = &self.held else { return };
        let term = *term;
        let earlier = shown.provenance.is_some_and(|(of, _)| of.incarnation < current);
        if !earlier || self.outdated {
            return;
        }
        self.outdate();
        let left = retry_ends(term.issued, term.expires).since(now) * 3 / 4;
        self.retry = Some(now + share(left.min(within), entropy));
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
        let longest = self.term().map_or(RETRY.longest, |term| term.lifetime() / 20);
        let wait = match longest < RETRY.longest {
            true => {
                wait.mul_f64(longest.as_secs_f64() / RETRY.longest.as_secs_f64()).max(longest / 8)
            }
            false => wait,
        };
        self.retry = Some(now + wait);
        self.failed = Some(Failed { at: now, why: why.as_str().into() });
        self.trouble = Some(why);
    }

    pub(super) fn refused(
        &mut self,
        code: Code,
        why: String,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) {
        let before = self.failed.clone();
        self.failed(why.clone(), now, entropy);
        if code == Code::Suspended {
            // The record that says so is not here yet; what is held is withdrawn on the server's word.
            self.held = None;
            self.outdated = false;
        }
        if code == Code::UnknownWorkload {
            self.ours = false;
            // It runs on other nodes only; this one merely knows its name, as a peer's.
            self.retry = Some(now + ELSEWHERE_RETRY);
            self.trouble = None;
            self.failed = before;
        }
        self.refusal = Some((code, why));
    }

    /// There is a server again after an absence: a request now is no retry of the old one.
    ///
    /// What has come due meanwhile is asked for at a moment drawn from a span twice as long as the absence, so that a fleet
    /// that was cut off together adds half of its usual rate to what comes due anyway, and chance has room below three times
    /// that rate; and within three quarters of the time that is left for tries.
    pub(super) fn fresh_chance(
        &mut self,
        now: Timestamp,
        absence: Duration,
        entropy: &dyn Entropy,
    ) {
        self.retry = None;
        self.backoff.reset();
        let Some(term) = self.term() else { return };
        let left = retry_ends(term.issued, term.expires).since(now) * 3 / 4;
        // Where nothing is left to wait in, it is asked for at once.
        if !self.outdated && term.due() <= now && !left.is_zero() {
            self.retry = Some(now + share((absence * 2).min(left), entropy));
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
