//! Identity and bundles over the Workload API.

use std::sync::Arc;
use std::time::Duration;

use countersign::{Authorization, Choice, Code, Link, Source, Topic, WorkloadApiOptions};
use countersign_api::workload::X509svidResponse;
use countersign_identity::{Clock, SimClock, SpiffeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Status as Refusal;

use crate::agent::Offer;
use crate::realm::Realm;
use crate::world::{PATIENCE, World, connect, now, options, response, source, source_with, until};

fn ids(ids: &[&str]) -> Authorization {
    Authorization::AllowIds(ids.iter().map(|id| id.parse().unwrap()).collect())
}

const WEB: &str = "spiffe://shop.example/web";

#[tokio::test]
async fn a_renewed_svid_is_shown_and_open_connections_live_on() {
    let world = World::new(Offer::WorkloadApiOnly);
    let (other, _folder) = world.neighbour(Offer::WorkloadApiOnly);
    world.agent.give(world.wire(&world.svid("/web")));
    other.give(world.wire(&world.svid("/orders")));
    let web = source_with(&world.agent, ids(&[WEB])).await;
    let orders = source_with(&other, ids(&[WEB])).await;
    web.ready().await.unwrap();
    orders.ready().await.unwrap();
    let (client, server) = connect(&web, &orders).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());

    for (source, agent, path) in [(&web, &world.agent, "/web"), (&orders, &other, "/orders")] {
        let renewed = world.svid(path);
        agent.give(world.wire(&renewed));
        until(source, |status| {
            status.identity.as_ref().is_some_and(|own| own.serial == Some(renewed.serial()))
        })
        .await;
    }
    client.write_all(b"still here").await.unwrap();
    let mut heard = [0; 10];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
    let (client, server) = connect(&web, &orders).await;
    assert!(client.is_ok() && server.is_ok());
    assert_eq!(web.status().troubles.len(), 0);
}

