//! What is revoked or suspended is not served, its successor comes at once, and nothing lifts a rule before its end.

use std::sync::Arc;
use std::time::Duration;

use countersign_agent::core::{
    Action, Event, Knowledge, Outcome, Record, RecordKey, Remembered, Replica, Settings, State,
    SyncMessage,
};
use countersign_identity::{
    Code, NodeId, Reason, Revision, Revocation, Revoked, SeededEntropy, Suspended, Suspension,
    Timestamp,
};

use crate::world::{
    ISSUER, NODE, START, TAG, World, credential, domain, id, name, node, revision, secs, settings,
    workload,
};

/// How long after it was made a rule here covers something that is valid.
const LASTS: Duration = Duration::from_secs(600);

fn rule(name: &str, target: Revoked, at: Timestamp) -> Record {
    let reason = Reason::KeyCompromise;
    let rule = Revocation { target, about: None, reason, at, until: at + LASTS };
    Record::read("Revocation", name, &serde_json::to_vec(&rule).unwrap()).unwrap()
}

fn suspension(target: Suspended) -> Record {
    let suspension = Suspension { target, reason: Reason::ProcessCompromise, at: START };
    Record::read("Suspension", "s1", &serde_json::to_vec(&suspension).unwrap()).unwrap()
}

impl World {
    /// The server commits these, and says so.
    fn put(&mut self, records: Vec<Record>) {
        self.revision += 1;
        self.records.retain(|old| records.iter().all(|new| new.key != old.key));
        self.records.extend(records.clone());
        let revision = revision(self.revision);
        self.event(Event::Said(SyncMessage::Changes { revision, put: records, gone: Vec::new() }));
    }

    fn withdraw(&mut self, kind: &str, name: &str) {
        self.revision += 1;
        let key = RecordKey::read(kind, name).unwrap();
        self.records.retain(|record| record.key != key);
        let (revision, gone) = (revision(self.revision), vec![key]);
        self.event(Event::Said(SyncMessage::Changes { revision, put: Vec::new(), gone }));
    }

    fn mark(&mut self) {
        let clock = Some(self.server_now());
        let mark = SyncMessage::Mark { revision: revision(self.revision), clock };
        self.event(Event::Said(mark));
    }

    fn holds_rule(&self) -> bool {
        !self.state.replica().rules().is_empty()
    }
}

/// A machine that holds an SVID for `web`, ten seconds after its start.
fn served() -> World {
    let mut world = World::new(1, secs(3600));
    world.event(Event::Woke);
    world.pass(secs(10));
    world
}

/// The SVID that is held for `web`, by its number, is covered by this.
#[track_caller]
fn is_replaced_at_once(target: impl FnOnce(&World) -> Revoked) {
    let mut world = served();
    let before = world.held("web").unwrap();
    let asked = world.signed.len();
    let target = target(&world);
    world.put(vec![rule("r1", target, world.now)]);
    let after = world.held("web").unwrap();
    assert_ne!(before.digest, after.digest);
    assert_eq!(after.issued, world.now, "it did not wait");
    assert_eq!(world.signed.len(), asked + 1, "and was asked for once");
    assert!(!world.state.holds(&name("web"), &before.digest));
    assert_eq!(world.state.reissued(), 1);
    world.pass(secs(100));
    assert_eq!(world.signed.len(), asked + 1, "nothing goes on and on");
}

#[test]
fn svid_that_a_rule_covers_is_replaced_at_once_whichever_way_it_is_named() {
    let shown = |world: &World| {
        credential(world.issued, id("web"), revision(7), START, START).shown.as_ref().clone()
    };
    is_replaced_at_once(|world| Revoked::Serial(shown(world).serial.unwrap()));
    is_replaced_at_once(|world| Revoked::Key(shown(world).key));
    is_replaced_at_once(|_| Revoked::Identity { id: id("web"), before: revision(8) });
}

