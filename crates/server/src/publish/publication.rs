//! What one stream is told, and when: a snapshot, then every change of its slice at once, else a mark now and then.

use std::sync::Arc;
use std::time::Duration;

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

    /// Decides what the reader is told at `now`, when its slice is `current`.
    pub(crate) fn next(&mut self, current: &Arc<Slice>, now: Timestamp) -> Next {
        let Some(told) = &self.told else {
            self.spoken = now;
            self.told = Some(Arc::clone(current));
            return Next::Say(Step::Snapshot(v1::Snapshot {
                revision: Some(revision(current.revision)),
                records: current.wire_records(),
                clock_micros: now.micros(),
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
        }))
    }
}

fn changes(at: Revision, delta: &Delta) -> v1::Changes {
    v1::Changes { revision: Some(revision(at)), put: delta.put.clone(), gone: delta.gone.clone() }
}

fn revision(revision: Revision) -> v1::Revision {
    v1::Revision { incarnation: revision.incarnation, number: revision.number }
}
