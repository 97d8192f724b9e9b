//! Starting, joining, renewing the node, and starting again.

use std::net::SocketAddr;
use std::time::Duration;

use countersign_agent::StartRefused;
use countersign_identity::Code;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::world::World;

#[tokio::test]
async fn a_second_agent_on_one_directory_or_socket_gets_a_sentence() {
    let world = World::new().await;
    let agent = world.agent().await;
    let refused = world.begin(world.config()).refused().await;
    assert!(refused.to_string().starts_with("another agent runs on"), "{refused}");
    let mut other = world.config();
    other.data = world.folder.path().join("other");
    let refused = world.begin(other).refused().await;
    assert!(refused.to_string().starts_with("another process listens on"), "{refused}");
    assert_eq!(refused.downcast_ref::<StartRefused>().unwrap().code(), Code::AlreadyExists);
    agent.stop().await;
}

#[tokio::test]
async fn a_spent_token_ends_the_start_and_a_lost_server_does_not() {
    let world = World::new().await;
    world.agent().await.stop().await;
    let mut config = world.config();
    config.data = world.folder.path().join("other");
    let refused = world.begin(config).refused().await;
    assert_eq!(refused.downcast_ref::<StartRefused>().unwrap().code(), Code::SpentToken);

    let world = World::new().await;
    world.server.go();
    let starting = world.begin(world.config());
    world.pass(Duration::from_secs(30)).await;
    world.server.come_back();
    world.pass(Duration::from_secs(10)).await;
    assert_eq!(world.server.issued(), 1);
    drop(starting);
}

#[tokio::test]
async fn a_lost_answer_to_the_first_attestation_does_not_shut_the_node_out() {
    let world = World::new().await;
    world.server.lose_next_attestation();
    let starting = world.begin(world.config());
    world.pass(Duration::from_secs(10)).await;
    assert_eq!(world.server.issued(), 1, "it joined with a key of its own");
    drop(starting);
}

#[tokio::test]
async fn an_agent_says_that_it_is_the_first_where_no_key_of_an_earlier_run_is_there_and_only_then()
{
    let world = World::new().await;
    world.agent().await.stop().await;
    world.agent().await.stop().await;
    assert_eq!(world.server.firsts(), [true], "the second run is the same node");

    // One that makes another key because an answer was lost is the same run.
    let world = World::new().await;
    world.server.lose_next_attestation();
    let starting = world.begin(world.config());
    world.pass(Duration::from_secs(10)).await;
    assert_eq!(world.server.firsts(), [true; 3]);
    drop(starting);

    // One that ends before it has heard that it is the node may have been it.
    let world = World::new().await;
    world.server.go();
    let starting = world.begin(world.config());
    world.until("it has asked", || !world.server.firsts().is_empty()).await;
    starting.stop().await;
    world.server.come_back();
    let before = world.server.firsts().len();
    world.agent().await.stop().await;
    let firsts = world.server.firsts();
    assert_eq!((&firsts[..before], &firsts[before..]), (&*vec![true; before], &[false][..]));
}

#[tokio::test]
async fn without_a_token_or_a_root_to_trust_nobody_joins() {
    let world = World::new().await;
    let mut config = world.config();
    config.join = None;
    let refused = world.begin(config).refused().await;
    assert!(refused.to_string().contains("--join"), "{refused}");
    let mut config = world.config();
    config.trust = None;
    let refused = world.begin(config).refused().await;
    assert!(refused.to_string().contains("--trust"), "{refused}");
}

#[tokio::test]
async fn a_restarted_agent_needs_no_token_and_goes_on_from_its_revision() {
    let world = World::new().await;
    world.agent().await.stop().await;
    let mut config = world.config();
    config.join = None;
    config.trust = None;
    let agent = world.agent_with(config).await;
    agent.client().await.fetch_x509_svid().await.unwrap();
    let haves = world.server.haves();
    assert_eq!(haves.len(), 2);
    assert!(haves[0].is_none());
    assert_eq!(haves[1].unwrap().number, world.server.number());
    agent.stop().await;
}

