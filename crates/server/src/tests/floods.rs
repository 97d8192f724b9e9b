//! Callers that show what is wrong again and again, from addresses of their own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use countersign_api::v1;
use countersign_api::v1::attest_request::Evidence;
use countersign_identity::{Code, NodeId};
use countersign_pki::{KeyKind, PrivateKey, make_csr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::client::stranger_from;
use super::renew::{Claim, renew};
use super::start::ask;
use super::{Agent, Client, Realm, Running, attest, code, soon, trust_domain};
use crate::config::Config;

/// Loopback addresses beside that of the tests' own agents.
const ATTACKER: [u8; 4] = [127, 0, 0, 2];
const HONEST: [u8; 4] = [127, 0, 0, 3];
/// How many proofs of one source may fail at once.
const FAILURES: usize = 20;

const VERIFIED: &str = "countersign_server_proofs_verified_total";

/// How many operations with public keys were begun for machines that attest or renew.
pub(super) async fn verified(running: &Running) -> u64 {
    let text = ask(running.ready.metrics.unwrap(), "/metrics").await;
    let lines = text.lines().filter(|line| line.starts_with(VERIFIED));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

pub(super) async fn serve(realm: &Realm) -> Running {
    let metrics = Some("127.0.0.1:0".parse().unwrap());
    realm.start(Config { metrics, ..realm.config() }).await.unwrap()
}

/// Asks to join with this token and a request that is not signed by its key.
async fn join_badly(client: &mut Client, token: &str) -> Code {
    let mut csr = make_csr(&PrivateKey::generate(KeyKind::P256).unwrap()).unwrap();
    *csr.last_mut().unwrap() ^= 1;
    let evidence = Some(Evidence::JoinToken(token.to_owned()));
    let request = v1::AttestRequest { evidence, csr: csr.into(), ..Default::default() };
    code(&client.node.attest(request).await.unwrap_err())
}

#[tokio::test]
async fn bad_renewals_without_end_cost_what_one_source_may_fail_and_others_renew() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    running.apply(vec![trust_domain("1m")]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    realm.clock.advance(Duration::from_secs(3600));
    let before = verified(&running).await;
    let mut attacker = stranger_from(&realm, &running, ATTACKER).await;
    let mut codes = Vec::new();
    for _ in 0..100 {
        let claim = Claim { nonce: Some([0; 32]), ..Claim::honest(&agent) };
        codes.push(code(&renew(&mut attacker, claim).await.unwrap_err()));
    }
    let (first, rest) = codes.split_at(FAILURES);
    assert!(first.iter().all(|code| *code == Code::BadPossession), "{first:?}");
    assert!(rest.iter().all(|code| *code == Code::RateLimited), "{rest:?}");
    assert_eq!(verified(&running).await - before, FAILURES as u64);
    // A copied chain buys nothing, whatever generation it is said to be of.
    let claim = Claim { chain: agent.chain.clone(), generation: 2, ..Claim::honest(&agent) };
    let refused = renew(&mut attacker, claim).await.unwrap_err();
    assert_eq!(code(&refused), Code::RateLimited);
    // The node itself, whose certificate has ended.
    let mut honest = stranger_from(&realm, &running, HONEST).await;
    renew(&mut honest, Claim::honest(&agent)).await.unwrap();
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn who_copied_a_chain_and_has_no_key_costs_one_signature() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let thief = PrivateKey::generate(KeyKind::P256).unwrap();
    let before = verified(&running).await;
    let mut attacker = stranger_from(&realm, &running, ATTACKER).await;
    let chain = agent.chain.clone();
    let claim = Claim { chain, generation: 2, key: &thief, ..Claim::honest(&agent) };
    let refused = renew(&mut attacker, claim).await.unwrap_err();
    assert_eq!(code(&refused), Code::BadPossession);
    assert_eq!(verified(&running).await - before, 1);
    let text = ask(running.ready.metrics.unwrap(), "/metrics").await;
    assert!(text.contains(&format!("{VERIFIED}{{of=\"statement\"}} 1\n")), "{text}");
    running.stop().await;
}

#[tokio::test]
async fn nothing_is_verified_for_who_has_no_token_or_names_no_node() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let before = verified(&running).await;
    let mut attacker = stranger_from(&realm, &running, ATTACKER).await;
    for token in ["", "guess", &"A".repeat(43)] {
        assert_eq!(join_badly(&mut attacker, token).await, Code::UnknownToken, "{token}");
    }
    let claim = Claim { node: NodeId::from_bytes([7; 16]), ..Claim::honest(&agent) };
    assert_eq!(code(&renew(&mut attacker, claim).await.unwrap_err()), Code::UnknownNode);
    assert_eq!(verified(&running).await, before);
    running.stop().await;
}

#[tokio::test]
async fn holder_of_a_token_with_broken_requests_is_made_to_wait_and_others_join() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let token = running.token(&[]).await;
    let mut holder = stranger_from(&realm, &running, ATTACKER).await;
    let mut codes = Vec::new();
    for _ in 0..40 {
        codes.push(join_badly(&mut holder, &token).await);
    }
    let (first, rest) = codes.split_at(FAILURES);
    assert!(first.iter().all(|code| *code == Code::BadPossession), "{first:?}");
    assert!(rest.iter().all(|code| *code == Code::RateLimited), "{rest:?}");
    assert_eq!(verified(&running).await, FAILURES as u64);
    drop(Agent::join(&realm, &running, &[]).await);
    // It has waited, and its token was never spent.
    realm.clock.advance(Duration::from_secs(3));
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    attest(&mut holder, &token, &key).await.unwrap();
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn clock_that_goes_back_keeps_no_node_from_renewing() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    realm.clock.advance(Duration::from_secs(60));
    let mut attacker = stranger_from(&realm, &running, ATTACKER).await;
    let badly = || Claim { nonce: Some([0; 32]), ..Claim::honest(&agent) };
    while code(&renew(&mut attacker, badly()).await.unwrap_err()) == Code::BadPossession {}
    realm.clock.set(countersign_identity::Clock::now(&*realm.clock) - Duration::from_secs(30));
    let mut honest = stranger_from(&realm, &running, HONEST).await;
    renew(&mut honest, Claim::honest(&agent)).await.unwrap();
    let refused = renew(&mut attacker, badly()).await.unwrap_err();
    assert_eq!(code(&refused), Code::RateLimited);
    realm.clock.advance(Duration::from_secs(3));
    let refused = renew(&mut attacker, badly()).await.unwrap_err();
    assert_eq!(code(&refused), Code::BadPossession, "it waits no longer than it would have");
    running.stop().await;
}

