//! How far time had come, kept beside the store: by this a server that starts does not believe a time that was recorded under
//! a clock that was ahead.
//!
//! In a file of its own, because an earlier version takes a `seen.json` with a member that it does not know for none, and would
//! not notice then that its store lost something. It does not read this one, and goes by the log alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_identity::{Clock, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Notes, TimeGuard};
use crate::config::StartError;
use crate::directory::write_whole;

/// How far time has come since it was written down when it is again. A server that is back as soon after it was killed is
/// within the allowed skew of it, and does not count itself as away.
const STEP: Duration = Duration::from_secs(30);
const FORMAT: u64 = 1;

/// What is in the file. A member that a later version adds is no reason to know nothing.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    format: u64,
    steady: Timestamp,
}

/// The time that a server keeps.
#[derive(Debug)]
pub(crate) struct KeptTime {
    data: PathBuf,
    /// What was written last, and how large the log was then.
    last: Option<(Timestamp, u64)>,
    notes: Notes,
}

fn path(data: &Path) -> PathBuf {
    data.join("time.json")
}

impl KeptTime {
    /// How far time had come in an earlier life of this server. What cannot be read counts as nothing: the log knows more.
    pub(crate) fn read(data: &Path) -> Option<Timestamp> {
        let text = std::fs::read(path(data)).ok()?;
        let written: Written = serde_json::from_slice(&text).ok()?;
        (written.format == FORMAT).then_some(written.steady)
    }

    /// Writes it down.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn write(data: &Path, steady: Timestamp) -> Result<(), StartError> {
        let written = Written { format: FORMAT, steady };
        let text = serde_json::to_vec(&written).expect("numbers and times have a JSON form");
        write_whole(&path(data), &text)
    }

    /// Nothing was written in this life.
    pub(crate) fn new(data: PathBuf) -> Self {
        Self { data, last: None, notes: Notes::of("how far time has come") }
    }

    /// Writes it down where it has moved by a step, or at all when this life ends; nothing as long as nothing is recorded,
    /// since a new life goes by the log's last entry where that is earlier.
    pub(crate) async fn keep(
        &mut self,
        time: &TimeGuard,
        clock: &dyn Clock,
        log_size: u64,
        ends: Ends,
    ) {
        // By a clock that is behind the log nothing is said of the time.
        let Ok(steady) = time.steady(clock) else { return };
        if !self.is_due(steady, log_size, ends) {
            return;
        }
        let data = self.data.clone();
        if self.notes.write(move || Self::write(&data, steady)).await {
            self.last = Some((steady, log_size));
        }
    }

    fn is_due(&self, steady: Timestamp, log_size: u64, ends: Ends) -> bool {
        let Some((written, size)) = self.last else { return true };
        // A time that was set back may not wait: what was written is later than what it is.
        let moved = steady < written || STEP <= steady.since(written);
        size != log_size && (moved || ends == Ends::Now)
    }
}

/// Whether a server's life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    Now,
    Later,
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use countersign_identity::SimClock;
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};

    use super::*;

    const START: Timestamp = Timestamp::from_secs(1_000_000);

    #[test]
    fn what_was_written_is_read_and_nonsense_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        assert_eq!(KeptTime::read(data), None);
        KeptTime::write(data, START).unwrap();
        assert_eq!(KeptTime::read(data), Some(START));
        let later = format!(r#"{{"format":1,"more":true,"steady":"{START}"}}"#);
        std::fs::write(path(data), later).unwrap();
        assert_eq!(KeptTime::read(data), Some(START));
        for nonsense in ["{", "{\"format\":2,\"steady\":\"2026-11-22T12:00:00Z\"}"] {
            std::fs::write(path(data), nonsense).unwrap();
            assert_eq!(KeptTime::read(data), None, "{nonsense}");
        }
    }

    #[tokio::test]
    async fn time_is_written_when_it_moved_by_a_step_and_something_was_recorded_and_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let clock = SimClock::new(START);
        let time = TimeGuard::new(START, None, &clock);
        let mut kept = KeptTime::new(folder.path().to_owned());
        let second = Duration::from_secs(1);
        for (passed, log_size, ends, written) in [
            (0, 1, Ends::Later, 0),
            (29, 2, Ends::Later, 0),
            (30, 2, Ends::Later, 30),
            (3000, 2, Ends::Later, 30),
            (3001, 3, Ends::Later, 3001),
            (3002, 3, Ends::Now, 3001),
            (3003, 4, Ends::Now, 3003),
        ] {
            clock.advance((START + second * passed).since(clock.now()));
            kept.keep(&time, &clock, log_size, ends).await;
            let found = KeptTime::read(folder.path()).unwrap();
            assert_eq!(found, START + second * written, "after {passed} s");
        }
        // A clock that was set back, as far as it may, is not ahead of what is kept.
        time.accept(START, &clock);
        clock.set(START);
        kept.keep(&time, &clock, 5, Ends::Later).await;
        assert_eq!(KeptTime::read(folder.path()), Some(START));
    }

    #[tokio::test]
    async fn clock_that_jumps_ahead_is_not_what_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let clock = SimClock::new(START);
        let time = TimeGuard::new(START, None, &clock);
        let mut kept = KeptTime::new(folder.path().to_owned());
        let days = Duration::from_secs(5 * 86_400);
        clock.set(START + days);
        clock.advance(Duration::from_secs(90));
        time.recorded(clock.now());
        kept.keep(&time, &clock, 2, Ends::Later).await;
        let written = KeptTime::read(folder.path());
        assert_eq!(written, Some(START + Duration::from_secs(90)));
        let next = TimeGuard::new(clock.now(), written, &clock);
        assert_eq!(next.certain(&clock), START + Duration::from_secs(90));
    }

    /// How loud each event was that came about.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<Level>>>);

    impl Subscriber for Heard {
        fn enabled(&self, _of: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _of: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _of: &Id, _values: &Record<'_>) {}

        fn record_follows_from(&self, _of: &Id, _before: &Id) {}

        fn event(&self, event: &Event<'_>) {
            self.0.lock().unwrap().push(*event.metadata().level());
        }

        fn enter(&self, _span: &Id) {}

        fn exit(&self, _span: &Id) {}
    }

    #[tokio::test]
    async fn time_that_cannot_be_written_is_tried_each_time_and_told_once_until_it_is_well() {
        let heard = Heard::default();
        let _hearing = tracing::subscriber::set_default(heard.clone());
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let clock = SimClock::new(START);
        let time = TimeGuard::new(START, None, &clock);
        let mut kept = KeptTime::new(data.clone());
        let told = || std::mem::take(&mut *heard.0.lock().unwrap());
        let mut log_size = 0;
        for round in 1..3 {
            for (is_there, loudness) in [(false, Level::WARN), (true, Level::INFO)] {
                if is_there {
                    std::fs::create_dir(&data).unwrap();
                }
                for _ in 0..5 {
                    clock.advance(STEP);
                    log_size += 1;
                    kept.keep(&time, &clock, log_size, Ends::Later).await;
                    assert_eq!(KeptTime::read(&data), is_there.then(|| clock.now()));
                }
                assert_eq!(told(), [loudness], "round {round}");
            }
            std::fs::remove_dir_all(&data).unwrap();
        }
    }
}
