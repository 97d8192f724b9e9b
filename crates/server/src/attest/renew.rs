//! A registered node gets a new certificate, also after its old one has ended.
//!
//! What counts is the registered key, not a certificate: the node signs the server's nonce and a secret that only the two
//! ends of this very connection know, so that no other connection's proof is of use here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign_api::renewal::renewal_statement;
use countersign_api::v1::renew_request::Step as Asked;
use countersign_api::v1::renew_response::Step as Told;
use countersign_api::{v1, wire};
use countersign_audit::{Event, EventKind};
use countersign_identity::{Attested, Code, KeyId, NodeId, Presented, Revoked, Timestamp};
use countersign_pki::{Certificate, ProvenKey, PublicKey, Reserved};
use countersign_store::{NodeRow, Op};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::attest::Attempt;
use crate::attest::caller::{not_suspended, was_lost};
use crate::attest::guess::Guess;
use crate::attest::join::{bundle, chain};
use crate::authority::internal;
use crate::control::Control;
use crate::digest::sha256;
use crate::edge::Peer;
use crate::issue::{Cause, Wanted};
use crate::refusal::Refused;
use crate::state::State;

/// A node that was away for longer must attest anew.
const SILENCE_MAX: Duration = Duration::from_secs(30 * 86_400);
/// How long the node may take for each of its two messages.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// What the server sends for the node to sign.
pub(crate) type Nonce = [u8; 32];

/// Speaks with a node that wants to renew: nonce, proof, certificate. Answers go into `answers`.
pub(crate) async fn renew(
    control: Arc<Control>,
    peer: Arc<Peer>,
    mut asked: Streaming<v1::RenewRequest>,
    answers: mpsc::Sender<Result<v1::RenewResponse, Status>>,
) {
    let outcome = converse(&control, &peer, &mut asked, &answers).await;
    let last = match outcome {
        Ok(renewed) => Ok(told(Told::Renewed(renewed))),
        Err(refused) => {
            tracing::debug!(source = %peer.address, code = %refused.code, "renewal refused");
            control.watch.attestation_refused(refused.code);
            Err(refused.into())
        }
    };
    // Whoever went away meanwhile asks again, with the successor if there is one.
    let _gone = answers.send(last).await;
}

async fn converse(
    control: &Control,
    peer: &Peer,
    asked: &mut Streaming<v1::RenewRequest>,
    answers: &mpsc::Sender<Result<v1::RenewResponse, Status>>,
) -> Result<v1::Renewed, Refused> {
    // 1. Who it says it is.
    let Asked::Hello(hello) = step(asked).await? else {
        return Err(not_understood("expected the renewal's hello first"));
    };
    // Until there is a proof that may be looked at, what was looked up was looked up for a mere word: also that of who goes away.
    let guess = Guess::begin(control, peer).await;
    let claim = claim(control, &hello, asked, answers).await;
    // Nothing waits between the leave and what it is for, so that streams which are opened by the hundred get no more of it.
    let begun = claim.and_then(|claim| Ok((claim, Attempt::begin(control, peer)?)));
    guess.ended(&begun);
    let (claim, attempt) = begun?;
    let renewed = match proven(control, &attempt, peer, claim).await {
        Ok((node, proven)) => issue(control, node, proven).await,
        Err(refused) => Err(refused),
    };
    attempt.ended(&renewed);
    renewed
}

/// Renewals of a node that a store can have lost: days of them.
const LOST_RENEWALS_MAX: u64 = 1024;

/// What a caller says of itself. Nothing of it is verified yet.
struct Claim {
    row: NodeRow,
    lost: Option<Lost>,
    nonce: Nonce,
    proof: v1::RenewProof,
}

/// What a node's own certificate says of a key that the store may have lost.
struct Lost {
    row: NodeRow,
    chain: Vec<Bytes>,
    leaf: Certificate,
}

async fn claim(
    control: &Control,
    hello: &v1::RenewHello,
    asked: &mut Streaming<v1::RenewRequest>,
    answers: &mpsc::Sender<Result<v1::RenewResponse, Status>>,
) -> Result<Claim, Refused> {
    let id = wire::node_id(&hello.node_id).map_err(not_understood)?;
    let row = control.store.node(id).await?;
    let lost = row.as_ref().and_then(|row| lost(hello, row));
    let claimed = lost.as_ref().map(|lost| lost.row.clone()).or_else(|| row.clone());
    let claimed = renewable(id, claimed, hello.generation, control.clock.now())?;
    let row = row.unwrap_or(claimed);
    // 2. A nonce, for it to sign.
    let mut nonce: Nonce = [0; 32];
    control.entropy.fill(&mut nonce).map_err(internal)?;
    let challenge = told(Told::Nonce(Bytes::copy_from_slice(&nonce)));
    let gone = |_closed| not_understood("the caller went away");
    answers.send(Ok(challenge)).await.map_err(gone)?;
    // 3. Its proof.
    let Asked::Proof(proof) = step(asked).await? else {
        return Err(not_understood("expected the renewal's proof"));
    };
    Ok(Claim { row, lost, nonce, proof })
}

