//! Nodes that come back, and those that only pretend.

use std::time::Duration;

use bytes::Bytes;
use countersign_api::admin::{Reissue, RevokeRequest, Target};
use countersign_api::renewal::renewal_statement;
use countersign_api::v1;
use countersign_api::v1::renew_request::Step as Asked;
use countersign_api::v1::renew_response::Step as Told;
use countersign_identity::{Code, NodeId, Reason, Timestamp};
use countersign_pki::{KeyKind, PrivateKey, make_csr};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::client::known_stranger;
use super::strangers::Elsewhere;
use super::{Agent, Client, DOMAIN, Realm, Running, code, stranger, trust_domain};
use crate::digest::sha256;

/// What a renewing caller claims, all of it chosen freely.
pub(super) struct Claim<'a> {
    pub(super) node: NodeId,
    pub(super) generation: u64,
    pub(super) key: &'a PrivateKey,
    pub(super) chain: Vec<Bytes>,
    pub(super) successor: Option<&'a PrivateKey>,
    /// In place of the nonce that the server sends.
    pub(super) nonce: Option<[u8; 32]>,
    /// In place of the connection's own secret.
    pub(super) exporter: Option<[u8; 32]>,
}

impl<'a> Claim<'a> {
    pub(super) fn honest(agent: &'a Agent) -> Self {
        Self {
            node: agent.node,
            generation: agent.generation,
            key: &agent.key,
            chain: Vec::new(),
            successor: None,
            nonce: None,
            exporter: None,
        }
    }
}

fn request(step: Asked) -> v1::RenewRequest {
    v1::RenewRequest { step: Some(step) }
}

pub(super) async fn renew(client: &mut Client, claim: Claim<'_>) -> Result<v1::Renewed, Status> {
    let (say, said) = mpsc::channel(2);
    let hello = v1::RenewHello {
        node_id: claim.node.as_bytes().to_vec().into(),
        generation: claim.generation,
        chain: claim.chain,
    };
    say.send(request(Asked::Hello(hello))).await.unwrap();
    let mut answers = client.node.renew(ReceiverStream::new(said)).await?.into_inner();
    let Some(Told::Nonce(nonce)) = answers.message().await?.unwrap().step else {
        panic!("no nonce")
    };
    let nonce = claim.nonce.unwrap_or_else(|| nonce.as_ref().try_into().unwrap());
    let exporter = claim.exporter.unwrap_or(client.exporter);
    let csr = claim.successor.map(|key| make_csr(key).unwrap()).unwrap_or_default();
    let statement =
        renewal_statement(&nonce, &exporter, claim.node, claim.generation, sha256(&csr));
    let signature = claim.key.sign(&statement).unwrap().into();
    let proof = v1::RenewProof { signature, successor_csr: csr.into() };
    say.send(request(Asked::Proof(proof))).await.unwrap();
    let Some(Told::Renewed(renewed)) = answers.message().await?.unwrap().step else {
        panic!("no certificate")
    };
    Ok(renewed)
}

/// Brings a successor of the node's key, with the certificate of the present one.
pub(super) async fn succeed(
    realm: &Realm,
    running: &Running,
    agent: &Agent,
    successor: &PrivateKey,
) -> v1::Renewed {
    try_to_succeed(realm, running, agent, agent.generation, successor).await.unwrap()
}

/// The same under a generation of one's own choice.
pub(super) async fn try_to_succeed(
    realm: &Realm,
    running: &Running,
    agent: &Agent,
    generation: u64,
    successor: &PrivateKey,
) -> Result<v1::Renewed, Status> {
    let chain = agent.chain.clone();
    let claim = Claim { chain, generation, successor: Some(successor), ..Claim::honest(agent) };
    fresh(realm, running, claim).await
}

/// Renews by the key and the certificate that the node has.
pub(super) async fn come_back(realm: &Realm, running: &Running, agent: &Agent) -> v1::Renewed {
    let claim = Claim { chain: agent.chain.clone(), ..Claim::honest(agent) };
    fresh(realm, running, claim).await.unwrap()
}

async fn fresh(realm: &Realm, running: &Running, claim: Claim<'_>) -> Result<v1::Renewed, Status> {
    renew(&mut stranger(realm, running).await, claim).await
}

