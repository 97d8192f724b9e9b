//! The filter before the Workload API neither panics nor grows without bound, however its input is cut.
#![no_main]

use countersign_agent::authority_filter::AuthorityFilter;
use libfuzzer_sys::fuzz_target;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fuzz_target!(|input: (bool, u8, &[u8])| {
    let (greets, cut, bytes) = input;
    let stream = if greets { [PREFACE, bytes].concat() } else { bytes.to_vec() };
    let mut whole = AuthorityFilter::new();
    let at_once = whole.push(&stream);
    let mut pieces = AuthorityFilter::new();
    let mut passed = Vec::new();
    let in_pieces = stream
        .chunks(usize::from(cut) + 1)
        .try_for_each(|piece| pieces.push(piece).map(|out| passed.extend_from_slice(&out)));
    assert_eq!(at_once.is_ok(), in_pieces.is_ok(), "where the input is cut does not matter");
    if let Ok(at_once) = at_once {
        assert_eq!(at_once, passed);
    }
});
