//! No bytes make the parser of signed notes and checkpoints panic, and what it reads it writes the same.
#![no_main]

use countersign_audit::{Checkpoint, Note, NoteKey};
use libfuzzer_sys::fuzz_target;

const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";

fuzz_target!(|bytes: &[u8]| {
    if let Ok(note) = Note::parse(bytes) {
        // What was read is written as it was read, or its signatures are not those that were shown.
        let again = Note::parse(note.to_string().as_bytes());
        assert_eq!(again.as_ref(), Ok(&note));
        let _checkpoint = Checkpoint::of(&note).is_ok();
        let key: NoteKey = KEY.parse().expect("it is a key");
        let _verified = note.verify(&[key]).is_ok();
    }
});
