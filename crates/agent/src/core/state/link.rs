//! The way to a server: lost, tried again, and kept open under a certificate that servers accept.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{BackoffPolicy, Code, Entropy, Failed, Timestamp};

use super::State;
use crate::core::credential::Credential;
use crate::core::duty::Duty;
use crate::core::event::{Action, Knowledge};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Down { retry: Timestamp },
    Opening,
    Open { synced: bool },
}

/// A server that was lost is tried again within this, or a 25th of the shortest lifetime held, if that is shorter: the
/// guaranteed outage budget ends a 20th of the lifetime before the SVID does, and within that it must be renewed.
pub(super) const RECONNECT: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(400), longest: Duration::from_secs(10) };
/// A renewal of the node's SVID that takes longer than this holds nothing else back any more.
const RENEWAL_MOMENT: Duration = Duration::from_secs(1);
const RECONNECT_SHORTEST: Duration = Duration::from_millis(200);

impl State {
    pub(super) fn opened(&mut self, now: Timestamp, entropy: &dyn Entropy) {
        let absence = self.disconnected.map_or(Duration::ZERO, |since| now.since(since));
        self.link = Link::Open { synced: false };
        self.trouble = None;
        self.node.fresh_chance(now, absence, entropy);
        for duty in self.duties.values_mut() {
            duty.fresh_chance(now, absence, entropy);
        }
    }

    /// Waits that were reckoned on the clock before would last as long as the step.
    pub(super) fn clock_set_back(&mut self, now: Timestamp) {
        if let Link::Down { retry } = &mut self.link {
            *retry = (*retry).min(now);
        }
        self.node.forget_waits();
        self.duties.values_mut().for_each(Duty::forget_waits);
        self.renewing_node = self.renewing_node.map(|since| since.min(now));
        self.disconnected = self.disconnected.map(|since| since.min(now));
    }

    pub(super) fn closed(
        &mut self,
        code: Code,
        why: String,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) {
        let was_synced = self.link == Link::Open { synced: true };
        if was_synced {
            self.backoff.reset();
            self.tried = 0;
        }
        self.disconnected.get_or_insert(now);
        self.unlinked = Some(Failed { at: now, why: why.as_str().into() });
        self.trouble = Some(why);
        self.signing.clear();
        self.server = (self.server + 1) % self.settings.servers.max(1);
        self.tried += 1;
        if code == Code::Revoked && !self.node.is_covered() {
            self.node.cover_unseen();
        }
        let retry = if let Some(retry) = self.shut_out.refused(code, now, entropy) {
            retry
        } else if self.tried < self.settings.servers && !was_synced {
            now
        } else {
            self.tried = 0;
            let wait = self.backoff.failed(now, entropy).since(now);
            now + self.scaled(wait)
        };
        self.link = Link::Down { retry };
    }

    /// Short lifetimes cannot wait for the longest backoff. The wait is scaled, not cut, so that its jitter stays.
    pub(super) fn scaled(&self, wait: Duration) -> Duration {
        let shortest = self
            .duties
            .values()
            .filter_map(|duty| duty.term())
            .map(|term| term.expires.since(term.issued) / 25)
            .min()
            .unwrap_or(RECONNECT.longest)
            .max(RECONNECT_SHORTEST);
        if shortest < RECONNECT.longest && shortest < wait {
            wait.mul_f64(shortest.as_secs_f64() / RECONNECT.longest.as_secs_f64())
                .max(shortest / 2 + wait / 40)
        } else {
            wait
        }
    }

    pub(super) fn node_renewed(
        &mut self,
        credential: Credential,
        now: Timestamp,
        entropy: &dyn Entropy,
        actions: &mut Vec<Action>,
    ) {
        self.renewing_node = None;
        let rules = Arc::clone(self.replica.rules());
        self.node.obtained(credential, now);
        if let Some(rule) = self.node.covering(&rules) {
            self.node.came_covered(&rule, now, entropy);
            let why = format!("the server issued this agent what is revoked: {}", rule.target);
            if let Link::Down { .. } = self.link {
                self.closed(Code::Revoked, why, now, entropy);
            }
            return;
        }
        self.leave_roots(now, entropy);
        match self.link {
            // It was needed to open a stream at all.
            Link::Down { retry } => {
                let waits = self.shut_out.waits();
                self.link = Link::Down { retry: if waits { retry } else { now } };
            }
            Link::Opening => {}
            // The server refuses calls under the key before; the new stream takes the place of the old.
            Link::Open { .. } => {
                self.signing.clear();
                self.link = Link::Opening;
                actions.push(self.open());
            }
        }
    }

    pub(super) fn node_renewal_failed(
        &mut self,
        code: Code,
        why: String,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) {
        self.renewing_node = None;
        self.node.failed(why.clone(), now, entropy);
        if let Link::Down { .. } = self.link {
            self.closed(code, why, now, entropy);
        }
    }

    /// From when SVIDs may be asked for: not just while the node's own is renewed, because the server refuses calls under
    /// the key before as soon as it knows the successor, and a renewal takes a moment only.
    pub(super) fn signs_from(&self) -> Timestamp {
        self.renewing_node.map_or(Timestamp::EPOCH, |since| since + RENEWAL_MOMENT)
    }

    /// Also while a failed try of it waits, when what is held is revoked: it is never shown again.
    pub(super) fn needs_renewal(&self, now: Timestamp) -> bool {
        let ended = self.node.term().is_none_or(|term| term.expires < now);
        ended || self.node.is_covered() || self.node.due(now) <= now
    }

    pub(super) fn open(&self) -> Action {
        let have = (self.knowledge != Knowledge::Nothing).then(|| self.replica.revision());
        Action::Open { server: self.server, have }
    }
}
