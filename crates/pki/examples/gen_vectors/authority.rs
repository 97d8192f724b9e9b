//! Authorities that break a rule, and paths that lead nowhere.

use crate::accepted::{issued_with, with_middle};
use crate::x509::{self, CERT_SIGN, CRL_SIGN, DIGITAL_SIGNATURE, dns, seq, tlv, uri, usage};
use crate::{Case, SHOP, issuer_of, leaf_of, refused, root_of, twin_of};

const BANK: &str = "bank.example";

pub(crate) fn cases() -> Vec<Case> {
    [issuers(), roots(), extensions(), path_lengths(), constraints(), strangers(), signatures()]
        .into_iter()
        .flatten()
        .collect()
}

fn issuers() -> Vec<Case> {
    vec![
        refused("issuer_without_basic_constraints", "issuer-not-authority", |case| {
            case.issuer().remove(x509::BASIC);
        }),
        refused("issuer_that_is_no_authority", "issuer-not-authority", |case| {
            case.issuer().set(x509::BASIC, true, &seq(&[]));
        }),
        refused("issuer_with_plain_basic_constraints", "issuer-not-authority", |case| {
            case.issuer().set(x509::BASIC, false, &x509::authority(Some(0)));
        }),
        refused("issuer_that_may_not_sign_certificates", "bad-key-usage", |case| {
            case.issuer().set(x509::USAGE, true, &usage(DIGITAL_SIGNATURE | CRL_SIGN));
        }),
        refused("issuer_without_key_usage", "bad-key-usage", |case| {
            case.issuer().remove(x509::USAGE);
        }),
        refused("issuer_with_plain_key_usage", "bad-key-usage", |case| {
            case.issuer().set(x509::USAGE, false, &usage(CERT_SIGN));
        }),
        refused("issuer_expired", "expired", |case| {
            case.issuer().not_after = x509::utc("261121115959Z");
        }),
        refused("issuer_not_yet_valid", "not-yet-valid", |case| {
            case.issuer().not_before = x509::utc("261121120001Z");
        }),
        refused("issuer_for_clients_only", "bad-extended-key-usage", |case| {
            case.issuer().set(x509::PURPOSE, false, &x509::purposes(&[2]));
        }),
        refused("issuer_named_as_a_workload", "issuer-not-authority", |case| {
            let name = uri(b"spiffe://shop.example/orders");
            case.issuer().set(x509::SAN, false, &seq(&[&name]));
        }),
        refused("issuer_named_as_a_foreign_domain", "unknown-issuer", |case| {
            case.issuer().set(x509::SAN, false, &seq(&[&uri(b"spiffe://bank.example")]));
        }),
        refused("leaf_signed_by_a_leaf", "issuer-not-authority", |case| {
            let mut other = leaf_of("spiffe://shop.example/web");
            other.subject = x509::name("web");
            other.key = "web";
            case.chain.insert(1, other);
            case.leaf().issuer = x509::name("web");
            case.leaf().signer = "web";
        }),
    ]
}

fn roots() -> Vec<Case> {
    vec![
        refused("root_expired", "expired", |case| {
            case.root().not_after = x509::utc("261121115959Z");
        }),
        refused("root_not_yet_valid", "not-yet-valid", |case| {
            case.root().not_before = x509::utc("261121120001Z");
        }),
        refused("root_without_basic_constraints", "issuer-not-authority", |case| {
            case.root().remove(x509::BASIC);
        }),
        refused("root_that_is_no_authority", "issuer-not-authority", |case| {
            case.root().set(x509::BASIC, true, &seq(&[]));
        }),
        refused("root_that_may_not_sign_certificates", "bad-key-usage", |case| {
            case.root().set(x509::USAGE, true, &usage(CRL_SIGN));
        }),
        refused("root_without_key_usage", "bad-key-usage", |case| {
            case.root().remove(x509::USAGE);
        }),
        refused("root_with_an_unknown_critical_extension", "bad-extension", |case| {
            case.root().add(&[0x2a, 3, 4], true, &[5, 0]);
        }),
        twin_of(
            "leaf_signed_by_the_root",
            "leaf_trusted_as_a_root",
            "issuer-not-authority",
            |case| {
                let leaf = case.leaf();
                leaf.subject = x509::name("orders");
                leaf.issuer = x509::name("orders");
                leaf.signer = "leaf";
                case.bundles[0].1 = vec![case.chain[0].clone()];
            },
        ),
    ]
}