#[test]
fn rule_by_node_replaces_the_workloads_svids_and_the_agents_own() {
    let mut world = served();
    let before = world.held("web").unwrap();
    let renewed = world.node_renewed.len();
    world.put(vec![rule("r1", Revoked::Node { id: NODE, tag: TAG, before: revision(8) }, START)]);
    world.event(Event::Opened);
    world.event(Event::Said(world.snapshot()));
    assert_ne!(world.held("web").unwrap().digest, before.digest);
    assert_eq!(world.node_renewed.len(), renewed + 1, "the agent's own comes first");
}

#[test]
fn rule_that_covers_somebody_else_or_what_was_issued_before_changes_nothing() {
    for target in [
        Revoked::Identity { id: id("other"), before: revision(100) },
        // The SVID carries revision 7, which is the first that is not covered.
        Revoked::Identity { id: id("web"), before: revision(7) },
        Revoked::Node { id: NODE, tag: TAG, before: revision(1) },
    ] {
        let mut world = served();
        let (before, asked) = (world.held("web"), world.signed.len());
        world.put(vec![rule("r1", target, world.now)]);
        assert_eq!(world.held("web"), before);
        assert_eq!((world.signed.len(), world.node_renewed.len()), (asked, 0));
    }
}

#[test]
fn covered_svid_is_not_served_while_its_successor_is_on_its_way_and_nobody_said_that_there_is_none()
{
    let mut world = served();
    let before = world.held("web").unwrap();
    let put = vec![rule("r1", Revoked::Identity { id: id("web"), before: revision(8) }, START)];
    let message = SyncMessage::Changes { revision: revision(8), put, gone: Vec::new() };
    let actions = world.state.step(Event::Said(message), world.now, &world.entropy);
    assert!(matches!(actions.as_slice(), [Action::Remember, Action::Publish, Action::Sign(_)]));
    assert!(!world.state.holds(&name("web"), &before.digest));
    assert_eq!(world.state.refusal(&name("web")), None);
    assert!(world.state.is_ours(&name("web")), "it enforces meanwhile as who it is");
}

#[test]
fn svid_that_was_authorised_before_the_rule_and_comes_after_it_is_not_served_and_asked_for_again() {
    let mut world = World::new(2, secs(60));
    let entropy = SeededEntropy::new(2);
    world.state.step(Event::Woke, START, &entropy);
    world.state.step(Event::Opened, START, &entropy);
    world.state.step(Event::Said(world.snapshot()), START, &entropy);
    let late = world.issue(id("web"), secs(60));
    let put = vec![rule("r1", Revoked::Identity { id: id("web"), before: revision(8) }, START)];
    let message = SyncMessage::Changes { revision: revision(8), put, gone: Vec::new() };
    world.state.step(Event::Said(message), START, &entropy);
    let digest = late.term.digest;
    let signed = |credential| Event::Signed(vec![(name("web"), Outcome::Issued(credential))]);
    let actions = world.state.step(signed(late), START, &entropy);
    assert!(!world.state.holds(&name("web"), &digest));
    assert!(actions.iter().any(|action| matches!(action, Action::Sign(_))), "again, at once");
    // A server that goes on so is behind, and is not hammered.
    let again = world.issue(id("web"), secs(60));
    let actions = world.state.step(signed(again), START, &entropy);
    assert!(!actions.iter().any(|action| matches!(action, Action::Sign(_))), "{actions:?}");
    assert!(START < world.state.next_wake(START));
    world.revision = 8;
    world.pass(secs(2));
    assert!(world.held("web").is_some());
}

#[test]
fn rule_about_an_authority_holds_until_another_authority_signs_and_nobody_is_hammered_meanwhile() {
    let mut world = served();
    let asked = world.signed.len();
    world.put(vec![rule("r1", Revoked::Authority(ISSUER), START)]);
    world.pass(secs(60));
    assert!(world.held("web").is_none(), "all that this server signs is covered");
    let tries = world.signed.len() - asked;
    assert!((3..40).contains(&tries), "{tries} tries in a minute");
}

