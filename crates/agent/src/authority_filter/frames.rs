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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        out.extend_from_slice(&[kind, flags]);
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(payload);
        out
    }

    type Fields = Vec<(Vec<u8>, Vec<u8>)>;

    fn grpc_fields(authority: &[u8]) -> Fields {
        [
            (&b":method"[..], &b"POST"[..]),
            (b":scheme", b"http"),
            (b":path", b"/SpiffeWorkloadAPI/FetchX509SVID"),
            (b":authority", authority),
            (b"workload.spiffe.io", b"true"),
        ]
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .to_vec()
    }

    fn encoded(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        fluke_hpack::Encoder::new().encode(fields.iter().map(|(n, v)| (&n[..], &v[..])))
    }

    fn opened() -> AuthorityFilter {
        let mut filter = AuthorityFilter::new();
        filter.push(PREFACE).unwrap();
        filter
    }

    /// The header lists in a filter's output, each with its flags, read with an independent decoder.
    fn lists(mut bytes: &[u8]) -> Vec<(u8, Fields)> {
        let mut decoder = fluke_hpack::Decoder::new();
        let mut lists = Vec::new();
        let (mut block, mut first_flags) = (Vec::new(), 0);
        while !bytes.is_empty() {
            let header = Frame::read(&bytes[..9]);
            let payload = &bytes[9..9 + header.bytes];
            if header.kind == HEADERS {
                first_flags = header.flags;
            }
            if matches!(header.kind, HEADERS | CONTINUATION) {
                block.extend_from_slice(payload);
                if header.flags & END_HEADERS != 0 {
                    lists.push((first_flags, decoder.decode(&block).unwrap()));
                    block.clear();
                }
            }
            bytes = &bytes[9 + header.bytes..];
        }
        lists
    }

    #[test]
    fn the_socket_path_that_grpc_core_sends_becomes_localhost() {
        let block = encoded(&grpc_fields(b"tmp%2Fs1"));
        let out = opened().push(&frame(HEADERS, END_HEADERS, 1, &block)).unwrap();
        assert_eq!(lists(&out), [(END_HEADERS, grpc_fields(b"localhost"))]);
    }

    #[test]
    fn the_table_of_the_sender_is_followed_over_several_requests() {
        let mut encoder = fluke_hpack::Encoder::new();
        let mut filter = opened();
        for stream in [1, 3, 5] {
            let fields = grpc_fields(b"run%2Fagent.sock");
            let block = encoder.encode(fields.iter().map(|(n, v)| (&n[..], &v[..])));
            let out = filter.push(&frame(HEADERS, END_HEADERS, stream, &block)).unwrap();
            assert_eq!(lists(&out), [(END_HEADERS, grpc_fields(b"localhost"))]);
        }
    }

    #[test]
    fn padding_priority_and_continuations_are_understood() {
        let block = encoded(&grpc_fields(b"x"));
        let (left, right) = block.split_at(7);
        let mut payload = vec![3, 0, 0, 0, 0, 16];
        payload.extend_from_slice(left);
        payload.extend_from_slice(&[0; 3]);
        let mut bytes = frame(HEADERS, PADDED | PRIORITY | END_STREAM, 1, &payload);
        bytes.extend(frame(CONTINUATION, 0, 1, &[]));
        bytes.extend(frame(CONTINUATION, END_HEADERS, 1, right));
        let out = opened().push(&bytes).unwrap();
        assert_eq!(lists(&out), [(END_STREAM | END_HEADERS, grpc_fields(b"localhost"))]);
    }

    #[test]
    fn other_frames_pass_as_they_are_and_in_order() {
        let mut bytes = frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]);
        bytes.extend(frame(0, 0, 1, &[7; 16 * 1024]));
        bytes.extend(frame(6, 0, 0, &[1; 8]));
        assert_eq!(opened().push(&bytes).unwrap(), bytes);
    }

    #[track_caller]
    fn refused(bytes: &[u8], why: &FilterRefused) {
        let mut filter = opened();
        assert_eq!(filter.push(bytes).as_ref(), Err(why));
        assert!(filter.push(&frame(6, 0, 0, &[0; 8])).is_err(), "refused for good");
    }

    #[test]
    fn hostile_frames_are_refused() {
        refused(&[0, 0x40, 1, 0, 0, 0, 0, 0, 1], &FilterRefused::LargeFrame { bytes: 16385 });
        refused(&frame(CONTINUATION, 4, 1, &[]), &FilterRefused::BrokenSequence { kind: 9 });
        refused(&frame(PUSH_PROMISE, 4, 1, &[0; 4]), &FilterRefused::MalformedFrame { kind: 5 });
        refused(
            &frame(HEADERS, PADDED | 4, 1, &[9, 0]),
            &FilterRefused::MalformedFrame { kind: 1 },
        );
        refused(&frame(HEADERS, PADDED | 4, 1, &[]), &FilterRefused::MalformedFrame { kind: 1 });
        refused(
            &frame(HEADERS, PRIORITY | 4, 1, &[0; 4]),
            &FilterRefused::MalformedFrame { kind: 1 },
        );
        refused(&frame(HEADERS, 4, 1, &[0x3f]), &FilterRefused::MalformedBlock);

        let mut other_stream = frame(HEADERS, 0, 1, &[]);
        other_stream.extend(frame(CONTINUATION, 4, 3, &[]));
        refused(&other_stream, &FilterRefused::BrokenSequence { kind: 9 });
        let mut between = frame(HEADERS, 0, 1, &[]);
        between.extend(frame(0, 0, 1, &[1]));
        refused(&between, &FilterRefused::BrokenSequence { kind: 0 });
    }

    #[test]
    fn continuation_floods_are_refused() {
        let mut empty = frame(HEADERS, 0, 1, &[]);
        (0..=CONTINUATIONS_MAX).for_each(|_| empty.extend(frame(CONTINUATION, 0, 1, &[])));
        refused(&empty, &FilterRefused::ManyContinuations);
        let mut full = frame(HEADERS, 0, 1, &[0x82; 16 * 1024]);
        (0..4).for_each(|_| full.extend(frame(CONTINUATION, 0, 1, &[0x82; 16 * 1024])));
        refused(&full, &FilterRefused::LargeBlock);
    }

    #[test]
    fn http1_is_refused_at_its_first_byte() {
        assert_eq!(AuthorityFilter::new().push(b"G"), Err(FilterRefused::NotHttp2));
        assert_eq!(AuthorityFilter::new().push(b"PRI * HTTP/1"), Err(FilterRefused::NotHttp2));
    }

    #[test]
    fn a_list_that_grows_over_a_frame_is_split() {
        let mut fields = grpc_fields(b"x");
        fields.push((b"grpc-trace".to_vec(), vec![b'z'; 30_000]));
        let block = encoded(&fields);
        let (left, right) = block.split_at(16_000);
        let mut bytes = frame(HEADERS, 0, 1, left);
        bytes.extend(frame(CONTINUATION, END_HEADERS, 1, right));
        let out = opened().push(&bytes).unwrap();
        fields[3].1 = b"localhost".to_vec();
        assert_eq!(lists(&out), [(0, fields)]);
    }

    proptest! {
        #[test]
        fn never_panics_and_never_grows_without_bound(
            frames in prop::collection::vec((0..12_u8, any::<u8>(), 0..4_u32, prop::collection::vec(any::<u8>(), 0..300)), 0..12),
            cut in 1..50_usize,
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload)).collect();
            let mut filter = opened();
            for part in bytes.chunks(cut) {
                let Ok(out) = filter.push(part) else { break };
                prop_assert!(out.len() <= BLOCK_BYTES_MAX + hpack::LIST_BYTES_MAX);
                prop_assert!(filter.partial.len() <= FRAME_BYTES_MAX);
            }
        }

        #[test]
        fn never_panics_on_noise(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _refused_or_not = AuthorityFilter::new().push(&bytes);
            let _refused_or_not = opened().push(&bytes);
        }

        #[test]
        fn where_the_bytes_are_cut_does_not_matter(cut in 1..40_usize) {
            let mut bytes = PREFACE.to_vec();
            bytes.extend(frame(4, 0, 0, &[]));
            bytes.extend(frame(HEADERS, END_HEADERS, 1, &encoded(&grpc_fields(b"a%2Fb"))));
            bytes.extend(frame(0, END_STREAM, 1, &[0; 5]));
            let whole = AuthorityFilter::new().push(&bytes).unwrap();
            let mut filter = AuthorityFilter::new();
            let parts: Vec<u8> = bytes.chunks(cut).flat_map(|part| filter.push(part).unwrap()).collect();
            prop_assert_eq!(parts, whole);
        }
    }
}
