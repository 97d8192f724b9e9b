//! No bytes make a parser panic, and what it accepts others read the same way.

use std::path::Path;

use countersign_identity::KeyId;
use countersign_pki::{
    Bundle, Certificate, Chain, Crl, OcspRequest, PrivateKey, PublicKey, Role, check_leaf,
    decode_certificates, open_csr, verify_pinned,
};
use der::Decode as _;
use proptest::prelude::*;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Every certificate of the accepted vectors.
fn certificates() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/verify");
    let index = std::fs::read_to_string(folder.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let accepted =
        index["cases"].as_array().unwrap().iter().filter(|it| it["verdict"] == "accepted");
    accepted
        .flat_map(|case| {
            let file = folder.join(case["chain"].as_str().unwrap());
            decode_certificates(&std::fs::read_to_string(file).unwrap()).unwrap()
        })
        .collect()
}

fn every_parser(bytes: &[u8]) {
    let domain = || "shop.example".parse().unwrap();
    drop(Certificate::parse(bytes));
    drop(check_leaf(bytes));
    drop(open_csr(bytes));
    drop(Crl::parse(bytes));
    drop(OcspRequest::parse(bytes));
    drop(PublicKey::from_spki(bytes));
    drop(PrivateKey::from_pkcs8(bytes));
    drop(Bundle::parse_json(domain(), bytes));
    drop(Bundle::from_concatenated(domain(), bytes));
    drop(Chain::from_concatenated(bytes));
    drop(Chain::from_pem(&String::from_utf8_lossy(bytes)));
    let pin = KeyId::from_bytes([0; 32]);
    let now = countersign_identity::Timestamp::EPOCH;
    drop(verify_pinned(&[bytes, bytes], pin, Role::Server, now));
}

/// Whether an independent reader sees the same serial number, validity and URI names.
fn others_agree(bytes: &[u8], ours: &Certificate) {
    let theirs = x509_cert::Certificate::from_der(bytes)
        .unwrap_or_else(|error| panic!("we accept what x509-cert refuses ({error}): {bytes:02x?}"));
    let tbs = theirs.tbs_certificate();
    let digits = tbs.serial_number().as_bytes();
    let stripped = digits.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(digits);
    assert_eq!(ours.serial_bytes(), stripped);
    let secs = |time: &x509_cert::time::Time| time.to_unix_duration().as_secs();
    assert_eq!(
        ours.validity().not_after.secs(),
        i64::try_from(secs(&tbs.validity().not_after)).unwrap()
    );
    let names = tbs.get_extension::<SubjectAltName>().unwrap().map(|(_, names)| names.0);
    let uris: Vec<Vec<u8>> = names
        .unwrap_or_default()
        .iter()
        .filter_map(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_bytes().to_vec()),
            _ => None,
        })
        .collect();
    assert_eq!(ours.uri_names(), uris);
}

#[test]
fn another_parser_reads_our_vectors_alike() {
    for bytes in certificates() {
        others_agree(&bytes, &Certificate::parse(&bytes).unwrap());
    }
}

#[test]
fn a_name_that_is_not_what_its_kind_says_is_refused() {
    let mut changed = 0;
    for mut bytes in certificates() {
        let Some(text) = bytes.windows(9).position(|text| text == b"spiffe://") else { continue };
        // Before its length, which is of one byte but for the longest names.
        let Some(tag) = text.checked_sub(2).filter(|tag| bytes[*tag] == 0x86) else { continue };
        // The text of a URI is not the kind and the value that another name consists of.
        bytes[tag] = 0xa0;
        assert!(Certificate::parse(&bytes).is_err(), "{bytes:02x?}");
        changed += 1;
    }
    assert!(10 < changed, "{changed} names");
}

#[test]
fn every_prefix_of_a_certificate_is_refused() {
    let whole = certificates().swap_remove(0);
    for length in 0..whole.len() {
        assert!(Certificate::parse(&whole[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn nested_and_huge_lengths_are_refused_at_once() {
    every_parser(&[0x30, 0x80].repeat(8000));
    every_parser(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]);
    every_parser(&[0x30, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    let mut nested = Vec::new();
    for _ in 0..4000 {
        let length = u16::try_from(nested.len()).unwrap().to_be_bytes();
        nested = [&[0x30, 0x82], length.as_slice(), &nested].concat();
    }
    every_parser(&nested);
}

proptest! {
    #[test]
    fn arbitrary_bytes_make_no_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        every_parser(&bytes);
    }

    #[test]
    fn arbitrary_text_makes_no_parser_panic(text in ".{0,200}") {
        every_parser(text.as_bytes());
    }

    #[test]
    fn changed_certificates_make_no_parser_panic_and_others_agree(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut certificates = certificates();
        let mut bytes = certificates.swap_remove(which.index(certificates.len()));
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        every_parser(&bytes);
        // Not the names' text, which x509-cert reads into types with their own rules.
        if let Ok(ours) = Certificate::parse(&bytes) {
            prop_assert_eq!(ours.der(), &bytes);
            if x509_cert::Certificate::from_der(&bytes).is_ok() && ours.spiffe_id().is_ok() {
                others_agree(&bytes, &ours);
            }
        }
    }
}
