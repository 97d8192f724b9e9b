//! The filter itself: bytes of a client's HTTP/2 in, the same frames with another `:authority` out.

use bytes::{Buf, BufMut, BytesMut};

use super::hpack::{self, BadBlock, Decoder};

/// Why the bytes of a connection were refused. The connection must then be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterRefused {
    /// It does not begin as HTTP/2 with prior knowledge does; a browser's HTTP/1, for example.
    #[error("the connection does not begin with the HTTP/2 preface")]
    NotHttp2,
    /// A frame is larger than the default maximum, and we announce no other.
    #[error("a frame of {bytes} bytes is over the limit of {FRAME_BYTES_MAX}")]
    LargeFrame {
        /// The frame's payload.
        bytes: usize,
    },
    /// A header block is larger than any gRPC client's.
    #[error("a header block is over the limit of {BLOCK_BYTES_MAX} bytes")]
    LargeBlock,
    /// The block unfolds to a list that is larger than any gRPC client's.
    #[error("a header list is over the limit of {} bytes", hpack::LIST_BYTES_MAX)]
    LargeList,
    /// A header block came in more frames than any honest one.
    #[error("a header block came in over {CONTINUATIONS_MAX} continuation frames")]
    ManyContinuations,
    /// Another frame inside a header block, or CONTINUATION outside of one, or for another stream.
    #[error(
        "a frame of type {kind} stands where the header block of a stream goes on or is not begun"
    )]
    BrokenSequence {
        /// The frame's type.
        kind: u8,
    },
    /// Padding or priority fields longer than the frame, or a frame that clients never send.
    #[error("a frame of type {kind} is malformed")]
    MalformedFrame {
        /// The frame's type.
        kind: u8,
    },
    /// The header block is not HPACK.
    #[error("a header block is malformed")]
    MalformedBlock,
}

/// Rewrites `:authority` in one connection's bytes from the client. Without I/O.
///
/// ```
/// use countersign_agent::authority_filter::AuthorityFilter;
///
/// let mut filter = AuthorityFilter::new();
/// let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// assert_eq!(filter.push(preface).unwrap(), preface);
/// assert!(AuthorityFilter::new().push(b"GET / HTTP/1.1\r\n").is_err());
/// ```
#[derive(Debug)]
pub struct AuthorityFilter {
    state: State,
    decoder: Decoder,
    /// The bytes of the element that is not complete yet.
    partial: BytesMut, // INVARIANT: at most the preface, a frame header or a frame of FRAME_BYTES_MAX
    block: Option<Block>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Preface,
    Header,
    /// A frame that is passed on as it is, with so many bytes left.
    Passing(usize),
    /// A frame with a part of a header block.
    Collecting(Frame),
    /// Refused before; nothing more is read.
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    bytes: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// A header block under way.
#[derive(Debug)]
struct Block {
    stream: u32,
    end_stream: bool,
    bytes: Vec<u8>,
    continuations: usize,
}

impl Default for AuthorityFilter {
    fn default() -> Self {
        Self::new()
    }
}

impl AuthorityFilter {
    /// A filter for a new connection.
    pub fn new() -> Self {
        Self {
            state: State::Preface,
            decoder: Decoder::default(),
            partial: BytesMut::new(),
            block: None,
        }
    }

    /// Takes the next bytes from the client, cut anywhere, and gives those to hand on.
    ///
    /// # Errors
    /// When the bytes break a rule or a bound. Every later call is refused too.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<u8>, FilterRefused> {
        let mut out = Vec::with_capacity(bytes.len() + FRAME_HEADER_BYTES);
        self.push_all(bytes, &mut out).inspect_err(|_refused| self.state = State::Refused)?;
        Ok(out)
    }

