//! What is revoked is replaced, what is suspended is withdrawn, and both are said to whoever enforces.

use std::time::Duration;

use countersign_api::wire::refusal_of;
use countersign_api::workload::X509svidRequest;
use countersign_api::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_api::{v1, workload};
use countersign_identity::{Code, KeyId, Reason, Revoked, SpiffeId};
use countersign_pki::Certificate;
use tonic::{Request, Streaming};

use crate::enforcement::{Point, shop};
use crate::server::{NODE, RULE_LASTS, TAG};
use crate::world::{Agent, World};

pub(crate) fn id(name: &str) -> SpiffeId {
    format!("spiffe://shop.example/{name}").parse().unwrap()
}

/// A stock client, which cannot acknowledge.
async fn stock(agent: &Agent) -> Result<Streaming<workload::X509svidResponse>, tonic::Status> {
    let mut client = SpiffeWorkloadApiClient::new(agent.channel().await);
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    client.fetch_x509svid(request).await.map(tonic::Response::into_inner)
}

async fn leaf(stream: &mut Streaming<workload::X509svidResponse>) -> Certificate {
    let message = stream.message().await.unwrap().unwrap();
    // The leaf's own length says where the issuer begins.
    let chain = countersign_pki::Chain::from_concatenated(&message.svids[0].x509_svid).unwrap();
    chain.leaf().clone()
}

fn unaware(world: &World) -> u64 {
    world.server.acks().borrow().unaware
}

#[tokio::test]
async fn open_stream_gets_the_successor_of_a_revoked_svid_without_any_time_passing() {
    let world = World::new().await;
    let agent = world.agent().await;
    let mut stream = stock(&agent).await.unwrap();
    let before = leaf(&mut stream).await;
    let target = Revoked::Identity { id: id("web"), before: world.server.next() };
    world.server.revoke("r1", target, Reason::KeyCompromise);
    // The simulated clock stands still: nothing on this way waits.
    let after = leaf(&mut stream).await;
    assert_ne!(before.serial(), after.serial());
    assert_ne!(before.key_id(), after.key_id(), "under another key");
    assert_eq!(world.server.issued(), 2);
    agent.stop().await;
}

#[tokio::test]
async fn new_caller_is_told_to_wait_and_never_given_what_is_revoked() {
    let world = World::new().await;
    let agent = world.agent().await;
    let mut stream = stock(&agent).await.unwrap();
    leaf(&mut stream).await;
    // The server lags behind its own rule: what it issues is covered.
    world.server.authorise_at(Some(1));
    let target = Revoked::Identity { id: id("web"), before: world.server.next() };
    world.server.revoke("r1", target, Reason::KeyCompromise);
    world.until("it was asked for again", || 3 <= world.server.issued()).await;
    let asking = tokio::spawn(async move { (stock(&agent).await.unwrap().message().await, agent) });
    world.pass(Duration::from_secs(4)).await;
    let (refused, agent) = asking.await.unwrap();
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    assert!(refused.message().contains("revoked"), "{refused}");
    world.server.authorise_at(None);
    world.pass(Duration::from_secs(8)).await;
    let good = leaf(&mut stream).await;
    let last = world.server.svids().last().unwrap().leaf().serial();
    assert_eq!(good.serial(), last, "none of those in between was handed out");
    leaf(&mut stock(&agent).await.unwrap()).await;
    agent.stop().await;
}

#[tokio::test]
async fn point_is_told_of_the_rule_that_covers_its_own_caller_before_the_successor_is_there() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    assert!(point.slice().await.revocations.is_empty());
    world.server.authorise_at(Some(1));
    let target = Revoked::Node { id: NODE, tag: TAG, before: world.server.next() };
    world.server.revoke("r1", target, Reason::NodeCompromise);
    let slice = point.slice().await;
    assert_eq!(slice.revocations.len(), 1);
    assert_eq!(slice.workload, "web");
    assert!(!slice.policies.is_empty(), "it goes on as who it is");
    agent.stop().await;
}

