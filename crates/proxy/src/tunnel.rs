//! Bytes both ways, until both ways have ended.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use countersign_program::seldom::Seldom;
use countersign_tls::Admitted;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::bounds::PASSED_AT_ONCE_MAX;

/// Goes on with what is done over a connection, until we cut that: its socket is shut by then, but who does not read it, because
/// what was read is not taken, would not know, and would pass that on. What leads to the program of our own side is never cut.
pub(crate) async fn until_cut(admitted: Option<&Admitted>, work: impl Future<Output = ()>) {
    let ended = admitted.map(Admitted::ended);
    let cut = Seldom::new(Box::pin(async {
        match ended {
            Some(ended) => ended.await,
            None => std::future::pending().await,
        }
    }));
    tokio::select! {
        biased;
        code = cut => tracing::debug!(%code, "a connection was cut"),
        () = work => {}
    }
}

/// Copies between the two until each has said its end to the other. An end of one way is passed on as such, so
/// a protocol that half-closes works. What is cut by the register ends both ways.
///
/// Between two of them nothing is held: what is read goes on at once, and only what is not taken at once is kept. An upgraded connection
/// of a proxy with one worker gives way first ([`crate::way`]), so that the first of a message is kept for one turn.
pub(crate) fn join<A, B>(mut a: A, mut b: B) -> impl Future<Output = io::Result<(u64, u64)>>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Way::default(), Way::default());
    let mut there_first = false;
    std::future::poll_fn(move |cx| {
        // In turns: what never rests one way would leave nothing of the task's turn for the other.
        there_first = !there_first;
        let (went, came) = if there_first {
            let went = there.poll(cx, &mut a, &mut b)?;
            (went, back.poll(cx, &mut b, &mut a)?)
        } else {
            let came = back.poll(cx, &mut b, &mut a)?;
            (there.poll(cx, &mut a, &mut b)?, came)
        };
        match (went, came) {
            (Poll::Ready(went), Poll::Ready(came)) => Poll::Ready(Ok((went, came))),
            _ => Poll::Pending,
        }
    })
}

thread_local! {
    /// Where every connection of a thread reads to, one at a time.
    static ARRIVED: RefCell<Box<[u8]>> = RefCell::new(vec![0; PASSED_AT_ONCE_MAX].into());
}

/// One of the two ways.
#[derive(Default)]
struct Way {
    /// What was read and not taken yet.
    kept: Vec<u8>,
    /// How much of it was taken since.
    taken: usize,
    /// Whether anything was written since the last flush.
    written: bool,
    state: State,
    bytes: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// No more is to be read.
    Ended,
    /// And that was passed on.
    Closed,
}

impl Way {
    /// Goes on until something has to be waited for. Ready, with how many bytes went this way, when the end was passed on.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<io::Result<u64>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            ready!(self.poll_kept(cx, to))?;
            match self.state {
                State::Open => {}
                State::Ended => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Closed;
                }
                State::Closed => return Poll::Ready(Ok(self.bytes)),
            }
            if self.state == State::Open && self.poll_pass(cx, from, to)?.is_pending() {
                self.kept = Vec::new();
                if self.written {
                    // Nothing follows for now that would take it along.
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.written = false;
                }
                return Poll::Pending;
            }
        }
    }

    /// Writes what is kept.
    fn poll_kept<W>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        while self.taken < self.kept.len() {
            let rest = &self.kept[self.taken..];
            self.taken += ready!(poll_some(cx, to, rest))?;
            self.written = true;
        }
        self.kept.clear();
        self.taken = 0;
        Poll::Ready(Ok(()))
    }

    /// Reads once, and passes on what came.
    fn poll_pass<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        ARRIVED.with_borrow_mut(|arrived| {
            let mut arrived = ReadBuf::new(arrived);
            ready!(Pin::new(from).poll_read(cx, &mut arrived))?;
            let mut rest = arrived.filled();
            if rest.is_empty() {
                self.state = State::Ended;
            }
            self.bytes += rest.len() as u64;
            while !rest.is_empty() {
                let Poll::Ready(written) = poll_some(cx, to, rest)? else { break };
                rest = &rest[written..];
                self.written = true;
            }
            self.kept.extend_from_slice(rest);
            Poll::Ready(Ok(()))
        })
    }
}

