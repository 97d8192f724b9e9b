//! A full mutual handshake and one request through the proxy, in the proxy's CPU time, against a bare rustls
//! acceptor of the same configuration that dials the same backend. Both are programs of their own, built alike: as the proxy
//! is shipped.
//!
//! `handshake` has every caller come with a leaf and an issuer that were never seen; `handshake_remembered` has one caller
//! come again and again, whose chain the proxy remembers; `handshake_cores` has a proxy that may use all cores beside one that may
//! use one.

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
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::credentials::Domain;
use crate::figure::{Better, Figure, Output};
use crate::peers::process::Cores;
use crate::peers::proxies::{BARE, Kind, Mode, Place, Proxy};
use crate::peers::{caller, median, process, program};

/// Which end a child process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum End {
    Proxy,
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
            Self::Backend => "backend",
            Self::Caller => "caller",
            Self::Program => "program",
        };
        command.args(["--be", name, "--folder"]).arg(folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }
}

/// In each, every end has a turn. All are to find the machine alike, so they are short.
const ROUNDS: usize = 40;
/// Handshakes in a turn.
const TURN: usize = 48;
const WARM_UP: usize = 200;
const WORKERS: usize = 8;

/// Each caller shows a chain of its own.
pub(crate) fn run(output: Output) -> Result<()> {
    compare("handshake", WARM_UP + ROUNDS * TURN, output)
}

/// All show the same one.
pub(crate) fn remembered(output: Output) -> Result<()> {
    compare("handshake_remembered", 1, output)
}

/// A program that terminates TLS.
enum Acceptor {
    Ours(Proxy),
    Bare(Peer),
}

/// Whoever terminates TLS in one figure, and what its turns have cost.
struct Terminating {
    acceptor: Acceptor,
    /// How many callers have come. Whoever has does not come again, where there are enough.
    came: Arc<AtomicUsize>,
    costs: Vec<f64>,
}

fn compare(name: &'static str, callers: usize, output: Output) -> Result<()> {
    let callers = Callers::ready(callers, 1)?;
    let place = callers.place();
    let on_one = |program: &Path| process::pinned(place.cores.proxy, program);
    let mut ends =
        [Acceptor::ours(on_one, &place)?, Acceptor::bare(on_one, &place)?].map(Terminating::new);
    callers.take_turns(&mut ends)?;
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

/// What a handshake costs a proxy that may use all cores, beside one that may use one: what it does to be woken on another core, and
/// for what another core has written. Time in which it waits costs nothing and is not in it.
pub(crate) fn cores(output: Output) -> Result<()> {
    // Whose chain is remembered costs least, so that all else counts most.
    let callers = Callers::ready(1, std::thread::available_parallelism()?.get())?;
    let place = callers.place();
    let on_one = |program: &Path| process::pinned(place.cores.proxy, program);
    let on_all = |program: &Path| Command::new(program);
    let mut ends = [
        Acceptor::ours(on_all, &place)?,
        Acceptor::ours(on_one, &place)?,
        Acceptor::bare(on_all, &place)?,
        Acceptor::bare(on_one, &place)?,
    ]
    .map(Terminating::new);
    callers.take_turns(&mut ends)?;
    let [ours, ours_on_one, bare, bare_on_one] = ends.map(|end| median(end.costs));
    eprintln!(
        "  handshake_cores: bare {bare:.2} µs on all {} cores, {bare_on_one:.2} µs on one; ours on one {ours_on_one:.2} µs",
        std::thread::available_parallelism()?
    );
    Figure {
        name: "handshake_cores",
        value: ours,
        unit: "µs CPU",
        limit: 1.1 * ours_on_one * bare / bare_on_one,
        limit_is: "µs: 1.1 × what it costs the same proxy on one core, grown as a bare acceptor's does on all cores",
        better: Better::Lower,
    }
    .print(output);
    Ok(())
}

/// Who comes, and the backend behind whoever terminates TLS.
struct Callers {
    folder: tempfile::TempDir,
    cores: Cores,
    runtime: tokio::runtime::Runtime,
    connectors: Arc<[TlsConnector]>,
    backend: Peer,
}

impl Callers {
    /// With so many chains of their own, on so many threads.
    fn ready(chains: usize, threads: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let cores = Cores::take()?;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(threads).enable_all().build()?;
        runtime.block_on(credentials(folder.path(), chains))?;
        let connectors = (0..chains).map(|at| connector(folder.path(), &client(at)));
        let connectors = connectors.collect::<Result<_>>()?;
        let backend = Peer::start_on(cores.program, End::Backend, folder.path())?;
        Ok(Self { folder, cores, runtime, connectors, backend })
    }

    fn place(&self) -> Place<'_> {
        Place { folder: self.folder.path(), cores: self.cores, program: self.backend.address }
    }

    fn take_turns(&self, ends: &mut [Terminating]) -> Result<()> {
        for end in &*ends {
            self.runtime.block_on(end.serve(&self.connectors, WARM_UP))?;
        }
        for round in 0..ROUNDS {
            // Which comes first changes from round to round: the machine may become slower, or faster, meanwhile.
            for turn in 0..ends.len() {
                let end = &mut ends[(round + turn) % ends.len()];
                let cost = self.runtime.block_on(end.serve(&self.connectors, TURN))?;
                end.costs.push(cost);
            }
        }
        Ok(())
    }
}

