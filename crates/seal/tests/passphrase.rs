//! Sealing by passphrase: what opens, what does not and says so, and what is printed.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

use std::path::Path;

use countersign_identity::SystemEntropy;
use countersign_seal::{KekFile, KekFileRefused, KeyWrap, Passphrase, WrapMethod, WrapRefused};
use zeroize::Zeroizing;

const WORDS: &str = "correct horse battery staple";
const WRONG: &str = "incorrect zebra accumulator paperclip";

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(Zeroizing::new(text.to_owned())).unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap()
}

#[track_caller]
fn refused(path: &Path, by: Option<&dyn KeyWrap>) -> KekFileRefused {
    KekFile::open_by(path, by).unwrap_err()
}

#[test]
fn passphrase_opens_what_it_sealed() {
    let folder = folder();
    let path = folder.path().join("kek");
    let by = passphrase(WORDS);
    let made = KekFile::create_by(&path, Some(&by), &SystemEntropy).unwrap();
    assert_eq!(KekFile::method(&path).unwrap(), Some(WrapMethod::Passphrase));
    let opened = KekFile::open_by(&path, Some(&passphrase(&format!("{WORDS}\r\n")))).unwrap();
    assert_eq!(opened.id(), made.id(), "the end of a line is not part of it");

    // Another passphrase, none, and a method that is not the file's.
    let other = refused(&path, Some(&passphrase("correct horse battery stable"))).to_string();
    assert!(other.contains("the passphrase does not open it"), "{other}");
    let none = refused(&path, None);
    assert!(
        matches!(none, KekFileRefused::Wrapped { method: WrapMethod::Passphrase, .. }),
        "{none}"
    );

    // No byte can be changed unseen. Each try costs its 64 MiB, so a few stand for all.
    let good = std::fs::read(&path).unwrap();
    for at in [0, 7, 8, 9, 20, 30, 45, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        refused(&path, Some(&by));
    }
    for length in 0..good.len() {
        // What is cut behind the salt costs a try.
        if length < 47 || length == good.len() - 1 {
            std::fs::write(&path, &good[..length]).unwrap();
            refused(&path, Some(&by));
        }
    }
}

#[test]
fn file_cannot_ask_for_more_than_a_machine_has() {
    let folder = folder();
    let path = folder.path().join("kek");
    let by = passphrase(WORDS);
    KekFile::create_by(&path, Some(&by), &SystemEntropy).unwrap();
    let mut greedy = std::fs::read(&path).unwrap();
    greedy[19..23].copy_from_slice(&u32::MAX.to_be_bytes());
    std::fs::write(&path, greedy).unwrap();
    let why = match refused(&path, Some(&by)) {
        KekFileRefused::Wrap { why, .. } => why,
        other => panic!("{other}"),
    };
    assert!(matches!(why, WrapRefused::Cost { .. }), "{why}");
}

#[test]
fn neither_passphrase_nor_key_is_printed_and_an_empty_one_is_none() {
    assert_eq!(format!("{:?}", passphrase(WORDS)), "Passphrase");
    let empty = Passphrase::new(Zeroizing::new("\n".to_owned())).unwrap_err();
    assert_eq!(empty, WrapRefused::EmptyPassphrase);
    let folder = folder();
    let path = folder.path().join("kek");
    let by = passphrase(WORDS);
    let kek = KekFile::create_by(&path, Some(&by), &SystemEntropy).unwrap();
    let other = refused(&path, Some(&passphrase(WRONG)));
    for text in [format!("{other:?}"), other.to_string(), format!("{kek:?}")] {
        assert!(!text.contains(WORDS) && !text.contains(WRONG), "{text}");
    }
    let bytes = std::fs::read(&path).unwrap();
    assert!(!bytes.windows(5).any(|part| part == &WORDS.as_bytes()[..5]));
}
