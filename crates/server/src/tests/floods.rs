//! Callers that show what is wrong again and again, from addresses of their own.

use std::time::Duration;

use countersign_api::v1;
use countersign_api::v1::attest_request::Evidence;
use countersign_identity::{Code, NodeId};
use countersign_pki::{KeyKind, PrivateKey, make_csr};

use super::client::stranger_from;
use super::renew::{Claim, renew};
use super::start::ask;
use super::{Agent, Client, Realm, Running, attest, code, trust_domain};
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
