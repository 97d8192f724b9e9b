//! What of a message's head may pass from one connection to the next, and what never does.

mod certificate;

use countersign::{is_overriding, is_reserved};
use countersign_identity::SpiffeId;
use countersign_program::trace::Context;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Version, request, uri};

pub(crate) use self::certificate::{CERTIFICATE_HEADER, Told, client_certificate, element};
use crate::trace;

/// Who is at the other end of the mutual TLS connection. Only the proxy beside the program sets it; whatever
/// arrives under this name, or any other that is reserved, is taken out first.
pub(crate) const PEER_HEADER: HeaderName = HeaderName::from_static("x-countersign-peer");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Fields that belong to one connection, whether it says so or not.
const PER_HOP: [HeaderName; 10] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HTTP2_SETTINGS,
    EXPECT,
];

/// Fields which a `Connection` field must not name: to take one out on the way changes what the message means.
const NEVER_PER_HOP: [HeaderName; 8] = [
    HOST,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    CONTENT_ENCODING,
    CONTENT_RANGE,
    AUTHORIZATION,
    COOKIE,
    TRAILER,
];

/// Why a request is not passed on. All of them are answered with 400, except for `CONNECT`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    #[error("the request names no host")]
    NoHost,
    #[error("the request names its host more than once")]
    SeveralHosts,
    #[error("the request names host `{host}` and authority `{authority}`, which differ")]
    HostDiffers { host: String, authority: String },
    #[error("`{0}` is not the name of a host")]
    BadHost(String),
    #[error(
        "the `Connection` field names `{0}`, which belongs to the message and not to the connection"
    )]
    PerHop(HeaderName),
    #[error("the `Connection` field holds `{0}`, which is no name of a field")]
    NoOption(String),
    #[error("the target of the request is not a path")]
    BadTarget,
    #[error("the request asks for more than one length or encoding of its body")]
    Framing,
    #[error("`CONNECT` is for forward proxies, which this is not")]
    Connect,
}

/// Why an answer is not passed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadAnswer {
    #[error("its body is encoded as `{0}`, and nothing but `chunked` can be passed on")]
    Encoding(String),
    #[error("it says `{0}` of its length, which is not one number")]
    Length(String),
    #[error("it changes the protocol, which nobody had asked for")]
    Unasked,
    #[error("it changes the protocol, and not to one that it names and that can be passed on")]
    NoProtocol,
}

/// Which host a request is for, once every reader takes it for the same request.
pub(crate) fn read(head: &request::Parts) -> Result<HeaderValue, BadRequest> {
    unambiguous(head)?;
    host(head)
}

/// Makes of a request's fields those that go on with it: what belongs to one connection, and what the caller says in our name, is
/// taken out, and what we have to say of it is put in.
pub(crate) fn forward(
    headers: &mut HeaderMap,
    span: Option<Context>,
    (peer, certificate): (Option<&HeaderValue>, Option<&HeaderValue>),
) -> Result<(), BadRequest> {
    strip_request(headers)?;
    strip_reserved(headers);
    trace::carry(headers, span);
    if let Some(peer) = peer {
        headers.insert(PEER_HEADER, peer.clone());
    }
    if let Some(certificate) = certificate {
        headers.insert(CERTIFICATE_HEADER, certificate.clone());
    }
    Ok(())
}

/// Makes of a response's fields those that go back with it.
pub(crate) fn give_back(headers: &mut HeaderMap) {
    strip_response(headers);
    strip_reserved(headers);
}

/// Which host the request is for: the one name that all of its places agree on.
pub(crate) fn host(head: &request::Parts) -> Result<HeaderValue, BadRequest> {
    if head.method == Method::CONNECT {
        return Err(BadRequest::Connect);
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(BadRequest::SeveralHosts);
    }
    match (host, head.uri.authority()) {
        (Some(host), Some(authority))
            if !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            Err(BadRequest::HostDiffers {
                host: shown(host.as_bytes()),
                authority: authority.as_str().to_owned(),
            })
        }
        (Some(host), Some(authority)) => nameless(authority).map(|()| host.clone()),
        (Some(host), None) => {
            let authority = uri::Authority::try_from(host.as_bytes());
            let authority =
                authority.map_err(|_source| BadRequest::BadHost(shown(host.as_bytes())))?;
            nameless(&authority).map(|()| host.clone())
        }
        (None, Some(authority)) => {
            nameless(authority)?;
            let host = HeaderValue::from_str(authority.as_str());
            host.map_err(|_source| BadRequest::BadHost(authority.as_str().to_owned()))
        }
        // HTTP/1.0 has no such field; what is behind us expects one.
        (None, None) if head.version <= Version::HTTP_10 => {
            Ok(HeaderValue::from_static("localhost"))
        }
        (None, None) => Err(BadRequest::NoHost),
    }
}

/// A name before an `@` would be a credential to some readers and a host to others.
fn nameless(authority: &uri::Authority) -> Result<(), BadRequest> {
    let text = authority.as_str();
    if text.contains('@') { Err(BadRequest::BadHost(shown(text.as_bytes()))) } else { Ok(()) }
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(80).collect()
}

/// Refuses what two readers could take for two different messages, as far as hyper has let it through.
pub(crate) fn unambiguous(head: &request::Parts) -> Result<(), BadRequest> {
    let lengths = head.headers.get_all(CONTENT_LENGTH).iter().count();
    let encodings = head.headers.get_all(TRANSFER_ENCODING).iter().count();
    if 1 < lengths || 1 < encodings || (lengths != 0 && encodings != 0) {
        return Err(BadRequest::Framing);
    }
    match head.headers.get(TRANSFER_ENCODING) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            return Err(BadRequest::Framing);
        }
        Some(_) | None => {}
    }
    let path = head.uri.path();
    let asterisk = path == "*" && head.method == Method::OPTIONS;
    if path.starts_with('/') || asterisk { Ok(()) } else { Err(BadRequest::BadTarget) }
}

