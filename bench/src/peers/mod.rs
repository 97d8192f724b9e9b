//! What our proxy costs beside Nginx, HAProxy and Envoy, which do the same in the same run: TLS 1.3 with client certificates
//! in front of one program.
//!
//! Whoever is measured has a core alone, and each has its turn in every round. Who calls and the program behind have
//! another core; they are the same for all. What counts is the time of a processor by what was done. The machine is faster at one
//! moment than at another, so turns are short, and what is told is the median of them.

pub(crate) mod caller;
mod policy;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod proxies;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::child::{End, Peer};
use crate::client::credentials;
use crate::figure::{Asked, Figure, Output, Verdict};
use crate::fleet::limits;
use crate::fleet::server::Usage;
use caller::{Caller, Done, Errand, Way};
use process::{Cores, Family};
use proxies::{Kind, Mode, Place, Proxy};

pub(crate) use policy::run as policy;

const ROUNDS: usize = 15;
/// Until what is cold has become warm.
const WARM_UP: Duration = Duration::from_millis(300);
const SPAN: Duration = Duration::from_millis(300);
/// Of each turn, what goes before what counts: caches are somebody else's until then.
const FIRST: u32 = 10;
const ALL: [Kind; 4] = [Kind::Ours, Kind::Nginx, Kind::Haproxy, Kind::Envoy];
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
const IDLE: usize = 1000;
/// What served a request is let go of in less.
const SETTLE: Duration = Duration::from_secs(4);

/// What each costs, for one unit of what is done.
type Costs = BTreeMap<Kind, f64>;

/// How something is compared.
struct Comparison {
    name: &'static str,
    mode: Mode,
    errand: Errand,
    /// Microseconds of a processor by what was done.
    cost: fn(f64, Done) -> f64,
    unit: &'static str,
}

pub(crate) fn http1(output: Output) -> Result<Verdict> {
    requests("http1", Errand { way: Way::Http1, connections: 50 }, output)
}

pub(crate) fn http2(output: Output) -> Result<Verdict> {
    requests("http2", Errand { way: Way::Http2, connections: 10 }, output)
}

fn requests(name: &'static str, errand: Errand, output: Output) -> Result<Verdict> {
    let comparison = Comparison { name, mode: Mode::Http, errand, cost: a_call, unit: "µs CPU" };
    let costs = comparison.run()?;
    let (ours, envoy) = (of(&costs, Kind::Ours)?, of(&costs, Kind::Envoy)?);
    let (is, of_envoy) = match ours < envoy * 2.0 / 3.0 {
        true => ("is", Verdict::Met),
        false => ("is not", Verdict::Missed),
    };
    eprintln!(
        "  {name}: ours {is} under two thirds of Envoy's {envoy:.2} µs, it is {:.2} of it",
        ours / envoy
    );
    let limit = 1.5 * of(&costs, Kind::Nginx)?.min(of(&costs, Kind::Haproxy)?);
    let limit_is = "µs a request: 1.5 × the better of Nginx and HAProxy, the same load";
    let unit = comparison.unit;
    let figure = Figure { name, value: ours, unit, limit, limit_is, asked: Asked::AtMost(1.0) };
    Ok(figure.print(output).and(of_envoy))
}

