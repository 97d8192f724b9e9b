//! No bytes make the reader of backups panic, and none but a whole sealed backup are read as one, with the pages that were sealed.
//! After a first byte that is even stands a file; after an odd one its parts before they are sealed, each with its length in two
//! bytes before it, since nobody can guess a seal.
#![no_main]

use countersign_identity::{NodeId, SeededEntropy};
use countersign_seal::{Kek, KekFile, seal};
use countersign_server::steps::read_backup;
use libfuzzer_sys::fuzz_target;

#[path = "../support/parts.rs"]
mod parts;

/// What was made of a server's state, behind an even byte.
const MADE: &[u8] = include_bytes!("../corpus/backup/whole");
const HEAD: &[u8] = b"CSBACKUP\x01";
const NAME: [u8; 16] = [1; 16];
/// The first byte of a part.
const SELF: u8 = 0;
const PAGE: u8 = 1;
const END: u8 = 2;

fn kek() -> Kek {
    KekFile::parse("kek".as_ref(), &[7; 32], None).expect("any 32 bytes are")
}

/// The parts, sealed for these places.
fn file<'a>(kek: &Kek, parts: impl Iterator<Item = (usize, &'a [u8])>) -> Vec<u8> {
    let mut file = [HEAD, &NAME].concat();
    for (place, part) in parts {
        let context = format!("backup/{}/{place}", NodeId::from_bytes(NAME));
        let sealed = seal(kek, &context, part, &SeededEntropy::new(1)).expect("it is short");
        file.extend(u32::try_from(sealed.len()).expect("it is short").to_be_bytes());
        file.extend(sealed);
    }
    file
}

fn of_parts(kek: &Kek, parts: &[&[u8]]) {
    let whole = file(kek, parts.iter().copied().enumerate());
    let Ok(pages) = read_backup(&whole, kek) else { return };
    let [first, pages_of @ .., end] = parts else { panic!("it has a beginning and an end") };
    assert_eq!((first.first(), end.first()), (Some(&SELF), Some(&END)));
    let mut sealed: Vec<u8> = Vec::new();
    for part in pages_of {
        let Some((&PAGE, part)) = part.split_first() else { panic!("it is no part with pages") };
        sealed.extend(part);
    }
    let length = |page: &Vec<u8>| u32::try_from(page.len()).expect("it was as long").to_be_bytes();
    let read: Vec<u8> = pages.iter().flat_map(|page| [&length(page)[..], page].concat()).collect();
    assert_eq!(read, sealed, "other pages than were sealed");
    let refused = |bytes: &[u8], what: &str| assert!(read_backup(bytes, kek).is_err(), "{what}");
    refused(&whole[..whole.len() - 1], "it is cut off");
    refused(&[&whole[..], &[0]].concat(), "there is more after its end");
    let last = parts.len() - 1;
    let without =
        |gone: usize| parts.iter().copied().enumerate().filter(move |(at, _)| *at != gone);
    refused(&file(kek, without(last)), "it has no end");
    refused(&file(kek, without(1)), "a part is missing");
}

fuzz_target!(|bytes: &[u8]| {
    let Some((form, rest)) = bytes.split_first() else { return };
    let kek = kek();
    if form % 2 == 1 {
        return of_parts(&kek, &parts::split(rest));
    }
    let read = read_backup(rest, &kek);
    assert_eq!(read.is_ok(), rest == &MADE[1..], "{read:?}");
});
