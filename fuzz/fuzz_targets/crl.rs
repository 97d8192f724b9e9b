//! No bytes make the parser of revocation lists panic.
#![no_main]

use countersign_pki::Crl;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _read = Crl::parse(bytes).is_ok();
});
