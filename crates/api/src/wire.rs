//! Conversions between the protos and our types. Each refuses what it does not know, and bounds what it takes.

use countersign_identity::{
    Code, Condition, NodeId, Revision, Serial, Sha256, SpiffeId, Timestamp, Vital, Vitals,
};
use prost::Message;

use crate::admin::{CredentialView, Handshake, HandshakeDirection, PartView, ProcessView};
use crate::v1;

/// The longest text of a fact or a status that a peer may have chosen.
pub const TEXT_BYTES_MAX: usize = 256;
/// The longest message of a refusal.
pub const MESSAGE_BYTES_MAX: usize = 1024;
/// The most parts of one process that are looked at. There are four.
const PARTS_TOLD_MAX: usize = 16;
/// The most handshakes that one report or one message of facts may hold.
pub const FACTS_MAX: usize = 1024;
/// The largest gRPC message of ours: a whole snapshot of a large domain.
pub const MESSAGE_SIZE_MAX: usize = 64 * 1024 * 1024;

/// Why a message of the right shape is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadWire {
    /// A field that must be there is not.
    #[error("the message lacks `{0}`")]
    Missing(&'static str),
    /// A value that is none of the closed list.
    #[error("`{field}` holds `{value}`, which this version does not know")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: String,
    },
    /// A value of the wrong form.
    #[error("`{field}` is not understood: {why}")]
    Malformed {
        /// Which field.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Too much.
    #[error("`{field}` has {found} items or bytes: at most {max} are allowed")]
    TooLarge {
        /// Which field.
        field: &'static str,
        /// How much it has.
        found: usize,
        /// How much it may have.
        max: usize,
    },
}

/// A refusal as it came over the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The reason.
    pub code: Code,
    /// The sentence.
    pub message: String,
}

impl From<Revision> for v1::Revision {
    fn from(revision: Revision) -> Self {
        Self { incarnation: revision.incarnation, number: revision.number }
    }
}

impl From<v1::Revision> for Revision {
    fn from(revision: v1::Revision) -> Self {
        Self { incarnation: revision.incarnation, number: revision.number }
    }
}

/// A server's report as it is kept for the others.
pub fn replica_report_bytes(report: &v1::ReplicaReport) -> Vec<u8> {
    report.encode_to_vec()
}

/// Another server's report.
///
/// # Errors
/// When the bytes are none.
pub fn replica_report(bytes: &[u8]) -> Result<v1::ReplicaReport, BadWire> {
    v1::ReplicaReport::decode(bytes)
        .map_err(|why| BadWire::Malformed { field: "report", why: why.to_string() })
}

/// The revision of a message that must have one.
///
/// # Errors
/// When it is absent.
pub fn revision(field: Option<v1::Revision>) -> Result<Revision, BadWire> {
    field.map(Revision::from).ok_or(BadWire::Missing("revision"))
}

/// A node's name.
///
/// # Errors
/// When it has not 16 bytes.
pub fn node_id(bytes: &[u8]) -> Result<NodeId, BadWire> {
    let bytes = bytes.try_into().map_err(|_wrong_length| BadWire::Malformed {
        field: "node_id",
        why: format!("it has {} bytes, not 16", bytes.len()),
    })?;
    Ok(NodeId::from_bytes(bytes))
}

/// One of our serials.
///
/// # Errors
/// When it is none.
pub fn serial(bytes: &[u8]) -> Result<Serial, BadWire> {
    let serial = bytes.try_into().ok().and_then(Serial::from_bytes);
    serial.ok_or_else(|| BadWire::Malformed {
        field: "serial",
        why: "it is not 16 bytes whose first bit is 0".to_owned(),
    })
}

/// A digest.
///
/// # Errors
/// When it has not 32 bytes.
pub fn sha256(field: &'static str, bytes: &[u8]) -> Result<Sha256, BadWire> {
    let bytes = bytes.try_into().map_err(|_wrong_length| BadWire::Malformed {
        field,
        why: format!("it has {} bytes, not 32", bytes.len()),
    })?;
    Ok(Sha256::from_bytes(bytes))
}

