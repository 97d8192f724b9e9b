//! What good callers notice of 10,000 bad handshakes a second from 200 other addresses: the 99th of 100 of their own handshakes,
//! each with one request, beside the same without the flood.
//!
//! Half of the bad ones never get past their first record: nothing, noise or a half of it. The others begin as a good one does, so
//! that the proxy would have to answer with key exchange and signature, and do not go on.
//!
//! Some good callers come from where somebody was let in before (`flood`), the others each from an address, and with a chain, that the
//! proxy has never seen (`flood_newcomer`). The proxy is as it is shipped, on a core of its own.

mod crowd;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;

use crate::child::{End, Peer};
use crate::client::{call_over, client, connector, credentials, provider};
use crate::figure::{Asked, Figure, Output, Verdict};
use crate::fleet::limits;
use crate::fleet::server::Usage;
use crate::peers::process::Cores;
use crate::peers::proxies::{Kind, Mode, Place, Proxy};
use crowd::{Crowd, Done, Order, SOURCES};

pub(crate) use crowd::serve;

/// Figures that come with `flood`.
pub(crate) const TOGETHER: [&str; 2] = ["flood_memory", "flood_newcomer"];

/// Bad handshakes that must have been begun, in a second.
const BAD_PER_SEC: f64 = 10_000.0;
/// Rounds, each with a turn without the flood and one with it.
const ROUNDS: usize = 5;
const TURN: Duration = Duration::from_secs(3);
/// Good callers in a turn, of which one in three is a newcomer.
const GOOD: u32 = 450;
const A_NEWCOMER_EACH: usize = 3;
/// Turns of all kinds, the first of which warms up and the last of which is beside a flood that changes its addresses.
const TURNS: usize = 2 * ROUNDS + 2;
/// Until a flood flows, or has ebbed away.
const SETTLE: Duration = Duration::from_millis(300);
const LOOK: Duration = Duration::from_millis(50);
/// After which a caller was not served; it counts as one that took so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Handshakes under way are 512 at most, with some 30 KiB each, and sources of which something is known take less than one MiB.
const GROWTH_MAX_MIB: f64 = 20.0;

pub(crate) fn run(output: Output) -> Result<Verdict> {
    let folder = tempfile::tempdir()?;
    let cores = Cores::take()?;
    let newcomers = TURNS * (GOOD as usize).div_ceil(A_NEWCOMER_EACH);
    limits::allow(GOOD as usize)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(credentials(folder.path(), 1 + newcomers))?;
    let offered = Arc::new(provider());
    let connectors = (0..=newcomers)
        .map(|at| connector(folder.path(), &client(at), Arc::clone(&offered)))
        .collect::<Result<Vec<_>>>()?;
    let backend = Peer::start_on(cores.program, End::Backend, folder.path())?;
    let place = Place { folder: folder.path(), cores, program: backend.address };
    let proxy = Proxy::start(Kind::Ours, Mode::Tcp, &place)?;
    let crowd = Crowd::start(cores.caller, folder.path(), proxy.door)?;
    let mut scene = Scene { proxy, crowd, connectors, newcomers: 0 };
    runtime.block_on(scene.play(cores, output))
}

/// Who meets at one door.
struct Scene {
    proxy: Proxy,
    crowd: Crowd,
    /// Of the caller that is known, and then of those who never came.
    connectors: Vec<TlsConnector>,
    /// How many came.
    newcomers: usize,
}

/// What happened in some turns.
#[derive(Default)]
struct Told {
    known: Vec<Duration>,
    newcomers: Vec<Duration>,
    known_refused: usize,
    newcomers_refused: usize,
    /// What the first of them was told.
    why: Option<String>,
    bad: Done,
    lasted: Duration,
    /// Time of a processor that the proxy used.
    used: Duration,
    /// The most memory of its own that the proxy had, in MiB.
    memory: f64,
}

