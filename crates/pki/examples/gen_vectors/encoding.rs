//! Certificates whose encoding is not the one that DER and RFC 5280 allow.

use crate::x509::{self, seq, tlv};
use crate::{Case, refused};

pub(crate) fn cases() -> Vec<Case> {
    [around(), fields(), times()].into_iter().flatten().collect()
}

/// A function pointer, so that a certificate can be cloned with it.
type Spoil = fn(Vec<u8>) -> Vec<u8>;

fn around() -> Vec<Case> {
    let ways: [(&str, Spoil); 6] = [
        ("followed_by_a_byte", |bytes| [bytes, vec![0]].concat()),
        ("followed_by_another_certificate", |bytes| [bytes.clone(), bytes].concat()),
        ("cut_short", |bytes| bytes[..bytes.len() - 1].to_vec()),
        ("of_indefinite_length", |bytes| [&[0x30, 0x80], &bytes[4..], &[0, 0]].concat()),
        ("with_a_long_length", |bytes| [&[0x30, 0x83, 0], &bytes[2..]].concat()),
        ("empty", |_| Vec::new()),
    ];
    let mut cases: Vec<Case> = ways
        .into_iter()
        .map(|(name, spoil)| {
            refused(&format!("leaf_{name}"), "malformed", |case| case.leaf().spoil = spoil)
        })
        .collect();
    cases.push(refused("issuer_followed_by_a_byte", "malformed", |case| {
        case.issuer().spoil = |bytes| [bytes, vec![0]].concat();
    }));
    cases.push(refused("leaf_over_16_kib", "malformed", |case| {
        case.leaf().add(&[0x2a, 3, 4], false, &tlv(4, &[&[0; 16 * 1024]]));
    }));
    cases
}

fn fields() -> Vec<Case> {
    vec![
        refused("version_1", "malformed", |case| case.leaf().version.clear()),
        refused("version_2", "malformed", |case| case.leaf().version = vec![0xa0, 3, 2, 1, 1]),
        refused("serial_negative", "malformed", |case| case.leaf().serial = vec![0x80, 1]),
        refused("serial_empty", "malformed", |case| case.leaf().serial.clear()),
        refused("serial_with_a_needless_zero", "malformed", |case| {
            case.leaf().serial = vec![0, 1];
        }),
        refused("serial_of_21_bytes", "malformed", |case| case.leaf().serial = vec![1; 21]),
        refused("issuer_name_empty", "malformed", |case| case.leaf().issuer = x509::name("")),
        refused("unique_identifiers", "malformed", |case| {
            case.leaf().before_extensions = tlv(0x81, &[&[0, 1]]);
        }),
        refused("signature_with_unused_bits", "malformed", |case| {
            case.leaf().signature_bits = 1;
        }),
        refused("algorithm_inside_differs", "malformed", |case| {
            case.leaf().inner_algorithm = Some("ecdsa-sha256");
        }),
        refused("authority_flag_not_ff", "malformed", |case| {
            case.issuer().set(x509::BASIC, true, &seq(&[&[1, 1, 1], &[2, 1, 0]]));
        }),
        refused("default_written_out_in_an_extension", "malformed", |case| {
            let written = seq(&[&[6, 3, 0x2a, 3, 4], &[1, 1, 0], &[4, 2, 5, 0]]);
            case.leaf().extensions.push((vec![0x2a, 3, 4], written));
        }),
        refused("key_usage_with_a_trailing_zero_bit", "malformed", |case| {
            case.leaf().set(x509::USAGE, true, &[3, 2, 6, 0x80]);
        }),
        refused("key_usage_with_nine_unused_bits", "malformed", |case| {
            case.leaf().set(x509::USAGE, true, &[3, 2, 9, 0x80]);
        }),
        refused("bytes_after_the_alternative_names", "malformed", |case| {
            let names = seq(&[&x509::uri(b"spiffe://shop.example/orders")]);
            case.leaf().set(x509::SAN, true, &[names, vec![5, 0]].concat());
        }),
        refused("alternative_names_empty", "malformed", |case| {
            case.leaf().set(x509::SAN, true, &seq(&[]));
        }),
        refused("sixty_five_extensions", "malformed", |case| {
            for number in 4..65 {
                case.leaf().add(&[0x2a, 3, number], false, &[5, 0]);
            }
        }),
        refused("name_of_unknown_kind", "malformed", |case| {
            let names = [x509::uri(b"spiffe://shop.example/orders"), tlv(0x89, &[b"x"])];
            case.leaf().names(&names);
        }),
        refused("uri_name_constructed", "malformed", |case| {
            case.leaf().names(&[tlv(0xa6, &[b"spiffe://shop.example/orders"])]);
        }),
        refused("address_of_five_bytes", "malformed", |case| {
            let names = [x509::uri(b"spiffe://shop.example/orders"), tlv(0x87, &[&[1; 5]])];
            case.leaf().names(&names);
        }),
    ]
}

fn times() -> Vec<Case> {
    let bad: [(&str, Vec<u8>); 6] = [
        ("without_seconds", x509::utc("2611211230Z")),
        ("with_an_offset", x509::utc("261121123000+0000")),
        ("with_a_fraction", x509::generalized("20501121123000.5Z")),
        ("on_a_day_that_is_not", x509::utc("261131123000Z")),
        ("generalized_before_2050", x509::generalized("20261121123000Z")),
        ("as_text", tlv(0x0c, &[b"261121123000Z"])),
    ];
    bad.into_iter()
        .map(|(name, time)| {
            refused(&format!("time_{name}"), "malformed", |case| case.leaf().not_after = time)
        })
        .collect()
}
