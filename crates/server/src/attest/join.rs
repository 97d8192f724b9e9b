//! A new node proves itself by a join token, once.

use std::sync::Arc;

use bytes::Bytes;
use countersign_api::v1::attest_request::Evidence;
use countersign_api::{v1, wire};
use countersign_audit::{Event, EventKind};
use countersign_identity::{Attested, Code, NodeEvidence, NodeId, Timestamp};
use countersign_pki::{ProvenKey, Reserved};
use countersign_store::{HOST_BYTES_MAX, NodeRow, Op, TokenRow};

use crate::attest::Attempt;
use crate::attest::caller::agent_id;
use crate::attest::guess::Guess;
use crate::attest::token;
use crate::authority::internal;
use crate::control::Control;
use crate::edge::Peer;
use crate::issue::{Cause, Svid, Wanted};
use crate::refusal::Refused;
use crate::state::State;

/// Registers a node whose token is good and whose key is its own.
///
/// Not to be torn: the token is spent in the same commit that registers the node and records its first certificate.
///
/// # Errors
/// When anything about it is wrong. Who guesses too often waits before each look-up, and keeps nobody out who has a good token. Whose
/// signing requests fail too often waits until the next is looked at.
pub(crate) async fn join(
    control: Arc<Control>,
    peer: Arc<Peer>,
    request: v1::AttestRequest,
) -> Result<v1::AttestResponse, Refused> {
    let joined = attest(&control, &peer, request).await;
    if let Err(refused) = &joined {
        // What anybody can cause is a fact, and never an event of the log.
        tracing::debug!(source = %peer.address, code = %refused.code, "attestation refused");
        control.watch.attestation_refused(refused.code);
    }
    joined
}

async fn attest(
    control: &Control,
    peer: &Peer,
    request: v1::AttestRequest,
) -> Result<v1::AttestResponse, Refused> {
    // The token before anything that costs: a signature is verified only for who holds one.
    let Some(Evidence::JoinToken(text)) = &request.evidence else {
        return Err(Refused::new(
            Code::NotUnderstood,
            "the request holds no evidence that is known here",
        ));
    };
    let guess = Guess::begin(control, peer).await;
    let now = control.clock.now();
    let found = look_up(control, text, now).await;
    let had_leave = guess.ended(&found);
    let token = found.map_err(|refused| match refused.code {
        Code::UnknownToken | Code::SpentToken | Code::ExpiredToken if !had_leave => {
            let why = "too many guesses at join tokens from this address";
            Refused::new(Code::RateLimited, why)
        }
        _ => refused,
    })?;
    let attempt = Attempt::begin(control, peer)?;
    let admitted = admit(control, &attempt, &request, token, now).await;
    attempt.ended(&admitted);
    admitted
}

async fn look_up(control: &Control, text: &str, now: Timestamp) -> Result<TokenRow, Refused> {
    let hash = token::presented(text)?;
    usable(control.store.token(hash).await?, now)
}

/// Admits the holder of this token.
async fn admit(
    control: &Control,
    attempt: &Attempt<'_>,
    request: &v1::AttestRequest,
    token: TokenRow,
    now: Timestamp,
) -> Result<v1::AttestResponse, Refused> {
    // 1. The key, and that the caller holds it.
    let key = attempt.request(&request.csr)?;
    // 2. All of it becomes true at once, or not at all: of callers who race, one spends the token.
    let hash = token.hash;
    let id = NodeId::draw(&*control.entropy).map_err(internal)?;
    let decide = |state: &State| {
        let node = node(state, id, &key, &token, &request.host, now);
        let details = serde_json::json!({
            "host": node.host, "key": key.public().id(), "labels": node.labels,
            "by": node.attested_by, "token": hash,
        });
        let actor = node.spiffe_id.to_string();
        let event = Event::new(EventKind::NodeAttested, now, actor.as_str(), id.to_string());
        let wanted = Wanted {
            id: node.spiffe_id.clone(),
            key: key.clone(),
            lifetime: state.domain().agent_lifetime,
            dns_names: Vec::new(),
            attested: Attested::default(),
            reserved: Reserved::Allow,
        };
        let cause = Cause {
            actor,
            node: Some(id),
            ops: vec![Op::SpendToken { hash, now }, Op::PutNode(node)],
            events: vec![event.with_details(details)],
        };
        Ok((wanted, cause))
    };
    let (svid, state) = control.issue_one(decide).await?;
    tracing::info!(node = %id, "node attested");
    Ok(v1::AttestResponse {
        node_id: Bytes::copy_from_slice(id.as_bytes()),
        chain: chain(&svid),
        bundle: bundle(&state)?,
        generation: 1,
    })
}

fn usable(token: Option<TokenRow>, now: Timestamp) -> Result<TokenRow, Refused> {
    let token =
        token.ok_or_else(|| Refused::new(Code::UnknownToken, "the join token is not known"))?;
    if token.spent.is_some() {
        return Err(Refused::new(Code::SpentToken, "the join token was used already"));
    }
    if token.expires <= now {
        return Err(Refused::new(
            Code::ExpiredToken,
            format!("the join token expired at {}", token.expires),
        ));
    }
    Ok(token)
}

fn node(
    state: &State,
    id: NodeId,
    key: &ProvenKey,
    token: &TokenRow,
    host: &str,
    now: Timestamp,
) -> NodeRow {
    NodeRow {
        id,
        spiffe_id: agent_id(&state.domain().trust_domain, id),
        key_spki: key.public().spki().to_vec(),
        generation: 1,
        labels: token.labels.clone(),
        host: wire::clip(host, HOST_BYTES_MAX),
        attested_at: now,
        seen_at: now,
        attested_by: Some(NodeEvidence::JoinToken),
    }
}

/// A chain as it travels.
pub(crate) fn chain(svid: &Svid) -> Vec<Bytes> {
    svid.chain.iter().map(|certificate| Bytes::copy_from_slice(certificate.der())).collect()
}

/// The trust domain's own bundle as it travels.
pub(super) fn bundle(state: &State) -> Result<Bytes, Refused> {
    let domain = &state.domain().trust_domain;
    let bundle = state.bundle(domain).ok_or_else(|| internal("the state holds no bundle"))?;
    Ok(Bytes::from(bundle.to_json()))
}
