//! Listeners that follow a changing plan, and `run` from start to end with files.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use countersign::Authorization;
use countersign_pki::Bundle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::program::Program;
use super::realm::Realm;
use super::world::{
    Caller, Proxy, Shop, WEB_TO_ORDERS, directory, eventually, inbound, name, outbound,
};
use crate::config::{
    Config, FixedInbound, FixedOutbound, IdentitySource, Listeners, LocalPlace, Protocol, Ready,
};
use crate::plan::Plan;
use crate::{Target, run};

#[tokio::test]
async fn a_changed_address_is_followed_without_closing_the_listener() {
    let mut shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 200);
    let directory = directory();
    let program = Program::start(&directory.path().join("other.sock"));
    let mut other = Proxy::start(&shop.realm, "orders", WEB_TO_ORDERS).await;
    other.listen(&[inbound(&program.target(), Protocol::Http)], &[]);
    shop.web.listen(&[], &[outbound(&shop.realm, &shop.local, &[other.door()], Protocol::Http)]);
    assert_eq!(caller.get("/").await.0, 200, "on the very connection that the program had");
    assert_eq!((shop.program.reached(), program.reached()), (1, 1));
    eventually(|| (shop.orders.plane.trust.connections() == 0).then_some(())).await;
}

#[tokio::test]
async fn listeners_come_and_go_without_touching_others() {
    let mut shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 200);
    let kept = outbound(&shop.realm, &shop.local, &[shop.orders.door()], Protocol::Http);
    let directory = directory();
    let path = directory.path().join("second.sock");
    let mut second = outbound(&shop.realm, &path, &[shop.orders.door()], Protocol::Http);
    second.service = name("orders-2");
    shop.web.listen(&[], &[kept.clone(), second]);
    assert_eq!(
        Caller::connect(&path).await.get("/").await.0,
        403,
        "no policy speaks of `orders-2`"
    );
    shop.web.listen(&[], &[kept]);
    eventually(|| (!path.exists()).then_some(())).await;
    assert_eq!(caller.get("/").await.0, 200);
    assert_eq!(shop.orders.handshakes(), 1);
}

#[tokio::test]
async fn a_listener_that_cannot_be_had_keeps_no_other_from_opening() {
    let mut shop = Shop::open(Protocol::Http).await;
    for round in 1.. {
        let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut first = inbound(&shop.program.target(), Protocol::Http);
        first.listen = taken.local_addr().unwrap();
        first.service = name("a-taken");
        let second = inbound(&shop.program.target(), Protocol::Http);
        let plan = Plan::fixed(&[first, second], &[]);
        let faults = shop.orders.supervisor.reconcile(&plan);
        assert_eq!(faults.len(), 1);
        assert!(faults[0].to_string().contains("is taken by another process"));
        assert_eq!(shop.orders.supervisor.bound().0.len(), 1);
        drop(taken);
        let faults = shop.orders.supervisor.reconcile(&plan);
        if faults.is_empty() {
            assert_eq!(shop.orders.supervisor.bound().0.len(), 2, "and it is had once it is free");
            return;
        }
        // Somebody else may be quicker to take a port that was just freed: then it is another port's turn.
        assert!(round < 8, "{faults:?}");
    }
}

/// A proxy as the command starts it, from files.
struct Started {
    ready: Ready,
    stop: CancellationToken,
    ends: tokio::task::JoinHandle<anyhow::Result<()>>,
}

async fn start(config: Config) -> anyhow::Result<Started> {
    let stop = CancellationToken::new();
    let (tell, told) = oneshot::channel();
    let ends = tokio::spawn(run(config, stop.clone(), tell));
    match told.await {
        Ok(ready) => Ok(Started { ready, stop, ends }),
        Err(_gone) => Err(ends.await.unwrap().unwrap_err()),
    }
}

async fn files(realm: &Realm, workload: &str, folder: &Path) -> IdentitySource {
    let identity = realm.identity(workload, 3600).await;
    let (chain, key, bundle) = ("chain.pem", "key.pem", "bundle.pem");
    let at = |file: &str| folder.join(format!("{workload}.{file}"));
    std::fs::write(at(chain), identity.identity.chain().pem()).unwrap();
    std::fs::write(at(key), countersign_pki::encode_private_key(&identity.key).as_bytes()).unwrap();
    std::fs::write(at(bundle), Bundle::to_pem(&realm.bundle())).unwrap();
    let trust_domain = None;
    IdentitySource::Files {
        chain: at(chain),
        key: at(key),
        bundle: at(bundle),
        trust_domain,
        federated: Vec::new(),
    }
}

fn config(identity: IdentitySource, authorization: Authorization, listeners: Listeners) -> Config {
    let metrics = Some("127.0.0.1:0".parse().unwrap());
    let tracing = None;
    Config { name: name("proxy"), identity, authorization, listeners, metrics, tracing }
}

async fn orders(
    realm: &Realm,
    folder: &Path,
    program: Target,
    authorization: Authorization,
) -> Config {
    let listen = "127.0.0.1:0".parse().unwrap();
    let door = FixedInbound {
        service: name("orders"),
        listen,
        forward: program,
        protocol: Protocol::Http,
    };
    let listeners = Listeners::Fixed { inbound: vec![door], outbound: Vec::new() };
    config(files(realm, "orders", folder).await, authorization, listeners)
}