#[tokio::test]
async fn suspended_workload_is_withdrawn_and_its_point_allows_nothing_until_that_is_lifted() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut stream = stock(&agent).await.unwrap();
    leaf(&mut stream).await;
    let mut point = Point::register(&agent, "proxy-web").await;
    let full = point.slice().await;
    world.server.suspend("web");
    let refused = stream.message().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert_eq!(refusal_of(&refused).unwrap().code, Code::Suspended);
    let empty = point.slice().await;
    assert!(full.revision.unwrap().number < empty.revision.unwrap().number);
    assert_eq!(empty.spiffe_id, "spiffe://shop.example/web");
    assert!(empty.policies.is_empty() && empty.services.is_empty() && empty.workloads.is_empty());
    // It goes on to say what it enforces, so nobody has to wait for it.
    let revision = empty.revision.unwrap();
    point.acknowledge(revision, 2).await;
    world
        .until("the acknowledgement arrives", || {
            world.clock.advance(Duration::from_millis(5));
            let acks = world.server.acks();
            acks.borrow().points.iter().any(|one| one.revision == Some(revision) && one.cut == 2)
        })
        .await;
    // Whoever comes anew is refused as well.
    let refused = Point::register(&agent, "other").await.hear().await.unwrap_err();
    assert_eq!(refusal_of(&refused).unwrap().code, Code::Suspended);
    let issued = world.server.issued();
    world.pass(Duration::from_secs(300)).await;
    world.server.resume("web");
    let again = point.slice().await;
    assert_eq!(again.policies, full.policies);
    leaf(&mut stock(&agent).await.unwrap()).await;
    assert!(issued < world.server.issued());
    agent.stop().await;
}

#[tokio::test]
async fn refusal_as_suspended_withdraws_before_the_record_is_there() {
    let world = World::new().await;
    let agent = world.agent().await;
    let mut stream = stock(&agent).await.unwrap();
    leaf(&mut stream).await;
    world.server.refuse_as_suspended("web");
    world.pass(Duration::from_secs(31)).await;
    let refused = stream.message().await.unwrap_err();
    assert_eq!(refusal_of(&refused).unwrap().code, Code::Suspended);
    agent.stop().await;
}

#[tokio::test]
async fn removed_workload_leaves_its_point_with_nothing_allowed() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    point.slice().await;
    world.server.remove("Workload", "web");
    let last = point.slice().await;
    assert!(last.policies.is_empty() && last.services.is_empty());
    let refused = point.hear().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    agent.stop().await;
}

#[tokio::test]
async fn rules_outlive_the_agents_process_a_lost_snapshot_and_a_restored_server() {
    let world = shop().await;
    let agent = world.agent().await;
    let target = Revoked::Identity { id: id("orders"), before: world.server.next() };
    world.server.revoke("r1", target, Reason::KeyCompromise);
    world.until("it is in force", || world.server.rules().len() == 1).await;
    agent.stop().await;
    std::fs::remove_file(world.folder.path().join("data/snapshot.json")).unwrap();
    world.server.restore_without("Revocation", "r1");
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    assert_eq!(point.slice().await.revocations.len(), 1, "also points hear of it");
    assert_eq!(world.server.rules().len(), 1, "and servers are verified by it");
    // Its end comes.
    world.pass(RULE_LASTS + Duration::from_secs(61)).await;
    world.server.mark();
    world.until("it is forgotten", || world.server.rules().is_empty()).await;
    agent.stop().await;
}

#[tokio::test]
async fn agent_that_cannot_read_its_rules_does_not_go_on_without_them() {
    let world = World::new().await;
    world.agent().await.stop().await;
    let path = world.folder.path().join("data/revocations.json");
    std::fs::write(&path, br#"{"format":1,"seen":"#).unwrap();
    let refused = world.begin(world.config()).refused().await;
    assert!(refused.to_string().contains("revocations.json"), "{refused}");
}

#[tokio::test]
async fn revision_is_acknowledged_only_when_its_rules_are_on_the_disk() {
    let world = World::new().await;
    let agent = world.agent().await;
    let acked = |world: &World| {
        world.clock.advance(Duration::from_millis(5));
        world.server.acks().borrow().revision.map_or(0, |revision| revision.number)
    };
    world.until("all is acknowledged", || acked(&world) == world.server.number()).await;
    let before = world.server.number();
    // A folder in the place of the file that is written beside: no write succeeds.
    let block = world.folder.path().join("data/revocations.json.new");
    std::fs::create_dir(&block).unwrap();
    world.server.revoke("r1", Revoked::Key(KeyId::from_bytes([1; 32])), Reason::KeyCompromise);
    world.until("it is in force", || !world.server.rules().is_empty()).await;
    world.pass(Duration::from_secs(1)).await;
    assert_eq!(acked(&world), before);
    std::fs::remove_dir(&block).unwrap();
    world
        .until("it is tried again", || {
            world.clock.advance(Duration::from_millis(500));
            acked(&world) == world.server.number()
        })
        .await;
    agent.stop().await;
}

#[tokio::test]
async fn acknowledgement_of_a_point_is_passed_on_when_its_machine_would_come_back_with_the_rule() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    let first = point.slice().await.revision.unwrap();
    point.acknowledge(first, 0).await;
    let reached = |world: &World| {
        world.clock.advance(Duration::from_millis(500));
        let ack = world.server.acks().borrow().clone();
        let revision = ack.points.first().and_then(|point| point.revision);
        revision.map_or(0, |revision| revision.number)
    };
    world.until("the first slice is acknowledged", || reached(&world) == first.number).await;
    let block = world.folder.path().join("data/revocations.json.new");
    std::fs::create_dir(&block).unwrap();
    world.server.revoke("r1", Revoked::Key(KeyId::from_bytes([1; 32])), Reason::KeyCompromise);
    let next = point.slice().await.revision.unwrap();
    assert!(first.number < next.number);
    // It enforces the rule; a crash of the machine now would make it forget.
    point.acknowledge(next, 0).await;
    world.pass(Duration::from_secs(1)).await;
    assert_eq!(reached(&world), first.number);
    std::fs::remove_dir(&block).unwrap();
    world.until("the rule is on the disk", || reached(&world) == next.number).await;
    agent.stop().await;
}

