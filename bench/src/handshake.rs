//! A full mutual handshake and one request through the proxy, in the proxy's CPU time, against a bare rustls
//! acceptor of the same configuration that dials the same backend. Both are programs of their own, built alike: as the proxy
//! is shipped.
//!
//! `handshake` has every caller come with a leaf and an issuer that were never seen; `handshake_remembered` has one caller
//! come again and again, whose chain the proxy remembers; `handshake_cores` has a proxy that may use all cores beside one that may
//! use one.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tokio_rustls::TlsConnector;

use crate::child::{End, Peer, cpu_micros};
use crate::client::{client, connector, credentials, one};
use crate::figure::{Asked, Figure, Output, Verdict};
use crate::peers::process::Cores;
use crate::peers::proxies::{BARE, Kind, Mode, Place, Proxy};
use crate::peers::{median, process};

/// In each, every end has a turn. All are to find the machine alike, so they are short.
const ROUNDS: usize = 40;
/// Handshakes in a turn.
const TURN: usize = 48;
const WARM_UP: usize = 200;
const WORKERS: usize = 8;

/// Each caller shows a chain of its own.
pub(crate) fn run(output: Output) -> Result<Verdict> {
    compare(("handshake", Asked::AtMost(1.1)), WARM_UP + ROUNDS * TURN, output)
}

/// All show the same one.
pub(crate) fn remembered(output: Output) -> Result<Verdict> {
    compare(("handshake_remembered", Asked::AtMost(1.0)), 1, output)
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

fn compare(
    (name, asked): (&'static str, Asked),
    callers: usize,
    output: Output,
) -> Result<Verdict> {
    let callers = Callers::ready(callers, 1)?;
    let place = callers.place();
    let on_one = |program: &Path| process::pinned(place.cores.proxy, program);
    let mut ends =
        [Acceptor::ours(on_one, &place)?, Acceptor::bare(on_one, &place)?].map(Terminating::new);
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
