//! Whether the clock may be believed.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::{Clock, Code, Course, SKEW_ALLOWED, Timestamp};

use crate::refusal::Refused;
use crate::watch::accepted::Accepted;

/// A clock that is ahead by more than this is told of: it may be that the server was away for so long.
const TOLD: Duration = Duration::from_secs(86_400);

/// The highest time that the log or this process has seen. While the clock lies behind it by more than the
/// allowed skew, nothing is issued: such certificates would begin in a past that was already written.
#[derive(Debug)]
pub(crate) struct TimeGuard {
    highest: AtomicI64,
    course: Mutex<Course>,
    /// The last word of an operator on the time that it knows of. A word says nothing of a clock that is ahead after it.
    word: Mutex<Option<Accepted>>,
}

/// A moment: what the clock shows, and how far time has certainly come, which is never later.
///
/// What would be lost for good where the clock is ahead goes by `steady`; what must not be late goes by `now`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) now: Timestamp,
    pub(crate) steady: Timestamp,
}

/// Of a clock that is right.
#[cfg(test)]
impl From<Timestamp> for Moment {
    fn from(now: Timestamp) -> Self {
        Self { now, steady: now }
    }
}

impl TimeGuard {
    /// Begins with the time of the log's last entry, and with what this server wrote down of the time, if it did.
    pub(crate) fn new(in_log: Timestamp, written: Option<Timestamp>, clock: &dyn Clock) -> Self {
        // The entry may have been recorded under a clock that was ahead. What was written down may be of a time before the
        // operator set it back.
        let shown = written.map_or(in_log, |written| written.min(in_log));
        let course = Mutex::new(Course::begin(shown, clock.ran()));
        Self { highest: AtomicI64::new(in_log.micros()), course, word: Mutex::default() }
    }

    /// The time for what takes something away that cannot be had again: no later than the clock, nor, until that has gone
    /// on for an hour from where it is, than what has passed since the log's last entry or the clock's last step. A clock that
    /// jumps ahead lifts no revocation by that.
    ///
    /// # Errors
    /// As [`trusted`](Self::trusted).
    pub(crate) fn steady(&self, clock: &dyn Clock) -> Result<Timestamp, Refused> {
        let now = self.trusted(clock.now())?;
        Ok(self.course().look(now, clock.ran()))
    }

    /// The same also while the clock is behind what was recorded: it is no later than the clock, so nothing ends early by it.
    pub(crate) fn certain(&self, clock: &dyn Clock) -> Timestamp {
        self.moment(clock).steady
    }

    /// The present moment for what must happen whatever the clock says: it is recorded at the highest time that was seen.
    pub(crate) fn recorded_moment(&self, clock: &dyn Clock) -> Moment {
        let Moment { now, steady } = self.moment(clock);
        Moment { now: self.highest(now), steady }
    }

    /// The present moment.
    pub(crate) fn moment(&self, clock: &dyn Clock) -> Moment {
        let now = clock.now();
        Moment { now, steady: self.course().look(now, clock.ran()) }
    }

    /// By how much the clock is ahead of where it was expected, where that is told.
    pub(crate) fn warning(&self, clock: &dyn Clock) -> Option<String> {
        let (now, ran) = (clock.now(), clock.ran());
        let mut course = self.course();
        let steady = course.look(now, ran);
        let ends = course.believed_from().filter(|_| steady + TOLD < now)?;
        Some(format!(
            "the clock says {now}, and by what had passed it should be {steady}: set it right, or, where this server was away \
             for so long, do nothing; rules and records that have ended since are dropped from {ends} on"
        ))
    }

    fn course(&self) -> std::sync::MutexGuard<'_, Course> {
        // It is whole after every statement, so a panic elsewhere does not spoil it.
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was recorded at this time.
    pub(crate) fn recorded(&self, at: Timestamp) {
        self.highest.fetch_max(at.micros(), Ordering::Relaxed);
    }

    /// An operator has said that time has come so far: what passes is counted from there, or from what the clock shows where
    /// that is earlier.
    pub(crate) fn accept(&self, at: Timestamp, clock: &dyn Clock) {
        *self.course() = Course::begin(at.min(clock.now()), clock.ran());
        self.highest.store(at.micros(), Ordering::Relaxed);
    }

    /// Goes by this word of an operator from now on.
    pub(super) fn hear(&self, word: Accepted) {
        *self.word.lock().unwrap_or_else(PoisonError::into_inner) = Some(word);
    }

    /// Whether it goes by it already.
    pub(super) fn has_heard(&self, word: Accepted) -> bool {
        *self.word.lock().unwrap_or_else(PoisonError::into_inner) == Some(word)
    }

    /// The highest time that was seen, `now` included: for what must happen whatever the clock says, and must not end early.
    pub(crate) fn highest(&self, now: Timestamp) -> Timestamp {
        now.max(Timestamp::from_micros(self.highest.load(Ordering::Relaxed)))
    }

    /// The time, if it may be believed.
    ///
    /// # Errors
    /// `not-ready` while the clock is behind.
    pub(crate) fn trusted(&self, now: Timestamp) -> Result<Timestamp, Refused> {
        let highest = Timestamp::from_micros(self.highest.load(Ordering::Relaxed));
        if now + SKEW_ALLOWED < highest {
            return Err(Refused::new(
                Code::NotReady,
                format!(
                    "the clock says {now}, but the log already holds an entry of {highest}: nothing is issued until \
                     the clock is set right; if it is right, a clock was ahead when that was written, and \
                     `countersign resume-issuing --clock` goes on by this one"
                ),
            ));
        }
        Ok(now)
    }
}