/// The protocol that the message asks to go on with, or goes on with.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut protocols = headers.get_all(UPGRADE).iter();
    let (Some(protocol), None) = (protocols.next(), protocols.next()) else { return None };
    let asked = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    // An upgrade to HTTP/2 in clear text would make the tunnel carry what nobody has looked at.
    let clear = protocol.as_bytes().to_ascii_lowercase().starts_with(b"h2c");
    (asked && !clear).then(|| protocol.clone())
}

/// The items of a list. By bytes: one that is no text must not hide the others.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let items = values.flat_map(|value| value.split(|byte| *byte == b','));
    items.map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Takes out of a request what belongs to one connection only (RFC 9110, 7.6.1).
pub(crate) fn strip_request(headers: &mut HeaderMap) -> Result<(), BadRequest> {
    for token in tokens(headers, &CONNECTION) {
        // What we do not understand, the next one may.
        let Ok(name) = HeaderName::from_bytes(token) else {
            return Err(BadRequest::NoOption(shown(token)));
        };
        if NEVER_PER_HOP.contains(&name) {
            return Err(BadRequest::PerHop(name));
        }
    }
    strip_per_hop(headers);
    Ok(())
}

/// Has an answer say in one way only where its body ends. An encoding goes before a length beside it, which whoever passes it on takes
/// out (RFC 9112, 6.3): the next one would cut the body by it.
pub(crate) fn frame(headers: &mut HeaderMap) -> Result<(), BadAnswer> {
    let encodings: Vec<_> =
        headers.get_all(TRANSFER_ENCODING).iter().map(HeaderValue::as_bytes).collect();
    match encodings[..] {
        [] => one_length(headers)?,
        [encoding] if encoding.eq_ignore_ascii_case(b"chunked") => {
            headers.remove(CONTENT_LENGTH);
        }
        // hyper leaves all others in the bytes that it gives us, and of several it asks the last.
        _ => return Err(BadAnswer::Encoding(shown(&encodings.join(&b", "[..])))),
    }
    Ok(())
}

/// Has a length that is said more than once be said once. hyper takes several that agree, and others do not: the next one would say
/// that it is our answer which breaks the rules.
fn one_length(headers: &mut HeaderMap) -> Result<(), BadAnswer> {
    let fields = || headers.get_all(CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
    let mut said = fields().flat_map(|field| field.split(|byte| *byte == b','));
    let Some(first) = said.next().map(<[u8]>::trim_ascii) else { return Ok(()) };
    let (mut repeated, mut agreed) = (false, is_length(first));
    for other in said {
        repeated = true;
        agreed &= other.trim_ascii() == first;
    }
    if !agreed {
        return Err(BadAnswer::Length(shown(&fields().collect::<Vec<_>>().join(&b", "[..]))));
    }
    if repeated {
        let once = HeaderValue::from_bytes(first).expect("digits can be said in a field");
        headers.insert(CONTENT_LENGTH, once);
    }
    Ok(())
}

/// So many digits every reader has room for.
fn is_length(text: &[u8]) -> bool {
    (1..20).contains(&text.len()) && text.iter().all(u8::is_ascii_digit)
}

/// Takes the same out of a response. What it names wrongly is kept, and does no harm: nothing is decided by it.
pub(crate) fn strip_response(headers: &mut HeaderMap) {
    strip_per_hop(headers);
}

fn named(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    tokens(headers, &CONNECTION).filter_map(|token| HeaderName::from_bytes(token).ok())
}

/// `TE: trailers` is kept, since gRPC and hyper's HTTP/1.1 server send trailers only when they see it.
fn strip_per_hop(headers: &mut HeaderMap) {
    // Most messages have none of them, and to look at the few fields there are costs less than to look each of these up.
    let present: Vec<HeaderName> =
        headers.keys().filter(|name| PER_HOP.contains(name)).cloned().collect();
    if present.is_empty() {
        return;
    }
    let kept = |name: &HeaderName| *name == TE || NEVER_PER_HOP.contains(name);
    let named: Vec<HeaderName> = named(headers).filter(|name| !kept(name)).collect();
    let trailers = tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case(b"trailers"));
    for name in named.into_iter().chain(present) {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Takes out every field by which a program learns who its caller is, in every spelling.
pub(crate) fn strip_reserved(headers: &mut HeaderMap) {
    let reserved: Vec<HeaderName> =
        headers.keys().filter(|name| is_reserved(name.as_str())).cloned().collect();
    for name in reserved {
        headers.remove(name);
    }
}

/// Takes out of trailers what programs that merge them into headers must not be told by them: who calls, and another request than the
/// one that was decided on.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap) {
    let deceives = |name: &&HeaderName| is_reserved(name.as_str()) || is_overriding(name.as_str());
    let deceiving: Vec<HeaderName> = trailers.keys().filter(deceives).cloned().collect();
    for name in deceiving {
        trailers.remove(name);
    }
}

/// What the program is told of its caller. `None` cannot be: a SPIFFE ID is printable ASCII.
pub(crate) fn peer_value(peer: &SpiffeId) -> Option<HeaderValue> {
    HeaderValue::from_str(peer.as_str()).ok()
}

#[cfg(test)]
mod tests;
