//! Slices, acknowledgements and facts.

use std::num::NonZeroU64;

use countersign::{
    Authorization, Choice, Code, Enforcement, Point, PointKind, Source, Topic, WorkloadApiOptions,
};
use countersign_api::v1;
use countersign_api::v1::enforcement_request::Step as Said;
use tokio::io::AsyncReadExt;

use crate::agent::{Agent, Heard, Offer};
use crate::realm::Realm;
use crate::revocation::{other_rule, record};
use crate::world::{
    PATIENCE, READERS, World, connect, connect_to, now, options, policy, response, source,
    source_with, until,
};

/// `orders` with its agent at revision 5, acknowledged.
pub(crate) async fn orders(world: &mut World) -> Source {
    world.agent.give(world.wire(&world.svid("/orders")));
    world.agent.enforce(world.slice(5, "orders"));
    let orders = source(&world.agent).await;
    orders.ready().await.unwrap();
    assert_eq!(world.agent.acknowledged().await, (5, 0));
    orders
}

/// `web` with an agent of its own.
pub(crate) async fn web(world: &World) -> (Source, Agent, tempfile::TempDir) {
    let (agent, folder) = world.neighbour(Offer::Enforcement);
    agent.give(world.wire(&world.svid("/web")));
    agent.enforce(world.slice(5, "web"));
    let web = source(&agent).await;
    web.ready().await.unwrap();
    (web, agent, folder)
}

#[tokio::test]
async fn the_point_registers_and_tells_its_status_and_its_services() {
    let mut world = World::new(Offer::Enforcement);
    world.agent.give(world.wire(&world.svid("/orders")));
    world.agent.enforce(world.slice(5, "orders"));
    let point = Point { name: "gate".parse().unwrap(), kind: PointKind::Proxy };
    let options = WorkloadApiOptions { point, ..options(&world.agent) };
    let source = Source::from_workload_api(options).await.unwrap();
    source.ready().await.unwrap();
    let Heard::Said(Said::Register(register)) = world.agent.next().await else { panic!() };
    assert_eq!((register.point.as_str(), register.kind.as_str()), ("gate", "proxy"));
    let (mut acknowledged, mut told) = (false, false);
    while !(acknowledged && told) {
        match world.agent.next().await {
            Heard::Said(Said::Status(status)) => {
                assert_eq!((status.name.as_str(), status.pid), ("gate", std::process::id()));
                assert!(1_000_000 < status.resident_bytes);
                told = true;
            }
            Heard::Said(Said::Acknowledge(acknowledge)) => {
                assert_eq!(acknowledge.revision.unwrap().number, 5);
                acknowledged = true;
            }
            heard => panic!("{heard:?}"),
        }
    }
    let services = source.services().borrow().clone().unwrap();
    assert_eq!(services.workload.as_str(), "orders");
    let own: Vec<_> = services.own().map(|(name, _)| name.as_str()).collect();
    assert_eq!(own, ["orders"]);
    let id = services.id_of(&"orders".parse().unwrap()).unwrap();
    assert_eq!(id.as_str(), "spiffe://shop.example/orders");
    assert_eq!(services.id_of(&"payments".parse().unwrap()), None);
    source.shutdown().await;
    assert_eq!(world.agent.end().await, Heard::Goodbye);
}

#[tokio::test]
async fn a_source_that_is_told_which_identity_it_is_asks_for_it_and_enforces_for_no_other() {
    let mut world = World::new(Offer::Enforcement);
    let (web, orders) = (world.svid("/web"), world.svid("/orders"));
    let bundle = world.realm.bundle();
    world.agent.give(response(vec![web.wire(&bundle), orders.wire(&bundle)]));
    // An agent that does not understand the question speaks of the first.
    world.agent.enforce(world.slice(5, "web"));
    let choice = Choice::Id(orders.id.clone());
    let options = WorkloadApiOptions { choice, ..options(&world.agent) };
    let source = Source::from_workload_api(options).await.unwrap();
    let Heard::Said(Said::Register(register)) = world.agent.next().await else { panic!() };
    assert_eq!(register.spiffe_id, orders.id.as_str());
    let status = until(&source, |status| status.troubles.contains_key(&Topic::Slice)).await;
    let told = &status.troubles[&Topic::Slice];
    assert!(told.contains("for `spiffe://shop.example/web` and not for"), "{told}");
    assert!(!status.is_ready(), "{status:?}");
    assert!(source.services().borrow().is_none());
    world.agent.enforce(world.slice(6, "orders"));
    source.ready().await.unwrap();
    assert_eq!(source.services().borrow().as_ref().unwrap().id, orders.id);
    assert_eq!(
        world.agent.acknowledged().await,
        (6, 0),
        "what it does not enforce it did not acknowledge"
    );
}

