//! DER, strictly: what has a second encoding is refused, and every value keeps its very bytes.
//!
//! The reader never recurses and never allocates, so hostile nesting and sizes cost nothing.

use std::ops::Range;

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const NULL: u8 = 0x05;
pub(crate) const OID: u8 = 0x06;
pub(crate) const ENUMERATED: u8 = 0x0a;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;

/// `[number]`, primitive.
pub(crate) const fn context(number: u8) -> u8 {
    0x80 | number
}

/// `[number]`, constructed.
pub(crate) const fn context_constructed(number: u8) -> u8 {
    0xa0 | number
}

/// Where and how bytes depart from DER or from the expected structure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {what}")]
pub(crate) struct BadDer {
    pub(crate) at: usize,
    pub(crate) what: String,
}

/// One value: tag, contents, and the place in the input from which both come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    input: &'a [u8],
    start: usize,
    end: usize,
}

/// Reads values one after the other out of a part of the input.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    input: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Value<'a> {
    /// The whole encoding, tag and length included.
    pub(crate) fn raw(&self) -> &'a [u8] {
        &self.input[self.start..self.end]
    }

    /// Where the whole encoding lies in the input.
    pub(crate) fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    /// Where the contents lie in the input.
    pub(crate) fn content_range(&self) -> Range<usize> {
        self.end - self.content.len()..self.end
    }

    /// Reads what is inside.
    pub(crate) fn inside(&self) -> Reader<'a> {
        Reader { input: self.input, at: self.end - self.content.len(), end: self.end }
    }

    pub(crate) fn bad(&self, what: impl Into<String>) -> BadDer {
        BadDer { at: self.start, what: what.into() }
    }

    /// An INTEGER's contents: at least one byte, and none that could be left out (X.690, 8.3.2).
    pub(crate) fn integer(&self) -> Result<&'a [u8], BadDer> {
        match self.content {
            [] => Err(self.bad("an integer without contents")),
            [0, next, ..] if next & 0x80 == 0 => Err(self.bad("an integer longer than needed")),
            [0xff, next, ..] if next & 0x80 != 0 => Err(self.bad("an integer longer than needed")),
            content => Ok(content),
        }
    }

    /// An INTEGER from 0 to 2^64 - 1.
    pub(crate) fn unsigned(&self) -> Result<u64, BadDer> {
        let content = self.integer()?;
        if content[0] & 0x80 != 0 {
            return Err(self.bad("a negative integer"));
        }
        let digits = content.strip_prefix(&[0]).unwrap_or(content);
        if 8 < digits.len() {
            return Err(self.bad("an integer over 64 bits"));
        }
        Ok(digits.iter().fold(0, |sum, digit| sum << 8 | u64::from(*digit)))
    }

    /// A BOOLEAN (X.690, 11.1: true is FF, and nothing else).
    pub(crate) fn boolean(&self) -> Result<bool, BadDer> {
        match self.content {
            [0] => Ok(false),
            [0xff] => Ok(true),
            _ => Err(self.bad("a boolean that is neither 00 nor FF")),
        }
    }

    /// A BIT STRING of whole bytes: a key or a signature.
    pub(crate) fn whole_bytes(&self) -> Result<&'a [u8], BadDer> {
        match self.content {
            [0, bytes @ ..] => Ok(bytes),
            _ => Err(self.bad("a bit string that is not of whole bytes")),
        }
    }

    /// A BIT STRING of named bits, bit 0 first: unused bits zero, no trailing zero bits (X.690, 11.2).
    pub(crate) fn named_bits(&self) -> Result<u16, BadDer> {
        let (bits, unused, width) = match *self.content {
            [unused @ 0..=7, high] => (u16::from(high) << 8, unused, 8),
            [unused @ 0..=7, high, low] => (u16::from(high) << 8 | u16::from(low), unused, 16),
            _ => return Err(self.bad("a list of bits that is not in its shortest form")),
        };
        // The last bit is set, and none after it.
        if bits.trailing_zeros() + width - u32::from(unused) != 16 {
            return Err(self.bad("a list of bits that is not in its shortest form"));
        }
        Ok(bits)
    }

    /// An OBJECT IDENTIFIER's contents: each part in its shortest form and complete (X.690, 8.19.2).
    pub(crate) fn oid(&self) -> Result<&'a [u8], BadDer> {
        let mut first = true;
        for byte in self.content {
            if first && *byte == 0x80 {
                return Err(self.bad("an object identifier longer than needed"));
            }
            first = byte & 0x80 == 0;
        }
        if !first || self.content.is_empty() {
            return Err(self.bad("an object identifier that ends too soon"));
        }
        Ok(self.content)
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0, end: input.len() }
    }

    pub(crate) fn bad(&self, what: impl Into<String>) -> BadDer {
        BadDer { at: self.at, what: what.into() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.end
    }

    /// The tag that comes next, if any.
    pub(crate) fn peek(&self) -> Option<u8> {
        self.input[self.at..self.end].first().copied()
    }

    /// The next value, of any tag.
    pub(crate) fn any(&mut self) -> Result<Value<'a>, BadDer> {
        let rest = &self.input[self.at..self.end];
        let (tag, header, length) = match *rest {
            [tag, ..] if tag & 0x1f == 0x1f => return Err(self.bad("a tag number over 30")),
            [tag, length @ 0..=0x7f, ..] => (tag, 2, usize::from(length)),
            [tag, 0x81, length @ 0x80..=0xff, ..] => (tag, 3, usize::from(length)),
            [tag, 0x82, high @ 1..=0xff, low, ..] => {
                (tag, 4, usize::from(high) << 8 | usize::from(low))
            }
            [tag, 0x83, high @ 1..=0xff, middle, low, ..] => {
                (tag, 5, usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low))
            }
            // Nothing of ours is over 16 MiB, a long revocation list included, so longer forms are not read at all.
            [_, 0x80..=0xff, ..] => {
                return Err(self.bad("a length that is not in its shortest form, or over 16 MiB"));
            }
            [] | [_] => return Err(self.bad("the end, where a value was expected")),
        };
        let content =
            rest.get(header..header + length).ok_or_else(|| self.bad("a value cut short"))?;
        let start = self.at;
        self.at += header + length;
        Ok(Value { tag, content, input: self.input, start, end: self.at })
    }

    /// The next value, which must have this tag.
    pub(crate) fn take(&mut self, tag: u8, name: &str) -> Result<Value<'a>, BadDer> {
        let value =
            self.any().map_err(|bad| BadDer { what: format!("{name}: {}", bad.what), ..bad })?;
        if value.tag == tag {
            return Ok(value);
        }
        Err(value.bad(format!("{name}: tag {tag:02x} expected, {:02x} found", value.tag)))
    }

    /// The next value if it has this tag.
    pub(crate) fn optional(&mut self, tag: u8, name: &str) -> Result<Option<Value<'a>>, BadDer> {
        (self.peek() == Some(tag)).then(|| self.take(tag, name)).transpose()
    }

    /// A BOOLEAN DEFAULT FALSE: when it is there, it is true (X.690, 11.5).
    pub(crate) fn default_false(&mut self, name: &str) -> Result<bool, BadDer> {
        match self.optional(BOOLEAN, name)? {
            None => Ok(false),
            Some(value) if value.boolean()? => Ok(true),
            Some(value) => Err(value.bad(format!("{name}: a default value that is written out"))),
        }
    }

    /// Refuses what is left over.
    pub(crate) fn end(self, name: &str) -> Result<(), BadDer> {
        if self.is_empty() { Ok(()) } else { Err(self.bad(format!("{name}: bytes left over"))) }
    }
}

