//! The canonical form of a path is that of a second, independent reading, and nobody behind a proxy takes it for another path.
#![no_main]

use countersign_identity::CanonicalPath;
use libfuzzer_sys::fuzz_target;

#[path = "../../crates/identity/tests/support/readings.rs"]
mod readings;

fuzz_target!(|raw: &str| {
    let ours = CanonicalPath::of(raw).ok();
    let ours = ours.as_ref().map(CanonicalPath::as_str);
    assert_eq!(ours, readings::form(raw).as_deref(), "one form");
    if let Some(form) = ours {
        assert!(readings::unambiguous(form), "every reader sees the same");
    }
});