#[tokio::test]
async fn who_says_goodbye_lets_nobody_in_any_more_and_who_is_dropped_says_nothing() {
    let mut world = World::new(Offer::Enforcement);
    let (web, mut agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    let (client, server) = connect(&web, &orders).await;
    let (mut client, _server) = (client.unwrap(), server.unwrap());
    let trust = orders.trust();
    orders.shutdown().await;
    assert_eq!(world.agent.end().await, Heard::Goodbye);
    // The end may come as an error or as the end of the stream.
    assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap_or(0), 0);
    assert_eq!(trust.connections(), 1, "its owner still holds what was shut");
    let (_, server) = connect_to(&web, &trust).await;
    assert!(server.is_err(), "what was made of it before lets nobody in");
    drop(web);
    assert_eq!(agent.end().await, Heard::Lost);
}

#[tokio::test]
async fn an_agent_that_hangs_keeps_no_program_from_its_end() {
    let mut world = World::new(Offer::Enforcement);
    let orders = orders(&mut world).await;
    world.agent.hang();
    tokio::time::timeout(PATIENCE, orders.shutdown()).await.expect("it ends all the same");
}

#[tokio::test]
async fn what_the_slice_allows_is_allowed_and_nothing_before_it() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    world.agent.give(world.wire(&world.svid("/orders")));
    let orders = source(&world.agent).await;
    until(&orders, |status| status.identity.is_some()).await;
    assert_eq!(orders.status().enforcement, Enforcement::Waiting);
    let (_, server) = connect(&web, &orders).await;
    assert_eq!(server.unwrap_err().code, Code::PolicyDenied);
    world.agent.enforce(world.slice(5, "orders"));
    orders.ready().await.unwrap();
    let (client, server) = connect(&web, &orders).await;
    assert!(client.is_ok() && server.is_ok());
    assert_eq!(world.agent.acknowledged().await, (5, 0));
}

#[tokio::test]
async fn a_change_cuts_what_it_denies_before_it_is_acknowledged() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    let (client, server) = connect(&web, &orders).await;
    let (mut client, _server) = (client.unwrap(), server.unwrap());
    let mut slice = world.slice(6, "orders");
    slice.policies.clear();
    world.agent.enforce(slice);
    assert_eq!(world.agent.acknowledged().await, (6, 1));
    let mut rest = Vec::new();
    // The end may come as an error or as the end of the stream.
    assert_eq!(client.read_to_end(&mut rest).await.unwrap_or(0), 0);
    let (_, server) = connect(&web, &orders).await;
    assert_eq!(server.unwrap_err().code, Code::PolicyDenied);
    // The count goes on.
    world.agent.mark(7);
    assert_eq!(world.agent.acknowledged().await, (7, 1));
}

const BANNED: &str = r#"forbid (principal in Role::"readers", action, resource);"#;

fn readers(members: &[&str]) -> v1::RoleMembers {
    let members = members.iter().map(|&member| member.to_owned()).collect();
    v1::RoleMembers { role: READERS.to_owned(), members }
}

/// A slice that keeps out who is in a role, in which these are.
fn banned(world: &World, number: u64, members: &[&str]) -> v1::Slice {
    let mut slice = world.slice(number, "orders");
    slice.policies.push(v1::Record { name: "banned".to_owned(), ..policy(BANNED) });
    slice.roles.push(readers(members));
    slice
}

#[tokio::test]
async fn who_comes_into_a_role_is_shut_out_by_what_is_said_of_it() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    world.agent.enforce(banned(&world, 6, &["orders", "spiffe://shop.example/other"]));
    assert_eq!(world.agent.acknowledged().await, (6, 0));
    let (client, server) = connect(&web, &orders).await;
    let (mut client, _server) = (client.unwrap(), server.unwrap());
    world.agent.enforce(banned(&world, 7, &["web"]));
    assert_eq!(world.agent.acknowledged().await, (7, 1));
    assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap_or(0), 0);
    let (_, server) = connect(&web, &orders).await;
    assert_eq!(server.unwrap_err().code, Code::PolicyDenied);
}

