//! What may happen in which order, what must hold then, and what breaks it.

use std::mem::{replace, take};
use std::time::Duration;

use countersign_agent::core::{RecordKind, Replica};
use countersign_identity::{Revision, SKEW_ALLOWED, Timestamp};

use super::{
    Counts, ENDS, Event, Flaw, Grain, HORIZON, NAME, Node, RULE, Stream, System, Trouble, World,
    at, covers, heard,
};
use crate::tests::explore::{Claim, Model, breaks, claim, holds};

const STATES_MAX: usize = 400_000;

type Class = (bool, bool);

#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeKey {
    replica: (Revision, bool, bool),
    times: (Class, Class),
    acknowledges: (bool, Option<Revision>),
    disk: (bool, Class, Option<Revision>),
    point: Option<(bool, Revision, Class)>,
    stream: Stream,
    late: (Option<(usize, Class)>, Option<Revision>),
    heard: (Option<Revision>, bool),
    had: bool,
    ahead: bool,
    counts: Counts,
}

/// As far as anybody looks at a time: whether the certificate has ended, and whether the rule is moot.
fn class(time: Timestamp) -> Class {
    (at(ENDS) < time, RULE.is_moot(time))
}

impl System {
    fn may(&self, trouble: Trouble) -> bool {
        self.troubles.contains(&trouble)
    }
}

impl Model for System {
    type State = World;
    type Event = Event;
    type Key = (i8, Vec<(Revision, bool)>, Vec<NodeKey>, u8);

    fn begin(&self) -> World {
        let states = vec![(Revision { incarnation: 1, number: 1 }, false)];
        let nodes = self.clocks.iter().map(|_| Node::new()).collect();
        World { tick: 0, states, life: None, nodes, crashes: 0 }
    }

    fn events(&self, world: &World) -> Vec<Event> {
        let mut events = vec![Event::Revoke, Event::Prune, Event::TimePasses];
        let mut may = |trouble, wanted: &[Event]| {
            if self.may(trouble) {
                events.extend_from_slice(wanted);
            }
        };
        may(Trouble::Restore, &[Event::Restore]);
        may(Trouble::Crash, &[Event::ServerRestarts]);
        for (index, node) in world.nodes.iter().enumerate() {
            may(Trouble::Lie, &[Event::Lie(index)]);
            let late = [Event::HoldBack(index), Event::Late(index)];
            may(Trouble::Late, &late);
            may(Trouble::Late, &[Event::HoldAckBack(index), Event::LateAck(index)]);
            if node.counts.partings == 0 {
                may(Trouble::Part, &[Event::Part(index)]);
            }
            if node.counts.jumps == 0 || node.ahead {
                may(Trouble::Jump, &[Event::ClockJumps(index), Event::ClockReturns(index)]);
            }
            if node.counts.restarts == 0 {
                let restarts = [Event::AgentRestarts(index), Event::PointRestarts(index)];
                may(Trouble::Restart, &restarts);
                may(Trouble::Restart, &[Event::MachineRestarts(index)]);
            }
        }
        for (index, node) in world.nodes.iter().enumerate() {
            events.extend([Event::Write(index), Event::Tell(index)]);
            events.extend(match node.stream {
                Stream::Lost => vec![Event::Return(index)],
                Stream::Open(_) => {
                    vec![Event::Push(index), Event::Acknowledge(index), Event::HandBack(index)]
                }
            });
        }
        events
    }