impl Acceptor {
    fn ours(kept: impl Fn(&Path) -> Command, place: &Place<'_>) -> Result<Self> {
        let command = kept(&Kind::Ours.program()?);
        Ok(Self::Ours(Proxy::start_as(command, Kind::Ours, Mode::Tcp, place)?))
    }

    fn bare(kept: impl Fn(&Path) -> Command, place: &Place<'_>) -> Result<Self> {
        let mut command = kept(&BARE.find()?);
        command.arg(place.folder).arg(place.program.to_string());
        Ok(Self::Bare(Peer::spawn(command, "the bare acceptor")?))
    }

    const fn address(&self) -> SocketAddr {
        match self {
            Self::Ours(proxy) => proxy.door,
            Self::Bare(peer) => peer.address,
        }
    }

    fn cpu_micros(&self) -> Result<f64> {
        match self {
            Self::Ours(proxy) => cpu_micros(proxy.family().0),
            Self::Bare(peer) => peer.cpu_micros(),
        }
    }
}

impl Terminating {
    fn new(acceptor: Acceptor) -> Self {
        Self { acceptor, came: Arc::default(), costs: Vec::new() }
    }

    /// CPU time of this end for one of so many connections, in microseconds.
    async fn serve(&self, connectors: &Arc<[TlsConnector]>, count: usize) -> Result<f64> {
        let before = self.acceptor.cpu_micros()?;
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..WORKERS {
            let (connectors, came, address) =
                (Arc::clone(connectors), Arc::clone(&self.came), self.acceptor.address());
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
        Ok((self.acceptor.cpu_micros()? - before) / count as f64)
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
        Self::be(Command::new(std::env::current_exe()?), end, folder)
    }

    /// The same on one core.
    pub(crate) fn start_on(core: u32, end: End, folder: &Path) -> Result<Self> {
        Self::be(process::pinned(core, &std::env::current_exe()?), end, folder)
    }

    fn be(command: Command, end: End, folder: &Path) -> Result<Self> {
        Self::spawn(end.of(command, folder), &format!("{end:?}"))
    }

    /// A program that says where it listens and ends when its input closes.
    fn spawn(mut command: Command, who: &str) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("the child has an output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("{who} said `{line}`"))?;
        Ok(Self { child, address })
    }

    pub(crate) fn cpu_micros(&self) -> Result<f64> {
        cpu_micros(self.child.id())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Ends by itself when its input closes; this only makes sure.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Time of a processor that a process has used so far, in microseconds.
fn cpu_micros(pid: u32) -> Result<f64> {
    // Summed over threads in nanoseconds; the ticks of /proc/PID/stat are too coarse.
    let mut nanos = 0_u64;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += text.split(' ').next().context("schedstat")?.parse::<u64>()?;
    }
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of some minutes")]
    Ok(nanos as f64 / 1000.0)
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
        End::Proxy | End::Backend | End::Caller => {
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

fn own(
    folder: &Path,
    name: &str,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(folder.join(format!("{name}.pem")))?;
    let chain = chain.collect::<Result<_, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key")))?))
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
