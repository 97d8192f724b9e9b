//! What may happen in which order, what must hold then, and what breaks it.

use std::collections::BTreeSet;

use countersign_api::admin::{Cause, Goal, RootState, Step};
use countersign_identity::KeyId;

use super::{
    Event, Flaw, Ordered, Point, Reached, START, System, TICKS_MAX, Trouble, World, key, root,
    trusted,
};
use crate::rotate::order::Order;
use crate::rotate::walk::Walk;
use crate::tests::explore::{Claim, Model, breaks, claim, holds};

const STATES_MAX: usize = 400_000;

/// A point, as far as its future goes: whom it trusts, and which marks of the roots' walk it has reached.
type PointKey = (bool, [Reached; 3], Option<Reached>, bool, Option<(KeyId, u8)>);

/// An order with what is done of it, and what is forced.
type OrderKey = (Goal, KeyId, Vec<Step>, Vec<Step>);

#[derive(PartialEq, Eq, Hash)]
pub(super) struct WorldKey {
    roots: Vec<(KeyId, RootState, Option<Cause>, bool, bool)>,
    orders: [Option<OrderKey>; 2],
    ended: bool,
    waited: Vec<bool>,
    points: Vec<PointKey>,
    counts: [u8; 6],
    retired: BTreeSet<KeyId>,
    leaked: Option<KeyId>,
    excuses: (bool, bool),
    torn: Option<KeyId>,
}

impl Model for System {
    type State = World;
    type Event = Event;
    type Key = WorldKey;

    fn begin(&self) -> World {
        let walk = Walk {
            roots: vec![root(1, RootState::Active, START)],
            order: None,
            last: None,
            paused: None,
            request: None,
        };
        let leaf = Some((key(1), 0));
        let point =
            Point { reachable: true, applied: 0, kept: 0, acknowledged: Some(0), leaf, missed: 0 };
        World {
            bundles: vec![trusted(&walk)],
            walk,
            points: vec![point; self.points],
            tick: 0,
            ordered: 0,
            made: 1,
            retired: BTreeSet::new(),
            leaked: None,
            left_behind: false,
            cut_short: false,
            torn: None,
            forces: 0,
            rollbacks: 0,
            crashes: 0,
            partings: 0,
        }
    }

    fn events(&self, world: &World) -> Vec<Event> {
        let mut events = vec![Event::Order, Event::Walk];
        let mut may = |trouble, event| {
            if self.may(trouble) {
                events.push(event);
            }
        };
        may(Trouble::Force, Event::Force);
        may(Trouble::Rollback, Event::Rollback);
        may(Trouble::Crash, Event::ServerRestarts);
        may(Trouble::Time, Event::TimePasses);
        for index in 0..world.points.len() {
            may(Trouble::Part, Event::Part(index));
            may(Trouble::Restart, Event::PointRestarts(index));
        }
        for index in 0..world.points.len() {
            events.extend([
                Event::Apply(index),
                Event::Acknowledge(index),
                Event::Return(index),
                Event::Reissue(index),
            ]);
        }
        events
    }

    fn step(&self, last: &World, event: Event) -> Option<World> {
        let mut world = last.clone();
        let number = world.number();
        let happened = match event {
            Event::Order => match self.orders.get(world.ordered) {
                Some(ordered) => world.order(*ordered),
                None => false,
            },
            Event::Walk => world.walks(self.flaw),
            Event::Force => world.force(),
            Event::Rollback => world.rolls_back(self.flaw),
            Event::TimePasses => {
                world.tick += 1;
                world.tick <= TICKS_MAX
            }
            // What it heard is gone, and every stream; what it wrote is there.
            Event::ServerRestarts => {
                world.crashes += 1;
                for point in &mut world.points {
                    (point.acknowledged, point.reachable) = (None, false);
                }
                world.crashes <= 1
            }
            Event::Apply(index) => {
                let point = &mut world.points[index];
                let news = point.reachable && point.applied < number;
                point.applied = number;
                news
            }
            Event::Acknowledge(index) => {
                let point = &mut world.points[index];
                let news = point.reachable && point.acknowledged < Some(point.applied);
                point.acknowledged = Some(point.applied);
                if self.flaw != Flaw::AcknowledgedBeforeKept {
                    point.kept = point.applied;
                }
                news && self.flaw != Flaw::Deaf
            }
            Event::Part(index) => {
                world.partings += 1;
                std::mem::take(&mut world.points[index].reachable) && world.partings <= 1
            }
            // The first that a stream says is all that there is.
            Event::Return(index) => {
                let point = &mut world.points[index];
                point.applied = number;
                !std::mem::replace(&mut point.reachable, true)
            }
            Event::PointRestarts(index) => {
                let point = &mut world.points[index];
                let loses = point.kept < point.applied;
                point.applied = point.kept;
                loses
            }
            Event::Reissue(index) => world.reissue(index),
        };
        happened.then_some(world)
    }