/// The node's record as a certificate shows it, which may have been issued before the store lost its tail: the key that is on record
/// was succeeded since.
fn lost(hello: &v1::RenewHello, row: &NodeRow) -> Option<Lost> {
    let renewals = hello.generation.checked_sub(row.generation)?;
    if renewals == 0 || LOST_RENEWALS_MAX < renewals {
        return None;
    }
    let leaf = Certificate::parse(hello.chain.first()?).ok()?;
    let key_spki = leaf.spki().to_vec();
    let row = NodeRow { key_spki, generation: hello.generation, ..row.clone() };
    Some(Lost { row, chain: hello.chain.clone(), leaf })
}

/// Verifies what was claimed: first that the caller has the key that it names, so that nothing else is done for who copied a chain.
async fn proven(
    control: &Control,
    attempt: &Attempt<'_>,
    peer: &Peer,
    claim: Claim,
) -> Result<(NodeRow, Proven), Refused> {
    let Claim { row, lost, nonce, proof } = claim;
    let node = lost.as_ref().map_or(&row, |lost| &lost.row);
    let proven = prove(attempt, node, &nonce, &peer.exporter, &proof)?;
    let Some(lost) = lost else { return Ok((row, proven)) };
    was_succeeded(control, attempt, &row, &lost).await?;
    tracing::warn!(node = %row.id, generation = lost.row.generation, "a node has a key that the store has lost");
    Ok((lost.row, Proven { on_record: row.generation, ..proven }))
}

/// That the node's key on record was succeeded by that of this certificate in the span which the store has lost.
async fn was_succeeded(
    control: &Control,
    attempt: &Attempt<'_>,
    row: &NodeRow,
    lost: &Lost,
) -> Result<(), Refused> {
    let unregistered = || Err(unregistered(lost.row.generation, row.generation));
    let (state, now) = (control.feed.current(), control.clock.now());
    let chain: Vec<&[u8]> = lost.chain.iter().map(AsRef::as_ref).collect();
    let validity = lost.leaf.validity();
    // It proves what was registered, not that it may be used: it may have ended since.
    let at = now.min(validity.not_after);
    let verified = attempt.client(&chain, state.bundles(), at);
    let Some(verified) = verified.ok().filter(|verified| verified.id == row.spiffe_id) else {
        return unregistered();
    };
    // The record of one that has ended may be gone for good; that of the lost span never was there.
    let in_lost_span = || state.life().is_some_and(|life| life.from.at < validity.not_before);
    if !was_lost(&verified.leaf, &*control.store).await? || (at < now && !in_lost_span()) {
        return unregistered();
    }
    // Once only: a key that was succeeded in the lost span must not displace the one that came back.
    if control.returned.has(row.id, &*control.store).await? {
        return unregistered();
    }
    let presented = Presented {
        id: &verified.id,
        serial: verified.leaf.serial(),
        key: verified.key,
        authorities: &verified.authorities,
        provenance: verified.leaf.provenance().map(|from| (from.revision, from.node)),
    };
    // That it is of an earlier incarnation is what it comes for.
    let rules = state.revocations();
    let rule = rules.covering(&presented);
    if let Some(rule) = rule.filter(|rule| !matches!(rule.target, Revoked::Earlier { .. })) {
        let why = format!("the node's certificate is revoked ({}): {}", rule.reason, rule.target);
        return Err(Refused::new(Code::Revoked, why));
    }
    Ok(())
}

async fn step(asked: &mut Streaming<v1::RenewRequest>) -> Result<Asked, Refused> {
    let message = tokio::time::timeout(STEP_TIMEOUT, asked.message());
    let message = message
        .await
        .map_err(|_elapsed| Refused::new(Code::TimedOut, "the caller did not answer in time"))?
        .map_err(|status| Refused::new(Code::NotUnderstood, status.message()))?;
    let step = message.and_then(|message| message.step);
    step.ok_or_else(|| Refused::new(Code::NotUnderstood, "a renewal message was missing"))
}

fn told(step: Told) -> v1::RenewResponse {
    v1::RenewResponse { step: Some(step) }
}

fn not_understood(why: impl std::fmt::Display) -> Refused {
    Refused::new(Code::NotUnderstood, why.to_string())
}

fn unregistered(generation: u64, newest: u64) -> Refused {
    let why = format!("generation {generation} is not registered, the newest is {newest}");
    Refused::new(Code::BadPossession, why)
}

