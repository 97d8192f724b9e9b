//! By which time revocations end.

use countersign_identity::Timestamp;

/// The highest time seen by our own clock, in this life and the ones before it, and the last that the server told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Times {
    seen: Timestamp,
    told: Option<Timestamp>,
}

impl Times {
    /// Of a life that begins, after ones that have seen this.
    pub fn new(seen: Timestamp) -> Self {
        Self { seen, told: None }
    }

    /// Our own clock shows this.
    pub fn see(&mut self, now: Timestamp) {
        self.seen = self.seen.max(now);
    }

    /// The server has told its clock, or has not.
    pub fn told(&mut self, clock: Option<Timestamp>) {
        self.told = clock.or(self.told);
    }

    /// The highest time that was seen.
    pub fn seen(&self) -> Timestamp {
        self.seen
    }

    /// The moment at which a rule that the server left out counts as moot: both clocks must have passed its end, so that
    /// neither, when it is set forward, lifts one. Before the server has told its own, none ends.
    pub fn for_rules(&self, now: Timestamp) -> Timestamp {
        self.told.map_or(Timestamp::EPOCH, |told| told.min(self.seen.max(now)))
    }
}