    fn step(&self, last: &World, event: Event) -> Option<World> {
        let mut world = last.clone();
        let (newest, tick) = (world.last(), world.tick);
        let happened = match event {
            Event::Revoke => {
                world.commit(true);
                last.states.len() == 1
            }
            Event::Prune => {
                let skew = if self.flaw == Flaw::NoSkew { SKEW_ALLOWED } else { Duration::ZERO };
                world.commit(false);
                last.has_rule() && RULE.is_moot(at(tick) + skew)
            }
            Event::Restore => {
                world.restore();
                last.life.is_none() && last.has_rule()
            }
            Event::ServerRestarts => {
                world.crashes += 1;
                world.lose_streams();
                world.crashes <= 1
            }
            Event::TimePasses => {
                world.tick += 1;
                world.tick <= HORIZON && self.grain == Grain::Fine
            }
            Event::Push(index) => match world.nodes[index].stream {
                Stream::Lost => false,
                Stream::Open(_) => {
                    world.nodes[index].stream = Stream::Open(Some(newest));
                    world.deliver(self, index, (newest, tick));
                    if self.grain == Grain::Coarse {
                        let now = world.clock(self, index);
                        world.nodes[index].write(self.flaw);
                        world.nodes[index].tell(self.flaw, now);
                    }
                    true
                }
            },
            Event::HoldBack(index) => {
                let node = &mut world.nodes[index];
                let held = node.late.replace((newest, tick)).is_some();
                let told = replace(&mut node.stream, Stream::Open(Some(newest)));
                told != Stream::Lost && !held
            }
            Event::Late(index) => match world.nodes[index].late {
                None => false,
                Some(late) => {
                    world.deliver(self, index, late);
                    true
                }
            },
            Event::Tell(index) => {
                let now = world.clock(self, index);
                let node = &mut world.nodes[index];
                node.tell(self.flaw, now);
                // An agent that knows nothing tells nothing.
                node.replica.revision() != Revision::default()
            }
            // Records that say the same are not written anew.
            Event::Write(index) => {
                let node = &mut world.nodes[index];
                let written = node.disk.replica.as_ref().map(|one| one.revision().incarnation);
                let same = written == Some(node.replica.revision().incarnation);
                let news = !same || !node.is_written();
                node.write(self.flaw);
                news
            }
            Event::Acknowledge(index) => {
                let ack = world.nodes[index].ack(self.flaw);
                world.acknowledged(index, ack, self.flaw)
            }
            Event::HoldAckBack(index) => {
                let node = &mut world.nodes[index];
                let ack = node.ack(self.flaw);
                node.stream != Stream::Lost
                    && ack.is_some()
                    && replace(&mut node.late_ack, ack).is_none()
            }
            // It is of an earlier stream, which had told it.
            Event::LateAck(index) => {
                let node = &mut world.nodes[index];
                let late = node.late_ack?;
                node.heard = heard(node.heard, late, Some(late));
                true
            }
            Event::Lie(index) => {
                let told = last.nodes[index].stream;
                told < Stream::Open(Some(newest))
                    && world.acknowledged(index, Some(last.revision()), self.flaw)
            }
            Event::HandBack(index) => self.flaw != Flaw::NobodyHandsBack && world.hand_back(index),
            Event::Part(index) => {
                let node = &mut world.nodes[index];
                node.counts.partings += 1;
                node.confirmed = false;
                replace(&mut node.stream, Stream::Lost) != Stream::Lost && node.counts.partings <= 1
            }
            Event::Return(index) => world.reconnect(index),
            Event::AgentRestarts(index) => world.nodes[index].restarts(Node::agent_restarts),
            Event::PointRestarts(index) => world.nodes[index].restarts(|node| node.point = None),
            Event::MachineRestarts(index) => world.nodes[index].restarts(|node| {
                node.agent_restarts();
                node.point = None;
            }),
            Event::ClockJumps(index) => {
                let node = &mut world.nodes[index];
                node.ahead = true;
                node.counts.jumps += 1;
                node.counts.jumps <= 1
            }
            Event::ClockReturns(index) => take(&mut world.nodes[index].ahead),
        };
        happened.then_some(world)
    }

    fn key(&self, world: &World) -> Self::Key {
        let node = |node: &Node| NodeKey {
            replica: (
                node.replica.revision(),
                node.replica.value(RecordKind::Revocation, NAME).is_some(),
                covers(node.replica.rules()),
            ),
            // Asked at the end of all time, it tells what the server's clock has shown.
            times: (class(node.times.seen()), class(node.times.for_rules(Timestamp::LAST))),
            acknowledges: (node.synced, node.enforced),
            disk: (
                covers(&node.disk.rules),
                class(node.disk.seen),
                node.disk.replica.as_ref().map(Replica::revision),
            ),
            point: node
                .point
                .as_ref()
                .map(|point| (covers(&point.rules), point.reached, class(point.latest))),
            stream: node.stream,
            late: (node.late.map(|(state, tick)| (state, class(at(tick)))), node.late_ack),
            heard: (node.heard, node.confirmed),
            had: node.had,
            ahead: node.ahead,
            counts: node.counts,
        };
        let mut nodes: Vec<_> = world.nodes.iter().map(node).collect();
        // Machines with equal clocks are alike: which of them it is makes no difference.
        if self.clocks.iter().all(|clock| *clock == self.clocks[0]) {
            nodes.sort();
        }
        (world.tick, world.states.clone(), nodes, world.crashes)
    }

    fn claims(&self) -> Vec<Claim<Self>> {
        vec![
            claim::<Self>(ENFORCED, |system, world| {
                let lost = |revision: &Revision| {
                    world.life.as_ref().is_some_and(|life| life.has_lost(*revision))
                };
                let put: Vec<_> = world.put().filter(|revision| !lost(revision)).collect();
                let says = |node: &Node| put.iter().any(|revision| Some(*revision) <= node.heard);
                let nodes = world.nodes.iter().enumerate();
                nodes.into_iter().all(|(index, node)| !says(node) || !world.lets_in(system, index))
            }),
            claim::<Self>(CONVERGED, |system, world| {
                let all = world.put().any(|revision| world.is_converged(system, revision));
                !all || (0..world.nodes.len()).all(|index| !world.lets_in(system, index))
            }),
            claim::<Self>(LIFTED, |system, world| {
                let nodes = world.nodes.iter().enumerate();
                nodes.into_iter().all(|(index, node)| {
                    // In its memory alone until the disk has it.
                    let keeps = node.had && (covers(&node.disk.rules) || !node.is_written());
                    !keeps || !world.lets_in(system, index)
                })
            }),
            claim::<Self>(REMEMBERED, |system, world| {
                let remembers = |node: &Node| covers(&node.disk.rules);
                let matters = !RULE.is_moot(at(world.tick));
                !matters || !world.nodes.iter().any(remembers) || world.comes_back(system)
            }),
        ]
    }

