//! No bytes make the opener of sealed values panic, and none that were not sealed under a key open under it.
#![no_main]

use countersign_identity::SeededEntropy;
use countersign_seal::{Kek, open};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let kek = Kek::draw(&SeededEntropy::new(7)).expect("seeded entropy never ends");
    assert!(open(&kek, "fuzz", bytes).is_err());
});
