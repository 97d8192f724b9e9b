//! What operators take out of service, and what must be true of it at every moment.

use std::sync::Arc;
use std::time::Duration;

use countersign_agent::core::Credential;
use countersign_audit::{Event, EventKind};
use countersign_identity::{
    Clock, Code, KeyId, NodeTag, Reason, Revision, Revocation, Revoked, Suspended, Suspension,
};
use countersign_store::{Batch, Change, Kind, Record};
use countersign_tls::{Identity, Slice, Trust};

use crate::clocks::must_hold;
use crate::links::Link;
use crate::manifests::name;
use crate::points::Point;
use crate::world::World;

/// So many credentials are remembered before those are forgotten that have ended.
const SERVED_MIN: usize = 64;

/// By what an operator names what leaked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaked {
    /// The certificate that a workload of a machine holds now.
    Serial,
    /// Its key.
    Key,
    /// All that was issued for the workload.
    Identity,
    /// All that was issued through the machine.
    Node,
    /// All that an authority signed: one that nobody here uses.
    OtherAuthority,
    /// All that the issuer of this world signed.
    Authority,
}

/// A rule, as it was committed.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub(crate) name: String,
    pub(crate) revision: Revision,
    pub(crate) rule: Arc<Revocation>,
    /// It was removed from the state too early: who has never heard of it cannot enforce it.
    pub(crate) lost: bool,
}

/// Somebody with the key of a revoked SVID.
pub(crate) struct Thief {
    from: usize,
    rule: String,
    revision: Revision,
    credential: Credential,
    trust: Arc<Trust>,
}

impl World {
    /// Takes something of this machine's workload out of service, and lets the snapshot follow some time later. Nothing
    /// happens when there is nothing to name.
    pub fn revoke(&mut self, index: usize, number: usize, leaked: Leaked) {
        self.revoke_for(Reason::KeyCompromise, index, number, leaked);
    }

    /// The same for something that did not leak, and has a successor: connections are drained.
    pub fn supersede(&mut self, index: usize, number: usize, leaked: Leaked) {
        self.revoke_for(Reason::Superseded, index, number, leaked);
    }

    pub(crate) fn revoke_for(
        &mut self,
        reason: Reason,
        index: usize,
        number: usize,
        leaked: Leaked,
    ) {
        let Some(held) = self.held_for(index, &self.named(index, number)) else { return };
        let before = self.control.next_revision();
        let (id, key) = (held.shown.id.clone(), held.shown.key);
        let node = self.machines[index].disk.node.id;
        let node_lasts = self.control.call(async |steps| steps.domain()).agent_lifetime.duration();
        let [.., svid_lasts] = self.lifetimes();
        let (target, lasts) = match leaked {
            Leaked::Serial => {
                (Revoked::Serial(held.shown.serial.expect("a serial of ours")), svid_lasts)
            }
            Leaked::Key => (Revoked::Key(key), svid_lasts),
            Leaked::Identity => (Revoked::Identity { id, before }, svid_lasts),
            Leaked::Node => {
                let (_, tag): (Revision, NodeTag) = held.shown.provenance.expect("it is ours");
                (Revoked::Node { id: node, tag, before }, node_lasts)
            }
            Leaked::OtherAuthority => (Revoked::Authority(KeyId::from_bytes([3; 32])), svid_lasts),
            Leaked::Authority => {
                (Revoked::Authority(held.shown.authorities[0]), Duration::from_secs(7 * 86_400))
            }
        };
        let at = self.now;
        let until = at + self.lasting(lasts);
        let rule = Revocation { target, about: None, reason, at, until };
        let name = format!("r{}", self.numbered + self.rules.len());
        self.tell(&format!("revision {before} revokes {} ({reason})", rule.target));
        self.put(Kind::Revocation, &name, &rule, before);
        let rule = Arc::new(rule);
        if number == 0 && leaked != Leaked::OtherAuthority {
            self.steal(index, name.clone(), before);
        }
        self.rules.push(Committed { name, revision: before, rule, lost: false });
    }