impl Scene {
    async fn play(&mut self, cores: Cores, output: Output) -> Result<Verdict> {
        // Whoever was let in before is known to the proxy, which also has what it needs once for all.
        let warm = self.turn(Order::Rest).await?;
        let (mut calm, mut flooded) = (Told::default(), Told::default());
        for _round in 0..ROUNDS {
            calm.add(self.turn(Order::Rest).await?);
            flooded.add(self.turn(Order::Flood).await?);
        }
        let spread = self.turn(Order::Spread).await?;
        tell("calm", &calm);
        tell(&format!("a flood from {SOURCES} addresses"), &flooded);
        tell("a flood that never comes from where it was", &spread);
        for (told, refused) in [
            (&calm, calm.known_refused + calm.newcomers_refused),
            (&flooded, flooded.known_refused),
        ] {
            let why = told.why.as_deref().unwrap_or_default();
            ensure!(refused == 0, "{refused} were refused who should not have been: {why}");
        }
        flooded.is_what_was_asked(cores)?;
        let memory = flooded.memory.max(spread.memory) - warm.memory;
        let verdicts = figures(&calm, &flooded, memory).map(|figure| figure.print(output));
        Ok(verdicts.into_iter().fold(Verdict::Met, Verdict::and))
    }

    async fn turn(&mut self, order: Order) -> Result<Told> {
        self.crowd.told(order)?;
        sleep(SETTLE).await;
        let family = self.proxy.family();
        let usage = Usage::of(family.0);
        let (begun, before, used) = (Instant::now(), self.crowd.told(order)?, family.processor()?);
        let mut told = Told::default();
        tokio::select! {
            came = self.good() => came?.into_iter().for_each(|one| told.count(one)),
            failed = watched(usage, &mut told.memory) => failed?,
        }
        told.lasted = begun.elapsed();
        told.used = family.processor()? - used;
        told.bad = self.crowd.told(Order::Rest)? - before;
        Ok(told)
    }

    /// Good callers, at a steady rate.
    async fn good(&mut self) -> Result<Vec<Came>> {
        let door = self.proxy.door;
        let mut coming = JoinSet::new();
        let (begin, gap) = (tokio::time::Instant::now(), TURN / GOOD);
        for number in 0..GOOD {
            sleep_until(begin + gap * number).await;
            let is_new = (number as usize).is_multiple_of(A_NEWCOMER_EACH);
            self.newcomers += usize::from(is_new);
            let which = if is_new { self.newcomers } else { 0 };
            let connector = self.connectors.get(which).context("too few chains")?.clone();
            let from = Ipv4Addr::from_bits(HOME.to_bits() + u32::try_from(which)?);
            coming.spawn(async move {
                let begun = Instant::now();
                let served = timeout(PATIENCE, visit(from, door, &connector)).await;
                let took = served.map_err(anyhow::Error::from).flatten().map(|()| begun.elapsed());
                Came { is_new, took }
            });
        }
        Ok(coming.join_all().await)
    }
}

/// Where the known caller lives; the others have the addresses after it.
const HOME: Ipv4Addr = Ipv4Addr::new(127, 12, 0, 1);

/// How a good caller fared.
struct Came {
    is_new: bool,
    took: Result<Duration>,
}

async fn visit(from: Ipv4Addr, door: SocketAddr, connector: &TlsConnector) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    call_over(socket.connect(door).await?, connector).await.map(drop)
}

/// Looks at the memory of a process, for as long as nobody stops it.
async fn watched(usage: Usage, most_mib: &mut f64) -> Result<()> {
    loop {
        *most_mib = most_mib.max(usage.own()? / 1024.0);
        sleep(LOOK).await;
    }
}

impl Told {
    fn count(&mut self, came: Came) {
        let (among, refused) = match came.is_new {
            true => (&mut self.newcomers, &mut self.newcomers_refused),
            false => (&mut self.known, &mut self.known_refused),
        };
        let took = came.took.unwrap_or_else(|why| {
            *refused += 1;
            self.why.get_or_insert_with(|| format!("{why:#}"));
            PATIENCE
        });
        among.push(took);
    }

    fn add(&mut self, turn: Self) {
        self.known.extend(turn.known);
        self.newcomers.extend(turn.newcomers);
        self.known_refused += turn.known_refused;
        self.newcomers_refused += turn.newcomers_refused;
        self.why = self.why.take().or(turn.why);
        self.bad.begun += turn.bad.begun;
        self.bad.short += turn.bad.short;
        self.bad.ended += turn.bad.ended;
        self.lasted += turn.lasted;
        self.used += turn.used;
        self.memory = self.memory.max(turn.memory);
    }

    #[expect(clippy::cast_precision_loss, reason = "some hundred thousand")]
    fn bad_per_sec(&self) -> f64 {
        self.bad.begun as f64 / self.lasted.as_secs_f64()
    }

