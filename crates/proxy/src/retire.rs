//! When a connection stops taking requests: pure arithmetic on its two ends.
//!
//! A connection is cut by the side to which the earlier-expiring certificate was shown, the moment that it
//! expires. Before that the dialling side moves to a successor, and only later does the accepting side announce
//! that it closes, so that on a healthy pair no request is ever on its way when a connection ends.
//!
//! ```text
//! connected ─────────────── 3/4 ─ 13/16 ─ 7/8 ─────── end
//!            requests        │      │      │
//!            successor opened┘      │      └ acceptor announces (Connection: close, GOAWAY)
//!            no more requests at the latest
//! ```

use std::time::Duration;

use countersign_identity::Timestamp;

use crate::bounds::IDLE_DIALLED;

/// How long an idle connection to a peer is kept.
pub const IDLE_MOST: Duration = IDLE_DIALLED;
/// A connection that was used within this time gets a successor when it retires.
const IN_USE: Duration = Duration::from_secs(5);

/// A share of a span, so that connections opened together are not all renewed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jitter(
    /// From 0, not at all, to 255, all of it.
    pub u8,
);

/// The plan for one connection that we dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retirement {
    /// From here on a successor is opened, if there is anything to do for it.
    pub successor_due: Timestamp,
    /// From here on it gets no request, whether the successor is there or not.
    pub last_request: Timestamp,
}

impl Retirement {
    /// Of a connection that was opened at `connected` and is cut at `ends`.
    pub fn dialled(connected: Timestamp, ends: Timestamp, jitter: Jitter) -> Self {
        let life = ends.since(connected);
        let three_quarters = life / 4 * 3;
        // Up to 5 % earlier, never later: the acceptor's announcement must come after.
        let earlier = three_quarters / 20 * u32::from(jitter.0) / 255;
        Self {
            successor_due: connected + three_quarters - earlier,
            last_request: connected + life / 16 * 13,
        }
    }
}

/// Whether a connection that retires at `now` and was used last at `used` gets a successor, so that nobody waits for one.
pub fn is_succeeded(used: Timestamp, now: Timestamp) -> bool {
    now.since(used) < IN_USE
}

/// Whether a connection that stands may carry a request at `now`, or is left to be closed: one that nobody used for a while is
/// about to be closed by somebody.
pub fn is_fresh(used: Timestamp, now: Timestamp, idle: Duration) -> bool {
    now.since(used) < idle
}

/// When the accepting side announces that it will close.
pub fn announced(connected: Timestamp, ends: Timestamp) -> Timestamp {
    connected + ends.since(connected) / 8 * 7
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_secs(1_000_000);

    #[test]
    fn dialler_stops_before_the_acceptor_announces_whatever_the_jitter_and_the_life() {
        for millis in [1, 10, 999, 5_000, 10_000, 3_600_000, 86_400_000] {
            let ends = START + Duration::from_millis(millis);
            for jitter in [0, 1, 128, 255] {
                let plan = Retirement::dialled(START, ends, Jitter(jitter));
                assert!(START <= plan.successor_due, "{millis} {jitter}");
                assert!(plan.successor_due <= plan.last_request, "{millis} {jitter}");
                assert!(plan.last_request <= announced(START, ends), "{millis} {jitter}");
                assert!(announced(START, ends) < ends, "{millis} {jitter}");
            }
        }
    }

    #[test]
    fn successor_is_due_between_71_and_75_percent() {
        let ends = START + Duration::from_secs(1000);
        let due = |jitter| Retirement::dialled(START, ends, Jitter(jitter)).successor_due;
        assert_eq!(due(0), START + Duration::from_secs(750));
        assert_eq!(due(255), START + Duration::from_micros(712_500_000));
    }

    #[test]
    fn a_connection_that_has_already_ended_is_retired_at_once() {
        let plan = Retirement::dialled(START, START, Jitter(255));
        assert_eq!((plan.successor_due, plan.last_request), (START, START));
        assert_eq!(announced(START, START), START);
    }
}
