//! The machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Backoff, BackoffPolicy, Code, Entropy, Name, SKEW_ALLOWED, Timestamp};

use super::duty::{Duty, Standing, Term};
use super::event::{Action, Event, Knowledge, LinkView, Outcome, Settings, SyncMessage};
use super::replica::{Replica, Workload};

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
    trouble: Option<String>,
    node: Duty,
    /// Since when the agent's own SVID is being renewed.
    renewing_node: Option<Timestamp>,
    duties: BTreeMap<Name, Duty>,
    signing: BTreeMap<Name, Arc<Workload>>,
    /// When the machine was asked last, by a clock that may be set back.
    asked: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down { retry: Timestamp },
    Opening,
    Open { synced: bool },
}

/// A server that was lost is tried again within this, or a 25th of the shortest lifetime held, if that is shorter: the
/// guaranteed outage budget ends a 20th of the lifetime before the SVID does, and within that it must be renewed.
const RECONNECT: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(400), longest: Duration::from_secs(10) };
/// A renewal of the node's SVID that takes longer than this holds nothing else back any more.
const RENEWAL_MOMENT: Duration = Duration::from_secs(1);
const RECONNECT_SHORTEST: Duration = Duration::from_millis(200);

impl State {
    /// A machine that holds the agent's own SVID, and what an earlier life wrote down.
    pub fn new(
        settings: Settings,
        node: Term,
        remembered: Option<Replica>,
        now: Timestamp,
    ) -> Self {
        let knowledge =
            if remembered.is_some() { Knowledge::Remembered } else { Knowledge::Nothing };
        let mut state = Self {
            settings,
            replica: Arc::new(remembered.unwrap_or_default()),
            knowledge,
            link: Link::Down { retry: now },
            server: 0,
            tried: 0,
            backoff: Backoff::new(RECONNECT),
            disconnected: Some(now),
            trouble: None,
            node: Duty::holding(node, now),
            renewing_node: None,
            duties: BTreeMap::new(),
            signing: BTreeMap::new(),
            asked: now,
        };
        state.take_duties(&Replica::default());
        state
    }