async fn web(realm: &Realm, folder: &Path, orders: &Ready) -> Config {
    let way = FixedOutbound {
        service: name("orders"),
        local: LocalPlace::Unix(folder.join("web.sock")),
        addresses: vec![format!("localhost:{}", orders.inbound[0].listen.port())],
        peer: realm.id("orders"),
        protocol: Protocol::Http,
    };
    let listeners = Listeners::Fixed { inbound: Vec::new(), outbound: vec![way] };
    let authorization = Authorization::AllowIds(Vec::new());
    config(files(realm, "web", folder).await, authorization, listeners)
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_proxies_run_from_files_drain_and_show_metrics_beside_a_silent_crowd() {
    let folder = directory();
    let realm = Realm::new("shop.example", 1).await;
    let program = Program::start(&folder.path().join("orders.sock"));
    let allow = Authorization::AllowIds(vec![realm.id("web")]);
    let orders = start(orders(&realm, folder.path(), program.target(), allow).await).await.unwrap();
    assert_eq!(orders.ready.id, realm.id("orders"));
    assert_ne!(orders.ready.inbound[0].listen.port(), 0);
    let web = start(web(&realm, folder.path(), &orders.ready).await).await.unwrap();
    let local = folder.path().join("web.sock");
    assert_eq!(web.ready.outbound[0].local.to_string(), format!("unix:{}", local.display()));
    let mut caller = Caller::connect(&local).await;
    let (status, body) = caller.get("/").await;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("x-countersign-peer: spiffe://shop.example/web"), "{body}");

    // Callers that say nothing keep nobody out, wherever they come from.
    let (mut crowd, mut text) = (Vec::new(), String::new());
    for _ in 0..SILENT {
        crowd.push(connect(2, orders.ready.metrics.unwrap()).await);
    }
    for last in [2, 3] {
        let mut scrape = connect(last, orders.ready.metrics.unwrap()).await;
        scrape.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        text.clear();
        let read = tokio::time::timeout(PROMPT, scrape.read_to_string(&mut text));
        read.await.expect("it is closed at once").unwrap();
        assert!(text.starts_with("HTTP/1.1 200 "), "from {last}: {text}");
        assert!(text.contains("application/openmetrics-text"), "{text}");
    }
    let line = "countersign_proxy_requests_total{service=\"orders\",direction=\"inbound\",outcome=\"2xx\"} 1";
    assert!(text.contains(line), "{text}");

    for proxy in [web, orders] {
        proxy.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(8), proxy.ends).await;
        ended.expect("it drained in time").unwrap().unwrap();
    }
    assert!(!local.exists());
}

#[tokio::test]
async fn nobody_is_let_in_without_a_policy_or_a_list() {
    let folder = directory();
    let realm = Realm::new("shop.example", 1).await;
    let program = Program::start(&folder.path().join("orders.sock"));
    let orders =
        start(orders(&realm, folder.path(), program.target(), Authorization::Nothing).await)
            .await
            .unwrap();
    let web = start(web(&realm, folder.path(), &orders.ready).await).await.unwrap();
    let (status, body) = Caller::connect(&folder.path().join("web.sock")).await.get("/").await;
    assert_eq!(status, 502, "{body}");
    assert_eq!(program.reached(), 0);
    web.stop.cancel();
    orders.stop.cancel();
}

#[tokio::test]
async fn what_cannot_start_says_why_and_at_once() {
    let tried = tokio::time::timeout(Duration::from_secs(8), cannot_start());
    tried.await.expect("no failure waits for a drain");
}

async fn cannot_start() {
    let folder = directory();
    let realm = Realm::new("shop.example", 1).await;
    let target = Target::Tcp("127.0.0.1:1".into());
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut busy = orders(&realm, folder.path(), target.clone(), Authorization::Nothing).await;
    if let Listeners::Fixed { inbound, .. } = &mut busy.listeners {
        inbound[0].listen = taken.local_addr().unwrap();
    }
    let error = start(busy).await.err().unwrap();
    assert!(
        format!("{error:#}").contains("is taken by another process: choose another one"),
        "{error:#}"
    );

    let mut twice = orders(&realm, folder.path(), target.clone(), Authorization::Nothing).await;
    if let Listeners::Fixed { inbound, .. } = &mut twice.listeners {
        inbound.push(inbound[0].clone());
    }
    let error = start(twice).await.err().unwrap();
    assert!(format!("{error:#}").contains("`orders` has two doors"), "{error:#}");

    let mut agentless = orders(&realm, folder.path(), target.clone(), Authorization::Nothing).await;
    agentless.listeners = Listeners::FromAgent { run_dir: folder.path().join("run") };
    let error = start(agentless).await.err().unwrap();
    assert!(format!("{error:#}").contains("need policies from the agent"), "{error:#}");

    let mut keyless = orders(&realm, folder.path(), target, Authorization::Nothing).await;
    if let IdentitySource::Files { key, .. } = &mut keyless.identity {
        *key = folder.path().join("no-such.pem");
    }
    let error = start(keyless).await.err().unwrap();
    assert!(format!("{error:#}").contains("no-such.pem"), "{error:#}");
}
