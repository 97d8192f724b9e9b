//! Chains that a verifier must accept: strictness that refuses these is a fault, too.

use crate::x509::{
    self, CERT_SIGN, DIGITAL_SIGNATURE, KEY_ENCIPHERMENT, dns, seq, tlv, uri, usage,
};
use crate::{Case, SHOP, accepted, issuer_of, root_of};

pub(crate) fn cases() -> Vec<Case> {
    [shapes(), paths(), algorithms(), leaves(), authorities(), moments()]
        .into_iter()
        .flatten()
        .collect()
}

fn shapes() -> Vec<Case> {
    vec![
        accepted("leaf_issuer_root", |_| {}),
        accepted("leaf_issuer_root_as_client", |case| case.role = "client"),
        accepted("leaf_signed_by_the_root", |case| {
            case.chain.pop();
            case.leaf().issuer = x509::name("shop root");
            case.leaf().signer = "root";
        }),
        accepted("root_sent_along", |case| case.chain.push(root_of(SHOP, "shop root", "root"))),
        accepted("root_sent_before_the_issuer", |case| {
            case.chain.insert(1, root_of(SHOP, "shop root", "root"));
        }),
        accepted("issuer_sent_twice", |case| case.chain.push(case.chain[1].clone())),
        accepted("unrelated_certificates_sent_along", |case| {
            case.chain.insert(1, root_of("bank.example", "bank root", "other root"));
            case.chain.push(issuer_of("bank.example", "bank issuer", "x", "bank root"));
        }),
        accepted("another_leaf_sent_along", |case| {
            case.chain.push(crate::leaf_of("spiffe://shop.example/payments"));
        }),
        accepted("expired_certificate_sent_along", |case| {
            let mut old = case.chain[1].clone();
            old.not_after = x509::utc("261121000000Z");
            case.chain.insert(1, old);
        }),
    ]
}

/// Leaf, issuer, `middle`, root.
pub(crate) fn with_middle(case: &mut Case) {
    let mut middle = issuer_of(SHOP, "shop middle", "middle", "shop root");
    middle.set(x509::BASIC, true, &x509::authority(Some(1)));
    case.chain.push(middle);
    case.issuer().issuer = x509::name("shop middle");
    case.issuer().signer = "middle";
}

fn paths() -> Vec<Case> {
    vec![
        accepted("two_authorities_below_the_root", with_middle),
        accepted("two_authorities_in_the_wrong_order", |case| {
            with_middle(case);
            case.chain.swap(1, 2);
        }),
        accepted("path_length_of_the_root_just_reached", |case| {
            with_middle(case);
            case.root().set(x509::BASIC, true, &x509::authority(Some(2)));
        }),
        accepted("self_issued_authority_is_not_counted", |case| {
            // The issuer renewed its own key: same name, signed by the old key.
            let mut renewed = case.chain[1].clone();
            renewed.issuer = x509::name("shop issuer");
            (renewed.key, renewed.signer) = ("new issuer", "issuer");
            case.chain.insert(1, renewed);
            case.leaf().signer = "new issuer";
        }),
        accepted("new_root_cross_signed_by_the_old", |case| {
            let mut cross = root_of(SHOP, "shop root 2", "new root");
            cross.issuer = x509::name("shop root");
            cross.signer = "root";
            case.issuer().issuer = x509::name("shop root 2");
            case.issuer().signer = "new root";
            case.chain.push(cross);
        }),
        accepted("new_root_in_the_bundle_and_cross_signed", |case| {
            let mut cross = root_of(SHOP, "shop root 2", "new root");
            cross.issuer = x509::name("shop root");
            cross.signer = "root";
            case.issuer().issuer = x509::name("shop root 2");
            case.issuer().signer = "new root";
            case.chain.push(cross);
            case.bundles[0].1 = vec![root_of(SHOP, "shop root 2", "new root")];
        }),
        accepted("two_roots_of_one_name", |case| {
            case.bundles[0].1.insert(0, root_of(SHOP, "shop root", "older root"));
        }),
        accepted("expired_root_of_one_name_beside_the_valid", |case| {
            let mut old = root_of(SHOP, "shop root", "older root");
            old.not_after = x509::utc("260601000000Z");
            case.bundles[0].1.insert(0, old);
        }),
        accepted("bundles_of_two_domains", |case| {
            let bank = root_of("bank.example", "bank root", "other root");
            case.bundles.push(("bank.example", vec![bank]));
        }),
    ]
}

/// The issuer's key and what it signs with.
pub(crate) fn issued_with(case: &mut Case, key: &'static str, algorithm: &'static str) {
    case.issuer().key = key;
    (case.leaf().signer, case.leaf().algorithm) = (key, algorithm);
}

fn algorithms() -> Vec<Case> {
    let pairs = [
        ("ecdsa_p256_sha256", "p256", "ecdsa-sha256"),
        ("ecdsa_p256_sha384", "p256", "ecdsa-sha384"),
        ("ecdsa_p384_sha384", "p384", "ecdsa-sha384"),
        ("ecdsa_p384_sha256", "p384", "ecdsa-sha256"),
        ("rsa_2048_pkcs1_sha256", "rsa2048", "rsa-sha256"),
        ("rsa_2048_pkcs1_sha512", "rsa2048", "rsa-sha512"),
        ("rsa_2048_pss_sha256", "rsa2048", "rsa-pss-sha256"),
    ];
    let mut cases: Vec<Case> = pairs
        .into_iter()
        .map(|(name, key, algorithm)| {
            accepted(&format!("signed_with_{name}"), |case| issued_with(case, key, algorithm))
        })
        .collect();
    for key in ["p256", "p384", "rsa2048"] {
        cases.push(accepted(&format!("leaf_with_a_key_{key}"), |case| case.leaf().key = key));
    }
    cases
}

