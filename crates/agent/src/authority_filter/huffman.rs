//! The Huffman code of HPACK (RFC 7541, appendix B), decoded from its code lengths alone: it is canonical.
//!
//! The decoder of the crate `fluke-hpack` builds hash maps for each string, which a caller could turn into a second
//! of work per header block; this one allocates nothing.

/// Not a Huffman string: a code without a symbol, the end symbol, or padding that is not its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadHuffman;

/// How many bits each symbol's code has; the last one is the end of string.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
const BITS_MAX: usize = 30;
const END: u16 = 256;

/// For each length: the first code, the number of codes, and where their symbols begin in `symbols`.
struct Canonical {
    first: [u32; BITS_MAX + 1],
    count: [u32; BITS_MAX + 1],
    start: [usize; BITS_MAX + 1],
    symbols: [u16; 257],
}

const CANONICAL: Canonical = canonical();

#[expect(clippy::cast_possible_truncation, reason = "a symbol is below 257")]
const fn canonical() -> Canonical {
    let mut table = Canonical {
        first: [0; BITS_MAX + 1],
        count: [0; BITS_MAX + 1],
        start: [0; BITS_MAX + 1],
        symbols: [0; 257],
    };
    let (mut code, mut bits, mut next) = (0, 1, 0);
    while bits <= BITS_MAX {
        code <<= 1;
        table.first[bits] = code;
        table.start[bits] = next;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == bits {
                table.symbols[next] = symbol as u16;
                table.count[bits] += 1;
                next += 1;
                code += 1;
            }
            symbol += 1;
        }
        bits += 1;
    }
    table
}

/// Decodes a Huffman string onto the end of `out`, whose length it never lets grow beyond `out_bytes_max`.
///
/// # Errors
/// When the bytes are no Huffman string, or too long a one.
pub(super) fn decode(
    bytes: &[u8],
    out: &mut Vec<u8>,
    out_bytes_max: usize,
) -> Result<(), BadHuffman> {
    let (mut code, mut bits) = (0_u32, 0_usize);
    for byte in bytes {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            bits += 1;
            let offset = code.wrapping_sub(CANONICAL.first[bits]);
            if CANONICAL.first[bits] <= code && offset < CANONICAL.count[bits] {
                let symbol = CANONICAL.symbols[CANONICAL.start[bits] + offset as usize];
                let literal = u8::try_from(symbol).ok().filter(|_| symbol < END);
                if out_bytes_max <= out.len() {
                    return Err(BadHuffman);
                }
                out.push(literal.ok_or(BadHuffman)?);
                (code, bits) = (0, 0);
            } else if bits == BITS_MAX {
                return Err(BadHuffman);
            }
        }
    }
    // The rest must be at most 7 bits of the end symbol's code, which is all ones (RFC 7541, 5.2).
    if bits <= 7 && code + 1 == 1 << bits { Ok(()) } else { Err(BadHuffman) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = Vec::new();
        for byte in text {
            let length = usize::from(LENGTHS[usize::from(*byte)]);
            let symbols = &CANONICAL.symbols[CANONICAL.start[length]
                ..CANONICAL.start[length] + CANONICAL.count[length] as usize];
            let index = symbols.iter().position(|symbol| *symbol == u16::from(*byte)).unwrap();
            let code = CANONICAL.first[length] + u32::try_from(index).unwrap();
            bits.extend((0..length).rev().map(|shift| code >> shift & 1 == 1));
        }
        while bits.len() % 8 != 0 {
            bits.push(true);
        }
        bits.chunks(8)
            .map(|chunk| chunk.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit)))
            .collect()
    }

    fn decoded(bytes: &[u8]) -> Result<Vec<u8>, BadHuffman> {
        let mut out = Vec::new();
        decode(bytes, &mut out, 4096).map(|()| out)
    }

    #[test]
    fn strings_of_the_standard_decode() {
        // RFC 7541, C.4.1 and C.6.1.
        let authority = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&authority).unwrap(), b"www.example.com");
        assert_eq!(decoded(&[0xae, 0xc3, 0x77, 0x1a, 0x4b]).unwrap(), b"private");
    }

    #[test]
    fn every_byte_survives_the_way_there_and_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decoded(&encode(&all)).unwrap(), all);
    }

    #[test]
    fn wrong_padding_the_end_symbol_and_long_strings_are_refused() {
        assert_eq!(decoded(&[0xff]), Err(BadHuffman), "8 bits of padding");
        assert_eq!(decoded(&[0x00]), Err(BadHuffman), "padding of zeros after `0`");
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(BadHuffman), "the end symbol");
        assert_eq!(decode(&encode(&[b'0'; 10]), &mut Vec::new(), 9), Err(BadHuffman));
    }
}
