//! The machine.

mod link;
mod signing;
mod word;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Backoff, Code, Entropy, Failed, Name, SKEW_ALLOWED, Timestamp};

use self::link::{Link, RECONNECT};
use self::signing::Pace;
use super::credential::Credential;
use super::duty::{Duty, Standing};
use super::event::{Action, Event, Knowledge, LinkView, Remembered, Settings};
use super::replica::{Replica, Workload};
use super::shut_out::ShutOut;
use super::times::Times;

/// The machine's state.
#[derive(Debug)]
pub struct State {
    settings: Settings,
    replica: Arc<Replica>,
    knowledge: Knowledge,
    link: Link,
    server: usize,
    /// How many servers were tried in this round.
    tried: usize,
    backoff: Backoff,
    disconnected: Option<Timestamp>,
    /// When the link was last lost, or could not be made, and why.
    unlinked: Option<Failed>,
    trouble: Option<String>,
    node: Duty,
    /// Since when the agent's own SVID is being renewed.
    renewing_node: Option<Timestamp>,
    duties: BTreeMap<Name, Duty>,
    signing: BTreeMap<Name, Arc<Workload>>,
    /// When the machine was asked last, by a clock that may be set back.
    asked: Timestamp,
    times: Times,
    /// How many workloads got a new SVID in place of a revoked one.
    reissued: u64,
    shut_out: ShutOut,
}

impl State {
    /// A machine that holds the agent's own SVID, and what an earlier life wrote down.
    pub fn new(
        settings: Settings,
        node: Credential,
        remembered: Remembered,
        now: Timestamp,
    ) -> Self {
        let Remembered { replica, rules, seen } = remembered;
        let knowledge = if replica.is_some() { Knowledge::Remembered } else { Knowledge::Nothing };
        let times = Times::new(seen);
        let replica = replica.unwrap_or_default().keeping(&rules, times.for_rules(now));
        let mut state = Self {
            settings,
            replica: Arc::new(replica),
            knowledge,
            link: Link::Down { retry: now },
            server: 0,
            tried: 0,
            backoff: Backoff::new(RECONNECT),
            disconnected: Some(now),
            unlinked: None,
            trouble: None,
            node: Duty::holding(node, now),
            renewing_node: None,
            duties: BTreeMap::new(),
            signing: BTreeMap::new(),
            asked: now,
            times,
            reissued: 0,
            shut_out: ShutOut::new(),
        };
        state.take_duties(&Replica::default());
        state.suspend();
        state.revoke();
        state
    }

    /// Takes what happened, and says what to do.
    pub fn step(&mut self, event: Event, now: Timestamp, entropy: &dyn Entropy) -> Vec<Action> {
        let mut actions = Vec::new();
        if now + SKEW_ALLOWED < self.asked {
            self.clock_set_back(now);
        }
        self.asked = now;
        self.times.see(now);
        match event {
            Event::Woke => {}
            Event::Opened => self.opened(now, entropy),
            Event::Closed { code, why } => self.closed(code, why, now, entropy),
            Event::Said(message) => self.said(message, now, entropy, &mut actions),
            Event::Signed(outcomes) => self.signed(outcomes, now, entropy, &mut actions),
            // The answer to a renewal was lost: no stream opens before the successor is in use, however fresh the SVID.
            Event::KeySucceeded if self.renewing_node.is_none() => self.node.outdate(),
            Event::KeySucceeded => {}
            Event::NodeRenewed(credential) => {
                self.node_renewed(credential, now, entropy, &mut actions);
            }
            Event::NodeRenewalFailed { code, why } => {
                self.node_renewal_failed(code, why, now, entropy);
            }
            Event::Unusable(names) => {
                for name in &names {
                    if let Some(duty) = self.duties.get_mut(name) {
                        duty.lose();
                    }
                }
                actions.push(Action::Publish);
            }
        }
        self.expire(now, &mut actions);
        self.plan(now, &mut actions);
        actions
    }

