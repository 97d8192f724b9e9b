//! The same faults at every place of one long chain: leaf, issuer, middle, root. A verifier that looks at some of its
//! certificates less than at others is found out here.

use crate::accepted::with_middle;
use crate::x509::{
    self, AUTHORITY_KEY, CERT_SIGN, CRL_SIGN, Cert, DIGITAL_SIGNATURE, SUBJECT_KEY, dns, seq, tlv,
    uri, usage,
};
use crate::{Case, accepted, twin_of};

const TWIN: &str = "two_authorities_below_the_root";

/// A place in the chain.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Leaf,
    Issuer,
    Middle,
    Root,
}

use Place::{Issuer, Leaf, Middle, Root};

const ALL: [Place; 4] = [Leaf, Issuer, Middle, Root];
const AUTHORITIES: [Place; 3] = [Issuer, Middle, Root];
/// Roots that do not parse never come into a bundle.
const SHOWN: [Place; 3] = [Leaf, Issuer, Middle];

impl Place {
    fn word(self) -> &'static str {
        match self {
            Leaf => "leaf",
            Issuer => "issuer",
            Middle => "middle",
            Root => "root",
        }
    }

    fn of(self, case: &mut Case) -> &mut Cert {
        match self {
            Leaf => &mut case.chain[0],
            Issuer => &mut case.chain[1],
            Middle => &mut case.chain[2],
            Root => case.root(),
        }
    }

    /// The certificate that this one signs.
    fn below(self) -> Self {
        match self {
            Leaf | Issuer => Leaf,
            Middle => Issuer,
            Root => Middle,
        }
    }
}

type Change<'a> = &'a dyn Fn(&mut Cert);

/// The fault at one place.
fn at(place: Place, fault: &str, rule: &'static str, change: Change<'_>) -> Case {
    twin_of(TWIN, &format!("{}_of_four_{fault}", place.word()), rule, |case| {
        with_middle(case);
        change(place.of(case));
    })
}

/// The fault at each of the places.
fn everywhere(places: &[Place], fault: &str, rule: &'static str, change: Change<'_>) -> Vec<Case> {
    places.iter().map(|place| at(*place, fault, rule, change)).collect()
}

pub(crate) fn cases() -> Vec<Case> {
    let groups = [
        constraints(),
        usages(),
        purposes(),
        names(),
        critical(),
        key_identifiers(),
        moments(),
        times(),
        numbers(),
        encodings(),
        extensions(),
        keys(),
        signatures(),
        lengths(),
        uris(),
        right(),
    ];
    groups.into_iter().flatten().collect()
}

fn constraints() -> Vec<Case> {
    let authority = |value: Vec<u8>, critical: bool| {
        move |cert: &mut Cert| {
            cert.set(x509::BASIC, critical, &value);
        }
    };
    let not = "issuer-not-authority";
    let mut cases = everywhere(&AUTHORITIES, "without_basic_constraints", not, &|cert| {
        cert.remove(x509::BASIC);
    });
    cases.extend(everywhere(&AUTHORITIES, "that_is_none", not, &authority(seq(&[]), true)));
    let plain = authority(x509::authority(None), false);
    cases.extend(everywhere(&AUTHORITIES, "with_plain_basic_constraints", not, &plain));
    let flag_1 = authority(seq(&[&[1, 1, 1]]), true);
    cases.extend(everywhere(&SHOWN, "with_a_flag_of_01", "malformed", &flag_1));
    let longer = authority(seq(&[&[1, 1, 0xff], &[2, 2, 0, 1]]), true);
    cases.extend(everywhere(&[Issuer, Middle], "with_a_long_path_length", "malformed", &longer));
    let negative = authority(seq(&[&[1, 1, 0xff], &[2, 1, 0xff]]), true);
    cases.extend(everywhere(&[Issuer, Middle], "with_a_negative_length", "malformed", &negative));
    let more = authority(seq(&[&[1, 1, 0xff], &[2, 1, 1], &[5, 0]]), true);
    cases.extend(everywhere(&[Issuer, Middle], "with_more_in_its_constraints", "malformed", &more));
    cases
}

