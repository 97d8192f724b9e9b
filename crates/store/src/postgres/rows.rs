//! Between rows of PostgreSQL and our types. What does not fit a type is damage, and said to be.

use countersign_audit::TileHash;
use countersign_identity::{
    KeyId, Name, NodeEvidence, NodeId, Revision, Serial, Sha256, SpiffeId, Timestamp, Validity,
};
use tokio_postgres::Row;
use tokio_postgres::types::FromSqlOwned;

use super::seen::Tip;
use crate::{
    CheckpointRow, Details, FlowRow, Head, Issued, IssuedRow, Lease, NodeRow, PaperRow, PointKey,
    PointRow, ReportRow, Result, Span, StoreError, StoredEvent, TallyRow, TokenRow,
};

pub(super) fn broken(what: impl Into<String>) -> StoreError {
    StoreError::Broken { what: what.into() }
}

/// A number for a BIGINT. Ours count from 0 by one, so none gets near the limit.
pub(super) fn signed(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| broken(format!("number {number} is beyond 2^63")))
}

/// One column, by its place.
pub(super) fn column<T: FromSqlOwned>(row: &Row, place: usize) -> Result<T> {
    row.try_get(place).map_err(|error| broken(error.to_string()))
}

pub(super) fn number(row: &Row, place: usize) -> Result<u64> {
    let number: i64 = column(row, place)?;
    u64::try_from(number).map_err(|_| broken(format!("number {number} is below 0")))
}

fn bytes<const N: usize>(row: &Row, place: usize) -> Result<[u8; N]> {
    let blob: Vec<u8> = column(row, place)?;
    let length = blob.len();
    blob.try_into().map_err(|_| broken(format!("a value has {length} bytes, expected {N}")))
}

/// A text that parses into one of our types.
pub(super) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    row: &Row,
    place: usize,
) -> Result<T> {
    column::<String>(row, place)?.parse().map_err(|error: T::Err| broken(error.to_string()))
}

fn moment(row: &Row, place: usize) -> Result<Timestamp> {
    Ok(Timestamp::from_micros(column(row, place)?))
}

pub(super) fn sha256(row: &Row, place: usize) -> Result<Sha256> {
    Ok(Sha256::from_bytes(bytes(row, place)?))
}

/// The hash of a leaf that may not be there.
pub(super) fn maybe_sha256(row: &Row, place: usize) -> Result<Option<Sha256>> {
    match column::<Option<Vec<u8>>>(row, place)? {
        None => Ok(None),
        Some(_) => sha256(row, place).map(Some),
    }
}

fn labels(row: &Row, place: usize) -> Result<Vec<Name>> {
    let text: String = column(row, place)?;
    serde_json::from_str(&text).map_err(|error| broken(format!("labels: {error}")))
}

pub(super) fn labels_text(labels: &[Name]) -> Result<String> {
    serde_json::to_string(labels).map_err(|error| broken(format!("labels: {error}")))
}

pub(super) fn head(row: &Row) -> Result<Head> {
    let incarnation = number(row, 0)?;
    let revision = |number| Revision { incarnation, number };
    Ok(Head {
        revision: revision(number(row, 1)?),
        fence: revision(number(row, 2)?),
        log_size: number(row, 3)?,
    })
}

/// The head, the hash of the log's last leaf, and which version of the schema is needed.
pub(super) fn tip(row: &Row) -> Result<Tip> {
    Ok(Tip { head: head(row)?, leaf: maybe_sha256(row, 4)?, needs: number(row, 5)? })
}

pub(super) fn key(row: &Row, place: usize) -> Result<KeyId> {
    Ok(KeyId::from_bytes(bytes(row, place)?))
}

pub(super) fn point(row: &Row) -> Result<PointRow> {
    let node = NodeId::from_bytes(bytes(row, 0)?);
    let key = PointKey { node, spiffe_id: parsed(row, 1)?, name: column(row, 2)? };
    Ok(PointRow { key, registered_at: moment(row, 3)? })
}

pub(super) fn began(row: &Row) -> Result<Timestamp> {
    moment(row, 0)
}

