//! What others make of a path: a second reading of the canonical form, which shares nothing with the first, and what servers behind
//! a proxy have been seen to take a path for. For tests and fuzzing.

use std::collections::BTreeSet;

/// The longest path that has a canonical form.
const BYTES_MAX: usize = 8192;
/// Many more than what is left to read in different ways after any one of them.
const READINGS_MAX: usize = 500;

/// The canonical form, reached another way: taken apart into bytes first, looked at as a whole, and written anew.
pub(crate) fn form(raw: &str) -> Option<String> {
    if BYTES_MAX < raw.len() {
        return None;
    }
    let mut signs = signs(raw.as_bytes())?.into_iter();
    if signs.next() != Some((b'/', false)) {
        return None;
    }
    let signs: Vec<_> = signs.collect();
    let segments: Vec<&[Sign]> = signs.split(|sign| *sign == (b'/', false)).collect();
    let (last, before) = segments.split_last()?;
    if before.iter().any(|segment| segment.is_empty()) {
        return None;
    }
    let written = before.iter().chain([last]).map(|segment| written(segment));
    written.collect::<Option<Vec<_>>>().map(|segments| format!("/{}", segments.join("/")))
}

/// A byte, and whether it was escaped.
type Sign = (u8, bool);

fn signs(raw: &[u8]) -> Option<Vec<Sign>> {
    let mut signs = Vec::new();
    let mut at = 0;
    while at < raw.len() {
        if raw[at] == b'%' {
            let high = char::from(*raw.get(at + 1)?).to_digit(16)?;
            let low = char::from(*raw.get(at + 2)?).to_digit(16)?;
            signs.push((u8::try_from(high * 16 + low).ok()?, true));
            at += 3;
        } else {
            signs.push((raw[at], false));
            at += 1;
        }
    }
    Some(signs)
}

fn written(segment: &[Sign]) -> Option<String> {
    let bytes: Vec<u8> = segment.iter().map(|(byte, _)| *byte).collect();
    let text = String::from_utf8(bytes).ok()?;
    let ambiguous = |c: char| c.is_ascii_control() || "/\\%;?#".contains(c) || is_like(c);
    if text.chars().any(ambiguous) || [".", ".."].contains(&text.as_str()) {
        return None;
    }
    if text.starts_with(' ') || text.ends_with(' ') {
        return None;
    }
    let mut out = String::new();
    for (byte, escaped) in segment {
        let c = char::from(*byte);
        let unreserved = c.is_ascii_alphanumeric() || "-._~".contains(c);
        if unreserved || (!escaped && "!$&'()*+,=:@".contains(c)) {
            out.push(c);
        } else if *escaped {
            out.push_str(&format!("%{byte:02X}"));
        } else {
            return None;
        }
    }
    Some(out)
}

/// Characters that become a `.`, `/`, `\`, `%`, `;`, `?` or `#` where text is normalised, or is brought into an older alphabet.
fn is_like(c: char) -> bool {
    "\u{37e}\u{2024}\u{2025}\u{2044}\u{2100}\u{2101}\u{2105}\u{2106}\u{2215}\u{2216}\u{fe52}\u{fe54}\u{fe56}\u{fe5f}\
     \u{fe68}\u{fe6a}\u{ff03}\u{ff05}\u{ff0e}\u{ff0f}\u{ff1b}\u{ff1f}\u{ff3c}"
        .contains(c)
}

/// Whether all of them take it for this path and no other: they differ in whether they decode it, and in nothing else.
pub(crate) fn unambiguous(form: &str) -> bool {
    let (raw, decoded) = (form.as_bytes().to_vec(), decoded(form.as_bytes()));
    let separators = |path: &[u8]| path.iter().filter(|byte| **byte == b'/').count();
    separators(&raw) == separators(&decoded)
        && readings(form).iter().all(|reading| *reading == raw || *reading == decoded)
}

/// All that servers could take this path for, each of them lenient in its own way, and one behind the other.
fn readings(path: &str) -> BTreeSet<Vec<u8>> {
    let mut found = BTreeSet::from([path.as_bytes().to_vec()]);
    let mut new: Vec<Vec<u8>> = found.iter().cloned().collect();
    while let Some(path) = new.pop() {
        for read in READERS {
            let reading = read(&path);
            if found.len() < READINGS_MAX && found.insert(reading.clone()) {
                new.push(reading);
            }
        }
    }
    found
}

type Reader = fn(&[u8]) -> Vec<u8>;

const READERS: [Reader; 8] = [
    decoded,
    without_dots,
    with_single_slashes,
    without_parameters,
    with_slashes_only,
    up_to_zero,
    up_to_query,
    without_spaces_at_ends,
];

fn decoded(path: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    while at < path.len() {
        let digit = |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (path[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

fn segments(path: &[u8], change: impl Fn(Vec<Vec<u8>>) -> Vec<Vec<u8>>) -> Vec<u8> {
    let segments = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
    change(segments).join(&b'/')
}

fn without_dots(path: &[u8]) -> Vec<u8> {
    segments(path, |segments| {
        let mut kept: Vec<Vec<u8>> = Vec::new();
        for segment in segments {
            match segment.as_slice() {
                b"." => {}
                b".." if 1 < kept.len() => drop(kept.pop()),
                b".." => {}
                _ => kept.push(segment),
            }
        }
        kept
    })
}

fn with_single_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = path.to_vec();
    out.dedup_by(|a, b| *a == b'/' && *b == b'/');
    out
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    segments(path, |segments| {
        let name =
            |segment: Vec<u8>| segment.split(|byte| *byte == b';').next().map(<[u8]>::to_vec);
        segments.into_iter().filter_map(name).collect()
    })
}

fn with_slashes_only(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect()
}

fn up_to_zero(path: &[u8]) -> Vec<u8> {
    path.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

fn up_to_query(path: &[u8]) -> Vec<u8> {
    path.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default().to_vec()
}

fn without_spaces_at_ends(path: &[u8]) -> Vec<u8> {
    segments(path, |segments| {
        segments.into_iter().map(|segment| segment.trim_ascii().to_vec()).collect()
    })
}