    /// Whether the client's preface was seen whole.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Preface | State::Refused)
    }

    fn push_all(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), FilterRefused> {
        while !bytes.is_empty() {
            self.state = match self.state {
                State::Refused => return Err(FilterRefused::NotHttp2),
                State::Passing(left) => {
                    let now = left.min(bytes.len());
                    out.extend_from_slice(&bytes[..now]);
                    bytes.advance(now);
                    if now < left { State::Passing(left - now) } else { State::Header }
                }
                State::Preface => {
                    let given = bytes.len().min(PREFACE.len() - self.partial.len());
                    // Refused at the first wrong byte: an HTTP/1 client would wait for ever otherwise.
                    if !PREFACE[self.partial.len()..].starts_with(&bytes[..given]) {
                        return Err(FilterRefused::NotHttp2);
                    }
                    match self.whole(&mut bytes, PREFACE.len()) {
                        Some(preface) => {
                            out.extend_from_slice(&preface);
                            State::Header
                        }
                        None => State::Preface,
                    }
                }
                State::Header => match self.whole(&mut bytes, FRAME_HEADER_BYTES) {
                    Some(header) => self.begin(Frame::read(&header), &header, out)?,
                    None => State::Header,
                },
                State::Collecting(frame) => match self.whole(&mut bytes, frame.bytes) {
                    Some(payload) => {
                        self.collect(frame, &payload, out)?;
                        State::Header
                    }
                    None => State::Collecting(frame),
                },
            };
        }
        Ok(())
    }

    /// The next `count` bytes once they are all there.
    fn whole(&mut self, bytes: &mut &[u8], count: usize) -> Option<BytesMut> {
        let now = bytes.len().min(count - self.partial.len());
        self.partial.put_slice(&bytes[..now]);
        bytes.advance(now);
        (self.partial.len() == count).then(|| std::mem::take(&mut self.partial))
    }

    /// Decides what becomes of a frame by its header.
    fn begin(
        &mut self,
        frame: Frame,
        header: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<State, FilterRefused> {
        if FRAME_BYTES_MAX < frame.bytes {
            return Err(FilterRefused::LargeFrame { bytes: frame.bytes });
        }
        let expected = match &self.block {
            Some(block) => frame.kind == CONTINUATION && frame.stream == block.stream,
            None => frame.kind != CONTINUATION,
        };
        if !expected {
            return Err(FilterRefused::BrokenSequence { kind: frame.kind });
        }
        match frame.kind {
            // Clients never push (RFC 9113, 8.4); its header block would move the table.
            PUSH_PROMISE => Err(FilterRefused::MalformedFrame { kind: frame.kind }),
            HEADERS | CONTINUATION if frame.bytes == 0 => {
                self.collect(frame, &[], out)?;
                Ok(State::Header)
            }
            HEADERS | CONTINUATION => Ok(State::Collecting(frame)),
            _other => {
                out.extend_from_slice(header);
                Ok(if frame.bytes == 0 { State::Header } else { State::Passing(frame.bytes) })
            }
        }
    }

    /// Takes one frame's part of a header block, and writes the block once it is whole.
    fn collect(
        &mut self,
        frame: Frame,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), FilterRefused> {
        let mut block = match self.block.take() {
            None => Block {
                stream: frame.stream,
                end_stream: frame.flags & END_STREAM != 0,
                bytes: fragment(frame, payload)?.to_vec(),
                continuations: 0,
            },
            Some(mut block) => {
                block.continuations += 1;
                block.bytes.extend_from_slice(payload);
                block
            }
        };
        if BLOCK_BYTES_MAX < block.bytes.len() {
            return Err(FilterRefused::LargeBlock);
        }
        if CONTINUATIONS_MAX < block.continuations {
            return Err(FilterRefused::ManyContinuations);
        }
        if frame.flags & END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        let mut fields = self.decoder.decode(&block.bytes).map_err(|bad| match bad {
            BadBlock::Malformed => FilterRefused::MalformedBlock,
            BadBlock::TooLong => FilterRefused::LargeList,
        })?;
        for (_, value) in fields.iter_mut().filter(|(name, _)| name == b":authority") {
            *value = b"localhost".to_vec();
        }
        block.bytes = hpack::encode(&fields);
        block.write(out);
        Ok(())
    }
}

impl Block {
    /// As one HEADERS frame, and CONTINUATION frames for what does not fit.
    fn write(&self, out: &mut Vec<u8>) {
        let mut parts = self.bytes.chunks(FRAME_BYTES_MAX).peekable();
        let first = parts.next().unwrap_or_default();
        let end = |last: bool| if last { END_HEADERS } else { 0 };
        let end_stream = if self.end_stream { END_STREAM } else { 0 };
        self.write_frame(HEADERS, end_stream | end(parts.peek().is_none()), first, out);
        while let Some(part) = parts.next() {
            self.write_frame(CONTINUATION, end(parts.peek().is_none()), part, out);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "a part is at most FRAME_BYTES_MAX")]
    fn write_frame(&self, kind: u8, flags: u8, part: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&(part.len() as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&[kind, flags]);
        out.extend_from_slice(&self.stream.to_be_bytes());
        out.extend_from_slice(part);
    }
}

impl Frame {
    /// Reads the nine bytes of a frame's header; the reserved bit is ignored (RFC 9113, 4.1).
    fn read(header: &[u8]) -> Self {
        let byte = |index: usize| u32::from(header[index]);
        Self {
            bytes: (byte(0) << 16 | byte(1) << 8 | byte(2)) as usize,
            kind: header[3],
            flags: header[4],
            stream: (byte(5) << 24 | byte(6) << 16 | byte(7) << 8 | byte(8)) & 0x7fff_ffff,
        }
    }
}

/// The header block fragment of a HEADERS frame, without padding and priority.
fn fragment(frame: Frame, payload: &[u8]) -> Result<&[u8], FilterRefused> {
    let malformed = || FilterRefused::MalformedFrame { kind: frame.kind };
    let (padding, rest) = if frame.flags & PADDED == 0 {
        (0, payload)
    } else {
        let (padding, rest) = payload.split_first().ok_or_else(malformed)?;
        (usize::from(*padding), rest)
    };
    let priority = if frame.flags & PRIORITY == 0 { 0 } else { PRIORITY_BYTES };
    let end = rest.len().checked_sub(padding).ok_or_else(malformed)?;
    rest.get(priority..end).ok_or_else(malformed)
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: usize = 9;
/// The default of SETTINGS_MAX_FRAME_SIZE, which our HTTP/2 stack does not raise.
const FRAME_BYTES_MAX: usize = 16 * 1024;
const BLOCK_BYTES_MAX: usize = 64 * 1024;
const CONTINUATIONS_MAX: usize = 8;
const PRIORITY_BYTES: usize = 5;

const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

#[cfg(test)]
mod tests;
