//! What of a message's head may pass from one connection to the next, and what never does.

use std::fmt::Write;

use countersign::{is_overriding, is_reserved};
use countersign_identity::SpiffeId;
use countersign_tls::Admitted;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Version, request, uri};

/// Who is at the other end of the mutual TLS connection. Only the proxy beside the program sets it; whatever
/// arrives under this name, or any other that is reserved, is taken out first.
pub(crate) const PEER_HEADER: HeaderName = HeaderName::from_static("x-countersign-peer");
/// Set for a program whose service asks for it; whatever arrives under this name is taken out first.
pub(crate) const CERTIFICATE_HEADER: HeaderName =
    HeaderName::from_static("x-forwarded-client-cert");

/// What a program is told of its callers' certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing.
    Nothing,
    /// Who the two ends are, and the digest of the caller's certificate.
    Identity,
    /// The same, and the certificate.
    Certificate,
    /// The same, and those of the issuers on the path that was verified.
    Chain,
}

/// The longest chain that a program is told of, as it stands in the field. A longer one is left out, whole.
const CHAIN_BYTES_MAX: usize = 16 * 1024;

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

/// What the program is told of the certificate by which its caller came in: one element, as Envoy writes it, in the order in
/// which Envoy writes it.
pub(crate) fn client_certificate(
    told: Told,
    admitted: &Admitted,
    chain: &str,
) -> Option<HeaderValue> {
    let (peer, local) = (admitted.peer()?, admitted.local()?);
    let by = || element("By", local.as_str());
    let hash = || element("Hash", &peer.leaf.digest().to_string());
    let uri = || element("URI", peer.id.as_str());
    let certificate = || element("Cert", &percent(&peer.leaf.to_pem()));
    let text = match told {
        Told::Nothing => return None,
        Told::Identity => [by(), hash(), uri()].join(";"),
        Told::Certificate => [by(), hash(), certificate(), uri()].join(";"),
        Told::Chain => {
            let chain = Some(element("Chain", &percent(chain)));
            let chain = chain.filter(|element| element.len() <= CHAIN_BYTES_MAX);
            let known = [by(), hash(), certificate()].into_iter();
            known.chain(chain).chain([uri()]).collect::<Vec<_>>().join(";")
        }
    };
    HeaderValue::try_from(text).ok()
}

