//! No bytes make the CSR parser panic.
#![no_main]

use countersign_pki::open_csr;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _opened = open_csr(bytes).is_ok();
});
