//! No chain of bytes makes the verifier panic, nothing but a SPIFFE ID of the bundle's own trust domain passes, and
//! what was verified before changes no verdict.
#![no_main]

use countersign_identity::Timestamp;
use countersign_pki::{
    Bundle, Bundles, ChainMemory, Role, verify, verify_pinned, verify_recalling,
};
use libfuzzer_sys::fuzz_target;

#[path = "../support/parts.rs"]
mod parts;

fuzz_target!(|bytes: &[u8]| {
    let chain = parts::split(bytes);
    let now = Timestamp::from_secs(1_795_262_400);
    let Some((root, shown)) = chain.split_first() else { return };
    let Ok(domain) = "shop.example".parse() else { return };
    if let Ok(bundle) = Bundle::from_concatenated(domain, root)
        && let Ok(bundles) = Bundles::new(vec![bundle])
    {
        let memory = ChainMemory::new();
        for role in [Role::Client, Role::Server, Role::Client, Role::Server] {
            let found = verify_recalling(shown, &bundles, role, now, &memory);
            if let Ok((_, findings)) = &found {
                memory.remember(findings, now);
            }
            let verdict = verify(shown, &bundles, role, now);
            assert_eq!(found.map(|(verified, _)| verified), verdict);
            if let Ok(verified) = verdict {
                assert_eq!(verified.id.trust_domain().as_str(), "shop.example");
                assert!(!verified.id.is_root());
                assert!(now <= verified.expires);
            }
        }
    }
    let pin = countersign_identity::KeyId::from_bytes([7; 32]);
    assert!(verify_pinned(shown, pin, Role::Server, now).is_err());
});
