//! The routes of the audit log: what is signed of it, its leaves and tiles, and proofs.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State as Shared};
use axum::http::header;
use axum::response::IntoResponse;
use countersign_api::admin::{
    LIST_MAX, LeavesResponse, LogResponse, ProblemDetails, ProofResponse, TileHashesResponse,
};
use countersign_audit::{Entry, NoteKey, Tile};
use countersign_identity::{Code, Incarnation, Serial};
use countersign_store::PAGE_MAX;
use serde::Deserialize;

use crate::admin::Admin;
use crate::admin::ask::query;
use crate::admin::problem::Problem;
use crate::authority::internal;
use crate::control::Control;
use crate::log::{self, LogReader};
use crate::refusal::Refused;

/// How long somebody who asks for a proof waits for the event to be signed.
const SIGNED_TIMEOUT: Duration = Duration::from_secs(3);
const SIGNED_PAUSE: Duration = Duration::from_millis(100);

/// Of which incarnation.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Of {
    /// Of which incarnation's log; of the present one when none is named.
    incarnation: Option<Incarnation>,
}

/// Which leaves.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Leaves {
    /// Of which incarnation's log; of the present one when none is named.
    incarnation: Option<Incarnation>,
    /// From this index on.
    from: Option<u64>,
    /// At most so many.
    limit: Option<usize>,
}

/// Which hashes.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Hashes {
    /// Of which incarnation's log.
    incarnation: Incarnation,
    /// In the tiles of which level, from 1 on.
    level: u8,
    /// From this place on.
    from: Option<u64>,
}

/// What is to be proven.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Wanted {
    /// The event at this index.
    index: Option<u64>,
    /// The issue of the certificate with this serial.
    #[param(value_type = Option<String>)]
    serial: Option<Serial>,
    /// Of which incarnation's log; of the present one when none is named.
    incarnation: Option<Incarnation>,
}

fn key(control: &Control) -> Result<NoteKey, Refused> {
    let key = control.log_key.as_ref().ok_or_else(|| internal("there is no log key"))?;
    key.note_key(&control.feed.current().domain().trust_domain)
}

/// What is signed of a log, and by which key.
#[utoipa::path(get, path = "/v1/log", params(Of), responses((status = 200, body = LogResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn log(
    Shared(admin): Shared<Arc<Admin>>,
    of: Result<Query<Of>, QueryRejection>,
) -> Result<Json<LogResponse>, Problem> {
    let control = admin.control()?;
    let key = key(control)?;
    Ok(Json(log::log(&*control.store, query(of)?.incarnation, Some(&key)).await?))
}

/// Leaves of a log, as they are stored.
#[utoipa::path(get, path = "/v1/log/leaves", params(Leaves), responses((status = 200, body = LeavesResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn leaves(
    Shared(admin): Shared<Arc<Admin>>,
    wanted: Result<Query<Leaves>, QueryRejection>,
) -> Result<Json<LeavesResponse>, Problem> {
    let store = &*admin.control()?.store;
    let Leaves { incarnation, from, limit } = query(wanted)?;
    let limit = limit.unwrap_or(LIST_MAX).clamp(1, LIST_MAX);
    Ok(Json(log::leaves(store, incarnation, from.unwrap_or(0), limit).await?))
}

/// Hashes of full tiles of a log's tree, as they are stored.
#[utoipa::path(get, path = "/v1/log/tile-hashes", params(Hashes), responses((status = 200, body = TileHashesResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn tile_hashes(
    Shared(admin): Shared<Arc<Admin>>,
    wanted: Result<Query<Hashes>, QueryRejection>,
) -> Result<Json<TileHashesResponse>, Problem> {
    let store = &*admin.control()?.store;
    let Hashes { incarnation, level, from } = query(wanted)?;
    if level == 0 {
        return Err(Problem::new(Code::NotUnderstood, "the hashes of level 0 are with the leaves"));
    }
    Ok(Json(log::tile_hashes(store, incarnation, level, from.unwrap_or(0)).await?))
}

/// The newest signed checkpoint of a log, as a signed note.
#[utoipa::path(get, path = "/v1/log/checkpoint", params(Of), responses((status = 200, description = "A signed note"), (status = "default", body = ProblemDetails)))]
pub(crate) async fn checkpoint(
    Shared(admin): Shared<Arc<Admin>>,
    of: Result<Query<Of>, QueryRejection>,
) -> Result<impl IntoResponse, Problem> {
    let control = admin.control()?;
    let (log, _head) = LogReader::of(&*control.store, query(of)?.incarnation).await?;
    let (_checkpoint, note) = log.newest().await?.ok_or_else(nothing_signed)?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], note.to_string()))
}

