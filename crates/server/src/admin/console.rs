//! The route that lets a browser look.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State as Shared};
use countersign_api::admin::{ConsoleLinkResponse, ProblemDetails};
use countersign_identity::Code;

use crate::admin::Admin;
use crate::admin::change::Operator;
use crate::admin::problem::Problem;
use crate::authority::internal;
use crate::console::{name_of, record};

/// A link to the console, which lets one browser in, once. It shows, and changes nothing.
#[utoipa::path(post, path = "/v1/console-links", responses((status = 200, body = ConsoleLinkResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn link(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
) -> Result<Json<ConsoleLinkResponse>, Problem> {
    let (control, authorities) = (admin.control()?, admin.authorities()?);
    let console = admin.console.as_ref().ok_or_else(|| {
        Problem::new(
            Code::NotReady,
            "this server has no console: start it with `--console ADDRESS`, such as `127.0.0.1:9443`",
        )
    })?;
    let (secret, expires) = console.entrance.invite(operator.0).map_err(internal)?;
    // On record before anybody has it.
    record::link_created(control, operator, name_of(&secret), expires).await?;
    let root = authorities.load().root_certificate().clone();
    Ok(Json(ConsoleLinkResponse {
        url: console.url(&format!("/login#{}", secret.reveal())),
        expires,
        root: root.to_pem(),
    }))
}