type Change = Box<dyn Fn(&mut v1::Slice)>;

#[tokio::test]
async fn a_slice_that_cannot_be_read_is_not_acknowledged_and_the_old_one_stays() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    let mut good = 5;
    let mut number = 5;
    let bad: Vec<(&str, Change)> = vec![
        ("no revision", Box::new(|slice| slice.revision = None)),
        ("nobody's", Box::new(|slice| slice.workload.clear())),
        ("no SPIFFE ID", Box::new(|slice| slice.spiffe_id = "orders".to_owned())),
        (
            "another's SPIFFE ID",
            Box::new(|slice| slice.spiffe_id = "spiffe://shop.example/web".to_owned()),
        ),
        (
            "a TLS profile that nobody has told",
            Box::new(|slice| {
                let value = br#"{"workload":"orders","protocol":"http","listen":"127.0.0.1:4","forward":"unix","tlsProfile":"press"}"#;
                slice.services[0].value = value[..].into();
            }),
        ),
        (
            "a policy that does not compile",
            Box::new(|slice| slice.policies[0] = policy("permit (")),
        ),
        (
            "an unscoped policy",
            Box::new(|slice| slice.policies[0] = policy("permit (principal, action, resource);")),
        ),
        (
            "a policy record of another form",
            Box::new(|slice| slice.policies[0].value = b"{}"[..].into()),
        ),
        (
            "a policy of another kind",
            Box::new(|slice| slice.policies[0].kind = "Revocation".to_owned()),
        ),
        ("a policy twice", Box::new(|slice| slice.policies.push(slice.policies[0].clone()))),
        (
            "a role of which nobody has told",
            Box::new(|slice| {
                slice.policies.push(v1::Record { name: "banned".to_owned(), ..policy(BANNED) });
            }),
        ),
        (
            "a role with a member of whom nobody has told",
            Box::new(|slice| slice.roles.push(readers(&["cron"]))),
        ),
        ("a role twice", Box::new(|slice| slice.roles.extend([readers(&["web"]), readers(&[])]))),
        (
            "a label that is none",
            Box::new(|slice| slice.workloads[0].labels.push("a b".to_owned())),
        ),
        (
            "a service of a later form",
            Box::new(|slice| {
                slice.services[0].value = br#"{"workload":"orders","only":"tuesdays"}"#[..].into();
            }),
        ),
        ("a service twice", Box::new(|slice| slice.services.push(slice.services[0].clone()))),
        (
            "a service with a name that is none",
            Box::new(|slice| slice.services[0].name = "a/b".to_owned()),
        ),
        (
            "a bundle that does not parse",
            Box::new(|slice| slice.bundles[0].authorities[0] = b"x"[..].into()),
        ),
        ("a bundle twice", Box::new(|slice| slice.bundles.push(slice.bundles[0].clone()))),
        (
            "a bundle of a domain that is none",
            Box::new(|slice| slice.bundles[0].trust_domain = "Shop".to_owned()),
        ),
        (
            "two names for one ID",
            Box::new(|slice| slice.workloads[0].spiffe_id = slice.workloads[1].spiffe_id.clone()),
        ),
        (
            "two IDs for one name",
            Box::new(|slice| slice.workloads[0].name = slice.workloads[1].name.clone()),
        ),
        (
            "a revocation of a later form",
            Box::new(|slice| {
                slice.revocations.push(record("r", &br#"{"target":{"host":"a"}}"#[..]));
            }),
        ),
        (
            "a revocation twice",
            Box::new(|slice| {
                let rule = serde_json::to_vec(&other_rule()).unwrap();
                slice.revocations = vec![record("r", &rule), record("r", &rule)];
            }),
        ),
        (
            "a revocation of another kind",
            Box::new(|slice| {
                let mut record = record("r", &serde_json::to_vec(&other_rule()).unwrap());
                record.kind = "Suspension".to_owned();
                slice.revocations.push(record);
            }),
        ),
        (
            "too many services",
            Box::new(|slice| slice.services = vec![slice.services[0].clone(); 5000]),
        ),
    ];
    for (what, change) in bad {
        number += 1;
        let mut slice = world.slice(number, "orders");
        change(&mut slice);
        world.agent.enforce(slice);
        let status = until(&orders, |status| status.troubles.contains_key(&Topic::Slice)).await;
        assert_eq!(status.revision.unwrap().number, good, "{what}");
        let (client, server) = connect(&web, &orders).await;
        assert!(client.is_ok() && server.is_ok(), "{what}");
        // Nothing later may be acknowledged by a mark: the state before it is not enforced.
        world.agent.mark(number + 1);
        number += 2;
        good = number;
        world.agent.enforce(world.slice(number, "orders"));
        assert_eq!(world.agent.acknowledged().await, (number, 0), "{what}");
        until(&orders, |status| !status.troubles.contains_key(&Topic::Slice)).await;
    }
}

#[tokio::test]
async fn a_step_of_a_later_version_is_not_passed_over() {
    let mut world = World::new(Offer::Enforcement);
    let orders = orders(&mut world).await;
    world.agent.steps.send_replace(Some(Ok(v1::EnforcementResponse { step: None })));
    let status = until(&orders, |status| status.troubles.contains_key(&Topic::Slice)).await;
    assert_eq!(status.revision.unwrap().number, 5);
    world.agent.mark(9);
    world.agent.enforce(world.slice(10, "orders"));
    assert_eq!(world.agent.acknowledged().await, (10, 0));
}

#[tokio::test]
async fn an_older_slice_does_not_bring_back_what_was_taken_away() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    let mut strict = world.slice(8, "orders");
    strict.policies.clear();
    world.agent.enforce(strict);
    assert_eq!(world.agent.acknowledged().await, (8, 0));
    world.agent.enforce(world.slice(7, "orders"));
    until(&orders, |status| status.troubles.contains_key(&Topic::Slice)).await;
    let (_, server) = connect(&web, &orders).await;
    assert_eq!(server.unwrap_err().code, Code::PolicyDenied);
    // A later incarnation is later, whatever its number.
    let mut restored = world.slice(1, "orders");
    restored.revision = Some(v1::Revision { incarnation: 2, number: 1 });
    world.agent.enforce(restored);
    assert_eq!(world.agent.acknowledged().await, (1, 0));
    assert_eq!(orders.status().revision.unwrap().incarnation, 2);
}

