//! Enforcement: slices, acknowledgements, facts.

use std::collections::BTreeSet;
use std::time::Duration;

use countersign_api::envoy::authorization_client::AuthorizationClient;
use countersign_api::envoy::{AttributeContext, CheckRequest};
use countersign_api::v1;
use countersign_api::v1::enforcement_client::EnforcementClient;
use countersign_api::v1::enforcement_request::Step as Out;
use countersign_api::v1::enforcement_response::Step as In;
use countersign_identity::{Clock as _, Reason, Revoked};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::revocation::id;
use crate::world::{Agent, PATIENCE, World, acknowledged, selectors};

const WEB: &str = "spiffe://shop.example/web";

pub(crate) struct Point {
    send: mpsc::Sender<v1::EnforcementRequest>,
    stream: tonic::Streaming<v1::EnforcementResponse>,
}

impl Point {
    pub(crate) async fn register(agent: &Agent, name: &str) -> Self {
        Self::register_as(agent, name, "").await
    }

    /// One that speaks for this SPIFFE ID.
    pub(crate) async fn register_as(agent: &Agent, name: &str, spiffe_id: &str) -> Self {
        let (send, requests) = mpsc::channel(16);
        let mut client = EnforcementClient::new(agent.channel().await);
        let point = Self {
            stream: client.subscribe(ReceiverStream::new(requests)).await.unwrap().into_inner(),
            send,
        };
        let register = v1::Register {
            point: name.to_owned(),
            kind: "proxy".to_owned(),
            version: "0".to_owned(),
            spiffe_id: spiffe_id.to_owned(),
        };
        point.say(Out::Register(register)).await;
        point
    }

    /// Says that nothing more comes, and waits for the agent's end of the stream.
    pub(crate) async fn leave(self) {
        let Self { send, mut stream } = self;
        drop(send);
        while let Ok(Some(_)) = stream.message().await {}
    }

    pub(crate) async fn say(&self, step: Out) {
        self.send.send(v1::EnforcementRequest { step: Some(step) }).await.unwrap();
    }

    pub(crate) async fn hear(&mut self) -> Result<In, tonic::Status> {
        let response = self.stream.message().await?.expect("the stream goes on");
        Ok(response.step.unwrap())
    }

    pub(crate) async fn slice(&mut self) -> v1::Slice {
        match self.hear().await.unwrap() {
            In::Slice(slice) => slice,
            In::EnforceMark(mark) => panic!("a slice was expected, and not {mark:?}"),
        }
    }

    pub(crate) async fn acknowledge(&self, revision: v1::Revision, cut: u64) {
        self.say(Out::Acknowledge(v1::Acknowledge { revision: Some(revision), cut, draining: 0 }))
            .await;
    }
}

/// web → orders → payments, and a bystander.
pub(crate) async fn shop() -> World {
    let world = World::new().await;
    let server = &world.server;
    for name in ["orders", "payments", "bystander"] {
        server.put_workload(name, &[&format!("launch:{name}")], "");
    }
    let service = |name: &str, more: &str| {
        let value = format!(
            r#"{{"environment":{{"SECRET":"s"}},"forward":"unix:/run/{name}","listen":"127.0.0.1:1","protocol":"http","workload":"{name}"{more}}}"#
        );
        server.put_value("Service", name, value.as_bytes());
    };
    service("orders", r#","upstreams":[{"local":"unix","service":"payments"}]"#);
    service("payments", "");
    service("bystander", "");
    let web =
        r#"{"protocol":"http","upstreams":[{"local":"unix","service":"orders"}],"workload":"web"}"#;
    server.put_value("Service", "web", web.as_bytes());
    let policy = |name: &str, principal: &str, resource: &str| {
        use countersign_api::resource::{PolicyRecord, PolicyScope, ScopeNames};
        let only = |name: &str| ScopeNames::Only(BTreeSet::from([name.to_owned()]));
        let scope = PolicyScope {
            principals: only(principal),
            resources: only(resource),
            workloads: BTreeSet::from([principal.to_owned()]),
            services: BTreeSet::from([resource.to_owned()]),
            roles: BTreeSet::new(),
            labels: false,
            data_sets: BTreeSet::new(),
            classifications: false,
        };
        let cedar = format!(
            r#"permit (principal == Workload::"{principal}", action == Action::"connect", resource == Service::"{resource}");"#
        );
        let record = PolicyRecord {
            cedar: cedar.parse().unwrap(),
            mode: countersign_identity::Mode::Enforce,
            until: None,
            reason: None,
            scopes: vec![scope],
        };
        server.put_value("Policy", name, &record.encode());
    };
    policy("web-orders", "web", "orders");
    policy("orders-payments", "orders", "payments");
    policy("payments-bystander", "payments", "bystander");
    world
}

fn names<'a>(names: impl IntoIterator<Item = &'a String>) -> BTreeSet<&'a str> {
    names.into_iter().map(String::as_str).collect()
}

