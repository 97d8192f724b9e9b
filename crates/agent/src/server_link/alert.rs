//! Why a server ended a TLS connection, where that says something about this agent's certificate.
//!
//! In TLS 1.3 whoever dials is done before the other end has looked at its certificate: the refusal is an alert on a
//! connection that seemed to be open, and gRPC makes "broken" of it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use countersign_identity::Code;
use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::LinkFault;

/// A connection whose end is looked at.
pub(super) struct Alerted<S> {
    stream: S,
    alerts: Alerts,
}

/// What was seen on a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Alerts {
    revoked: Arc<AtomicBool>,
}

impl<S> Alerted<S> {
    pub(super) fn new(stream: S) -> (Self, Alerts) {
        let alerts = Alerts::default();
        (Self { stream, alerts: alerts.clone() }, alerts)
    }
}

impl Alerts {
    /// The fault of a call on the connection, by the reason that the connection ended for.
    pub(super) fn explain(&self, fault: LinkFault) -> LinkFault {
        if self.revoked.load(Ordering::Relaxed) {
            return LinkFault::new(
                Code::Revoked,
                "the server refuses this agent's certificate as revoked",
            );
        }
        fault
    }

    fn see(&self, error: &io::Error) {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let revoked = rustls::Error::AlertReceived(AlertDescription::CertificateRevoked);
        if tls == Some(&revoked) {
            self.revoked.store(true, Ordering::Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Alerted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(Err(error)) = &read {
            self.alerts.see(error);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Alerted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
