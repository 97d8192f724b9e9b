//! The accept and reject lists of the SPIFFE-ID standard.

use countersign_identity::{SpiffeId, TrustDomain};
use proptest::prelude::*;

#[track_caller]
fn accepted(text: &str) -> SpiffeId {
    match text.parse::<SpiffeId>() {
        Ok(id) => {
            assert_eq!(id.as_str(), text);
            id
        }
        Err(error) => panic!("{text:?}: {error}"),
    }
}

#[track_caller]
fn refused(text: &str, why: &str) {
    match text.parse::<SpiffeId>() {
        Ok(id) => panic!("{text:?} was taken for {id}"),
        Err(error) => assert!(error.to_string().contains(why), "{text:?}: {error}"),
    }
}

#[test]
fn what_the_standard_allows_is_accepted() {
    for text in [
        "spiffe://shop.example",
        "spiffe://shop.example/orders",
        "spiffe://shop.example/a/b/c",
        "spiffe://shop.example/UPPER/Case",
        "spiffe://shop.example/a..b",
        "spiffe://shop.example/...",
        "spiffe://shop.example/.a/b./-/_/0",
        "spiffe://shop_1.example-2/x",
        "spiffe://10.0.0.1/x",
        "spiffe://1/x",
        "spiffe://-._/x",
        "spiffe://localhost/x",
    ] {
        accepted(text);
    }
}

#[test]
fn the_scheme_alone_is_read_without_case() {
    let id: SpiffeId = "SPIFFE://shop.example/Orders".parse().unwrap();
    assert_eq!(id.as_str(), "spiffe://shop.example/Orders");
    assert_ne!(id, accepted("spiffe://shop.example/orders"));
}

#[test]
fn what_is_no_spiffe_scheme_is_refused() {
    for text in [
        "",
        "spiffe",
        "spiffe:",
        "spiffe:/",
        "spiffe:/shop.example/a",
        "shop.example/a",
        "//shop.example/a",
        "https://shop.example/a",
        "spiffes://shop.example/a",
        "xspiffe://shop.example/a",
        " spiffe://shop.example/a",
        "\u{feff}spiffe://shop.example/a",
        "spiffe%3a//shop.example/a",
        "spiffé://shop.example/a",
    ] {
        refused(text, "does not begin with `spiffe://`");
    }
}

#[test]
fn trust_domains_with_anything_but_the_name_are_refused() {
    refused("spiffe://", "trust domain is empty");
    refused("spiffe:///a", "trust domain is empty");
    for domain in [
        "shop.example:80",
        "shop.example:",
        "user@shop.example",
        "user:pass@shop.example",
        "@shop.example",
        "shop.example?x=1",
        "shop.example?",
        "shop.example#f",
        "shop.example#",
        "shop%2eexample",
        "shop$example",
        "shop example",
        "Shop.example",
        "SHOP",
        "shöp.example",
        "sho\0p.example",
        "shop.example\n",
        "[::1]",
        "shop.example\\",
        "*.example",
        "shop.example,bank.example",
    ] {
        refused(&format!("spiffe://{domain}/a"), "may hold only a-z");
        assert!(domain.parse::<TrustDomain>().is_err(), "{domain:?}");
    }
}

#[test]
fn paths_that_could_be_read_in_two_ways_are_refused() {
    for (path, why) in [
        ("/", "empty segment"),
        ("//", "empty segment"),
        ("/a/", "empty segment"),
        ("//a", "empty segment"),
        ("/a//b", "empty segment"),
        ("/.", "segment `.` or `..`"),
        ("/a/./b", "segment `.` or `..`"),
        ("/a/../b", "segment `.` or `..`"),
        ("/a/..", "segment `.` or `..`"),
        ("/a!b", "may hold only"),
        ("/a b", "may hold only"),
        ("/%41", "may hold only"),
        ("/a%2fb", "may hold only"),
        ("/a%00", "may hold only"),
        ("/a?x=1", "may hold only"),
        ("/a?", "may hold only"),
        ("/a#f", "may hold only"),
        ("/a#", "may hold only"),
        ("/a*", "may hold only"),
        ("/a+b", "may hold only"),
        ("/a,b", "may hold only"),
        ("/a;b", "may hold only"),
        ("/a\\b", "may hold only"),
        ("/a\0", "may hold only"),
        ("/a\n", "may hold only"),
        ("/é", "may hold only"),
        ("/\u{2025}", "may hold only"),
    ] {
        refused(&format!("spiffe://shop.example{path}"), why);
    }
}

#[test]
fn the_longest_id_has_2048_bytes_and_the_longest_trust_domain_255() {
    let longest = format!("spiffe://shop.example/{}", "a".repeat(2048 - 22));
    assert_eq!(accepted(&longest).as_str().len(), 2048);
    refused(&format!("{longest}a"), "over the limit of 2048");
    accepted(&format!("spiffe://{}/a", "d".repeat(255)));
    refused(&format!("spiffe://{}/a", "d".repeat(256)), "over the limit of 255");
}

#[test]
fn membership_is_equality_of_the_whole_name() {
    let shop: TrustDomain = "shop.example".parse().unwrap();
    assert_eq!(accepted("spiffe://shop.example/a").trust_domain(), &shop);
    for other in ["spiffe://shop.example.org/a", "spiffe://eu.shop.example/a", "spiffe://shop/a"] {
        assert_ne!(accepted(other).trust_domain(), &shop);
    }
}

#[test]
fn only_a_whole_first_segment_is_reserved() {
    for (path, reserved) in [
        ("/countersign", true),
        ("/countersign/server/1", true),
        ("/countersigner", false),
        ("/countersign-server", false),
        ("/a/countersign", false),
        ("/Countersign", false),
        ("", false),
    ] {
        let id = accepted(&format!("spiffe://shop.example{path}"));
        assert_eq!(id.is_reserved(), reserved, "{id}");
        assert_eq!(id.path(), path);
        assert_eq!(id.is_root(), path.is_empty());
    }
}

proptest! {
    #[test]
    fn any_text_is_refused_or_canonical(text in ".{0,80}") {
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert_eq!(id.as_str().parse::<SpiffeId>().unwrap(), id);
        }
    }

    #[test]
    fn any_text_after_a_good_domain_is_refused_or_kept_byte_by_byte(rest in "[/a-zA-Z.%?#:@_~-]{0,12}") {
        let text = format!("spiffe://shop.example{rest}");
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert_eq!(id.as_str(), text.as_str());
            prop_assert!(!rest.contains(['%', '?', '#', ':', '@', '~']));
        }
    }

    #[test]
    fn what_the_grammar_makes_is_accepted(
        domain in "[a-z0-9._-]{1,40}",
        path in "(/[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,10}){0,5}",
    ) {
        let id = accepted(&format!("spiffe://{domain}{path}"));
        prop_assert_eq!(id.trust_domain().as_str(), domain.as_str());
        prop_assert_eq!(id.path(), path.as_str());
    }
}