#[tokio::test]
async fn node_whose_certificate_has_ended_renews_by_its_key_alone() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![trust_domain("1m")]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    realm.clock.advance(Duration::from_secs(3600));
    let renewed = fresh(&realm, &running, Claim::honest(&agent)).await.unwrap();
    assert_eq!(renewed.generation, 1);
    let verified = agent.verify(&realm, &renewed.chain);
    assert_eq!(verified.key, agent.key.public().id());
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn key_of_a_sibling_renews_nobody_else() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let sibling = Agent::join(&realm, &running, &[]).await;
    let before = running.log_size().await;
    let claim = Claim { key: &sibling.key, ..Claim::honest(&agent) };
    assert_eq!(code(&fresh(&realm, &running, claim).await.unwrap_err()), Code::BadPossession);
    // Nor does a sibling's valid certificate help: what counts is the signature.
    let mut known = known_stranger(&realm, &running, &sibling).await;
    let claim = Claim { key: &sibling.key, ..Claim::honest(&agent) };
    assert_eq!(code(&renew(&mut known, claim).await.unwrap_err()), Code::BadPossession);
    assert_eq!(running.log_size().await, before);
    running.stop().await;
}

#[tokio::test]
async fn proof_for_another_connection_is_of_no_use() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let other = stranger(&realm, &running).await;
    let claim = Claim { exporter: Some(other.exporter), ..Claim::honest(&agent) };
    assert_eq!(code(&fresh(&realm, &running, claim).await.unwrap_err()), Code::BadPossession);
    let claim = Claim { nonce: Some([0; 32]), ..Claim::honest(&agent) };
    assert_eq!(code(&fresh(&realm, &running, claim).await.unwrap_err()), Code::BadPossession);
    running.stop().await;
}

#[tokio::test]
async fn successor_takes_over_and_the_older_key_is_refused_for_good() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let successor = PrivateKey::generate(KeyKind::Ed25519).unwrap();
    let claim = Claim { successor: Some(&successor), ..Claim::honest(&agent) };
    let renewed = fresh(&realm, &running, claim).await.unwrap();
    assert_eq!(renewed.generation, 2);
    assert_eq!(agent.verify(&realm, &renewed.chain).key, successor.public().id());
    // The older key, under its own generation and under the newer one.
    let refused = fresh(&realm, &running, Claim::honest(&agent)).await.unwrap_err();
    assert_eq!(code(&refused), Code::StaleGeneration);
    let refused = fresh(&realm, &running, Claim { generation: 2, ..Claim::honest(&agent) }).await;
    assert_eq!(code(&refused.unwrap_err()), Code::BadPossession);
    // Its certificate still runs, and opens nothing.
    let older = agent.client(&realm, &running).await;
    let refused = older.node.sign(v1::SignRequest::default()).await.unwrap_err();
    assert_eq!(code(&refused), Code::StaleGeneration);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn node_that_never_heard_the_answer_goes_on_with_its_successor() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let successor = PrivateKey::generate(KeyKind::P256).unwrap();
    let claim = Claim { successor: Some(&successor), ..Claim::honest(&agent) };
    drop(fresh(&realm, &running, claim).await.unwrap());
    let refused = fresh(&realm, &running, Claim::honest(&agent)).await.unwrap_err();
    assert_eq!(code(&refused), Code::StaleGeneration);
    let claim = Claim { key: &successor, generation: 2, ..Claim::honest(&agent) };
    assert_eq!(fresh(&realm, &running, claim).await.unwrap().generation, 2);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn generation_that_was_never_registered_is_refused() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let claim = Claim { generation: 2, ..Claim::honest(&agent) };
    assert_eq!(code(&fresh(&realm, &running, claim).await.unwrap_err()), Code::BadPossession);
    let claim = Claim { generation: 0, ..Claim::honest(&agent) };
    assert_eq!(code(&fresh(&realm, &running, claim).await.unwrap_err()), Code::StaleGeneration);
    let claim = Claim { successor: Some(&agent.key), ..Claim::honest(&agent) };
    assert_eq!(code(&fresh(&realm, &running, claim).await.unwrap_err()), Code::NotUnderstood);
    running.stop().await;
}