pub(crate) fn tcp(output: Output) -> Result<Verdict> {
    let errand = Errand { way: Way::Echo, connections: 50 };
    let (name, unit) = ("tcp", "µs CPU");
    let costs = Comparison { name, mode: Mode::Tcp, errand, cost: a_call, unit }.run()?;
    let others = costs.iter().filter(|(kind, _)| **kind != Kind::Ours);
    let best = others.map(|(_, cost)| *cost).fold(f64::INFINITY, f64::min);
    let figure = Figure {
        name,
        value: of(&costs, Kind::Ours)?,
        unit,
        limit: 1.1 * best,
        limit_is: "µs a message of 64 bytes and back: 1.1 × the best of Nginx, HAProxy and Envoy",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}

pub(crate) fn bulk(output: Output) -> Result<Verdict> {
    let errand = Errand { way: Way::Bulk, connections: 4 };
    let (name, unit) = ("bulk", "ms CPU");
    let cost = |micros, done: Done| micros / 1000.0 / as_number(done.bytes) * GIB;
    let costs = Comparison { name, mode: Mode::Http, errand, cost, unit }.run()?;
    let figure = Figure {
        name,
        value: of(&costs, Kind::Ours)?,
        unit,
        limit: of(&costs, Kind::Envoy)?,
        limit_is: "ms a GiB of Envoy, answers of 16 MiB over HTTP/1.1",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}

fn a_call(micros: f64, done: Done) -> f64 {
    micros / as_number(done.calls)
}

#[expect(clippy::cast_precision_loss, reason = "far less than 2^52")]
fn as_number(count: u64) -> f64 {
    count as f64
}

fn of(costs: &Costs, kind: Kind) -> Result<f64> {
    costs.get(&kind).copied().with_context(|| format!("{} was not measured", kind.name()))
}

/// A proxy that stands with its connections, and what each of its turns has cost.
struct Standing {
    kind: Kind,
    proxy: Proxy,
    caller: Caller,
    costs: Vec<f64>,
}

impl Comparison {
    fn run(&self) -> Result<Costs> {
        // Said before anything is measured.
        for kind in ALL {
            kind.program()?;
        }
        limits::allow(self.errand.connections * 2)?;
        let folder = credentialed()?;
        let cores = Cores::take()?;
        let program = Peer::start_on(cores.program, End::Program, folder.path())?;
        let place = Place { folder: folder.path(), cores, program: program.address };
        let start = |kind: Kind| self.start(kind, &place).with_context(|| through(kind));
        let mut all: Vec<Standing> = ALL.into_iter().map(start).collect::<Result<_>>()?;
        for round in 1..=ROUNDS {
            let mut told = format!("  {} {round:>2}:", self.name);
            for Standing { kind, proxy, caller, costs } in &mut all {
                let (micros, done) =
                    loaded(caller, proxy.family(), SPAN).with_context(|| through(*kind))?;
                let cost = (self.cost)(micros, done);
                let busy = micros / 1e6 / SPAN.as_secs_f64();
                write!(told, " {} {cost:.2} ({}, {busy:.2})", kind.name(), done.calls)?;
                costs.push(cost);
            }
            eprintln!("{told}");
        }
        let costs: Costs = all.into_iter().map(|it| (it.kind, median(it.costs))).collect();
        let told = costs.iter().map(|(kind, cost)| format!("{} {cost:.2}", kind.name()));
        eprintln!("  {}: {} {}", self.name, told.collect::<Vec<_>>().join(", "), self.unit);
        Ok(costs)
    }

    fn start(&self, kind: Kind, place: &Place<'_>) -> Result<Standing> {
        let proxy = Proxy::start(kind, self.mode, place)?;
        let mut caller = Caller::start(place.cores.caller, place.folder, proxy.door, self.errand)?;
        caller.load(WARM_UP)?;
        Ok(Standing { kind, proxy, caller, costs: Vec::new() })
    }
}

fn through(kind: Kind) -> String {
    format!("through {}", kind.name())
}

/// The one in the middle; of none, infinity.
pub(crate) fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::INFINITY)
}

/// Microseconds of a processor that a proxy needed, and what was done in them.
fn loaded(caller: &mut Caller, proxy: Family, span: Duration) -> Result<(f64, Done)> {
    caller.load(span / FIRST)?;
    let before = proxy.processor()?;
    let done = caller.load(span)?;
    ensure!(0 < done.calls, "nothing was done");
    Ok(((proxy.processor()? - before).as_secs_f64() * 1e6, done))
}

/// A folder with the credentials of both ends.
fn credentialed() -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(credentials(folder.path(), 1))?;
    Ok(folder)
}

/// What connections of mutual TLS cost that do nothing, after one request each.
pub(crate) fn idle(output: Output) -> Result<Verdict> {
    standing("idle_connection", (Mode::Http, Way::Http1), output)
}

/// The same of connections that are joined with ones to the program, after one message each.
pub(crate) fn idle_tunnel(output: Output) -> Result<Verdict> {
    standing("idle_tunnel", (Mode::Tcp, Way::Echo), output)
}

fn standing(name: &'static str, (mode, way): (Mode, Way), output: Output) -> Result<Verdict> {
    limits::allow(IDLE * 2)?;
    let folder = credentialed()?;
    let cores = Cores::take()?;
    let program = Peer::start_on(cores.program, End::Program, folder.path())?;
    let place = Place { folder: folder.path(), cores, program: program.address };
    let proxy = Proxy::start(Kind::Ours, mode, &place)?;
    let open = |connections| -> Result<Caller> {
        let errand = Errand { way, connections };
        Caller::start(cores.caller, folder.path(), proxy.door, errand)
    };
    // What it needs once for all is not what is asked.
    open(20)?.load(WARM_UP)?;
    std::thread::sleep(SETTLE);
    let usage = Usage::of(proxy.family().0);
    let (before, all_before) = (usage.own()?, usage.resident()?);
    let mut crowd = open(IDLE)?;
    std::thread::sleep(SETTLE);
    let (added, all) = (usage.own()? - before, usage.resident()? - all_before);
    eprintln!("  {name}: {:.2} MiB with the pages of the program", all / 1024.0);
    // All of them still stand.
    ensure!(IDLE as u64 <= crowd.load(WARM_UP)?.calls, "connections were lost");
    let figure = Figure {
        name,
        value: added / 1024.0,
        unit: "MiB",
        limit: 20.0,
        limit_is: "MiB for 1,000 idle connections, asked for",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}
