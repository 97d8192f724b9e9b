//! Since when the agent has run that opens a stream, by our clock.

use std::time::Duration;

use countersign_api::v1;
use countersign_identity::{Clock, SKEW_ALLOWED, Timestamp};

use crate::control::Control;
use crate::watch::TimeGuard;

/// Earlier than all that is issued. As a number it is not the one that says that a moment is not known.
const BEFORE_ALL: Timestamp = Timestamp::from_micros(1);

/// What an agent said of its beginning when it came, and how far we were then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    first: bool,
    /// What the node's clock showed.
    theirs: Timestamp,
    /// How long the agent had run.
    ran: Duration,
    /// How long our clock had run.
    clock_ran: Duration,
    /// The highest time that we had seen, if our clock was behind it.
    behind: Option<Timestamp>,
}

impl Arrival {
    /// That of an agent that says how long it has run.
    pub(crate) fn of(hello: &v1::SyncHello, time: &TimeGuard, clock: &dyn Clock) -> Option<Self> {
        let now = clock.now();
        let behind = time.trusted(now).is_err().then(|| time.highest(now));
        (hello.ran_micros != 0).then(|| Self {
            first: hello.first,
            theirs: Timestamp::from_micros(hello.clock_micros),
            ran: Duration::from_micros(hello.ran_micros),
            clock_ran: clock.ran(),
            behind,
        })
    }

    /// That of an agent of which nothing is known.
    #[cfg(test)]
    pub(super) fn unknown() -> Self {
        let theirs = Timestamp::EPOCH;
        Self { first: false, theirs, ran: Duration::ZERO, clock_ran: Duration::ZERO, behind: None }
    }

    /// Since when the agent has run: never before it did, as far as can be told, since what was issued before that it may not
    /// know. A clock that was set back is no reason to think that it began earlier, nor one that lags. None while ours is
    /// behind by nobody knows how much: everything may have been issued before.
    pub(super) fn since(&self, time: &TimeGuard, clock: &dyn Clock) -> Option<Timestamp> {
        if self.first {
            // There was none before it, so that all was issued to it. Whoever attested it did so by another clock, perhaps.
            return Some(BEFORE_ALL);
        }
        let now = time.trusted(clock.now()).ok()?;
        let passed = clock.ran().saturating_sub(self.clock_ran);
        // Another server may have issued by a clock that is right, with nothing of it here yet: a node whose clock agrees with
        // that one shows it.
        let theirs = Some(self.theirs + passed).filter(|theirs| now + SKEW_ALLOWED < *theirs);
        let highest = time.highest(now);
        let since = highest.max(theirs.unwrap_or(now)) - passed - self.ran;
        // A clock that was behind and only ran on since is behind still, and the agent may have begun at any time after what
        // was in the log when it came. Unless an operator has said since that the log is wrong.
        let floor = self.behind.filter(|behind| *behind <= highest);
        Some(since.max(floor.unwrap_or(since)))
    }
}

/// Reckons since when the agents have run that came while our clock was behind, once it is not any more.
pub(crate) fn reckon(control: &Control) {
    let (time, clock) = (&control.desk.time, &*control.clock);
    control.roster.reckon(|arrival| arrival.since(time, clock));
}

#[cfg(test)]
mod tests {
    use countersign_identity::SimClock;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_795_262_400);
    const RAN: Duration = Duration::from_secs(10);

    fn ahead(secs: u64) -> Timestamp {
        NOW + Duration::from_secs(secs)
    }

    /// The arrival of an agent that has run for ten seconds, with the log and its own clock so many seconds ahead of ours.
    fn arrival(log: u64, own: u64) -> (Arrival, TimeGuard, SimClock) {
        let clock = SimClock::new(NOW);
        let time = TimeGuard::new(ahead(log), None, &clock);
        let (clock_micros, ran_micros) = (ahead(own).micros(), 10_000_000);
        let hello = v1::SyncHello { clock_micros, ran_micros, ..Default::default() };
        (Arrival::of(&hello, &time, &clock).unwrap(), time, clock)
    }

    #[track_caller]
    fn runs_since(log: u64, own: u64, expected: Option<u64>) {
        let (arrival, time, clock) = arrival(log, own);
        let expected = expected.map(|secs| ahead(secs) - RAN);
        assert_eq!(arrival.since(&time, &clock), expected, "log {log}, own {own}");
    }

    #[test]
    fn agent_began_no_earlier_than_it_did_by_a_clock_that_is_behind() {
        runs_since(0, 0, Some(0));
        runs_since(60, 0, Some(60));
        runs_since(61, 0, None);
        // So far clocks may differ, and that is allowed for.
        runs_since(0, 60, Some(0));
        runs_since(0, 61, Some(61));
        runs_since(60, 300, Some(300));
        runs_since(61, 300, None);
    }

    /// The same, so long after it came, with our clock set to this many seconds after its first moment.
    #[track_caller]
    fn came(log: u64, passed: u64, now: u64, expected: Option<u64>) {
        let (arrival, time, clock) = arrival(log, 0);
        clock.advance(Duration::from_secs(passed));
        clock.set(ahead(now));
        let expected = expected.map(|secs| ahead(secs) - RAN);
        assert_eq!(arrival.since(&time, &clock), expected, "log {log}, {now} after {passed}");
    }

    #[test]
    fn since_when_an_agent_runs_is_known_once_a_clock_that_was_behind_is_right() {
        came(600, 30, 30, None);
        came(600, 30, 539, None);
        // As far behind as clocks may be, and the agent has begun after the log's last entry.
        came(600, 30, 540, Some(610));
        came(600, 30, 1000, Some(970));
        // It was not set and has only run on.
        came(600, 700, 700, Some(610));
    }

    #[test]
    fn log_that_an_operator_does_not_believe_makes_no_agent_younger() {
        let (arrival, time, clock) = arrival(86_400, 0);
        clock.advance(Duration::from_secs(30));
        assert_eq!(arrival.since(&time, &clock), None);
        time.accept(clock.now(), &clock);
        assert_eq!(arrival.since(&time, &clock), Some(NOW - RAN));
    }
}
