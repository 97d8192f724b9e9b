//! The walk of the roots in every order of events: steps, lost streams, restarts, rollbacks, forced gates, a leak.
//!
//! The machine is the real one, record and all. The model plays the server that drives it and the points around it, each of
//! which also holds a leaf that all others verify. What it takes for granted: a point that has acknowledged a bundle knows
//! it after a restart, and who is issued a leaf shows it from then on (`SETTLE` is what gives it that time).

mod explored;

use std::collections::BTreeSet;
use std::time::Duration;

use countersign_api::admin::{Cause, Goal, RootKey, RootState, Step};
use countersign_identity::{KeyId, Revision, Timestamp};

use super::gate::{Facts, Left};
use super::order::Order;
use super::root::Root;
use super::walk::Walk;

const START: Timestamp = Timestamp::from_secs(1_795_262_400);
const LIFETIME: Duration = Duration::from_secs(3600);
/// Time passes by as much as ends every leaf, by any clock, and every wait of a gate.
const TICK: Duration = Duration::from_secs(3600 + 61);
const TICKS_MAX: u8 = 2;
/// Rounds in which everything happens that should; an order goes on within them.
const FAIR_ROUNDS_MAX: usize = 3;
/// The number of an issuer's key, which is no root's.
const ISSUER: u8 = 200;

/// What is wrong with the system, on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// The gates do not ask who has acknowledged.
    NobodyIsAsked,
    /// A point whose stream is lost is not waited for.
    LostIsGone,
    /// A point acknowledges what it does not know any more after a restart.
    AcknowledgedBeforeKept,
    /// What a root vouches for goes out of service although somebody shows it.
    NobodyIsCounted,
    /// A rollback takes a retired root back.
    RetiredComesBack,
    /// A rollback goes back to a root whose key leaked.
    LeakedComesBack,
    /// The old root stops to sign in one commit, and the new one begins in another.
    TornActivation,
    /// Acknowledgements do not arrive.
    Deaf,
}

/// What operators order, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ordered {
    /// The root that signs gets a successor.
    Rotate,
    /// The key of the root that signs has leaked.
    Leak,
    /// The key of the root that is published, and does not sign yet, has leaked.
    LeakOfNext,
    /// The key of an issuer has leaked.
    LeakOfIssuer,
    /// A root that was left retiring goes.
    Retire,
}

/// What may go wrong, or be done by hand, each at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// A gate is forced.
    Force,
    /// What is under way is taken back.
    Rollback,
    /// The server ends and begins again.
    Crash,
    /// Points end and begin again.
    Restart,
    /// A stream is lost.
    Part,
    /// Time passes that ends every leaf; twice.
    Time,
}

#[derive(Clone, Debug)]
struct System {
    flaw: Flaw,
    orders: &'static [Ordered],
    points: usize,
    troubles: &'static [Trouble],
}

/// An enforcement point with a leaf of its own.
#[derive(Clone, Debug)]
struct Point {
    reachable: bool,
    applied: u64,
    /// What it knows after a restart.
    kept: u64,
    /// What the server knows that it has acknowledged.
    acknowledged: Option<u64>,
    /// The root of what it shows, and when that was issued.
    leaf: Option<(KeyId, u8)>,
    /// The last revision that was made while it was not live: it catches up when it returns.
    missed: u64,
}

#[derive(Clone, Debug)]
struct World {
    walk: Walk,
    /// Whom each revision trusts.
    bundles: Vec<BTreeSet<KeyId>>,
    points: Vec<Point>,
    tick: u8,
    ordered: usize,
    made: u8,
    retired: BTreeSet<KeyId>,
    leaked: Option<KeyId>,
    /// Somebody was told, or a leak made it so, that a root signs before all know it.
    left_behind: bool,
    /// The same of what goes out of service before all have something else.
    cut_short: bool,
    /// The root that signs with one more commit.
    torn: Option<KeyId>,
    forces: u8,
    rollbacks: u8,
    crashes: u8,
    partings: u8,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Order,
    Walk,
    Force,
    Rollback,
    ServerRestarts,
    TimePasses,
    Apply(usize),
    Acknowledge(usize),
    Part(usize),
    Return(usize),
    PointRestarts(usize),
    Reissue(usize),
}

/// Whom it trusts who has reached a revision, and which marks of the roots' walk lie before that.
type Reached = (BTreeSet<KeyId>, u32);

fn key(number: u8) -> KeyId {
    KeyId::from_bytes([number; 32])
}

fn root(number: u8, state: RootState, since: Timestamp) -> Root {
    Root {
        key: key(number),
        certificate: String::new(),
        cross: None,
        state,
        since,
        tainted: None,
        published: None,
        superseded: None,
        dropped: None,
        held: RootKey::Here,
        issuers: Vec::new(),
        told: None,
    }
}

fn revision(number: u64) -> Revision {
    Revision { incarnation: 1, number }
}

