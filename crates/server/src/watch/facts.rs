//! What was observed: the latest handshakes of every enforcement point, and how often each reason came up.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use countersign_api::{v1, wire};
use countersign_identity::Code;

/// The latest facts that are kept.
const FACTS_MAX: usize = 10_000;

/// One fact.
#[derive(Clone, Debug)]
pub(crate) struct Fact {
    /// Its place in the order of arrival, from 1.
    pub(crate) index: u64,
    /// What was seen.
    pub(crate) handshake: v1::HandshakeFact,
}

/// A bounded memory of facts. Facts may be lost; that many were is counted.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    latest: VecDeque<Fact>, // INVARIANT: at most FACTS_MAX, their indices ascend
    next: u64,
    dropped: u64,
    /// By code; the empty text of an admitted one, or of an unknown code, has its own entries.
    counts: BTreeMap<Outcome, u64>,
}

/// How a handshake ended. A closed set, so that a peer cannot make labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// The peer was admitted.
    Admitted,
    /// It was refused, for this reason.
    Refused(Code),
    /// It was refused for a reason that this version does not know.
    RefusedUnknown,
}

impl Outcome {
    fn of(code: &str) -> Self {
        match code {
            "" => Self::Admitted,
            code => code.parse().map_or(Self::RefusedUnknown, Self::Refused),
        }
    }

    /// The word for metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Refused(code) => code.as_str(),
            Self::RefusedUnknown => "unknown",
        }
    }
}

impl Facts {
    /// Keeps what was observed, and forgets the oldest beyond the bound.
    pub(crate) fn observe(&self, handshakes: Vec<v1::HandshakeFact>, lost: u64) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.dropped = kept.dropped.saturating_add(lost);
        for mut handshake in handshakes {
            handshake = wire::bounded_fact(handshake);
            // A slice of a larger buffer would keep the whole message alive.
            handshake.peer_serial = bytes::Bytes::copy_from_slice(&handshake.peer_serial);
            let count = kept.counts.entry(Outcome::of(&handshake.code)).or_insert(0);
            *count = count.saturating_add(handshake.count.max(1));
            kept.next += 1;
            let index = kept.next;
            if kept.latest.len() == FACTS_MAX {
                kept.latest.pop_front();
            }
            kept.latest.push_back(Fact { index, handshake });
        }
    }

    /// Counts a handshake that is not kept.
    pub(crate) fn count(&self, code: Option<Code>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = code.map_or(Outcome::Admitted, Outcome::Refused);
        let count = kept.counts.entry(outcome).or_insert(0);
        *count = count.saturating_add(1);
        kept.dropped = kept.dropped.saturating_add(1);
    }

    /// The latest facts after an index, oldest first, at most `limit`.
    pub(crate) fn after(&self, index: u64, limit: usize) -> Vec<Fact> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let start = kept.latest.partition_point(|fact| fact.index <= index);
        kept.latest.iter().skip(start).take(limit).cloned().collect()
    }

    /// The index of the latest fact.
    pub(crate) fn reached(&self) -> u64 {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).next
    }

    /// The latest facts, oldest first, at most `limit`.
    pub(crate) fn latest(&self, limit: usize) -> Vec<Fact> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped = kept.latest.len().saturating_sub(limit);
        kept.latest.iter().skip(skipped).cloned().collect()
    }

    /// How many handshakes ended in each way, and how many facts were lost on the way here.
    pub(crate) fn totals(&self) -> (Vec<(Outcome, u64)>, u64) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.counts.iter().map(|(outcome, count)| (*outcome, *count)).collect(), kept.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake(code: &str) -> v1::HandshakeFact {
        v1::HandshakeFact { code: code.into(), count: 1, ..v1::HandshakeFact::default() }
    }

    #[test]
    fn oldest_facts_go_first_and_totals_stay() {
        let facts = Facts::default();
        facts.observe(vec![handshake("expired"); FACTS_MAX + 5], 3);
        assert_eq!(facts.latest(usize::MAX).len(), FACTS_MAX);
        assert_eq!(facts.latest(usize::MAX)[0].index, 6);
        assert_eq!(facts.after(7, 2).iter().map(|fact| fact.index).collect::<Vec<_>>(), [8, 9]);
        let total = u64::try_from(FACTS_MAX).unwrap() + 5;
        assert_eq!(facts.totals(), (vec![(Outcome::Refused(Code::Expired), total)], 3));
    }

    #[test]
    fn peers_cannot_make_labels_or_fill_memory() {
        let facts = Facts::default();
        let mut long = handshake("made-up-by-the-peer");
        long.detail = "é".repeat(10_000);
        facts.observe(vec![long], 0);
        assert_eq!(facts.totals().0, [(Outcome::RefusedUnknown, 1)]);
        assert!(facts.latest(1)[0].handshake.detail.len() <= wire::TEXT_BYTES_MAX);
    }
}