    fn key(&self, world: &World) -> WorldKey {
        let roots = world.walk.roots.iter().map(|root| {
            (root.key, root.state, root.tainted, root.superseded.is_some(), root.dropped.is_some())
        });
        let order = |order: &Order| {
            let done: BTreeSet<Step> = order.done.iter().map(|done| done.step).collect();
            let forced = order.forced.keys().copied().collect();
            (order.goal, order.from, done.into_iter().collect(), forced)
        };
        let orders = [&world.walk.order, &world.walk.paused];
        let mut points: Vec<PointKey> = world
            .points
            .iter()
            .map(|point| {
                let known = point.acknowledged.map(|number| world.reached(number));
                let reached = [point.applied, point.kept, point.missed].map(|at| world.reached(at));
                let caught_up = point.missed <= point.kept;
                (point.reachable, reached, known, caught_up, point.leaf)
            })
            .collect();
        // Points are alike: which of them it is makes no difference.
        points.sort();
        WorldKey {
            roots: roots.collect(),
            orders: orders.map(|one| one.as_ref().map(order)),
            ended: world.walk.last.as_ref().is_some_and(|last| last.ended.is_some()),
            waited: world.walk.roots.iter().map(|root| root.since < world.now()).collect(),
            points,
            counts: [
                world.tick,
                u8::try_from(world.ordered).expect("a few orders"),
                world.forces,
                world.rollbacks,
                world.crashes,
                world.partings,
            ],
            retired: world.retired.clone(),
            leaked: world.leaked,
            excuses: (world.left_behind, world.cut_short),
            torn: world.torn,
        }
    }

    fn claims(&self) -> Vec<Claim<Self>> {
        vec![
            claim::<Self>(SIGNS, |_, world| {
                world.walk.active().is_ok_and(|root| trusted(&world.walk).contains(&root.key))
            }),
            claim::<Self>(KNOWN, |_, world| {
                let Ok(signs) = world.walk.active() else { return true };
                let mut live = world.up_to_date();
                world.left_behind
                    || live.all(|point| world.bundle(point.applied).contains(&signs.key))
            }),
            claim::<Self>(VERIFIED, |_, world| {
                let shown: BTreeSet<KeyId> = world.shown().collect();
                world.left_behind
                    || world.cut_short
                    || world.up_to_date().all(|point| shown.is_subset(world.bundle(point.applied)))
            }),
            claim::<Self>(SERVED, |_, world| {
                let in_service = |key: KeyId| {
                    let root = world.walk.root(key);
                    root.is_some_and(|root| root.is_trusted() && root.superseded.is_none())
                };
                world.cut_short || world.shown().all(in_service)
            }),
            claim::<Self>(GONE, |_, world| trusted(&world.walk).is_disjoint(&world.retired)),
            claim::<Self>(LEAKED, |_, world| {
                let trusts = |leaked: &KeyId| trusted(&world.walk).contains(leaked);
                world.walk.is_recovering() || !world.leaked.as_ref().is_some_and(trusts)
            }),
            claim::<Self>(ENDS, |system, world| world.goes_on(system.flaw)),
        ]
    }