    fn is_what_was_asked(&self, cores: Cores) -> Result<()> {
        let rate = self.bad_per_sec();
        ensure!(
            BAD_PER_SEC <= rate,
            "only {rate:.0} bad handshakes a second came off, and {BAD_PER_SEC:.0} are asked for: whoever floods, and whoever is \
             good, had core {} of this machine, and the proxy core {}",
            cores.caller,
            cores.proxy
        );
        // It ends in the middle of a round of kinds.
        ensure!(
            self.bad.begun * 49 / 100 <= self.bad.short,
            "too few never got past their first record"
        );
        Ok(())
    }
}

/// What turns were like, for whoever looks.
#[expect(clippy::cast_precision_loss, reason = "some hundred thousand")]
fn tell(beside: &str, told: &Told) {
    let Told { bad, lasted, used, memory, .. } = told;
    let share = |part: u64| 100.0 * part as f64 / bad.begun.max(1) as f64;
    eprintln!(
        "  flood, {beside}: {:.0} bad handshakes a second, {:.1} % of them short, {:.1} % ended by the proxy; it used {:.2} of a core \
         and had {memory:.1} MiB",
        told.bad_per_sec(),
        share(bad.short),
        share(bad.ended),
        used.as_secs_f64() / lasted.as_secs_f64(),
    );
    let fared = |who: &str, took: &[Duration], refused: usize| {
        let (p50, p99) = (quantile(took, 50), quantile(took, 99));
        let (all, served) = (took.len(), took.len() - refused);
        format!("{served} of {all} {who} served, p50 {p50:.2} ms, p99 {p99:.2} ms")
    };
    eprintln!(
        "  flood, {beside}: {}; {}{}",
        fared("known", &told.known, told.known_refused),
        fared("newcomers", &told.newcomers, told.newcomers_refused),
        told.why.as_deref().map(|why| format!("; the first refusal: {why}")).unwrap_or_default(),
    );
}

fn figures(calm: &Told, flooded: &Told, memory: f64) -> [Figure; 3] {
    [
        Figure {
            name: "flood",
            value: quantile(&flooded.known, 99),
            unit: "ms p99",
            limit: quantile(&calm.known, 99),
            limit_is: "ms without the flood, of callers from where somebody was let in before",
            asked: Asked::AtMost(2.0),
        },
        Figure {
            name: "flood_memory",
            value: memory,
            unit: "MiB",
            limit: GROWTH_MAX_MIB,
            limit_is: "MiB of the proxy's own above what it had before the flood: 512 handshakes under way, and 10,240 sources",
            asked: Asked::AtMost(1.0),
        },
        Figure {
            name: "flood_newcomer",
            value: quantile(&flooded.newcomers, 99),
            unit: "ms p99",
            limit: quantile(&calm.newcomers, 99),
            limit_is: "ms without the flood, of callers from addresses that were never seen; one that is refused counts as 10 s",
            asked: Asked::AtMost(2.0),
        },
    ]
}

/// In milliseconds: so many of a hundred took no longer. Of none, no number.
fn quantile(took: &[Duration], percent: usize) -> f64 {
    let mut sorted = took.to_vec();
    sorted.sort_unstable();
    let at = sorted.len() * percent / 100;
    sorted.get(at).map_or(f64::NAN, |took| took.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn came(is_new: bool, millis: u64) -> Came {
        Came { is_new, took: Ok(Duration::from_millis(millis)) }
    }

    #[test]
    fn a_newcomer_who_is_refused_counts_as_one_that_took_very_long() {
        let mut told = Told::default();
        (0..98).for_each(|_| told.count(came(true, 1)));
        told.count(Came { is_new: true, took: Err(anyhow::anyhow!("refused")) });
        told.count(Came { is_new: true, took: Err(anyhow::anyhow!("refused")) });
        assert_eq!((told.newcomers_refused, told.known_refused), (2, 0));
        assert!((quantile(&told.newcomers, 99) - 10_000.0).abs() < 1e-9);
    }

    #[test]
    fn a_flood_that_is_too_weak_or_too_tame_gives_no_figure() {
        let cores = Cores { caller: 0, proxy: 1, program: 0 };
        let flood = |begun, short| Told {
            bad: Done { begun, short, ended: 0 },
            lasted: Duration::from_secs(2),
            ..Told::default()
        };
        assert!(flood(20_000, 10_000).is_what_was_asked(cores).is_ok());
        assert!(flood(19_999, 10_000).is_what_was_asked(cores).is_err());
        assert!(flood(20_000, 9_000).is_what_was_asked(cores).is_err());
    }
}