#[tokio::test]
async fn a_slice_holds_what_the_callers_services_need_and_nothing_else() {
    let world = shop().await;
    world.process.become_(selectors(&["launch:orders"]));
    let agent = world.agent().await;
    let slice = Point::register(&agent, "proxy-orders").await.slice().await;
    assert_eq!(slice.workload, "orders");
    assert_eq!(slice.spiffe_id, "spiffe://shop.example/orders");
    assert_eq!(slice.bundles.len(), 1);
    assert_eq!(names(slice.services.iter().map(|one| &one.name)), ["orders", "payments"].into());
    let policies = names(slice.policies.iter().map(|one| &one.name));
    assert_eq!(policies, ["orders-payments", "web-orders"].into());
    let peers = names(slice.workloads.iter().map(|one| &one.name));
    assert_eq!(peers, ["orders", "payments", "web"].into());
    let text: String =
        slice.services.iter().map(|one| String::from_utf8_lossy(&one.value).into_owned()).collect();
    assert!(!text.contains("SECRET"), "{text}");
    assert!(text.contains("/run/orders"), "its own way to the program: {text}");
    assert!(!text.contains("/run/payments"), "not the insides of others: {text}");
    agent.stop().await;
}

#[tokio::test]
async fn a_relevant_change_is_a_slice_and_any_other_a_mark_at_most_one_a_second() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    let first = point.slice().await;
    for _ in 0..5 {
        world.server.put_workload("noise", &["launch:noise"], "");
        world.settle().await;
    }
    world.pass(Duration::from_secs(2)).await;
    let In::EnforceMark(mark) = point.hear().await.unwrap() else { panic!("a mark was expected") };
    assert!(first.revision.unwrap().number < mark.revision.unwrap().number);
    world.server.remove("Policy", "web-orders");
    // When what came before is told depends on when the agent's task had its turn; in two seconds it is not told a third time.
    let slice = match point.hear().await.unwrap() {
        In::Slice(slice) => slice,
        In::EnforceMark(_second) => point.slice().await,
    };
    assert!(slice.policies.is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn acknowledgements_travel_by_name_and_only_for_what_was_sent() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    let revision = point.slice().await.revision.unwrap();
    point.acknowledge(revision, 3).await;
    world
        .until("the acknowledgement is on its way", || {
            world.clock.advance(Duration::from_millis(50));
            world.server.acks().borrow().points.iter().any(|one| one.revision.is_some())
        })
        .await;
    let ack = acknowledged(world.server.acks(), |ack| !ack.points.is_empty()).await;
    assert_eq!(ack.points[0].point, "proxy-web");
    assert_eq!(ack.points[0].spiffe_id, "spiffe://shop.example/web");
    assert_eq!((ack.points[0].revision, ack.points[0].cut), (Some(revision), 3));

    let ahead = v1::Revision { number: revision.number + 1, ..revision };
    point.acknowledge(ahead, 0).await;
    let refused = point.hear().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert_eq!(world.server.acks().borrow().points[0].revision, Some(revision));
    agent.stop().await;
}