fn nothing_signed() -> Refused {
    Refused::new(Code::NotReady, "nothing is signed of this log yet")
}

/// A tile of a log's tree, as C2SP tlog-tiles has it: hashes, one behind the other.
#[utoipa::path(get, path = "/v1/log/tile/{path}", params(("path" = String, Path, description = "`LEVEL/INDEX` or `LEVEL/INDEX.p/WIDTH`"), Of), responses((status = 200, description = "Hashes"), (status = "default", body = ProblemDetails)))]
pub(crate) async fn tile(
    Shared(admin): Shared<Arc<Admin>>,
    Path(path): Path<String>,
    of: Result<Query<Of>, QueryRejection>,
) -> Result<impl IntoResponse, Problem> {
    let control = admin.control()?;
    let bad = |bad: countersign_audit::BadTile| Problem::new(Code::NotUnderstood, bad.to_string());
    let (log, _head) = LogReader::of(&*control.store, query(of)?.incarnation).await?;
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    if let Some(entries) = path.strip_prefix("entries/") {
        let tile: Tile = format!("0/{entries}").parse().map_err(bad)?;
        return Ok((kind, log.entries(tile).await?));
    }
    let tile: Tile = path.parse().map_err(bad)?;
    let hashes = log.tile(tile).await?;
    Ok((kind, hashes.iter().flat_map(|hash| *hash.as_bytes()).collect()))
}

/// Proof that an event is in a log, good without any server.
#[utoipa::path(get, path = "/v1/log/proof", params(Wanted), responses((status = 200, body = ProofResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn proof(
    Shared(admin): Shared<Arc<Admin>>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<ProofResponse>, Problem> {
    let control = admin.control()?;
    let Wanted { index, serial, incarnation } = query(wanted)?;
    let (incarnation, index) = match (index, serial) {
        (Some(index), None) => (incarnation, index),
        (None, Some(serial)) => find(control, serial).await?,
        (Some(_), Some(_)) | (None, None) => {
            let why = "expected one of `index` and `serial`";
            return Err(Problem::new(Code::NotUnderstood, why));
        }
    };
    let (log, _head) = LogReader::of(&*control.store, incarnation).await?;
    let waited = tokio::time::Instant::now() + SIGNED_TIMEOUT;
    let proof = loop {
        match log.prove(index).await {
            // What happened a moment ago is signed in a moment.
            Err(refused)
                if refused.code == Code::NotReady && tokio::time::Instant::now() < waited =>
            {
                tokio::time::sleep(SIGNED_PAUSE).await;
            }
            other => break other?,
        }
    };
    let (bundle, key) = (proof.bundle.to_string(), key(control)?.to_string());
    let incarnation = log.incarnation();
    Ok(Json(ProofResponse { incarnation, index, size: proof.size, key, bundle }))
}

/// Where the issue of a certificate is told, also when its row is trimmed because it ended long ago.
async fn find(control: &Control, serial: Serial) -> Result<(Option<Incarnation>, u64), Refused> {
    if let Some(issued) = control.store.issued(serial).await? {
        return Ok((Some(issued.row.revision.incarnation), issued.index));
    }
    let (present, _head) = LogReader::of(&*control.store, None).await?;
    let mut logs = vec![present.incarnation()];
    let mut past = 0;
    while let Some(next) = control.store.past_incarnation(past).await? {
        logs.push(next);
        past = next;
    }
    for incarnation in logs {
        let (log, head) = LogReader::of(&*control.store, Some(incarnation)).await?;
        // A serial says when it was drawn, a moment before its issue was written down.
        let size = log.size(&head).await?;
        let mut from = log.first_since(size, serial.drawn_for() - DRAWN_AHEAD_MAX).await?;
        for _page in 0..PAGES_MAX {
            let page = log.events(from, PAGE_MAX).await?;
            for event in &page {
                let entry = Entry::parse(&event.leaf).map_err(internal)?;
                if entry.serial == Some(serial) {
                    return Ok((Some(incarnation), event.index));
                }
            }
            let Some(last) = page.last() else { break };
            from = last.index + 1;
        }
    }
    Err(Refused::new(
        Code::NotFound,
        format!("no certificate with serial `{serial}` is in the log"),
    ))
}

/// How far a serial's time and that of its event may lie apart.
const DRAWN_AHEAD_MAX: Duration = Duration::from_secs(120);
/// How many pages are read on from there.
const PAGES_MAX: usize = 100;