fn trusted(walk: &Walk) -> BTreeSet<KeyId> {
    walk.roots.iter().filter(|root| root.is_trusted()).map(|root| root.key).collect()
}

impl World {
    fn now(&self) -> Timestamp {
        START + TICK * u32::from(self.tick)
    }

    fn number(&self) -> u64 {
        self.bundles.len() as u64 - 1
    }

    /// The walk is committed, as the record that the next server reads, and the bundle that follows from it.
    fn commit(&mut self, walk: &Walk) {
        let written = serde_json::to_vec(walk).expect("a walk always has a JSON form");
        self.walk = serde_json::from_slice(&written).expect("it is read as it was written");
        self.bundles.push(trusted(walk));
        let retired = walk.roots.iter().filter(|root| root.state == RootState::Retired);
        self.retired.extend(retired.map(|root| root.key));
    }

    fn is_valid(&self, leaf: Option<(KeyId, u8)>) -> bool {
        leaf.is_some_and(|(_, issued)| issued == self.tick)
    }

    /// Not gone: it is heard of, or could still present something.
    fn lives(&self, point: &Point) -> bool {
        self.is_valid(point.leaf) || point.reachable && point.acknowledged.is_some()
    }

    fn live(&self) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(|point| self.lives(point))
    }

    /// Those that are live and were so, or have caught up since.
    fn up_to_date(&self) -> impl Iterator<Item = &Point> {
        self.live().filter(|point| point.missed <= point.kept)
    }

    fn bundle(&self, revision: u64) -> &BTreeSet<KeyId> {
        &self.bundles[usize::try_from(revision).expect("a few revisions")]
    }

    /// The roots of what live points show.
    fn shown(&self) -> impl Iterator<Item = KeyId> {
        let leaves = self.points.iter().map(|point| point.leaf);
        leaves.filter(|leaf| self.is_valid(*leaf)).flatten().map(|(root, _)| root)
    }

    fn facts(&self, flaw: Flaw, step: Step) -> Facts {
        let mut facts = Facts::default();
        if let Some(awaited) = self.walk.awaited(step) {
            let counts = |point: &&Point| flaw != Flaw::LostIsGone || point.reachable;
            let has = |point: &&Point| {
                flaw == Flaw::NobodyIsAsked || Some(awaited.number) <= point.acknowledged
            };
            facts.live = self.live().filter(counts).count() as u64;
            facts.enforcing = self.live().filter(counts).filter(has).count() as u64;
        }
        let leaving = self.walk.order.as_ref().map(|order| order.from);
        if flaw != Flaw::NobodyIsCounted {
            let left = self.points.iter().filter_map(|point| point.leaf);
            let left = left.filter(|(root, _)| Some(*root) == leaving);
            let until = |issued: u8| START + TICK * u32::from(issued) + LIFETIME;
            let left =
                left.map(|(_, issued)| Left { holder: "a point".to_owned(), until: until(issued) });
            facts.left = left.collect();
        }
        facts
    }

    fn order(&mut self, ordered: Ordered) -> bool {
        let mut walk = self.walk.clone();
        let Ok(signs) = walk.active().map(|root| root.key) else { return false };
        let next = walk.successor().filter(|root| root.state == RootState::Published);
        let (goal, from) = match ordered {
            Ordered::Rotate => (Goal::Rotate, Some(signs)),
            Ordered::Leak => (Goal::Recover, Some(signs)),
            Ordered::LeakOfNext => (Goal::Recover, next.map(|root| root.key)),
            Ordered::LeakOfIssuer => (Goal::Recover, Some(key(ISSUER))),
            Ordered::Retire => (Goal::Retire, walk.retiring().next().map(|root| root.key)),
        };
        let Some(from) = from else { return false };
        let recovers = goal == Goal::Recover && walk.is_root(from);
        if recovers && walk.taint(from, Cause::Compromised).is_err() {
            return false;
        }
        if walk.begin(Order::new(goal, from, "operator", None, self.now())).is_err() {
            return false;
        }
        self.leaked = if recovers { Some(from) } else { self.leaked };
        self.ordered += 1;
        self.commit(&walk);
        true
    }

    /// What the server does when it looks: the next step, if its gate is open.
    fn walks(&mut self, flaw: Flaw) -> bool {
        let mut walk = self.walk.clone();
        if let Some(next) = self.torn.take() {
            walk.roots.iter_mut().filter(|root| root.key == next).for_each(|root| {
                root.state = RootState::Active;
            });
            self.commit(&walk);
            return true;
        }
        let Some(order) = &walk.order else { return false };
        let (from, goal, forced) = (order.from, order.goal, order.forced.clone());
        let (now, next) = (self.now(), revision(self.number() + 1));
        let Some(step) = walk.next() else {
            walk.end(None, now);
            self.commit(&walk);
            return true;
        };
        let facts = self.facts(flaw, step);
        if !walk.gate(step, &facts, now.into()).is_open() {
            return false;
        }
        self.excuse(step, goal, &facts, forced.contains_key(&step));
        let taken = match step {
            Step::Prepare => {
                self.made += 1;
                walk.prepare(root(self.made, RootState::Prepared, now), now)
            }
            Step::Publish => walk.publish(next, now).map(drop),
            Step::Activate => walk.activate(now).map(|(_, next)| {
                if flaw == Flaw::TornActivation {
                    self.torn = Some(next);
                    walk.roots.iter_mut().filter(|root| root.key == next).for_each(|root| {
                        root.state = RootState::Published;
                    });
                }
            }),
            Step::Supersede => walk.supersede(from, next),
            Step::Retire => walk.retire(from, next, now),
            // An issuer's rule is no root's.
            Step::Condemn if !walk.is_root(from) => Ok(()),
            Step::Condemn => walk.condemn(from, next, now),
            Step::Reissue | Step::Confirm | Step::Prove => Ok(()),
            Step::Rollback | Step::Taint => unreachable!("no order holds them"),
        };
        taken.expect("the machine takes the step that it names");
        walk.did(step, next, now);
        let live: Vec<bool> = self.points.iter().map(|point| self.lives(point)).collect();
        for (point, live) in self.points.iter_mut().zip(live) {
            point.missed = if live { point.missed } else { next.number };
        }
        self.commit(&walk);
        true
    }

    /// What somebody took upon himself, or a leak excuses, is no fault of the machine's.
    fn excuse(&mut self, step: Step, goal: Goal, facts: &Facts, forced: bool) {
        let recovers = goal == Goal::Recover;
        match step {
            Step::Activate => {
                self.left_behind |= (forced || recovers) && facts.enforcing < facts.live;
            }
            Step::Supersede => self.cut_short |= forced,
            Step::Condemn => self.cut_short = true,
            Step::Prepare
            | Step::Publish
            | Step::Retire
            | Step::Reissue
            | Step::Confirm
            | Step::Prove
            | Step::Rollback
            | Step::Taint => {}
        }
    }

    fn force(&mut self) -> bool {
        let mut walk = self.walk.clone();
        let (Some(step), Some(order)) = (walk.next(), &mut walk.order) else { return false };
        self.forces += 1;
        let news = order.forced.insert(step, "it burns".to_owned()).is_none();
        self.commit(&walk);
        news && self.forces <= 1
    }

    fn rolls_back(&mut self, flaw: Flaw) -> bool {
        let mut walk = self.walk.clone();
        let (was_leak, now) = (walk.is_recovering(), self.now());
        let state = |walk: &Walk, state| walk.roots.iter().position(|root| root.state == state);
        let (retired, retiring) =
            (state(&walk, RootState::Retired), state(&walk, RootState::Retiring));
        match (flaw, retired, retiring) {
            (Flaw::RetiredComesBack, Some(retired), _) => {
                walk.roots[retired].state = RootState::Retiring;
            }
            (Flaw::LeakedComesBack, _, Some(retiring)) => {
                let active = state(&walk, RootState::Active).expect("one signs");
                walk.roots[active].state = RootState::Retiring;
                walk.roots[retiring].state = RootState::Active;
                walk.order = None;
            }
            _ if walk.rollback(now).is_err() => return false,
            // The claim that the key leaked is taken back with the order.
            _ if was_leak => self.leaked = None,
            _ => {}
        }
        self.rollbacks += 1;
        self.commit(&walk);
        self.rollbacks <= 1
    }

    fn reissue(&mut self, index: usize) -> bool {
        let Ok(signs) = self.walk.active().map(|root| root.key) else { return false };
        let leaf = Some((signs, self.tick));
        let point = &self.points[index];
        // Our own verifier accepts it before it is shown.
        let usable = self.bundle(point.applied).contains(&signs);
        if !point.reachable || !usable || point.leaf == leaf {
            return false;
        }
        self.points[index].leaf = leaf;
        true
    }

    /// Whether the order under way takes its next step, or ends, once everything happens that should. Each is taken once, so
    /// an order that always goes on comes to its end.
    fn goes_on(&self, flaw: Flaw) -> bool {
        let mut world = self.clone();
        for _round in 0..FAIR_ROUNDS_MAX {
            let number = world.number();
            for index in 0..world.points.len() {
                let point = &mut world.points[index];
                (point.reachable, point.applied, point.kept) = (true, number, number);
                if flaw != Flaw::Deaf {
                    point.acknowledged = Some(number);
                }
                world.reissue(index);
            }
            if world.walk.order.is_none() || world.walks(flaw) {
                return true;
            }
            world.tick += 1;
        }
        false
    }

    /// As far as the future goes: whom it trusts who has reached a revision, and which marks lie before it.
    fn reached(&self, revision: u64) -> Reached {
        let marks =
            self.walk.roots.iter().flat_map(|root| {
                [root.published, root.superseded, root.dropped].into_iter().flatten()
            });
        let bits = marks.fold(1, |bits, mark| bits << 1 | u32::from(mark.number <= revision));
        (self.bundle(revision).clone(), bits)
    }
}
