//! The console's routes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{
    DefaultBodyLimit, Extension, FromRequestParts, Path, Query, Request, State as Shared,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use countersign_identity::Code;
use serde::de::DeserializeOwned;

use crate::admin::problem::Problem;
use crate::console::assets::asset;
use crate::console::entrance::{Begun, End, Visitor};
use crate::console::frame::{answer, login};
use crate::console::gate::{guard, plain, session_cookie, set_cookie};
use crate::console::guests::Guest;
use crate::console::html::InUrl;
use crate::console::{Console, live, pages, record};
use crate::refusal::Refused;

/// The longest body: a form.
const BODY_BYTES_MAX: usize = 4096;
/// How long one page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest value of a field that is looked at.
const FIELD_BYTES_MAX: usize = 2048;

/// Every route. The gate lies outside of all of them, so that none can be forgotten.
pub(crate) fn router(console: Arc<Console>) -> Router {
    Router::new()
        .route("/", get(|ask: Ask| async move { ask.show(pages::overview(&ask).await) }))
        .route("/map", get(|ask: Ask| async move { ask.show(pages::map(&ask).await) }))
        .route("/workloads", get(|ask: Ask| async move { ask.show(pages::workloads(&ask).await) }))
        .route("/workloads/{name}", get(workload))
        .route("/nodes", get(|ask: Ask| async move { ask.show(pages::nodes(&ask).await) }))
        .route("/nodes/{id}", get(node))
        .route(
            "/authorities",
            get(|ask: Ask| async move { ask.show(pages::authorities(&ask).await) }),
        )
        .route("/policies", get(|ask: Ask| async move { ask.show(pages::policies(&ask).await) }))
        .route("/policies/{name}", get(policy))
        .route(
            "/revocations",
            get(|ask: Ask| async move { ask.show(pages::revocations(&ask).await) }),
        )
        .route("/log", get(|ask: Ask| async move { ask.show(pages::events(&ask).await) }))
        .route("/log/{index}", get(event))
        .route("/log/{index}/proof", get(proof))
        .route(
            "/handshakes",
            get(|ask: Ask| async move { ask.show(pages::handshakes(&ask).await) }),
        )
        .route("/live", get(live::live))
        .route("/login", get(door).post(enter))
        .route("/logout", post(leave))
        .route("/assets/{name}", get(file))
        .fallback(missing)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn_with_state(Arc::clone(&console), guard))
        .with_state(console)
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(PAGE_TIMEOUT, next.run(request)).await {
        Ok(answer) => answer,
        Err(_elapsed) => plain(&Refused::new(Code::TimedOut, "the page took too long")),
    }
}

/// What a page is asked for, and by whom.
pub(super) struct Ask {
    pub(super) console: Arc<Console>,
    pub(super) visitor: Visitor,
    fields: BTreeMap<String, String>,
}

impl FromRequestParts<Arc<Console>> for Ask {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        console: &Arc<Console>,
    ) -> Result<Self, Response> {
        // The gate lets nobody else come so far.
        let visitor =
            parts.extensions.get::<Visitor>().cloned().ok_or_else(|| {
                plain(&Refused::new(Code::Unauthenticated, "there is no session"))
            })?;
        let fields = Query::<BTreeMap<String, String>>::try_from_uri(&parts.uri);
        let mut fields = fields.map(|Query(fields)| fields).unwrap_or_default();
        // A form sends the fields that were left empty as well.
        fields.retain(|_, value| !value.trim().is_empty() && value.len() <= FIELD_BYTES_MAX);
        Ok(Self { console: Arc::clone(console), visitor, fields })
    }
}

impl Ask {
    /// A field of the query that is not empty.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|value| value.trim())
    }

    /// A field, or nothing, as a form shows it.
    pub(super) fn shown(&self, name: &str) -> &str {
        self.field(name).unwrap_or_default()
    }

    /// The server's own routes.
    pub(super) fn admin(&self) -> Shared<Arc<crate::admin::Admin>> {
        Shared(Arc::clone(&self.console.admin))
    }

    /// Some of the fields in the form in which the operators' routes take them.
    pub(super) fn query<T: DeserializeOwned>(
        &self,
        names: &[&str],
        more: &[(&str, String)],
    ) -> Result<Query<T>, axum::extract::rejection::QueryRejection> {
        let fields = names.iter().filter_map(|name| Some((*name, self.field(name)?.to_owned())));
        let pairs = fields.chain(more.iter().cloned());
        let pairs: Vec<String> =
            pairs.map(|(name, value)| format!("{name}={}", InUrl(value))).collect();
        let uri = format!("/?{}", pairs.join("&")).parse::<Uri>();
        Query::try_from_uri(&uri.unwrap_or_default())
    }

    /// The same page with these fields set to other values.
    pub(super) fn with(&self, path: &str, changed: &[(&str, Option<String>)]) -> String {
        let mut fields = self.fields.clone();
        for (name, value) in changed {
            match value {
                Some(value) => fields.insert((*name).to_owned(), value.clone()),
                None => fields.remove(*name),
            };
        }
        let pairs: Vec<String> = fields
            .iter()
            .map(|(name, value)| format!("{}={}", InUrl(name), InUrl(value)))
            .collect();
        if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
    }
}

