//! Between rows of SQLite and our types. What does not fit a type is damage, and said to be.

use countersign_audit::TileHash;
use countersign_identity::Revision;
use countersign_identity::{
    KeyId, Name, NodeEvidence, NodeId, Serial, Sha256, SpiffeId, Timestamp, Validity,
};
use rusqlite::{ErrorCode, Row};

use crate::{
    CheckpointRow, Details, FlowRow, Head, Issued, IssuedRow, Lease, NodeRow, PaperRow, PointKey,
    PointRow, ReportRow, Result, Span, StoreError, StoredEvent, TallyRow, TokenRow,
};

/// Sorts an error of SQLite: what goes away by itself or by an operator's hand, and what is damage or a defect.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` calls")]
pub(super) fn failed(error: rusqlite::Error) -> StoreError {
    let why = error.to_string();
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OutOfMemory
            | ErrorCode::OperationInterrupted
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied,
        ) => StoreError::Unavailable { why },
        _ => StoreError::Broken { what: why },
    }
}

pub(super) fn broken(what: impl Into<String>) -> StoreError {
    StoreError::Broken { what: what.into() }
}

/// A number for a BIGINT. Ours count from 0 by one, so none gets near the limit.
pub(super) fn signed(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| broken(format!("number {number} is beyond 2^63")))
}

pub(super) fn unsigned(number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| broken(format!("number {number} is below 0")))
}

/// One column, by its place.
pub(super) fn column<T: rusqlite::types::FromSql>(row: &Row<'_>, place: usize) -> Result<T> {
    row.get(place).map_err(failed)
}

pub(super) fn number(row: &Row<'_>, place: usize) -> Result<u64> {
    unsigned(column(row, place)?)
}

fn bytes<const N: usize>(row: &Row<'_>, place: usize) -> Result<[u8; N]> {
    let blob: Vec<u8> = column(row, place)?;
    let length = blob.len();
    blob.try_into().map_err(|_| broken(format!("a value has {length} bytes, expected {N}")))
}

/// A text that parses into one of our types.
pub(super) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    row: &Row<'_>,
    place: usize,
) -> Result<T> {
    column::<String>(row, place)?.parse().map_err(|error: T::Err| broken(error.to_string()))
}

fn moment(row: &Row<'_>, place: usize) -> Result<Timestamp> {
    Ok(Timestamp::from_micros(column(row, place)?))
}

pub(super) fn sha256(row: &Row<'_>, place: usize) -> Result<Sha256> {
    Ok(Sha256::from_bytes(bytes(row, place)?))
}

fn labels(row: &Row<'_>, place: usize) -> Result<Vec<Name>> {
    let text: String = column(row, place)?;
    serde_json::from_str(&text).map_err(|error| broken(format!("labels: {error}")))
}

pub(super) fn labels_text(labels: &[Name]) -> Result<String> {
    serde_json::to_string(labels).map_err(|error| broken(format!("labels: {error}")))
}

pub(super) fn head(row: &Row<'_>) -> Result<Head> {
    let incarnation = number(row, 0)?;
    let revision = |number| Revision { incarnation, number };
    Ok(Head {
        revision: revision(number(row, 1)?),
        fence: revision(number(row, 2)?),
        log_size: number(row, 3)?,
    })
}

/// What nobody knows of is none; a word that is not known is no node that could be read.
fn evidence(row: &Row<'_>, place: usize) -> Result<Option<NodeEvidence>> {
    let word: Option<String> = column(row, place)?;
    let word = word.map(|word| word.parse::<NodeEvidence>()).transpose();
    word.map_err(|error| broken(error.to_string()))
}

pub(super) fn node(row: &Row<'_>) -> Result<NodeRow> {
    Ok(NodeRow {
        id: NodeId::from_bytes(bytes(row, 0)?),
        spiffe_id: parsed::<SpiffeId>(row, 1)?,
        key_spki: column(row, 2)?,
        generation: number(row, 3)?,
        labels: labels(row, 4)?,
        host: column(row, 5)?,
        attested_at: moment(row, 6)?,
        seen_at: moment(row, 7)?,
        attested_by: evidence(row, 8)?,
    })
}

pub(super) fn point(row: &Row<'_>) -> Result<PointRow> {
    let node = NodeId::from_bytes(bytes(row, 0)?);
    let key = PointKey { node, spiffe_id: parsed(row, 1)?, name: column(row, 2)? };
    Ok(PointRow { key, registered_at: moment(row, 3)? })
}

pub(super) fn began(row: &Row<'_>) -> Result<Timestamp> {
    moment(row, 0)
}

