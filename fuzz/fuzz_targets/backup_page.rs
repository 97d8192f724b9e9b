//! No bytes make the reader of a backup's pages panic, and what it reads is written again to the same bytes.
#![no_main]

use countersign_store::Page;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(page) = Page::parse(bytes) else { return };
    assert_eq!(page.bytes, bytes);
    assert!(page.rows <= bytes.len() as u64, "each row takes some of it");
    assert_eq!(page.rewritten().expect("it was read"), page);
    for cut in [0, bytes.len() / 2, bytes.len() - 1] {
        assert!(Page::parse(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert!(Page::parse(&[bytes, &[0]].concat()).is_err(), "there is more than its rows");
});
