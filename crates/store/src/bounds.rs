//! How much of anything is taken at once, and that a batch does not contradict itself.

use std::collections::HashMap;

use countersign_audit::{EventKind, NOTE_BYTES_MAX};
use countersign_identity::{Name, Serial};

use crate::{Batch, Change, Op, PaperRow, PointRow, ReportRow, Result, StoreError};

/// The longest name of a record, a secret, a lease or a lease's holder.
pub const NAME_BYTES_MAX: usize = 255;
/// The longest value of a record, and the longest sealed secret.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// How many changes, events, issued rows and other operations a batch may hold, each: enough for one apply of ten
/// thousand workloads with their services and policies.
pub const BATCH_ROWS_MAX: usize = 50_000;
/// The longest SubjectPublicKeyInfo of a node.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest host name of a node.
pub const HOST_BYTES_MAX: usize = 255;
/// The longest report of a replica: of about a hundred thousand enforcement points.
pub const REPORT_BYTES_MAX: usize = 4 << 20;
/// The longest text of a flow.
pub const FLOW_BYTES_MAX: usize = 4096;
/// The longest paper: a review names a policy or a service, and an approval who gave it, with what there is to say.
pub const PAPER_BYTES_MAX: usize = 16 * 1024;
/// The longest text of a tally, and the longest sample in it.
pub const TALLY_BYTES_MAX: usize = 8192;
/// How many labels a node or a token may have.
pub const LABELS_MAX: usize = 64;
/// How many rows a page may have.
pub const PAGE_MAX: usize = 1000;
/// How many commits the feed keeps. A reader that is further behind takes a snapshot. A state whose feed is shorter is not in
/// order, so a version that keeps more has to know how many the one before it kept.
pub const FEED_COMMITS_MAX: u64 = 10_000;
/// A page of the feed ends with the commit that makes it this many changes, so that large commits make short pages.
pub(crate) const FEED_CHANGES_MAX: usize = 10_000;
/// How many hashes are read at once; they are small.
pub(crate) const HASHES_MAX: usize = 16 * PAGE_MAX;
/// How many rows one trim may drop, so that nobody waits long behind it.
pub const TRIM_ROWS_MAX: usize = 5000;
/// The feed is trimmed once in so many commits, so that most commits delete nothing.
pub(crate) const FEED_TRIM_STEP: u64 = 256;

fn within(what: &'static str, found: usize, limit: usize) -> Result<()> {
    if limit < found { Err(StoreError::TooLarge { what, found, limit }) } else { Ok(()) }
}

/// Checks a name of a record, a secret, a lease or a lease's holder.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<()> {
    within(what, name.len(), NAME_BYTES_MAX)
}

/// Checks a replica's report.
pub(crate) fn check_report(report: &ReportRow) -> Result<()> {
    check_name("bytes of a replica's name", &report.replica)?;
    within("bytes of a replica's report", report.body.len(), REPORT_BYTES_MAX)
}

fn check_labels(labels: &[Name]) -> Result<()> {
    within("labels", labels.len(), LABELS_MAX)
}

/// Checks everything about a batch that needs no state.
pub(crate) fn check(batch: &Batch) -> Result<()> {
    within("changes of a batch", batch.changes.len(), BATCH_ROWS_MAX)?;
    within("events of a batch", batch.events.len(), BATCH_ROWS_MAX)?;
    within("issued rows of a batch", batch.issued.len(), BATCH_ROWS_MAX)?;
    within("operations of a batch", batch.ops.len(), BATCH_ROWS_MAX)?;
    for change in &batch.changes {
        match change {
            Change::Put(record) => {
                check_name("bytes of a record's name", &record.name)?;
                within("bytes of a record", record.value.len(), VALUE_BYTES_MAX)?;
            }
            Change::Remove { name, .. } => check_name("bytes of a record's name", name)?,
        }
    }
    batch.ops.iter().try_for_each(check_op)?;
    positions(batch).map(|_agreed| ())
}

