//! The machine.

mod link;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{
    Attested, Backoff, Code, Entropy, Failed, Lifetime, Name, SKEW_ALLOWED, Timestamp,
};
use link::{Link, RECONNECT};

use super::credential::Credential;
use super::duty::{Duty, Standing};
use super::event::{
    Action, Event, Knowledge, LinkView, Outcome, Remembered, Settings, SyncMessage,
};
use super::replica::{Replica, Workload};
use super::shut_out::ShutOut;
use super::suspensions::Suspensions;
use super::times::Times;

/// How soon to ask again a server that issued under a root which is on its way out.
const STRAGGLER_RETRY: Duration = Duration::from_secs(5);

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

    fn said(
        &mut self,
        message: SyncMessage,
        now: Timestamp,
        entropy: &dyn Entropy,
        actions: &mut Vec<Action>,
    ) {
        if !matches!(self.link, Link::Open { .. }) || matches!(message, SyncMessage::Signed(_)) {
            return;
        }
        self.times.told(match &message {
            SyncMessage::Snapshot { clock, .. } | SyncMessage::Mark { clock, .. } => *clock,
            SyncMessage::Changes { .. } | SyncMessage::Signed(_) => None,
        });
        let rules_until = self.times.for_rules(now);
        let before = Arc::clone(&self.replica);
        let is_mark = matches!(message, SyncMessage::Mark { .. });
        let applied = match message {
            SyncMessage::Snapshot { revision, .. } if revision < before.revision() => {
                Err(super::replica::Behind { offered: revision, have: before.revision() })
            }
            SyncMessage::Snapshot { revision, records, .. } => {
                // A snapshot that lacks a rule does not lift it: the server may have been restored.
                let snapshot = Replica::of(revision, records);
                self.replica = Arc::new(snapshot.keeping(before.rules(), rules_until));
                Ok(())
            }
            SyncMessage::Changes { revision, put, gone } => {
                Arc::make_mut(&mut self.replica).change(revision, put, &gone, rules_until)
            }
            SyncMessage::Mark { revision, .. } => {
                let replica = Arc::make_mut(&mut self.replica);
                replica.mark(revision).inspect(|()| {
                    replica.forget_moot(rules_until);
                })
            }
            SyncMessage::Signed(_) => Ok(()),
        };
        if let Err(behind) = applied {
            actions.push(Action::Close);
            self.closed(Code::StaleBase, behind.to_string(), now, entropy);
            return;
        }
        self.shut_out.let_in();
        self.link = Link::Open { synced: true };
        self.disconnected = None;
        self.tried = 0;
        self.backoff.reset();
        let moved = !is_mark || !Arc::ptr_eq(before.rules(), self.replica.rules());
        if moved {
            self.take_duties(&before);
            self.suspend();
            self.revoke();
            let same_rules = Arc::ptr_eq(before.rules(), self.replica.rules());
            if !same_rules || before.own_bundle() != self.replica.own_bundle() {
                // What is covered by all that the server signs may be signed by another authority now.
                self.duties.values_mut().for_each(Duty::try_again_if_covered);
            }
            self.leave_roots(now, entropy);
            self.renew_earlier(now, entropy);
            actions.push(Action::Remember);
        }
        let news = moved
            || self.knowledge != Knowledge::Synced
            || before.revision() != self.replica.revision();
        self.knowledge = Knowledge::Synced;
        if news {
            actions.push(Action::Publish);
        }
    }

    /// Asks anew for what an earlier incarnation of the server's store has issued: it may know nothing of it.
    fn renew_earlier(&mut self, now: Timestamp, entropy: &dyn Entropy) {
        let current = self.replica.revision().incarnation;
        // What is of an earlier incarnation is covered one such lifetime after issuing goes on.
        let lifetime = self.replica.usual_lifetime().map_or(Duration::ZERO, Lifetime::duration);
        for duty in self.duties.values_mut().chain([&mut self.node]) {
            duty.outdate_earlier(current, lifetime / 4, now, entropy);
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
            } else if duty.says_more_than(asked_of(workload)) {
                duty.lose();
            } else if asks_for_another(old, workload) {
                duty.outdate();
            }
        }
    }

    /// Withdraws what the server says is not issued any more, and asks again for what it issues again.
    fn suspend(&mut self) {
        let suspensions = Suspensions::of(&self.replica, self.settings.node);
        for (name, workload) in self.replica.workloads() {
            let Some(duty) = self.duties.get_mut(name) else { continue };
            match suspensions.why(&workload.id) {
                Some(_) if duty.is_suspended() => {}
                Some(why) => duty.suspend(why),
                None if duty.is_suspended() => duty.resume(),
                None => {}
            }
        }
    }

    /// Serves nothing any more that a revocation covers: its successor is due at once.
    fn revoke(&mut self) {
        let rules = Arc::clone(self.replica.rules());
        for duty in self.duties.values_mut() {
            if let Some(rule) = duty.covering(&rules) {
                duty.revoke(&rule);
            }
        }
        if let Some(rule) = self.node.covering(&rules).filter(|_| !self.node.is_covered()) {
            self.node.cover(&rule);
        }
    }

    /// Asks anew for what a root vouches for that is on its way out.
    fn leave_roots(&mut self, now: Timestamp, entropy: &dyn Entropy) {
        let replica = Arc::clone(&self.replica);
        let Some(bundle) = replica.own_bundle().filter(|bundle| !bundle.retiring.is_empty()) else {
            return;
        };
        for duty in self.duties.values_mut().chain([&mut self.node]) {
            duty.leave_roots(&bundle.retiring, bundle.reissue_within, now, entropy);
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
        let rules = Arc::clone(self.replica.rules());
        for (name, outcome) in outcomes {
            let asked = self.signing.remove(&name);
            // Withdrawn meanwhile, or asked under a stream that was lost since: nobody waits for it.
            let (Some(duty), Some(asked)) = (self.duties.get_mut(&name), asked) else { continue };
            let Some(workload) = self.replica.workloads().get(&name) else { continue };
            match outcome {
                // Authorised before the suspension, and withdrawn by it.
                Outcome::Issued(_) if duty.is_suspended() => {}
                Outcome::Issued(credential) if credential.shown.id != workload.id => {
                    let why = format!("the server issued `{}`", credential.shown.id);
                    duty.failed(why, now, entropy);
                }
                Outcome::Issued(credential)
                    if !credential.shown.attested.is_within(asked_of(workload)) =>
                {
                    // One of the two does not know yet what the manifest asks for.
                    let kinds = credential.shown.attested.kinds().collect::<Vec<_>>().join("`, `");
                    let why =
                        format!("the server issued what says `{kinds}`, and that is not asked for");
                    duty.failed(why, now, entropy);
                }
                Outcome::Issued(credential) => {
                    if let Some(rule) = rules.covering(&credential.shown.presented()) {
                        duty.came_covered(rule, now, entropy);
                        continue;
                    }
                    self.reissued += u64::from(duty.is_covered());
                    duty.obtained(credential, now);
                    if let Some(bundle) = self.replica.own_bundle() {
                        // From a server that does not know yet: not asked again at once.
                        duty.leave_roots(&bundle.retiring, STRAGGLER_RETRY, now, entropy);
                    }
                    if asks_for_another(&asked, workload) {
                        duty.outdate();
                    }
                }
                Outcome::Refused(code, why) => duty.refused(code, why, now, entropy),
                Outcome::Failed(why) => duty.failed(why, now, entropy),
            }
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
                if synced && self.signs_from() <= now {
                    for pace in Pace::ALL {
                        self.sign(pace, now, actions);
                    }
                }
            }
        }
    }

    /// The workloads of this pace, with what each needs. None while some of them are being asked for.
    fn waiting(&self, pace: Pace) -> impl Iterator<Item = (&Duty, &Arc<Workload>)> {
        let busy = self.signing.values().any(|asked| Pace::of(asked) == pace);
        let workloads = (!busy).then(|| self.replica.workloads().values()).into_iter().flatten();
        workloads
            .filter(move |workload| Pace::of(workload) == pace)
            // Its key type was changed while it is asked for under the old one.
            .filter(|workload| !self.signing.contains_key(&workload.name))
            .filter_map(|workload| Some((self.duties.get(&workload.name)?, workload)))
    }

    fn first_due(&self, pace: Pace, now: Timestamp) -> Option<Timestamp> {
        self.waiting(pace).map(|(duty, _)| duty.due(now)).min()
    }

    fn sign(&mut self, pace: Pace, now: Timestamp, actions: &mut Vec<Action>) {
        let mut due: Vec<_> = self
            .waiting(pace)
            .filter(|(duty, _)| duty.due(now) <= now)
            .map(|(duty, workload)| (duty.turn(), &workload.name, workload))
            .collect();
        due.sort_by_key(|(turn, name, _)| (*turn, *name));
        let most = match pace {
            Pace::Quick => self.settings.batch_max,
            // One after the other, so that the first need not wait for the last, and no core is lost to others.
            Pace::Slow => 1,
        };
        let batch: Vec<Arc<Workload>> =
            due.into_iter().take(most).map(|(_, _, workload)| Arc::clone(workload)).collect();
        if batch.is_empty() {
            return;
        }
        self.signing.extend(batch.iter().map(|one| (one.name.clone(), Arc::clone(one))));
        actions.push(Action::Sign(batch));
    }
}

/// Whether a workload's key is made in a moment. Those that take long are asked for beside the others, which never wait
/// for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Quick,
    Slow,
}

impl Pace {
    const ALL: [Self; 2] = [Self::Quick, Self::Slow];

    fn of(workload: &Workload) -> Self {
        if workload.spec.key_type.is_slow_to_make() { Self::Slow } else { Self::Quick }
    }
}

/// Whether a certificate made for the one manifest would differ from one made for the other.
fn asks_for_another(old: &Workload, new: &Workload) -> bool {
    old.id != new.id
        || old.spec.lifetime != new.spec.lifetime
        || old.spec.key_type != new.spec.key_type
        || old.spec.dns_names != new.spec.dns_names
        || asked_of(old) != asked_of(new)
}

/// By which kinds of facts a process must be attested to be this workload.
fn asked_of(workload: &Workload) -> Attested {
    Attested::by(&workload.spec.selectors)
}

/// A certificate is valid at its last moment still.
fn after(expires: Timestamp) -> Timestamp {
    expires + Duration::from_micros(1)
}