async fn workload(Path(name): Path<String>, ask: Ask) -> Response {
    ask.show(pages::workload(&ask, &name).await)
}

async fn node(Path(id): Path<String>, ask: Ask) -> Response {
    ask.show(pages::node(&ask, &id).await)
}

async fn policy(Path(name): Path<String>, ask: Ask) -> Response {
    ask.show(pages::policy(&ask, &name).await)
}

async fn event(Path(index): Path<String>, ask: Ask) -> Response {
    match index.parse() {
        Ok(index) => ask.show(pages::event(&ask, index).await),
        Err(_other) => missing(ask).await,
    }
}

async fn proof(Path(index): Path<String>, ask: Ask) -> Response {
    match index.parse() {
        Ok(index) => pages::proof(&ask, index).await,
        Err(_other) => missing(ask).await,
    }
}

async fn missing(ask: Ask) -> Response {
    ask.show(Err(Problem::new(Code::NotFound, "there is no such page")))
}

async fn door(Shared(console): Shared<Arc<Console>>) -> Response {
    answer(StatusCode::OK, login(&console.admin.about.domain, None))
}

/// The value of a field of a posted form.
fn posted(body: &Bytes, name: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let uri = format!("/?{text}").parse::<Uri>().ok()?;
    let Query(mut fields) = Query::<BTreeMap<String, String>>::try_from_uri(&uri).ok()?;
    fields.remove(name)
}

async fn enter(
    Shared(console): Shared<Arc<Console>>,
    guest: Option<Extension<Arc<Guest>>>,
    body: Bytes,
) -> Response {
    let link = posted(&body, "link").unwrap_or_default();
    // The whole link is as good as what stands behind its `#`.
    let secret = link.rsplit('#').next().unwrap_or_default().trim();
    let from = guest.map(|Extension(guest)| guest.address());
    match begin(&console, secret, from).await {
        Ok(begun) => {
            let mut answer = Redirect::to("/").into_response();
            let cookie = set_cookie(&console.at, begun.secret.reveal());
            answer.headers_mut().insert(header::SET_COOKIE, cookie);
            answer
        }
        Err(refused) => {
            let page = login(&console.admin.about.domain, Some(&refused.why));
            answer(StatusCode::FORBIDDEN, page)
        }
    }
}

/// A session, once it is on record that it begins.
async fn begin(console: &Console, link: &str, from: Option<IpAddr>) -> Result<Begun, Refused> {
    let control = console.admin.control()?;
    let begun = console.at.entrance.enter(link)?;
    let admitted = console.admin.operators.admit(begun.operator);
    let recorded = match admitted {
        Ok(()) => record::session_began(control, &begun, from).await,
        Err(refused) => Err(refused),
    };
    match recorded {
        Ok(()) => Ok(begun),
        Err(refused) => {
            console.at.entrance.leave(begun.secret.reveal(), End::Refused);
            Err(refused)
        }
    }
}

async fn leave(ask: Ask, headers: HeaderMap, body: Bytes) -> Response {
    if posted(&body, "form").as_deref() != Some(ask.visitor.form.as_str()) {
        return plain(&Refused::new(Code::Forbidden, "the form is not of this session"));
    }
    let secret = session_cookie(&ask.console.at, &headers).unwrap_or_default();
    ask.console.at.entrance.leave(secret, End::SignedOut);
    let mut answer = Redirect::to("/login").into_response();
    answer.headers_mut().insert(header::SET_COOKIE, set_cookie(&ask.console.at, ""));
    answer
}

async fn file(Path(name): Path<String>) -> Response {
    asset(&name).unwrap_or_else(|| StatusCode::NOT_FOUND.into_response())
}