    /// Takes what happened, and says what to do.
    pub fn step(&mut self, event: Event, now: Timestamp, entropy: &dyn Entropy) -> Vec<Action> {
        let mut actions = Vec::new();
        if now + SKEW_ALLOWED < self.asked {
            self.clock_set_back(now);
        }
        self.asked = now;
        match event {
            Event::Woke => {}
            Event::Opened => self.opened(now, entropy),
            Event::Closed { why } => self.closed(why, now, entropy),
            Event::Said(message) => self.said(message, now, entropy, &mut actions),
            Event::Signed(outcomes) => self.signed(outcomes, now, entropy, &mut actions),
            // The answer to a renewal was lost: no stream opens before the successor is in use, however fresh the SVID.
            Event::KeySucceeded if self.renewing_node.is_none() => self.node.outdate(),
            Event::KeySucceeded => {}
            Event::NodeRenewed(term) => self.node_renewed(term, now, &mut actions),
            Event::NodeRenewalFailed { why } => self.node_renewal_failed(why, now, entropy),
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
                if synced && self.signing.is_empty() {
                    let held_back = self.signs_from();
                    wakes.extend(self.duties.values().map(|duty| duty.due(now).max(held_back)));
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

    /// Why the server gives nothing for the workload, when it said so and nothing is held.
    pub fn refusal(&self, name: &Name) -> Option<&(Code, String)> {
        let duty = self.duties.get(name)?;
        if duty.term().is_some() { None } else { duty.refusal() }
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
            trouble: self.trouble.clone(),
        }
    }

    /// When the first credential now in use expires if the server stays away: the end of the outage budget.
    pub fn first_expiry(&self) -> Option<Timestamp> {
        self.duties.values().filter_map(|duty| Some(duty.term()?.expires)).min()
    }

    fn opened(&mut self, now: Timestamp, entropy: &dyn Entropy) {
        let absence = self.disconnected.map_or(Duration::ZERO, |since| now.since(since));
        self.link = Link::Open { synced: false };
        self.trouble = None;
        self.node.fresh_chance(now, absence, entropy);
        for duty in self.duties.values_mut() {
            duty.fresh_chance(now, absence, entropy);
        }
    }

    /// Waits that were reckoned on the clock before would last as long as the step.
    fn clock_set_back(&mut self, now: Timestamp) {
        if let Link::Down { retry } = &mut self.link {
            *retry = (*retry).min(now);
        }
        self.node.forget_waits();
        self.duties.values_mut().for_each(Duty::forget_waits);
        self.renewing_node = self.renewing_node.map(|since| since.min(now));
        self.disconnected = self.disconnected.map(|since| since.min(now));
    }

    fn closed(&mut self, why: String, now: Timestamp, entropy: &dyn Entropy) {
        let was_synced = self.link == Link::Open { synced: true };
        if was_synced {
            self.backoff.reset();
            self.tried = 0;
        }
        self.disconnected.get_or_insert(now);
        self.trouble = Some(why);
        self.signing.clear();
        self.server = (self.server + 1) % self.settings.servers.max(1);
        self.tried += 1;
        let retry = if self.tried < self.settings.servers && !was_synced {
            now
        } else {
            self.tried = 0;
            let wait = self.backoff.failed(now, entropy).since(now);
            now + self.scaled(wait)
        };
        self.link = Link::Down { retry };
    }

    /// Short lifetimes cannot wait for the longest backoff. The wait is scaled, not cut, so that its jitter stays.
    fn scaled(&self, wait: Duration) -> Duration {
        let shortest = self
            .duties
            .values()
            .filter_map(|duty| duty.term())
            .map(|term| term.expires.since(term.issued) / 25)
            .min()
            .unwrap_or(RECONNECT.longest)
            .max(RECONNECT_SHORTEST);
        if shortest < RECONNECT.longest && shortest < wait {
            wait.mul_f64(shortest.as_secs_f64() / RECONNECT.longest.as_secs_f64())
                .max(shortest / 2 + wait / 40)
        } else {
            wait
        }
    }

    fn said(
        &mut self,
        message: SyncMessage,
        now: Timestamp,
        entropy: &dyn Entropy,
        actions: &mut Vec<Action>,
    ) {
        if !matches!(self.link, Link::Open { .. }) {
            return;
        }
        let before = Arc::clone(&self.replica);
        let is_mark = matches!(message, SyncMessage::Mark { .. });
        let applied = match message {
            SyncMessage::Snapshot { revision, .. } if revision < before.revision() => {
                Err(super::replica::Behind { offered: revision, have: before.revision() })
            }
            SyncMessage::Snapshot { revision, records } => {
                self.replica = Arc::new(Replica::of(revision, records));
                Ok(())
            }
            SyncMessage::Changes { revision, put, gone } => {
                Arc::make_mut(&mut self.replica).change(revision, put, &gone)
            }
            SyncMessage::Mark { revision } => Arc::make_mut(&mut self.replica).mark(revision),
        };
        if let Err(behind) = applied {
            actions.push(Action::Close);
            self.closed(behind.to_string(), now, entropy);
            return;
        }
        self.link = Link::Open { synced: true };
        self.disconnected = None;
        self.tried = 0;
        self.backoff.reset();
        if !is_mark {
            self.take_duties(&before);
            actions.push(Action::Remember);
        }
        let news = !is_mark
            || self.knowledge != Knowledge::Synced
            || before.revision() != self.replica.revision();
        self.knowledge = Knowledge::Synced;
        if news {
            actions.push(Action::Publish);
        }
    }

    /// Drops the credentials of workloads that are gone or somebody else now, and takes on new ones.
    fn take_duties(&mut self, before: &Replica) {
        let replica = Arc::clone(&self.replica);
        self.duties.retain(|name, _| replica.workloads().contains_key(name));
        for (name, workload) in replica.workloads() {
            let duty = self.duties.entry(name.clone()).or_insert_with(Duty::new);
            let Some(old) = before.workloads().get(name) else { continue };
            if old.id != workload.id {
                *duty = Duty::new();
            } else if asks_for_another(old, workload) {
                duty.outdate();
            }
        }
    }

    fn signed(
        &mut self,
        outcomes: Vec<(Name, Outcome)>,
        now: Timestamp,
        entropy: &dyn Entropy,
        actions: &mut Vec<Action>,
    ) {
        actions.push(Action::Publish);
        for (name, outcome) in outcomes {
            let asked = self.signing.remove(&name);
            // Withdrawn meanwhile, or asked under a stream that was lost since: nobody waits for it.
            let (Some(duty), Some(asked)) = (self.duties.get_mut(&name), asked) else { continue };
            let Some(workload) = self.replica.workloads().get(&name) else { continue };
            match outcome {
                Outcome::Issued { id, .. } if id != workload.id => {
                    duty.failed(format!("the server issued `{id}`"), now, entropy);
                }
                Outcome::Issued { term, .. } => {
                    duty.obtained(term, now);
                    if asks_for_another(&asked, workload) {
                        duty.outdate();
                    }
                }
                Outcome::Refused(code, why) => duty.refused(code, why, now, entropy),
                Outcome::Failed(why) => duty.failed(why, now, entropy),
            }
        }
    }

    fn node_renewed(&mut self, term: Term, now: Timestamp, actions: &mut Vec<Action>) {
        self.renewing_node = None;
        self.node.obtained(term, now);
        match self.link {
            // It was needed to open a stream at all.
            Link::Down { .. } => self.link = Link::Down { retry: now },
            Link::Opening => {}
            // The server refuses calls under the key before; the new stream takes the place of the old.
            Link::Open { .. } => {
                self.signing.clear();
                self.link = Link::Opening;
                actions.push(self.open());
            }
        }
    }

    fn node_renewal_failed(&mut self, why: String, now: Timestamp, entropy: &dyn Entropy) {
        self.renewing_node = None;
        self.node.failed(why.clone(), now, entropy);
        if let Link::Down { .. } = self.link {
            self.closed(why, now, entropy);
        }
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
                if synced && self.signing.is_empty() && self.signs_from() <= now {
                    self.sign(now, actions);
                }
            }
        }
    }

