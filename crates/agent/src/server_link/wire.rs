//! From the wire's messages to ours. Everything is parsed once, here.

use bytes::Bytes;
use countersign_api::standing::Failed;
use countersign_api::{v1, wire};
use countersign_identity::{Code, Revision, SpiffeId, Timestamp, TrustDomain};
use countersign_pki::{Bundle, Chain};

use super::{Attested, LinkFault, Renewed, SignAnswer};
use crate::core::{Record, RecordKey, SignedRecord, SyncMessage};

/// An answer that is not understood. It is the server's fault, and trying another may help.
pub(super) fn broken(why: impl std::fmt::Display) -> LinkFault {
    LinkFault::new(Code::Internal, format!("the server's answer is not understood: {why}"))
}

/// A failed call, with the server's own code when it carries one.
pub(super) fn fault(status: &tonic::Status) -> LinkFault {
    if let Some(refused) = wire::refusal_of(status) {
        return LinkFault::new(refused.code, refused.message);
    }
    let code = match status.code() {
        tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Aborted => {
            Code::Unavailable
        }
        tonic::Code::DeadlineExceeded => Code::TimedOut,
        tonic::Code::Unauthenticated => Code::Unauthenticated,
        tonic::Code::PermissionDenied => Code::Forbidden,
        tonic::Code::ResourceExhausted => Code::RateLimited,
        tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Code::NotUnderstood,
        tonic::Code::NotFound => Code::NotFound,
        tonic::Code::AlreadyExists => Code::AlreadyExists,
        tonic::Code::FailedPrecondition => Code::NotReady,
        tonic::Code::Ok
        | tonic::Code::Unknown
        | tonic::Code::Unimplemented
        | tonic::Code::Internal
        | tonic::Code::DataLoss => Code::Internal,
    };
    let text = wire::clip(status.message(), wire::MESSAGE_BYTES_MAX);
    LinkFault::new(code, if text.is_empty() { code.meaning().to_owned() } else { text })
}

/// Why a standing connection gave no answer, or has ended.
pub(super) fn failed(failed: Failed) -> LinkFault {
    match failed {
        Failed::Refused(refused) => LinkFault::new(refused.code, refused.message),
        Failed::Lost(_) | Failed::Broken(_) => LinkFault::new(failed.code(), failed.to_string()),
    }
}

/// The nonce that a key is to sign, which a server says first.
///
/// # Errors
/// When it has another length.
pub fn nonce(told: &[u8]) -> Result<[u8; 32], LinkFault> {
    told.try_into().map_err(|_other_length| broken("the nonce has not 32 bytes"))
}

/// The answer to an attestation.
///
/// # Errors
/// When it is not understood.
pub fn attested(answer: v1::AttestResponse) -> Result<Attested, LinkFault> {
    let v1::AttestResponse { node_id, chain, bundle, generation } = answer;
    let (chain, bundle) = credential(&chain, &bundle)?;
    let node = wire::node_id(&node_id).map_err(broken)?;
    let issued = issued(&chain);
    Ok(Attested { node, chain, issued, bundle, generation })
}

/// The answer to a renewal.
///
/// # Errors
/// When it is not understood.
pub fn renewed(answer: v1::Renewed) -> Result<Renewed, LinkFault> {
    let v1::Renewed { chain, bundle, generation } = answer;
    let (chain, bundle) = credential(&chain, &bundle)?;
    let issued = issued(&chain);
    Ok(Renewed { chain, issued, bundle, generation })
}

/// The moment of issue of one of our own certificates: its validity begins earlier, by the backdate of its lifetime.
fn issued(chain: &Chain) -> Timestamp {
    let validity = chain.leaf().validity();
    let whole = validity.not_after.since(validity.not_before);
    // lifetime + backdate = whole, and the backdate is 30 s, or half the lifetime when that is less.
    let backdate = std::time::Duration::from_secs(30).min(whole / 3);
    validity.not_before + backdate
}