fn usages() -> Vec<Case> {
    let bad = "bad-key-usage";
    let mut cases = everywhere(&ALL, "without_key_usage", bad, &|cert| {
        cert.remove(x509::USAGE);
    });
    cases.extend(everywhere(&AUTHORITIES, "with_plain_key_usage", bad, &|cert| {
        cert.set(x509::USAGE, false, &usage(CERT_SIGN | CRL_SIGN));
    }));
    cases.extend(everywhere(&AUTHORITIES, "that_signs_lists_only", bad, &|cert| {
        cert.set(x509::USAGE, true, &usage(CRL_SIGN));
    }));
    cases.extend(everywhere(&AUTHORITIES, "that_signs_data_only", bad, &|cert| {
        cert.set(x509::USAGE, true, &usage(DIGITAL_SIGNATURE));
    }));
    let forms: [(&str, &[u8]); 4] = [
        ("with_no_bits", &[3, 1, 0]),
        ("with_a_bit_too_many", &[3, 2, 0, 4]),
        ("with_nine_unused_bits", &[3, 2, 9, 4]),
        ("with_key_usage_as_bytes", &[4, 2, 2, 4]),
    ];
    for (fault, value) in forms {
        cases.extend(everywhere(&SHOWN, fault, "malformed", &|cert| {
            cert.set(x509::USAGE, true, value);
        }));
    }
    cases
}

fn purposes() -> Vec<Case> {
    let bad = "bad-extended-key-usage";
    let only = |last: u8| {
        move |cert: &mut Cert| {
            cert.set(x509::PURPOSE, false, &x509::purposes(&[last]));
        }
    };
    let mut cases = everywhere(&ALL, "for_clients", bad, &only(2));
    cases.extend(everywhere(&ALL, "for_code", bad, &only(3)));
    cases.extend(everywhere(&ALL, "for_ocsp", bad, &only(9)));
    cases.extend(everywhere(&SHOWN, "with_no_purpose", "malformed", &|cert| {
        cert.set(x509::PURPOSE, false, &seq(&[]));
    }));
    for case in everywhere(&ALL, "for_servers_as_client", bad, &only(1)) {
        cases.push(Case { role: "client", ..case });
    }
    cases
}

fn names() -> Vec<Case> {
    let named = |id: &'static [u8]| {
        move |cert: &mut Cert| {
            cert.set(x509::SAN, false, &seq(&[&uri(id)]));
        }
    };
    let faults: [(&str, &str, &'static [u8]); 6] = [
        ("of_a_workload", "issuer-not-authority", b"spiffe://shop.example/orders"),
        ("of_another_domain", "unknown-issuer", b"spiffe://bank.example"),
        ("of_a_domain_below", "unknown-issuer", b"spiffe://eu.shop.example"),
        ("of_no_domain", "issuer-not-authority", b"spiffe://"),
        ("of_a_domain_with_a_port", "issuer-not-authority", b"spiffe://shop.example:1"),
        ("of_a_loud_workload", "issuer-not-authority", b"SPIFFE://shop.example/orders"),
    ];
    let mut cases = Vec::new();
    for (fault, rule, id) in faults {
        cases.extend(everywhere(&AUTHORITIES, fault, rule, &named(id)));
    }
    cases.extend(everywhere(&[Issuer, Middle], "without_a_name", "malformed", &|cert| {
        cert.issuer = x509::name("");
    }));
    cases.extend(everywhere(&SHOWN, "with_an_empty_name_part", "malformed", &|cert| {
        cert.subject = seq(&[&tlv(0x31, &[])]);
    }));
    cases.extend(everywhere(&[Leaf, Issuer], "of_another_issuer", "unknown-issuer", &|cert| {
        cert.issuer = x509::name("nobody");
    }));
    cases
}