    fn possible(&self) -> Vec<Claim<Self>> {
        let mut possible =
            vec![claim::<Self>("an order ends, whatever went wrong", |system, world| {
                let ended = world.walk.last.as_ref().is_some_and(|last| last.ended.is_some());
                let parted = !system.may(Trouble::Part) || world.partings == 1;
                let crashed = !system.may(Trouble::Crash) || world.crashes == 1;
                ended && parted && crashed && world.forces == 0 && !world.retired.is_empty()
            })];
        if self.may(Trouble::Rollback) {
            possible.push(claim::<Self>("an order is taken back", |_, world| world.rollbacks == 1));
        }
        possible
    }
}

impl System {
    fn may(&self, trouble: Trouble) -> bool {
        self.troubles.contains(&trouble)
    }
}

const SIGNS: &str = "exactly one root signs, and it is trusted";
const KNOWN: &str = "every live point trusts the root that signs, so that all have it in common";
const VERIFIED: &str = "no live point is shown a leaf under a root that it does not trust";
const SERVED: &str = "nothing goes out of service that a live point shows";
const GONE: &str = "a retired root does not come back";
const LEAKED: &str = "a leaked root is trusted only while its recovery is under way";
const ENDS: &str = "every order goes on, once everybody can be reached";

const ALL: &[Trouble] = &[
    Trouble::Force,
    Trouble::Rollback,
    Trouble::Crash,
    Trouble::Restart,
    Trouble::Part,
    Trouble::Time,
];

#[track_caller]
fn two_points(order: &'static [Ordered], troubles: &'static [Trouble]) {
    print!("{order:?} {troubles:?}: ");
    holds(&System { flaw: Flaw::None, orders: order, points: 2, troubles }, 180, STATES_MAX);
}

#[test]
fn two_points_are_rotated_though_streams_are_lost_and_leaves_end() {
    two_points(&[Ordered::Rotate], &[Trouble::Part, Trouble::Time]);
}

#[test]
fn two_points_are_rotated_though_all_processes_restart() {
    two_points(&[Ordered::Rotate], &[Trouble::Crash, Trouble::Restart]);
}

#[test]
fn two_points_are_rotated_by_hand() {
    two_points(&[Ordered::Rotate], &[Trouble::Force, Trouble::Rollback]);
}

#[test]
fn two_points_recover_from_a_leak_though_streams_are_lost_and_operators_change_their_minds() {
    two_points(&[Ordered::Leak], &[Trouble::Part, Trouble::Rollback]);
}

#[test]
fn no_order_of_events_breaks_what_follows_upon_a_rotation() {
    let then: [&'static [Ordered]; 5] = [
        &[Ordered::Rotate, Ordered::Leak],
        &[Ordered::Rotate, Ordered::LeakOfNext],
        &[Ordered::Rotate, Ordered::LeakOfIssuer],
        &[Ordered::Rotate, Ordered::Retire],
        &[Ordered::Rotate, Ordered::Rotate],
    ];
    let troubles = &[Trouble::Part, Trouble::Rollback, Trouble::Crash];
    for orders in then {
        print!("{orders:?}: ");
        holds(&System { flaw: Flaw::None, orders, points: 1, troubles }, 300, STATES_MAX);
    }
}

#[test]
fn each_claim_of_the_walk_is_broken_by_the_flaw_that_it_is_about() {
    let breaks = |flaw, orders, claim| {
        println!("{flaw:?}");
        breaks(&System { flaw, orders, points: 2, troubles: ALL }, STATES_MAX, claim);
    };
    breaks(Flaw::NobodyIsAsked, &[Ordered::Rotate], KNOWN);
    breaks(Flaw::NobodyIsAsked, &[Ordered::Rotate], VERIFIED);
    breaks(Flaw::LostIsGone, &[Ordered::Rotate], KNOWN);
    breaks(Flaw::AcknowledgedBeforeKept, &[Ordered::Rotate], KNOWN);
    breaks(Flaw::NobodyIsCounted, &[Ordered::Rotate], SERVED);
    breaks(Flaw::RetiredComesBack, &[Ordered::Rotate], GONE);
    breaks(Flaw::LeakedComesBack, &[Ordered::Leak], LEAKED);
    breaks(Flaw::TornActivation, &[Ordered::Rotate], SIGNS);
    breaks(Flaw::Deaf, &[Ordered::Rotate], ENDS);
}
