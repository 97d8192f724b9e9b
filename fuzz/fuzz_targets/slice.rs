//! Whatever an agent wants enforced, the library enforces it as a whole or not at all, and says which. Each message has its length in
//! two bytes before it.
#![no_main]

use std::sync::Arc;

use countersign::Decider;
use countersign::steps::{Step, Steps};
use countersign_api::v1::enforcement_response::Step as Told;
use countersign_api::{Message, v1};
use countersign_identity::{Revision, SimClock, Timestamp};
use libfuzzer_sys::fuzz_target;

#[path = "../support/parts.rs"]
mod parts;

fn take(steps: &Steps, slice: v1::Slice) {
    let named: Option<Revision> = slice.revision.map(Into::into);
    let before = steps.trust().slice().revision;
    let readable = Decider::of(slice.clone(), None).is_ok();
    match steps.slice(slice) {
        Step::Acknowledged { revision, .. } => {
            assert!(readable, "both readers agree");
            assert_eq!(Some(revision), named);
            assert!(steps.services().is_some(), "it has come into force");
        }
        Step::Refused(_) => assert_eq!(steps.trust().slice().revision, before, "nothing of it"),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_795_262_400)));
    let steps = Steps::begin(clock);
    for part in parts::split(bytes) {
        let Ok(told) = v1::EnforcementResponse::decode(part) else { return };
        match told.step {
            Some(Told::Slice(slice)) => take(&steps, slice),
            Some(Told::EnforceMark(mark)) => {
                let Some(revision) = mark.revision.map(Revision::from) else { continue };
                if let Step::Acknowledged { revision: reached, .. } = steps.mark(revision) {
                    assert_eq!(reached, revision);
                }
            }
            None => {}
        }
    }
});
