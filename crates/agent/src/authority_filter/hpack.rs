//! Header blocks of HTTP/2 (RFC 7541): a bounded decoder, and an encoder without state.

use std::collections::VecDeque;

use super::huffman;

/// The bytes of one decoded header list, each field counted with 32 bytes of overhead (RFC 9113, 6.5.2).
pub(super) const LIST_BYTES_MAX: usize = 64 * 1024;
/// Our HTTP/2 stack announces no other table size than the default (RFC 9113, 6.5.2).
const TABLE_BYTES_MAX: usize = 4096;
const FIELD_OVERHEAD_BYTES: usize = 32;
/// A value of one header field is at most this long; gRPC's own are far below.
const STRING_BYTES_MAX: usize = 32 * 1024;

/// One header field.
pub(super) type Field = (Vec<u8>, Vec<u8>);

/// Why a header block is not one. The table of the sender is then unknown, so the connection must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadBlock {
    /// The bytes are no header block.
    Malformed,
    /// The list is over its bound.
    TooLong,
}

/// Decodes the header blocks of one direction of one connection, in order.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    table: Table,
}

impl Decoder {
    /// Decodes one whole block.
    ///
    /// # Errors
    /// When it is malformed, or its list too long.
    pub(super) fn decode(&mut self, block: &[u8]) -> Result<Vec<Field>, BadBlock> {
        let mut rest = block;
        let mut fields = Vec::new();
        let mut list_bytes = 0;
        while let Some(first) = rest.first() {
            let field = match first {
                0x80.. => self.field(integer(&mut rest, 7)?)?,
                0x40.. => {
                    let field = self.literal(&mut rest, 6)?;
                    self.table.add(field.clone());
                    field
                }
                0x20.. => {
                    // Size updates stand at the start of a block only (RFC 7541, 4.2).
                    let size = integer(&mut rest, 5)?;
                    if !fields.is_empty() || TABLE_BYTES_MAX < size || rest.is_empty() {
                        return Err(BadBlock::Malformed);
                    }
                    self.table.resize(size);
                    continue;
                }
                ..0x20 => self.literal(&mut rest, 4)?,
            };
            list_bytes += field.0.len() + field.1.len() + FIELD_OVERHEAD_BYTES;
            if LIST_BYTES_MAX < list_bytes {
                return Err(BadBlock::TooLong);
            }
            fields.push(field);
        }
        Ok(fields)
    }

    fn literal(&self, rest: &mut &[u8], prefix_bits: u32) -> Result<Field, BadBlock> {
        let name = match integer(rest, prefix_bits)? {
            0 => string(rest)?,
            index => self.field(index)?.0,
        };
        Ok((name, string(rest)?))
    }

    fn field(&self, index: usize) -> Result<Field, BadBlock> {
        let index = index.checked_sub(1).ok_or(BadBlock::Malformed)?;
        match STATIC_TABLE.get(index) {
            Some((name, value)) => Ok((name.as_bytes().to_vec(), value.as_bytes().to_vec())),
            None => self
                .table
                .fields
                .get(index - STATIC_TABLE.len())
                .cloned()
                .ok_or(BadBlock::Malformed),
        }
    }
}

/// The dynamic table: the newest field first.
#[derive(Debug)]
struct Table {
    fields: VecDeque<Field>,
    bytes: usize, // INVARIANT: the sum of the fields' sizes, at most `bytes_max`
    bytes_max: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self { fields: VecDeque::new(), bytes: 0, bytes_max: TABLE_BYTES_MAX }
    }
}

impl Table {
    fn add(&mut self, field: Field) {
        let bytes = size(&field);
        // A field larger than the table empties it, and is not an error (RFC 7541, 4.4).
        self.evict(self.bytes_max.saturating_sub(bytes));
        if bytes <= self.bytes_max {
            self.bytes += bytes;
            self.fields.push_front(field);
        }
    }

    fn resize(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
        self.evict(bytes_max);
    }

    fn evict(&mut self, bytes_max: usize) {
        while bytes_max < self.bytes
            && let Some(field) = self.fields.pop_back()
        {
            self.bytes -= size(&field);
        }
    }
}

fn size(field: &Field) -> usize {
    field.0.len() + field.1.len() + FIELD_OVERHEAD_BYTES
}

/// An integer with a prefix (RFC 7541, 5.1), at most four bytes after it.
fn integer(rest: &mut &[u8], prefix_bits: u32) -> Result<usize, BadBlock> {
    let mask = (1_usize << prefix_bits) - 1;
    let mut value = usize::from(take(rest)?) & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(take(rest)?);
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(BadBlock::Malformed)
}

