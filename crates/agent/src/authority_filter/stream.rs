//! The filter around an accepted connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::AuthorityFilter;

/// A connection whose incoming bytes go through [`AuthorityFilter`]; what is written passes untouched.
///
/// `C` is what the agent knows of the caller; each request on the connection carries it among its extensions.
#[derive(Debug)]
pub struct FilteredStream<S, C> {
    inner: S,
    filter: AuthorityFilter,
    filtered: Bytes,
    caller: C,
    /// Runs until the preface is there: a caller that says nothing does not keep its place.
    preface_due: Option<Pin<Box<Sleep>>>,
}

/// How much is read from the socket at once.
const READ_BYTES: usize = 8 * 1024;
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

impl<S, C> FilteredStream<S, C> {
    /// Puts a fresh filter in front of a connection.
    pub fn new(inner: S, caller: C) -> Self {
        Self {
            inner,
            filter: AuthorityFilter::new(),
            filtered: Bytes::new(),
            caller,
            preface_due: Some(Box::pin(tokio::time::sleep(PREFACE_TIMEOUT))),
        }
    }
}

impl<S, C: Clone + Send + Sync + 'static> Connected for FilteredStream<S, C> {
    type ConnectInfo = C;

    fn connect_info(&self) -> C {
        self.caller.clone()
    }
}

impl<S: AsyncRead + Unpin, C: Unpin> AsyncRead for FilteredStream<S, C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.filtered.is_empty() {
            if self.filter.is_open() {
                self.preface_due = None;
            }
            if let Some(due) = &mut self.preface_due
                && due.as_mut().poll(context).is_ready()
            {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let mut space = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            match self.filter.push(read.filled()) {
                Ok(bytes) => self.filtered = bytes.into(),
                Err(refused) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refused)));
                }
            }
        }
        let now = self.filtered.len().min(out.remaining());
        out.put_slice(&self.filtered[..now]);
        self.filtered.advance(now);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, C: Unpin> AsyncWrite for FilteredStream<S, C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
