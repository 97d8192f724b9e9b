//! Leaves that break a rule.

use crate::x509::{
    self, AUTHORITY_KEY, CERT_SIGN, CRL_SIGN, DIGITAL_SIGNATURE, KEY_ENCIPHERMENT, dns, seq, tlv,
    uri, usage,
};
use crate::{Case, refused, twin_of};

const ORDERS: &[u8] = b"spiffe://shop.example/orders";

pub(crate) fn cases() -> Vec<Case> {
    [identities(), bad_uris(), usages(), purposes(), extensions(), keys(), moments()]
        .into_iter()
        .flatten()
        .collect()
}

fn identities() -> Vec<Case> {
    vec![
        refused("leaf_with_two_uri_names", "several-identities", |case| {
            case.leaf().names(&[uri(ORDERS), uri(b"spiffe://shop.example/payments")]);
        }),
        refused("leaf_with_one_uri_name_twice", "several-identities", |case| {
            case.leaf().names(&[uri(ORDERS), uri(ORDERS)]);
        }),
        refused("leaf_with_a_second_uri_that_is_not_utf8", "several-identities", |case| {
            case.leaf().names(&[uri(ORDERS), uri(b"spiffe://shop.example/\xff")]);
        }),
        refused("leaf_with_a_web_address_beside_its_id", "several-identities", |case| {
            case.leaf().names(&[uri(ORDERS), uri(b"https://shop.example/orders")]);
        }),
        refused("leaf_without_alternative_names", "no-identity", |case| {
            case.leaf().subject = x509::name("orders");
            case.leaf().remove(x509::SAN);
        }),
        refused("leaf_with_a_dns_name_only", "no-identity", |case| {
            case.leaf().names(&[dns(b"orders.shop.example")]);
        }),
        refused("leaf_with_its_id_in_the_common_name", "no-identity", |case| {
            case.leaf().subject = x509::name("spiffe://shop.example/orders");
            case.leaf().names(&[dns(b"orders.shop.example")]);
        }),
        refused("leaf_with_an_id_in_a_dns_name", "malformed", |case| {
            case.leaf().names(&[dns(ORDERS)]);
        }),
        refused("leaf_with_an_id_in_a_dns_name_beside_its_own", "malformed", |case| {
            case.leaf().names(&[uri(ORDERS), dns(b"spiffe://shop.example/payments")]);
        }),
        refused("leaf_with_nul_in_a_dns_name", "malformed", |case| {
            case.leaf().names(&[uri(ORDERS), dns(b"orders\0.shop.example")]);
        }),
    ]
}

fn bad_uris() -> Vec<Case> {
    let bad: [(&str, &[u8]); 20] = [
        ("empty", b""),
        ("a_web_address", b"https://shop.example/orders"),
        ("a_trust_domain", b"spiffe://shop.example"),
        ("a_trust_domain_and_a_slash", b"spiffe://shop.example/"),
        ("an_empty_trust_domain", b"spiffe:///orders"),
        ("an_upper_case_trust_domain", b"spiffe://SHOP.example/orders"),
        ("a_port", b"spiffe://shop.example:443/orders"),
        ("user_info", b"spiffe://me@shop.example/orders"),
        ("a_query", b"spiffe://shop.example/orders?x=1"),
        ("an_empty_query", b"spiffe://shop.example/orders?"),
        ("a_fragment", b"spiffe://shop.example/orders#x"),
        ("an_escape", b"spiffe://shop.example/%6frders"),
        ("an_empty_segment", b"spiffe://shop.example//orders"),
        ("a_trailing_slash", b"spiffe://shop.example/orders/"),
        ("a_dot_segment", b"spiffe://shop.example/./orders"),
        ("a_double_dot_segment", b"spiffe://shop.example/web/../orders"),
        ("a_nul", b"spiffe://shop.example/orders\0.evil"),
        ("a_letter_beyond_ascii", "spiffe://shop.example/örders".as_bytes()),
        ("bytes_that_are_not_utf8", b"spiffe://shop.example/\xff\xfe"),
        ("a_backslash", b"spiffe://shop.example\\@bank.example/orders"),
    ];
    let mut cases: Vec<Case> = bad
        .into_iter()
        .map(|(name, bytes)| {
            refused(&format!("leaf_named_by_{name}"), "bad-identity", |case| {
                case.leaf().names(&[uri(bytes)]);
            })
        })
        .collect();
    cases.push(twin_of("id_of_2048_bytes", "id_of_2049_bytes", "bad-identity", |case| {
        case.named(&format!("spiffe://shop.example/{}", "a".repeat(2049 - 22)));
    }));
    cases
}