/// `key=value`. What would end a value too early stands in quotes, and a quote in it is escaped.
fn element(key: &str, value: &str) -> String {
    if value.contains([',', ';', '=', '"', '%', '\\']) {
        let escaped = value.replace('\\', r"\\").replace('"', r#"\""#);
        return format!("{key}=\"{escaped}\"");
    }
    format!("{key}={value}")
}

/// The PEM of a certificate in one line: what is neither letter nor digit nor `-` is written as `%` and two digits.
fn percent(pem: &str) -> String {
    let mut text = String::with_capacity(pem.len() * 9 / 8);
    for byte in pem.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            text.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// What the program is told of its caller. `None` cannot be: a SPIFFE ID is printable ASCII.
pub(crate) fn peer_value(peer: &SpiffeId) -> Option<HeaderValue> {
    HeaderValue::from_str(peer.as_str()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str, fields: &[(&str, &str)]) -> request::Parts {
        let mut builder = http::Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[track_caller]
    fn hosts(uri: &str, fields: &[(&str, &str)], expected: Result<&str, BadRequest>) {
        let found = host(&request("GET", uri, fields));
        assert_eq!(
            found,
            expected.map(|host| HeaderValue::from_str(host).unwrap()),
            "{uri} {fields:?}"
        );
    }

    #[test]
    fn the_host_is_the_one_that_all_places_agree_on() {
        hosts("/", &[("host", "orders")], Ok("orders"));
        hosts("http://orders/", &[("host", "Orders")], Ok("Orders"));
        hosts("http://orders:80/", &[], Ok("orders:80"));
        hosts("/", &[], Err(BadRequest::NoHost));
        hosts("/", &[("host", "a"), ("host", "a")], Err(BadRequest::SeveralHosts));
        hosts("/", &[("host", "a/b")], Err(BadRequest::BadHost("a/b".into())));
        hosts("/", &[("host", "")], Err(BadRequest::BadHost(String::new())));
        hosts("/", &[("host", "u@a")], Err(BadRequest::BadHost("u@a".into())));
        let differs = BadRequest::HostDiffers { host: "b".into(), authority: "a".into() };
        hosts("http://a/", &[("host", "b")], Err(differs));
        assert_eq!(host(&request("CONNECT", "a:1", &[("host", "a:1")])), Err(BadRequest::Connect));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let check =
            |uri, method, fields: &[(&str, &str)]| unambiguous(&request(method, uri, fields));
        assert_eq!(check("/", "GET", &[]), Ok(()));
        assert_eq!(check("*", "OPTIONS", &[]), Ok(()));
        assert_eq!(check("*", "GET", &[]), Err(BadRequest::BadTarget));
        assert_eq!(check("/", "POST", &[("content-length", "1")]), Ok(()));
        let both = [("content-length", "1"), ("transfer-encoding", "chunked")];
        assert_eq!(check("/", "POST", &both), Err(BadRequest::Framing));
        let twice = [("content-length", "1"), ("content-length", "1")];
        assert_eq!(check("/", "POST", &twice), Err(BadRequest::Framing));
        for odd in ["gzip, chunked", "xchunked", "chunked, identity", "\tchunked x", "identity"] {
            assert_eq!(
                check("/", "POST", &[("transfer-encoding", odd)]),
                Err(BadRequest::Framing),
                "{odd}"
            );
        }
    }

    #[test]
    fn fields_of_one_connection_stay_there() {
        let mut headers = request(
            "GET",
            "/",
            &[
                ("connection", "keep-alive, x-mine"),
                ("connection", "TE"),
                ("x-mine", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "gzip, trailers"),
                ("upgrade", "websocket"),
                ("proxy-authorization", "basic x"),
                ("accept", "*/*"),
                ("trailer", "grpc-status"),
            ],
        )
        .headers;
        strip_request(&mut headers).unwrap();
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "te", "trailer"]);
        assert_eq!(headers[TE], "trailers");
    }

    #[test]
    fn a_message_cannot_have_its_own_meaning_stripped_on_the_way() {
        for name in ["host", "Content-Length", "authorization", "cookie"] {
            let mut headers = request("GET", "/", &[("connection", name)]).headers;
            assert!(matches!(strip_request(&mut headers), Err(BadRequest::PerHop(_))), "{name}");
        }
    }

    /// A head with one `Connection` field of these bytes, which may be no text, and two fields that it may name.
    fn connected(value: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.append(CONNECTION, HeaderValue::from_bytes(value).unwrap());
        headers.append("x-mine", HeaderValue::from_static("1"));
        headers.append("x-kept", HeaderValue::from_static("1"));
        headers
    }

    #[test]
    fn no_byte_in_it_hides_what_else_the_connection_names() {
        for value in [
            b"x-mine, \xe9".as_slice(),
            b"\xff,x-mine",
            b"close, x-mine, caf\xc3\xa9",
            b"x-mine, a b",
            b"x-mine, \"close\"",
            b"x-mine;q=1",
        ] {
            let bad = strip_request(&mut connected(value));
            assert!(matches!(bad, Err(BadRequest::NoOption(_))), "{value:?}");
            // It is not for us to refuse an answer: what can be read of it counts.
            let mut answer = connected(value);
            strip_response(&mut answer);
            assert_eq!(answer.contains_key("x-mine"), value == b"x-mine;q=1", "{value:?}");
            assert!(!answer.contains_key(CONNECTION) && answer.contains_key("x-kept"));
        }
        for value in [b"x-mine".as_slice(), b" ,close,\t x-MINE ,, ", b"keep-alive,X-Mine"] {
            let mut headers = connected(value);
            assert_eq!(strip_request(&mut headers), Ok(()));
            assert_eq!(headers.len(), 1, "{value:?}");
        }
        let asked = |value: &[u8]| {
            let mut headers = connected(value);
            headers.append(UPGRADE, HeaderValue::from_static("echo"));
            upgrade(&headers).is_some()
        };
        assert!(asked(b"Upgrade") && asked(b"\xe9, upgrade") && !asked(b"upgrade\xe9"));
    }

    #[test]
    fn who_the_caller_is_cannot_be_said_by_the_caller() {
        for name in [
            "x-countersign-peer",
            "X-Countersign-Peer",
            "x_countersign_peer",
            "x-countersign_anything",
            "x-forwarded-client-cert",
            "X_Forwarded_Client_Cert",
        ] {
            let mut headers =
                request("GET", "/", &[(name, "spiffe://a/b"), ("x-kept", "1")]).headers;
            strip_reserved(&mut headers);
            assert_eq!(
                headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
                ["x-kept"],
                "{name}"
            );
        }
        let mut kept =
            request("GET", "/", &[("x-forwarded-client-certificate", "1"), ("x-counter", "1")])
                .headers;
        strip_reserved(&mut kept);
        assert_eq!(kept.len(), 2);
    }

    #[test]
    fn trailers_say_neither_who_calls_nor_that_another_request_is_meant() {
        let fields = [
            ("x-countersign-peer", "spiffe://a/b"),
            ("x_forwarded_client_cert", "By=spiffe://a/b"),
            ("x-http-method-override", "DELETE"),
            ("X_Original_URL", "/admin"),
            ("x-checksum", "1"),
        ];
        let mut trailers = request("GET", "/", &fields).headers;
        strip_trailers(&mut trailers);
        assert_eq!(trailers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-checksum"]);
    }

    #[test]
    fn upgrades_are_asked_for_in_one_way_and_never_to_clear_http_2() {
        let check = |fields: &[(&str, &str)]| upgrade(&request("GET", "/", fields).headers);
        assert_eq!(
            check(&[("connection", "Upgrade"), ("upgrade", "websocket")]).unwrap(),
            "websocket"
        );
        assert_eq!(check(&[("connection", "keep-alive, upgrade"), ("upgrade", "x")]).unwrap(), "x");
        assert_eq!(check(&[("upgrade", "websocket")]), None);
        assert_eq!(check(&[("connection", "upgrade")]), None);
        assert_eq!(check(&[("connection", "upgrade"), ("upgrade", "h2c")]), None);
        assert_eq!(check(&[("connection", "upgrade"), ("upgrade", "H2C, websocket")]), None);
        assert_eq!(check(&[("connection", "upgrade"), ("upgrade", "a"), ("upgrade", "b")]), None);
    }

    #[test]
    fn no_value_ends_too_early() {
        for (value, expected) in [
            ("spiffe://a/b-c_d.e", "By=spiffe://a/b-c_d.e"),
            ("a,By=b", r#"By="a,By=b""#),
            ("a;URI=b", r#"By="a;URI=b""#),
            (r#"a",By="b"#, r#"By="a\",By=\"b""#),
            (r"a\", r#"By="a\\""#),
            ("", "By="),
        ] {
            assert_eq!(element("By", value), expected);
        }
        let pem = "-----BEGIN X-----\na+/b==\n";
        assert_eq!(percent(pem), "-----BEGIN%20X-----%0Aa%2B%2Fb%3D%3D%0A");
    }

    /// As CGI and its like name the field of a header.
    fn variable(name: &str) -> String {
        name.to_ascii_uppercase().replace('-', "_")
    }

    proptest::proptest! {
        #[test]
        fn no_spelling_of_a_reserved_name_gets_through(
            names in proptest::collection::vec("[xX][-_][a-zA-Z_-]{0,30}|[xX][-_][cC]ountersign[-_][a-z]{0,5}|[xX][-_]forwarded[-_]client[-_]cert[s]?", 0..20),
        ) {
            let mut headers = HeaderMap::new();
            for name in &names {
                headers.append(HeaderName::try_from(name.as_str()).unwrap(), HeaderValue::from_static("1"));
            }
            strip_reserved(&mut headers);
            let left: Vec<String> = headers.keys().map(|name| variable(name.as_str())).collect();
            for name in names {
                let name = variable(&name);
                let reserved = name.starts_with("X_COUNTERSIGN_") || name == "X_FORWARDED_CLIENT_CERT";
                proptest::prop_assert_eq!(left.contains(&name), !reserved, "{}", name);
            }
        }
    }
}