pub(super) fn tally(row: &Row) -> Result<TallyRow> {
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

pub(super) fn flow(row: &Row) -> Result<FlowRow> {
    let flow =
        String::from_utf8(column(row, 0)?).map_err(|error| broken(format!("a flow: {error}")))?;
    Ok(FlowRow { flow, first: moment(row, 1)?, last: moment(row, 2)?, count: number(row, 3)? })
}

pub(super) fn paper(row: &Row) -> Result<PaperRow> {
    let name = String::from_utf8(column(row, 0)?)
        .map_err(|error| broken(format!("the name of a paper: {error}")))?;
    Ok(PaperRow { name, value: column(row, 1)? })
}

pub(super) fn lease(row: &Row) -> Result<Lease> {
    Ok(Lease { holder: column(row, 0)?, ends: moment(row, 1)? })
}

pub(super) fn report_version(row: &Row) -> Result<(String, u64)> {
    Ok((column(row, 0)?, number(row, 1)?))
}

pub(super) fn report(row: &Row) -> Result<ReportRow> {
    let (replica, version) = report_version(row)?;
    Ok(ReportRow { replica, version, body: column(row, 2)? })
}

/// What nobody knows of is none; a word that is not known is no node that could be read.
fn evidence(row: &Row, place: usize) -> Result<Option<NodeEvidence>> {
    let word: Option<String> = column(row, place)?;
    let word = word.map(|word| word.parse::<NodeEvidence>()).transpose();
    word.map_err(|error| broken(error.to_string()))
}

pub(super) fn node(row: &Row) -> Result<NodeRow> {
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

pub(super) fn span(row: &Row) -> Result<Span> {
    let maybe = |place| {
        let number: Option<i64> = column(row, place)?;
        number.map(|_| self::number(row, place)).transpose()
    };
    Ok(Span {
        head: number(row, 0)?,
        commits: number(row, 1)?,
        kept: maybe(2)?.zip(maybe(3)?),
        changed: maybe(4)?.zip(maybe(5)?),
    })
}

pub(super) fn secret(row: &Row) -> Result<(String, Vec<u8>)> {
    Ok((column(row, 0)?, column(row, 1)?))
}

pub(super) fn revoked_key(row: &Row) -> Result<(KeyId, Timestamp)> {
    Ok((key(row, 0)?, moment(row, 1)?))
}

pub(super) fn token(row: &Row) -> Result<TokenRow> {
    Ok(TokenRow {
        hash: sha256(row, 0)?,
        expires: moment(row, 1)?,
        labels: labels(row, 2)?,
        spent: column::<Option<i64>>(row, 3)?.map(Timestamp::from_micros),
    })
}

pub(super) fn serial(row: &Row, place: usize) -> Result<Serial> {
    Serial::from_bytes(bytes(row, place)?).ok_or_else(|| broken("a serial is not one"))
}

pub(super) fn issued(row: &Row) -> Result<Issued> {
    let node = match column::<Option<Vec<u8>>>(row, 5)? {
        Some(_) => Some(NodeId::from_bytes(bytes(row, 5)?)),
        None => None,
    };
    let issued = IssuedRow {
        serial: serial(row, 0)?,
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

pub(super) fn checkpoint(row: &Row) -> Result<CheckpointRow> {
    Ok(CheckpointRow { incarnation: number(row, 0)?, size: number(row, 1)?, note: column(row, 2)? })
}

pub(super) fn tile_hash(row: &Row) -> Result<TileHash> {
    let level = u8::try_from(number(row, 0)?).map_err(|_| broken("a level of the tree is not one"));
    Ok(TileHash { level: level?, position: number(row, 1)?, hash: sha256(row, 2)? })
}

pub(super) fn event(row: &Row) -> Result<StoredEvent> {
    let index = number(row, 0)?;
    // Which of a million it is that does not read is worth saying.
    stored(row, index).map_err(|error| match error {
        StoreError::Broken { what } => broken(format!("event {index} cannot be read: {what}")),
        other => other,
    })
}

fn stored(row: &Row, index: u64) -> Result<StoredEvent> {
    let details = match (column::<Option<Vec<u8>>>(row, 3)?, column::<Option<Vec<u8>>>(row, 4)?) {
        (Some(json), Some(_)) => Some(Details { json, salt: bytes(row, 4)? }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err(broken("an event has details without salt, or salt without details"));
        }
    };
    Ok(StoredEvent { index, leaf: column(row, 1)?, hash: sha256(row, 2)?, details })
}