#[tokio::test]
async fn the_node_renews_under_a_successor_key_and_forgets_the_old_one() {
    let world = World::new().await;
    let agent = world.agent().await;
    world.pass(Duration::from_secs(1850)).await;
    assert_eq!((world.server.renewals(), world.server.generation()), (1, 2));
    let data = world.folder.path().join("data");
    assert!(data.join("node-2.key").exists());
    assert!(!data.join("node-1.key").exists());
    agent.client().await.fetch_x509_svid().await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn a_lost_answer_to_a_renewal_does_not_lose_the_node() {
    let world = World::new().await;
    let agent = world.agent().await;
    world.server.lose_next_renewal();
    world.pass(Duration::from_secs(2000)).await;
    assert_eq!((world.server.renewals(), world.server.generation()), (2, 2));
    agent.client().await.fetch_x509_svid().await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn a_node_whose_svid_expired_in_an_outage_renews_it_first() {
    let world = World::new().await;
    let agent = world.agent().await;
    world.server.go();
    world.clock.advance(Duration::from_secs(7200));
    world.settle().await;
    world.server.come_back();
    world.pass(Duration::from_secs(15)).await;
    assert_eq!(world.server.generation(), 2);
    agent.client().await.fetch_x509_svid().await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn a_changed_issuer_needs_nothing_from_the_agent() {
    let world = World::new().await;
    let agent = world.agent().await;
    world.server.change_issuer().await;
    world.pass(Duration::from_secs(40)).await;
    agent.client().await.fetch_x509_svid().await.unwrap();
    assert!(2 <= world.server.issued());
    agent.stop().await;
}

#[tokio::test]
async fn credentials_are_reported_with_their_terms() {
    let world = World::new().await;
    let mut reports = world.server.reports();
    let agent = world.agent().await;
    world.pass(Duration::from_secs(1)).await;
    let reported = reports.wait_for(|reports| {
        reports.iter().any(|report| report.credentials.iter().any(|one| one.expires_micros != 0))
    });
    let reports = reported.await.unwrap().clone();
    let report = reports.last().unwrap();
    assert_eq!(report.credentials[0].spiffe_id, "spiffe://shop.example/web");
    assert_eq!(report.processes[0].kind, "agent");
    assert!(0 < report.processes[0].resident_bytes);
    agent.stop().await;
}

#[tokio::test]
async fn the_status_is_for_root_and_the_agents_own_user() {
    use countersign_api::v1::ShowRequest;
    use countersign_api::v1::agent_status_client::AgentStatusClient;
    let mut world = World::new().await;
    let agent = world.agent().await;
    // The simulated caller is uid 1000.
    let ours = rustix::process::geteuid().as_raw();
    if ours != 1000 {
        let mut client = AgentStatusClient::new(agent.channel().await);
        let refused = client.show(ShowRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    }
    agent.stop().await;

    world.kernel = true;
    let agent = world.agent().await;
    let mut client = AgentStatusClient::new(agent.channel().await);
    let shown = client.show(ShowRequest {}).await.unwrap().into_inner();
    assert!(shown.connected);
    assert_eq!(shown.server, "server:8443");
    let budget = shown.budget_ends_micros;
    assert_eq!(budget, shown.credentials[0].expires_micros);
    world.server.go();
    world.pass(Duration::from_secs(5)).await;
    let shown = client.show(ShowRequest {}).await.unwrap().into_inner();
    assert!(!shown.connected);
    assert_eq!(shown.budget_ends_micros, budget, "told also while the server is away");
    assert!(!shown.trouble.is_empty());
    agent.stop().await;
}

/// Some times as many as have places at the port for metrics.
const SILENT: usize = 300;
/// Far less than all of them may be silent, one after the other.
const PROMPT: Duration = Duration::from_secs(5);

/// Connects from a loopback address that ends so.
async fn connect(last: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn a_silent_crowd_keeps_no_scraper_from_the_metrics() {
    let world = World::new().await;
    let mut config = world.config();
    config.metrics = Some("127.0.0.1:0".parse().unwrap());
    let agent = world.agent_with(config).await;
    let port = agent.ready.as_ref().unwrap().metrics.unwrap();
    let mut crowd = Vec::new();
    for _ in 0..SILENT {
        crowd.push(connect(2, port).await);
    }
    for last in [2, 3] {
        let (mut scraper, mut text) = (connect(last, port).await, String::new());
        scraper.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let read = tokio::time::timeout(PROMPT, scraper.read_to_string(&mut text));
        read.await.expect("it is answered at once").unwrap();
        assert!(text.contains("\ncountersign_agent_connected 1\n"), "from {last}: {text}");
    }
    agent.stop().await;
}
