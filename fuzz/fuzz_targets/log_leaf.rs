//! No bytes make the parser of the log's leaves, paths of tiles and keys panic, and what it reads it writes the same.
#![no_main]

use countersign_audit::{Entry, NoteKey, Tile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _read = Entry::parse(bytes).is_ok();
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(tile) = text.parse::<Tile>() {
            assert_eq!(tile.to_string(), text);
        }
        if let Ok(key) = text.parse::<NoteKey>() {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
    }
});
