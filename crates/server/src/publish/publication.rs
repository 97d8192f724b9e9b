//! What one stream is told, and when: a snapshot, then every change of its slice at once, else a mark now and then.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign_api::v1;
use countersign_api::v1::sync_response::Step;
use countersign_identity::{Revision, Timestamp};

use crate::publish::slice::{Delta, Slice};

/// The shortest time between two marks.
const MARK_PAUSE: Duration = Duration::from_secs(1);
/// The longest silence where nothing else is said: a mark then says that all is still well, and what the server's clock
/// shows.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Silence is at least so long, however few streams there are.
const SILENCE_MIN: Duration = Duration::from_secs(4);
/// So many streams add as much again to the silence of all, so that all of them together are told the same number of times a
/// second, be they a hundred or ten thousand. An agent that hears nothing in twice that time looks for another server.
const SILENCE_STREAMS: usize = 500;

/// In so many turns all streams are told within the time in which each is told once, each stream in a turn of its own.
const TURNS: u32 = 64;

/// How long streams may be silent when there are so many: in steps, so that it stays the same when a few come or go, and all
/// streams count their turns in the same spans.
pub(crate) fn silence(streams: usize) -> Duration {
    let steps = streams.div_ceil(SILENCE_STREAMS);
    let steps = u32::try_from(steps).unwrap_or(u32::MAX);
    SILENCE_MIN.saturating_mul(steps).clamp(SILENCE_MIN, SILENCE_LIMIT)
}

/// However many streams there are, a server that hangs is noticed within twice this.
pub(crate) const SILENCE_LIMIT: Duration = Duration::from_secs(120);

/// What a stream has been told so far.
#[derive(Debug)]
pub(crate) struct Publication {
    told: Option<Arc<Slice>>,
    spoken: Timestamp,
    silence: Duration,
    turn: u32,
}

/// What to do next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send this now.
    Say(Step),
    /// Send what has changed, now.
    Change(Arc<Delta>),
    /// Nothing before this moment, unless the state moves.
    Wait(Timestamp),
}

impl Publication {
    /// For the stream of this number, whose reader already has this slice, or nothing.
    pub(crate) fn new(told: Option<Arc<Slice>>, number: u64, now: Timestamp) -> Self {
        // A reader that has it all is told so at once.
        let turn = u32::try_from(number % u64::from(TURNS)).unwrap_or_default();
        Self { told, spoken: now - SILENCE_MAX, silence: SILENCE_MAX, turn }
    }

    /// Changes how long the stream may be silent.
    pub(crate) fn be_silent_for(&mut self, silence: Duration) {
        self.silence = silence;
    }

    /// What the reader was told last.
    pub(crate) fn told(&self) -> Option<&Slice> {
        self.told.as_deref()
    }

    /// Decides what the reader is told at `now`, when its slice is `current`.
    pub(crate) fn next(&mut self, current: &Arc<Slice>, now: Timestamp) -> Next {
        // Of another incarnation there is no difference to tell: whoever had it begins anew.
        let same = |told: &&Arc<Slice>| told.revision.incarnation == current.revision.incarnation;
        let Some(told) = self.told.as_ref().filter(same) else {
            self.spoken = now;
            self.told = Some(Arc::clone(current));
            return Next::Say(Step::Snapshot(v1::Snapshot {
                revision: Some(revision(current.revision)),
                records: current.wire_records(),
                clock_micros: now.micros(),
                witness: Bytes::new(),
            }));
        };
        let delta = current.since(told);
        if !delta.is_empty() {
            self.spoken = now;
            self.told = Some(Arc::clone(current));
            return Next::Change(delta);
        }
        let moved = told.revision < current.revision;
        let due = match moved {
            true => self.spoken + MARK_PAUSE,
            false => broken_at(self.spoken, self.silence, self.turn),
        };
        // A clock that was set back must not silence a stream.
        if self.spoken <= now && now < due {
            return Next::Wait(due);
        }
        self.spoken = now;
        self.told = Some(Arc::clone(current));
        Next::Say(Step::Mark(v1::Mark {
            revision: Some(revision(current.revision)),
            clock_micros: now.micros(),
            witness: Bytes::new(),
        }))
    }
}

/// When a silence that began at this moment is broken: in time, and in this turn of every span that is so long. To wake once for
/// many streams takes a fraction of what it takes to wake for each of them; but streams that were told something at the
/// same moment, as all are told a change, are not for ever after told that all is well in one moment.
fn broken_at(since: Timestamp, silence: Duration, turn: u32) -> Timestamp {
    let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    let (due, offset) = ((since + silence).micros(), micros(silence / TURNS * turn));
    Timestamp::from_micros(due - (due - offset).rem_euclid(micros(silence).max(1)))
}

fn revision(revision: Revision) -> v1::Revision {
    v1::Revision { incarnation: revision.incarnation, number: revision.number }
}

#[cfg(test)]
mod tests {
    use countersign_store::{Change, Kind, Record, Snapshot};

    use super::*;
    use crate::state::State;