    /// Stops what would be issued for a workload.
    pub fn suspend(&mut self, index: usize, number: usize) {
        let workload = name(index, number);
        if !self.suspended.insert(workload.clone()) {
            return;
        }
        let id = format!("spiffe://shop.example/{workload}").parse().expect("it is a SPIFFE ID");
        let (target, reason) = (Suspended::Identity(id), Reason::ProcessCompromise);
        let suspension = Suspension { target, reason, at: self.now };
        let revision = self.control.next_revision();
        self.tell(&format!("revision {revision} suspends {workload}"));
        self.put(Kind::Suspension, &workload, &suspension, revision);
    }

    /// Lifts a suspension.
    pub fn resume(&mut self, index: usize, number: usize) {
        let workload = name(index, number);
        if self.suspended.remove(&workload) {
            let revision = self.control.next_revision();
            self.tell(&format!("revision {revision} resumes {workload}"));
            self.erase(Kind::Suspension, &workload, revision);
        }
    }

    /// Lifts every suspension.
    pub(crate) fn resume_all(&mut self) {
        for workload in self.suspended.clone() {
            self.suspended.remove(&workload);
            let revision = self.control.next_revision();
            self.erase(Kind::Suspension, &workload, revision);
        }
    }

    /// A server drops the rules that are moot by its clock.
    pub fn trim_rules(&mut self, server: usize) {
        if !self.control.is_up(server) {
            return;
        }
        let trimmed = self.control.call_at(server, async |steps| steps.prune().await);
        let dropped = trimmed.unwrap_or_else(|refused| {
            let expected = matches!(refused.code, Code::StaleBase | Code::NotReady);
            assert!(expected, "s{server} cannot trim: {refused}");
            Vec::new()
        });
        self.tell(&format!("s{server} trims {}", dropped.join(" ")));
        let (now, theirs) = (self.now, self.control.now_at(server));
        for one in self.rules.iter_mut().filter(|one| dropped.contains(&one.name)) {
            assert!(one.rule.is_moot(theirs), "s{server} trims {} before its end", one.name);
            // By a clock that is ahead: whoever has never heard of it cannot enforce it.
            one.lost = true;
        }
        let before = self.rules.len();
        self.rules.retain(|one| !one.lost || !one.rule.is_moot(now));
        self.numbered += before - self.rules.len();
        self.advance_soon();
    }

    /// The store loses the newest rule that is everywhere, long before its end.
    pub fn lose_a_rule(&mut self) {
        let Some(place) = self.rules.iter().rposition(|one| !one.lost) else { return };
        self.rules[place].lost = true;
        let lost = self.rules[place].name.clone();
        let revision = self.control.next_revision();
        self.tell(&format!("revision {revision} loses {lost}"));
        self.erase(Kind::Revocation, &lost, revision);
    }

    /// How many rules each point enforces.
    pub fn rules_at_points(&self) -> Vec<usize> {
        let points = self.machines.iter().flat_map(|machine| machine.points.values());
        points.map(|point| point.steps.trust().slice().revocations.len()).collect()
    }

    /// How many rules the store has on record.
    pub fn rules_in_store(&self) -> usize {
        let snapshot = self.control.runtime().block_on(self.control.store.snapshot());
        let records = snapshot.expect("the store answers").records;
        records.iter().filter(|record| record.kind == Kind::Revocation).count()
    }

    /// How many rules were made.
    pub fn rules_made(&self) -> usize {
        self.numbered + self.rules.len()
    }

    /// How many SVIDs took the place of revoked ones in the present lives of all agents.
    pub fn reissued(&self) -> u64 {
        let lives = self.machines.iter().filter_map(|machine| machine.life.as_ref());
        lives.map(|life| life.state.reissued()).sum()
    }

    fn held_for(&self, index: usize, workload: &str) -> Option<Credential> {
        let life = self.machines[index].life.as_ref()?;
        let svid = life.svids.get(&workload.parse().ok()?)?;
        Some(svid.credential.clone())
    }

