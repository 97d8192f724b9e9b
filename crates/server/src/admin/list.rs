//! The route that gives revocation lists, whether or not the port for the rest of the world is open.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State as Shared};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_api::admin::{CrlResponse, ProblemDetails};
use countersign_identity::{Code, KeyId};
use serde::Deserialize;

use crate::admin::Admin;
use crate::admin::ask::query;
use crate::admin::problem::Problem;
use crate::views::{Which, fetch};

/// Which list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Whose certificates it tells of; of the issuer that signs now when none is named.
    #[param(value_type = Option<String>)]
    issuer: Option<KeyId>,
    /// `whole`, `delta`, or a shard, `COUNT-INDEX`; the whole when nothing is said.
    part: Option<String>,
}

/// A revocation list.
#[utoipa::path(get, path = "/v1/crl", params(Asked), responses((status = 200, body = CrlResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn crl(
    Shared(admin): Shared<Arc<Admin>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<CrlResponse>, Problem> {
    let control = admin.control()?;
    let Asked { issuer, part } = query(asked)?;
    let which = match part.as_deref() {
        None | Some("whole") => Which::Whole,
        Some("delta") => Which::Delta,
        Some(shard) => Which::Part(shard.parse().map_err(|bad: countersign_pki::BadShard| {
            Problem::new(Code::NotUnderstood, bad.to_string())
        })?),
    };
    let issuer = issuer.unwrap_or_else(|| control.desk.authorities.load().issuer.key_id());
    let published = fetch(control, issuer, which).await?;
    let shown = control.views.now();
    Ok(Json(CrlResponse {
        issuer,
        number: published.number.to_string(),
        base: published.base.map(|base| base.to_string()),
        shard: match which {
            Which::Part(shard) => Some(shard.to_string()),
            Which::Whole | Which::Delta => None,
        },
        this_update: published.this_update,
        next_update: published.next_update,
        count: published.count as u64,
        issuers: shown.all().map(|view| view.lists.issuer()).collect(),
        der: STANDARD.encode(&published.der),
    }))
}