/// What is critical and not processed is a reason to refuse, and so is a policy that must be explicit.
fn critical() -> Vec<Case> {
    let ids: [(&str, &[u8], Vec<u8>); 8] = [
        ("an_unknown_extension", &[0x2a, 3, 4], vec![5, 0]),
        ("policies", &[0x55, 0x1d, 0x20], seq(&[&seq(&[&tlv(6, &[&[0x2a, 3, 4]])])])),
        ("policy_mappings", &[0x55, 0x1d, 0x21], seq(&[])),
        ("policy_constraints", &[0x55, 0x1d, 0x24], seq(&[&tlv(0x80, &[&[0]])])),
        ("inhibited_policies", &[0x55, 0x1d, 0x36], vec![2, 1, 0]),
        ("distribution_points", &[0x55, 0x1d, 0x1f], seq(&[])),
        ("authority_access", &[0x2b, 6, 1, 5, 5, 7, 1, 1], seq(&[])),
        ("issuer_names", &[0x55, 0x1d, 0x12], seq(&[&uri(b"https://shop.example")])),
    ];
    let mut cases = Vec::new();
    for (name, id, value) in ids {
        let fault = format!("with_critical_{name}");
        cases.extend(everywhere(&ALL, &fault, "bad-extension", &|cert| {
            cert.add(id, true, &value);
        }));
    }
    let explicit = seq(&[&tlv(0x80, &[&[0]])]);
    cases.extend(everywhere(&ALL, "with_plain_policy_constraints", "bad-extension", &|cert| {
        cert.add(&[0x55, 0x1d, 0x24], false, &explicit);
    }));
    cases
}

fn key_identifiers() -> Vec<Case> {
    let of_authority = seq(&[&tlv(0x80, &[&[7; 20]])]);
    let mut cases = everywhere(&ALL, "with_a_critical_authority_key", "bad-extension", &|cert| {
        cert.add(AUTHORITY_KEY, true, &of_authority);
    });
    cases.extend(everywhere(&ALL, "with_a_critical_subject_key", "bad-extension", &|cert| {
        cert.add(SUBJECT_KEY, true, &tlv(4, &[&[7; 20]]));
    }));
    cases.extend(everywhere(&SHOWN, "with_a_subject_key_of_bits", "malformed", &|cert| {
        cert.add(SUBJECT_KEY, false, &tlv(3, &[&[0, 7, 7]]));
    }));
    cases.extend(everywhere(&SHOWN, "with_an_authority_key_and_more", "malformed", &|cert| {
        cert.add(AUTHORITY_KEY, false, &seq(&[&tlv(0x80, &[&[7; 20]]), &[5, 0]]));
    }));
    cases
}

fn moments() -> Vec<Case> {
    let mut cases = everywhere(&ALL, "that_ended_a_second_ago", "expired", &|cert| {
        cert.not_after = x509::utc("261121115959Z");
    });
    cases.extend(everywhere(&ALL, "that_begins_in_a_second", "not-yet-valid", &|cert| {
        cert.not_before = x509::utc("261121120001Z");
    }));
    cases.extend(everywhere(&ALL, "that_ended_a_century_ago", "expired", &|cert| {
        cert.not_before = x509::utc("500101000000Z");
        cert.not_after = x509::utc("991231235959Z");
    }));
    cases.extend(everywhere(&SHOWN, "that_ends_before_it_begins", "malformed", &|cert| {
        std::mem::swap(&mut cert.not_before, &mut cert.not_after);
    }));
    cases
}

