//! The byte streams that the data plane reads and writes, as one type.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::bounds::PASSED_AT_ONCE_MAX;

/// One connection, with what is kept for as long as it lives: also after an upgrade, when its HTTP task has ended.
pub(crate) struct Wire<K = ()> {
    kind: Kind,
    heard: Option<Arc<Heard>>,
    _kept: K,
}

/// What the peer of a connection that we dialled said last.
///
/// In TLS 1.3 the dialling side is done first, and learns from its first read that its certificate was refused.
/// hyper keeps that error to itself on HTTP/2, so it is noted where it passes.
#[derive(Debug, Default)]
pub(crate) struct Heard(OnceLock<AlertDescription>);

impl Heard {
    /// The alert by which the peer refused who we are. Before it is done with that, it reads no request.
    pub(crate) fn refusal(&self) -> Option<AlertDescription> {
        use AlertDescription as A;
        let alert = *self.0.get()?;
        let about_us = matches!(
            alert,
            A::AccessDenied
                | A::BadCertificate
                | A::CertificateExpired
                | A::CertificateRequired
                | A::CertificateRevoked
                | A::CertificateUnknown
                | A::UnknownCA
                | A::UnsupportedCertificate
        );
        about_us.then_some(alert)
    }

    fn note(&self, error: &io::Error) {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = tls {
            // The first one counts; there is no second.
            let _ = self.0.set(*alert);
        }
    }
}

/// What it runs over.
pub(crate) enum Kind {
    /// Mutual TLS; the register's guard is inside.
    Mutual(countersign_tls::Stream),
    /// TCP to or from a program of our own side.
    Tcp(TcpStream),
    /// A Unix socket to or from a program of our own side.
    Unix(UnixStream),
}

impl<K> Wire<K> {
    pub(crate) fn new(kind: Kind, kept: K) -> Self {
        Self { kind, heard: None, _kept: kept }
    }

    /// A wire that notes what the peer says of us.
    pub(crate) fn listening(kind: Kind, kept: K, heard: Arc<Heard>) -> Self {
        Self { kind, heard: Some(heard), _kept: kept }
    }
}

macro_rules! each {
    ($kind:expr, $io:ident => $call:expr) => {
        match $kind {
            Kind::Mutual($io) => {
                let $io = Pin::new($io);
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
        let this = self.get_mut();
        let read = match &mut this.kind {
            Kind::Mutual(io) => Pin::new(io).poll_read(cx, buf),
            Kind::Tcp(io) => Pin::new(&mut io.take(PASSED_AT_ONCE_MAX as u64)).poll_read(cx, buf),
            Kind::Unix(io) => Pin::new(&mut io.take(PASSED_AT_ONCE_MAX as u64)).poll_read(cx, buf),
        };
        if let (Poll::Ready(Err(error)), Some(heard)) = (&read, &this.heard) {
            heard.note(error);
        }
        read
    }
}

impl<K: Unpin> AsyncWrite for Wire<K> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(&mut self.get_mut().kind, io => io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let kind = &mut self.get_mut().kind;
        match bytes {
            // What is in one piece the kernel takes sooner as such.
            [piece] => each!(kind, io => io.poll_write(cx, piece)),
            _ => each!(kind, io => io.poll_write_vectored(cx, bytes)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Mutual(io) => io.is_write_vectored(),
            Kind::Tcp(io) => io.is_write_vectored(),
            Kind::Unix(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut self.get_mut().kind, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut self.get_mut().kind, io => io.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn no_more_is_read_at_once_than_goes_out_as_one_packet() {
        let (mut program, ours) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(Kind::Unix(ours), ());
        program.write_all(&[b'x'; 70_000]).await.unwrap();
        let mut buffer = vec![0; 128 * 1024];
        assert_eq!(wire.read(&mut buffer).await.unwrap(), 65_000);
        assert_eq!(wire.read(&mut buffer).await.unwrap(), 5_000);
    }
}
