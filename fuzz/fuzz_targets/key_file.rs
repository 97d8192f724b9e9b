//! No contents of a key file make its reader panic or take more memory than they may, and what opens is the key that the file names.
#![no_main]

use std::path::Path;

use countersign_identity::Entropy;
use countersign_seal::{KekFile, KeyWrap, Passphrase, WrapMethod, WrapRefused};
use libfuzzer_sys::fuzz_target;

/// Where the id of the key stands, and where the note begins with the cost.
const ID_AT: usize = 9;
const NOTE_AT: usize = 19;

/// Opens whatever it is given, as something would that does not look at what it opens.
#[derive(Debug)]
struct Gullible(WrapMethod);

impl KeyWrap for Gullible {
    fn method(&self) -> WrapMethod {
        self.0
    }

    fn note(&self, _entropy: &dyn Entropy) -> Result<Vec<u8>, WrapRefused> {
        Ok(Vec::new())
    }

    fn wrap(
        &self,
        _: &[u8],
        _: &[u8],
        key: &[u8],
        _: &dyn Entropy,
    ) -> Result<Vec<u8>, WrapRefused> {
        Ok(key.to_vec())
    }

    fn unwrap(
        &self,
        _note: &[u8],
        _context: &[u8],
        wrapped: &[u8],
    ) -> Result<zeroize::Zeroizing<Vec<u8>>, WrapRefused> {
        Ok(zeroize::Zeroizing::new(wrapped.to_vec()))
    }
}

/// Whether what the note asks for is little enough to be tried thousands of times, or so much that it is refused.
fn is_cheap(bytes: &[u8]) -> bool {
    let number = |at: usize| {
        let bytes = bytes.get(NOTE_AT + at..NOTE_AT + at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    let (Some(kibibytes), Some(passes)) = (number(0), number(4)) else { return true };
    (kibibytes <= 256 && passes <= 2) || 1024 * 1024 < kibibytes
}

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("kek");
    let open = |by: &dyn KeyWrap| KekFile::parse(path, bytes, Some(by));
    let plain = KekFile::parse(path, bytes, None);
    assert_eq!(plain.is_ok(), bytes.len() == 32 && !bytes.starts_with(b"CSKEK\0\0"));
    for by in [Gullible(WrapMethod::Passphrase), Gullible(WrapMethod::Token)] {
        if let (Ok(kek), true) = (open(&by), plain.is_err()) {
            assert_eq!(bytes[ID_AT..ID_AT + 8], *kek.id().as_bytes(), "another key");
        }
    }
    if is_cheap(bytes) {
        let passphrase = Passphrase::new("correct horse".to_owned().into()).expect("it is one");
        if let (Ok(kek), true) = (open(&passphrase), plain.is_err()) {
            assert_eq!(bytes[ID_AT..ID_AT + 8], *kek.id().as_bytes(), "another key");
        }
    }
});
