//! A full mutual handshake and one request through the proxy, in the proxy's CPU time, against a bare rustls
//! acceptor of the same configuration that dials the same backend. Both are programs of their own, built alike: as the proxy
//! is shipped.
//!
//! `handshake` has every caller come with a leaf and an issuer that were never seen; `handshake_remembered` has one caller
//! come again and again, whose chain the proxy remembers; `handshake_cores` has a proxy that may use all cores beside one that may
//! use one; `handshake_peers` has other proxies beside ours.

mod peers;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use rustls::crypto::CryptoProvider;
use tokio_rustls::TlsConnector;

use crate::child::{End, Peer};
use crate::client::{client, connector, credentials, one, provider};
use crate::figure::{Asked, Figure, Output, Verdict};
use crate::peers::process::{Cores, Family};
use crate::peers::proxies::{BARE, Kind, Mode, Place, Proxy};
use crate::peers::{median, process};

/// In each, every end has a turn. All are to find the machine alike, so they are short.
const ROUNDS: usize = 40;
/// Handshakes in a turn.
const TURN: usize = 48;
const WARM_UP: usize = 200;
const WORKERS: usize = 8;
/// So many callers that none comes again.
const CHAINS: usize = WARM_UP + ROUNDS * TURN;

pub(crate) use peers::run as beside_peers;

/// Each caller shows a chain of its own.
pub(crate) fn run(output: Output) -> Result<Verdict> {
    compare(("handshake", Asked::AtMost(1.1)), CHAINS, output)
}

/// All show the same one.
pub(crate) fn remembered(output: Output) -> Result<Verdict> {
    compare(("handshake_remembered", Asked::AtMost(1.0)), 1, output)
}

/// A program that terminates TLS.
enum Acceptor {
    Proxy(Proxy),
    Bare(Peer),
}

/// Whoever terminates TLS in one figure, and what its turns have cost.
struct Terminating {
    acceptor: Acceptor,
    /// Who calls it.
    connectors: Arc<[TlsConnector]>,
    /// How many callers have come. Whoever has does not come again, where there are enough.
    came: Arc<AtomicUsize>,
    costs: Vec<f64>,
}

