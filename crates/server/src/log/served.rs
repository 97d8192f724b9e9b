//! The log for the rest of the world: signed checkpoints and the tree's hashes, as C2SP tlog-tiles has them.
//!
//! Anybody may see them; they tell how many events there are, and nothing of what they say. The entries themselves name
//! workloads and operators, and are given to operators only.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State as Shared};
use axum::http::{Response, StatusCode, header};
use axum::routing::get;
use countersign_audit::Tile;
use countersign_identity::{Code, Incarnation};

use super::reader::LogReader;
use crate::control::Control;
use crate::refusal::Refused;

/// A checkpoint is good for as long as none is made; a client that polls sees the next one soon.
const BRIEFLY: &str = "max-age=1, public";
/// A tile never changes, and a partial one neither.
const FOR_EVER: &str = "max-age=31536000, public, immutable";

/// The routes: of the present log `/checkpoint`, of each log all under `/log/INCARNATION`.
pub(crate) fn router() -> Router<Arc<Control>> {
    Router::new()
        .route("/checkpoint", get(newest))
        .route("/log/{incarnation}/checkpoint", get(checkpoint))
        .route("/log/{incarnation}/tile/{*path}", get(tile))
}

async fn newest(Shared(control): Shared<Arc<Control>>) -> Response<Body> {
    answer("text/plain; charset=utf-8", BRIEFLY, signed(&control, None).await)
}

async fn checkpoint(
    Shared(control): Shared<Arc<Control>>,
    Path(incarnation): Path<Incarnation>,
) -> Response<Body> {
    answer("text/plain; charset=utf-8", BRIEFLY, signed(&control, Some(incarnation)).await)
}

async fn signed(control: &Control, of: Option<Incarnation>) -> Result<Vec<u8>, Refused> {
    let (log, _head) = LogReader::of(&*control.store, of).await?;
    let newest = log.newest().await?;
    let (_checkpoint, note) =
        newest.ok_or_else(|| Refused::new(Code::NotFound, "nothing is signed of this log"))?;
    Ok(note.to_string().into_bytes())
}

async fn tile(
    Shared(control): Shared<Arc<Control>>,
    Path((incarnation, path)): Path<(Incarnation, String)>,
) -> Response<Body> {
    let Ok(tile) = path.parse::<Tile>() else {
        return status(StatusCode::NOT_FOUND);
    };
    answer("application/octet-stream", FOR_EVER, hashes(&control, incarnation, tile).await)
}

async fn hashes(control: &Control, of: Incarnation, tile: Tile) -> Result<Vec<u8>, Refused> {
    let (log, _head) = LogReader::of(&*control.store, Some(of)).await?;
    Ok(log.tile(tile).await?.iter().flat_map(|hash| *hash.as_bytes()).collect())
}

fn answer(
    kind: &'static str,
    kept: &'static str,
    body: Result<Vec<u8>, Refused>,
) -> Response<Body> {
    match body {
        Ok(body) => {
            let head = Response::builder().header(header::CONTENT_TYPE, kind);
            let whole = head.header(header::CACHE_CONTROL, kept).body(Body::from(body));
            whole.expect("names and values of these headers are of ASCII")
        }
        Err(refused) if refused.code == Code::NotFound => status(StatusCode::NOT_FOUND),
        Err(refused) => {
            tracing::warn!(code = %refused.code, why = %refused.why, "the log could not be shown");
            status(StatusCode::SERVICE_UNAVAILABLE)
        }
    }
}

fn status(status: StatusCode) -> Response<Body> {
    Response::builder().status(status).body(Body::empty()).expect("a status alone is a response")
}