/// How many sources the crowds at the port for lists have, and how many connections each of them.
const CROWDS: (u8, usize) = (5, 128);
/// How many of them connect at once. The system lets twice as many wait.
const GROUP: usize = 64;
/// Far less than a caller may take to send its head, after which the old ones of a crowd would go in any case.
const PROMPT: Duration = Duration::from_secs(5);

async fn from(source: [u8; 4], port: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    socket.connect(port).await
}

/// Connects again and again, and either says nothing or one byte of a head a second.
async fn linger(source: [u8; 4], port: SocketAddr, says: Option<&[u8]>) {
    loop {
        if let Ok(mut tcp) = from(source, port).await {
            let mut rest = says.unwrap_or_default().iter();
            loop {
                let ended = tokio::time::timeout(Duration::from_secs(1), tcp.read_u8()).await;
                let said = match rest.next() {
                    Some(byte) => tcp.write_u8(*byte).await.is_ok(),
                    None => true,
                };
                if ended.is_ok() || !said {
                    break;
                }
            }
        }
        // As long as it takes to turn to the next one.
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// What is answered there to somebody from this address, and within what time.
async fn get(source: [u8; 4], port: SocketAddr, path: &str) -> (String, Duration) {
    let begun = Instant::now();
    let mut tcp = from(source, port).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    soon(tcp.read_to_end(&mut answer)).await.unwrap();
    (String::from_utf8_lossy(&answer).into_owned(), begun.elapsed())
}

async fn crowds_keep_nobody_from_the_lists(says: Option<&'static [u8]>) {
    let realm = Realm::begin().await;
    let views = Some("127.0.0.1:0".parse().unwrap());
    let running = realm.start(Config { views, ..realm.config() }).await.unwrap();
    let issuer = soon(async {
        loop {
            if let Ok(list) = running.admin.crl(None, None).await {
                return list.issuer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let paths = [format!("/crl/{}.crl", issuer.await), "/checkpoint".to_owned(), "/".to_owned()];
    let port = running.ready.views.unwrap();
    soon(async {
        while !get([127, 0, 0, 1], port, "/checkpoint").await.0.contains(" 200 ") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let (sources, each) = CROWDS;
    let mut crowd = JoinSet::new();
    for source in 0..sources {
        for number in 0..each {
            crowd.spawn(linger([127, 0, 2, source + 1], port, says));
            // Who is answered came after them: the system has not dropped them for being too many at once.
            if (number + 1) % GROUP == 0 {
                tokio::task::yield_now().await;
                let (_, took) = get([127, 0, 0, 1], port, "/").await;
                assert!(took < PROMPT, "{number} of source {source}: {took:?}");
            }
        }
    }
    for round in 0..10 {
        for path in &paths {
            let (answer, took) = get([127, 0, 3, round], port, path).await;
            let status = answer.split(' ').nth(1).unwrap_or("nothing");
            let expected = if path == "/" { "404" } else { "200" };
            assert_eq!(status, expected, "{path}, round {round}, after {took:?}: {answer}");
            assert!(took < PROMPT, "{path}, round {round}: {took:?}");
        }
    }
    crowd.shutdown().await;
    running.stop().await;
}

#[tokio::test]
async fn silent_crowds_keep_nobody_from_the_lists() {
    crowds_keep_nobody_from_the_lists(None).await;
}

#[tokio::test]
async fn crowds_of_one_byte_a_second_keep_nobody_from_the_lists() {
    crowds_keep_nobody_from_the_lists(Some(b"GET / HTTP/1.1\r\nHost: somebody\r\n")).await;
}

/// Some times as many as have places at the port for metrics.
const SILENT: usize = 300;

#[tokio::test]
async fn silent_crowd_keeps_no_scraper_from_the_metrics() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let port = running.ready.metrics.unwrap();
    let mut crowd = Vec::new();
    for _ in 0..SILENT {
        crowd.push(from(ATTACKER, port).await.unwrap());
    }
    for source in [ATTACKER, HONEST] {
        let (answer, took) = get(source, port, "/metrics").await;
        assert!(answer.contains("\ncountersign_server_resident_bytes "), "{source:?}: {answer}");
        assert!(took < PROMPT, "{source:?}: {took:?}");
    }
    drop(crowd);
    running.stop().await;
}
