//! A bundle that parses is written and read again as the same.
#![no_main]

use countersign_identity::TrustDomain;
use countersign_pki::Bundle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let domain: TrustDomain = "shop.example".parse().expect("a trust domain");
    if let Ok(bundle) = Bundle::parse_json(domain.clone(), bytes) {
        let again = Bundle::parse_json(domain, bundle.to_json().as_ref()).expect("what we wrote");
        assert_eq!(again.sequence, bundle.sequence);
        assert_eq!(again.authorities.len(), bundle.authorities.len());
    }
});
