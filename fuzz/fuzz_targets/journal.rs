//! No text makes the reader of journals panic, none of its rules is lost with what is no rule, and nothing is one that was not signed
//! here. What nobody can guess stands in the place of an empty text: the signature of a line.
#![no_main]

use countersign_api::v1;
use countersign_server::steps::JournalLines;
use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "each target uses its own part of this")]
#[path = "../support/server.rs"]
mod server;

/// The record of a line that is not signed yet.
fn unsigned(line: &[u8]) -> Option<v1::Record> {
    let line: serde_json::Value = serde_json::from_slice(line).ok()?;
    let text = |name: &str| Some(line.get(name)?.as_str()?.to_owned());
    let (kind, name, value) = (text("kind")?, text("name")?, text("value")?);
    text("signature")?.is_empty().then(|| v1::Record { kind, name, value: value.into() })
}

/// The line with its signature spelt in other ways, which are none.
fn other_spellings(line: &[u8]) -> Vec<Vec<u8>> {
    let line = String::from_utf8(line.to_vec()).expect("it is JSON");
    let (before, signature) = line.rsplit_once(":\"").expect("the signature is the last of it");
    let digits = signature.trim_end().trim_end_matches("\"}");
    let other = |digits: &str| format!("{before}:\"{digits}\"}}\n");
    let mut spellings = vec![other(&format!("{digits}0")), other(&format!(" {digits}"))];
    let upper = digits.to_ascii_uppercase();
    spellings.extend((upper != digits).then(|| other(&upper)));
    for (at, pair) in digits.as_bytes().chunks(2).enumerate() {
        if pair[0] == b'0' {
            let mut signed = digits.to_owned();
            signed.replace_range(2 * at..=2 * at, "+");
            spellings.push(other(&signed));
        }
    }
    spellings.into_iter().map(String::into_bytes).collect()
}

fuzz_target!(|bytes: &[u8]| {
    let lines = JournalLines::of(server::key(4));
    let (mut text, mut signed) = (Vec::new(), Vec::new());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        match unsigned(line).and_then(|record| lines.sign(record)) {
            Some(rule) => {
                text.extend(lines.line(&rule));
                signed.push(rule);
            }
            None => text.extend(line),
        }
    }
    let (rules, refused) = lines.read(&text);
    assert_eq!(rules, signed, "each that was signed here, and no other");
    let all = text.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii_end().is_empty());
    assert_eq!(rules.len() + refused, all.count(), "each line is told of");
    for rule in &rules {
        let line = lines.line(rule);
        assert_eq!(lines.read(&line), (vec![rule.clone()], 0), "it is written as it was read");
        for other in other_spellings(&line) {
            let (rules, _refused) = lines.read(&other);
            assert!(rules.is_empty(), "read as well: {}", String::from_utf8_lossy(&other));
        }
        let _taken = lines.take(rule).is_ok();
    }
});
