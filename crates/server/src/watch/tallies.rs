//! What was observed, counted together a minute at a time, on its way to the store.
//!
//! Observing never waits: there is room for so many different things, for each reporter for so many new ones a minute, and
//! what finds no room is a number. What is stored is bounded by time and by count, as the trust domain says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_identity::{NodeId, Timestamp};
use countersign_store::{Batch, Op, StoreError, TALLY_BYTES_MAX, TallyOf, TallyPlace, TallyRow};
use tokio_util::sync::CancellationToken;

use crate::control::Control;

/// The span of time that is counted together.
pub(crate) const SPAN: Duration = Duration::from_secs(60);
/// How many different things are counted at once.
const DIFFERENT_MAX: usize = 20_000;
/// How many new ones a reporter may add in one span, so that none fills the store alone.
const PER_REPORTER_MAX: u32 = 1000;
/// How old something may be when it is told: an agent tells late what it saw while it had no server.
const LATE_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often what was counted is written.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// The most that is written of one thing at once. Who tells more lies, and the store's sums must not overflow by it: not in
/// all the seconds of the day in which something may be told.
const TOTAL_MAX: u64 = 10_000_000_000_000;
/// How many are written at once.
const WRITTEN_MAX: usize = 500;
/// How often it is looked for what is too old, or too much.
const TRIM_EVERY: Duration = Duration::from_secs(60);
/// How often one trim drops as many as a store drops at once: more than come in the time between.
const TRIM_STEPS_MAX: usize = 20;

/// Counts on their way to the store.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    counting: Mutex<Counting>,
}

type Key = (TallyOf, Timestamp, String);

#[derive(Debug, Default)]
struct Counting {
    /// What is being counted; those with a count of zero are written, and stay until their span is over.
    rows: HashMap<Key, TallyRow>, // INVARIANT: at most DIFFERENT_MAX
    /// New ones of each reporter in the present span.
    new: HashMap<Option<NodeId>, u32>,
    span: Option<Timestamp>,
    dropped: HashMap<TallyOf, u64>,
}

