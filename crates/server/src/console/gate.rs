//! What is asked of each request before any route sees it, and what each answer says to browsers.

use std::sync::Arc;

use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use countersign_identity::Code;

use crate::console::entrance::{By, End, Visitor};
use crate::console::guests::Guest;
use crate::console::{Console, ConsoleAt, without_default_port};
use crate::refusal::{Refused, http_status};

/// A browser runs nothing that is not a file of ours, asks nobody but us, is in nobody's frame, and turns no text into markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// Paths that answer those who have no session.
fn is_open(path: &str) -> bool {
    path == "/login" || path.starts_with("/assets/")
}

/// Lets a request through, or says why not.
pub(super) async fn guard(
    Shared(console): Shared<Arc<Console>>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let mut answer = match admit(&console, &request) {
        Ok(Admitted::Visitor(visitor)) => {
            request.extensions_mut().insert(visitor);
            next.run(request).await
        }
        Ok(Admitted::Stranger) => next.run(request).await,
        Err(refused) if refused.code == Code::Unauthenticated && wants_a_page(&request) => {
            Redirect::to("/login").into_response()
        }
        Err(refused) => plain(&refused),
    };
    if path != "/live" && !answer.headers().contains_key(header::CACHE_CONTROL) {
        answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    let said = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // With no referrer at all, browsers would not tell the origin of our own forms either.
        (header::REFERRER_POLICY, "same-origin"),
    ];
    for (name, value) in said {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    for (name, value) in [
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ] {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

enum Admitted {
    Visitor(Visitor),
    Stranger,
}

fn admit(console: &Console, request: &Request) -> Result<Admitted, Refused> {
    let (headers, path) = (request.headers(), request.uri().path());
    let host = host(request)?;
    if !console.at.is(host) {
        // Some other name leads here: a page of somebody else's may have made it do so.
        return Err(Refused::new(Code::NotFound, "the console is not at this address"));
    }
    same_origin(request.method(), headers, host)?;
    let guest = request.extensions().get::<Arc<Guest>>();
    let visitor = visitor(console, headers, path);
    match visitor {
        Ok(visitor) => {
            guest.iter().for_each(|guest| guest.welcome());
            Ok(Admitted::Visitor(visitor))
        }
        Err(refused) if refused.code != Code::RateLimited && is_open(path) => {
            // A connection without an address is none of the door's.
            let from = guest.map(|guest| guest.address());
            match from.is_some_and(|from| console.at.entrance.has_room_for_stranger(from)) {
                true => Ok(Admitted::Stranger),
                false => {
                    let why = "too many requests without a session come from there";
                    Err(Refused::new(Code::RateLimited, why))
                }
            }
        }
        Err(refused) => Err(refused),
    }
}

/// Whose session the request belongs to, and whether that operator may still administer.
fn visitor(console: &Console, headers: &HeaderMap, path: &str) -> Result<Visitor, Refused> {
    let secret = session_cookie(&console.at, headers)
        .ok_or_else(|| Refused::new(Code::Unauthenticated, "there is no session"))?;
    let visitor = console.at.entrance.visitor(secret, by(path, headers))?;
    // Rights are looked at again each time: they may have been taken away since, and then the session is over.
    if let Err(refused) = console.admin.operators.admit(visitor.operator) {
        console.at.entrance.leave(secret, End::Refused);
        return Err(refused);
    }
    Ok(visitor)
}

/// Under which name the browser reached us: HTTP/2 says it in the address, HTTP/1.1 in a header.
fn host(request: &Request) -> Result<&str, Refused> {
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let addressed = request.uri().authority().map(http::uri::Authority::as_str);
    match (addressed, named) {
        (Some(one), Some(other)) if one != other => {
            Err(Refused::new(Code::NotUnderstood, "the request names two hosts"))
        }
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) => Err(Refused::new(Code::NotUnderstood, "the request names no host")),
    }
}

/// Whether it was our own page that asks, or somebody who typed the address or followed a link to it.
///
/// Other ports of the same host are the same site to a browser, so cookies alone keep none of them out.
fn same_origin(method: &Method, headers: &HeaderMap, host: &str) -> Result<(), Refused> {
    let forged = |why| Err(Refused::new(Code::Forbidden, why));
    let said = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let looks = method == Method::GET || method == Method::HEAD;
    match said("sec-fetch-site") {
        None | Some("same-origin") => {}
        Some("none") if looks => {}
        Some(_other)
            if looks
                && said("sec-fetch-mode") == Some("navigate")
                && said("sec-fetch-dest") == Some("document") => {}
        Some(_other) => return forged("another site's page asked for this"),
    }
    match said("origin") {
        Some(origin) if is_same(origin, host) => Ok(()),
        Some(_other) => forged("another site's page asked for this"),
        None if looks => Ok(()),
        None => forged("a request that changes something must say which page it comes from"),
    }
}

/// Whether an origin is the host that was asked. Either may leave out the port that goes without saying.
fn is_same(origin: &str, host: &str) -> bool {
    let origin = origin.strip_prefix("https://").map(without_default_port);
    origin.is_some_and(|origin| origin.eq_ignore_ascii_case(without_default_port(host)))
}

/// The secret of the session, if the request carries exactly one.
pub(super) fn session_cookie<'a>(at: &ConsoleAt, headers: &'a HeaderMap) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let pairs =
        lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut ours = pairs.filter(|(name, _)| *name == at.cookie).map(|(_, value)| value);
    // With two of them, one was planted.
    match (ours.next(), ours.next()) {
        (Some(secret), None) => Some(secret),
        (None, _) | (Some(_), Some(_)) => None,
    }
}

/// What sets the cookie of a session, or takes it back when there is no secret.
pub(super) fn set_cookie(at: &ConsoleAt, secret: &str) -> HeaderValue {
    let age = if secret.is_empty() { "; Max-Age=0" } else { "" };
    let name = &at.cookie;
    let cookie = format!("{name}={secret}; Path=/; Secure; HttpOnly; SameSite=Strict{age}");
    HeaderValue::from_str(&cookie).expect("a port and base64 are of ASCII")
}

fn by(path: &str, headers: &HeaderMap) -> By {
    let own = path == "/live" || is_open(path) || headers.contains_key("countersign-refresh");
    if own { By::Itself } else { By::Hand }
}

fn wants_a_page(request: &Request) -> bool {
    let path = request.uri().path();
    request.method() == Method::GET
        && path != "/live"
        && !request.headers().contains_key("countersign-refresh")
}

/// A refusal for which no page is worth making.
pub(super) fn plain(refused: &Refused) -> Response {
    let status = match refused.code {
        Code::NotFound => StatusCode::MISDIRECTED_REQUEST,
        code => http_status(code),
    };
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (status, kind, format!("{}: {}\n", refused.code, refused.why)).into_response()
}
