//! No text makes the policy compiler panic, and what compiles with nothing permitted denies.
#![no_main]

use countersign_policy::{Policies, PolicySource, scope};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let source = PolicySource::enforced("fuzz".parse().expect("a name"), text);
    let compiled = Policies::compile(&[source], None);
    assert!(compiled.is_err() || scope(text).is_ok(), "what compiles has a scope");
});
