//! No bytes make the parser of proofs panic, and what it reads it writes the same.
#![no_main]

use countersign_audit::{Bundle, NoteKey};
use libfuzzer_sys::fuzz_target;

const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";

fuzz_target!(|bytes: &[u8]| {
    if let Ok(bundle) = Bundle::parse(bytes) {
        assert_eq!(Bundle::parse(bundle.to_string().as_bytes()).as_ref(), Ok(&bundle));
        let key: NoteKey = KEY.parse().expect("it is a key");
        // Nobody has signed a log with this key.
        assert!(bundle.verify(&[key]).is_err());
    }
});
