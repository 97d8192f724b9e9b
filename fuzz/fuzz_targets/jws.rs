//! No bytes make the reader of signed documents panic, and nobody but an authority that is trusted signs one.
#![no_main]

use countersign_pki::{Certificate, Jws, decode_certificates};
use libfuzzer_sys::fuzz_target;

const ROOT: &str = include_str!("../../crates/pki/testdata/verify/roots/shop.pem");

fuzz_target!(|bytes: &[u8]| {
    if let Ok(document) = Jws::parse(bytes) {
        let root = decode_certificates(ROOT).expect("a root's PEM");
        let root = Certificate::parse(&root[0]).expect("a root");
        // Nobody has signed a document with its key.
        assert!(document.verify("countersign-fuzz", &[root]).is_err());
    }
});