fn check_op(op: &Op) -> Result<()> {
    match op {
        Op::PutSecret { name, sealed } => {
            check_name("bytes of a secret's name", name)?;
            within("bytes of a secret", sealed.len(), VALUE_BYTES_MAX)
        }
        Op::CreateToken(row) => check_labels(&row.labels),
        Op::PutNode(row) => {
            check_labels(&row.labels)?;
            within("bytes of a node's key", row.key_spki.len(), KEY_BYTES_MAX)?;
            within("bytes of a node's host name", row.host.len(), HOST_BYTES_MAX)
        }
        Op::UpdateNode { key_spki, .. } => {
            within("bytes of a node's key", key_spki.len(), KEY_BYTES_MAX)
        }
        Op::PutPoint(PointRow { key, .. }) | Op::RemovePoint(key) => {
            check_name("bytes of an enforcement point's name", &key.name)
        }
        Op::PutCheckpoint(row) => within("bytes of a checkpoint", row.note.len(), NOTE_BYTES_MAX),
        Op::PutTileHashes { hashes, .. } => within("hashes of tiles", hashes.len(), BATCH_ROWS_MAX),
        Op::TrimDetails { from, to, .. } => {
            let rows = usize::try_from(to.saturating_sub(*from)).unwrap_or(usize::MAX);
            within("events whose details are dropped", rows, TRIM_ROWS_MAX)
        }
        Op::AddFlow(row) => within("bytes of a flow", row.flow.len(), FLOW_BYTES_MAX),
        Op::CreatePaper(PaperRow { name, value }) => {
            check_name("bytes of a paper's name", name)?;
            within("bytes of a paper", value.len(), PAPER_BYTES_MAX)
        }
        Op::RemovePaper { name } => check_name("bytes of a paper's name", name),
        Op::AddTally(_, row) => {
            within("bytes of a tally", row.what.len(), TALLY_BYTES_MAX)?;
            within("bytes of a tally's sample", row.sample.len(), TALLY_BYTES_MAX)
        }
        Op::SpendToken { .. }
        | Op::TrimTallies { .. }
        | Op::TrimFlows { .. }
        | Op::RevokeKeys { .. }
        | Op::ExpectNode { .. }
        | Op::RemoveNode { .. }
        | Op::TouchNode { .. } => Ok(()),
    }
}

/// For each issued row the position of its event.
///
/// The log and the table must say the same, or one of them lies: each row needs exactly one event with its serial
/// and its digest, and an event that claims an issuance needs its row.
pub(crate) fn positions(batch: &Batch) -> Result<Vec<usize>> {
    let mut events: HashMap<Serial, usize> = HashMap::new();
    for (position, event) in batch.events.iter().enumerate() {
        let issues = event.kind == EventKind::SvidIssued;
        match event.serial {
            Some(serial) if events.insert(serial, position).is_some() => {
                return Err(StoreError::Mismatched { serial: Some(serial) });
            }
            None if issues || event.tbs.is_some() => {
                return Err(StoreError::Mismatched { serial: None });
            }
            Some(_) | None => {}
        }
    }
    let mut positions = Vec::with_capacity(batch.issued.len());
    for row in &batch.issued {
        // Taken out, so that of two rows with one serial the second finds none.
        let position = events.remove(&row.serial).filter(|position| {
            let event = &batch.events[*position];
            let names =
                event.kind != EventKind::SvidIssued || event.subject == row.spiffe_id.as_str();
            event.tbs == Some(row.tbs) && names
        });
        let mismatched = StoreError::Mismatched { serial: Some(row.serial) };
        positions.push(position.ok_or(mismatched)?);
    }
    match events.keys().next() {
        Some(serial) => Err(StoreError::Mismatched { serial: Some(*serial) }),
        None => Ok(positions),
    }
}
