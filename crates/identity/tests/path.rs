//! The canonical form of a path, held against a second reading of it and against what others take a path for.

#[path = "support/readings.rs"]
mod readings;

use countersign_identity::CanonicalPath;
use proptest::prelude::*;

#[track_caller]
fn read_alike(raw: &str) {
    let ours = CanonicalPath::of(raw).ok();
    let ours = ours.as_ref().map(CanonicalPath::as_str);
    assert_eq!(ours, readings::form(raw).as_deref(), "{raw:?}");
    let Some(form) = ours else { return };
    assert_eq!(readings::form(form).as_deref(), Some(form), "it stays what it is");
    assert!(readings::unambiguous(form), "{raw:?} is read in another way by some");
}

#[test]
fn lookalikes_of_separators_are_refused_however_they_are_written() {
    for raw in [
        "/a/%E2%80%A5/b",
        "/a/%ef%bc%8e%ef%bc%8e/b",
        "/a%EF%BC%8Fb",
        "/a%E2%88%95b",
        "/a%CD%BEb",
        "/a%ef%bc%bcb",
        "/a/..%20/b",
        "/a/%20../b",
        "/a/%2e%20/b",
        "/a/%20",
        "/a/%20/b",
        "/a/b%20",
    ] {
        assert!(CanonicalPath::of(raw).is_err(), "{raw}");
        read_alike(raw);
    }
    for raw in ["/caf%C3%A9", "/a/...", "/a/%E2%80%A6", "/%E6%97%A5%E6%9C%AC", "/a%20b", "/a/..b"] {
        assert!(CanonicalPath::of(raw).is_ok(), "{raw}");
        read_alike(raw);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_other_reader_takes_a_canonical_path_for_another(
        parts in prop::collection::vec(prop::sample::select(&[
            "/", "/", "a", "b", "admin", ".", "..", "%2e", "%2E", "%2f", "%5c", "\\", ";", "%3b", "%", "%25", "%00", "%0a", "%20",
            "+", "?", "#", "%3f", "%23", "%61", "%c3%a9", "é", "%E2%80%A5", "%ef%bc%8f", "~", "%7e", ":", "@", "%40", " ", "\t", "%c0%ae",
        ][..]), 0..9),
    ) {
        read_alike(&parts.concat());
        read_alike(&format!("/{}", parts.concat()));
    }

    #[test]
    fn whatever_the_text_both_readings_say_the_same(raw in "/?\\PC{0,24}") {
        read_alike(&raw);
    }
}
