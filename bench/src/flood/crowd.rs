//! Whoever floods a door: a process of its own, which gives way to those who are measured, as another machine would.
//!
//! It is told one word a line, and says after each what it has done so far.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsConnector;

use crate::child::{End, say};
use crate::client::{connector, provider};
use crate::fleet::limits;

/// Begun in each millisecond: a tenth more than is asked for, since not every one comes off.
const A_MILLISECOND: u32 = 11;
/// Addresses of the flood that is asked for.
pub(super) const SOURCES: u32 = 200;
/// Addresses of the one that changes them: none comes again within a round.
const MANY_SOURCES: u32 = 1 << 20;
/// Bad ones that wait for the proxy to close them. Beyond, none is begun.
const OPEN_MAX: usize = 4096;
/// How long a bad one stays when the proxy lets it.
const STAYS: Duration = Duration::from_secs(2);

/// What it is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Rest,
    /// From [`SOURCES`] addresses, again and again.
    Flood,
    /// From addresses that never came before.
    Spread,
}

/// What it has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    /// Connections that stood.
    pub(super) begun: u64,
    /// Those of them that never got past their first record.
    pub(super) short: u64,
    /// Those that the proxy ended.
    pub(super) ended: u64,
}

impl std::ops::Sub for Done {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            begun: self.begun - earlier.begun,
            short: self.short - earlier.short,
            ended: self.ended - earlier.ended,
        }
    }
}

/// The process, from outside.
pub(super) struct Crowd {
    child: Child,
    orders: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl Crowd {
    /// One that rests.
    pub(super) fn start(core: u32, folder: &Path, door: SocketAddr) -> Result<Self> {
        let mut command = Command::new("nice");
        command.args(["-n", "10", "taskset", "-c", &core.to_string()]);
        command.arg(std::env::current_exe()?);
        let mut child = End::Crowd.of(command, folder).spawn()?;
        let mut orders = child.stdin.take().context("an input")?;
        let says = BufReader::new(child.stdout.take().context("an output")?);
        writeln!(orders, "{door}")?;
        let mut crowd = Self { child, orders, says };
        crowd.told(Order::Rest)?;
        Ok(crowd)
    }

    /// Goes on with this, and gives what was done so far.
    pub(super) fn told(&mut self, order: Order) -> Result<Done> {
        writeln!(self.orders, "{order:?}").context("the crowd has ended")?;
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        let numbers: Vec<u64> =
            line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [begun, short, ended] = numbers[..] else { bail!("the crowd has failed: `{line}`") };
        Ok(Done { begun, short, ended })
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // It has nothing that outlives it.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The process, from inside.
pub(crate) fn serve(folder: &Path) -> Result<()> {
    limits::allow(OPEN_MAX)?;
    let (tell, mut told) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if tell.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let Some(door) = told.blocking_recv() else { return Ok(()) };
    let door = door.parse().with_context(|| format!("`{door}` is no address"))?;
    let hello = client_hello(&connector(folder, "client0", Arc::new(provider()))?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, flood(door, hello, told))
}

async fn flood(door: SocketAddr, hello: Vec<u8>, mut told: mpsc::Receiver<String>) -> Result<()> {
    let (open, hello) = (Arc::new(Semaphore::new(OPEN_MAX)), Rc::new(hello));
    let done = Rc::new(RefCell::new(Done::default()));
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut order, mut number) = (Order::Rest, 0_u32);
    loop {
        tokio::select! {
            line = told.recv() => {
                let Some(line) = line else { return Ok(()) };
                let before = order;
                order = parsed(&line)?;
                if before == Order::Rest {
                    // What was not done while it rested is not made up for.
                    ticks.reset();
                }
                let Done { begun, short, ended } = *done.borrow();
                say(format_args!("{begun} {short} {ended}"))?;
            }
            _ = ticks.tick(), if order != Order::Rest => {
                for _ in 0..A_MILLISECOND {
                    let Ok(place) = open.clone().try_acquire_owned() else { continue };
                    let (from, kind) = what(number, order);
                    number = number.wrapping_add(1);
                    let (hello, done) = (hello.clone(), done.clone());
                    tokio::task::spawn_local(async move {
                        // Who cannot even connect has offered nothing.
                        let _refused = bad(from, kind, door, &hello, &done).await;
                        drop(place);
                    });
                }
            }
        }
    }
}

fn parsed(line: &str) -> Result<Order> {
    let all = [Order::Rest, Order::Flood, Order::Spread];
    let found = all.into_iter().find(|order| format!("{order:?}") == line);
    found.with_context(|| format!("`{line}` is no order"))
}

/// What a bad one sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nothing,
    Noise,
    HalfARecord,
    /// All of a good one's first record, so that the proxy would have to answer with key exchange and signature; and no more.
    Hello,
}

/// From where the next one comes, and what it sends: each address does everything in turn, and half of what is sent is short.
fn what(number: u32, order: Order) -> (Ipv4Addr, Kind) {
    let (first, sources) = match order {
        Order::Rest | Order::Flood => (Ipv4Addr::new(127, 9, 0, 1), SOURCES),
        Order::Spread => (Ipv4Addr::new(127, 16, 0, 1), MANY_SOURCES),
    };
    let kind = match (number / SOURCES) % 6 {
        0 => Kind::Nothing,
        1 => Kind::Noise,
        2 => Kind::HalfARecord,
        _ => Kind::Hello,
    };
    (Ipv4Addr::from_bits(first.to_bits() + number % sources), kind)
}

async fn bad(
    from: Ipv4Addr,
    kind: Kind,
    door: SocketAddr,
    hello: &[u8],
    done: &RefCell<Done>,
) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    let mut tcp = socket.connect(door).await?;
    // Port numbers must not run out: who closes last keeps none.
    socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO))?;
    let begins: &[u8] = match kind {
        Kind::Nothing => &[],
        Kind::Noise => b"GET / HTTP/1.1\r\n\r\n",
        Kind::HalfARecord => &hello[..hello.len() / 2],
        Kind::Hello => hello,
    };
    // It may be closed already, which is what the proxy is meant to do.
    let _sent = tcp.write_all(begins).await;
    {
        let mut done = done.borrow_mut();
        done.begun += 1;
        done.short += u64::from(kind != Kind::Hello);
    }
    let mut sink = [0; 4096];
    let closed = timeout(STAYS, async { while let Ok(1..) = tcp.read(&mut sink).await {} });
    done.borrow_mut().ended += u64::from(closed.await.is_ok());
    Ok(())
}