/// Writes some of it, at least a byte.
fn poll_some<W>(cx: &mut Context<'_>, to: &mut W, bytes: &[u8]) -> Poll<io::Result<usize>>
where
    W: AsyncWrite + Unpin,
{
    match ready!(Pin::new(to).poll_write(cx, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn half_a_close_is_passed_on_and_the_other_half_goes_on() {
        let (mut client, near) = tokio::io::duplex(64);
        let (mut server, far) = tokio::io::duplex(64);
        let joined = tokio::spawn(join(near, far));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = Vec::new();
        server.read_to_end(&mut asked).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answered = Vec::new();
        client.read_to_end(&mut answered).await.unwrap();
        assert_eq!((&*asked, &*answered), (&b"question"[..], &b"answer"[..]));
        assert_eq!(joined.await.unwrap().unwrap(), (8, 6));
    }

    #[tokio::test]
    async fn what_is_not_taken_at_once_arrives_whole_and_in_order() {
        // Much more than there is room for on the way, both ways at once, in pieces of every size.
        let sent: Vec<u8> = (0..300_000_u32).flat_map(u32::to_be_bytes).collect();
        let (mut client, near) = tokio::io::duplex(700);
        let (mut server, far) = tokio::io::duplex(70_000);
        let joined = tokio::spawn(join(near, far));
        let both = [&mut client, &mut server].map(|end| {
            let sent = &sent;
            async move {
                let (mut reads, mut writes) = tokio::io::split(end);
                let sending = async {
                    for piece in sent.chunks(33_333) {
                        writes.write_all(piece).await.unwrap();
                    }
                    writes.shutdown().await.unwrap();
                };
                let mut came = Vec::new();
                let (_sent, _came) = tokio::join!(sending, reads.read_to_end(&mut came));
                came
            }
        });
        let [client, server] = both;
        let (came, went) = tokio::join!(client, server);
        assert!(came == sent && went == sent);
        let bytes = sent.len() as u64;
        assert_eq!(joined.await.unwrap().unwrap(), (bytes, bytes));
    }

    #[tokio::test]
    async fn what_the_other_end_holds_back_for_more_is_sent_when_nothing_follows() {
        let (mut client, near) = tokio::io::duplex(64);
        let (mut server, far) = tokio::io::duplex(64);
        let _joined = tokio::spawn(join(near, tokio::io::BufWriter::new(far)));
        let mut came = [0; 8];
        let passes = async {
            client.write_all(b"ping").await.unwrap();
            server.read_exact(&mut came[..4]).await.unwrap();
            client.write_all(b"last").await.unwrap();
            client.shutdown().await.unwrap();
            server.read_exact(&mut came[4..]).await.unwrap();
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), passes).await.unwrap();
        assert_eq!(&came, b"pinglast");
    }

    #[tokio::test]
    async fn nothing_is_kept_of_a_way_on_which_nothing_waits() {
        let (mut client, mut near) = tokio::io::duplex(64);
        let (mut far, mut server) = tokio::io::duplex(64);
        let mut way = Way::default();
        let mut pass = async |way: &mut Way| {
            let once = |cx: &mut Context<'_>| Poll::Ready(way.poll(cx, &mut near, &mut far));
            std::future::poll_fn(once).await
        };
        client.write_all(&[1; 64]).await.unwrap();
        assert!(pass(&mut way).await.is_pending());
        assert_eq!(way.kept.capacity(), 0);
        client.write_all(&[2; 64]).await.unwrap();
        assert!(pass(&mut way).await.is_pending());
        assert_eq!(way.kept, [2; 64]);
        server.read_exact(&mut [0; 128][..64]).await.unwrap();
        assert!(pass(&mut way).await.is_pending());
        assert_eq!(way.kept.capacity(), 0);
        let mut came = [0; 64];
        server.read_exact(&mut came).await.unwrap();
        assert_eq!(came, [2; 64]);
        drop((client, server));
        assert!(matches!(pass(&mut way).await, Poll::Ready(Ok(128))));
    }
}