fn usages() -> Vec<Case> {
    vec![
        refused("leaf_that_is_an_authority", "leaf-is-authority", |case| {
            case.leaf().set(x509::BASIC, true, &x509::authority(None));
        }),
        refused("leaf_that_may_sign_certificates", "leaf-is-authority", |case| {
            case.leaf().set(x509::USAGE, true, &usage(DIGITAL_SIGNATURE | CERT_SIGN));
        }),
        refused("leaf_that_may_sign_revocation_lists", "leaf-is-authority", |case| {
            case.leaf().set(x509::USAGE, true, &usage(DIGITAL_SIGNATURE | CRL_SIGN));
        }),
        refused("issuer_as_a_peer", "bad-identity", |case| {
            case.chain.remove(0);
        }),
        refused("leaf_without_key_usage", "bad-key-usage", |case| {
            case.leaf().remove(x509::USAGE);
        }),
        refused("leaf_with_plain_key_usage", "bad-key-usage", |case| {
            case.leaf().set(x509::USAGE, false, &usage(DIGITAL_SIGNATURE));
        }),
        refused("leaf_without_digital_signature", "bad-key-usage", |case| {
            case.leaf().set(x509::USAGE, true, &usage(KEY_ENCIPHERMENT));
        }),
        refused("leaf_with_an_empty_key_usage", "malformed", |case| {
            case.leaf().set(x509::USAGE, true, &[3, 1, 0]);
        }),
    ]
}

fn purposes() -> Vec<Case> {
    vec![
        twin_of(
            "leaf_for_servers_only_as_server",
            "leaf_for_servers_only_as_client",
            "bad-extended-key-usage",
            |case| {
                case.leaf().set(x509::PURPOSE, false, &x509::purposes(&[1]));
                case.role = "client";
            },
        ),
        twin_of(
            "leaf_for_clients_only_as_client",
            "leaf_for_clients_only_as_server",
            "bad-extended-key-usage",
            |case| {
                case.leaf().set(x509::PURPOSE, false, &x509::purposes(&[2]));
            },
        ),
        refused("leaf_for_code_signing", "bad-extended-key-usage", |case| {
            case.leaf().set(x509::PURPOSE, false, &x509::purposes(&[3]));
        }),
        refused("leaf_for_any_purpose", "bad-extended-key-usage", |case| {
            case.leaf().set(x509::PURPOSE, false, &seq(&[&tlv(6, &[&[0x55, 0x1d, 0x25, 0]])]));
        }),
        refused("leaf_with_an_empty_extended_key_usage", "malformed", |case| {
            case.leaf().set(x509::PURPOSE, false, &seq(&[]));
        }),
    ]
}

fn extensions() -> Vec<Case> {
    vec![
        refused("leaf_with_an_unknown_critical_extension", "bad-extension", |case| {
            case.leaf().add(&[0x2a, 3, 4], true, &[5, 0]);
        }),
        refused("leaf_with_a_critical_key_identifier", "bad-extension", |case| {
            let key_id = seq(&[&tlv(0x80, &[&[1; 20]])]);
            case.leaf().add(AUTHORITY_KEY, true, &key_id);
        }),
        refused("leaf_with_key_usage_twice", "bad-extension", |case| {
            case.leaf().add(x509::USAGE, true, &usage(DIGITAL_SIGNATURE));
        }),
        refused("leaf_with_alternative_names_twice", "bad-extension", |case| {
            let other = seq(&[&uri(b"spiffe://shop.example/payments")]);
            case.leaf().add(x509::SAN, true, &other);
        }),
        refused("leaf_with_an_unknown_extension_twice", "bad-extension", |case| {
            case.leaf().add(&[0x2a, 3, 4], false, &[5, 0]);
            case.leaf().add(&[0x2a, 3, 4], false, &[5, 0]);
        }),
        refused("leaf_with_name_constraints", "bad-extension", |case| {
            let base = dns(b"shop.example");
            case.leaf().add(x509::CONSTRAINTS, true, &x509::constraint(0, &base));
        }),
        refused("leaf_with_a_path_length", "bad-extension", |case| {
            case.leaf().set(x509::BASIC, true, &seq(&[&[2, 1, 0]]));
        }),
        refused("leaf_without_subject_and_with_plain_names", "bad-extension", |case| {
            case.leaf().set(x509::SAN, false, &seq(&[&uri(ORDERS)]));
        }),
    ]
}

fn keys() -> Vec<Case> {
    let weak = ["p521", "secp256k1", "ed448", "p256_explicit"].map(|key| {
        refused(&format!("leaf_with_a_key_{key}"), "weak-algorithm", |case| case.leaf().key = key)
    });
    let mut cases: Vec<Case> = weak.into_iter().collect();
    cases.push(twin_of(
        "leaf_with_a_key_rsa2048",
        "leaf_with_a_key_rsa1024",
        "weak-algorithm",
        |case| case.leaf().key = "rsa1024",
    ));
    cases.push(twin_of(
        "leaf_with_a_key_p256",
        "leaf_with_a_key_p256_compressed",
        "malformed",
        |case| case.leaf().key = "p256_compressed",
    ));
    cases
}

fn moments() -> Vec<Case> {
    vec![
        refused("leaf_expired", "expired", |case| {
            case.leaf().not_after = x509::utc("261121115959Z");
        }),
        refused("leaf_expired_by_a_microsecond", "expired", |case| {
            case.at = "2026-11-21T12:30:00.000001Z";
        }),
        refused("leaf_not_yet_valid", "not-yet-valid", |case| {
            case.leaf().not_before = x509::utc("261121120001Z");
        }),
        refused("leaf_that_ends_before_it_begins", "malformed", |case| {
            case.leaf().not_before = x509::utc("261121123001Z");
        }),
    ]
}
