//! Whatever the Workload API says, the library shows an identity only with a key that fits its certificate, and one that its own
//! verifier takes.
#![no_main]

use std::sync::Arc;

use countersign::Choice;
use countersign::steps::Steps;
use countersign_api::Message;
use countersign_api::workload::X509svidResponse;
use countersign_identity::{SimClock, SpiffeId, Timestamp};
use countersign_pki::{Role, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(response) = X509svidResponse::decode(bytes) else { return };
    let now = Timestamp::from_secs(1_795_262_400);
    let steps = Steps::begin(Arc::new(SimClock::new(now)));
    // The scheme may be spelt in capitals; an identity has one form.
    let named = response.svids.first().and_then(|svid| svid.spiffe_id.parse::<SpiffeId>().ok());
    let taken = steps.svids(response, &Choice::Default, now);
    let Some(identity) = steps.trust().identity() else { return };
    assert!(taken.is_ok(), "nothing of a message that is not used");
    assert_eq!(Some(identity.id()), named.as_ref());
    let chain = identity.chain().ders();
    let slice = steps.trust().slice();
    let stands = |role| verify(&chain, &slice.bundles, role, now).is_ok();
    assert!(stands(Role::Client) || stands(Role::Server), "peers refuse it");
});
