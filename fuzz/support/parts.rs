//! Several messages in one input: each has its length in two bytes before it, and the last may be cut off.

pub(crate) fn split(bytes: &[u8]) -> Vec<&[u8]> {
    let mut rest = bytes;
    let mut parts = Vec::new();
    while let [high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (part, more) = after.split_at(length);
        parts.push(part);
        rest = more;
    }
    parts
}
