//! A TLS session over TCP that its owner reads and writes, and that the register can shut and name.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use rustls::{ConnectionCommon, SideData};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// How many bytes of a secret are exported.
pub(crate) const EXPORTED_BYTES: usize = 32;

/// How much is read or written at once: who asks for more holds the lock no longer, against whoever wants to shut the connection.
const AT_ONCE_BYTES_MAX: usize = 64 * 1024;

/// One for both. Its connection is closed when both have let go of it. The lock is held while one of them does one thing, none of
/// which waits: the longest is to seal and to send, or to receive and to open, [`AT_ONCE_BYTES_MAX`].
#[derive(Clone, Debug)]
pub(crate) struct Session(Arc<Mutex<TlsStream<Socket>>>);

impl Session {
    pub(crate) fn new(tls: TlsStream<Socket>) -> Self {
        Self(Arc::new(Mutex::new(tls)))
    }

    /// The session itself, for as long as this is held.
    pub(crate) fn tls(&self) -> MutexGuard<'_, TlsStream<Socket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shuts the connection both ways, whoever uses it meanwhile.
    ///
    /// # Errors
    /// When it is not connected any more.
    pub(crate) fn shut(&self) -> io::Result<()> {
        SockRef::from(&self.tls().get_ref().0.0).shutdown(Shutdown::Both)
    }

    /// A secret that only the two ends know (RFC 8446, 7.5).
    ///
    /// # Errors
    /// When the session is broken.
    pub(crate) fn export(&self, label: &str) -> Result<[u8; EXPORTED_BYTES], rustls::Error> {
        fn of<D: SideData>(
            tls: &ConnectionCommon<D>,
            label: &str,
        ) -> Result<[u8; EXPORTED_BYTES], rustls::Error> {
            tls.export_keying_material([0; EXPORTED_BYTES], label.as_bytes(), None)
        }
        match &*self.tls() {
            TlsStream::Client(tls) => of(tls.get_ref().1, label),
            TlsStream::Server(tls) => of(tls.get_ref().1, label),
        }
    }
}

impl AsyncRead for Session {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() <= AT_ONCE_BYTES_MAX {
            return Pin::new(&mut *self.tls()).poll_read(cx, buffer);
        }
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(AT_ONCE_BYTES_MAX));
        ready!(Pin::new(&mut *self.tls()).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Session {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(AT_ONCE_BYTES_MAX)];
        Pin::new(&mut *self.tls()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.tls()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tls()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tls()).poll_shutdown(cx)
    }
}

/// What a session runs over. What is to go out in one piece is sent as such: rustls writes all it has as if it were several, which
/// takes the kernel longer.
#[derive(Debug)]
pub(crate) struct Socket(pub(crate) TcpStream);

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices {
            [piece] => Pin::new(&mut self.0).poll_write(cx, piece),
            _ => Pin::new(&mut self.0).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
