//! An agent's standing connection: messages, each after its length, on a stream of bytes.
//!
//! It is not HTTP/2, because a server holds ten thousand of them: a connection over which nothing travels holds no
//! buffer here, where HTTP/2 holds 30 KiB (decision 0023).

mod client;

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::Instant;

pub use client::{Calls, Failed, Standing};

/// The application protocol that agent and server agree on (RFC 7301).
pub const ALPN: &[u8] = b"countersign-node";
/// Calls of one connection that may wait for their answers.
pub const CALLS_MAX: usize = 8;

/// Before each message: how long it is, in four bytes, big endian.
const PREFIX_BYTES: usize = 4;
/// As much is read at once.
const READ_BYTES: usize = 8 * 1024;

/// Whole messages out of a stream of bytes. While none has begun, it holds no memory.
#[derive(Debug)]
pub struct Reader {
    read: BytesMut,
    largest: usize,
    patience: Duration,
    /// When the message that has begun must be whole.
    due: Option<Instant>,
}

impl Reader {
    /// A reader of messages of at most so many bytes, each of which is whole within so long after its first byte.
    pub fn new(largest: usize, patience: Duration) -> Self {
        Self { read: BytesMut::new(), largest, patience, due: None }
    }

    /// The next message; `None` where the other end has closed between two. Nothing is lost when this is dropped.
    ///
    /// # Errors
    /// When the connection fails, ends within a message, or brings one that is too large, too slow or not understood.
    pub async fn next<M: Message + Default>(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Option<M>> {
        let Some(message) = self.bytes(io).await? else { return Ok(None) };
        M::decode(message).map(Some).map_err(|why| invalid(&why.to_string()))
    }

    /// The bytes of the next message; `None` where the other end has closed between two. Nothing is lost when this is dropped.
    ///
    /// # Errors
    /// When the connection fails, ends within a message, or brings one that is too large or too slow.
    pub async fn bytes(&mut self, io: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
        // While nobody read, the other end could not be in time.
        self.due = self.due.map(|due| {
            let now = Instant::now();
            if due < now { now + self.patience } else { due }
        });
        loop {
            if let Some(message) = self.whole()? {
                return Ok(Some(message));
            }
            if self.more(io).await? == 0 {
                return self.end();
            }
        }
    }

    async fn more(&mut self, io: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        let due = self.due;
        let more = std::future::poll_fn(|cx| self.poll_more(Pin::new(&mut *io), cx));
        let Some(due) = due else {
            let more = more.await;
            self.due = Some(Instant::now() + self.patience);
            return more;
        };
        tokio::time::timeout_at(due, more).await.unwrap_or_else(|_elapsed| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "a message took too long"))
        })
    }

    /// A message of which everything has come.
    fn whole(&mut self) -> io::Result<Option<Bytes>> {
        let Some((mut prefix, rest)) = self.read.split_at_checked(PREFIX_BYTES) else {
            return Ok(None);
        };
        let length = prefix.get_u32() as usize;
        if self.largest < length {
            let why = format!("a message of {length} bytes: at most {} are allowed", self.largest);
            return Err(invalid(&why));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.read.advance(PREFIX_BYTES);
        let message = self.read.split_to(length).freeze();
        if self.read.is_empty() {
            (self.read, self.due) = (BytesMut::new(), None);
        } else {
            self.due = Some(Instant::now() + self.patience);
        }
        Ok(Some(message))
    }

    /// Reads through a buffer on the stack: one of its own would be there while nothing comes.
    fn poll_more(
        &mut self,
        io: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::uninit(); READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(io.poll_read(cx, &mut buffer))?;
        self.read.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn end(&self) -> io::Result<Option<Bytes>> {
        if !self.read.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(None)
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Whether a [`FromAgent`](crate::v1::FromAgent) holds at most so many items: what is in the call or the step that it is about.
/// It is asked before they are read, which gives each of them a place of a hundred bytes and more.
pub fn elements_within(message: &[u8], most: usize) -> bool {
    let mut left = most;
    // What is not understood is said where it is read.
    count(message, 2, &mut left).unwrap_or(true)
}

/// Counts the fields below so many levels of messages; `None` where it is no protobuf.
fn count(mut bytes: &[u8], levels: u8, left: &mut usize) -> Option<bool> {
    use prost::encoding::{WireType, decode_key, decode_varint};
    while !bytes.is_empty() {
        let (_, kind) = decode_key(&mut bytes).ok()?;
        let inner = match kind {
            WireType::Varint => decode_varint(&mut bytes).ok().map(|_| &[][..])?,
            WireType::SixtyFourBit => bytes.split_off(..8).map(|_| &[][..])?,
            WireType::ThirtyTwoBit => bytes.split_off(..4).map(|_| &[][..])?,
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                bytes.split_off(..length)?
            }
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        if levels == 0 {
            let Some(fewer) = left.checked_sub(1) else { return Some(false) };
            *left = fewer;
        } else if !count(inner, levels - 1, left)? {
            return Some(false);
        }
    }
    Some(true)
}

/// Puts a message behind what is to be written already.
pub fn put(message: &impl Message, out: &mut BytesMut) {
    let length = message.encoded_len();
    out.reserve(PREFIX_BYTES + length);
    // Messages of our own are bounded far below this; one that were not would be refused by its reader.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode(out).expect("there is room for it");
}

/// Writes one message.
///
/// # Errors
/// When the connection fails.
pub async fn write(io: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> io::Result<()> {
    let mut out = BytesMut::new();
    put(message, &mut out);
    io.write_all(&out).await?;
    io.flush().await
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::v1;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn mark(number: u64) -> v1::SyncAck {
        let revision = Some(v1::Revision { incarnation: 1, number });
        v1::SyncAck { revision, points: Vec::new(), unaware: 0 }
    }

    /// Bytes that come in pieces.
    struct Pieces(VecDeque<Vec<u8>>);

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some(piece) = self.0.pop_front() {
                buffer.put_slice(&piece);
            }
            Poll::Ready(Ok(()))
        }
    }

    async fn read_all(bytes: &[u8], cuts: &[usize]) -> io::Result<Vec<v1::SyncAck>> {
        let mut pieces = VecDeque::new();
        let mut from = 0;
        for cut in cuts.iter().copied().chain([bytes.len()]).filter(|cut| 0 < *cut) {
            if from < cut {
                pieces.push_back(bytes[from..cut].to_vec());
                from = cut;
            }
        }
        let (mut io, mut reader, mut read) =
            (Pieces(pieces), Reader::new(1024, PATIENCE), Vec::new());
        while let Some(message) = reader.next(&mut io).await? {
            read.push(message);
        }
        Ok(read)
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(
            numbers in prop::collection::vec(any::<u64>(), 0..20),
            mut cuts in prop::collection::vec(0_usize..400, 0..10),
        ) {
            let mut bytes = BytesMut::new();
            let said: Vec<_> = numbers.into_iter().map(mark).collect();
            said.iter().for_each(|message| put(message, &mut bytes));
            cuts.sort_unstable();
            cuts.retain(|cut| *cut < bytes.len());
            prop_assert_eq!(block_on(read_all(&bytes, &cuts)).unwrap(), said);
        }

        #[test]
        fn no_bytes_make_it_panic_or_hold_more_than_a_message(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            // Whatever it says of them, it says.
            drop(block_on(read_all(&bytes, &[])));
        }
    }

    #[test]
    fn a_message_that_is_too_large_is_refused_by_its_length_alone() {
        let refused = block_on(read_all(&1025_u32.to_be_bytes(), &[])).unwrap_err();
        assert_eq!(refused.to_string(), "a message of 1025 bytes: at most 1024 are allowed");
    }

    #[test]
    fn an_end_within_a_message_is_no_end_between_two() {
        let mut bytes = BytesMut::new();
        put(&mark(7), &mut bytes);
        assert_eq!(block_on(read_all(&bytes, &[])).unwrap().len(), 1);
        for cut in 1..bytes.len() {
            let refused = block_on(read_all(&bytes[..cut], &[])).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::UnexpectedEof, "{cut}");
        }
    }

    #[tokio::test]
    async fn a_message_that_does_not_get_whole_is_given_up_and_silence_between_two_is_not() {
        let patience = Duration::from_millis(20);
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let mut reader = Reader::new(1024, patience);
        let say = async {
            tokio::time::sleep(5 * patience).await;
            write(&mut theirs, &mark(7)).await.unwrap();
            tokio::time::sleep(5 * patience).await;
            theirs.write_all(&[0, 0, 0]).await.unwrap();
            std::future::pending::<()>().await;
        };
        let read = async {
            let first: Option<v1::SyncAck> = reader.next(&mut ours).await.unwrap();
            (first, reader.next::<v1::SyncAck>(&mut ours).await.unwrap_err())
        };
        let (first, slow) = tokio::select! {
            () = say => unreachable!("it says nothing more"),
            read = read => read,
        };
        assert_eq!((first, slow.kind()), (Some(mark(7)), io::ErrorKind::TimedOut));
    }

    #[tokio::test]
    async fn a_message_that_nobody_read_in_time_is_read_all_the_same() {
        let patience = Duration::from_millis(50);
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let mut reader = Reader::new(1024, patience);
        let mut bytes = BytesMut::new();
        put(&mark(7), &mut bytes);
        theirs.write_all(&bytes[..3]).await.unwrap();
        let begun = tokio::time::timeout(patience / 10, reader.next::<v1::SyncAck>(&mut ours));
        begun.await.unwrap_err();
        tokio::time::sleep(2 * patience).await;
        let rest = async {
            tokio::time::sleep(patience / 10).await;
            theirs.write_all(&bytes[3..]).await.unwrap();
        };
        let (read, ()) = tokio::join!(reader.next(&mut ours), rest);
        assert_eq!(read.unwrap(), Some(mark(7)));
    }

    #[test]
    fn items_are_counted_before_they_are_read() {
        let items = vec![v1::SignItem::default(); 100];
        let asked =
            Some(v1::call::Asked::Sign(v1::SignRequest { items, ..v1::SignRequest::default() }));
        let call = v1::Call { number: 1, asked };
        let sign = v1::FromAgent { step: Some(v1::from_agent::Step::Call(call)) }.encode_to_vec();
        assert!(elements_within(&sign, 100) && !elements_within(&sign, 99));
        let points = vec![v1::PointAck::default(); 100];
        let ack = v1::SyncAck { points, ..Default::default() };
        let step = Some(v1::sync_request::Step::Ack(ack));
        let step = v1::from_agent::Step::Sync(v1::SyncRequest { step });
        let ack = v1::FromAgent { step: Some(step) }.encode_to_vec();
        assert!(elements_within(&ack, 100) && !elements_within(&ack, 99));
    }

    #[test]
    fn between_messages_nothing_is_held() {
        let mut bytes = BytesMut::new();
        put(&mark(7), &mut bytes);
        let mut reader = Reader::new(1024, PATIENCE);
        let read: Option<v1::SyncAck> = block_on(reader.next(&mut &bytes[..])).unwrap();
        assert_eq!(read, Some(mark(7)));
        assert_eq!(reader.read.capacity(), 0);
    }
}
