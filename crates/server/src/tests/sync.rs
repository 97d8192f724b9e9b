//! What agents are told.

use std::time::Duration;

use countersign_api::v1;
use countersign_api::v1::sync_request::Step as Asked;
use countersign_api::v1::sync_response::Step;
use countersign_identity::{Clock as _, Code, Revision};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::client::Telling;
use super::{
    Agent, Client, Realm, code, nobody, policy, service, soon, trust_domain, unknown_or_cut,
    workload,
};

/// An agent's stream.
pub(super) struct Stream {
    pub(super) say: mpsc::Sender<v1::SyncRequest>,
    pub(super) told: Telling,
    /// The rules that came with their signatures.
    pub(super) signed: Vec<v1::SignedRecord>,
}

pub(super) async fn open(client: &mut Client, have: Option<Revision>) -> Result<Stream, Status> {
    let hello = v1::SyncHello { have: have.map(Into::into), ..Default::default() };
    open_with(client, hello).await
}

pub(super) async fn open_with(client: &mut Client, hello: v1::SyncHello) -> Result<Stream, Status> {
    let (say, said) = mpsc::channel(8);
    say.send(v1::SyncRequest { step: Some(Asked::Hello(hello)) }).await.unwrap();
    let told = client.node.sync(ReceiverStream::new(said)).await?.into_inner();
    Ok(Stream { say, told, signed: Vec::new() })
}

impl Stream {
    pub(super) async fn next(&mut self) -> Result<Step, Status> {
        loop {
            let message = soon(self.told.message()).await?;
            match message.expect("the stream goes on").step.unwrap() {
                Step::Signed(signed) => self.signed.extend(signed.records),
                step => return Ok(step),
            }
        }
    }

    pub(super) async fn snapshot(&mut self) -> v1::Snapshot {
        match self.next().await.unwrap() {
            Step::Snapshot(snapshot) => snapshot,
            other => panic!("expected a snapshot: {other:?}"),
        }
    }

    pub(super) async fn changes(&mut self) -> v1::Changes {
        loop {
            match self.next().await.unwrap() {
                Step::Changes(changes) => return changes,
                Step::Mark(_) | Step::Signed(_) => {}
                Step::Snapshot(_) => panic!("a second snapshot"),
            }
        }
    }

    pub(super) async fn ack(&self, revision: Revision, points: Vec<v1::PointAck>) {
        self.say_ack(v1::SyncAck { revision: Some(revision.into()), points, unaware: 0 }).await;
    }

    /// Acknowledges for no point and so many processes that cannot.
    pub(super) async fn unaware(&self, revision: Revision, unaware: u64) {
        let points = Vec::new();
        self.say_ack(v1::SyncAck { revision: Some(revision.into()), points, unaware }).await;
    }

    async fn say_ack(&self, ack: v1::SyncAck) {
        self.say.send(v1::SyncRequest { step: Some(Asked::Ack(ack)) }).await.unwrap();
    }
}

fn names(records: &[v1::Record]) -> Vec<String> {
    records.iter().map(|record| format!("{}/{}", record.kind, record.name)).collect()
}

const WEB_TO_ORDERS: &str = r#"permit (principal == Workload::"web", action == Action::"connect", resource == Service::"orders");"#;

