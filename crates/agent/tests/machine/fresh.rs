//! Credentials are kept fresh, whatever servers and clocks do.

use std::sync::Arc;
use std::time::Duration;

use countersign_agent::core::{
    Action, Credential, Event, Knowledge, Outcome, Record, RecordKey, Remembered, Replica, Shown,
    State, SyncMessage,
};
use countersign_identity::{Attested, Code, Revision, SeededEntropy, Selector, Timestamp};

use crate::world::{
    START, World, away, domain, id, name, node, revision, secs, settings, workload, workload_with,
};

#[test]
fn svids_are_fetched_before_anybody_asks() {
    let mut world = World::new(1, secs(3600));
    assert_eq!(world.state.knowledge(), Knowledge::Nothing);
    world.event(Event::Woke);
    assert_eq!(world.state.knowledge(), Knowledge::Synced);
    assert!(world.held("web").is_some());
}

#[test]
fn renewal_lies_between_45_and_50_percent_of_the_lifetime() {
    for seed in 1..200 {
        let mut world = World::new(seed, secs(3600));
        world.event(Event::Woke);
        world.pass(secs(3600));
        let second = world.signed[1].0.since(START);
        assert!(secs(1620) <= second && second <= secs(1800), "seed {seed}: {second:?}");
    }
}

#[test]
fn an_outage_up_to_the_budget_is_survived_and_told_throughout() {
    for seed in 1..50 {
        let mut world = World::new(seed, secs(60));
        world.event(Event::Woke);
        // The worst moment: just before the renewal.
        let due = world.held("web").unwrap().due();
        world.pass(due.since(START) - Duration::from_millis(1));
        world.fall();
        let ends = world.state.first_expiry().unwrap();
        assert_eq!(ends, START + secs(60));
        for _ in 0..27 {
            world.pass(secs(1));
            assert_eq!(world.state.first_expiry(), Some(ends), "the budget is told as it is");
            assert!(world.held("web").is_some());
        }
        world.server_up = true;
        // Spread over what is left, and always before the end.
        let gone = due.since(START) - Duration::from_millis(1) + secs(27);
        world.pass(secs(60) - gone - Duration::from_millis(1));
        assert!(world.held("web").unwrap().issued > START, "seed {seed} did not recover");
    }
}

#[test]
fn after_an_outage_longer_than_everything_the_agent_comes_back_by_itself() {
    let mut world = World::new(3, secs(60));
    world.node_lifetime = secs(120);
    world.state = State::new(settings(1), node(9, secs(120)), Remembered::nothing(), START);
    world.event(Event::Woke);
    world.fall();
    world.pass(secs(3600));
    assert!(world.held("web").is_none());
    assert!(world.node_renewed.is_empty());
    world.server_up = true;
    world.pass(secs(12));
    assert!(!world.node_renewed.is_empty(), "the expired SVID of the node was renewed first");
    assert!(world.held("web").is_some());
}

#[test]
fn a_failed_renewal_is_not_tried_again_in_the_last_20th() {
    let mut world = World::new(4, secs(1000));
    world.event(Event::Woke);
    // The server answers, and cannot sign.
    let mut tries = Vec::new();
    let end = START + secs(999);
    loop {
        let wake = world.state.next_wake(world.now);
        if end < wake {
            break;
        }
        world.now = wake;
        for action in world.state.step(Event::Woke, world.now, &world.entropy) {
            if let Action::Sign(workloads) = action {
                tries.push(world.now);
                let failed = Outcome::Failed("no".to_owned());
                let outcomes =
                    workloads.iter().map(|one| (one.name.clone(), failed.clone())).collect();
                world.state.step(Event::Signed(outcomes), world.now, &world.entropy);
            }
        }
    }
    assert!(3 < tries.len(), "{tries:?}");
    assert!(tries.len() < 60, "a failing server is not hammered: {}", tries.len());
    assert!(*tries.last().unwrap() <= START + secs(950), "{tries:?}");
    // After its end it is a new request.
    world.pass(secs(1000));
    assert!(world.held("web").is_some());
}

#[test]
fn a_withdrawn_workload_is_dropped_at_once_and_never_asked_for_again() {
    let mut world = World::new(5, secs(60));
    world.event(Event::Woke);
    let gone = vec![RecordKey::read("Workload", "web").unwrap()];
    let message = SyncMessage::Changes { revision: revision(8), put: Vec::new(), gone };
    world.event(Event::Said(message));
    assert!(world.held("web").is_none());
    let asked = world.signed.len();
    world.pass(secs(300));
    assert_eq!(world.signed.len(), asked);
}