    fn put(&mut self, kind: Kind, name: &str, value: &impl serde::Serialize, revision: Revision) {
        let value = serde_json::to_vec(value).expect("texts and numbers are JSON");
        let change = Change::Put(Record { kind, name: name.to_owned(), value });
        self.commit(EventKind::RecordPut, format!("{kind}/{name}"), change, revision);
    }

    fn erase(&mut self, kind: Kind, name: &str, revision: Revision) {
        let change = Change::Remove { kind, name: name.to_owned() };
        self.commit(EventKind::RecordRemoved, format!("{kind}/{name}"), change, revision);
    }

    fn commit(&mut self, kind: EventKind, subject: String, change: Change, revision: Revision) {
        let event = Event::new(kind, self.now, "operator:simulated", subject);
        let narrows = kind == EventKind::RecordPut;
        let batch =
            Batch { narrows, changes: vec![change], events: vec![event], ..Batch::default() };
        let committed = self.control.commit(batch);
        assert_eq!(committed, revision, "nobody else writes here");
        self.advance_soon();
    }

    /// Whether a rule covers this that must be in force at a machine, of those up to a revision.
    pub(crate) fn covered_at(
        &self,
        index: usize,
        credential: &Credential,
        up_to: Option<Revision>,
    ) -> bool {
        let rules = self.rules.iter().filter(|one| Some(one.revision) <= up_to);
        let mut rules = rules.filter(|one| !one.lost && self.must_hold(&one.rule, index));
        rules.any(|one| covers(&one.rule, credential))
    }

    /// What must be true of every point of a machine after everything that happens: what it said that it enforces it has,
    /// nothing that it had is lifted before its end, and all that was ever served here and is covered it refuses.
    pub(crate) fn check_rules(&mut self, index: usize) {
        let now = self.now;
        let known = self.numbered + self.rules.len();
        let ahead = self.servers_ahead.min(self.machines[index].ahead);
        let rules: Vec<&Committed> =
            self.rules.iter().filter(|one| must_hold(&one.rule, now, ahead)).collect();
        for point in self.machines[index].points.values_mut() {
            if std::mem::replace(&mut point.checked, (point.enforced, known))
                == (point.enforced, known)
            {
                continue;
            }
            let slice = point.steps.trust().slice();
            let has = |rule: &Revocation| slice.revocations.iter().any(|(_, one)| **one == *rule);
            for one in &rules {
                let had = point.had.contains(&one.name);
                let said = Some(one.revision) <= point.enforced && !one.lost;
                let Point { name, enforced, .. } = &*point;
                let has = has(&one.rule);
                assert!(
                    has || !(had || said),
                    "point `{name}` at {enforced:?} lacks {} of {}",
                    one.name,
                    one.revision,
                );
                if has && !had {
                    point.had.insert(one.name.clone());
                }
            }
            let live = self.served.iter().filter(|served| now <= served.term.expires);
            for served in live {
                let covered = rules.iter().any(|one| {
                    let said = Some(one.revision) <= point.enforced && !one.lost;
                    said && covers(&one.rule, served)
                });
                let refused = slice.revocations.covering(&served.shown.presented()).is_some();
                let (name, id) = (&point.name, &served.shown.id);
                assert!(refused || !covered, "point `{name}` would admit `{id}`, which is revoked");
                let by_any = point.was_told(served) || covered;
                assert!(by_any || !refused, "point `{name}` would refuse `{id}` for nothing");
            }
        }
    }

    /// Whether the point of one machine enforces a rule that covers what the point of another shows.
    pub(crate) fn is_refused_by(&self, shower: usize, refuser: usize) -> bool {
        let point = |index: usize| self.machines[index].points.values().next().expect("it has one");
        self.refuses(point(refuser), point(shower))
    }

    /// Whether one point enforces a rule that covers what another shows.
    pub(crate) fn refuses(&self, refuser: &Point, shower: &Point) -> bool {
        let shown = self.served.iter().find(|one| Some(one.term.digest) == shower.shown);
        shown.is_some_and(|shown| refuser.was_told(shown))
    }