#[tokio::test]
async fn acknowledgement_reaches_the_server_without_waiting_and_a_thousand_do_not_make_a_thousand()
{
    let world = shop().await;
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    let revision = point.slice().await.revision.unwrap();
    // Everything else is said, and longer ago than two of them are apart.
    let mut said = usize::MAX;
    while said != world.server.acks_taken() {
        said = world.server.acks_taken();
        world.pass(Duration::from_secs(1)).await;
    }
    point.acknowledge(revision, 0).await;
    // The clock stands still.
    world
        .until("it arrives", || {
            world.server.acks().borrow().points.iter().any(|one| one.revision.is_some())
        })
        .await;
    let before = world.server.acks_taken();
    for cut in 1..=1000 {
        point.acknowledge(revision, cut).await;
        if cut % 100 == 0 {
            world.clock.advance(Duration::from_millis(3));
            world.settle().await;
        }
    }
    world
        .until("the last of them arrives", || {
            world.clock.advance(Duration::from_millis(3));
            world.server.acks().borrow().points.iter().any(|one| one.cut == 1000)
        })
        .await;
    let taken = world.server.acks_taken() - before;
    assert!(taken < 100, "{taken} messages for 1000 acknowledgements");
    agent.stop().await;
}

#[tokio::test]
async fn draining_connections_are_passed_on_and_may_become_fewer() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    let revision = point.slice().await.revision.unwrap();
    for draining in [7, 2] {
        let revision = Some(revision);
        let acknowledge = v1::Acknowledge { revision, cut: 0, draining };
        point.say(v1::enforcement_request::Step::Acknowledge(acknowledge)).await;
        world
            .until("it is told", || {
                world.clock.advance(Duration::from_millis(5));
                world.server.acks().borrow().points.iter().any(|one| one.draining == draining)
            })
            .await;
    }
    agent.stop().await;
}

#[tokio::test]
async fn process_that_holds_an_svid_is_counted_while_it_has_no_point() {
    let world = shop().await;
    let agent = world.agent().await;
    let tick = || world.clock.advance(Duration::from_millis(200));
    world
        .until("nobody is counted", || {
            tick();
            unaware(&world) == 0
        })
        .await;
    let mut stream = stock(&agent).await.unwrap();
    leaf(&mut stream).await;
    world
        .until("it is counted", || {
            tick();
            unaware(&world) == 1
        })
        .await;
    // Twice the same process is one; and a closed stream takes nothing back.
    leaf(&mut stock(&agent).await.unwrap()).await;
    drop(stream);
    world.pass(Duration::from_secs(2)).await;
    assert_eq!(unaware(&world), 1);
    let mut point = Point::register(&agent, "proxy-web").await;
    point.slice().await;
    world
        .until("its point speaks for it", || {
            tick();
            unaware(&world) == 0
        })
        .await;
    let leaving = tokio::spawn(point.leave());
    world
        .until("it has none any more", || {
            tick();
            unaware(&world) == 1
        })
        .await;
    leaving.await.unwrap();
    world.process.end();
    world
        .until("it is gone", || {
            tick();
            unaware(&world) == 0
        })
        .await;
    agent.stop().await;
}

#[tokio::test]
async fn what_a_process_was_given_that_has_ended_counts_until_its_own_end() {
    let world = World::new().await;
    let agent = world.agent().await;
    // As `fetch --write` does it: what was given lies in files, and whoever reads them hears of no revocation.
    leaf(&mut stock(&agent).await.unwrap()).await;
    world.process.end();
    world
        .until("it is counted", || {
            world.clock.advance(Duration::from_millis(200));
            unaware(&world) == 1
        })
        .await;
    for _second in 0..50 {
        world.pass(Duration::from_secs(1)).await;
        assert_eq!(unaware(&world), 1);
    }
    world.pass(Duration::from_secs(12)).await;
    assert_eq!(unaware(&world), 0, "the SVID of a minute has ended");
    agent.stop().await;
}