#[tokio::test]
async fn rules_do_not_wait_for_a_workload_that_the_process_may_turn_out_to_be_as_well() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    assert_eq!(point.slice().await.workload, "web");
    // It would be this one first, by its name, once its SVID is there; and that cannot be had.
    world.server.sign_for_somebody_else();
    world.server.put_workload("also", &["launch:web"], "");
    let target = Revoked::Identity { id: id("orders"), before: world.server.next() };
    world.server.revoke("r1", target, Reason::KeyCompromise);
    let slice = tokio::time::timeout(PATIENCE, point.slice()).await.expect("the rule waits");
    assert_eq!((slice.workload.as_str(), slice.revocations.len()), ("web", 1));
    assert!(slice.services.iter().any(|service| service.name == "web"), "it keeps its own");
    // Nor does the word that nothing is issued for it any more.
    world.server.suspend("web");
    let slice = tokio::time::timeout(PATIENCE, point.slice()).await.expect("the word waits");
    assert!(slice.services.is_empty() && slice.policies.is_empty(), "{slice:?}");
    agent.stop().await;
}

/// A workload for the very process of `web` that comes before it by its name, with a service of its own.
fn declare_one_that_comes_first(world: &World) {
    world.server.put_workload("also", &["launch:web"], "");
    let service = r#"{"forward":"unix:/run/also","listen":"127.0.0.1:2","protocol":"http","workload":"also"}"#;
    world.server.put_value("Service", "also", service.as_bytes());
}

#[tokio::test]
async fn a_point_that_says_for_whom_it_speaks_is_told_of_that_workload_alone_whatever_comes_first()
{
    let world = shop().await;
    let agent = world.agent().await;
    let of = |slice: &v1::Slice| {
        (slice.workload.clone(), slice.services.iter().map(|one| one.name.clone()).collect())
    };
    let only_web = ("web".to_owned(), vec!["web".to_owned(), "orders".to_owned()]);
    let mut point = Point::register_as(&agent, "proxy-web", WEB).await;
    assert_eq!(of(&point.slice().await), only_web);
    declare_one_that_comes_first(&world);
    world.server.remove("Policy", "web-orders");
    // Whoever takes the first is the other one now, and that one's services are told of.
    let mut undecided = Point::register(&agent, "undecided").await;
    assert_eq!(undecided.slice().await.workload, "also");
    let slice = tokio::time::timeout(PATIENCE, point.slice()).await.expect("a slice comes");
    assert_eq!((of(&slice), slice.policies.len()), (only_web.clone(), 0));
    // Nor does one become it that registers only now.
    let mut later = Point::register_as(&agent, "later", WEB).await;
    assert_eq!(of(&later.slice().await), only_web);
    agent.stop().await;
}

#[tokio::test]
async fn a_point_for_whom_its_process_is_not_is_told_who_it_is_and_nothing_else() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut point = Point::register_as(&agent, "door", "spiffe://shop.example/payments").await;
    let refused = point.hear().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    let said = refused.message();
    assert!(said.contains("is not `spiffe://shop.example/payments`: it is"), "{said}");
    assert!(said.contains("`spiffe://shop.example/web`"), "{said}");
    let mut point = Point::register_as(&agent, "door", "web").await;
    assert_eq!(point.hear().await.unwrap_err().code(), tonic::Code::InvalidArgument);
    agent.stop().await;
}

#[tokio::test]
async fn a_point_whose_process_ceases_to_be_whom_it_speaks_for_allows_nothing_any_more() {
    let world = shop().await;
    let agent = world.agent().await;
    declare_one_that_comes_first(&world);
    let mut point = Point::register_as(&agent, "proxy-web", WEB).await;
    assert_eq!(point.slice().await.workload, "web");
    // It is `also` still, which it was not asked to speak for.
    world.server.put_workload("web", &["launch:somebody"], "");
    let slice = tokio::time::timeout(PATIENCE, point.slice()).await.expect("a slice comes");
    assert_eq!((slice.workload.as_str(), slice.services.len()), ("web", 0), "{slice:?}");
    let end = point.hear().await.unwrap_err();
    assert!(end.message().contains("it is `spiffe://shop.example/also`"), "{end}");
    agent.stop().await;
}

