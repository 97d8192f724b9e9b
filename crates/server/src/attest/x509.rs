//! A new node proves itself by a certificate of its operator's own authorities, once.
//!
//! It signs the server's nonce and a secret that only the two ends of this very connection know, so that no other
//! connection's proof is of use here. One key of a machine is one node: the node's name is made of it, so that a proof
//! which is shown again, by anybody, adds no second node.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign_api::attestation::machine_statement;
use countersign_api::v1::attest_x509_request::Step as Asked;
use countersign_api::v1::attest_x509_response::Step as Told;
use countersign_api::{v1, wire};
use countersign_audit::{Event, EventKind};
use countersign_identity::{Attested, Code, Name, NodeEvidence, NodeId};
use countersign_pki::{Certificate, ProvenKey, Reserved, VerifiedMachine, check_machine_authority};
use countersign_store::{HOST_BYTES_MAX, NodeRow, Op};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::attempt::Attempt;
use super::caller::{agent_id, not_suspended};
use super::join::{bundle, chain};
use super::renew::Nonce;
use crate::authority::internal;
use crate::control::Control;
use crate::digest::sha256;
use crate::edge::Peer;
use crate::issue::{Cause, Wanted};
use crate::refusal::Refused;
use crate::state::State;

/// How long the machine may take for each of its two messages.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest file of authorities that is read, and how many may be in it.
const FILE_BYTES_MAX: u64 = 256 * 1024;
const AUTHORITIES_MAX: usize = 16;

/// Whose certificates make machines nodes of this trust domain.
#[derive(Clone, Debug)]
pub struct NodeAuthorities {
    /// A PEM file of authorities' certificates, read anew at each attestation.
    pub file: PathBuf,
    /// The labels that nodes get.
    pub labels: Vec<Name>,
}

impl NodeAuthorities {
    /// Reads the authorities.
    ///
    /// # Errors
    /// With a sentence, when there are none, too many, or something else is in the file.
    pub(crate) fn read(&self) -> Result<Vec<Certificate>, String> {
        read(&self.file).map_err(|why| format!("`{}`: {why}", self.file.display()))
    }
}

fn read(file: &Path) -> Result<Vec<Certificate>, String> {
    use std::io::Read as _;
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|why| why.to_string())?;
    opened.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|why| why.to_string())?;
    let ders = countersign_pki::decode_certificates(&text).map_err(|why| why.to_string())?;
    if AUTHORITIES_MAX < ders.len() {
        return Err(format!("{} certificates are over the limit of {AUTHORITIES_MAX}", ders.len()));
    }
    let parsed: Result<Vec<_>, _> = ders.iter().map(|der| Certificate::parse(der)).collect();
    let authorities = parsed.map_err(|why| why.to_string())?;
    for (position, authority) in (1..).zip(&authorities) {
        check_machine_authority(authority)
            .map_err(|refused| format!("certificate {position}: {}", refused.why))?;
    }
    Ok(authorities)
}

/// Speaks with a machine that wants to become a node: nonce, proof, certificate. Answers go into `answers`.
pub(crate) async fn attest_x509(
    control: Arc<Control>,
    peer: Arc<Peer>,
    mut asked: Streaming<v1::AttestX509Request>,
    answers: mpsc::Sender<Result<v1::AttestX509Response, Status>>,
) {
    let outcome = converse(&control, &peer, &mut asked, &answers).await;
    let last = match outcome {
        Ok(attested) => Ok(told(Told::Attested(attested))),
        Err(refused) => {
            // What anybody can cause is a fact, and never an event of the log.
            tracing::debug!(source = %peer.address, code = %refused.code, why = %refused.why, "attestation refused");
            control.watch.attestation_refused(refused.code);
            Err(refused.into())
        }
    };
    // Whoever went away meanwhile asks again under the same key.
    let _gone = answers.send(last).await;
}

async fn converse(
    control: &Control,
    peer: &Peer,
    asked: &mut Streaming<v1::AttestX509Request>,
    answers: &mpsc::Sender<Result<v1::AttestX509Response, Status>>,
) -> Result<v1::AttestResponse, Refused> {
    let Some(authorities) = &control.node_authorities else {
        let why =
            "this server takes no certificates of machines: it was started without `--node-ca`";
        return Err(Refused::new(Code::Forbidden, why));
    };
    // 1. A nonce, for it to sign.
    let Asked::Hello(_version) = step(asked).await? else {
        return Err(not_understood("expected the attestation's hello first"));
    };
    let mut nonce: Nonce = [0; 32];
    control.entropy.fill(&mut nonce).map_err(internal)?;
    let challenge = told(Told::Nonce(Bytes::copy_from_slice(&nonce)));
    let gone = |_closed| not_understood("the caller went away");
    answers.send(Ok(challenge)).await.map_err(gone)?;
    // 2. Its proof.
    let Asked::Proof(proof) = step(asked).await? else {
        return Err(not_understood("expected the attestation's proof"));
    };
    let anchors = anchors(control, peer, authorities).await?;
    // Asked again: what is read takes a while, and others of its like may have failed meanwhile.
    let attempt = Attempt::begin(control, peer)?;
    let exporter = &peer.exporter;
    let attested = match prove(&attempt, &anchors, (&nonce, exporter), &proof, control.clock.now())
    {
        // 3. All of it becomes true at once, or not at all.
        Ok(proven) => register(control, proven, &proof.host, &authorities.labels).await,
        Err(refused) => Err(refused),
    };
    attempt.ended(&attested);
    attested
}

