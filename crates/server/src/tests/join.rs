//! Nodes that join.

use countersign_identity::{Code, NodeEvidence};
use countersign_pki::{Certificate, KeyKind, PrivateKey};
use tokio::task::JoinSet;

use super::{Agent, Realm, attest, code, soon, stranger};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_used_by_fifty_callers_at_once_lets_in_exactly_one() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let token = running.token(&[]).await;
    let mut callers = JoinSet::new();
    for _ in 0..50 {
        let mut client = stranger(&realm, &running).await;
        let token = token.clone();
        callers.spawn(async move {
            let key = PrivateKey::generate(KeyKind::P256).unwrap();
            attest(&mut client, &token, &key).await
        });
    }
    let outcomes = soon(callers.join_all()).await;
    let joined = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(joined, 1);
    for refused in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert!(matches!(code(refused), Code::SpentToken | Code::RateLimited), "{refused:?}");
    }
    let nodes = running.admin.nodes(None).await.unwrap().nodes;
    let by: Vec<_> = nodes.iter().map(|node| node.attested_by).collect();
    assert_eq!(by, [Some(NodeEvidence::JoinToken)]);
    running.stop().await;
    let issued = realm.verify_everything().await;
    // Root, issuer, server, and one agent: no loser was even recorded.
    assert_eq!(issued.len(), 4);
}

#[tokio::test]
async fn what_a_stranger_causes_is_not_in_the_log() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let before = running.log_size().await;
    let mut client = stranger(&realm, &running).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    for token in ["", "nonsense", &"A".repeat(43)] {
        let refused = attest(&mut client, token, &key).await.unwrap_err();
        assert_eq!(code(&refused), Code::UnknownToken);
    }
    assert_eq!(running.log_size().await, before);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn source_that_guesses_is_made_to_wait_and_keeps_nobody_else_out() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let token = running.token(&[]).await;
    let mut client = stranger(&realm, &running).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let mut refused = Code::UnknownToken;
    for _ in 0..22 {
        refused = code(&attest(&mut client, "guess", &key).await.unwrap_err());
    }
    assert_eq!(refused, Code::RateLimited);
    // A good token from the same address is taken all the same.
    attest(&mut client, &token, &key).await.unwrap();
    realm.clock.advance(std::time::Duration::from_secs(120));
    let mut client = stranger(&realm, &running).await;
    assert_eq!(code(&attest(&mut client, "guess", &key).await.unwrap_err()), Code::UnknownToken);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn expired_token_is_refused() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let token = running.token(&[]).await;
    realm.clock.advance(std::time::Duration::from_secs(601));
    let mut client = stranger(&realm, &running).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let refused = attest(&mut client, &token, &key).await.unwrap_err();
    assert_eq!(code(&refused), Code::ExpiredToken);
    running.stop().await;
}

#[tokio::test]
async fn broken_signing_request_does_not_spend_the_token() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let token = running.token(&[]).await;
    let mut client = stranger(&realm, &running).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let mut csr = countersign_pki::make_csr(&key).unwrap();
    *csr.last_mut().unwrap() ^= 1;
    let request = countersign_api::v1::AttestRequest {
        evidence: Some(countersign_api::v1::attest_request::Evidence::JoinToken(token.clone())),
        csr: csr.into(),
        ..Default::default()
    };
    client.node.attest(request).await.unwrap_err();
    attest(&mut client, &token, &key).await.unwrap();
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn certificate_of_a_joined_node_is_in_the_log_by_its_own_bytes() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &["edge"]).await;
    let verified = agent.verify(&realm, &agent.chain);
    let expected = format!("spiffe://shop.example/countersign/agent/{}", agent.node);
    assert_eq!(verified.id.as_str(), expected);
    running.stop().await;
    let leaf = Certificate::parse(&agent.chain[0]).unwrap();
    let issued = realm.verify_everything().await;
    let found = issued.iter().find(|issued| issued.row.tbs == leaf.tbs_digest()).unwrap();
    assert_eq!(found.row.node, Some(agent.node));
    let tag = leaf.provenance().unwrap().node;
    assert_eq!(tag, crate::digest::node_tag(agent.node));
}

#[tokio::test]
async fn token_is_nowhere_on_disk() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let token = running.token(&[]).await;
    let mut client = stranger(&realm, &running).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    attest(&mut client, &token, &key).await.unwrap();
    running.stop().await;
    for entry in std::fs::read_dir(realm.data()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(token.len()).any(|window| window == token.as_bytes());
            assert!(!found, "{}", path.display());
        }
    }
}