#[tokio::test]
async fn envoy_does_not_wait_for_a_workload_that_its_process_may_turn_out_to_be_as_well() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut envoy = AuthorizationClient::new(agent.channel().await);
    let attributes = AttributeContext {
        context_extensions: [("service".to_owned(), "web".to_owned())].into(),
        ..AttributeContext::default()
    };
    let question = CheckRequest { attributes: Some(attributes) };
    // It shows no certificate, so the answer is a denial; but it is one.
    assert!(envoy.check(question.clone()).await.is_ok());
    world.server.sign_for_somebody_else();
    world.server.put_workload("also", &["launch:web"], "");
    let declared = world.server.number();
    world
        .until("the agent knows of it", || {
            world.clock.advance(Duration::from_millis(50));
            let known = world.server.acks().borrow().revision;
            known.is_some_and(|known| declared <= known.number)
        })
        .await;
    let answer = envoy.check(question).await;
    assert!(answer.is_ok(), "{answer:?}");
    agent.stop().await;
}

#[tokio::test]
async fn a_lost_stream_does_not_end_a_point_and_the_end_of_its_process_does() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    let revision = point.slice().await.revision.unwrap();
    point.acknowledge(revision, 0).await;
    let tick = || world.clock.advance(Duration::from_millis(100));
    let known = || {
        tick();
        let acks = world.server.acks();
        let ack = acks.borrow();
        ack.points.len() == 1 && !ack.points[0].gone && ack.points[0].revision.is_some()
    };
    world.until("it is known", known).await;
    drop(point);
    world.pass(Duration::from_secs(3)).await;
    world.until("it is not gone", known).await;
    world.process.end();
    world
        .until("it is told as gone", || {
            tick();
            world.server.acks().borrow().points.iter().any(|one| one.gone)
        })
        .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_goodbye_ends_a_point_at_once_though_its_process_lives() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    let revision = point.slice().await.revision.unwrap();
    point.acknowledge(revision, 0).await;
    let told = |gone: bool| {
        world.clock.advance(Duration::from_millis(10));
        let ack = world.server.acks().borrow().clone();
        ack.points.iter().any(|one| one.revision.is_some() && one.gone == gone)
    };
    world.until("it is known", || told(false)).await;
    let begin = world.clock.now();
    let leaving = tokio::spawn(point.leave());
    world.until("it is told as gone", || told(true)).await;
    let took = world.clock.now().since(begin);
    assert!(took < Duration::from_secs(1), "took {took:?}");
    leaving.await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn facts_are_passed_on_under_the_name_that_was_registered() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut point = Point::register(&agent, "proxy-web").await;
    point.slice().await;
    let fact = v1::HandshakeFact {
        point: "somebody-else".to_owned(),
        direction: v1::Direction::Inbound.into(),
        service: "web".to_owned(),
        local_id: "spiffe://shop.example/web".to_owned(),
        detail: "x".repeat(100_000),
        count: 1,
        ..v1::HandshakeFact::default()
    };
    // Of others it says nothing: neither at their doors, nor as them.
    let of_others = [
        v1::HandshakeFact { service: "payments".to_owned(), ..fact.clone() },
        v1::HandshakeFact { local_id: "spiffe://shop.example/payments".to_owned(), ..fact.clone() },
    ];
    point
        .say(Out::Facts(v1::Facts {
            handshakes: [vec![fact; 3], of_others.to_vec()].concat(),
            dropped: 2,
            ..v1::Facts::default()
        }))
        .await;
    let mut found = None;
    world
        .until("the facts are reported", || {
            world.clock.advance(Duration::from_millis(500));
            let reports = world.server.reports();
            found = reports.borrow().iter().find(|one| !one.handshakes.is_empty()).cloned();
            found.is_some()
        })
        .await;
    let report = found.unwrap();
    assert_eq!((report.handshakes.len(), report.dropped), (3, 2 + 2));
    assert_eq!(report.handshakes[0].point, "proxy-web");
    assert!(report.handshakes[0].detail.len() < 5000);
    agent.stop().await;
}