#[tokio::test]
async fn removed_node_renews_no_more() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    running.admin.remove_node(agent.node).await.unwrap();
    let refused = fresh(&realm, &running, Claim::honest(&agent)).await.unwrap_err();
    assert_eq!(code(&refused), Code::UnknownNode);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn revoked_key_renews_nothing_and_brings_in_no_successor() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let target = Target::Key(agent.key.public().id());
    super::revoke::revoke(&running, target, Reason::KeyCompromise).await;
    let thief = PrivateKey::generate(KeyKind::P256).unwrap();
    let mut running = running;
    // Also long after the rule itself was dropped.
    for days in [0, 10] {
        running.stop().await;
        realm.clock.advance(Duration::from_secs(days * 86_400));
        running = realm.serve().await;
        let claim = Claim { successor: Some(&thief), ..Claim::honest(&agent) };
        let refused = fresh(&realm, &running, claim).await.unwrap_err();
        assert_eq!(code(&refused), Code::RevokedKey, "a successor, after {days} days");
        let refused = fresh(&realm, &running, Claim::honest(&agent)).await.unwrap_err();
        assert_eq!(code(&refused), Code::RevokedKey, "the key itself, after {days} days");
    }
    // Another node is none the worse for it.
    let other = Agent::join(&realm, &running, &[]).await;
    fresh(&realm, &running, Claim::honest(&other)).await.unwrap();
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn node_that_was_silent_for_over_thirty_days_must_attest_anew() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    running.stop().await;
    realm.clock.advance(Duration::from_secs(29 * 86_400));
    let running = realm.serve().await;
    fresh(&realm, &running, Claim::honest(&agent)).await.unwrap();
    running.stop().await;
    realm.clock.advance(Duration::from_secs(31 * 86_400));
    let running = realm.serve().await;
    let refused = fresh(&realm, &running, Claim::honest(&agent)).await.unwrap_err();
    assert_eq!(code(&refused), Code::SilentTooLong);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn neighbour_that_fails_does_not_keep_a_node_from_renewing() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut neighbour = stranger(&realm, &running).await;
    for _ in 0..30 {
        let claim = Claim { nonce: Some([0; 32]), ..Claim::honest(&agent) };
        let refused = renew(&mut neighbour, claim).await.unwrap_err();
        assert_eq!(code(&refused), Code::BadPossession);
    }
    fresh(&realm, &running, Claim::honest(&agent)).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn stream_of_a_key_ends_when_the_key_has_a_successor() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let client = agent.client(&realm, &running).await;
    let (say, said) = mpsc::channel(1);
    let hello = v1::sync_request::Step::Hello(v1::SyncHello::default());
    say.send(v1::SyncRequest { step: Some(hello) }).await.unwrap();
    let mut told = client.node.sync(ReceiverStream::new(said)).await.unwrap().into_inner();
    told.message().await.unwrap();
    let successor = PrivateKey::generate(KeyKind::P256).unwrap();
    let claim = Claim { successor: Some(&successor), ..Claim::honest(&agent) };
    fresh(&realm, &running, claim).await.unwrap();
    let ended = super::soon(async {
        loop {
            if let Err(status) = told.message().await {
                return status;
            }
        }
    });
    assert_eq!(code(&ended.await), Code::StaleGeneration);
    running.stop().await;
}

#[tokio::test]
async fn node_that_another_server_suspends_meanwhile_is_not_renewed() {
    let domain = Elsewhere::begin(DOMAIN, Timestamp::from_secs(1_795_262_400)).await;
    let (joined, key) = domain.joined().await;
    let node = countersign_api::wire::node_id(&joined.node_id).unwrap();
    let exporter = [7; 32];
    let hello =
        v1::RenewHello { node_id: joined.node_id.clone(), generation: 1, ..Default::default() };
    let proof = |nonce: &[u8]| {
        let nonce = nonce.try_into().unwrap();
        let statement = renewal_statement(&nonce, &exporter, node, 1, sha256(&[]));
        v1::RenewProof {
            signature: key.sign(&statement).unwrap().into(),
            successor_csr: Bytes::new(),
        }
    };
    domain.steps.renew(&hello, &exporter, proof).await.unwrap();
    // Its keys stay good: nothing but the suspension stands in the way.
    let order = RevokeRequest {
        targets: vec![Target::Node(node)],
        reason: Reason::PrivilegeWithdrawn,
        issued_before: None,
        reissue: Reissue::default(),
        dry_run: false,
    };
    let revoked = domain.another().await.revoke(order).await.unwrap();
    assert_eq!(revoked.suspended.len(), 1);
    assert!(domain.steps.revision() < revoked.revision, "this server has not heard of it");
    let refused = domain.steps.renew(&hello, &exporter, proof).await.unwrap_err();
    assert_eq!(refused.code, Code::Suspended, "{refused:?}");
}