fn compare(
    (name, asked): (&'static str, Asked),
    callers: usize,
    output: Output,
) -> Result<Verdict> {
    let callers = Callers::ready(callers, 1, provider())?;
    let place = callers.place();
    let on_one = |program: &Path| process::pinned(place.cores.proxy, program);
    let ends = [Acceptor::ours(on_one, &place)?, Acceptor::bare(on_one, &place)?];
    let mut ends = ends.map(|acceptor| Terminating::new(acceptor, &callers));
    callers.take_turns(&mut ends)?;
    let [ours, bare] = ends.map(|end| median(end.costs));
    let figure = Figure {
        name,
        value: ours,
        unit: "µs CPU",
        limit: bare,
        limit_is: "µs of a bare rustls acceptor that dials the same backend, median of turns",
        asked,
    };
    Ok(figure.print(output))
}

/// What a handshake costs a proxy that may use all cores, beside one that may use one: what it does to be woken on another core, and
/// for what another core has written. Time in which it waits costs nothing and is not in it.
pub(crate) fn cores(output: Output) -> Result<Verdict> {
    // Whose chain is remembered costs least, so that all else counts most.
    let callers = Callers::ready(1, std::thread::available_parallelism()?.get(), provider())?;
    let place = callers.place();
    let on_one = |program: &Path| process::pinned(place.cores.proxy, program);
    let on_all = |program: &Path| Command::new(program);
    let ends = [
        Acceptor::ours(on_all, &place)?,
        Acceptor::ours(on_one, &place)?,
        Acceptor::bare(on_all, &place)?,
        Acceptor::bare(on_one, &place)?,
    ];
    let mut ends = ends.map(|acceptor| Terminating::new(acceptor, &callers));
    callers.take_turns(&mut ends)?;
    let [ours, ours_on_one, bare, bare_on_one] = ends.map(|end| median(end.costs));
    eprintln!(
        "  handshake_cores: bare {bare:.2} µs on all {} cores, {bare_on_one:.2} µs on one; ours on one {ours_on_one:.2} µs",
        std::thread::available_parallelism()?
    );
    let figure = Figure {
        name: "handshake_cores",
        value: ours,
        unit: "µs CPU",
        limit: 1.1 * ours_on_one * bare / bare_on_one,
        limit_is: "µs: 1.1 × what it costs the same proxy on one core, grown as a bare acceptor's does on all cores",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
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
    /// With so many chains of their own, on so many threads, offering what this has.
    fn ready(chains: usize, threads: usize, offered: CryptoProvider) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let cores = Cores::take()?;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(threads).enable_all().build()?;
        runtime.block_on(credentials(folder.path(), chains))?;
        let offered = Arc::new(offered);
        let connectors =
            (0..chains).map(|at| connector(folder.path(), &client(at), Arc::clone(&offered)));
        let connectors = connectors.collect::<Result<_>>()?;
        let backend = Peer::start_on(cores.program, End::Backend, folder.path())?;
        Ok(Self { folder, cores, runtime, connectors, backend })
    }

    fn place(&self) -> Place<'_> {
        Place { folder: self.folder.path(), cores: self.cores, program: self.backend.address }
    }

    fn take_turns(&self, ends: &mut [Terminating]) -> Result<()> {
        for end in &*ends {
            self.runtime.block_on(end.serve(WARM_UP))?;
        }
        for round in 0..ROUNDS {
            // Which comes first changes from round to round: the machine may become slower, or faster, meanwhile.
            for turn in 0..ends.len() {
                let end = &mut ends[(round + turn) % ends.len()];
                let cost = self.runtime.block_on(end.serve(TURN))?;
                end.costs.push(cost);
            }
        }
        Ok(())
    }
}

impl Acceptor {
    fn ours(kept: impl Fn(&Path) -> Command, place: &Place<'_>) -> Result<Self> {
        Self::proxy(Kind::Ours, kept, place)
    }

    fn proxy(kind: Kind, kept: impl Fn(&Path) -> Command, place: &Place<'_>) -> Result<Self> {
        let command = kept(&kind.program()?);
        Ok(Self::Proxy(Proxy::start_as(command, kind, Mode::Tcp, place)?))
    }

    fn bare(kept: impl Fn(&Path) -> Command, place: &Place<'_>) -> Result<Self> {
        let mut command = kept(&BARE.find()?);
        command.arg(place.folder).arg(place.program.to_string());
        Ok(Self::Bare(Peer::spawn(command, "the bare acceptor")?))
    }

    const fn address(&self) -> SocketAddr {
        match self {
            Self::Proxy(proxy) => proxy.door,
            Self::Bare(peer) => peer.address,
        }
    }

    /// It, and whatever it has started.
    fn family(&self) -> Family {
        match self {
            Self::Proxy(proxy) => proxy.family(),
            Self::Bare(peer) => peer.family(),
        }
    }
}

impl Terminating {
    fn new(acceptor: Acceptor, callers: &Callers) -> Self {
        let connectors = Arc::clone(&callers.connectors);
        Self { acceptor, connectors, came: Arc::default(), costs: Vec::new() }
    }

    /// CPU time of this end for one of so many connections, in microseconds.
    async fn serve(&self, count: usize) -> Result<f64> {
        let before = self.acceptor.family().processor()?;
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..WORKERS {
            let (connectors, came, address) =
                (Arc::clone(&self.connectors), Arc::clone(&self.came), self.acceptor.address());
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
        let took = self.acceptor.family().processor()? - before;
        #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
        Ok(took.as_secs_f64() * 1e6 / count as f64)
    }
}