fn take(rest: &mut &[u8]) -> Result<u8, BadBlock> {
    let (first, after) = rest.split_first().ok_or(BadBlock::Malformed)?;
    *rest = after;
    Ok(*first)
}

fn string(rest: &mut &[u8]) -> Result<Vec<u8>, BadBlock> {
    let huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let bytes = integer(rest, 7)?;
    if rest.len() < bytes || STRING_BYTES_MAX < bytes {
        return Err(BadBlock::Malformed);
    }
    let (text, after) = rest.split_at(bytes);
    *rest = after;
    if !huffman {
        return Ok(text.to_vec());
    }
    let mut out = Vec::with_capacity(bytes);
    huffman::decode(text, &mut out, STRING_BYTES_MAX).map_err(|_bad| BadBlock::Malformed)?;
    Ok(out)
}

/// Encodes a list as literals without indexing and without Huffman: no state on either side.
pub(super) fn encode(fields: &[Field]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        put_string(name, &mut block);
        put_string(value, &mut block);
    }
    block
}

#[expect(clippy::cast_possible_truncation, reason = "each byte is masked to seven bits")]
fn put_string(text: &[u8], block: &mut Vec<u8>) {
    let mut rest = text.len();
    if rest < 0x7f {
        block.push(rest as u8);
    } else {
        block.push(0x7f);
        rest -= 0x7f;
        while 0x80 <= rest {
            block.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        block.push(rest as u8);
    }
    block.extend_from_slice(text);
}

/// RFC 7541, appendix A.
const STATIC_TABLE: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn refused(block: &[u8], why: BadBlock) {
        assert_eq!(Decoder::default().decode(block).unwrap_err(), why, "decoding {block:02x?}");
    }

    #[test]
    fn hostile_blocks_are_refused() {
        refused(&[0x80], BadBlock::Malformed); // index 0
        refused(&[0xbe], BadBlock::Malformed); // index 62 of an empty table
        refused(&[0x3f], BadBlock::Malformed); // a size update cut short
        refused(&[0x3f, 0xe2, 0x1f, 0x82], BadBlock::Malformed); // a table of 4097 bytes
        refused(&[0x82, 0x20], BadBlock::Malformed); // a size update after a field
        refused(&[0x20], BadBlock::Malformed); // a size update at the end
        refused(&[0x00, 0x05, b'a'], BadBlock::Malformed); // a name cut short
        refused(&[0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x7f], BadBlock::Malformed); // an endless integer
    }

    #[test]
    fn small_blocks_that_unfold_to_large_lists_are_refused() {
        // One field of 4000 bytes into the table, then a reference a byte.
        let mut block = vec![0x40, 1, b'a'];
        put_string(&[b'b'; 4000], &mut block);
        block.extend_from_slice(&[0xbe; 60_000]);
        refused(&block, BadBlock::TooLong);
    }

    #[test]
    fn a_field_larger_than_the_table_empties_it() {
        let mut decoder = Decoder::default();
        decoder.decode(&[0x40, 1, b'a', 1, b'b']).unwrap();
        assert_eq!(decoder.decode(&[0xbe]).unwrap(), [(b"a".to_vec(), b"b".to_vec())]);
        let mut block = vec![0x40, 1, b'a'];
        put_string(&[b'b'; 5000], &mut block);
        decoder.decode(&block).unwrap();
        assert_eq!(decoder.decode(&[0xbe]), Err(BadBlock::Malformed));
    }

    proptest! {
        #[test]
        fn decodes_what_an_independent_encoder_wrote(
            lists in prop::collection::vec(prop::collection::vec(("[a-z:-]{1,9}", "[ -~]{0,300}"), 0..9), 1..9)
        ) {
            let mut encoder = fluke_hpack::Encoder::new();
            let mut decoder = Decoder::default();
            for list in lists {
                let fields: Vec<Field> = list.into_iter().map(|(name, value)| (name.into_bytes(), value.into_bytes())).collect();
                let block = encoder.encode(fields.iter().map(|(name, value)| (&name[..], &value[..])));
                prop_assert_eq!(decoder.decode(&block).unwrap(), fields);
            }
        }

        #[test]
        fn an_independent_decoder_reads_what_is_encoded(
            fields in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..200), prop::collection::vec(any::<u8>(), 0..900)), 0..9)
        ) {
            prop_assert_eq!(fluke_hpack::Decoder::new().decode(&encode(&fields)).unwrap(), fields);
        }

        #[test]
        fn agrees_with_an_independent_decoder(block in prop::collection::vec(any::<u8>(), 0..400)) {
            // The other one panics on a size update that is cut short.
            if let Ok(ours) = Decoder::default().decode(&block) {
                prop_assert_eq!(fluke_hpack::Decoder::new().decode(&block).unwrap(), ours);
            }
        }
    }
}
