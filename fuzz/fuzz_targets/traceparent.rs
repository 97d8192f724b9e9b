//! What parses as a place in a trace is written in the one form of it, and read again as the same.
#![no_main]

use countersign_program::trace::Context;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(place) = text.parse::<Context>() else { return };
    let written = place.to_string();
    assert_eq!(written.parse(), Ok(place));
    assert_eq!((written.len(), &written[..3]), (55, "00-"));
    assert_eq!(written[3..52], text[3..52], "the trace and the span are those of the text");
    assert_ne!(written[3..35], *"0".repeat(32));
});