#[tokio::test]
async fn a_caller_without_a_workload_gets_no_slice() {
    let world = shop().await;
    world.process.become_(selectors(&["launch:nobody"]));
    let agent = world.agent().await;
    let refused = Point::register(&agent, "p").await.hear().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    agent.stop().await;
}

#[tokio::test]
async fn a_ninth_point_of_one_process_is_refused() {
    let world = shop().await;
    let agent = world.agent().await;
    let mut points = Vec::new();
    for number in 0..8 {
        let mut point = Point::register(&agent, &format!("p{number}")).await;
        point.slice().await;
        points.push(point);
    }
    let refused = Point::register(&agent, "p8").await.hear().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    // The same name again is the same point.
    Point::register(&agent, "p7").await.slice().await;
    agent.stop().await;
}

#[tokio::test]
async fn what_comes_before_the_registration_ends_the_stream() {
    let world = shop().await;
    let agent = world.agent().await;
    let (send, requests) = mpsc::channel(4);
    let mut client = EnforcementClient::new(agent.channel().await);
    let mut stream = client.subscribe(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let acknowledge =
        v1::Acknowledge { revision: Some(v1::Revision::default()), cut: 0, draining: 0 };
    send.send(v1::EnforcementRequest { step: Some(Out::Acknowledge(acknowledge)) }).await.unwrap();
    assert_eq!(stream.message().await.unwrap_err().code(), tonic::Code::InvalidArgument);
    agent.stop().await;
}

#[tokio::test]
async fn a_restarted_agent_without_a_server_refuses_no_point_and_takes_nothing_away() {
    let world = shop().await;
    world.agent().await.stop().await;
    world.server.go();
    let agent = world.agent().await;
    // Nor does it say that the process is not the workload that a point speaks for: it may be by now.
    for spiffe_id in ["", WEB, "spiffe://shop.example/payments"] {
        let mut point = Point::register_as(&agent, "proxy", spiffe_id).await;
        let hearing = tokio::spawn(async move { point.hear().await });
        world.pass(Duration::from_secs(11)).await;
        let refused = hearing.await.unwrap().unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_process_is_not_taken_for_a_workload_of_other_nodes() {
    let world = shop().await;
    // More narrowly described than `web`, and not open to this node.
    world.server.put_workload("db", &["launch:web", "unix:uid:1000"], "");
    world.server.send_elsewhere("db");
    let agent = world.agent().await;
    let slice = Point::register(&agent, "proxy-web").await.slice().await;
    assert_eq!(slice.workload, "web");
    let svids = agent.client().await.fetch_all_x509_svids().await.unwrap();
    assert_eq!(svids.len(), 1);
    world.process.become_(selectors(&["unix:uid:1000"]));
    world.server.put_workload("any", &["unix:uid:1000"], "");
    world.server.send_elsewhere("any");
    world.settle().await;
    let refused = Point::register(&agent, "proxy-any").await.hear().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    assert!(agent.client().await.fetch_x509_bundles().await.is_err());
    agent.stop().await;
}

#[tokio::test]
async fn a_process_cannot_fill_the_node_with_points_that_it_closed() {
    let world = shop().await;
    let agent = world.agent().await;
    for number in 0..20 {
        let mut point = Point::register(&agent, &format!("p{number}")).await;
        point.slice().await;
    }
    let mut last = 0;
    world
        .until("the points are told", || {
            world.clock.advance(Duration::from_millis(100));
            last = world.server.acks().borrow().points.len();
            world.server.acks().borrow().points.iter().any(|one| one.point == "p19")
        })
        .await;
    assert!(last <= 8, "{last} points of one process");
    agent.stop().await;
}