#[tokio::test]
async fn agent_is_told_its_slice_and_then_only_what_changes_in_it() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running
        .apply(vec![
            workload("web", &["front"]),
            workload("orders", &["back"]),
            workload("vault", &["secure"]),
            service("web", &["orders"]),
            service("orders", &[]),
            service("vault", &[]),
            policy("web-to-orders", WEB_TO_ORDERS),
        ])
        .await;
    let agent = Agent::join(&realm, &running, &["front"]).await;
    let mut client = agent.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    let snapshot = stream.snapshot().await;
    let expected = [
        "Bundle/shop.example",
        "Policy/web-to-orders",
        "Service/orders",
        "Service/web",
        "TrustDomain/shop-example",
        "Workload/orders",
        "Workload/web",
    ];
    assert_eq!(names(&snapshot.records), expected);
    // A change of somebody else's is a mark at most, and one of its own comes at once.
    running.apply(vec![workload("secret", &["secure"])]).await;
    let applied = running.apply(vec![workload("cron", &["front"])]).await;
    let changes = stream.changes().await;
    assert_eq!(names(&changes.put), ["Workload/cron"]);
    assert_eq!(Revision::from(changes.revision.unwrap()), applied.revision);
    let kind = countersign_api::resource::Kind::Policy;
    running.admin.remove_resource(kind, &"web-to-orders".parse().unwrap()).await.unwrap();
    let changes = stream.changes().await;
    assert_eq!(changes.gone.len(), 1);
    assert_eq!(changes.gone[0].name, "web-to-orders");
    // It comes back after a moment, and is told what it has missed.
    drop(stream);
    running.apply(vec![workload("late", &["front"])]).await;
    let mut stream = open(&mut client, Some(applied.revision)).await.unwrap();
    let changes = stream.changes().await;
    assert_eq!(names(&changes.put), ["Workload/late"]);
    assert_eq!(changes.gone.len(), 1);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn policy_for_everybody_brings_the_names_of_all_workloads() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let everybody = r#"@unscoped("all may order") permit (principal, action == Action::"connect", resource == Service::"orders");"#;
    running
        .apply(vec![
            workload("orders", &["back"]),
            workload("far", &["elsewhere"]),
            service("orders", &[]),
            policy("orders", everybody),
        ])
        .await;
    let agent = Agent::join(&realm, &running, &["back"]).await;
    let mut client = agent.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    let snapshot = stream.snapshot().await;
    assert!(names(&snapshot.records).contains(&"Workload/far".to_owned()));
    running.stop().await;
}

#[tokio::test]
async fn stream_ends_when_the_node_is_removed() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    stream.snapshot().await;
    running.admin.remove_node(agent.node).await.unwrap();
    let ended = loop {
        if let Err(status) = stream.next().await {
            break status;
        }
    };
    unknown_or_cut(&ended);
    let refused = open(&mut client, None).await.err().unwrap();
    unknown_or_cut(&refused);
    running.stop().await;
}

#[tokio::test]
async fn stream_does_not_outlive_the_certificate_that_opened_it() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![trust_domain("60s")]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    stream.snapshot().await;
    realm.clock.advance(Duration::from_secs(61));
    // The register cuts the connection, or the stream says why it ends, whichever comes first.
    let ended = loop {
        if let Err(status) = stream.next().await {
            break status;
        }
    };
    assert_ne!(ended.code(), tonic::Code::Ok);
    assert!(soon(client.node.sign(v1::SignRequest::default())).await.is_err());
    running.stop().await;
}

#[tokio::test]
async fn newest_stream_of_a_node_is_the_one_that_lives() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let mut older = open(&mut client, None).await.unwrap();
    older.snapshot().await;
    let mut newer = open(&mut client, None).await.unwrap();
    newer.snapshot().await;
    let ended = loop {
        if let Err(status) = older.next().await {
            break status;
        }
    };
    assert_eq!(code(&ended), Code::Unavailable);
    running.apply(vec![workload("web", &[])]).await;
    assert_eq!(names(&newer.changes().await.put), ["Workload/web"]);
    running.stop().await;
}

#[tokio::test]
async fn nobody_syncs_without_an_agents_certificate() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let mut nobody = nobody(&realm, &running).await;
    let refused = open(&mut nobody, None).await.err().unwrap();
    assert_eq!(code(&refused), Code::Unauthenticated);
    running.stop().await;
}

