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
/// The longest silence: a mark then says that all is still well, and what the server's clock shows.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// What a stream has been told so far.
#[derive(Debug)]
pub(crate) struct Publication {
    told: Option<Arc<Slice>>,
    spoken: Timestamp,
}

/// What to do next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send this now.
    Say(Step),
    /// Nothing before this moment, unless the state moves.
    Wait(Timestamp),
}

impl Publication {
    /// The reader already has this slice, or nothing.
    pub(crate) fn new(told: Option<Arc<Slice>>, now: Timestamp) -> Self {
        // A reader that has it all is told so at once.
        Self { told, spoken: now - SILENCE_MAX }
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
        // A clock that was set back must not silence a stream.
        let since = if now < self.spoken { SILENCE_MAX } else { now.since(self.spoken) };
        let delta = current.since(told);
        if !delta.is_empty() {
            self.spoken = now;
            self.told = Some(Arc::clone(current));
            return Next::Say(Step::Changes(changes(current.revision, &delta)));
        }
        let moved = told.revision < current.revision;
        let pause = if moved { MARK_PAUSE } else { SILENCE_MAX };
        if since < pause {
            return Next::Wait(self.spoken + pause);
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

fn changes(at: Revision, delta: &Delta) -> v1::Changes {
    let (put, gone) = (delta.put.clone(), delta.gone.clone());
    v1::Changes { revision: Some(revision(at)), put, gone, witness: Bytes::new() }
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
        let mut publication = Publication::new(None, at(0));
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
        waits(&publication.next(&cut(&more), at(1030)), at(1020) + SILENCE_MAX);
    }

    #[test]
    fn silence_is_broken_now_and_then_and_by_a_clock_that_was_set_back() {
        let only = state();
        let mut publication = Publication::new(None, at(0));
        said(publication.next(&cut(&only), at(0)));
        assert!(matches!(said(publication.next(&cut(&only), at(15_000))), Step::Mark(_)));
        assert!(matches!(said(publication.next(&cut(&only), at(100))), Step::Mark(_)));
        waits(&publication.next(&cut(&only), at(200)), at(15_100));
    }

    #[test]
    fn reader_that_has_it_all_is_told_so_at_once() {
        let only = state();
        let mut publication = Publication::new(Some(cut(&only)), at(0));
        assert!(matches!(said(publication.next(&cut(&only), at(0))), Step::Mark(_)));
    }
}