fn times() -> Vec<Case> {
    let bad: [(&str, Vec<u8>); 12] = [
        ("without_seconds", x509::utc("2701010000Z")),
        ("with_an_offset", x509::utc("270101000000+0000")),
        ("in_lower_case", x509::utc("270101000000z")),
        ("without_a_zone", x509::utc("270101000000")),
        ("with_a_fraction", x509::generalized("20501121123000.5Z")),
        ("in_month_13", x509::utc("271301000000Z")),
        ("on_day_0", x509::utc("270100000000Z")),
        ("on_29_february", x509::utc("270229000000Z")),
        ("at_hour_24", x509::utc("270101240000Z")),
        ("at_second_60", x509::utc("270101000060Z")),
        ("before_2050_written_long", x509::generalized("20270101000000Z")),
        ("with_a_space", x509::utc("27 101000000Z")),
    ];
    let mut cases = Vec::new();
    for (name, time) in bad {
        cases.extend(everywhere(&SHOWN, &format!("ending_{name}"), "malformed", &|cert| {
            cert.not_after.clone_from(&time);
        }));
    }
    cases.extend(everywhere(&SHOWN, "beginning_before_2050_written_long", "malformed", &|cert| {
        cert.not_before = x509::generalized("20260101000000Z");
    }));
    cases
}

fn numbers() -> Vec<Case> {
    let serials: [(&str, &[u8]); 5] = [
        ("serial_0", &[0]),
        ("a_negative_serial", &[0x80]),
        ("a_serial_with_a_needless_zero", &[0, 1]),
        ("a_serial_of_21_bytes", &[1; 21]),
        ("no_serial", &[]),
    ];
    let mut cases = Vec::new();
    for (name, serial) in serials {
        cases.extend(everywhere(&SHOWN, &format!("with_{name}"), "malformed", &|cert| {
            cert.serial = serial.to_vec();
        }));
    }
    let versions: [(&str, &[u8]); 4] = [
        ("1", &[]),
        ("1_written_out", &[0xa0, 3, 2, 1, 0]),
        ("2", &[0xa0, 3, 2, 1, 1]),
        ("4", &[0xa0, 3, 2, 1, 3]),
    ];
    for (name, version) in versions {
        cases.extend(everywhere(&SHOWN, &format!("of_version_{name}"), "malformed", &|cert| {
            cert.version = version.to_vec();
        }));
    }
    cases
}

/// A function pointer, so that a certificate can be cloned with it.
type Spoil = fn(Vec<u8>) -> Vec<u8>;

fn encodings() -> Vec<Case> {
    let ways: [(&str, Spoil); 6] = [
        ("followed_by_a_byte", |bytes| [bytes, vec![0]].concat()),
        ("followed_by_a_null", |bytes| [bytes, vec![5, 0]].concat()),
        ("cut_short", |bytes| bytes[..bytes.len() - 1].to_vec()),
        ("of_indefinite_length", |bytes| [&[0x30, 0x80], &bytes[4..], &[0, 0]].concat()),
        ("with_a_long_length", |bytes| [&[0x30, 0x83, 0], &bytes[2..]].concat()),
        ("as_a_set", |bytes| [&[0x31], &bytes[1..]].concat()),
    ];
    let mut cases = Vec::new();
    for (fault, spoil) in ways {
        cases.extend(everywhere(&SHOWN, fault, "malformed", &|cert| cert.spoil = spoil));
    }
    cases.extend(everywhere(&SHOWN, "with_unique_identifiers", "malformed", &|cert| {
        cert.before_extensions = [tlv(0x81, &[&[0, 1]]), tlv(0x82, &[&[0, 1]])].concat();
    }));
    cases.extend(everywhere(&SHOWN, "with_unused_bits_in_its_signature", "malformed", &|cert| {
        cert.signature_bits = 1;
    }));
    cases.extend(everywhere(&SHOWN, "with_another_algorithm_inside", "malformed", &|cert| {
        cert.inner_algorithm = Some("rsa-sha256");
    }));
    cases
}