    fn possible(&self) -> Vec<Claim<Self>> {
        let mut possible =
            vec![claim::<Self>("all enforce it, and it is known", |system, world| {
                let now = at(world.tick) <= at(ENDS);
                now && world.put().any(|revision| world.is_converged(system, revision))
            })];
        if self.grain == Grain::Fine {
            possible.push(claim::<Self>(
                "a rule that is moot is forgotten everywhere",
                |_, world| {
                    let forgotten = |node: &Node| {
                        let point = node.point.as_ref().is_some_and(|point| !covers(&point.rules));
                        point && !covers(&node.disk.rules) && node.had
                    };
                    !world.has_rule() && world.nodes.iter().all(forgotten)
                },
            ));
        }
        if self.may(Trouble::Restore) {
            possible.push(claim::<Self>("a lost rule is handed back", |_, world| {
                world.life.is_some() && world.has_rule()
            }));
        }
        possible
    }
}

const ENFORCED: &str = "what is acknowledged is enforced";
const CONVERGED: &str = "converged only when every live point enforces";
const LIFTED: &str = "a rule in force is not lifted before its end";
const REMEMBERED: &str = "a rule that somebody remembers comes back into the store";

/// A machine at its worst.
const MACHINE: &[Trouble] = &[Trouble::Jump, Trouble::Restart];
/// A store that loses its tail, while machines come and go, or while somebody plays with a clock.
const STORE: &[Trouble] = &[Trouble::Restore, Trouble::Restart];
const STORE_AND_CLOCK: &[Trouble] = &[Trouble::Restore, Trouble::Jump];
/// Streams that come and go.
const STREAM: &[Trouble] = &[Trouble::Part, Trouble::Crash, Trouble::Lie];

fn one(flaw: Flaw, clocks: &'static [i8], troubles: &'static [Trouble]) -> System {
    System { flaw, clocks, troubles, grain: Grain::Fine }
}

fn two(flaw: Flaw, troubles: &'static [Trouble]) -> System {
    System { flaw, clocks: &[0, 0], troubles, grain: Grain::Coarse }
}

/// One machine, with a clock behind, equal and ahead.
#[track_caller]
fn one_machine(troubles: &'static [Trouble]) {
    for clocks in [&[-1][..], &[0], &[1]] {
        print!("{troubles:?} {clocks:?}: ");
        holds(&one(Flaw::None, clocks, troubles), 300, STATES_MAX);
    }
}

#[test]
fn messages_that_are_late_doubled_and_out_of_order_lose_no_rule() {
    print!("late: ");
    holds(&one(Flaw::None, &[0], &[Trouble::Late]), 300, STATES_MAX);
}

#[test]
fn streams_that_are_lost_and_agents_that_lie_lose_no_rule() {
    one_machine(STREAM);
}

#[test]
fn machines_that_restart_and_clocks_that_jump_lose_no_rule() {
    one_machine(MACHINE);
}

#[test]
fn a_store_that_loses_its_tail_loses_no_rule_that_somebody_remembers() {
    for troubles in [STORE, STORE_AND_CLOCK] {
        print!("{troubles:?}: ");
        holds(&one(Flaw::None, &[0], troubles), 300, STATES_MAX);
    }
}

#[test]
fn no_order_of_events_makes_a_false_report_of_two_machines() {
    for troubles in [&[Trouble::Restore, Trouble::Part][..], &[Trouble::Restart, Trouble::Crash]] {
        print!("{troubles:?}: ");
        holds(&two(Flaw::None, troubles), 1000, STATES_MAX);
    }
}

#[test]
fn each_claim_of_revocation_is_broken_by_the_flaw_that_it_is_about() {
    let breaks = |flaw, clocks, troubles, claim| {
        println!("{flaw:?}");
        breaks(&one(flaw, clocks, troubles), STATES_MAX, claim);
    };
    breaks(Flaw::NothingIsKept, &[0], STORE, LIFTED);
    breaks(Flaw::OwnClockAlone, &[0], STORE_AND_CLOCK, LIFTED);
    breaks(Flaw::NoSkew, &[-1], &[], ENFORCED);
    breaks(Flaw::AcknowledgedBeforeWritten, &[0], MACHINE, ENFORCED);
    breaks(Flaw::AnythingCounts, &[0], STREAM, CONVERGED);
    breaks(Flaw::LostIsGone, &[0], STREAM, CONVERGED);
    breaks(Flaw::LostIsAnswered, &[0], STORE, CONVERGED);
    breaks(Flaw::NobodyHandsBack, &[0], STORE, REMEMBERED);
}
