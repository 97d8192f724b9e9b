//! Whatever head a caller sends, in HTTP/1 or HTTP/2, of what goes on nothing belongs to the connection, nothing says in our name who
//! the caller is, and the target is a path.
#![no_main]

use countersign_proxy::steps::{Passed, Wire, element, give_back, requests};
use libfuzzer_sys::fuzz_target;

#[path = "../support/reserved.rs"]
mod reserved;

const PEER: &str = "spiffe://shop.example/web";
const PER_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "expect",
];
fn check(passed: &Passed) {
    assert!(passed.target.path().starts_with('/') || passed.target.path() == "*");
    assert!(!passed.host.as_bytes().contains(&b'@'), "a credential is no host");
    let told: Vec<&[u8]> =
        passed.fields.get_all("x-countersign-peer").iter().map(AsRef::as_ref).collect();
    assert_eq!(told, [PEER.as_bytes()], "the program is told by us, once");
    for name in passed.fields.keys().filter(|name| *name != "x-countersign-peer") {
        assert!(!reserved::names_the_caller(name.as_str()), "`{name}` goes on");
        assert!(!PER_HOP.contains(&name.as_str()), "`{name}` is of the connection");
    }
    assert!(passed.fields.get("te").is_none_or(|value| value == "trailers"));
    for framing in ["content-length", "host", "traceparent"] {
        assert!(passed.fields.get_all(framing).iter().count() <= 1, "`{framing}` is there twice");
    }
    for value in passed.came.get_all("connection") {
        for named in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let name = String::from_utf8_lossy(named).to_ascii_lowercase();
            let ours = ["", "te", "x-countersign-peer"].contains(&name.as_str());
            assert!(ours || !passed.fields.contains_key(&name), "`{name}` is of the connection");
        }
    }
    for name in passed.trailers.keys() {
        assert!(!reserved::names_the_caller(name.as_str()), "`{name}` goes on");
        assert!(!reserved::asks_for_another(name.as_str()), "`{name}` goes on");
    }
    let back = give_back(passed.came.clone());
    assert!(back.keys().all(|name| !reserved::names_the_caller(name.as_str())));
    assert!(back.keys().all(|name| !PER_HOP.contains(&name.as_str())));
}

/// An element, read as Envoy writes them: a value in quotes ends at the first quote that is not escaped.
fn read(element: &str) -> Option<(String, String)> {
    let (key, value) = element.split_once('=')?;
    let Some(mut rest) = value.strip_prefix('"').map(str::chars) else {
        return (!value.contains([',', ';', '"'])).then(|| (key.to_owned(), value.to_owned()));
    };
    let mut plain = String::new();
    loop {
        match rest.next()? {
            '\\' => plain.push(rest.next()?),
            '"' => return rest.next().is_none().then(|| (key.to_owned(), plain)),
            other => plain.push(other),
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let wire = if bytes.starts_with(b"PRI * HTTP/2") { Wire::Http2 } else { Wire::Http1 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let peer = PEER.parse().expect("it is one");
    let found = runtime.expect("a runtime").block_on(requests(bytes, wire, &peer));
    for passed in found.iter().flatten() {
        check(passed);
        for value in passed.came.values().filter_map(|value| value.to_str().ok()) {
            let again = read(&element("URI", value));
            assert_eq!(again, Some(("URI".to_owned(), value.to_owned())), "one element stays one");
        }
    }
});
