//! A full mutual handshake and one request through the proxy, in the proxy's CPU time, against a bare rustls
//! acceptor of the same configuration that dials the same backend.
//!
//! `handshake` has every caller come with a leaf and an issuer that were never seen; `handshake_remembered` has one caller
//! come again and again, whose chain the proxy remembers.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow};
use countersign::Authorization;
use countersign_identity::{Clock, SystemClock};
use countersign_proxy::{Config, FixedInbound, IdentitySource, Listeners, Protocol, Target};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use crate::credentials::Domain;
use crate::figure::{Better, Figure, Output};
use crate::peers::process::Cores;
use crate::peers::{caller, median, process, program};

/// Which end a child process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum End {
    Proxy,
    Bare,
    Backend,
    /// Sends the load of [`crate::peers`].
    Caller,
    /// The program behind its proxies.
    Program,
}

impl End {
    /// This program, told to be this end.
    pub(crate) fn of(self, mut command: Command, folder: &Path) -> Command {
        let name = match self {
            Self::Proxy => "proxy",
            Self::Bare => "bare",
            Self::Backend => "backend",
            Self::Caller => "caller",
            Self::Program => "program",
        };
        command.args(["--be", name, "--folder"]).arg(folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }
}

/// Turns of each end. The two of a pair are to find the machine alike, so they are short.
const PAIRS: usize = 40;
/// Handshakes in a turn.
const TURN: usize = 48;
const WARM_UP: usize = 200;
const WORKERS: usize = 8;

/// Each caller shows a chain of its own.
pub(crate) fn run(output: Output) -> Result<()> {
    compare("handshake", WARM_UP + PAIRS * TURN, output)
}

/// All show the same one.
pub(crate) fn remembered(output: Output) -> Result<()> {
    compare("handshake_remembered", 1, output)
}

/// Whoever terminates TLS in one figure, and what its turns have cost.
struct Terminating {
    peer: Peer,
    /// How many callers have come. Whoever has does not come again, where there are enough.
    came: Arc<AtomicUsize>,
    costs: Vec<f64>,
}

fn compare(name: &'static str, callers: usize, output: Output) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cores = Cores::take()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(credentials(folder.path(), callers))?;
    let connectors: Result<Arc<[_]>> =
        (0..callers).map(|at| connector(folder.path(), &client(at))).collect();
    let connectors = connectors?;
    let backend = Peer::start_on(cores.program, End::Backend, folder.path())?;
    std::fs::write(folder.path().join("backend"), backend.address.to_string())?;
    let start = |end| Terminating::start(end, cores.proxy, folder.path());
    let mut ends = [start(End::Proxy)?, start(End::Bare)?];
    for end in &ends {
        runtime.block_on(end.serve(&connectors, WARM_UP))?;
    }
    for pair in 1..=PAIRS {
        // Which comes first changes from pair to pair: the machine may become slower, or faster, meanwhile.
        for which in [pair % 2, (pair + 1) % 2] {
            let cost = runtime.block_on(ends[which].serve(&connectors, TURN))?;
            ends[which].costs.push(cost);
        }
    }
    let [ours, bare] = ends.map(|end| median(end.costs));
    Figure {
        name,
        value: ours,
        unit: "µs CPU",
        limit: bare,
        limit_is: "µs of a bare rustls acceptor that dials the same backend, median of turns",
        better: Better::Lower,
    }
    .print(output);
    Ok(())
}

impl Terminating {
    fn start(end: End, core: u32, folder: &Path) -> Result<Self> {
        let peer = Peer::start_on(core, end, folder)?;
        Ok(Self { peer, came: Arc::default(), costs: Vec::new() })
    }

