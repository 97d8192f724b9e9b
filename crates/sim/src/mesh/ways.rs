//! Whether a caller can reach an instance and is let in there, and since when: by what the world knows of both, not by what they
//! decide.

use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_proxy::health::REST_LONGEST;
use countersign_proxy::tries::Tries;

use super::dialling::CONNECT_TIMEOUT;
use crate::manifests::call_policy_name;
use crate::points::Point;
use crate::world::World;

/// One address of a caller.
pub(super) struct Way {
    pub(super) instance: usize,
    /// Since when it has been open without a break.
    pub(super) since: Option<Timestamp>,
    /// Until when it stays so by itself.
    until: Timestamp,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Arrives,
    /// The machine says that nobody listens.
    Refused,
    Silent,
}

/// What a handshake is to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admits {
    Yes,
    No,
    /// A clock is off, or one of the two has nothing to show.
    Unsure,
}

impl Way {
    pub(super) const fn to(instance: usize) -> Self {
        Self { instance, since: None, until: Timestamp::LAST }
    }
}

impl World {
    pub(super) fn reach(&self, from: usize, instance: usize) -> Reach {
        let to = self.mesh.instances[instance].machine;
        let asleep =
            |index: usize| self.machines[index].asleep.is_some_and(|until| self.now < until);
        let cut_off = self.machines[from].cut_off || self.machines[to].cut_off;
        let apart = cut_off || self.mesh.apart.contains(&(from, instance));
        // A machine always reaches itself.
        if asleep(to) || (from != to && apart) {
            Reach::Silent
        } else if self.mesh.instances[instance].up {
            Reach::Arrives
        } else {
            Reach::Refused
        }
    }

    pub(super) fn admits(&self, from: usize, instance: usize) -> Admits {
        let (ours, theirs) = (self.calling(from), self.called(instance));
        let policy = call_policy_name(from);
        let allowed = ours.policies.contains(&policy) && theirs.policies.contains(&policy);
        let to = self.mesh.instances[instance].machine;
        let right = self.machines[from].skew == 0 && self.machines[to].skew == 0;
        if !right || valid_until(ours).is_none() || valid_until(theirs).is_none() {
            return Admits::Unsure;
        }
        let ends = [ours, theirs];
        let refused =
            ends.into_iter().any(|refuser| ends.into_iter().any(|it| self.refuses(refuser, it)));
        if allowed && !refused { Admits::Yes } else { Admits::No }
    }

    /// Looks at all ways of a caller.
    pub(super) fn note_ways(&mut self, from: usize) {
        for place in 0..self.mesh.callers[from].ways.len() {
            let instance = self.mesh.callers[from].ways[place].instance;
            let awake = self.machines[from].asleep.is_none_or(|until| until <= self.now);
            let reached = awake && self.reach(from, instance) == Reach::Arrives;
            let open = reached && self.admits(from, instance) == Admits::Yes;
            let (ours, theirs) = (self.calling(from), self.called(instance));
            let until = valid_until(ours).into_iter().chain(valid_until(theirs)).min();
            let (now, way) = (self.now, &mut self.mesh.callers[from].ways[place]);
            if !open {
                way.since = None;
            } else if way.since.is_none() || way.until < now {
                way.since = Some(now);
            }
            way.until = until.unwrap_or(now);
        }
    }

    pub(super) fn note_all_ways(&mut self) {
        (0..self.mesh.callers.len()).for_each(|from| self.note_ways(from));
    }

    /// Something went wrong on a way that is open otherwise.
    pub(super) fn disturbed(&mut self, from: usize, instance: usize) {
        let now = self.now;
        let ways = self.mesh.callers[from].ways.iter_mut();
        for way in ways.filter(|way| way.instance == instance && way.since.is_some()) {
            way.since = Some(now);
        }
    }

    /// Whoever has been open for as long as an address rests, and is probed, is not passed over.
    pub(super) fn check_return(&mut self, from: usize, tries: &Tries) {
        // A try that was under way when it opened, the rest after that, a probe; and the ways of some messages.
        let probe = CONNECT_TIMEOUT + Duration::from_millis(4 * self.settings.delay_max + 100);
        let within = CONNECT_TIMEOUT + REST_LONGEST + probe;
        let open = |since: Timestamp| since + within <= self.now;
        let mut ways = self.mesh.callers[from].ways.iter();
        if let Some(first) = ways.position(|way| way.since.is_some_and(open)) {
            let (address, now) = (tries.address(), self.machines[from].now());
            assert!(
                address <= first,
                "a{from} goes to its address {address} at {now}, and passes over {first}, which has long been open"
            );
            self.mesh.report.owed += 1;
        }
    }
}

/// Until when what a point shows is valid, by its own clock; `None` when it is not.
pub(super) fn valid_until(point: &Point) -> Option<Timestamp> {
    let own = point.steps.trust().identity()?;
    let now = point.steps.trust().clock().now();
    // What was taken under a clock that was ahead may not be valid yet for anybody else.
    let valid = own.leaf().validity().not_before <= now && now <= own.expires();
    valid.then(|| own.expires())
}
