//! A place in a trace, as W3C Trace Context has it.

use std::fmt;
use std::str::FromStr;

use countersign_identity::Serial;

/// A place in a trace: whoever is called from there continues it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub(super) trace: [u8; 16], // INVARIANT: not all 0
    pub(super) span: [u8; 8],   // INVARIANT: not all 0
    pub(super) sampled: bool,
}

impl Context {
    /// Where the issue of a certificate is told. It follows from the serial number, which has 16 bytes as the number of a trace
    /// has, so whoever is shown a certificate can point there; whether it was told is not known to them.
    pub fn of_issue(serial: &Serial) -> Self {
        let trace = *serial.as_bytes();
        let mut span = [0; 8];
        // The half that was drawn, so that it is one of its own.
        span.copy_from_slice(&trace[8..]);
        // Chance could draw nothing but zeros, which names no span.
        span[7] |= u8::from(span == [0; 8]);
        Self { trace, span, sampled: true }
    }
}

/// A text that is no place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a `traceparent` as W3C Trace Context has it")]
pub struct BadContext;

impl FromStr for Context {
    type Err = BadContext;

    fn from_str(text: &str) -> Result<Self, BadContext> {
        let bytes = text.as_bytes();
        // A later version may say more behind a hyphen; this one says nothing more.
        let is_long = 55 < bytes.len();
        let fits = bytes.len() == 55 || (is_long && bytes[55] == b'-' && !text.starts_with("00"));
        if !fits || 256 < bytes.len() || [2, 35, 52].iter().any(|place| bytes[*place] != b'-') {
            return Err(BadContext);
        }
        let [version] = hex(&bytes[..2]).ok_or(BadContext)?;
        let (trace, span) = (hex(&bytes[3..35]), hex(&bytes[36..52]));
        let (trace, span) = trace.zip(span).ok_or(BadContext)?;
        let [flags] = hex(&bytes[53..55]).ok_or(BadContext)?;
        if version == 0xff || trace == [0; 16] || span == [0; 8] {
            return Err(BadContext);
        }
        Ok(Self { trace, span, sampled: flags & 1 == 1 })
    }
}

/// Lower-case hexadecimal digits, and no others.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

pub(super) struct Hex<'a>(pub(super) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{}-{}-{flags:02x}", Hex(&self.trace), Hex(&self.span))
    }
}