    /// CPU time of this end for one of so many connections, in microseconds.
    async fn serve(&self, connectors: &Arc<[TlsConnector]>, count: usize) -> Result<f64> {
        let before = self.peer.cpu_micros()?;
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..WORKERS {
            let (connectors, came, address) =
                (Arc::clone(connectors), Arc::clone(&self.came), self.peer.address);
            workers.spawn(async move {
                for _ in 0..count / WORKERS {
                    let turn = came.fetch_add(1, Ordering::Relaxed);
                    one(&connectors[turn % connectors.len()], address).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
        #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
        Ok((self.peer.cpu_micros()? - before) / count as f64)
    }
}

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

fn client(caller: usize) -> String {
    format!("client{caller}")
}

/// A connection of its own, one request, one answer.
pub(crate) async fn one(connector: &TlsConnector, address: SocketAddr) -> Result<()> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let mut tls = connector.connect(ServerName::try_from("bench.example")?, tcp).await?;
    tls.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").await?;
    tls.flush().await?;
    let mut answer = Vec::new();
    // A peer that ends TCP without a close_notify has still answered.
    let _unclean = tls.read_to_end(&mut answer).await;
    answer.starts_with(b"HTTP/1.1 200").then_some(()).ok_or_else(|| {
        anyhow!("unexpected answer: {}", String::from_utf8_lossy(&answer[..answer.len().min(80)]))
    })
}

pub(crate) struct Peer {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Peer {
    pub(crate) fn start(end: End, folder: &Path) -> Result<Self> {
        Self::spawn(Command::new(std::env::current_exe()?), end, folder)
    }

    /// The same on one core.
    pub(crate) fn start_on(core: u32, end: End, folder: &Path) -> Result<Self> {
        Self::spawn(process::pinned(core, &std::env::current_exe()?), end, folder)
    }

    fn spawn(command: Command, end: End, folder: &Path) -> Result<Self> {
        let mut child = end.of(command, folder).spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("the child has an output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("{end:?} said `{line}`"))?;
        Ok(Self { child, address })
    }

    pub(crate) fn cpu_micros(&self) -> Result<f64> {
        // Summed over threads in nanoseconds; the ticks of /proc/PID/stat are too coarse.
        let mut nanos = 0_u64;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            nanos += text.split(' ').next().context("schedstat")?.parse::<u64>()?;
        }
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of some minutes")]
        Ok(nanos as f64 / 1000.0)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Ends by itself when its input closes; this only makes sure.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What the child does: listens, says where, and serves until its input closes.
pub(crate) fn serve(end: End, folder: &Path) -> Result<()> {
    if end == End::Caller {
        return caller::serve(folder);
    }
    let runtime = match end {
        // It has one core at most.
        End::Program => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        // As many threads as it has cores.
        End::Proxy | End::Bare | End::Backend | End::Caller => {
            tokio::runtime::Builder::new_multi_thread().enable_all().build()?
        }
    };
    let stop = CancellationToken::new();
    let ended = stop.clone();
    std::thread::spawn(move || {
        let _closed = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.cancel();
    });
    runtime.block_on(async move {
        let work = async {
            match end {
                End::Proxy => proxy(folder, stop.clone()).await,
                End::Bare => bare(folder).await,
                End::Backend => backend().await,
                End::Program => program::serve().await,
                End::Caller => Ok(()),
            }
        };
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = work => ended,
        }
    })
}

/// Tells whoever started this process.
pub(crate) fn say(what: impl std::fmt::Display) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{what}")?;
    Ok(stdout.flush()?)
}

fn backend_of(folder: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(folder.join("backend"))?)
}

async fn proxy(folder: &Path, stop: CancellationToken) -> Result<()> {
    let config = Config {
        name: "bench".parse()?,
        identity: IdentitySource::Files {
            chain: folder.join("server.pem"),
            key: folder.join("server.key"),
            bundle: folder.join("bundle.pem"),
            trust_domain: None,
            federated: Vec::new(),
        },
        authorization: Authorization::AllowIds(vec!["spiffe://bench.example/client".parse()?]),
        listeners: Listeners::Fixed {
            inbound: vec![FixedInbound {
                service: "server".parse()?,
                listen: "127.0.0.1:0".parse()?,
                forward: Target::Tcp(backend_of(folder)?),
                protocol: Protocol::Tcp,
            }],
            outbound: Vec::new(),
        },
        metrics: None,
        tracing: None,
    };
    let (ready, told) = tokio::sync::oneshot::channel::<countersign_proxy::Ready>();
    let telling = async {
        let ready = told.await.context("the proxy did not become ready")?;
        say(ready.inbound.first().context("a door")?.listen)
    };
    let (served, said) = tokio::join!(countersign_proxy::run(config, stop, ready), telling);
    said.and(served)
}

/// The least that terminates mutual TLS and forwards: no identity, no policy, no register.
async fn bare(folder: &Path) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(server_config(folder)?));
    let backend = backend_of(folder)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(listener.local_addr()?)?;
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

async fn backend() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(listener.local_addr()?)?;
    loop {
        let (mut tcp, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut request = [0; 512];
            let _read = tcp.read(&mut request).await?;
            tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                .await?;
            tcp.shutdown().await
        });
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(folder: &Path) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(folder.join("bundle.pem"))? {
        roots.add(root?)?;
    }
    Ok(Arc::new(roots))
}

fn own(
    folder: &Path,
    name: &str,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(folder.join(format!("{name}.pem")))?;
    let chain = chain.collect::<Result<_, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key")))?))
}

fn server_config(folder: &Path) -> Result<ServerConfig> {
    let clients =
        WebPkiClientVerifier::builder_with_provider(roots(folder)?, provider()).build()?;
    let (chain, key) = own(folder, "server")?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

pub(crate) fn connector(folder: &Path, name: &str) -> Result<TlsConnector> {
    Ok(TlsConnector::from(Arc::new(client_config(folder, name, provider())?)))
}

/// The client does not look at the server's name: what it costs is not what is measured.
pub(crate) fn client_config(
    folder: &Path,
    name: &str,
    provider: Arc<rustls::crypto::CryptoProvider>,
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
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

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
