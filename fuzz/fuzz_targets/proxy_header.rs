//! No bytes make the reader of PROXY headers panic or take more than it says, and both of its ways agree.
#![no_main]

use countersign_proxy::proxy_protocol::{PROXY_HEADER_BYTES_MAX, Told, header, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let parsed = parse(bytes);
    if let Ok(Some((told, taken))) = &parsed {
        assert!(*taken <= bytes.len() && *taken <= PROXY_HEADER_BYTES_MAX);
        assert_eq!(parse(&bytes[..*taken]), parsed, "what follows changes nothing");
        assert_eq!(parse(&bytes[..*taken - 1]), Ok(None), "and what is missing is waited for");
        if let Told::From(address) = told {
            let again = header(*address, *address, "spiffe://shop.example/web");
            assert!(matches!(parse(&again), Ok(Some((Told::From(_), _)))));
        }
    }
});