fn extensions() -> Vec<Case> {
    // Certificate policies, policy constraints, inhibit any-policy, CRL distribution points.
    let ids: [(&str, &[u8]); 5] = [
        ("an_unknown_extension", &[0x2a, 3, 4]),
        ("policies", &[0x55, 0x1d, 0x20]),
        ("policy_constraints", &[0x55, 0x1d, 0x24]),
        ("inhibited_policies", &[0x55, 0x1d, 0x36]),
        ("distribution_points", &[0x55, 0x1d, 0x1f]),
    ];
    ids.into_iter()
        .map(|(name, oid)| {
            refused(&format!("issuer_with_critical_{name}"), "bad-extension", |case| {
                case.issuer().add(oid, true, &seq(&[]));
            })
        })
        .collect()
}

fn path_lengths() -> Vec<Case> {
    let twin = "two_authorities_below_the_root";
    vec![
        twin_of(twin, "path_length_of_an_authority_exceeded", "path-length", |case| {
            with_middle(case);
            case.chain[2].set(x509::BASIC, true, &x509::authority(Some(0)));
        }),
        twin_of(twin, "path_length_of_the_root_exceeded", "path-length", |case| {
            with_middle(case);
            case.root().set(x509::BASIC, true, &x509::authority(Some(1)));
        }),
        refused("path_length_of_the_root_zero", "path-length", |case| {
            case.root().set(x509::BASIC, true, &x509::authority(Some(0)));
        }),
        refused("nine_certificates", "too-many-certificates", |case| {
            let issuer = case.chain[1].clone();
            case.chain.extend(std::iter::repeat_n(issuer, 7));
        }),
    ]
}

fn constraints() -> Vec<Case> {
    let named = |case: &mut Case, name: Vec<u8>| {
        case.leaf().names(&[uri(b"spiffe://shop.example/orders"), name]);
    };
    let constrain = |case: &mut Case, which: u8, base: &[u8]| {
        case.issuer().set(x509::CONSTRAINTS, true, &x509::constraint(which, base));
    };
    vec![
        refused("uri_constraint_that_permits", "name-constraint", |case| {
            constrain(case, 0, &uri(b"shop.example"));
        }),
        refused("uri_constraint_that_excludes_others", "name-constraint", |case| {
            constrain(case, 1, &uri(b"bank.example"));
        }),
        refused("uri_constraint_on_the_root", "name-constraint", |case| {
            let value = x509::constraint(0, &uri(b"shop.example"));
            case.root().set(x509::CONSTRAINTS, true, &value);
        }),
        twin_of(
            "dns_constraint_that_permits",
            "dns_name_not_permitted",
            "name-constraint",
            |case| {
                named(case, dns(b"orders.bank.example"));
                constrain(case, 0, &dns(b"shop.example"));
            },
        ),
        twin_of(
            "dns_constraint_that_permits",
            "dns_name_that_only_ends_alike",
            "name-constraint",
            |case| {
                named(case, dns(b"evilshop.example"));
                constrain(case, 0, &dns(b"shop.example"));
            },
        ),
        twin_of("dns_constraint_that_permits", "dns_name_excluded", "name-constraint", |case| {
            named(case, dns(b"Orders.Shop.Example"));
            constrain(case, 1, &dns(b"shop.example"));
        }),
        twin_of(
            "dns_constraint_that_permits",
            "wildcard_that_reaches_what_is_excluded",
            "name-constraint",
            |case| {
                named(case, dns(b"*.shop.example"));
                constrain(case, 1, &dns(b"orders.shop.example"));
            },
        ),
        twin_of(
            "address_constraint_that_permits",
            "address_not_permitted",
            "name-constraint",
            |case| {
                named(case, tlv(0x87, &[&[11, 1, 2, 3]]));
                constrain(case, 0, &tlv(0x87, &[&[10, 0, 0, 0, 255, 0, 0, 0]]));
            },
        ),
        refused("more_names_under_constraints_than_are_compared", "name-constraint", |case| {
            let names: Vec<Vec<u8>> =
                (0..400).map(|n| dns(format!("n{n}.shop.example").as_bytes())).collect();
            let names = [vec![uri(b"spiffe://shop.example/orders")], names].concat();
            case.leaf().names(&names);
            let bases: Vec<Vec<u8>> =
                (0..300).map(|n| seq(&[&dns(format!("n{n}.bank.example").as_bytes())])).collect();
            let value = seq(&[&tlv(0xa1, &[&bases.concat()])]);
            case.issuer().set(x509::CONSTRAINTS, true, &value);
        }),
        refused("name_constraint_on_the_root", "name-constraint", |case| {
            named(case, dns(b"orders.bank.example"));
            let value = x509::constraint(0, &dns(b"shop.example"));
            case.root().set(x509::CONSTRAINTS, true, &value);
        }),
        refused("empty_name_constraints", "malformed", |case| {
            case.issuer().set(x509::CONSTRAINTS, true, &seq(&[]));
        }),
    ]
}