/// The first record of a good client.
fn client_hello(connector: &TlsConnector) -> Result<Vec<u8>> {
    let name = ServerName::try_from("bench.example")?;
    let mut connection = ClientConnection::new(connector.config().clone(), name)?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn a_flood_comes_from_200_addresses_each_of_which_is_short_every_other_time() {
        let mut by_source: BTreeMap<Ipv4Addr, [u32; 2]> = BTreeMap::new();
        for (from, kind) in (0..SOURCES * 60).map(|number| what(number, Order::Flood)) {
            by_source.entry(from).or_default()[usize::from(kind == Kind::Hello)] += 1;
        }
        assert_eq!(by_source.len(), 200);
        assert!(by_source.values().all(|kinds| *kinds == [30, 30]), "{by_source:?}");
        assert!(by_source.keys().all(Ipv4Addr::is_loopback));
    }

    #[test]
    fn a_flood_that_is_spread_never_comes_from_where_it_was() {
        let from: BTreeSet<_> = (0..200_000).map(|number| what(number, Order::Spread).0).collect();
        assert_eq!(from.len(), 200_000);
        assert!(from.iter().all(Ipv4Addr::is_loopback));
    }

    #[test]
    fn orders_are_read_as_they_are_written() {
        for order in [Order::Rest, Order::Flood, Order::Spread] {
            assert_eq!(parsed(&format!("{order:?}")).unwrap(), order);
        }
        assert!(parsed("").is_err());
    }
}
