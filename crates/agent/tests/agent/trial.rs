//! Trials at the doors of points that do what they say, and of others.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1::enforcement_request::Step as Out;
use countersign_api::v1::{self, CanaryOutcome};
use countersign_identity::{Clock, Name, Revocations, Trial};
use countersign_pki::Bundles;
use countersign_tls::{Identity, Inbound, Slice, Trust, accept};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::enforcement::{Point, shop};
use crate::world::World;

/// A door of the point's own identity, or of another.
async fn door(
    world: &World,
    path: &str,
    rules: Arc<Revocations>,
) -> (String, AbortOnDropHandle<()>) {
    let clock = Arc::clone(&world.clock) as Arc<dyn Clock>;
    let bundles = Arc::new(Bundles::of(world.server.bundle()));
    let revision = world.server.next();
    let slice = Slice { revision, bundles, revocations: rules, ..Slice::nothing() };
    let trust = Trust::new(clock, slice);
    let (chain, key) = world.server.identity(path).await;
    trust.set_identity(Identity::new(chain, key.pkcs8()).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let inbound = Inbound::service("web".parse::<Name>().unwrap());
    let serving = async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            accept(&trust, tcp, &inbound).await.unwrap_err();
        }
    };
    (address, AbortOnDropHandle::new(tokio::spawn(serving)))
}

/// The rule of the next revision's trial, alone.
fn rules(world: &World) -> (Trial, Arc<Revocations>) {
    let trial = Trial(world.server.next());
    let rule = trial.rule(&world.server.bundle().domain, world.clock.now());
    (trial, Arc::new(Revocations::new([("trial".into(), Arc::new(rule))])))
}

/// What a trial shows of a point with these doors, that says that it enforces the trial's rule.
async fn tried(world: &World, trial: Trial, doors: Vec<String>) -> v1::TrialResult {
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    point.slice().await;
    point.say(Out::Status(v1::ProcessStatus { doors, ..Default::default() })).await;
    let rule = trial.rule(&world.server.bundle().domain, world.clock.now());
    let value = serde_json::to_vec(&rule).unwrap();
    world.server.put_value("Revocation", &format!("{}.0", trial.0), &value);
    let slice = point.slice().await;
    assert_eq!(slice.revision.map(Into::into), Some(trial.0));
    // Before it has said so, nothing is tried.
    world.pass(Duration::from_secs(1)).await;
    let result = || {
        let acks = world.server.acks();
        let ack = acks.borrow();
        ack.points.first().and_then(|point| point.tried.clone())
    };
    assert_eq!(result(), None);
    point.acknowledge(trial.0.into(), 0).await;
    world
        .until("it was tried", || {
            world.clock.advance(Duration::from_millis(20));
            result().is_some()
        })
        .await;
    agent.stop().await;
    result().unwrap()
}

#[tokio::test]
async fn point_that_does_what_it_says_is_proven_to_and_one_that_does_not_is_found_out() {
    let world = shop().await;
    let (trial, held) = rules(&world);
    let (honest, _serving) = door(&world, "/web", held).await;
    let result = tried(&world, trial, vec![honest.clone()]).await;
    assert_eq!(result.covered(), CanaryOutcome::Revoked);
    assert_eq!((result.uncovered(), result.why.as_str()), (CanaryOutcome::Alive, ""));

    // One of its doors does not enforce it.
    let world = shop().await;
    let (trial, held) = rules(&world);
    let (honest, _serving) = door(&world, "/web", held).await;
    let (liar, _lying) = door(&world, "/web", Arc::default()).await;
    let result = tried(&world, trial, vec![honest, liar.clone()]).await;
    assert_eq!(
        (result.covered(), result.uncovered()),
        (CanaryOutcome::Alive, CanaryOutcome::Alive)
    );
    assert_eq!(result.door, liar);
}

#[tokio::test]
async fn what_proves_nothing_is_said_with_its_reason() {
    let unclear = async |doors: Vec<String>, why: &str, world: World| {
        let (trial, _rules) = rules(&world);
        let result = tried(&world, trial, doors).await;
        assert!(result.why.contains(why), "{result:?}");
        assert_eq!(result.covered(), CanaryOutcome::Unspecified);
        assert_eq!(result.uncovered(), CanaryOutcome::Unspecified);
    };
    unclear(vec![], "no door", shop().await).await;
    // The agent dials nobody on a workload's word.
    unclear(vec!["192.0.2.1:443".to_owned()], "not on this machine", shop().await).await;
    unclear(vec!["nowhere".to_owned()], "no door", shop().await).await;
    // Another identity stands at the door, which may enforce what it likes.
    let world = shop().await;
    let (_, held) = rules(&world);
    let (foreign, _serving) = door(&world, "/orders", held).await;
    unclear(vec![foreign], "orders", world).await;
}
