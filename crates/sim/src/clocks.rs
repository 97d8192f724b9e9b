//! The clocks of a world: true time, and by how much each server and each machine sees it otherwise.

use std::time::Duration;

use countersign_identity::{Lifetime, Revocation, Timestamp, backdate};

use crate::chaos::Fault;
use crate::world::World;

/// A moment as a clock shows it that is ahead by so many microseconds.
pub(crate) fn skewed(moment: Timestamp, micros: i64) -> Timestamp {
    Timestamp::from_micros(moment.micros().saturating_add(micros))
}

/// Whether a rule must be in force still where the less wrong of two clocks, the servers' and the machine's, has been ahead by
/// so many microseconds at most: both have to pass its end before it may be let go of, so neither lifts it alone.
pub(crate) fn must_hold(rule: &Revocation, now: Timestamp, ahead: i64) -> bool {
    !rule.is_moot(skewed(now, ahead))
}

impl World {
    /// Whether servers' clocks may be further off than certificates are backdated: then not everybody can be served.
    pub(crate) fn is_far_off(&self) -> bool {
        let [shortest, ..] = self.lifetimes();
        let shortest = Lifetime::from_secs(shortest.as_secs()).expect("it is a lifetime");
        backdate(shortest) < self.settings.server_skew
    }

    /// How far off a server's clock is next, in microseconds, either way.
    pub(crate) fn any_server_skew(&self) -> i64 {
        let most = i64::try_from(self.settings.server_skew.as_micros()).unwrap_or(0);
        let drawn = self.below(most.unsigned_abs() * 2 + 1);
        i64::try_from(drawn).unwrap_or(0) - most
    }

    /// Sets each server's clock to a skew of its own.
    pub(crate) fn draw_server_clocks(&mut self) {
        for server in 0..self.control.count() {
            if !self.settings.server_skew.is_zero() {
                let skew = self.any_server_skew();
                self.befall(Fault::ServerClockSteps(server, skew));
            }
        }
    }

    /// Sets the clock of one server by so many microseconds from true time. Whoever sleeps on it is woken, and looks again.
    pub fn set_server_clock(&mut self, server: usize, skew: i64) {
        self.control.set_skew(server, skew);
        self.servers_ahead = self.servers_ahead.max(skew);
        for key in self.control.lines_at(server) {
            self.poll(key);
        }
    }

    /// Whether a rule must be in force at the points of a machine still.
    pub(crate) fn must_hold(&self, rule: &Revocation, index: usize) -> bool {
        must_hold(rule, self.now, self.servers_ahead.min(self.machines[index].ahead))
    }

    /// How long SVIDs live here: as they were declared, or as operators change it. The last of them is the longest.
    pub(crate) fn lifetimes(&self) -> [Duration; 3] {
        let lifetime: Lifetime = self.settings.lifetime.parse().expect("it is a lifetime");
        let lifetime = lifetime.duration();
        [lifetime * 2 / 3, lifetime, lifetime * 3 / 2]
    }

    /// How long anything lasts that is issued from now on, by true time: what a server whose clock is ahead issues ends later.
    pub(crate) fn lasting(&self, lifetime: Duration) -> Duration {
        lifetime + Duration::from_micros(self.servers_ahead.unsigned_abs())
    }
}