fn credential(chain: &[Bytes], bundle: &[u8]) -> Result<(Chain, Bundle), LinkFault> {
    let chain = Chain::from_ders(chain.iter().map(Bytes::as_ref)).map_err(broken)?;
    let id: SpiffeId = chain.leaf().spiffe_id().map_err(|refused| broken(refused.why))?;
    let domain: TrustDomain = id.trust_domain().clone();
    let bundle = Bundle::parse_json(domain, bundle).map_err(broken)?;
    Ok((chain, bundle))
}

/// A message of the stream.
///
/// # Errors
/// When it is not understood.
pub fn sync_message(response: v1::SyncResponse) -> Result<SyncMessage, LinkFault> {
    use v1::sync_response::Step;
    let revision = |field: Option<v1::Revision>| -> Result<Revision, LinkFault> {
        wire::revision(field).map_err(broken)
    };
    let clock = server_clock(&response);
    match response.step {
        Some(Step::Snapshot(snapshot)) => Ok(SyncMessage::Snapshot {
            revision: revision(snapshot.revision)?,
            records: records(&snapshot.records)?,
            clock,
        }),
        Some(Step::Changes(changes)) => Ok(SyncMessage::Changes {
            revision: revision(changes.revision)?,
            put: records(&changes.put)?,
            gone: changes
                .gone
                .iter()
                .map(|key| RecordKey::read(&key.kind, &key.name).map_err(broken))
                .collect::<Result<_, _>>()?,
        }),
        Some(Step::Mark(mark)) => {
            Ok(SyncMessage::Mark { revision: revision(mark.revision)?, clock })
        }
        Some(Step::Signed(signed)) => {
            let read = |one: &v1::SignedRecord| -> Result<SignedRecord, LinkFault> {
                let record = Record::read(&one.kind, &one.name, &one.value).map_err(broken)?;
                Ok(SignedRecord { record, signature: one.signature[..].into() })
            };
            signed.records.iter().map(read).collect::<Result<_, _>>().map(SyncMessage::Signed)
        }
        None => Err(broken("a step of an unknown kind")),
    }
}

/// The revision that a message vouches for, and the server's signature over it.
pub fn witness(response: &v1::SyncResponse) -> Option<(Revision, Bytes)> {
    use v1::sync_response::Step;
    let (revision, witness) = match response.step.as_ref()? {
        Step::Snapshot(snapshot) => (snapshot.revision, &snapshot.witness),
        Step::Changes(changes) => (changes.revision, &changes.witness),
        Step::Mark(mark) => (mark.revision, &mark.witness),
        Step::Signed(_) => return None,
    };
    let revision = revision?.into();
    (!witness.is_empty()).then(|| (revision, witness.clone()))
}

/// The server's clock in a message, when it tells it.
pub fn server_clock(response: &v1::SyncResponse) -> Option<Timestamp> {
    use v1::sync_response::Step;
    let micros = match response.step.as_ref()? {
        Step::Snapshot(snapshot) => snapshot.clock_micros,
        Step::Mark(mark) => mark.clock_micros,
        Step::Changes(_) | Step::Signed(_) => 0,
    };
    (micros != 0).then(|| Timestamp::from_micros(micros))
}

fn records(records: &[v1::Record]) -> Result<Vec<Record>, LinkFault> {
    let read = |record: &v1::Record| Record::read(&record.kind, &record.name, &record.value);
    records.iter().map(read).collect::<Result<_, _>>().map_err(broken)
}

/// The answer to one item of a request for SVIDs.
pub fn sign_answer(result: v1::SignResult) -> SignAnswer {
    use v1::sign_result::Outcome;
    match result.outcome {
        Some(Outcome::Issued(issued)) => {
            match Chain::from_ders(issued.chain.iter().map(Bytes::as_ref)) {
                Ok(chain) => SignAnswer::Issued {
                    chain,
                    issued: Timestamp::from_micros(issued.issued_micros),
                },
                Err(why) => SignAnswer::Broken(why.to_string()),
            }
        }
        Some(Outcome::Refusal(refusal)) => match wire::Refused::try_from(refusal) {
            Ok(refused) => SignAnswer::Refused(refused.code, refused.message),
            // An unknown reason is a refusal still.
            Err(why) => SignAnswer::Refused(Code::Forbidden, why.to_string()),
        },
        None => SignAnswer::Broken("an outcome of an unknown kind".to_owned()),
    }
}
