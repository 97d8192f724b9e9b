//! Whatever groups a process lies in, what is read of them is one whole name out of the text, or an error.
#![no_main]

use countersign_agent::attest::membership;
use countersign_identity::{Selector, SelectorKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(found) = membership(text) else { return };
    assert!(found.unit.is_none() || found.container.is_none(), "only the topmost counts");
    let stands =
        |name: &str| text.lines().any(|line| line.split('/').any(|part| part.contains(name)));
    if let Some(unit) = found.unit {
        assert!(unit.ends_with(".service") && !unit.contains('/') && stands(&unit), "{unit:?}");
    }
    if let Some(id) = found.container {
        assert!(stands(&id), "{id:?}");
        assert!(Selector::new(SelectorKind::ContainerId, &id).is_ok(), "{id:?}");
    }
});