#[tokio::test]
async fn status_shows_what_agents_acknowledge_and_report() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let applied = running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    stream.snapshot().await;
    let now = realm.clock.now();
    let point = v1::PointAck {
        point: "proxy-web".to_owned(),
        spiffe_id: "spiffe://shop.example/web".to_owned(),
        revision: Some(applied.revision.into()),
        cut: 0,
        gone: false,
        draining: 0,
        ..Default::default()
    };
    stream.ack(applied.revision, vec![point]).await;
    let credential = v1::CredentialStatus {
        workload: "web".to_owned(),
        spiffe_id: "spiffe://shop.example/web".to_owned(),
        serial: vec![0x40; 16].into(),
        issued_micros: now.micros(),
        expires_micros: (now + Duration::from_secs(900)).micros(),
        renewal_micros: (now + Duration::from_secs(450)).micros(),
        trouble: String::new(),
    };
    let fact = v1::HandshakeFact {
        direction: v1::Direction::Inbound.into(),
        code: "no-certificate".to_owned(),
        point: "proxy-web".to_owned(),
        ..Default::default()
    };
    let report = v1::ReportRequest {
        handshakes: vec![fact],
        dropped: 2,
        processes: vec![v1::ProcessStatus {
            name: "proxy-web".to_owned(),
            resident_bytes: 7,
            ..Default::default()
        }],
        credentials: vec![credential],
        clock_micros: 0,
        ..v1::ReportRequest::default()
    };
    client.node.report(report).await.unwrap();
    let status = soon(async {
        loop {
            let status = running.admin.status().await.unwrap();
            if !status.points.is_empty() {
                return status;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(status.nodes[0].revision, Some(applied.revision));
    assert!(status.nodes[0].connected);
    assert_eq!((status.points[0].live, status.points[0].resident_bytes), (true, 7));
    assert_eq!(status.workloads[0].held, 1);
    assert_eq!(status.outage_budget.guaranteed_seconds, 405);
    assert_eq!(status.outage_budget.ends_at, Some(now + Duration::from_secs(900)));
    let shown = running.admin.handshakes(10, None).await.unwrap();
    assert_eq!(shown.dropped, 2);
    assert!(shown.handshakes.iter().any(|fact| fact.code == Some(Code::NoCertificate)));
    drop(stream);
    soon(async {
        while running.admin.status().await.unwrap().nodes[0].connected {
            tokio::task::yield_now().await;
        }
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn stream_that_waits_with_its_hello_does_not_slip_past_a_removal() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let client = agent.client(&realm, &running).await;
    let (say, said) = mpsc::channel(1);
    let node = client.node.clone();
    let opening = tokio::spawn(async move { node.sync(ReceiverStream::new(said)).await });
    // Other calls of the same connection are answered meanwhile: the server has seen the stream.
    for _ in 0..5 {
        client.node.report(v1::ReportRequest::default()).await.unwrap();
    }
    running.admin.remove_node(agent.node).await.unwrap();
    let hello = Asked::Hello(v1::SyncHello::default());
    // The stream may have been cut already.
    let _cut = say.send(v1::SyncRequest { step: Some(hello) }).await;
    let refused = soon(opening).await.unwrap().unwrap_err();
    unknown_or_cut(&refused);
    assert!(running.admin.status().await.unwrap().nodes.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn node_is_not_told_how_others_are_attested_or_started() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let mut orders = service("orders", &[]);
    orders["spec"]["command"] = serde_json::json!(["orders", "--serve"]);
    orders["spec"]["environment"] = serde_json::json!({ "PASSWORD": "hunter2" });
    let mut web = service("web", &["orders"]);
    web["spec"]["environment"] = serde_json::json!({ "PASSWORD": "hunter3" });
    running
        .apply(vec![workload("web", &["front"]), workload("orders", &["back"]), orders, web])
        .await;
    let agent = Agent::join(&realm, &running, &["front"]).await;
    let mut client = agent.client(&realm, &running).await;
    let snapshot = open(&mut client, None).await.unwrap().snapshot().await;
    let value = |name: &str| {
        let found = names(&snapshot.records).iter().position(|found| found == name).unwrap();
        String::from_utf8(snapshot.records[found].value.to_vec()).unwrap()
    };
    assert!(value("Workload/web").contains("launch:web"));
    assert!(!value("Workload/orders").contains("launch:orders"));
    assert!(value("Service/orders").contains("127.0.0.1:1"));
    for name in ["Service/orders", "Service/web"] {
        assert!(!value(name).contains("hunter"), "{}", value(name));
        assert!(!value(name).contains("--serve"), "{}", value(name));
    }
    // Nor does the log hold what may be a secret.
    let events = running.admin.events(1000, None).await.unwrap();
    assert!(!serde_json::to_string(&events).unwrap().contains("hunter"));
    running.stop().await;
}