fn extensions() -> Vec<Case> {
    let mut cases = everywhere(&SHOWN, "with_key_usage_twice", "bad-extension", &|cert| {
        cert.add(x509::USAGE, true, &usage(DIGITAL_SIGNATURE));
    });
    cases.extend(everywhere(&SHOWN, "with_basic_constraints_twice", "bad-extension", &|cert| {
        cert.add(x509::BASIC, true, &seq(&[]));
    }));
    cases.extend(everywhere(&SHOWN, "with_a_default_written_out", "malformed", &|cert| {
        let written = seq(&[&[6, 3, 0x2a, 3, 4], &[1, 1, 0], &[4, 2, 5, 0]]);
        cert.extensions.push((vec![0x2a, 3, 4], written));
    }));
    cases.extend(everywhere(&SHOWN, "with_an_extension_of_bits", "malformed", &|cert| {
        let written = seq(&[&[6, 3, 0x2a, 3, 4], &[3, 3, 0, 5, 0]]);
        cert.extensions.push((vec![0x2a, 3, 4], written));
    }));
    cases.extend(everywhere(&SHOWN, "with_an_identifier_too_long", "malformed", &|cert| {
        cert.add(&[0x2a, 0x80, 3, 4], false, &[5, 0]);
    }));
    cases.extend(everywhere(
        &[Issuer, Middle],
        "with_a_dns_name_of_blanks",
        "malformed",
        &|cert| {
            cert.set(x509::SAN, false, &seq(&[&uri(b"spiffe://shop.example"), &dns(b"a b")]));
        },
    ));
    cases.extend(everywhere(&AUTHORITIES, "with_an_uri_constraint", "name-constraint", &|cert| {
        cert.add(x509::CONSTRAINTS, true, &x509::constraint(1, &uri(b"bank.example")));
    }));
    cases
}

/// Authorities under keys that are not accepted, and what they sign with them.
fn keys() -> Vec<Case> {
    let weak = [
        ("rsa1024", "rsa-sha256"),
        ("p521", "ecdsa-sha256"),
        ("secp256k1", "ecdsa-sha256"),
        ("ed448", "ed448"),
    ];
    let mut cases = Vec::new();
    for place in AUTHORITIES {
        for (key, algorithm) in weak {
            let name = format!("{}_of_four_under_{key}", place.word());
            cases.push(twin_of(TWIN, &name, "weak-algorithm", |case| {
                under(case, place, key, algorithm);
            }));
        }
    }
    cases
}

/// Gives an authority this key.
fn under(case: &mut Case, place: Place, key: &'static str, algorithm: &'static str) {
    with_middle(case);
    place.of(case).key = key;
    let below = place.below().of(case);
    (below.signer, below.algorithm) = (key, algorithm);
    if place == Root {
        place.of(case).signer = key;
        place.of(case).algorithm = algorithm;
    }
}

fn signatures() -> Vec<Case> {
    let weak = [
        ("rsa2048", "rsa-md5"),
        ("rsa2048", "rsa-sha1"),
        ("p256", "ecdsa-sha1"),
        ("rsa2048", "rsa-pss-sha256-short-salt"),
    ];
    let mut cases = Vec::new();
    for place in AUTHORITIES {
        for (key, algorithm) in weak {
            let signed = place.below().word();
            let name = format!("{signed}_of_four_signed_by_{}", algorithm.replace('-', "_"));
            cases.push(twin_of(TWIN, &name, "weak-algorithm", |case| {
                under(case, place, key, "rsa-sha256");
                if place == Root {
                    place.of(case).algorithm =
                        if key == "p256" { "ecdsa-sha256" } else { "rsa-sha256" };
                }
                place.below().of(case).algorithm = algorithm;
            }));
        }
    }
    cases.extend(everywhere(&SHOWN, "with_a_changed_signature", "bad-signature", &|cert| {
        cert.spoil = |mut bytes| {
            let last = bytes.len() - 20;
            bytes[last] ^= 1;
            bytes
        };
    }));
    cases.extend(everywhere(&SHOWN, "with_a_changed_serial", "bad-signature", &|cert| {
        cert.spoil = |mut bytes| {
            // SEQUENCE, SEQUENCE, version, then the serial number's head.
            bytes[4 + 4 + 5 + 2 + 3] ^= 1;
            bytes
        };
    }));
    cases.extend(everywhere(&SHOWN, "signed_by_somebody_else", "bad-signature", &|cert| {
        cert.signer = "nobody";
    }));
    cases
}