#[tokio::test]
async fn process_is_not_counted_any_more_once_all_that_it_was_given_has_ended() {
    let world = World::new().await;
    let agent = world.agent().await;
    leaf(&mut stock(&agent).await.unwrap()).await;
    world
        .until("it is counted", || {
            world.clock.advance(Duration::from_millis(200));
            unaware(&world) == 1
        })
        .await;
    world.pass(Duration::from_secs(62)).await;
    assert_eq!(unaware(&world), 0);
    agent.stop().await;
}

#[tokio::test]
async fn point_that_says_goodbye_is_gone_while_its_process_lives_and_one_whose_stream_is_lost_is_not()
 {
    let world = shop().await;
    let agent = world.agent().await;
    let known = |gone: bool| {
        world.clock.advance(Duration::from_millis(20));
        let acks = world.server.acks();
        let ack = acks.borrow();
        ack.points.len() == 1 && ack.points[0].gone == gone
    };
    for _ in 0..3 {
        let mut point = Point::register(&agent, "proxy-web").await;
        point.slice().await;
        world.until("it is known", || known(false)).await;
        drop(point);
        world.pass(Duration::from_secs(3)).await;
        assert!(known(false), "a lost stream says nothing");
    }
    let mut point = Point::register(&agent, "proxy-web").await;
    point.slice().await;
    let leaving = tokio::spawn(point.leave());
    world.until("it is gone", || known(true)).await;
    leaving.await.unwrap();
    // And it may come again.
    let mut point = Point::register(&agent, "proxy-web").await;
    point.slice().await;
    world.until("it is back", || known(false)).await;
    agent.stop().await;
}

#[tokio::test]
async fn point_without_a_stream_is_gone_once_its_last_svid_has_ended() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    point.slice().await;
    drop(point);
    let gone = || {
        let acks = world.server.acks();
        let ack = acks.borrow();
        ack.points.iter().map(|one| one.gone).collect::<Vec<_>>()
    };
    world.pass(Duration::from_secs(50)).await;
    assert_eq!(gone(), [false]);
    world.pass(Duration::from_secs(15)).await;
    assert_eq!(gone(), [true]);
    agent.stop().await;
}

#[tokio::test]
async fn revoked_agent_renews_at_once_and_a_suspended_one_says_so_and_waits() {
    let world = World::new().await;
    let agent = world.agent().await;
    world.server.refuse_node(Some(Code::Revoked));
    world.until("it renews", || world.server.generation() == 2).await;
    world.until("it is back", || world.server.haves().len() == 2).await;
    leaf(&mut stock(&agent).await.unwrap()).await;

    world.server.refuse_node(Some(Code::Suspended));
    let (opened, renewed) = (world.server.haves().len(), world.server.renewals_tried());
    world.pass(Duration::from_secs(20)).await;
    let mut stream = stock(&agent).await.unwrap();
    leaf(&mut stream).await;
    world.pass(Duration::from_secs(100)).await;
    let tries = world.server.haves().len() - opened + world.server.renewals_tried() - renewed;
    assert!((2..20).contains(&tries), "{tries} tries in two minutes");
    world.server.refuse_node(None);
    world.pass(Duration::from_secs(70)).await;
    leaf(&mut stock(&agent).await.unwrap()).await;
    agent.stop().await;
}

#[tokio::test]
async fn root_is_acknowledged_only_when_no_crash_can_make_the_agent_forget_it() {
    let world = World::new().await;
    let agent = world.agent().await;
    let acked = |number| {
        let number = move |ack: &v1::SyncAck| ack.revision.is_some_and(|at| number <= at.number);
        number(&world.server.acks().borrow())
    };
    let tick = || world.clock.advance(Duration::from_millis(5));
    let began = world.server.next().number - 1;
    let till = |number| {
        world.until("it is acknowledged", move || {
            tick();
            acked(number)
        })
    };
    till(began).await;
    // From now on no snapshot can take the place of this folder.
    let snapshot = world.folder.path().join("data/snapshot.json");
    std::fs::remove_file(&snapshot).unwrap();
    std::fs::create_dir(&snapshot).unwrap();
    world.server.put_workload("other", &["launch:other"], "");
    till(began + 1).await;
    let mut bundle = world.server.bundle();
    bundle.sequence = 7;
    world.server.put_bundle(&bundle);
    world.pass(Duration::from_secs(10)).await;
    assert!(!acked(began + 2), "the bundle is not on the disk");
    assert!(world.server.presented().contains(&7), "it counts all the same");
    std::fs::remove_dir(&snapshot).unwrap();
    world.pass(Duration::from_secs(3)).await;
    till(began + 2).await;
    agent.stop().await;

    // In the next life it counts before any server has said anything.
    let before = world.server.presented().len();
    world.server.go();
    let again = world.begin(world.config());
    world
        .until("a server is verified by it", || world.server.presented()[before..].contains(&7))
        .await;
    drop(again);
}
