//! Who calls in a measurement: its credentials, its TLS, and one call.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use countersign_identity::{Clock, SystemClock};
use rustls::ClientConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::credentials::Domain;

pub(crate) async fn credentials(folder: &Path, callers: usize) -> Result<()> {
    let mut domain = Domain::make(SystemClock::new().now()).await?;
    domain.issue("/server").await?.write(folder, "server")?;
    for caller in 0..callers {
        if 0 < caller {
            domain.change_issuer().await?;
        }
        domain.issue("/client").await?.write(folder, &client(caller))?;
    }
    std::fs::write(folder.join("bundle.pem"), domain.bundle.to_pem())?;
    Ok(())
}

pub(crate) fn client(caller: usize) -> String {
    format!("client{caller}")
}

/// A connection of its own, one request, one answer.
pub(crate) async fn one(connector: &TlsConnector, address: SocketAddr) -> Result<()> {
    call(connector, address).await.map(drop)
}

/// The same, with what is left of the connection.
pub(crate) async fn call(
    connector: &TlsConnector,
    address: SocketAddr,
) -> Result<TlsStream<TcpStream>> {
    call_over(TcpStream::connect(address).await?, connector).await
}

/// The same over a connection that stands.
pub(crate) async fn call_over(
    tcp: TcpStream,
    connector: &TlsConnector,
) -> Result<TlsStream<TcpStream>> {
    tcp.set_nodelay(true)?;
    let mut tls = connector.connect(ServerName::try_from("bench.example")?, tcp).await?;
    tls.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").await?;
    tls.flush().await?;
    let mut answer = Vec::new();
    // A peer that ends TCP without a close_notify has still answered.
    let _unclean = tls.read_to_end(&mut answer).await;
    answer.starts_with(b"HTTP/1.1 200").then_some(tls).ok_or_else(|| {
        anyhow!("unexpected answer: {}", String::from_utf8_lossy(&answer[..answer.len().min(80)]))
    })
}

/// All that the provider has, as programs offer it that were told nothing.
pub(crate) fn provider() -> CryptoProvider {
    default_provider()
}

/// One suite and one group, so that every proxy does the same work.
pub(crate) fn one_suite() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![kx_group::X25519],
        ..default_provider()
    }
}

fn own(
    folder: &Path,
    name: &str,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(folder.join(format!("{name}.pem")))?;
    let chain = chain.collect::<Result<_, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key")))?))
}

pub(crate) fn connector(
    folder: &Path,
    name: &str,
    offered: Arc<CryptoProvider>,
) -> Result<TlsConnector> {
    Ok(TlsConnector::from(Arc::new(client_config(folder, name, offered)?)))
}

/// The client does not look at the server's name: what it costs is not what is measured.
pub(crate) fn client_config(
    folder: &Path,
    name: &str,
    provider: Arc<CryptoProvider>,
) -> Result<ClientConfig> {
    let (chain, key) = own(folder, name)?;
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_client_auth_cert(chain, key)?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Takes any server, in a benchmark's client only.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