/// An agent that was restarted from an older state builds its marks on what it sent, not on what is enforced here.
#[tokio::test]
async fn a_mark_after_an_older_slice_is_not_acknowledged_for_what_it_does_not_describe() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let mut strict = world.slice(5, "orders");
    strict.policies.clear();
    world.agent.give(world.wire(&world.svid("/orders")));
    world.agent.enforce(strict.clone());
    let orders = source(&world.agent).await;
    assert_eq!(world.agent.acknowledged().await, (5, 0));
    // Revision 7 permits. The agent then comes back from 5, and learns of 10, which denies again.
    world.agent.enforce(world.slice(7, "orders"));
    assert_eq!(world.agent.acknowledged().await, (7, 0));
    let (client, server) = connect(&web, &orders).await;
    let _open = (client.unwrap(), server.unwrap());
    world.agent.enforce(strict.clone());
    until(&orders, |status| status.troubles.contains_key(&Topic::Slice)).await;
    world.agent.mark(10);
    strict.revision = Some(v1::Revision { incarnation: 1, number: 10 });
    // Asked again, the agent says what the mark meant.
    while !matches!(world.agent.next().await, Heard::Said(Said::Register(_))) {}
    world.agent.enforce(strict);
    assert_eq!(world.agent.acknowledged().await, (10, 1));
}

#[tokio::test]
async fn what_was_said_stays_while_the_agent_is_away_and_is_acknowledged_anew_after() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    world.agent.die();
    until(&orders, |status| matches!(status.enforcement, Enforcement::Lost { .. })).await;
    let (client, server) = connect(&web, &orders).await;
    assert!(client.is_ok() && server.is_ok());
    world.agent.run();
    // The agent sends what it has, which is the same, and wants to hear it of this stream.
    assert_eq!(world.agent.acknowledged().await, (5, 0));
    until(&orders, |status| status.enforcement == Enforcement::Subscribed).await;
}

