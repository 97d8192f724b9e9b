//! Heads that mean two things, claim to be somebody, or hide what else they name.

use super::certificate::{element, percent};
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
    let check = |uri, method, fields: &[(&str, &str)]| unambiguous(&request(method, uri, fields));
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
        let mut headers = request("GET", "/", &[(name, "spiffe://a/b"), ("x-kept", "1")]).headers;
        strip_reserved(&mut headers);
        assert_eq!(
            headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            ["x-kept"],
            "{name}"
        );
    }
    let mut kept =
        request("GET", "/", &[("x-forwarded-client-certificate", "1"), ("x-counter", "1")]).headers;
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
    assert_eq!(check(&[("connection", "Upgrade"), ("upgrade", "websocket")]).unwrap(), "websocket");
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

#[test]
fn an_answer_says_its_length_as_one_number() {
    let framed = |said: &[&str]| {
        let fields = said.iter().map(|said| HeaderValue::from_str(said).unwrap());
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(CONTENT_LENGTH, field);
        }
        frame(&mut headers)?;
        let left = headers.get_all(CONTENT_LENGTH).iter();
        Ok(left.map(|left| left.to_str().unwrap().to_owned()).collect::<Vec<_>>())
    };
    let once = |said: &str| Ok(vec![said.to_owned()]);
    assert_eq!(framed(&[]), Ok(vec![]));
    assert_eq!(framed(&["0"]), once("0"));
    assert_eq!(framed(&["5", "5"]), once("5"));
    assert_eq!(framed(&["5, 5"]), once("5"));
    assert_eq!(framed(&["5,5", "5"]), once("5"));
    // Also where hyper does not look at it, as in answers to `HEAD`.
    for wrong in ["+5", "", "5,", "5, 6", "0x5", "5 5", "55555555555555555555"] {
        assert_eq!(framed(&[wrong]), Err(BadAnswer::Length(wrong.to_owned())), "{wrong:?}");
    }
    assert_eq!(framed(&["5", "6"]), Err(BadAnswer::Length("5, 6".to_owned())));
}