#[cfg(test)]
mod tests {
    use countersign_identity::SimClock;

    use super::*;

    const START: Timestamp = Timestamp::from_secs(1_000_000);
    const HOUR: Duration = Duration::from_secs(3600);
    const DAYS: Duration = Duration::from_secs(5 * 86_400);

    fn guard() -> (TimeGuard, SimClock) {
        let clock = SimClock::new(START);
        (TimeGuard::new(START, None, &clock), clock)
    }

    fn ahead(guard: &TimeGuard, clock: &SimClock) -> Duration {
        guard.steady(clock).unwrap().since(START)
    }

    #[test]
    fn time_that_passes_drops_what_has_ended() {
        let (guard, clock) = guard();
        clock.advance(DAYS);
        assert_eq!(ahead(&guard, &clock), DAYS);
        assert_eq!(guard.warning(&clock), None);
    }

    #[test]
    fn clock_that_jumps_ahead_drops_nothing_until_it_has_gone_on_for_an_hour() {
        let (guard, clock) = guard();
        clock.set(START + DAYS);
        assert_eq!(ahead(&guard, &clock), Duration::ZERO);
        assert!(guard.warning(&clock).unwrap().contains("set it right"));
        clock.advance(HOUR / 2);
        assert_eq!(ahead(&guard, &clock), HOUR / 2);
        // It jumps once more: the hour begins anew.
        clock.set(START + 2 * DAYS);
        clock.advance(HOUR / 2);
        assert_eq!(ahead(&guard, &clock), HOUR);
        clock.advance(HOUR / 2);
        assert_eq!(ahead(&guard, &clock), HOUR + HOUR / 2);
        clock.advance(HOUR / 2);
        assert_eq!(ahead(&guard, &clock), 2 * DAYS + HOUR + HOUR / 2);
        assert_eq!(guard.warning(&clock), None);
    }

    #[test]
    fn clock_that_was_set_right_again_goes_on_as_if_nothing_had_been() {
        let (guard, clock) = guard();
        clock.set(START + DAYS);
        clock.advance(HOUR / 2);
        assert_eq!(ahead(&guard, &clock), HOUR / 2);
        clock.set(START + HOUR / 2);
        assert_eq!(ahead(&guard, &clock), HOUR / 2);
        clock.advance(HOUR);
        assert_eq!(ahead(&guard, &clock), HOUR + HOUR / 2);
    }

    #[test]
    fn time_that_an_operator_accepted_is_believed() {
        let clock = SimClock::new(START);
        let guard = TimeGuard::new(START + DAYS, None, &clock);
        assert!(guard.trusted(clock.now()).is_err());
        guard.accept(clock.now(), &clock);
        assert_eq!(ahead(&guard, &clock), Duration::ZERO);
        // Nor does the time that was in the log let it jump there.
        clock.set(START + DAYS);
        assert_eq!(ahead(&guard, &clock), Duration::ZERO);
    }

    #[test]
    fn clock_that_was_set_back_is_expected_to_go_on_from_there() {
        let (guard, clock) = guard();
        clock.advance(HOUR);
        clock.set(START + HOUR - Duration::from_secs(600));
        assert_eq!(ahead(&guard, &clock), HOUR - Duration::from_secs(600));
        clock.set(START + HOUR);
        assert_eq!(ahead(&guard, &clock), HOUR - Duration::from_secs(600));
    }

    #[test]
    fn new_life_believes_no_time_that_was_recorded_under_a_clock_that_was_ahead() {
        let (before, clock) = guard();
        clock.advance(HOUR);
        clock.set(START + DAYS);
        before.recorded(clock.now());
        let written = before.certain(&clock);
        assert_eq!(written.since(START), HOUR);
        let guard = TimeGuard::new(clock.now(), Some(written), &clock);
        assert!(guard.trusted(clock.now()).is_ok(), "it is no earlier than the log");
        assert_eq!(ahead(&guard, &clock), HOUR);
        assert!(guard.warning(&clock).unwrap().contains("set it right"));
        clock.advance(HOUR / 2);
        assert_eq!(ahead(&guard, &clock), HOUR + HOUR / 2);
        // It may be that it was away for so long.
        clock.advance(HOUR / 2);
        assert_eq!(ahead(&guard, &clock), DAYS + HOUR);
    }

    #[test]
    fn new_life_that_wrote_down_a_later_time_than_the_log_has_goes_by_the_log() {
        let clock = SimClock::new(START + DAYS);
        let guard = TimeGuard::new(START, Some(START + DAYS), &clock);
        assert_eq!(ahead(&guard, &clock), Duration::ZERO);
    }

    #[test]
    fn word_that_another_server_heard_at_a_later_time_lets_no_clock_jump_there() {
        let (guard, clock) = guard();
        guard.accept(START + DAYS, &clock);
        clock.set(START + DAYS);
        assert_eq!(ahead(&guard, &clock), Duration::ZERO);
    }

    #[test]
    fn clock_behind_the_log_issues_nothing() {
        let guard = guard().0;
        assert!(guard.trusted(Timestamp::from_secs(999_940)).is_ok());
        assert_eq!(guard.trusted(Timestamp::from_secs(999_939)).unwrap_err().code, Code::NotReady);
        guard.recorded(Timestamp::from_secs(2_000_000));
        guard.recorded(Timestamp::from_secs(1_500_000));
        assert!(guard.trusted(Timestamp::from_secs(1_999_000)).is_err());
    }
}