#[tokio::test]
async fn an_svid_under_a_new_root_waits_for_the_slice_that_knows_the_root() {
    let mut world = World::new(Offer::Enforcement);
    let orders = orders(&mut world).await;
    let before = orders.status().identity.unwrap();
    let successor = Realm::new("shop.example", 9, now());
    let renewed = successor.svid("/orders", now(), 3600);
    world.agent.give(response(vec![renewed.wire(&successor.bundle())]));
    let status = until(&orders, |status| status.troubles.contains_key(&Topic::Identity)).await;
    assert_eq!(status.identity, Some(before));
    let mut slice = world.slice(6, "orders");
    slice.bundles[0].authorities.push(successor.root.der().to_vec().into());
    world.agent.enforce(slice);
    assert_eq!(world.agent.acknowledged().await, (6, 0));
    until(&orders, |status| {
        status.identity.as_ref().is_some_and(|own| own.serial == Some(renewed.serial()))
    })
    .await;
}

#[tokio::test]
async fn the_bundle_of_the_workload_api_does_not_widen_the_slice() {
    let mut world = World::new(Offer::Enforcement);
    let orders = orders(&mut world).await;
    let foreign = Realm::new("partner.example", 4, now());
    let mut message = world.wire(&world.svid("/orders"));
    let bundle = foreign.bundle().authorities_der_concat();
    message.federated_bundles.insert("spiffe://partner.example".to_owned(), bundle);
    let before = orders.status().identity;
    world.agent.give(message);
    until(&orders, |status| status.identity != before).await;
    assert!(orders.trust().slice().bundles.get(&"partner.example".parse().unwrap()).is_none());
}

#[tokio::test]
async fn with_rules_of_its_own_a_source_neither_asks_nor_acknowledges() {
    let mut world = World::new(Offer::Enforcement);
    world.agent.give(world.wire(&world.svid("/orders")));
    world.agent.enforce(world.slice(5, "orders"));
    let source = source_with(&world.agent, Authorization::Nothing).await;
    source.ready().await.unwrap();
    assert_eq!(source.status().enforcement, Enforcement::Local);
    assert_eq!(source.status().revision, None);
    source.shutdown().await;
    // Another that does ask is the first that the agent hears of.
    let other = WorkloadApiOptions {
        point: Point { name: "second".parse().unwrap(), kind: PointKind::Library },
        ..options(&world.agent)
    };
    let _other = Source::from_workload_api(other).await.unwrap();
    let Heard::Said(Said::Register(register)) = world.agent.next().await else { panic!() };
    assert_eq!(register.point, "second");
}

#[tokio::test]
async fn facts_arrive_and_what_is_too_much_is_counted() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    world.agent.give(world.wire(&world.svid("/orders")));
    let mut slice = world.slice(5, "orders");
    slice.policies.clear();
    world.agent.enforce(slice);
    let orders = source(&world.agent).await;
    orders.ready().await.unwrap();
    let (_, server) = connect(&web, &orders).await;
    let fact = *server.unwrap_err().fact;
    orders.reporter().report_many(fact.clone(), NonZeroU64::new(3).unwrap());
    let facts = world.agent.facts().await;
    let [told] = facts.handshakes.as_slice() else { panic!("{facts:?}") };
    assert_eq!((told.code.as_str(), told.count, facts.dropped), ("policy-denied", 3, 0));
    assert_eq!(told.peer_id, "spiffe://shop.example/web");
    assert_eq!(told.service, "orders");
    assert!(told.point.starts_with("library-"));

    world.agent.die();
    until(&orders, |status| matches!(status.enforcement, Enforcement::Lost { .. })).await;
    let before = orders.reporter().dropped();
    for _ in 0..5000 {
        orders.report(fact.clone());
    }
    assert!(3000 < orders.reporter().dropped() - before);
    world.agent.run();
    let mut dropped = 0;
    while dropped < orders.reporter().dropped() {
        let facts = world.agent.facts().await;
        assert!(facts.handshakes.len() <= 128);
        dropped += facts.dropped;
    }
    assert_eq!(dropped, orders.reporter().dropped());
}
