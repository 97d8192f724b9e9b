//! A log as operators get it, over the admin socket or straight from the store.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_api::admin::{
    LeafView, LeavesResponse, LogResponse, TileHashView, TileHashesResponse,
};
use countersign_audit::{NoteKey, TileHash};
use countersign_identity::Incarnation;
use countersign_store::{PAGE_MAX, Store, StoredEvent};

use super::reader::LogReader;
use crate::authority::internal;
use crate::refusal::Refused;

/// Checkpoints that are shown: those of the tile that is not full yet, and one before.
const CHECKPOINTS_MAX: usize = 300;
/// Past incarnations that are shown.
const PAST_MAX: usize = 1000;

/// What is signed of a log.
pub(crate) async fn log(
    store: &dyn Store,
    incarnation: Option<Incarnation>,
    key: Option<&NoteKey>,
) -> Result<LogResponse, Refused> {
    let (log, head) = LogReader::of(store, incarnation).await?;
    let incarnation = log.incarnation();
    let present = head.revision.incarnation == incarnation;
    let mut past = Vec::new();
    while let Some(next) = store.past_incarnation(past.last().copied().unwrap_or(0)).await?
        && past.len() < PAST_MAX
    {
        past.push(next);
    }
    let rows = store.checkpoints(incarnation, CHECKPOINTS_MAX).await?;
    Ok(LogResponse {
        incarnation,
        past,
        counted: present.then_some(head.log_size),
        revision: present.then_some(head.revision),
        key: key.map(ToString::to_string),
        checkpoints: rows.into_iter().map(|row| row.note).collect(),
    })
}

/// Leaves as they are stored, be they right or not.
pub(crate) async fn leaves(
    store: &dyn Store,
    incarnation: Option<Incarnation>,
    from: u64,
    limit: usize,
) -> Result<LeavesResponse, Refused> {
    let (log, _head) = LogReader::of(store, incarnation).await?;
    let events = log.events(from, limit.min(PAGE_MAX)).await?;
    Ok(LeavesResponse { leaves: events.into_iter().map(leaf).collect::<Result<_, _>>()? })
}

fn leaf(event: StoredEvent) -> Result<LeafView, Refused> {
    let StoredEvent { index, leaf, hash, details } = event;
    // What is no text was never written so. It is shown as what it cannot have been, and found.
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let salt = details.as_ref().map(|details| STANDARD.encode(details.salt));
    let details = details.map(|details| text(details.json));
    Ok(LeafView { index, leaf: text(leaf), hash, details, salt })
}

/// Hashes of full tiles, as they are stored.
pub(crate) async fn tile_hashes(
    store: &dyn Store,
    incarnation: Incarnation,
    level: u8,
    from: u64,
) -> Result<TileHashesResponse, Refused> {
    if level == 0 {
        return Err(internal("the hashes of leaves are with the leaves"));
    }
    let rows = store.tile_hashes(incarnation, level, from, PAGE_MAX).await?;
    let view = |TileHash { level, position, hash }| TileHashView { level, position, hash };
    Ok(TileHashesResponse { hashes: rows.into_iter().map(view).collect() })
}