fn lengths() -> Vec<Case> {
    let limited = |place: Place, limit: u8, name: &str| {
        twin_of(TWIN, name, "path-length", |case| {
            with_middle(case);
            place.of(case).set(x509::BASIC, true, &x509::authority(Some(limit)));
        })
    };
    vec![
        limited(Middle, 0, "middle_of_four_that_allows_none_below"),
        limited(Root, 0, "root_of_four_that_allows_none_below"),
        limited(Root, 1, "root_of_four_that_allows_one_below"),
    ]
}

/// Names that only look like a SPIFFE ID of a workload (SPIFFE ID, section 2).
fn uris() -> Vec<Case> {
    let bad: [(&str, &[u8]); 14] = [
        ("no_scheme", b"shop.example/orders"),
        ("a_single_slash", b"spiffe:/shop.example/orders"),
        ("no_slashes", b"spiffe:shop.example/orders"),
        ("another_scheme_first", b"https:spiffe://shop.example/orders"),
        ("a_blank_before", b" spiffe://shop.example/orders"),
        ("a_line_after", b"spiffe://shop.example/orders\n"),
        ("a_tab_inside", b"spiffe://shop.example/or\tders"),
        ("a_plus", b"spiffe://shop.example/or+ders"),
        ("a_colon", b"spiffe://shop.example/or:ders"),
        ("an_at_sign", b"spiffe://shop.example/or@ders"),
        ("a_tilde", b"spiffe://shop.example/~orders"),
        ("a_bracket", b"spiffe://[::1]/orders"),
        ("an_upper_case_letter_in_its_domain", b"spiffe://shop.Example/orders"),
        ("a_long_domain", b""),
    ];
    let long = format!("spiffe://{}/orders", "a".repeat(256)).into_bytes();
    let each = bad.into_iter().map(|(name, id)| {
        let id = if id.is_empty() { &long[..] } else { id };
        at(Leaf, &format!("named_by_{name}"), "bad-identity", &|cert| {
            cert.names(&[uri(id)]);
        })
    });
    each.collect()
}

/// What others may refuse, and RFC 5280 and SPIFFE do not.
fn right() -> Vec<Case> {
    let foreign = seq(&[&tlv(0x80, &[&[9; 20]])]);
    vec![
        accepted("key_identifiers_that_do_not_match", |case| {
            with_middle(case);
            case.issuer().add(SUBJECT_KEY, false, &tlv(4, &[&[7; 20]]));
            case.leaf().add(AUTHORITY_KEY, false, &foreign);
        }),
        accepted("leaf_that_outlives_its_issuer", |case| {
            with_middle(case);
            case.leaf().not_after = x509::utc("261221000000Z");
        }),
        accepted("authority_that_outlives_its_root", |case| {
            with_middle(case);
            case.chain[2].not_after = x509::utc("280101000000Z");
        }),
        accepted("plain_policies_on_every_certificate", |case| {
            with_middle(case);
            let policies = seq(&[&seq(&[&tlv(6, &[&[0x2a, 3, 4]])])]);
            for cert in &mut case.chain {
                cert.add(&[0x55, 0x1d, 0x20], false, &policies);
            }
        }),
        accepted("leaf_with_only_its_names_and_usage", |case| {
            with_middle(case);
            case.leaf().remove(x509::BASIC).remove(x509::PURPOSE);
        }),
    ]
}
