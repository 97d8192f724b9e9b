//! No bytes make the parser of OCSP requests panic.
#![no_main]

use countersign_pki::OcspRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _read = OcspRequest::parse(bytes).is_ok();
});