/// Writes one value: tag, shortest length, contents in order.
pub(crate) fn write(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(length + 6);
    out.push(tag);
    let bytes = length.to_be_bytes();
    let significant = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    match significant {
        [] => out.push(0),
        [short @ 0..=0x7f] => out.push(*short),
        long => {
            // At most eight bytes of length, so the cast holds.
            out.push(0x80 | u8::try_from(long.len()).unwrap_or(8));
            out.extend_from_slice(long);
        }
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// Writes an INTEGER that is not negative, from its big-endian digits.
pub(crate) fn write_unsigned(digits: &[u8]) -> Vec<u8> {
    let zeros = digits.iter().take_while(|digit| **digit == 0).count();
    match &digits[zeros..] {
        [] => write(INTEGER, &[&[0]]),
        [first, ..] if first & 0x80 != 0 => write(INTEGER, &[&[0], &digits[zeros..]]),
        significant => write(INTEGER, &[significant]),
    }
}

/// Writes a BIT STRING of whole bytes.
pub(crate) fn write_bytes_as_bits(bytes: &[u8]) -> Vec<u8> {
    write(BIT_STRING, &[&[0], bytes])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Value<'_> {
        Reader::new(bytes).any().unwrap()
    }

    #[test]
    fn lengths_have_one_form() {
        for (header, length) in [
            (&[4, 0][..], 0),
            (&[4, 1], 1),
            (&[4, 0x81, 0x80], 128),
            (&[4, 0x82, 1, 0], 256),
            (&[4, 0x83, 1, 0, 0], 65_536),
        ] {
            let bytes = [header, &vec![0; length]].concat();
            assert_eq!(read(&bytes).content.len(), length);
        }
        for bad in [
            &[4, 0x80][..],
            &[4, 0x81, 0x7f],
            &[4, 0x82, 0, 0xff],
            &[4, 0x83, 0, 1, 0],
            &[4, 0x84, 1, 0, 0, 0],
            &[4, 0xff],
            &[4, 1],
            &[4],
            &[],
            &[0x1f, 1, 0],
        ] {
            let padded = [bad, &[0; 300]].concat();
            let bytes = if bad.len() < 3 { bad } else { &padded };
            assert!(Reader::new(bytes).any().is_err(), "{bad:02x?}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for length in [0, 1, 127, 128, 255, 256, 40_000, 70_000] {
            let content = vec![7; length];
            let written = write(OCTET_STRING, &[&content]);
            let mut reader = Reader::new(&written);
            assert_eq!(reader.take(OCTET_STRING, "octets").unwrap().content, content);
            assert!(reader.end("octets").is_ok());
        }
        for number in [0, 1, 127, 128, 255, 256, u64::MAX] {
            let written = write_unsigned(&number.to_be_bytes());
            assert_eq!(read(&written).unsigned(), Ok(number));
        }
    }

    #[test]
    fn numbers_have_one_form() {
        for bad in [&[2, 0][..], &[2, 2, 0, 1], &[2, 2, 0xff, 0x80], &[2, 1, 0x80]] {
            assert!(read(bad).unsigned().is_err(), "{bad:02x?}");
        }
        assert!(read(&[2, 10, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]).unsigned().is_err(), "over 64 bits");
    }

    #[test]
    fn lists_of_bits_have_one_form() {
        assert_eq!(read(&[3, 2, 7, 0x80]).named_bits(), Ok(0x8000));
        assert_eq!(read(&[3, 2, 1, 0x06]).named_bits(), Ok(0x0600));
        assert_eq!(read(&[3, 3, 7, 0, 0x80]).named_bits(), Ok(0x0080));
        for bad in [
            &[3, 0][..],
            &[3, 1, 0],
            &[3, 1, 8],
            &[3, 2, 0, 0],
            &[3, 2, 6, 0x80],
            &[3, 2, 7, 0xc0],
            &[3, 2, 8, 0x80],
            &[3, 2, 255, 0x80],
            &[3, 3, 0, 0x80, 0],
            &[3, 4, 0, 1, 1, 1],
        ] {
            assert!(read(bad).named_bits().is_err(), "{bad:02x?}");
        }
    }

    #[test]
    fn identifiers_have_one_form() {
        assert!(read(&[6, 3, 0x55, 0x1d, 0x0f]).oid().is_ok());
        for bad in [&[6, 0][..], &[6, 2, 0x55, 0x80], &[6, 3, 0x55, 0x80, 1]] {
            assert!(read(bad).oid().is_err(), "{bad:02x?}");
        }
    }
}
