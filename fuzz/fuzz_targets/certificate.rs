//! No bytes make the certificate parser panic, and what it takes is what was there.
#![no_main]

use countersign_pki::{Certificate, PublicKey, check_leaf};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(certificate) = Certificate::parse(bytes) {
        assert_eq!(certificate.der(), bytes);
        let _read = (
            certificate.spiffe_id().is_ok(),
            certificate.provenance().is_some(),
            certificate.serial(),
        );
    }
    let _checked = (check_leaf(bytes).is_ok(), PublicKey::from_spki(bytes).is_ok());
});