    /// From when SVIDs may be asked for: not just while the node's own is renewed, because the server refuses calls under
    /// the key before as soon as it knows the successor, and a renewal takes a moment only.
    fn signs_from(&self) -> Timestamp {
        self.renewing_node.map_or(Timestamp::EPOCH, |since| since + RENEWAL_MOMENT)
    }

    fn needs_renewal(&self, now: Timestamp) -> bool {
        self.node.term().is_none_or(|term| term.expires < now) || self.node.due(now) <= now
    }

    fn open(&self) -> Action {
        let have = (self.knowledge != Knowledge::Nothing).then(|| self.replica.revision());
        Action::Open { server: self.server, have }
    }

    fn sign(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        // Those without any come first.
        let mut due: Vec<(bool, &Name)> = self
            .duties
            .iter()
            .filter(|(_, duty)| duty.due(now) <= now)
            .map(|(name, duty)| (duty.term().is_some(), name))
            .collect();
        due.sort();
        let batch: Vec<Arc<Workload>> = due
            .iter()
            .take(self.settings.batch_max)
            .filter_map(|(_, name)| self.replica.workloads().get(*name).cloned())
            .collect();
        if batch.is_empty() {
            return;
        }
        self.signing = batch.iter().map(|one| (one.name.clone(), Arc::clone(one))).collect();
        actions.push(Action::Sign(batch));
    }
}

/// Whether a certificate made for the one manifest would differ from one made for the other.
fn asks_for_another(old: &Workload, new: &Workload) -> bool {
    old.id != new.id
        || old.spec.lifetime != new.spec.lifetime
        || old.spec.key_type != new.spec.key_type
        || old.spec.dns_names != new.spec.dns_names
}

/// A certificate is valid at its last moment still.
fn after(expires: Timestamp) -> Timestamp {
    expires + Duration::from_micros(1)
}