/// Reads the authorities, in turn: on threads that reads of the store need, too.
async fn anchors(
    control: &Control,
    peer: &Peer,
    authorities: &NodeAuthorities,
) -> Result<Vec<Certificate>, Refused> {
    // Who may show nothing waits for no turn, and gets nothing read for it when its turn has come.
    Attempt::begin(control, peer)?.unused();
    let turn = peer.conduct.reads().await?;
    Attempt::begin(control, peer)?.unused();
    let reading = authorities.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        reading.read()
    });
    reading.await.map_err(internal)?.map_err(|why| {
        tracing::error!(%why, "no machine can prove itself: the authorities cannot be read");
        Refused::new(Code::Unavailable, "the authorities of machines cannot be read")
    })
}

async fn step(asked: &mut Streaming<v1::AttestX509Request>) -> Result<Asked, Refused> {
    let message = tokio::time::timeout(STEP_TIMEOUT, asked.message());
    let message = message
        .await
        .map_err(|_elapsed| Refused::new(Code::TimedOut, "the caller did not answer in time"))?
        .map_err(|status| Refused::new(Code::NotUnderstood, status.message()))?;
    let step = message.and_then(|message| message.step);
    step.ok_or_else(|| not_understood("an attestation message was missing"))
}

fn told(step: Told) -> v1::AttestX509Response {
    v1::AttestX509Response { step: Some(step) }
}

fn not_understood(why: &str) -> Refused {
    Refused::new(Code::NotUnderstood, why)
}

/// What a machine has shown.
pub(crate) struct Proven {
    machine: VerifiedMachine,
    /// The key that the node is going to have.
    key: ProvenKey,
}

/// Checks a machine's proof. A pure function of what both ends know.
pub(crate) fn prove(
    attempt: &Attempt<'_>,
    anchors: &[Certificate],
    (nonce, exporter): (&Nonce, &[u8; 32]),
    proof: &v1::AttestX509Proof,
    now: countersign_identity::Timestamp,
) -> Result<Proven, Refused> {
    let shown: Vec<&[u8]> = proof.chain.iter().map(AsRef::as_ref).collect();
    let machine = attempt.machine(&shown, anchors, now)?;
    let fingerprint = machine.leaf().fingerprint();
    let statement = machine_statement(nonce, exporter, fingerprint, sha256(&proof.csr));
    attempt.statement(machine.key(), &statement, &proof.signature).map_err(|_bad| {
        let why = "the proof is not by the certificate's key over this connection's nonce";
        Refused::new(Code::BadPossession, why)
    })?;
    let key = attempt.request(&proof.csr)?;
    Ok(Proven { machine, key })
}

/// The name of the node that the holder of this key is.
fn node_of(machine: &VerifiedMachine) -> NodeId {
    let context: &[u8] = b"countersign node x509 v1\0";
    let digest = sha256(&[context, machine.key().spki()].concat());
    let (id, _rest) = digest.as_bytes().split_first_chunk().expect("a digest has 32 bytes");
    NodeId::from_bytes(*id)
}

/// Registers the machine as a node, or gives the one that it is another certificate.
///
/// # Errors
/// When it is another machine's, or was suspended.
pub(crate) async fn register(
    control: &Control,
    proven: Proven,
    host: &str,
    labels: &[Name],
) -> Result<v1::AttestResponse, Refused> {
    let now = control.clock.now();
    let Proven { machine, key } = proven;
    let id = node_of(&machine);
    not_suspended(&control.feed.current(), id)?;
    let again = match control.store.node(id).await? {
        None => false,
        // The answer was lost: the same machine, which holds the registered key.
        Some(row) if row.generation == 1 && row.key_spki == key.public().spki() => true,
        Some(_other) => {
            let why = format!(
                "this machine is node `{id}` already: `countersign node remove {id}` lets it attest anew"
            );
            return Err(Refused::new(Code::AlreadyExists, why));
        }
    };
    let decide = |state: &State| {
        // Also where it was suspended since.
        not_suspended(state, id)?;
        let spiffe_id = agent_id(&state.domain().trust_domain, id);
        let actor = spiffe_id.to_string();
        let kind = if again { EventKind::NodeRenewed } else { EventKind::NodeAttested };
        let host = wire::clip(host, HOST_BYTES_MAX);
        let details = serde_json::json!({
            "host": host, "key": key.public().id(), "labels": labels, "by": NodeEvidence::X509, "generation": 1,
            "certificate": machine.leaf().fingerprint(), "authority": machine.anchor(),
        });
        let event = Event::new(kind, now, actor.as_str(), id.to_string()).with_details(details);
        let wanted = Wanted {
            id: spiffe_id.clone(),
            key: key.clone(),
            lifetime: state.domain().agent_lifetime,
            dns_names: Vec::new(),
            attested: Attested::default(),
            reserved: Reserved::Allow,
        };
        let node = NodeRow {
            id,
            spiffe_id,
            key_spki: key.public().spki().to_vec(),
            generation: 1,
            labels: labels.to_vec(),
            host,
            attested_at: now,
            seen_at: now,
            attested_by: Some(NodeEvidence::X509),
        };
        let ops = match again {
            true => vec![Op::ExpectNode { id, generation: 1 }, Op::TouchNode { id, at: now }],
            false => vec![Op::PutNode(node)],
        };
        Ok((wanted, Cause { actor, node: Some(id), ops, events: vec![event] }))
    };
    let (svid, state) = control.issue_one(decide).await?;
    tracing::info!(node = %id, certificate = %machine.leaf().fingerprint(), "node attested by its certificate");
    Ok(v1::AttestResponse {
        node_id: Bytes::copy_from_slice(id.as_bytes()),
        chain: chain(&svid),
        bundle: bundle(&state)?,
        generation: 1,
    })
}