fn strangers() -> Vec<Case> {
    let bank_root = || root_of(BANK, "bank root", "other root");
    vec![
        refused("issuer_not_sent", "unknown-issuer", |case| {
            case.chain.pop();
        }),
        refused("empty_bundle", "unknown-issuer", |case| case.bundles[0].1.clear()),
        refused("no_bundle_for_the_domain", "unknown-trust-domain", |case| {
            case.named("spiffe://bank.example/orders");
        }),
        refused("bundle_of_a_parent_domain_only", "unknown-trust-domain", |case| {
            case.named("spiffe://eu.shop.example/orders");
        }),
        twin_of(
            "bundles_of_two_domains",
            "signed_by_the_other_domains_authority",
            "unknown-issuer",
            |case| {
                case.chain[1] = issuer_of(BANK, "bank issuer", "bank issuer", "bank root");
                case.leaf().issuer = x509::name("bank issuer");
                case.leaf().signer = "bank issuer";
                case.bundles.push((BANK, vec![bank_root()]));
            },
        ),
        twin_of(
            "bundles_of_two_domains",
            "our_authority_names_the_other_domain",
            "unknown-issuer",
            |case| {
                case.named("spiffe://bank.example/orders");
                case.bundles.push((BANK, vec![bank_root()]));
            },
        ),
        refused("self_signed_leaf", "unknown-issuer", |case| {
            case.leaf().subject = x509::name("orders");
            case.leaf().issuer = x509::name("orders");
            case.leaf().signer = "leaf";
        }),
        refused("root_sent_but_not_trusted", "unknown-issuer", |case| {
            case.chain.push(root_of(SHOP, "shop root", "root"));
            case.bundles[0].1 = vec![root_of(SHOP, "another root", "older root")];
        }),
        refused("root_of_the_same_name_and_another_key", "bad-signature", |case| {
            case.bundles[0].1 = vec![root_of(SHOP, "shop root", "older root")];
        }),
        refused("two_authorities_that_sign_each_other", "unknown-issuer", |case| {
            let mut other = issuer_of(SHOP, "shop middle", "middle", "shop root");
            other.issuer = x509::name("shop issuer");
            other.signer = "issuer";
            other.set(x509::BASIC, true, &x509::authority(None));
            case.issuer().set(x509::BASIC, true, &x509::authority(None));
            case.issuer().issuer = x509::name("shop middle");
            case.issuer().signer = "middle";
            case.chain.push(other);
        }),
    ]
}

fn signatures() -> Vec<Case> {
    let weak = |name: &str, key, algorithm| {
        refused(name, "weak-algorithm", |case| issued_with(case, key, algorithm))
    };
    vec![
        refused("leaf_signed_by_another_key", "bad-signature", |case| case.leaf().signer = "x"),
        refused("issuer_signed_by_another_key", "bad-signature", |case| {
            case.issuer().signer = "x";
        }),
        refused("leaf_changed_after_signing", "bad-signature", |case| {
            case.leaf().spoil = |bytes| {
                let mut bytes = bytes;
                let at = bytes.windows(6).position(|six| six == b"orders").unwrap();
                bytes[at..at + 6].copy_from_slice(b"pay--s");
                bytes
            };
        }),
        refused("signature_of_a_key_of_another_kind", "bad-signature", |case| {
            case.issuer().key = "rsa2048";
            (case.leaf().signer, case.leaf().algorithm) = ("p256", "ecdsa-sha256");
        }),
        weak("signed_with_rsa_sha1", "rsa2048", "rsa-sha1"),
        weak("signed_with_rsa_md5", "rsa2048", "rsa-md5"),
        weak("signed_with_ecdsa_sha1", "p256", "ecdsa-sha1"),
        weak("signed_with_rsa_1024", "rsa1024", "rsa-sha256"),
        weak("signed_with_p521", "p521", "ecdsa-sha256"),
        weak("signed_with_secp256k1", "secp256k1", "ecdsa-sha256"),
        weak("signed_with_ed448", "ed448", "ed448"),
        weak("signed_with_a_short_pss_salt", "rsa2048", "rsa-pss-sha256-short-salt"),
        refused("issuer_signed_with_rsa_sha1", "weak-algorithm", |case| {
            case.root().key = "rsa2048";
            (case.root().signer, case.root().algorithm) = ("rsa2048", "rsa-sha256");
            (case.issuer().signer, case.issuer().algorithm) = ("rsa2048", "rsa-sha1");
        }),
    ]
}