#[test]
fn what_was_asked_before_the_withdrawal_is_not_held_when_it_arrives_after() {
    let mut world = World::new(6, secs(60));
    let entropy = SeededEntropy::new(6);
    world.state.step(Event::Woke, START, &entropy);
    world.state.step(Event::Opened, START, &entropy);
    let actions = world.state.step(Event::Said(world.snapshot()), START, &entropy);
    assert!(actions.iter().any(|action| matches!(action, Action::Sign(_))));
    let gone = vec![RecordKey::read("Workload", "web").unwrap()];
    let message = SyncMessage::Changes { revision: revision(8), put: Vec::new(), gone };
    world.state.step(Event::Said(message), START, &entropy);
    let issued = world.issue(id("web"), secs(60));
    let (term, outcome) = (issued.term, Outcome::Issued(issued));
    world.state.step(Event::Signed(vec![(name("web"), outcome)]), START, &entropy);
    assert!(!world.state.holds(&name("web"), &term.digest));
}

#[test]
fn a_workload_that_becomes_somebody_else_loses_what_it_had() {
    let mut world = World::new(7, secs(60));
    world.event(Event::Woke);
    let first = world.held("web").unwrap();
    let other = workload_with("web", r#","spiffeId":"spiffe://shop.example/other""#);
    world.records = vec![domain(), other.clone()];
    let message =
        SyncMessage::Changes { revision: revision(8), put: vec![other], gone: Vec::new() };
    world.event(Event::Said(message));
    assert_ne!(world.held("web").unwrap().digest, first.digest);
}

#[test]
fn an_answer_for_another_identity_is_not_held() {
    let mut world = World::new(8, secs(60));
    let entropy = SeededEntropy::new(8);
    world.state.step(Event::Woke, START, &entropy);
    world.state.step(Event::Opened, START, &entropy);
    world.state.step(Event::Said(world.snapshot()), START, &entropy);
    let issued = world.issue(id("admin"), secs(60));
    let (term, outcome) = (issued.term, Outcome::Issued(issued));
    world.state.step(Event::Signed(vec![(name("web"), outcome)]), START, &entropy);
    assert!(!world.state.holds(&name("web"), &term.digest));
}

#[test]
fn a_changed_lifetime_takes_effect_at_once_and_the_old_svid_serves_until_then() {
    let mut world = World::new(9, secs(3600));
    world.event(Event::Woke);
    world.pass(secs(10));
    world.lifetime = secs(10);
    let put = vec![workload_with("web", r#","lifetime":"10s""#)];
    let message = SyncMessage::Changes { revision: revision(8), put, gone: Vec::new() };
    world.event(Event::Said(message));
    assert_eq!(world.held("web").unwrap().expires, world.now + secs(10));
    assert_eq!(world.signed.len(), 2);
}

/// A credential of `web` that says that its holder was attested by these selectors.
fn saying(world: &mut World, selectors: &[&str]) -> Credential {
    let selectors: Vec<Selector> = selectors.iter().map(|text| text.parse().unwrap()).collect();
    let Credential { term, shown } = world.issue(id("web"), secs(3600));
    let shown = Shown { attested: Attested::by(&selectors), ..Shown::clone(&shown) };
    Credential { term, shown: Arc::new(shown) }
}

#[test]
fn what_says_more_of_attestation_than_the_manifest_asks_for_is_handed_to_nobody() {
    let mut world = World::new(23, secs(3600));
    let step = |world: &mut World, event| world.state.step(event, world.now, &world.entropy);
    step(&mut world, Event::Woke);
    step(&mut world, Event::Opened);
    let snapshot = world.snapshot();
    step(&mut world, Event::Said(snapshot));
    let held = saying(&mut world, &["launch:web"]);
    let digest = held.term.digest;
    step(&mut world, Event::Signed(vec![(name("web"), Outcome::Issued(held))]));
    assert!(world.state.holds(&name("web"), &digest));
    let asks = |number, selectors: &str| {
        let value = format!(r#"{{"keyType":"ecdsa-p256","selectors":{selectors}}}"#);
        let put = vec![Record::read("Workload", "web", value.as_bytes()).unwrap()];
        Event::Said(SyncMessage::Changes { revision: revision(number), put, gone: Vec::new() })
    };
    // Asked for more: what is held stays until its successor, which says it, is there.
    let actions = step(&mut world, asks(8, r#"["launch:web","unix:uid:7"]"#));
    assert_eq!(signs(&actions), [["web"]]);
    assert!(world.state.holds(&name("web"), &digest));
    let both = saying(&mut world, &["launch:web", "unix:uid:7"]);
    let digest = both.term.digest;
    step(&mut world, Event::Signed(vec![(name("web"), Outcome::Issued(both))]));
    assert!(world.state.holds(&name("web"), &digest));
    // Asked for less: whoever comes now need not have been launched.
    let actions = step(&mut world, asks(9, r#"["unix:uid:7"]"#));
    assert!(!world.state.holds(&name("web"), &digest));
    assert_eq!(signs(&actions), [["web"]]);
    // A server that has not heard of it yet.
    let late = saying(&mut world, &["launch:web", "unix:uid:7"]);
    let digest = late.term.digest;
    step(&mut world, Event::Signed(vec![(name("web"), Outcome::Issued(late))]));
    assert!(!world.state.holds(&name("web"), &digest));
    world.now = world.now + secs(5);
    assert_eq!(signs(&step(&mut world, Event::Woke)), [["web"]], "asked again");
    let right = saying(&mut world, &["unix:uid:8"]);
    let digest = right.term.digest;
    step(&mut world, Event::Signed(vec![(name("web"), Outcome::Issued(right))]));
    assert!(world.state.holds(&name("web"), &digest));
}

#[test]
fn a_clock_that_steps_forward_or_back_leads_to_a_new_svid_once() {
    let mut world = World::new(10, secs(3600));
    world.event(Event::Woke);
    world.now = START + secs(7200);
    world.event(Event::Woke);
    assert_eq!(world.held("web").unwrap().issued, world.now, "suspended for two hours");
    world.pass(secs(1));
    let asked = world.signed.len();
    world.now = START + secs(10);
    world.event(Event::Woke);
    assert_eq!(world.held("web").unwrap().issued, world.now, "set back by two hours");
    assert_eq!(world.signed.len(), asked + 1);
    world.pass(secs(100));
    assert_eq!(world.signed.len(), asked + 1, "and it does not ask on and on");
}

#[test]
fn a_server_that_fell_behind_is_refused_and_what_is_held_stays() {
    let mut world = World::new(11, secs(60));
    world.event(Event::Woke);
    let held = world.held("web");
    let old = SyncMessage::Snapshot { revision: revision(3), records: vec![domain()], clock: None };
    let actions = world.state.step(Event::Said(old), world.now, &world.entropy);
    assert!(actions.contains(&Action::Close));
    assert_eq!(world.held("web"), held);
    assert_eq!(world.state.replica().revision(), revision(7));
    let trouble = world.state.link().trouble.unwrap();
    assert!(trouble.contains("1.3"), "{trouble}");
}

#[test]
fn a_new_incarnation_is_taken_even_with_a_lower_number() {
    let mut world = World::new(12, secs(60));
    world.event(Event::Woke);
    let revision = Revision { incarnation: 2, number: 1 };
    let records = vec![domain(), workload("web")];
    let restored = SyncMessage::Snapshot { revision, records, clock: None };
    world.event(Event::Said(restored));
    assert_eq!(world.state.replica().revision(), revision);
}

#[test]
fn a_refusal_is_the_servers_word_and_a_failure_is_not() {
    let mut world = World::new(13, secs(60));
    let entropy = SeededEntropy::new(13);
    let until_asked = |world: &mut World| {
        world.state.step(Event::Woke, START, &entropy);
        world.state.step(Event::Opened, START, &entropy);
        world.state.step(Event::Said(world.snapshot()), START, &entropy);
    };
    until_asked(&mut world);
    let failed = Outcome::Failed("late".to_owned());
    world.state.step(Event::Signed(vec![(name("web"), failed)]), START, &entropy);
    assert_eq!(world.state.refusal(&name("web")), None);

    let mut world = World::new(14, secs(60));
    until_asked(&mut world);
    let refused = Outcome::Refused(Code::LongLifetime, "too long".to_owned());
    world.state.step(Event::Signed(vec![(name("web"), refused)]), START, &entropy);
    assert_eq!(world.state.refusal(&name("web")).unwrap().0, Code::LongLifetime);
}

#[test]
fn a_workload_of_other_nodes_is_asked_for_once_and_not_complained_about() {
    let mut world = World::new(15, secs(60));
    let entropy = SeededEntropy::new(15);
    world.state.step(Event::Woke, START, &entropy);
    world.state.step(Event::Opened, START, &entropy);
    world.state.step(Event::Said(world.snapshot()), START, &entropy);
    let refused = Outcome::Refused(Code::UnknownWorkload, "not here".to_owned());
    world.state.step(Event::Signed(vec![(name("web"), refused)]), START, &entropy);
    assert_eq!(world.state.standings().count(), 0);
    assert!(START + secs(500) < world.state.next_wake(START));
}

#[test]
fn more_workloads_than_one_request_takes_are_all_served() {
    let mut world = World::new(16, secs(3600));
    let numbers = 0..700;
    world.records.extend(numbers.map(|number| workload(&format!("w{number}"))));
    world.event(Event::Woke);
    assert_eq!(world.state.standings().filter(|(_, one)| one.term.is_some()).count(), 701);
}

#[test]
fn a_remembered_state_is_known_and_gone_on_from() {
    let remembered = Replica::of(revision(5), [domain(), workload("web")]);
    let remembered = Remembered { replica: Some(remembered), ..Remembered::nothing() };
    let mut state = State::new(settings(1), node(1, secs(3600)), remembered, START);
    assert_eq!(state.knowledge(), Knowledge::Remembered);
    let actions = state.step(Event::Woke, START, &SeededEntropy::new(1));
    assert_eq!(actions, [Action::Open { server: 0, have: Some(revision(5)) }]);
}

#[test]
fn every_server_is_tried_before_waiting() {
    let mut state = State::new(settings(3), node(1, secs(3600)), Remembered::nothing(), START);
    let entropy = SeededEntropy::new(1);
    let mut tried = Vec::new();
    let mut actions = state.step(Event::Woke, START, &entropy);
    while let Some(Action::Open { server, .. }) = actions.first() {
        tried.push(*server);
        actions = state.step(away(), START, &entropy);
    }
    assert_eq!(tried, [0, 1, 2]);
    assert!(START < state.next_wake(START));
}

/// The most of a thousand moments that fall into one span.
fn densest(mut moments: Vec<Timestamp>, span: Duration) -> usize {
    moments.sort();
    let within = |from: &Timestamp| {
        moments.iter().filter(|moment| *from <= **moment && **moment < *from + span).count()
    };
    moments.iter().map(within).max().unwrap_or(0)
}

#[test]
fn a_thousand_agents_do_not_come_back_together() {
    let mut back = Vec::new();
    let mut renewals = Vec::new();
    for seed in 1..=1000 {
        let mut world = World::new(seed, secs(3600));
        world.event(Event::Woke);
        world.pass(secs(100));
        world.fall();
        world.pass(secs(60));
        world.server_up = true;
        let before = world.opened.len();
        world.pass(secs(20));
        back.push(world.opened[before]);
        let before = world.signed.len();
        world.pass(secs(3600));
        renewals.push(world.signed[before].0);
    }
    let herd = densest(back, Duration::from_millis(100));
    assert!(herd < 60, "{herd} of 1000 come back within 100 ms");
    let herd = densest(renewals, secs(10));
    assert!(herd < 120, "{herd} of 1000 renew within 10 s of an hour");
}

fn of_kind(name: &str, kind: &str) -> Record {
    let value = format!(r#"{{"keyType":"{kind}","selectors":["launch:{name}"]}}"#);
    Record::read("Workload", name, value.as_bytes()).unwrap()
}

fn signs(actions: &[Action]) -> Vec<Vec<&str>> {
    let mut batches = Vec::new();
    for action in actions {
        if let Action::Sign(workloads) = action {
            batches.push(workloads.iter().map(|one| one.name.as_str()).collect());
        }
    }
    batches
}

#[test]
fn keys_that_take_long_are_made_one_by_one_and_nobody_else_waits_for_them() {
    let mut world = World::new(21, secs(600));
    world.records = vec![
        domain(),
        workload("web"),
        of_kind("old-a", "rsa-3072"),
        of_kind("old-b", "rsa-2048"),
        of_kind("api", "ecdsa-p384"),
    ];
    let step = |world: &mut World, event| world.state.step(event, world.now, &world.entropy);
    step(&mut world, Event::Woke);
    step(&mut world, Event::Opened);
    let snapshot = world.snapshot();
    let actions = step(&mut world, Event::Said(snapshot));
    assert_eq!(signs(&actions), [vec!["api", "web"], vec!["old-a"]]);
    // Something new while the slow key is in the making: asked for as soon as the quick ones are there.
    let put = vec![workload("late")];
    let message = SyncMessage::Changes { revision: revision(8), put, gone: Vec::new() };
    assert_eq!(signs(&step(&mut world, Event::Said(message))), Vec::<Vec<&str>>::new());
    let answer = |world: &mut World, name_of: &str| {
        let issued = world.issue(id(name_of), secs(600));
        (name(name_of), Outcome::Issued(issued))
    };
    let quick = vec![answer(&mut world, "web"), answer(&mut world, "api")];
    assert_eq!(signs(&step(&mut world, Event::Signed(quick))), [vec!["late"]]);
    // A kind that changes meanwhile is asked for anew afterwards, not twice at once.
    let put = vec![of_kind("old-a", "ecdsa-p256")];
    let message = SyncMessage::Changes { revision: revision(9), put, gone: Vec::new() };
    assert_eq!(signs(&step(&mut world, Event::Said(message))), Vec::<Vec<&str>>::new());
    let late = vec![answer(&mut world, "late")];
    assert_eq!(signs(&step(&mut world, Event::Signed(late))), Vec::<Vec<&str>>::new());
    let slow = vec![answer(&mut world, "old-a")];
    assert_eq!(signs(&step(&mut world, Event::Signed(slow))), [vec!["old-a"], vec!["old-b"]]);
}
