//! TLS to the database, by our one TLS stack.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::target::{Tls, private};
use crate::{Result, StoreError};

/// Makes TLS connections to a database of a name.
#[derive(Clone)]
pub(super) struct MakeTls(Option<TlsConnector>);

/// What makes one of them.
pub(super) struct Connect {
    connector: Option<TlsConnector>,
    name: String,
}

fn unfit(path: &Path, why: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable {
        why: format!("`{}`, which the database's URL names: {why}", path.display()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<_> = read.map_err(|why| unfit(path, why))?;
    if found.is_empty() { Err(unfit(path, "there is no certificate in it")) } else { Ok(found) }
}

impl MakeTls {
    /// Reads the certificates that are trusted, and ours; anew for each connection, so that they may be renewed.
    pub(super) fn new(tls: &Tls) -> Result<Self> {
        let Tls::Full { roots, own } = tls else { return Ok(Self(None)) };
        let mut trusted = RootCertStore::empty();
        for certificate in certificates(roots)? {
            trusted.add(certificate).map_err(|why| unfit(roots, why))?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|why| unfit(roots, why))?
            .with_root_certificates(trusted);
        let config = match own {
            None => config.with_no_client_auth(),
            Some(own) => {
                let key = PrivateKeyDer::from_pem_slice(private(&own.key)?.as_bytes());
                let key = key.map_err(|why| unfit(&own.key, why))?;
                let config = config.with_client_auth_cert(certificates(&own.chain)?, key);
                config.map_err(|why| unfit(&own.chain, why))?
            }
        };
        Ok(Self(Some(TlsConnector::from(Arc::new(config)))))
    }
}

impl<S> MakeTlsConnect<S> for MakeTls
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type TlsConnect = Connect;
    type Error = io::Error;

    fn make_tls_connect(&mut self, name: &str) -> io::Result<Connect> {
        Ok(Connect { connector: self.0.clone(), name: name.to_owned() })
    }
}

impl<S> TlsConnect<S> for Connect
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let connector = self.connector.ok_or_else(|| io::Error::other("TLS is off"))?;
            let name = ServerName::try_from(self.name).map_err(io::Error::other)?;
            Ok(Stream(connector.connect(name, stream).await?))
        })
    }
}

/// A connection whose other end is known.
pub(super) struct Stream<S>(tokio_rustls::client::TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    /// None: the database was known by its name and chain before anything was said.
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
