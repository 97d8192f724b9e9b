//! What a good caller notices of 10,000 bad handshakes a second from 200 other addresses: the 99th of 100 of its own
//! handshakes, each with one request, beside the same without the flood.
//!
//! Half of the bad ones never get past their first record: nothing, noise or a half of it. The others begin as a good one does, so
//! that the proxy would have to answer with key exchange and signature, and do not go on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::child::{End, Peer};
use crate::client::{connector, credentials, one, provider};
use crate::figure::{Asked, Figure, Output, Verdict};
use crate::fleet::limits;

const BAD_PER_SEC: u64 = 10_000;
const SOURCES: u64 = 200;
const GOOD_PER_SEC: u32 = 100;
const SPAN: Duration = Duration::from_secs(10);
/// Bad ones that wait for the proxy to close them, here; beyond, the oldest are dropped by their time.
const OPEN_MAX: usize = 4096;
/// How long a bad one stays when the proxy lets it.
const BAD_STAYS: Duration = Duration::from_secs(2);

pub(crate) fn run(output: Output) -> Result<Verdict> {
    limits::allow(OPEN_MAX)?;
    let folder = tempfile::tempdir()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(credentials(folder.path(), 1))?;
    let backend = Peer::start(End::Backend, folder.path())?;
    std::fs::write(folder.path().join("backend"), backend.address.to_string())?;
    let proxy = Peer::start(End::Proxy, folder.path())?;
    let connector = connector(folder.path(), "client0", Arc::new(provider()))?;
    let hello = Arc::new(client_hello(&connector)?);
    runtime.block_on(async {
        // Whoever was let in before is known to the proxy: the good client is no stranger.
        good(&connector, proxy.address, Duration::from_secs(2)).await?;
        let calm = good(&connector, proxy.address, SPAN).await?;
        let (stop, tried) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let flooding = tokio::spawn(flood(proxy.address, hello, tried.clone(), stop.clone()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = (tried.load(Ordering::Relaxed), Instant::now(), proxy.family().processor()?);
        let flooded = good(&connector, proxy.address, SPAN).await?;
        let (span, count) = (before.1.elapsed(), tried.load(Ordering::Relaxed) - before.0);
        let cpu = (proxy.family().processor()? - before.2).as_secs_f64() / span.as_secs_f64();
        stop.cancel();
        flooding.await?;
        #[expect(clippy::cast_precision_loss, reason = "some hundred thousand")]
        let rate = count as f64 / span.as_secs_f64();
        eprintln!(
            "flood: {rate:.0} bad handshakes a second were begun; the proxy used {cpu:.2} cores"
        );
        ensure!(0.8 < rate / 10_000.0, "the machine could not send 10,000 a second");
        let figure = Figure {
            name: "flood",
            value: millis(flooded),
            unit: "ms p99",
            limit: millis(calm),
            limit_is: "ms without the flood; up to twice as long is allowed",
            asked: Asked::AtMost(2.0),
        };
        Ok(figure.print(output))
    })
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// The 99th of 100 good handshakes with one request, begun at a steady rate. None may fail.
async fn good(connector: &TlsConnector, address: SocketAddr, span: Duration) -> Result<Duration> {
    let mut took = tokio::task::JoinSet::new();
    let (begin, gap) = (tokio::time::Instant::now(), Duration::from_secs(1) / GOOD_PER_SEC);
    for number in 0.. {
        let due = begin + gap * number;
        if begin + span < due {
            break;
        }
        sleep_until(due).await;
        let connector = connector.clone();
        took.spawn(async move {
            let begun = Instant::now();
            timeout(Duration::from_secs(10), one(&connector, address)).await??;
            anyhow::Ok(begun.elapsed())
        });
    }
    let mut spans = Vec::new();
    while let Some(took) = took.join_next().await {
        spans.push(took?.context("a good caller was not served")?);
    }
    spans.sort_unstable();
    spans.get(spans.len() * 99 / 100).copied().context("nobody called")
}

async fn flood(
    door: SocketAddr,
    hello: Arc<Vec<u8>>,
    tried: Arc<AtomicU64>,
    stop: CancellationToken,
) {
    let open = Arc::new(Semaphore::new(OPEN_MAX));
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut number = 0_u64;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        for _ in 0..BAD_PER_SEC / 1000 {
            number += 1;
            let Ok(place) = open.clone().try_acquire_owned() else { continue };
            let (hello, tried) = (hello.clone(), tried.clone());
            tokio::spawn(async move {
                if bad(number, door, &hello).await.is_ok() {
                    tried.fetch_add(1, Ordering::Relaxed);
                }
                drop(place);
            });
        }
    }
}

/// One bad handshake, from one of the 200 addresses.
async fn bad(number: u64, door: SocketAddr, hello: &[u8]) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    let source = u8::try_from(number % SOURCES).unwrap_or(0);
    socket.bind(SocketAddr::from(([127, 9, 9, source + 1], 0)))?;
    let mut tcp = socket.connect(door).await?;
    // Port numbers must not run out: who closes last keeps none.
    socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO))?;
    // Not in step with the addresses, so that each of them does everything.
    let begins: &[u8] = match (number / SOURCES) % 6 {
        0 => &[],
        1 => b"GET / HTTP/1.1\r\n\r\n",
        2 => &hello[..hello.len() / 2],
        _ => hello,
    };
    // It may be closed already, which is what the proxy is meant to do.
    let _sent = tcp.write_all(begins).await;
    let mut sink = [0; 4096];
    let _closed =
        timeout(BAD_STAYS, async { while let Ok(1..) = tcp.read(&mut sink).await {} }).await;
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
