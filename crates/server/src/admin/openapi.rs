//! The description of the interface, made from the code of the routes.

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::OpenApi;

use crate::admin::{
    approval, ask, authority, change, console, history, list, log, plan, policy, review, revoke,
};

/// Operators' interface.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Countersign: operators' interface",
        description = "HTTP and JSON on the server's Unix socket. It admits root and the owner of the data directory. \
                       Refusals are problems of RFC 9457 with a stable `code`."
    ),
    paths(
        ask::live,
        ask::ready,
        openapi,
        ask::status,
        ask::resources,
        ask::bundle,
        ask::nodes,
        ask::handshakes,
        ask::handshake_history,
        ask::events,
        change::apply,
        console::link,
        change::remove_resource,
        change::create_token,
        change::remove_node,
        revoke::revoke,
        revoke::revocations,
        revoke::suspend,
        revoke::resume,
        revoke::resume_issuing,
        revoke::accept_clock,
        revoke::convergence,
        authority::authorities,
        authority::report,
        authority::request,
        authority::import,
        authority::approve,
        authority::step,
        authority::rotate_root,
        authority::rotate_issuer,
        authority::recover,
        list::crl,
        log::log,
        log::leaves,
        log::tile_hashes,
        log::checkpoint,
        log::tile,
        log::proof,
        revoke::try_out,
        policy::explain,
        policy::flows,
        policy::inventory,
        review::reviews,
        review::start,
        review::report,
        review::sign,
        plan::plan,
        approval::approve,
        history::history,
        history::rollback,
    )
)]
struct Description;

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "An OpenAPI description")))]
pub(crate) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], text())
}

/// The description as JSON.
pub(crate) fn text() -> String {
    Description::openapi().to_pretty_json().expect("texts and maps always have a JSON form")
}