fn leaves() -> Vec<Case> {
    vec![
        accepted("leaf_without_extended_key_usage", |case| {
            case.leaf().remove(x509::PURPOSE);
        }),
        accepted("leaf_without_basic_constraints", |case| {
            case.leaf().remove(x509::BASIC);
        }),
        accepted("leaf_with_its_authority_flag_written_out_as_rcgen_does", |case| {
            case.leaf().set(x509::BASIC, true, &seq(&[&[1, 1, 0]]));
        }),
        accepted("leaf_with_key_encipherment_too", |case| {
            let bits = DIGITAL_SIGNATURE | KEY_ENCIPHERMENT;
            case.leaf().set(x509::USAGE, true, &usage(bits));
        }),
        accepted("leaf_with_critical_extended_key_usage", |case| {
            case.leaf().set(x509::PURPOSE, true, &x509::purposes(&[1, 2]));
        }),
        accepted("leaf_for_servers_only_as_server", |case| {
            case.leaf().set(x509::PURPOSE, false, &x509::purposes(&[1]));
        }),
        accepted("leaf_for_clients_only_as_client", |case| {
            case.leaf().set(x509::PURPOSE, false, &x509::purposes(&[2]));
            case.role = "client";
        }),
        accepted("leaf_with_a_subject_and_plain_names", |case| {
            case.leaf().subject = x509::name("orders");
            let uri = uri(b"spiffe://shop.example/orders");
            case.leaf().set(x509::SAN, false, &seq(&[&uri]));
        }),
        accepted("leaf_with_other_kinds_of_names", |case| {
            let names = [
                dns(b"orders.shop.example"),
                dns(b"orders"),
                uri(b"spiffe://shop.example/orders"),
                tlv(0x87, &[&[127, 0, 0, 1]]),
                tlv(0x81, &[b"orders@shop.example"]),
            ];
            case.leaf().names(&names);
        }),
        accepted("leaf_with_64_extensions", |case| {
            for number in 4..64 {
                case.leaf().add(&[0x2a, 3, number], false, &[5, 0]);
            }
        }),
        accepted("leaf_with_an_unknown_extension", |case| {
            case.leaf().add(&[0x2a, 3, 4], false, &[5, 0]);
        }),
        accepted("id_with_dots_in_segments", |case| {
            case.named("spiffe://shop.example/a..b/.../_-");
        }),
        accepted("id_of_2048_bytes", |case| {
            case.named(&format!("spiffe://shop.example/{}", "a".repeat(2048 - 22)));
        }),
        accepted("trust_domain_like_an_address", |case| {
            case.named("spiffe://10.0.0.1/orders");
            let mut root = root_of("10.0.0.1", "shop root", "root");
            root.remove(x509::SAN);
            case.issuer().remove(x509::SAN);
            case.bundles = vec![("10.0.0.1", vec![root])];
        }),
    ]
}

fn authorities() -> Vec<Case> {
    vec![
        accepted("authorities_without_uri_names", |case| {
            case.issuer().remove(x509::SAN);
            case.root().remove(x509::SAN);
        }),
        accepted("authority_that_signs_messages_too", |case| {
            case.issuer().set(x509::USAGE, true, &usage(DIGITAL_SIGNATURE | CERT_SIGN));
        }),
        accepted("issuer_for_both_purposes", |case| {
            case.issuer().set(x509::PURPOSE, false, &x509::purposes(&[1, 2]));
        }),
        accepted("dns_constraint_that_permits", |case| {
            case.leaf().names(&[uri(b"spiffe://shop.example/orders"), dns(b"orders.shop.example")]);
            let base = dns(b"shop.example");
            case.issuer().set(x509::CONSTRAINTS, true, &x509::constraint(0, &base));
        }),
        accepted("dns_constraint_without_dns_names", |case| {
            let base = dns(b"shop.example");
            case.issuer().set(x509::CONSTRAINTS, true, &x509::constraint(0, &base));
        }),
        accepted("address_constraint_that_permits", |case| {
            let names = [uri(b"spiffe://shop.example/orders"), tlv(0x87, &[&[10, 1, 2, 3]])];
            case.leaf().names(&names);
            let base = tlv(0x87, &[&[10, 0, 0, 0, 255, 0, 0, 0]]);
            case.issuer().set(x509::CONSTRAINTS, true, &x509::constraint(0, &base));
        }),
    ]
}

fn moments() -> Vec<Case> {
    vec![
        accepted("at_the_first_moment", |case| case.at = "2026-11-21T11:30:00Z"),
        accepted("at_the_last_moment", |case| case.at = "2026-11-21T12:30:00Z"),
        accepted("root_valid_beyond_2050", |case| {
            case.root().not_after = x509::generalized("20500101000000Z");
        }),
        accepted("root_valid_for_ever", |case| {
            case.root().not_after = x509::generalized("99991231235959Z");
        }),
        accepted("root_from_the_last_century", |case| {
            case.root().not_before = x509::utc("500101000000Z");
        }),
    ]
}