    /// Somebody has the key of what was just revoked, and waits for a door.
    fn steal(&mut self, index: usize, rule: String, revision: Revision) {
        let machine = &self.machines[index];
        let (Some(life), Some(point)) = (&machine.life, machine.points.values().next()) else {
            return;
        };
        let Some(svid) = life.svids.get(&point.name) else { return };
        // Who steals does not listen to rules.
        let slice = Slice { revocations: Arc::default(), ..(*point.steps.trust().slice()).clone() };
        let trust = Trust::new(Arc::clone(&machine.clock) as Arc<dyn Clock>, slice);
        let identity = Identity::new(svid.chain.clone(), svid.key.pkcs8());
        if trust.set_identity(identity.expect("its key is its own")).is_ok() {
            let credential = svid.credential.clone();
            self.thieves.push(Thief { from: index, rule, revision, credential, trust });
        }
    }

    /// Whoever stole what is revoked tries it once at the machine that its victim calls, as soon as that says that it
    /// enforces the rule: with a real handshake, and in vain.
    pub(crate) fn try_thieves(&mut self, to: usize) {
        let victim = (to + self.machines.len() - 1) % self.machines.len();
        let Some(point) = self.machines[to].points.values().next() else { return };
        let (name, enforced) = (point.name.clone(), point.enforced);
        let (trust, had) = (Arc::clone(point.steps.trust()), point.had.clone());
        let now = self.now;
        let (tried, wait) = std::mem::take(&mut self.thieves)
            .into_iter()
            .filter(|thief| now <= thief.credential.term.expires)
            .partition(|thief: &Thief| thief.from == victim && Some(thief.revision) <= enforced);
        self.thieves = wait;
        for Thief { from, rule, revision, credential, trust: thief } in tried {
            // Who never heard of a rule before the store lost it cannot enforce it.
            let lost = self.rules.iter().any(|one| one.name == rule && one.lost);
            if lost && !had.contains(&rule) {
                continue;
            }
            let expected = format!("spiffe://shop.example/{name}");
            let trusts = (&thief, &trust);
            let made = Link::make(self.control.runtime(), (from, to), trusts, &name, &expected);
            let Err(code) = made else {
                let id = &credential.shown.id;
                panic!("a{to} enforces {revision}, and lets a thief in as `{id}`");
            };
            self.tell(&format!("a thief of a{from} is refused by a{to}: {code}"));
            self.thwarted += usize::from(code == Code::Revoked);
        }
    }

    /// How many thieves were refused because what they had was revoked.
    pub fn thwarted(&self) -> usize {
        self.thwarted
    }

    /// Remembers what was served, until it has ended.
    pub(crate) fn remember_served(&mut self, credential: Credential) {
        let now = self.now;
        // Now and then is enough: whoever asks looks at the ends.
        if self.served_most <= self.served.len() {
            self.served.retain(|one| now <= one.term.expires);
            self.served_most = 2 * self.served.len() + SERVED_MIN;
        }
        self.served.push(credential);
    }
}

/// Whether this rule covers what this credential shows.
fn covers(rule: &Revocation, credential: &Credential) -> bool {
    let shown = &credential.shown;
    let before = |cut_off: &Revision| {
        shown.provenance.is_none_or(|(revision, _): (Revision, NodeTag)| revision < *cut_off)
    };
    // Said here once more in other words than those of the rules themselves, which it checks.
    match &rule.target {
        Revoked::Serial(serial) => shown.serial == Some(*serial),
        Revoked::Key(key) => shown.key == *key,
        Revoked::Identity { id, before: cut_off } => shown.id == *id && before(cut_off),
        Revoked::Node { tag, before: cut_off, .. } => {
            shown.provenance.is_some_and(|(_, through)| through == *tag) && before(cut_off)
        }
        Revoked::Authority(key) => shown.authorities.contains(key),
        Revoked::Earlier { domain, before: cut_off } => {
            shown.id.trust_domain() == domain && before(cut_off)
        }
    }
}

impl Point {
    /// Whether a rule that it was told covers this.
    fn was_told(&self, credential: &Credential) -> bool {
        let slice = self.steps.trust().slice();
        slice.revocations.iter().any(|(_, rule)| covers(rule, credential))
    }
}