pub(super) fn tally(row: &Row<'_>) -> Result<TallyRow> {
    let text = |place| {
        let bytes: Vec<u8> = column(row, place)?;
        String::from_utf8(bytes).map_err(|error| broken(format!("a tally: {error}")))
    };
    Ok(TallyRow {
        at: moment(row, 0)?,
        what: text(1)?,
        first: moment(row, 2)?,
        last: moment(row, 3)?,
        count: number(row, 4)?,
        micros: number(row, 5)?,
        sample: text(6)?,
    })
}

pub(super) fn flow(row: &Row<'_>) -> Result<FlowRow> {
    let flow =
        String::from_utf8(column(row, 0)?).map_err(|error| broken(format!("a flow: {error}")))?;
    Ok(FlowRow { flow, first: moment(row, 1)?, last: moment(row, 2)?, count: number(row, 3)? })
}

pub(super) fn paper(row: &Row<'_>) -> Result<PaperRow> {
    let name = String::from_utf8(column(row, 0)?)
        .map_err(|error| broken(format!("the name of a paper: {error}")))?;
    Ok(PaperRow { name, value: column(row, 1)? })
}

pub(super) fn lease(row: &Row<'_>) -> Result<Lease> {
    Ok(Lease { holder: column(row, 0)?, ends: moment(row, 1)? })
}

pub(super) fn report_version(row: &Row<'_>) -> Result<(String, u64)> {
    Ok((column(row, 0)?, unsigned(column(row, 1)?)?))
}

pub(super) fn report(row: &Row<'_>) -> Result<ReportRow> {
    let (replica, version) = report_version(row)?;
    Ok(ReportRow { replica, version, body: column(row, 2)? })
}

pub(super) fn span(row: &Row<'_>) -> Result<Span> {
    let maybe = |place| column::<Option<i64>>(row, place)?.map(unsigned).transpose();
    Ok(Span {
        head: number(row, 0)?,
        commits: number(row, 1)?,
        kept: maybe(2)?.zip(maybe(3)?),
        changed: maybe(4)?.zip(maybe(5)?),
    })
}

pub(super) fn secret(row: &Row<'_>) -> Result<(String, Vec<u8>)> {
    Ok((column(row, 0)?, column(row, 1)?))
}

pub(super) fn revoked_key(row: &Row<'_>) -> Result<(KeyId, Timestamp)> {
    Ok((KeyId::from_bytes(bytes(row, 0)?), moment(row, 1)?))
}

pub(super) fn token(row: &Row<'_>) -> Result<TokenRow> {
    Ok(TokenRow {
        hash: sha256(row, 0)?,
        expires: moment(row, 1)?,
        labels: labels(row, 2)?,
        spent: column::<Option<i64>>(row, 3)?.map(Timestamp::from_micros),
    })
}

pub(super) fn issued(row: &Row<'_>) -> Result<Issued> {
    let serial = Serial::from_bytes(bytes(row, 0)?).ok_or_else(|| broken("a serial is not one"))?;
    let node = match column::<Option<Vec<u8>>>(row, 5)? {
        Some(_) => Some(NodeId::from_bytes(bytes(row, 5)?)),
        None => None,
    };
    let issued = IssuedRow {
        serial,
        tbs: sha256(row, 1)?,
        spiffe_id: parsed(row, 2)?,
        key: KeyId::from_bytes(bytes(row, 3)?),
        issuer: KeyId::from_bytes(bytes(row, 4)?),
        node,
        validity: Validity { not_before: moment(row, 6)?, not_after: moment(row, 7)? },
        revision: Revision { incarnation: number(row, 8)?, number: number(row, 9)? },
    };
    Ok(Issued { row: issued, index: number(row, 10)? })
}

pub(super) fn checkpoint(row: &Row<'_>) -> Result<CheckpointRow> {
    Ok(CheckpointRow { incarnation: number(row, 0)?, size: number(row, 1)?, note: column(row, 2)? })
}

pub(super) fn tile_hash(row: &Row<'_>) -> Result<TileHash> {
    let level = u8::try_from(number(row, 0)?).map_err(|_| broken("a level of the tree is not one"));
    Ok(TileHash { level: level?, position: number(row, 1)?, hash: sha256(row, 2)? })
}

pub(super) fn event(row: &Row<'_>) -> Result<StoredEvent> {
    let index = number(row, 0)?;
    // Which of a million it is that does not read is worth saying.
    stored(row, index).map_err(|error| match error {
        StoreError::Broken { what } => broken(format!("event {index} cannot be read: {what}")),
        other => other,
    })
}

fn stored(row: &Row<'_>, index: u64) -> Result<StoredEvent> {
    let details = match (column::<Option<Vec<u8>>>(row, 3)?, column::<Option<Vec<u8>>>(row, 4)?) {
        (Some(json), Some(_)) => Some(Details { json, salt: bytes(row, 4)? }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err(broken("an event has details without salt, or salt without details"));
        }
    };
    Ok(StoredEvent { index, leaf: column(row, 1)?, hash: sha256(row, 2)?, details })
}