    fn record(kind: Kind, name: &str, value: &str) -> Record {
        Record { kind, name: name.to_owned(), value: value.into() }
    }

    fn state() -> State {
        let records = vec![record(Kind::TrustDomain, "shop", r#"{"trustDomain":"shop.example"}"#)];
        let revision = Revision { incarnation: 1, number: 1 };
        State::from_snapshot(Snapshot { revision, records }).unwrap()
    }

    /// The state one revision later, with a workload for the nodes of this label.
    fn later(state: &State, label: &str) -> State {
        let number = state.revision.number + 1;
        let value = format!(r#"{{"selectors":["launch:w"],"nodes":["{label}"]}}"#);
        let change = Change::Put(record(Kind::Workload, &format!("w{number}"), &value));
        state.changed(Revision { incarnation: 1, number }, vec![change]).unwrap()
    }

    fn cut(state: &State) -> Arc<Slice> {
        Arc::new(Slice::cut(state, &["mine".parse().unwrap()].into(), None))
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_secs(1_000_000) + Duration::from_millis(millis)
    }

    #[track_caller]
    fn said(next: Next) -> Step {
        match next {
            Next::Say(step) => step,
            Next::Change(delta) => Step::Changes(delta.changes()),
            Next::Wait(until) => panic!("waits until {until}"),
        }
    }

    #[track_caller]
    fn waits(next: &Next, until: Timestamp) {
        assert!(matches!(next, Next::Wait(moment) if *moment == until), "{next:?}");
    }

    #[test]
    fn changes_of_the_slice_come_at_once_and_others_as_a_mark_a_second() {
        let first = state();
        let mut publication = Publication::new(None, 0, at(0));
        assert!(matches!(said(publication.next(&cut(&first), at(0))), Step::Snapshot(_)));
        let foreign = later(&first, "theirs");
        waits(&publication.next(&cut(&foreign), at(10)), at(1000));
        let own = later(&foreign, "mine");
        let Step::Changes(changes) = said(publication.next(&cut(&own), at(20))) else { panic!() };
        assert_eq!(changes.put.len(), 1);
        assert_eq!(changes.revision.unwrap().number, 3);
        let more = later(&later(&own, "theirs"), "theirs");
        waits(&publication.next(&cut(&more), at(30)), at(1020));
        let Step::Mark(mark) = said(publication.next(&cut(&more), at(1020))) else { panic!() };
        assert_eq!(mark.revision.unwrap().number, 5);
        waits(&publication.next(&cut(&more), at(1030)), broken_at(at(1020), SILENCE_MAX, 0));
    }

    #[test]
    fn silence_is_broken_now_and_then_and_by_a_clock_that_was_set_back() {
        let only = state();
        let mut publication = Publication::new(None, 0, at(0));
        said(publication.next(&cut(&only), at(0)));
        assert!(matches!(said(publication.next(&cut(&only), at(15_000))), Step::Mark(_)));
        assert!(matches!(said(publication.next(&cut(&only), at(100))), Step::Mark(_)));
        waits(&publication.next(&cut(&only), at(200)), broken_at(at(100), SILENCE_MAX, 0));
    }

    #[test]
    fn many_streams_are_told_as_often_as_few_and_each_is_told_in_time() {
        assert_eq!(silence(3), SILENCE_MIN);
        assert_eq!(silence(501), 2 * SILENCE_MIN);
        assert_eq!(silence(10_000), Duration::from_secs(80));
        assert_eq!(silence(1_000_000), SILENCE_LIMIT);
        let only = state();
        let silence = silence(10_000);
        for number in 0..130 {
            let mut publication = Publication::new(None, number, at(number));
            publication.be_silent_for(silence);
            said(publication.next(&cut(&only), at(number)));
            let due = broken_at(at(number), silence, publication.turn);
            assert!(at(number) < due && due <= at(number) + silence, "{number}: {due}");
            let early = due - Duration::from_millis(1);
            waits(&publication.next(&cut(&only), early), due);
            // A little late, as it happens: the next one is not late for that.
            let late = due + Duration::from_millis(3);
            assert!(matches!(said(publication.next(&cut(&only), late)), Step::Mark(_)));
            waits(&publication.next(&cut(&only), late), due + silence);
        }
    }

    #[test]
    fn streams_that_are_told_a_change_at_once_are_told_in_turns_that_all_is_well() {
        let silence = silence(10_000);
        let mut moments = std::collections::BTreeMap::new();
        for stream in 0..10_000 {
            let turn = Publication::new(None, stream, at(0)).turn;
            *moments.entry(broken_at(at(stream % 300), silence, turn)).or_insert(0) += 1;
        }
        assert!(moments.len() <= 66, "{} moments for 10,000 streams", moments.len());
        let most = moments.values().max();
        assert!(most <= Some(&157), "{most:?} in one moment");
    }

    #[test]
    fn reader_that_has_it_all_is_told_so_at_once() {
        let only = state();
        let mut publication = Publication::new(Some(cut(&only)), 0, at(0));
        assert!(matches!(said(publication.next(&cut(&only), at(0))), Step::Mark(_)));
    }
}
