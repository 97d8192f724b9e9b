//! The least that terminates mutual TLS and forwards: no identity, no policy, no register. What our proxy's handshake is
//! measured beside, and a program of its own so that both are built alike.
//!
//! `countersign-bench-bare FOLDER BACKEND` reads `server.pem`, `server.key` and `bundle.pem` in that folder, listens on a free
//! port of loopback, says where on its standard output, and serves until its standard input closes.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(backend)) = (arguments.next(), arguments.next()) else {
        bail!("a folder and a backend are needed: `countersign-bench-bare FOLDER 127.0.0.1:8080`");
    };
    let config = server_config(Path::new(&folder)).with_context(|| {
        format!("`{folder}` must hold `server.pem`, `server.key` and `bundle.pem`, all of them readable PEM")
    })?;
    // As many threads as it has cores.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            served = serve(config, backend) => served,
            () = closed() => Ok(()),
        }
    })
}

/// Comes when nobody holds the other end of our standard input any more.
async fn closed() {
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _closed = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(end);
    });
    let _dropped = ended.await;
}

async fn serve(config: ServerConfig, backend: String) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    loop {
        let (tcp, _) = listener.accept().await?;
        let (acceptor, backend) = (acceptor.clone(), backend.clone());
        tokio::spawn(async move {
            tcp.set_nodelay(true)?;
            let mut tls = acceptor.accept(tcp).await?;
            let mut upstream = TcpStream::connect(&backend).await?;
            upstream.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut tls, &mut upstream).await
        });
    }
}

/// As our proxy's: client certificates, TLS 1.3 alone, nothing that is remembered.
fn server_config(folder: &Path) -> Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(folder.join("bundle.pem"))? {
        roots.add(root?)?;
    }
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let chain = CertificateDer::pem_file_iter(folder.join("server.pem"))?;
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key"))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients.build()?)
        .with_single_cert(chain.collect::<Result<_, _>>()?, key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