#[tokio::test]
async fn svid_that_is_not_valid_yet_is_shown_as_soon_as_it_is() {
    let world = World::new(Offer::WorkloadApiOnly);
    // As after a clock was set back.
    let clock = Arc::new(SimClock::new(now()));
    let svid = world.realm.svid("/web", now() + Duration::from_secs(90), 86_400);
    let begins = svid.chain.leaf().validity().not_before;
    world.agent.give(world.wire(&svid));
    let options = WorkloadApiOptions {
        authorization: ids(&[]),
        clock: clock.clone(),
        ..options(&world.agent)
    };
    let source = Source::from_workload_api(options).await.unwrap();
    let status = until(&source, |status| status.troubles.contains_key(&Topic::Identity)).await;
    assert!(status.identity.is_none(), "it is not valid yet");
    // The agent says it once, and then a message that says nothing.
    world.agent.give(X509svidResponse::default());
    let empty = |told: &String| told.contains("holds no SVID");
    until(&source, |status| status.troubles.get(&Topic::Identity).is_some_and(empty)).await;
    let passing = async {
        while source.status().identity.is_none() {
            clock.advance(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, passing).await.expect("it is shown");
    let shown = clock.now();
    assert!(begins <= shown, "it is shown before it is valid");
    assert!(shown.since(begins) < Duration::from_secs(60), "it is shown late");
    let status = source.status();
    assert_eq!(status.identity.unwrap().serial, Some(svid.serial()));
    assert_eq!(status.troubles.len(), 0);
}

#[tokio::test]
async fn only_permission_denied_withdraws_an_identity() {
    let mut world = World::new(Offer::WorkloadApiOnly);
    let svid = world.svid("/web");
    world.agent.give(world.wire(&svid));
    let source = source_with(&world.agent, ids(&[])).await;
    source.ready().await.unwrap();
    for status in
        [Refusal::unavailable("away"), Refusal::internal("broken"), Refusal::unauthenticated("who")]
    {
        world.agent.refuse(status);
        let status = until(&source, |status| matches!(status.link, Link::Lost { .. })).await;
        assert_eq!(status.identity.unwrap().id, svid.id);
        world.agent.give(world.wire(&svid));
        until(&source, |status| status.link == Link::Connected).await;
    }
    world.agent.refuse(Refusal::permission_denied("removed"));
    let status = until(&source, |status| status.identity.is_none()).await;
    assert!(status.troubles[&Topic::Identity].contains("removed"));
    assert!(source.trust().identity().is_none());
    // Given back, it is shown again.
    world.agent.give(world.wire(&world.svid("/web")));
    let status = until(&source, |status| status.identity.is_some()).await;
    assert_eq!(status.troubles.len(), 0);
    // Gone without a word, it stays.
    world.agent.die();
    let status = until(&source, |status| matches!(status.link, Link::Lost { .. })).await;
    assert!(status.identity.is_some());
}

#[tokio::test]
async fn a_message_without_svids_is_told_of_and_takes_nothing_away() {
    let world = World::new(Offer::WorkloadApiOnly);
    let svid = world.svid("/web");
    world.agent.give(world.wire(&svid));
    let source = source_with(&world.agent, ids(&[])).await;
    source.ready().await.unwrap();
    world.agent.give(X509svidResponse::default());
    let status = until(&source, |status| status.troubles.contains_key(&Topic::Identity)).await;
    assert!(status.troubles[&Topic::Identity].contains("holds no SVID"), "{status:?}");
    assert_eq!(
        (status.identity.unwrap().serial, status.link),
        (Some(svid.serial()), Link::Connected)
    );
    assert!(source.trust().identity().is_some());
    // The stream goes on, and what comes next counts.
    let renewed = world.svid("/web");
    world.agent.give(world.wire(&renewed));
    let status = until(&source, |status| status.troubles.is_empty()).await;
    assert_eq!(status.identity.unwrap().serial, Some(renewed.serial()));
}

#[tokio::test]
async fn an_agent_that_comes_back_is_found_again() {
    let mut world = World::new(Offer::WorkloadApiOnly);
    world.agent.die();
    let source = source_with(&world.agent, ids(&[])).await;
    let status = until(&source, |status| matches!(status.link, Link::Lost { .. })).await;
    assert!(status.link.to_string().contains("agent.sock"), "{}", status.link);
    for _ in 0..2 {
        let svid = world.svid("/web");
        world.agent.give(world.wire(&svid));
        world.agent.run();
        until(&source, |status| {
            status.link == Link::Connected
                && status.identity.as_ref().is_some_and(|own| own.serial == Some(svid.serial()))
        })
        .await;
        world.agent.die();
        until(&source, |status| matches!(status.link, Link::Lost { .. })).await;
    }
}

#[tokio::test]
async fn a_bad_svid_leaves_the_one_before_in_place() {
    let world = World::new(Offer::WorkloadApiOnly);
    let good = world.svid("/web");
    let wire = good.wire(&world.realm.bundle());
    let source = source_with(&world.agent, ids(&[])).await;
    let foreign = Realm::new("shop.example", 2, now());
    let other = world.svid("/web");
    let past = world.realm.svid("/web", now() - std::time::Duration::from_secs(300), 60);

    let mut cases = vec![("an expired one", past.wire(&world.realm.bundle()))];
    let mut case = |what, change: &dyn Fn(&mut countersign_api::workload::X509svid)| {
        let mut svid = other.wire(&world.realm.bundle());
        change(&mut svid);
        cases.push((what, svid));
    };
    case("the key of another", &|svid| svid.x509_svid_key.clone_from(&wire.x509_svid_key));
    case("a key that is none", &|svid| svid.x509_svid_key = vec![0x30, 0]);
    case("no key", &|svid| svid.x509_svid_key.clear());
    case("a huge key", &|svid| svid.x509_svid_key = vec![0x30; 20_000]);
    case("another name", &|svid| svid.spiffe_id = "spiffe://shop.example/orders".to_owned());
    case("a name that is none", &|svid| svid.spiffe_id = "https://shop.example/web".to_owned());
    case("the bundle of strangers", &|svid| {
        svid.bundle = foreign.bundle().authorities_der_concat();
    });
    case("no bundle", &|svid| svid.bundle.clear());
    case("a chain cut off", &|svid| svid.x509_svid.truncate(svid.x509_svid.len() - 1));
    case("no chain", &|svid| svid.x509_svid.clear());
    case("the chain without the issuer", &|svid| {
        svid.x509_svid.truncate(other.chain.leaf().der().len());
    });
    case("a huge chain", &|svid| svid.x509_svid = wire.x509_svid.repeat(200));
    for (what, bad) in cases {
        world.agent.give(response(vec![wire.clone()]));
        until(&source, |status| status.identity.is_some() && status.troubles.is_empty()).await;
        world.agent.give(response(vec![bad]));
        let status = until(&source, |status| !status.troubles.is_empty()).await;
        assert_eq!(status.identity.unwrap().serial, Some(good.serial()), "{what}");
        let told = &status.troubles[&Topic::Identity];
        assert!(told.contains("shop.example/"), "{what}: {told}");
        let shown = source.trust().identity().unwrap();
        assert_eq!(shown.serial(), Some(good.serial()), "{what}");
    }
}

#[tokio::test]
async fn a_first_svid_that_is_bad_is_never_shown() {
    let world = World::new(Offer::WorkloadApiOnly);
    let foreign = Realm::new("shop.example", 2, now());
    let mut bad = world.svid("/web").wire(&world.realm.bundle());
    bad.bundle = foreign.bundle().authorities_der_concat();
    world.agent.give(response(vec![bad]));
    let source = source_with(&world.agent, ids(&[WEB])).await;
    let status = until(&source, |status| !status.troubles.is_empty()).await;
    assert_eq!(status.identity, None);
    // Nor does its bundle count.
    assert!(source.trust().slice().bundles.iter().next().is_none());
}

#[tokio::test]
async fn among_several_svids_the_one_asked_for_is_shown_and_no_other() {
    let world = World::new(Offer::WorkloadApiOnly);
    let bundle = world.realm.bundle();
    let (first, second) = (world.svid("/web"), world.svid("/orders"));
    let (one, mut two) = (first.wire(&bundle), second.wire(&bundle));
    two.hint = "internal".to_owned();
    world.agent.give(response(vec![one.clone(), two]));
    let choices = [
        (Choice::Default, Some(&first)),
        (Choice::Hint("internal".to_owned()), Some(&second)),
        (Choice::Id(second.id.clone()), Some(&second)),
        (Choice::Hint("external".to_owned()), None),
        (Choice::Id("spiffe://shop.example/payments".parse().unwrap()), None),
    ];
    for (choice, expected) in choices {
        let options =
            WorkloadApiOptions { choice, authorization: ids(&[]), ..options(&world.agent) };
        let source = Source::from_workload_api(options).await.unwrap();
        let status = until(&source, |status| {
            status.link == Link::Connected
                && (status.identity.is_some() || !status.troubles.is_empty())
        })
        .await;
        assert_eq!(status.identity.map(|own| own.id), expected.map(|svid| svid.id.clone()));
    }
    // One that is not given any more is withdrawn, not replaced by another.
    let choice = Choice::Id(second.id.clone());
    let options = WorkloadApiOptions { choice, authorization: ids(&[]), ..options(&world.agent) };
    let source = Source::from_workload_api(options).await.unwrap();
    source.ready().await.unwrap();
    world.agent.give(response(vec![one]));
    let status = until(&source, |status| status.identity.is_none()).await;
    let told = &status.troubles[&Topic::Identity];
    for said in
        ["not `spiffe://shop.example/orders`", "gives it `spiffe://shop.example/web`", "selectors"]
    {
        assert!(told.contains(said), "{told}");
    }
}

#[tokio::test]
async fn a_foreign_bundle_never_adds_authorities_to_our_own_domain() {
    let world = World::new(Offer::WorkloadApiOnly);
    let impostor = Realm::new("shop.example", 3, now());
    let partner = Realm::new("partner.example", 4, now());
    let svid = world.svid("/web");
    let mut message = world.wire(&svid);
    let foreign = &mut message.federated_bundles;
    foreign.insert("spiffe://shop.example".to_owned(), impostor.bundle().authorities_der_concat());
    foreign
        .insert("spiffe://partner.example".to_owned(), partner.bundle().authorities_der_concat());
    foreign.insert("spiffe://broken.example".to_owned(), vec![1, 2, 3]);
    foreign.insert("../etc".to_owned(), partner.bundle().authorities_der_concat());
    world.agent.give(message);
    let source = source_with(&world.agent, ids(&[WEB])).await;
    let status = until(&source, |status| status.troubles.contains_key(&Topic::Bundle)).await;
    let told = &status.troubles[&Topic::Bundle];
    for name in ["spiffe://shop.example", "broken.example", "../etc"] {
        assert!(told.contains(name), "{told}");
    }
    let bundles = source.trust().slice().bundles.clone();
    let own = bundles.get(&"shop.example".parse().unwrap()).unwrap();
    assert_eq!(own.authorities, std::slice::from_ref(&world.realm.root));
    assert!(bundles.get(&"partner.example".parse().unwrap()).is_some());
    assert_eq!(bundles.iter().count(), 2);
}

#[tokio::test]
async fn an_allow_list_lets_in_exactly_its_ids() {
    let world = World::new(Offer::WorkloadApiOnly);
    let (other, _folder) = world.neighbour(Offer::WorkloadApiOnly);
    other.give(world.wire(&world.svid("/orders")));
    let orders = source_with(&other, ids(&[WEB])).await;
    orders.ready().await.unwrap();
    for (path, code) in
        [("/web", None), ("/web2", Some(Code::PolicyDenied)), ("/web/x", Some(Code::PolicyDenied))]
    {
        world.agent.give(world.wire(&world.svid(path)));
        let id: SpiffeId = format!("spiffe://shop.example{path}").parse().unwrap();
        let caller = source_with(&world.agent, ids(&[id.as_str()])).await;
        until(&caller, |status| status.identity.as_ref().is_some_and(|own| own.id == id)).await;
        let (_, server) = connect(&caller, &orders).await;
        assert_eq!(server.err().map(|failure| failure.code), code, "{path}");
    }
}

#[tokio::test]
async fn nothing_is_allowed_beside_an_agent_without_policies_and_status_says_so() {
    let world = World::new(Offer::WorkloadApiOnly);
    let (other, _folder) = world.neighbour(Offer::WorkloadApiOnly);
    world.agent.give(world.wire(&world.svid("/web")));
    other.give(world.wire(&world.svid("/orders")));
    let web = source_with(&world.agent, ids(&[WEB])).await;
    let orders = source(&other).await;
    web.ready().await.unwrap();
    orders.ready().await.unwrap();
    let status = orders.status();
    assert_eq!(status.enforcement, countersign::Enforcement::NotOffered);
    assert!(status.enforcement.to_string().contains("nothing is allowed"));
    assert_eq!(status.revision, None);
    let (_, server) = connect(&web, &orders).await;
    assert_eq!(server.unwrap_err().code, Code::PolicyDenied);
}

#[tokio::test]
async fn no_key_is_printed() {
    let world = World::new(Offer::WorkloadApiOnly);
    let svid = world.svid("/web");
    world.agent.give(world.wire(&svid));
    let source = source_with(&world.agent, ids(&[WEB])).await;
    source.ready().await.unwrap();
    let printed = format!("{source:?} {:?} {:?}", source.status(), source.trust());
    let secret: Vec<_> = svid.pkcs8.iter().map(ToString::to_string).collect();
    assert!(!printed.contains(&secret[30..40].join(", ")), "{printed}");
}