#[test]
fn mass_revocation_is_answered_in_batches_of_the_usual_size_without_waiting() {
    let mut world = World::new(3, secs(3600));
    world.records.extend((0..2000).map(|number| workload(&format!("w{number:04}"))));
    world.event(Event::Woke);
    assert_eq!(world.signed.len(), 2001);
    world.pass(secs(10));
    world.put(vec![rule("r1", Revoked::Authority(ISSUER), START - secs(1))]);
    let again: Vec<_> = world.signed[2001..].to_vec();
    assert!(2001 <= again.len(), "{}", again.len());
    assert!(again.iter().all(|(at, _)| *at == world.now));
    assert!(again[..2001].is_sorted_by(|(_, one), (_, next)| one < next), "each once, in order");
    assert!(world.batches.iter().all(|batch| *batch <= 256), "{:?}", world.batches);
}

#[test]
fn suspended_workload_is_withdrawn_on_the_servers_word_and_served_at_once_when_that_is_lifted() {
    for target in [Suspended::Identity(id("web")), Suspended::Node(NODE)] {
        let mut world = served();
        world.put(vec![suspension(target)]);
        assert!(world.held("web").is_none());
        assert_eq!(world.state.refusal(&name("web")).unwrap().0, Code::Suspended);
        let asked = world.signed.len();
        world.pass(secs(7200));
        assert_eq!(world.signed.len(), asked, "nothing is asked for meanwhile");
        world.withdraw("Suspension", "s1");
        assert_eq!(world.held("web").unwrap().issued, world.now);
        assert_eq!(world.state.refusal(&name("web")), None);
    }
}

#[test]
fn suspension_of_others_changes_nothing() {
    let other = NodeId::from_bytes([6; 16]);
    for target in [Suspended::Identity(id("other")), Suspended::Node(other)] {
        let mut world = served();
        let before = world.held("web");
        world.put(vec![suspension(target)]);
        assert_eq!(world.held("web"), before);
    }
}

#[test]
fn svid_that_was_on_its_way_when_its_workload_was_suspended_is_not_served() {
    let mut world = World::new(4, secs(60));
    let entropy = SeededEntropy::new(4);
    world.state.step(Event::Woke, START, &entropy);
    world.state.step(Event::Opened, START, &entropy);
    world.state.step(Event::Said(world.snapshot()), START, &entropy);
    let put = vec![suspension(Suspended::Identity(id("web")))];
    let message = SyncMessage::Changes { revision: revision(8), put, gone: Vec::new() };
    world.state.step(Event::Said(message), START, &entropy);
    let late = world.issue(id("web"), secs(60));
    let digest = late.term.digest;
    let signed = Event::Signed(vec![(name("web"), Outcome::Issued(late))]);
    world.state.step(signed, START, &entropy);
    assert!(!world.state.holds(&name("web"), &digest));
}

#[test]
fn refusal_as_suspended_withdraws_also_before_the_record_comes() {
    let mut world = served();
    let due = world.held("web").unwrap().due();
    world.now = due;
    let actions = world.state.step(Event::Woke, due, &world.entropy);
    assert!(matches!(actions.as_slice(), [Action::Sign(_)]), "{actions:?}");
    let refused = Outcome::Refused(Code::Suspended, "suspended".to_owned());
    world.state.step(Event::Signed(vec![(name("web"), refused)]), due, &world.entropy);
    assert!(world.held("web").is_none());
    assert_eq!(world.state.refusal(&name("web")).unwrap().0, Code::Suspended);
}

#[test]
fn suspension_from_an_earlier_life_says_nothing_until_a_server_has_said_it_again() {
    let records = [domain(), workload("web"), suspension(Suspended::Identity(id("web")))];
    let replica = Some(Replica::of(revision(5), records));
    let remembered = Remembered { replica, ..Remembered::nothing() };
    let state = State::new(settings(1), node(1, secs(3600)), remembered, START);
    assert_eq!(state.knowledge(), Knowledge::Remembered);
    assert_eq!(state.refusal(&name("web")), None, "it may have been lifted since");
}

