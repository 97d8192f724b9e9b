//! How far time has certainly come, whatever the clock was set to.

use std::time::Duration;

use crate::{SKEW_ALLOWED, Timestamp};

/// What a clock should show: time passes from a moment that is known, at the rate at which the clock runs.
///
/// What would be lost for good where the clock is ahead goes by this, and not by what the clock shows. A clock that jumps ahead
/// is believed once it has gone on from there for an hour: it may be that the machine was suspended for so long, which its
/// run does not count.
///
/// ```
/// # use countersign_identity::{Clock, Course, SimClock, Timestamp};
/// # use std::time::Duration;
/// let clock = SimClock::new(Timestamp::from_secs(100_000));
/// let mut course = Course::begin(clock.now(), clock.ran());
/// clock.set(Timestamp::from_secs(900_000));
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(course.look(clock.now(), clock.ran()), Timestamp::from_secs(100_005));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Course {
    from: Mark,
    /// When and where it was first seen ahead of that, as long as it goes on from there.
    ahead: Option<Mark>,
}

/// How long a clock that is ahead of where it was expected has to go on from there before it is believed.
const PROOF: Duration = Duration::from_secs(3600);

/// A moment, and how long the clock had run then.
#[derive(Clone, Copy, Debug)]
struct Mark {
    shown: Timestamp,
    ran: Duration,
}

impl Mark {
    /// What a clock that was not set shows when it has run for so long.
    fn expected(self, ran: Duration) -> Timestamp {
        self.shown + ran.saturating_sub(self.ran)
    }
}

impl Course {
    /// From this moment on, at which the clock had run for so long.
    pub fn begin(shown: Timestamp, ran: Duration) -> Self {
        Self { from: Mark { shown, ran }, ahead: None }
    }

    /// The time by which something may be dropped: what the clock shows, or what it should show where it is ahead of that.
    pub fn look(&mut self, shown: Timestamp, ran: Duration) -> Timestamp {
        let expected = self.from.expected(ran);
        if shown <= expected + SKEW_ALLOWED {
            self.ahead = None;
            if shown + SKEW_ALLOWED < expected {
                // It was set back: from where it is now it may be set ahead again.
                self.from = Mark { shown, ran };
            }
            return shown;
        }
        let here = Mark { shown, ran };
        let goes_on = |from: &Mark| {
            let expected = from.expected(ran);
            shown <= expected + SKEW_ALLOWED && expected <= shown + SKEW_ALLOWED
        };
        let since = *self.ahead.insert(self.ahead.filter(goes_on).unwrap_or(here));
        if ran.saturating_sub(since.ran) < PROOF {
            return expected;
        }
        *self = Self { from: here, ahead: None };
        shown
    }

    /// What a clock that was ahead when it was last looked at shows once it is believed, if it goes on from there.
    pub fn believed_from(&self) -> Option<Timestamp> {
        self.ahead.map(|since| since.expected(since.ran + PROOF))
    }
}