/// A SPIFFE ID.
///
/// # Errors
/// When it is none.
pub fn spiffe_id(text: &str) -> Result<SpiffeId, BadWire> {
    text.parse().map_err(|error: countersign_identity::IdError| BadWire::Malformed {
        field: "spiffe_id",
        why: error.to_string(),
    })
}

/// The beginning of a text that fits in `max` bytes, cut between characters, without control characters.
pub fn clip(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The wire's form of a refusal.
pub fn refusal(code: Code, message: &str) -> v1::Refusal {
    v1::Refusal { code: code.as_str().to_owned(), message: clip(message, MESSAGE_BYTES_MAX) }
}

impl TryFrom<v1::Refusal> for Refused {
    type Error = BadWire;

    fn try_from(refusal: v1::Refusal) -> Result<Self, BadWire> {
        let code = refusal.code.parse().map_err(|_unknown| BadWire::Unknown {
            field: "code",
            value: clip(&refusal.code, 80),
        })?;
        Ok(Self { code, message: clip(&refusal.message, MESSAGE_BYTES_MAX) })
    }
}

/// `google.rpc.Status`, the standard form of a status with details.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// The gRPC metadata that carries a refusal's code, for clients that read no details.
pub const CODE_KEY: &str = "countersign-code";

const REFUSAL_TYPE: &str = "type.googleapis.com/countersign.v1.Refusal";

/// A gRPC status that carries the code in its details and its metadata. Which gRPC code belongs to it is the caller's table.
pub fn refusal_status(grpc: tonic::Code, code: Code, message: &str) -> tonic::Status {
    let refusal = refusal(code, message);
    let message = refusal.message.clone();
    let details = RpcStatus {
        code: i32::from(grpc),
        message: message.clone(),
        details: vec![prost_types::Any {
            type_url: REFUSAL_TYPE.to_owned(),
            value: refusal.encode_to_vec(),
        }],
    };
    let mut metadata = tonic::metadata::MetadataMap::new();
    metadata.insert(CODE_KEY, tonic::metadata::MetadataValue::from_static(code.as_str()));
    let details = details.encode_to_vec().into();
    tonic::Status::with_details_and_metadata(grpc, message, details, metadata)
}

/// The refusal that a gRPC status carries; `None` when it carries none, or one of an unknown code.
pub fn refusal_of(status: &tonic::Status) -> Option<Refused> {
    from_details(status).or_else(|| {
        let code = status.metadata().get(CODE_KEY)?.to_str().ok()?.parse().ok()?;
        Some(Refused { code, message: clip(status.message(), MESSAGE_BYTES_MAX) })
    })
}

fn from_details(status: &tonic::Status) -> Option<Refused> {
    let details = RpcStatus::decode(status.details()).ok()?;
    let any = details.details.iter().find(|any| any.type_url == REFUSAL_TYPE)?;
    let refusal = v1::Refusal::decode(any.value.as_slice()).ok()?;
    refusal.try_into().ok()
}

/// Cuts every text of a fact to its bound. Whoever passes facts on does this first.
pub fn bounded_fact(mut fact: v1::HandshakeFact) -> v1::HandshakeFact {
    for text in [
        &mut fact.point,
        &mut fact.service,
        &mut fact.peer_address,
        &mut fact.version,
        &mut fact.group,
        &mut fact.suite,
        &mut fact.code,
        &mut fact.detail,
    ] {
        *text = clip(text, TEXT_BYTES_MAX);
    }
    // A SPIFFE ID is whole or absent: the beginning of one is another one.
    for id in [&mut fact.local_id, &mut fact.peer_id] {
        if id.parse::<SpiffeId>().is_err() {
            id.clear();
        }
    }
    if 20 < fact.peer_serial.len() {
        fact.peer_serial.clear();
    }
    fact.count = fact.count.max(1);
    fact
}

/// Within how many microseconds a request was answered, as it is told: from a millisecond to ten seconds. Fixed, so that
/// the counts of all points can be added.
pub const SERVED_WITHIN_MICROS: [u64; 13] = [
    1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// How many policies a flow names at most, and how long each name is.
const FLOW_POLICIES_MAX: usize = 16;

/// Cuts every part of a flow to its bound. Whoever passes flows on does this first.
pub fn bounded_flow(mut flow: v1::Flow) -> v1::Flow {
    for text in
        [&mut flow.point, &mut flow.service, &mut flow.operation, &mut flow.method, &mut flow.mode]
    {
        *text = clip(text, TEXT_BYTES_MAX);
    }
    flow.path = clip(&flow.path, 2 * TEXT_BYTES_MAX);
    if flow.source.parse::<SpiffeId>().is_err() {
        flow.source.clear();
    }
    flow.policies.truncate(FLOW_POLICIES_MAX);
    for policy in &mut flow.policies {
        *policy = clip(policy, TEXT_BYTES_MAX);
    }
    flow.count = flow.count.max(1);
    flow
}

impl Handshake {
    /// What operators see of a fact; `index` is its number on this server.
    ///
    /// # Errors
    /// When its direction or its code is not of the closed list.
    pub fn from_wire(index: u64, fact: v1::HandshakeFact) -> Result<Self, BadWire> {
        let direction = match v1::Direction::try_from(fact.direction) {
            Ok(v1::Direction::Inbound) => HandshakeDirection::Inbound,
            Ok(v1::Direction::Outbound) => HandshakeDirection::Outbound,
            Ok(v1::Direction::Unspecified) => return Err(BadWire::Missing("direction")),
            Err(_unknown) => {
                let value = fact.direction.to_string();
                return Err(BadWire::Unknown { field: "direction", value });
            }
        };
        let code =
            match fact.code.as_str() {
                "" => None,
                code => Some(code.parse().map_err(|_unknown| BadWire::Unknown {
                    field: "code",
                    value: clip(code, 80),
                })?),
            };
        let fact = bounded_fact(fact);
        Ok(Self {
            index,
            at: Timestamp::from_micros(fact.at_micros),
            point: fact.point,
            direction,
            service: fact.service,
            local_id: fact.local_id,
            peer_id: fact.peer_id,
            peer_address: fact.peer_address,
            peer_serial: hex(&fact.peer_serial),
            version: fact.version,
            group: fact.group,
            suite: fact.suite,
            resumed: fact.resumed,
            micros: fact.micros,
            code,
            detail: fact.detail,
            count: fact.count,
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl From<v1::ProcessStatus> for ProcessView {
    fn from(status: v1::ProcessStatus) -> Self {
        Self {
            name: clip(&status.name, TEXT_BYTES_MAX),
            kind: clip(&status.kind, TEXT_BYTES_MAX),
            pid: status.pid,
            resident_bytes: status.resident_bytes,
            connections: status.connections,
            version: clip(&status.version, TEXT_BYTES_MAX),
            parts: bounded_parts(&status.parts).into_iter().map(PartView::from).collect(),
        }
    }
}

/// How parts stand, for the wire. Nothing is told of doors by who has none.
pub fn parts_of(vitals: &Vitals) -> Vec<v1::PartStatus> {
    let micros = |moment: Option<Timestamp>| moment.map_or(0, Timestamp::micros);
    let part = |(vital, condition): (Vital, &Condition)| {
        let failed = condition.failed.as_ref();
        v1::PartStatus {
            part: vital.as_str().to_owned(),
            good_micros: micros(condition.good),
            failed_micros: micros(failed.map(|failed| failed.at)),
            why: failed.map(|failed| clip(&failed.why, TEXT_BYTES_MAX)).unwrap_or_default(),
            ends_micros: micros(condition.ends),
        }
    };
    let told = |(vital, condition): &(Vital, &Condition)| {
        *vital != Vital::Door || **condition != Condition::default()
    };
    vitals.all().filter(told).map(part).collect()
}

/// What a process says of its parts, within bounds: each that there is once, and no text that is longer than needs be.
pub fn bounded_parts(told: &[v1::PartStatus]) -> Vec<v1::PartStatus> {
    let of = |vital: Vital| {
        let part = told.iter().take(PARTS_TOLD_MAX).find(|part| part.part == vital.as_str())?;
        Some(v1::PartStatus { why: clip(&part.why, TEXT_BYTES_MAX), ..part.clone() })
    };
    Vital::ALL.into_iter().filter_map(of).collect()
}

impl From<v1::PartStatus> for PartView {
    fn from(part: v1::PartStatus) -> Self {
        let moment = |micros: i64| (micros != 0).then(|| Timestamp::from_micros(micros));
        Self {
            part: clip(&part.part, TEXT_BYTES_MAX),
            last_good_at: moment(part.good_micros),
            last_failure_at: moment(part.failed_micros),
            last_failure: Some(clip(&part.why, TEXT_BYTES_MAX)).filter(|why| !why.is_empty()),
            ends_at: moment(part.ends_micros),
        }
    }
}

impl TryFrom<v1::CredentialStatus> for CredentialView {
    type Error = BadWire;

    fn try_from(status: v1::CredentialStatus) -> Result<Self, BadWire> {
        let trouble = clip(&status.trouble, MESSAGE_BYTES_MAX);
        Ok(Self {
            workload: clip(&status.workload, TEXT_BYTES_MAX),
            spiffe_id: spiffe_id(&status.spiffe_id)?,
            serial: serial(&status.serial)?,
            issued_at: Timestamp::from_micros(status.issued_micros),
            expires_at: Timestamp::from_micros(status.expires_micros),
            renewal_at: Timestamp::from_micros(status.renewal_micros),
            trouble: (!trouble.is_empty()).then_some(trouble),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_way_through_a_grpc_status() {
        let status = refusal_status(tonic::Code::PermissionDenied, Code::NoMatch, "no match");
        let refused = refusal_of(&status).unwrap();
        assert_eq!((refused.code, refused.message.as_str()), (Code::NoMatch, "no match"));
        assert_eq!(refusal_of(&tonic::Status::permission_denied("no")), None);
    }

    #[test]
    fn an_unknown_code_is_not_a_refusal_of_ours() {
        let refusal = v1::Refusal { code: "allow".to_owned(), message: String::new() };
        assert!(matches!(Refused::try_from(refusal), Err(BadWire::Unknown { field: "code", .. })));
    }

    #[test]
    fn an_unknown_direction_or_code_of_a_fact_is_refused() {
        let fact = |direction, code: &str| v1::HandshakeFact {
            direction,
            code: code.to_owned(),
            ..Default::default()
        };
        assert_eq!(Handshake::from_wire(0, fact(1, "")).unwrap().code, None);
        assert_eq!(Handshake::from_wire(0, fact(2, "revoked")).unwrap().code, Some(Code::Revoked));
        assert!(Handshake::from_wire(0, fact(0, "")).is_err());
        assert!(Handshake::from_wire(0, fact(3, "")).is_err());
        assert!(Handshake::from_wire(0, fact(1, "other")).is_err());
    }

    #[test]
    fn texts_that_a_peer_chose_are_cut_between_characters() {
        let fact = bounded_fact(v1::HandshakeFact {
            detail: "é".repeat(1000),
            peer_id: format!("spiffe://a/{}", "b".repeat(5000)),
            ..Default::default()
        });
        assert_eq!((fact.detail.len(), fact.peer_id.as_str(), fact.count), (256, "", 1));
        assert_eq!(clip("a\nb\u{7f}", 10), "a b ");
    }
}