#[track_caller]
fn lasts_to_its_end(lift: impl FnOnce(&mut World)) {
    let mut world = served();
    let target = Revoked::Identity { id: id("other"), before: revision(8) };
    let ends = world.now + LASTS + secs(60);
    world.put(vec![rule("r1", target, world.now)]);
    world.mark();
    lift(&mut world);
    assert!(world.holds_rule(), "it was lifted");
    assert_eq!(world.state.replica().rule_records().len(), 1, "points are told of it");
    world.pass(ends.since(world.now));
    world.mark();
    assert!(world.holds_rule(), "at its last moment");
    world.pass(Duration::from_millis(1));
    world.mark();
    assert!(!world.holds_rule(), "after its end");
    assert!(world.state.replica().rule_records().is_empty());
}

#[test]
fn nothing_lifts_a_rule_before_its_end() {
    // Removed from the server's state.
    lasts_to_its_end(|world| world.withdraw("Revocation", "r1"));
    // A snapshot that lacks it, of the same incarnation.
    lasts_to_its_end(|world| {
        world.records.pop();
        world.revision += 1;
        world.event(Event::Said(world.snapshot()));
    });
    // A restored server, of another incarnation, without it.
    lasts_to_its_end(|world| {
        world.records.pop();
        let restored = SyncMessage::Snapshot {
            revision: Revision { incarnation: 1, number: world.revision + 1000 },
            records: world.records.clone(),
            clock: Some(world.now),
        };
        world.revision += 1000;
        world.event(Event::Said(restored));
    });
    // Our own clock, a year forward and back, when it is removed in between.
    lasts_to_its_end(|world| {
        let before = world.now;
        world.server_clock = Some(before);
        world.now = before + secs(365 * 86_400);
        world.withdraw("Revocation", "r1");
        world.mark();
        world.now = before;
        world.server_clock = None;
    });
    // The server's clock, a year forward and back.
    lasts_to_its_end(|world| {
        world.server_clock = Some(world.now + secs(365 * 86_400));
        world.mark();
        world.withdraw("Revocation", "r1");
        world.server_clock = None;
    });
    // Our own clock back, and the server's word that it is gone.
    lasts_to_its_end(|world| {
        let before = world.now;
        world.now = before - secs(86_400);
        world.withdraw("Revocation", "r1");
        world.mark();
        world.now = before;
    });
}

#[test]
fn server_with_an_older_state_is_refused_and_every_rule_stays() {
    let mut world = served();
    world.put(vec![rule("r1", Revoked::Authority(ISSUER), START)]);
    let old = SyncMessage::Snapshot { revision: revision(3), records: vec![domain()], clock: None };
    let actions = world.state.step(Event::Said(old), world.now, &world.entropy);
    assert!(actions.contains(&Action::Close));
    assert!(world.holds_rule());
}

#[test]
fn rule_of_the_same_name_that_says_something_else_replaces_none() {
    let mut world = served();
    let target = |other: &str| Revoked::Identity { id: id(other), before: revision(8) };
    world.put(vec![rule("r1", target("one"), START)]);
    world.put(vec![rule("r1", target("two"), START + secs(1))]);
    assert_eq!(world.state.replica().rules().len(), 2);
    assert_eq!(world.state.replica().rule_records().len(), 2);
}

#[test]
fn restart_goes_on_with_the_rules_even_when_the_records_are_lost() {
    let mut world = served();
    world.put(vec![rule("r1", Revoked::Authority(ISSUER), world.now)]);
    let rules = Arc::clone(world.state.replica().rules());
    let remembered = Remembered { replica: None, rules, seen: world.state.seen() };
    // The clock of the next life is behind.
    let early = START - secs(86_400);
    let mut state = State::new(settings(1), node(1, secs(3600)), remembered, early);
    assert_eq!(state.replica().rules().len(), 1);
    assert_eq!(state.seen(), world.now, "the highest time that was seen is kept");
    let entropy = SeededEntropy::new(1);
    state.step(Event::Woke, early, &entropy);
    state.step(Event::Opened, early, &entropy);
    let lacking = vec![domain(), workload("web")];
    let clock = Some(world.now);
    let snapshot = SyncMessage::Snapshot { revision: revision(1), records: lacking, clock };
    state.step(Event::Said(snapshot), early, &entropy);
    assert_eq!(state.replica().rules().len(), 1);
}

