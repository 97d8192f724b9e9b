//! The byte streams that the data plane reads and writes, as one type.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// One connection, with what is kept for as long as it lives: also after an upgrade, when its HTTP task has ended.
pub(crate) struct Wire<K = ()> {
    kind: Kind,
    _kept: K,
}

/// What it runs over.
pub(crate) enum Kind {
    /// Mutual TLS; the register's guard is inside.
    Mutual(Box<countersign_tls::Stream>),
    /// TCP to or from a program of our own side.
    Tcp(TcpStream),
    /// A Unix socket to or from a program of our own side.
    Unix(UnixStream),
}

impl<K> Wire<K> {
    pub(crate) fn new(kind: Kind, kept: K) -> Self {
        Self { kind, _kept: kept }
    }
}

macro_rules! each {
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.get_mut().kind {
            Kind::Mutual($io) => {
                let $io = Pin::new(&mut **$io);
                $call
            }
            Kind::Tcp($io) => {
                let $io = Pin::new($io);
                $call
            }
            Kind::Unix($io) => {
                let $io = Pin::new($io);
                $call
            }
        }
    };
}

impl<K: Unpin> AsyncRead for Wire<K> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_read(cx, buf))
    }
}

impl<K: Unpin> AsyncWrite for Wire<K> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Mutual(io) => io.is_write_vectored(),
            Kind::Tcp(io) => io.is_write_vectored(),
            Kind::Unix(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_shutdown(cx))
    }
}
