//! What a leaf says, and that it can be said in one way only.

#![expect(clippy::unwrap_used, reason = "what a test sets up may fail loudly")]

use countersign_audit::{
    BadLeaf, DETAILS_BYTES_MAX, Entry, Event, EventKind, LEAF_BYTES_MAX, Leaf, LeafRefused, body,
    leaf_hash,
};
use countersign_identity::{Revision, Serial, Sha256, Timestamp};
use proptest::prelude::*;
use serde_json::json;

const AT: Revision = Revision { incarnation: 1, number: 412 };

fn issued() -> Event {
    let at = "2026-11-21T12:00:00Z".parse().unwrap();
    let serial = Serial::from_bytes([0x41; 16]).unwrap();
    Event::new(EventKind::SvidIssued, at, "server", "spiffe://shop.example/web")
        .with_certificate(serial, Sha256::from_bytes([0xab; 32]))
        .with_details(json!({"notAfter": "2026-11-21T13:00:00Z", "keyType": "ecdsa-p256"}))
}

/// The form is fixed: a verifier of another make reads it.
#[test]
fn a_leaf_is_canonical_json_with_these_members() {
    let leaf = Leaf::new(&issued(), AT, [7; 16]).unwrap();
    let expected = format!(
        concat!(
            r#"{{"actor":"server","at":"2026-11-21T12:00:00Z","body":"{}","incarnation":1,"#,
            r#""kind":"svid-issued","revision":412,"serial":"{}","#,
            r#""subject":"spiffe://shop.example/web","tbs":"{}","v":1}}"#
        ),
        body(&[7; 16], br#"{"keyType":"ecdsa-p256","notAfter":"2026-11-21T13:00:00Z"}"#),
        "41".repeat(16),
        "ab".repeat(32),
    );
    assert_eq!(String::from_utf8(leaf.bytes.clone()).unwrap(), expected);
    assert_eq!(leaf.hash, leaf_hash(expected.as_bytes()));
    assert_eq!(leaf.details, br#"{"keyType":"ecdsa-p256","notAfter":"2026-11-21T13:00:00Z"}"#);
}

#[test]
fn details_are_bound_by_their_digest_and_hidden_by_their_salt() {
    let leaf = Leaf::new(&issued(), AT, [7; 16]).unwrap();
    let entry = Entry::parse(&leaf.bytes).unwrap();
    assert_eq!(entry.body, body(&leaf.salt, &leaf.details));
    let other = Leaf::new(&issued(), AT, [8; 16]).unwrap();
    assert_ne!(entry.body, Entry::parse(&other.bytes).unwrap().body, "guessing needs the salt");
    let text = String::from_utf8(leaf.bytes).unwrap();
    assert!(!text.contains("ecdsa"), "no detail is in the leaf itself: {text}");
}

#[test]
fn what_is_too_long_is_refused_whole_and_never_cut() {
    let mut event = issued();
    event.subject = "x".repeat(LEAF_BYTES_MAX);
    assert!(matches!(Leaf::new(&event, AT, [0; 16]), Err(LeafRefused::Long { .. })));
    let event = issued().with_details(json!({"text": "x".repeat(DETAILS_BYTES_MAX)}));
    assert!(matches!(Leaf::new(&event, AT, [0; 16]), Err(LeafRefused::LongDetails { .. })));
    let event = issued().with_details(json!({"fraction": 0.5}));
    assert!(matches!(Leaf::new(&event, AT, [0; 16]), Err(LeafRefused::Details { .. })));
    let beyond = Revision { incarnation: 1, number: 1 << 53 };
    assert_eq!(Leaf::new(&issued(), beyond, [0; 16]), Err(LeafRefused::Revision(beyond)));
}

#[track_caller]
fn refused(change: impl Fn(&str) -> String, why: &BadLeaf) {
    let leaf = Leaf::new(&issued(), AT, [7; 16]).unwrap();
    let text = String::from_utf8(leaf.bytes).unwrap();
    assert!(Entry::parse(text.as_bytes()).is_ok());
    let changed = change(&text);
    assert_ne!(changed, text, "the change must change something");
    assert_eq!(&Entry::parse(changed.as_bytes()).unwrap_err(), why, "{changed}");
}

#[test]
fn a_leaf_that_two_readers_could_read_differently_is_refused() {
    let different = &BadLeaf::NotCanonical;
    refused(|text| text.replace(":1,", ": 1,"), different);
    refused(|text| format!("{text} "), different);
    refused(|text| text.replace("server", "\\u0073erver"), different);
    // Two members of one name: some readers take the first, some the last.
    refused(|text| text.replace("{", r#"{"actor":"somebody","#), different);
    refused(|text| text.replace("{", r#"{"a":1,"#), different);
    refused(|text| text.replace(",\"v\":1", ",\"v\":1,\"z\":1"), different);
    refused(|text| text.replace("12:00:00Z", "12:00:00.0Z"), different);
}

#[test]
fn an_unknown_kind_or_version_is_refused() {
    refused(|text| text.replace("svid-issued", "svid-revoked"), &BadLeaf::Field("kind"));
    refused(|text| text.replace("\"v\":1", "\"v\":2"), &BadLeaf::Field("v"));
    refused(|text| text.replace(":412", ":-1"), &BadLeaf::Field("revision"));
    refused(|text| text.replace(":412", ":\"412\""), &BadLeaf::Field("revision"));
    refused(|text| text.replace("\"serial\":\"41", "\"serial\":\"4"), &BadLeaf::Field("serial"));
    refused(|text| text.replace("abab", "ABAB"), &BadLeaf::Field("tbs"));
    refused(|text| format!("[{text}]"), &BadLeaf::NotJson);
    refused(|text| text[..text.len() - 1].to_owned(), &BadLeaf::NotJson);
    let long = BadLeaf::Long { bytes: LEAF_BYTES_MAX + 1 };
    refused(|text| format!("{text:1025}"), &long);
}

proptest! {
    #[test]
    fn what_is_written_reads_back(actor in ".{0,60}", subject in ".{0,60}", at: i64, number in 0..1_u64 << 53) {
        let mut event = issued();
        (event.actor, event.subject, event.at) = (actor, subject, Timestamp::from_micros(at));
        let revision = Revision { incarnation: 1, number };
        let leaf = Leaf::new(&event, revision, [1; 16]).unwrap();
        let entry = Entry::parse(&leaf.bytes).unwrap();
        prop_assert_eq!(&entry.actor, &event.actor);
        prop_assert_eq!(&entry.subject, &event.subject);
        prop_assert_eq!((entry.at, entry.revision), (event.at, revision));
        prop_assert_eq!((entry.serial, entry.tbs), (event.serial, event.tbs));
        // Any other reader of JSON sees the same.
        let value: serde_json::Value = serde_json::from_slice(&leaf.bytes).unwrap();
        prop_assert_eq!(value["actor"].as_str().unwrap(), event.actor);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        prop_assert!(Entry::parse(&bytes).is_err());
    }
}