#[test]
fn rule_that_this_version_cannot_read_is_passed_on_and_the_revision_is_not_said_to_be_enforced() {
    let mut world = served();
    assert!(world.state.replica().is_understood());
    let unknown = br#"{"target":{"planet":"earth"},"reason":"unspecified"}"#;
    world.put(vec![Record::read("Revocation", "r9", unknown).unwrap()]);
    assert!(!world.state.replica().is_understood());
    assert_eq!(&world.state.replica().rule_records()[0].value[..], unknown);
    world.withdraw("Revocation", "r9");
    assert!(world.state.replica().is_understood());
}

/// The agent of a machine whose stream was just refused for this.
fn refused(code: Code) -> World {
    let mut world = served();
    world.server_up = false;
    world.event(Event::Closed { code, why: "this node is refused".to_owned() });
    world
}

#[test]
fn revoked_agent_renews_at_once_under_a_successor_of_its_key() {
    let mut world = served();
    let renewed = world.node_renewed.len();
    let opened = world.opened.len();
    world.event(Event::Closed { code: Code::Revoked, why: "revoked".to_owned() });
    world.pass(Duration::from_millis(1));
    assert_eq!(world.node_renewed.len(), renewed + 1);
    assert_eq!(world.opened.len(), opened + 1, "and comes with that");
    assert_eq!(world.state.link().refused, None);
    assert!(world.held("web").is_some());
}

#[test]
fn refused_node_says_so_serves_what_it_holds_to_its_end_and_does_not_hammer() {
    for code in [Code::Suspended, Code::UnknownNode, Code::Revoked] {
        let mut world = refused(code);
        world.event(Event::NodeRenewalFailed { code, why: "this node is refused".to_owned() });
        assert_eq!(world.state.link().refused, Some(code));
        let mut tries = 0;
        let end = world.now + secs(600);
        loop {
            let wake = world.state.next_wake(world.now);
            if end < wake {
                break;
            }
            world.now = wake;
            let entropy = SeededEntropy::new(tries);
            for action in world.state.step(Event::Woke, world.now, &entropy) {
                let why = "this node is refused".to_owned();
                let event = match action {
                    Action::RenewNode { .. } => Event::NodeRenewalFailed { code, why },
                    Action::Open { .. } => Event::Closed { code, why },
                    Action::Close | Action::Sign(_) | Action::Publish | Action::Remember => {
                        continue;
                    }
                };
                tries += 1;
                world.state.step(event, world.now, &entropy);
            }
        }
        assert!((5..40).contains(&tries), "{tries} tries in ten minutes for `{code}`");
        assert!(world.held("web").is_some(), "standing trust goes on until it ends");
        assert_eq!(world.state.refusal(&name("web")), None);
        // An operator lets it in again.
        world.server_up = true;
        world.pass(secs(130));
        assert_eq!(world.state.link().refused, None);
    }
}

#[test]
fn agent_never_opens_a_stream_with_a_certificate_that_is_revoked() {
    let mut world = served();
    world.fall();
    let own = Revoked::Key(node(1, secs(1)).shown.key);
    let rules = Replica::of(revision(9), [rule("r1", own, START)]);
    let replica = Some(rules.keeping(world.state.replica().rules(), START));
    let remembered = Remembered { replica, ..Remembered::nothing() };
    let settings = Settings { node: NODE, servers: 1, batch_max: 256 };
    let mut state = State::new(settings, node(1, secs(86_400)), remembered, START);
    let entropy = SeededEntropy::new(1);
    let mut now = START;
    for _ in 0..20 {
        let actions = state.step(Event::Woke, now, &entropy);
        assert_eq!(actions, [Action::RenewNode { server: 0 }], "at {now}");
        let why = "late".to_owned();
        state.step(Event::NodeRenewalFailed { code: Code::TimedOut, why }, now, &entropy);
        now = state.next_wake(now);
    }
}