/// The beginning of the span in which a moment lies.
pub(crate) fn span_of(at: Timestamp) -> Timestamp {
    let secs = i64::try_from(SPAN.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_secs(at.secs().div_euclid(secs) * secs)
}

/// A moment that was told: nothing is of the future, and nothing of long ago.
pub(crate) fn believable(micros: i64, now: Timestamp) -> Timestamp {
    Timestamp::from_micros(micros).clamp(now - LATE_MAX, now)
}

impl Tallies {
    /// Counts what a reporter tells; the server itself is `None`. Never waits.
    pub(crate) fn add(
        &self,
        of: TallyOf,
        by: Option<NodeId>,
        rows: impl Iterator<Item = TallyRow>,
        now: Timestamp,
    ) {
        let mut counting = self.lock();
        counting.begin(span_of(now));
        for row in rows {
            let count = row.count;
            if !counting.add(of, by, row) {
                counting.lose(of, count);
            }
        }
    }

    /// So many were lost on the way here.
    pub(crate) fn lost(&self, of: TallyOf, count: u64) {
        self.lock().lose(of, count);
    }

    /// How many were not counted.
    pub(crate) fn dropped(&self, of: TallyOf) -> u64 {
        self.lock().dropped.get(&of).copied().unwrap_or(0)
    }

    /// What was counted since it was taken last.
    fn take(&self) -> Vec<(TallyOf, TallyRow)> {
        let mut counting = self.lock();
        let fresh = counting.rows.iter_mut().filter(|(_, row)| 0 < row.count);
        let taken = fresh.take(WRITTEN_MAX).map(|((of, ..), row)| {
            let mut taken = row.clone();
            taken.count = taken.count.min(TOTAL_MAX);
            taken.micros = taken.micros.min(TOTAL_MAX);
            (row.count, row.micros) = (0, 0);
            (*of, taken)
        });
        taken.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Counting> {
        self.counting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counting {
    fn begin(&mut self, span: Timestamp) {
        if self.span != Some(span) {
            self.span = Some(span);
            self.new.clear();
            self.rows.retain(|(_, at, _), row| 0 < row.count || span <= *at);
        }
    }

    fn add(&mut self, of: TallyOf, by: Option<NodeId>, row: TallyRow) -> bool {
        let key = (of, row.at, row.what.clone());
        if let Some(before) = self.rows.get_mut(&key) {
            if before.count == 0 {
                before.first = row.first;
            }
            before.first = before.first.min(row.first);
            if before.last <= row.last {
                before.last = row.last;
                before.sample = row.sample;
            }
            before.count = before.count.saturating_add(row.count);
            before.micros = before.micros.saturating_add(row.micros);
            return true;
        }
        let new = self.new.entry(by).or_insert(0);
        let fits = row.what.len() <= TALLY_BYTES_MAX && row.sample.len() <= TALLY_BYTES_MAX;
        let room = *new < PER_REPORTER_MAX && self.rows.len() < DIFFERENT_MAX;
        if fits && room {
            *new += 1;
            self.rows.insert(key, row);
        }
        fits && room
    }

    fn lose(&mut self, of: TallyOf, count: u64) {
        let dropped = self.dropped.entry(of).or_insert(0);
        *dropped = dropped.saturating_add(count);
    }
}

/// Writes what was counted, and forgets what is old or too much, until stopped.
pub(crate) async fn keep_tallies(control: Arc<Control>, stop: CancellationToken) {
    let mut trim_at = control.clock.now();
    loop {
        let now = control.clock.now();
        if let Err(error) = write(&control).await {
            tracing::warn!(%error, "what was observed could not be written");
        }
        if trim_at <= now {
            trim_at = now + TRIM_EVERY;
            // A clock that is ahead makes nothing old.
            let steady = control.desk.time.certain(&*control.clock);
            if let Err(error) = trim(&control, steady).await {
                tracing::warn!(%error, "old observations could not be dropped");
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = control.clock.sleep_until(control.clock.about(WRITE_EVERY)) => {}
        }
    }
    if let Err(error) = write(&control).await {
        tracing::debug!(%error, "the last observations could not be written");
    }
}

async fn write(control: &Control) -> Result<(), StoreError> {
    loop {
        let rows = control.watch.tallies.take();
        if rows.is_empty() {
            return Ok(());
        }
        let counts: Vec<_> = rows.iter().map(|(of, row)| (*of, row.count)).collect();
        let ops = rows.into_iter().map(|(of, row)| Op::AddTally(of, row)).collect();
        if let Err(error) = control.store.commit(Batch { ops, ..Batch::default() }).await {
            // Nobody may know whether it was written, and what is written twice is counted twice.
            for (of, count) in counts {
                control.watch.tallies.lost(of, count);
            }
            return Err(error);
        }
    }
}

async fn trim(control: &Control, steady: Timestamp) -> Result<(), StoreError> {
    let state = control.feed.current();
    let kept = &state.domain().observations;
    let keep = u64::from(kept.entries_max.get());
    for of in [TallyOf::Handshakes, TallyOf::Requests] {
        let mut before = span_of(steady - kept.retention.duration());
        if let Some(beyond) = control.store.tallies_beyond(of, keep).await? {
            // The whole span goes, so that no half of one is left.
            before = before.max(beyond + SPAN);
        }
        for _step in 0..TRIM_STEPS_MAX {
            let ops = vec![Op::TrimTallies { of, before }];
            control.store.commit(Batch { ops, ..Batch::default() }).await?;
            let end = TallyPlace { at: before, what: String::new() };
            if control.store.tallies(of, Timestamp::EPOCH, end, 1).await?.is_empty() {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: TallyOf = TallyOf::Handshakes;

    fn row(what: &str, secs: i64) -> TallyRow {
        let at = Timestamp::from_secs(secs);
        TallyRow {
            at: span_of(at),
            what: what.to_owned(),
            first: at,
            last: at,
            count: 1,
            micros: 10,
            sample: secs.to_string(),
        }
    }

    fn node(number: u8) -> Option<NodeId> {
        Some(NodeId::from_bytes([number; 16]))
    }

    fn add(tallies: &Tallies, by: Option<NodeId>, rows: Vec<TallyRow>, now: i64) {
        tallies.add(OF, by, rows.into_iter(), Timestamp::from_secs(now));
    }

    #[test]
    fn things_alike_of_one_minute_are_one_and_are_written_as_they_grow() {
        let tallies = Tallies::default();
        add(&tallies, node(1), vec![row("a", 61), row("a", 65), row("a", 121)], 122);
        let mut taken: Vec<_> = tallies.take().into_iter().map(|(_, row)| row).collect();
        taken.sort_by_key(|row| row.at);
        assert_eq!(
            taken.iter().map(|row| (row.count, row.micros)).collect::<Vec<_>>(),
            [(2, 20), (1, 10)]
        );
        assert_eq!((taken[0].first.secs(), taken[0].last.secs()), (61, 65));
        assert!(tallies.take().is_empty(), "what was taken is not taken again");
        add(&tallies, node(1), vec![row("a", 130)], 131);
        let taken = tallies.take();
        assert_eq!(taken.len(), 1);
        assert_eq!((taken[0].1.count, taken[0].1.first.secs()), (1, 130));
    }

    #[test]
    fn one_reporter_has_its_share_and_the_others_theirs() {
        let tallies = Tallies::default();
        let many = |from: u32| (from..from + 5000).map(|n| row(&n.to_string(), 60)).collect();
        add(&tallies, node(1), many(0), 60);
        assert_eq!(tallies.dropped(OF), 5000 - u64::from(PER_REPORTER_MAX));
        add(&tallies, node(2), vec![row("b", 60)], 60);
        assert_eq!(tallies.dropped(OF), 5000 - u64::from(PER_REPORTER_MAX));
        // What it told of already goes on to be counted, in its next minute it may tell of others.
        add(&tallies, node(1), vec![row("0", 60)], 60);
        add(&tallies, node(1), vec![row("other", 120)], 120);
        assert_eq!(tallies.dropped(OF), 5000 - u64::from(PER_REPORTER_MAX));
    }

    #[test]
    fn memory_is_bounded_and_is_free_again_after_a_minute() {
        let tallies = Tallies::default();
        for number in 0..100 {
            let many = (0..999).map(|n| row(&format!("{number}.{n}"), 60)).collect();
            add(&tallies, node(number), many, 60);
        }
        assert_eq!(tallies.lock().rows.len(), DIFFERENT_MAX);
        while !tallies.take().is_empty() {}
        assert_eq!(tallies.lock().rows.len(), DIFFERENT_MAX);
        add(&tallies, None, vec![row("a", 120)], 120);
        assert_eq!(tallies.lock().rows.len(), 1);
    }

    #[test]
    fn lie_about_a_number_spoils_no_sum() {
        let tallies = Tallies::default();
        let lie = TallyRow { count: u64::MAX, micros: u64::MAX, ..row("a", 60) };
        add(&tallies, node(1), vec![lie.clone(), lie], 60);
        let taken = tallies.take();
        assert_eq!((taken[0].1.count, taken[0].1.micros), (TOTAL_MAX, TOTAL_MAX));
        let whole_day = i128::from(TOTAL_MAX) * i128::from(LATE_MAX.as_secs());
        assert!(whole_day < i128::from(i64::MAX), "the store counts in 64 bits");
    }

    #[test]
    fn clocks_of_others_are_believed_within_bounds() {
        let now = Timestamp::from_secs(1_000_000);
        assert_eq!(believable(i64::MAX, now), now);
        assert_eq!(believable(i64::MIN, now), now - LATE_MAX);
        assert_eq!(believable((now - SPAN).micros(), now), now - SPAN);
    }
}