/// Whether the node of this record may renew under this generation of its key.
pub(crate) fn renewable(
    id: NodeId,
    row: Option<NodeRow>,
    generation: u64,
    now: Timestamp,
) -> Result<NodeRow, Refused> {
    let row = row.ok_or_else(|| {
        Refused::new(Code::UnknownNode, format!("node `{id}` is not registered, or was removed"))
    })?;
    if generation < row.generation {
        return Err(Refused::new(
            Code::StaleGeneration,
            format!(
                "the key of generation {generation} has a successor, of generation {}",
                row.generation
            ),
        ));
    }
    if row.generation < generation {
        return Err(unregistered(generation, row.generation));
    }
    if SILENCE_MAX < now.since(row.seen_at) {
        return Err(Refused::new(
            Code::SilentTooLong,
            format!("the node was last seen at {} and must attest anew", row.seen_at),
        ));
    }
    Ok(row)
}

/// What a node has shown: the key that its new certificate is for, and whether that is a successor.
pub(crate) struct Proven {
    key: ProvenKey,
    successor: bool,
    /// The generation on record, where the store has lost that of the key which is proven.
    on_record: u64,
    /// The key by which it has proved itself.
    by: KeyId,
}

/// Checks a renewal's proof. A pure function of what both ends know.
pub(crate) fn prove(
    attempt: &Attempt<'_>,
    node: &NodeRow,
    nonce: &Nonce,
    exporter: &[u8; 32],
    proof: &v1::RenewProof,
) -> Result<Proven, Refused> {
    let registered = PublicKey::from_spki(&node.key_spki).map_err(internal)?;
    let csr = sha256(&proof.successor_csr);
    let statement = renewal_statement(nonce, exporter, node.id, node.generation, csr);
    let key = attempt.statement(&registered, &statement, &proof.signature).map_err(|_bad| {
        let why = "the proof is not by the registered key over this connection's nonce";
        Refused::new(Code::BadPossession, why)
    })?;
    if proof.successor_csr.is_empty() {
        return Ok(Proven {
            key,
            successor: false,
            on_record: node.generation,
            by: registered.id(),
        });
    }
    let successor = attempt.request(&proof.successor_csr)?;
    if successor.public() == &registered {
        return Err(Refused::new(
            Code::NotUnderstood,
            "the successor is the registered key itself",
        ));
    }
    Ok(Proven { key: successor, successor: true, on_record: node.generation, by: registered.id() })
}

/// Records the successor, if there is one, together with the certificate, and makes the certificate.
pub(crate) async fn issue(
    control: &Control,
    node: NodeRow,
    proven: Proven,
) -> Result<v1::Renewed, Refused> {
    let now = control.clock.now();
    let id = node.id;
    let generation = if proven.successor { node.generation + 1 } else { node.generation };
    let decide = |state: &State| {
        // Asked of each snapshot: what is issued on one that has the suspension is covered by no rule that came with it.
        not_suspended(state, id)?;
        let details = serde_json::json!({
            "generation": generation, "key": proven.key.public().id(), "successor": proven.successor,
        });
        let actor = node.spiffe_id.to_string();
        let event = Event::new(EventKind::NodeRenewed, now, actor.as_str(), id.to_string());
        let wanted = Wanted {
            id: node.spiffe_id.clone(),
            key: proven.key.clone(),
            lifetime: state.domain().agent_lifetime,
            dns_names: Vec::new(),
            attested: Attested::default(),
            reserved: Reserved::Allow,
        };
        let (ops, events) = (ops(&node, &proven, now), vec![event.with_details(details)]);
        Ok((wanted, Cause { actor, node: Some(id), ops, events }))
    };
    let (svid, state) = control.issue_one(decide).await?;
    // Another key than the one on record counts from now on, a new one or one that a lost tail had taken away: whoever has the
    // one that was on record, and a stream with it, is not this node any more.
    if proven.on_record < generation {
        control.roster.succeed(id);
    }
    tracing::info!(node = %id, generation, "node renewed");
    Ok(v1::Renewed { chain: chain(&svid), bundle: bundle(&state)?, generation })
}

/// What must become true with the new certificate: the successor registered, or the generation still the proven one.
fn ops(node: &NodeRow, proven: &Proven, at: Timestamp) -> Vec<Op> {
    let (id, expect_generation) = (node.id, proven.on_record);
    if !proven.successor && expect_generation == node.generation {
        return vec![
            Op::ExpectNode { id, generation: expect_generation },
            Op::TouchNode { id, at },
        ];
    }
    let generation = node.generation + u64::from(proven.successor);
    let key_spki = proven.key.public().spki().to_vec();
    // A key that was revoked brings no successor in, whoever holds it by now.
    vec![Op::UpdateNode { id, expect_generation, proven: proven.by, generation, key_spki, at }]
}
