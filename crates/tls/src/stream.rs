//! An admitted connection's bytes.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_identity::Code;
use countersign_pki::encode_certificate;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Admitted;
use crate::admission::Place;
use crate::handshake::{probe, probe_after};
use crate::session::{EXPORTED_BYTES, Session};

/// A mutual TLS connection that was admitted. Dropping it closes it and takes it out of the register.
///
/// When we end the connection (expiry, policy, a removed authority), reads and writes fail with an error from which
/// [`code_of_io`](crate::code_of_io) tells the reason.
///
/// Flush before waiting for an answer: what was written may have become a record that still waits here, be it that the socket is
/// full or that the task has had its turn.
#[derive(Debug)]
pub struct Stream {
    session: Session,
    alpn: Option<Box<[u8]>>,
    // Given up last, which closes the connection.
    place: Place,
}

/// The error of a connection that we ended.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) Code);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "we ended the connection ({})", self.0)
    }
}

impl std::error::Error for Ended {}

impl Stream {
    pub(crate) fn new(session: Session, place: Place) -> Self {
        let alpn = session.tls().get_ref().1.alpn_protocol().map(Box::from);
        Self { session, alpn, place }
    }

    /// Under what it was admitted, how long it may live, and a way to hear of its end.
    pub const fn admitted(&self) -> &Admitted {
        &self.place.admitted
    }

    /// The certificates by which the peer came in, in PEM: those that it showed and that lie on the path that was verified, the
    /// leaf first. What else it showed is left out, since nobody has looked whether it is true.
    pub fn peer_chain(&self) -> String {
        let tls = self.session.tls();
        let shown = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let on_path = self.admitted().peer().map_or(&[][..], |peer| &*peer.shown);
        on_path
            .iter()
            .filter_map(|place| shown.get(*place))
            .map(|der| encode_certificate(der))
            .collect()
    }

    /// The application protocol that was agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.alpn.as_deref()
    }

    /// The other end's address.
    ///
    /// # Errors
    /// When the socket is not connected any more.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        self.session.tls().get_ref().0.0.peer_addr()
    }

    /// Notices a peer that has vanished without a word within about this time, also while nothing is sent. It costs nothing but
    /// the system's own probes.
    ///
    /// # Errors
    /// When the socket is not connected any more.
    pub fn probe(&self, silence: Duration) -> io::Result<()> {
        probe(&self.session.tls().get_ref().0.0, silence)
    }

    /// Leaves it to what is said here to notice a peer that has vanished: the system's own probes come only after so long a
    /// silence. For a crowd of connections that are told the same at the same moment: their probes would fall due
    /// in the same moment as well, and overrun what carries them.
    ///
    /// # Errors
    /// When the socket is not connected any more.
    pub fn probe_after(&self, quiet: Duration) -> io::Result<()> {
        probe_after(&self.session.tls().get_ref().0.0, quiet)
    }

    /// Our own address on this connection.
    ///
    /// # Errors
    /// When the socket is not connected any more.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.session.tls().get_ref().0.0.local_addr()
    }

    /// A secret that only the two ends of this connection know (RFC 8446, 7.5), to bind a signature to it.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn export(&self, label: &str) -> Result<[u8; EXPORTED_BYTES], Code> {
        self.session.export(label).map_err(|error| crate::code_of(&error))
    }

    /// Does something with the connection, unless we have ended it: then nothing that came in before, and still
    /// waits to be read, comes out any more either.
    fn unless_ended<T>(
        &mut self,
        act: impl FnOnce(Pin<&mut Session>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        // Asked again afterwards, because being ended is also why the socket may have failed meanwhile.
        if self.admitted().why_ended().is_none() {
            let done = act(Pin::new(&mut self.session));
            if self.admitted().why_ended().is_none() {
                return done;
            }
        }
        let code = self.admitted().why_ended().unwrap_or(Code::Internal);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, Ended(code))))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.unless_ended(|session| session.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unless_ended(|session| session.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unless_ended(|session| session.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.session.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unless_ended(|session| session.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unless_ended(|session| session.poll_shutdown(cx))
    }
}