    /// When to wake the machine at the latest.
    pub fn next_wake(&self, now: Timestamp) -> Timestamp {
        let mut wakes = vec![self.first_expiry().map_or(Timestamp::LAST, after)];
        match self.link {
            Link::Down { .. } if self.renewing_node.is_some() => {}
            Link::Down { retry } => wakes.push(retry),
            Link::Opening => {}
            Link::Open { synced } => {
                if self.renewing_node.is_none() {
                    wakes.push(self.node.due(now));
                }
                if synced {
                    let held_back = self.signs_from();
                    let next = Pace::ALL.into_iter().filter_map(|pace| self.first_due(pace, now));
                    wakes.extend(next.map(|due| due.max(held_back)));
                }
            }
        }
        wakes.into_iter().min().unwrap_or(Timestamp::LAST)
    }

    /// What is known.
    pub fn knowledge(&self) -> Knowledge {
        self.knowledge
    }

    /// The records in force.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// Whether this very credential is to be served for the workload.
    pub fn holds(&self, name: &Name, digest: &countersign_identity::Sha256) -> bool {
        let term = self.duties.get(name).and_then(Duty::term);
        term.is_some_and(|term| term.digest == *digest)
    }

    /// Why the server gives nothing for the workload, when it said so and nothing is held. A suspension that an earlier life
    /// wrote down may have been lifted since.
    pub fn refusal(&self, name: &Name) -> Option<&(Code, String)> {
        let duty = self.duties.get(name)?;
        let is_old = duty.is_suspended() && self.knowledge != Knowledge::Synced;
        if duty.term().is_some() || is_old { None } else { duty.refusal() }
    }

    /// Whether the server has issued for this workload to this node, also when nothing is held just now.
    pub fn is_ours(&self, name: &Name) -> bool {
        self.duties.get(name).is_some_and(Duty::is_ours)
    }

    /// How many workloads got a new SVID in place of a revoked one.
    pub fn reissued(&self) -> u64 {
        self.reissued
    }

    /// The highest time that was seen.
    pub fn seen(&self) -> Timestamp {
        self.times.seen()
    }

    /// How the credential of each workload that is open to this node stands.
    pub fn standings(&self) -> impl Iterator<Item = (&Name, Standing)> {
        let ours = self.duties.iter().filter(|(_, duty)| !duty.is_elsewhere());
        ours.map(|(name, duty)| (name, duty.standing()))
    }

    /// How the agent's own credential stands.
    pub fn node(&self) -> Standing {
        self.node.standing()
    }

    /// How the link stands.
    pub fn link(&self) -> LinkView {
        LinkView {
            server: self.server,
            disconnected: self.disconnected,
            failed: self.unlinked.clone(),
            trouble: self.trouble.clone(),
            refused: self.shut_out.code(),
        }
    }

    /// When the first credential now in use expires if the server stays away: the end of the outage budget.
    pub fn first_expiry(&self) -> Option<Timestamp> {
        self.duties.values().filter_map(|duty| Some(duty.term()?.expires)).min()
    }

    fn expire(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let mut expired = false;
        for duty in self.duties.values_mut() {
            if duty.term().is_some_and(|term| term.expires < now) {
                duty.lose();
                expired = true;
            }
        }
        if expired && !actions.contains(&Action::Publish) {
            actions.push(Action::Publish);
        }
    }

    /// Starts whatever is due.
    fn plan(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        match self.link {
            Link::Down { retry } if now < retry || self.renewing_node.is_some() => {}
            // Also when it is only due: a renewal whose answer was lost may have given the key a successor, and then
            // no server opens a stream under the key before.
            Link::Down { .. } if self.needs_renewal(now) => {
                self.renewing_node = Some(now);
                actions.push(Action::RenewNode { server: self.server });
            }
            Link::Down { .. } => {
                self.link = Link::Opening;
                actions.push(self.open());
            }
            Link::Opening => {}
            Link::Open { synced } => {
                if self.renewing_node.is_none() && self.node.due(now) <= now {
                    self.renewing_node = Some(now);
                    actions.push(Action::RenewNode { server: self.server });
                }
                if synced && self.signs_from() <= now {
                    for pace in Pace::ALL {
                        self.sign(pace, now, actions);
                    }
                }
            }
        }
    }
}

/// A certificate is valid at its last moment still.
fn after(expires: Timestamp) -> Timestamp {
    expires + Duration::from_micros(1)
}
