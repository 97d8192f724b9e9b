//! The head of a request as the protocol wants it over which it is sent on.

use countersign_identity::Code;
use http::header::{COOKIE, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Uri, Version, uri};
use http_body::Body as _;

use crate::body::Body;
use crate::session::Spoken;
use crate::upstream::Failed;

/// Writes the target and the host as the protocol wants them.
pub(crate) fn address_to(
    request: &mut Request<Body>,
    spoken: Spoken,
    host: &HeaderValue,
) -> Result<(), Failed> {
    let written = match spoken {
        Spoken::Http2 => absolute(request, host),
        Spoken::Http1 | Spoken::Either => origin(request, host),
    };
    written.map_err(|error| {
        let detail = format!("the target cannot be passed on: {error}");
        Failed { code: Code::NotUnderstood, detail, again: None }
    })
}

fn origin(request: &mut Request<Body>, host: &HeaderValue) -> Result<(), http::Error> {
    let mut parts = uri::Parts::default();
    parts.path_and_query = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from_parts(parts)?;
    request.headers_mut().insert(HOST, host.clone());
    join_cookies(request.headers_mut());
    *request.version_mut() = Version::HTTP_11;
    if is_of_unknown_length(request) {
        // hyper sends a body with these methods only where the fields say so, and else leaves it out without a word.
        let chunked = HeaderValue::from_static("chunked");
        request.headers_mut().insert(TRANSFER_ENCODING, chunked);
    }
    Ok(())
}

/// HTTP/2 lets a caller split them into several fields. Programs that speak HTTP/1.1 would join those by commas, or read the first, so
/// that they have to be one again by then (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() < 2 {
        return;
    }
    let joined = HeaderValue::from_bytes(&cookies.join(&b"; "[..]));
    headers.insert(COOKIE, joined.expect("parts of fields and what is between them are a field"));
}

/// Whether it has a body, as few requests of its method have, of which nobody knows how long it is.
fn is_of_unknown_length(request: &Request<Body>) -> bool {
    let body = request.body();
    matches!(*request.method(), Method::GET | Method::HEAD)
        && !body.is_end_stream()
        && body.size_hint().exact().is_none()
}

fn absolute(request: &mut Request<Body>, host: &HeaderValue) -> Result<(), http::Error> {
    let mut parts = uri::Parts::default();
    parts.scheme = Some(uri::Scheme::HTTPS);
    parts.authority = Some(uri::Authority::try_from(host.as_bytes())?);
    parts.path_and_query = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from_parts(parts)?;
    request.headers_mut().remove(HOST);
    // From a try over HTTP/1.1.
    request.headers_mut().remove(TRANSFER_ENCODING);
    *request.version_mut() = Version::HTTP_2;
    Ok(())
}
