//! What is known of some of the sources, and for how long.

use std::collections::HashMap;
use std::time::Duration;

use countersign_identity::Timestamp;

use super::StandingRates;
use crate::allowance::Allowance;
use crate::source::Source;

/// How long it is remembered that somebody was let in from a source.
const PROVEN_FOR: Duration = Duration::from_secs(900);
/// How long a source that failed is no stranger.
pub(super) const SUSPECT_FOR: Duration = Duration::from_secs(60);
/// How often those are looked for of whom nothing has to be known any more.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// Sources of which something is known, in each shard: about 64 bytes each. A quarter more than an even share of 8192, since shares are
/// not even.
pub(super) const SOURCES_PER_SHARD_MAX: usize = 640;

/// Some of the sources. Whole at every step, should there be a panic under its lock.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) sources: HashMap<Source, Record>, // INVARIANT: at most SOURCES_PER_SHARD_MAX
    forgot: Timestamp,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// Failures that are still allowed.
    pub(super) failures: Allowance,
    suspect_until: Option<Timestamp>,
    proven_until: Option<Timestamp>,
}

impl Known {
    /// Nothing is known of any of them.
    pub(super) fn nothing(now: Timestamp) -> Self {
        Self { sources: HashMap::new(), forgot: now }
    }

    pub(super) fn proven(&mut self, source: Source, rates: StandingRates, now: Timestamp) {
        if !self.has_room_for(source, now) {
            // Who was let in counts for more than who was not, and who was lately for more than who was long ago.
            let worth = |(_, record): &(&Source, &Record)| {
                record.proven_until.filter(|_| record.is_proven(now))
            };
            let worst = self.sources.iter().min_by_key(worth).map(|(source, _)| *source);
            if let Some(worst) = worst {
                self.sources.remove(&worst);
            }
        }
        let whole = Allowance::whole(rates.proven, now);
        let record = Record { failures: whole, suspect_until: None, proven_until: None };
        let record = self.sources.entry(source).or_insert(record);
        if !record.is_proven(now) {
            record.failures = whole;
        }
        record.proven_until = Some(now + PROVEN_FOR);
    }

    /// Somebody proved who they are, and came in vain.
    pub(super) fn over_share(&mut self, source: Source, rates: StandingRates, now: Timestamp) {
        self.proven(source, rates, now);
        self.in_vain(source, rates, now);
    }

    /// A try from a proven source came to nothing, which makes no suspect of it.
    pub(super) fn in_vain(&mut self, source: Source, rates: StandingRates, now: Timestamp) {
        if let Some(record) = self.sources.get_mut(&source) {
            record.failures.take(rates.proven, now);
        }
    }

    pub(super) fn failed(&mut self, source: Source, rates: StandingRates, now: Timestamp) {
        if !self.has_room_for(source, now) {
            // It stays a stranger, and what strangers have together is used up by it.
            return;
        }
        let whole = Allowance::whole(rates.suspect, now);
        let record = Record { failures: whole, suspect_until: None, proven_until: None };
        let record = self.sources.entry(source).or_insert(record);
        let rate = rates.of(record.is_proven(now));
        record.failures.take(rate, now);
        record.suspect_until = Some(now + SUSPECT_FOR);
    }

    /// Who neither failed nor was let in lately is as good as unknown.
    fn has_room_for(&mut self, source: Source, now: Timestamp) -> bool {
        let full = |known: &Self| {
            SOURCES_PER_SHARD_MAX <= known.sources.len() && !known.sources.contains_key(&source)
        };
        self.forgot = self.forgot.min(now);
        if full(self) && FORGET_EVERY <= now.since(self.forgot) {
            self.forgot = now;
            self.sources.retain(|_, record| record.is_proven(now) || record.is_suspect(now));
        }
        !full(self)
    }
}

impl Record {
    pub(super) fn is_proven(&self, now: Timestamp) -> bool {
        // The second half is for a clock that went back.
        self.proven_until.is_some_and(|until| now <= until && until.since(now) <= PROVEN_FOR)
    }

    pub(super) fn is_suspect(&self, now: Timestamp) -> bool {
        self.suspect_until.is_some_and(|until| now <= until && until.since(now) <= SUSPECT_FOR)
    }
}
