//! Crowds of bad callers, from many addresses, beside good ones.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use countersign_identity::{Code, SimClock, Timestamp};
use countersign_pki::Bundles;
use countersign_tls::{Expected, HandshakeFact, Outbound, Slice, Stream, Trust, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::realm::Realm;
use super::world::{PATIENCE, Shop, eventually, inbound, name};
use crate::bounds::{HANDSHAKES, STANDING};
use crate::config::{FixedInbound, Protocol};

/// Held by each of these tests: what is resident is so for all that run at once.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A connection to the door from one of the machine's own addresses, `127.0.x.y`.
pub(super) async fn from(number: u16, door: SocketAddr) -> std::io::Result<TcpStream> {
    let [high, low] = number.to_be_bytes();
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 1, high, low], 0)))?;
    socket.connect(door).await
}

/// One whom the door's own authorities do not know, and who believes the door.
async fn intruder(shop: &Shop) -> Arc<Trust> {
    let evil = Realm::on(shop.realm.clock.clone(), "evil.example", 9).await;
    let bundles = Bundles::new(vec![shop.realm.bundle(), evil.bundle()]).unwrap();
    let known = shop.web.plane.trust.slice();
    let names = Arc::new(std::collections::HashMap::from([(evil.id("web"), name("web"))]));
    let slice = Slice { bundles: Arc::new(bundles), names, ..Slice::clone(&known) };
    let trust = Trust::new(shop.realm.clock.clone(), slice);
    trust.set_identity(evil.identity("web", 3600).await.identity).unwrap();
    trust
}

/// The beginning of a first record, as it is sent by somebody who will not go on.
const HALF_A_RECORD: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 7, 7, 7, 7, 7];

/// Tries to come in, badly: with nothing, noise, half a record, or a whole handshake that is refused.
async fn misbehave(turn: usize, source: u16, door: SocketAddr, intruder: &Arc<Trust>) {
    let Ok(mut tcp) = from(source, door).await else { return };
    match turn % 6 {
        0 => {}
        1 => drop(tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await),
        2 => drop(tcp.write_all(HALF_A_RECORD).await),
        _ => {
            let outbound = to_orders();
            if let Ok(mut established) = connect(intruder, tcp, &outbound).await {
                while let Ok(1..) = established.stream.read(&mut [0; 1]).await {}
            }
        }
    }
}

pub(super) fn to_orders() -> Outbound {
    let id = "spiffe://shop.example/orders".parse().unwrap();
    let mut outbound = Outbound::service(name("orders"), Expected::Id(id));
    outbound.alpn = vec![b"http/1.1".to_vec()];
    outbound
}

/// A handshake of its own and one request, as `web`, from this address.
async fn visit(shop: &Shop, source: u16) -> Result<String, String> {
    let tcp = from(source, shop.orders.door()).await.map_err(|error| error.to_string())?;
    visit_over(tcp, &shop.web.plane.trust).await
}

/// The same over a connection that stands.
pub(super) async fn visit_over(tcp: TcpStream, trust: &Arc<Trust>) -> Result<String, String> {
    let established = connect(trust, tcp, &to_orders()).await;
    let mut stream = established.map_err(|failure| failure.to_string())?.stream;
    let request = b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[track_caller]
fn answered(answer: &Result<String, String>) {
    assert!(answer.as_ref().is_ok_and(|text| text.starts_with("HTTP/1.1 200")), "{answer:?}");
}

/// The number after this in the exposition of metrics.
fn counted(shop: &Shop, line: &str) -> u64 {
    let text = shop.orders.exposed();
    let found = text.lines().find_map(|it| it.strip_prefix(line));
    found.map_or(0, |number| number.trim().parse().unwrap())
}

/// Resident memory of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_callers_notice_nothing_of_a_crowd_of_bad_ones() {
    const SOURCES: u16 = 200;
    const TRIES: usize = 10_000;
    let _alone = ALONE.lock().await;
    let shop = Arc::new(Shop::open(Protocol::Http).await);
    let (intruder, door) = (intruder(&shop).await, shop.orders.door());
    answered(&visit(&shop, 40_000).await);
    let (memory, begun) = (resident(), Instant::now());
    let turn = Arc::new(AtomicUsize::new(0));
    let mut crowd = JoinSet::new();
    for source in 0..SOURCES {
        let (turn, intruder) = (turn.clone(), intruder.clone());
        crowd.spawn(async move {
            loop {
                let number = turn.fetch_add(1, Ordering::Relaxed);
                if TRIES <= number {
                    return;
                }
                misbehave(number, source, door, &intruder).await;
            }
        });
    }
    // One who was here before, one who comes for the first time, and the program of a third, for as long as the crowd comes.
    let good = async {
        for round in 0.. {
            if 40 <= round && TRIES <= turn.load(Ordering::Relaxed) {
                break;
            }
            answered(&visit(&shop, 40_000).await);
            answered(&visit(&shop, 41_000 + round).await);
            assert_eq!(shop.caller().await.get("/").await.0, 200);
        }
    };
    tokio::time::timeout(PATIENCE, good).await.expect("the good ones were served in time");
    while crowd.join_next().await.is_some() {}
    // Most of them were turned away before anything of them was read.
    let turned =
        "countersign_proxy_refused_connections_total{service=\"orders\",reason=\"rate-limited\"} ";
    let turned = usize::try_from(counted(&shop, turned)).unwrap();
    let earned = begun.elapsed().as_millis() / STANDING.suspects.every.as_millis();
    let most = usize::from(SOURCES) * 2 + STANDING.suspects.burst as usize;
    let most = most + usize::try_from(earned).unwrap();
    assert!(
        TRIES <= turned + most,
        "{TRIES} tried, {turned} were turned away, {most} may have been heard"
    );
    assert!(500 < turned, "{turned} of {TRIES}");
    // Every one that was heard has a reason of the closed list, and so have those that were not.
    for code in [Code::RateLimited, Code::UnknownTrustDomain, Code::PeerClosed, Code::BadHandshake]
    {
        shop.orders.refused(code).await;
    }
    assert!(resident() < memory + 96 * 1024, "{memory} KiB before, {} after", resident());
    eventually(|| (shop.orders.connections() <= 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_never_end_keep_nobody_out_however_many_begin() {
    let _alone = ALONE.lock().await;
    let shop = Shop::open(Protocol::Http).await;
    let door = shop.orders.door();
    let mut silent = Vec::new();
    // More than there are places, of more sources than one, each with less than its share.
    for number in 0..HANDSHAKES.all + 100 {
        let source = u16::try_from(number % 20).unwrap();
        let mut tcp = from(source, door).await.unwrap();
        tcp.write_all(HALF_A_RECORD).await.ok();
        silent.push(tcp);
    }
    for round in 0..50 {
        answered(&visit(&shop, 50_000 + round).await);
    }
    // Not only that some of the crowd found no place: some had one, and lost it before their time-out.
    let gave_way = |fact: &HandshakeFact| {
        fact.code == Some(Code::TooManyConnections) && fact.detail.contains("gave way")
    };
    shop.orders.fact(gave_way).await;
}

/// Each of two doors is asked by as many as have places at all doors together; the third is another's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowds_at_two_doors_keep_nobody_from_the_third() {
    let _alone = ALONE.lock().await;
    let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_790_000_000)));
    let mut shop = Shop::open_on(clock.clone(), Protocol::Http).await;
    let door = |service| FixedInbound {
        service: name(service),
        ..inbound(&shop.program.target(), Protocol::Http)
    };
    let doors = ["orders", "payments", "stock"].map(door);
    shop.orders.listen(&doors, &[]);
    answered(&visit(&shop, 60_000).await);
    let mut silent = Vec::new();
    let (open, _) = shop.orders.supervisor.bound();
    let (_, crowded) = open.split_first().unwrap();
    for (number, door) in crowded.iter().enumerate() {
        for source in 0..HANDSHAKES.all {
            // As fast as strangers may come.
            clock.advance(STANDING.strangers.every);
            let source = u16::try_from(100 * number + source % 16).unwrap();
            let mut tcp = from(source, door.listen).await.unwrap();
            tcp.write_all(HALF_A_RECORD).await.ok();
            silent.push(tcp);
        }
    }
    for round in 0..20 {
        answered(&visit(&shop, 60_000).await);
        clock.advance(STANDING.strangers.every);
        answered(&visit(&shop, 61_000 + round).await);
    }
    let gave_way = |fact: &HandshakeFact| fact.detail.contains("gave way");
    shop.orders.fact(gave_way).await;
}

/// Nobody has more than one, so no crowd makes room; and no time passes, so none of them is slow.
#[tokio::test]
async fn who_was_let_in_before_finds_a_place_beside_any_number_of_sources_that_never_were() {
    let _alone = ALONE.lock().await;
    let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_790_000_000)));
    let shop = Shop::open_on(clock, Protocol::Http).await;
    let door = shop.orders.door();
    answered(&visit(&shop, 60_000).await);
    let mut silent = Vec::new();
    for source in 0..STANDING.strangers.burst + 100 {
        let mut tcp = from(u16::try_from(source).unwrap(), door).await.unwrap();
        tcp.write_all(HALF_A_RECORD).await.ok();
        silent.push(tcp);
    }
    // All that strangers have together is used up, and all places are taken.
    shop.orders.refused(Code::RateLimited).await;
    assert!(HANDSHAKES.all <= STANDING.strangers.burst as usize);
    for _ in 0..50 {
        answered(&visit(&shop, 60_000).await);
    }
}

/// A connection from this address on which HTTP/2 has begun.
async fn speaks_http_2(shop: &Shop, source: u16) -> Stream {
    let mut outbound = to_orders();
    outbound.alpn = vec![b"h2".to_vec()];
    let tcp = from(source, shop.orders.door()).await.unwrap();
    let mut stream = connect(&shop.web.plane.trust, tcp, &outbound).await.unwrap().stream;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    stream
}

/// Sends the beginning of HTTP/2 and then these bytes again and again, reading nothing, until the door takes no more or
/// closes. Says how many bytes it took.
async fn force_feed(shop: &Shop, first: &[u8], again: &[u8]) -> usize {
    const MOST: usize = 64 * 1024 * 1024;
    let (_unread, mut writing) = tokio::io::split(speaks_http_2(shop, 60_000).await);
    writing.write_all(first).await.ok();
    let many = again.repeat((16 * 1024 / again.len()).max(1));
    let mut taken = 0;
    while taken < MOST {
        let sent = tokio::time::timeout(Duration::from_millis(500), writing.write_all(&many)).await;
        match sent {
            Ok(Ok(())) => taken += many.len(),
            Ok(Err(_)) | Err(_) => return taken,
        }
    }
    taken
}

/// A frame of HTTP/2 (RFC 9113, 4.1) on this stream.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_makes_us_answer_and_reads_nothing_is_heard_no_more() {
    let _alone = ALONE.lock().await;
    let shop = Shop::open(Protocol::Http).await;
    // Each asks for an answer: settings for an acknowledgement, pings for another, a request without a path for a reset.
    let bad = frame(1, 5, 1, &[0x82]);
    let floods: [(&str, &[u8], Vec<u8>); 3] = [
        ("SETTINGS", &[], frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("PING", &[], frame(6, 0, 0, &[7; 8])),
        ("HEADERS that are reset", &[], bad),
    ];
    for (what, first, again) in floods {
        let before = resident();
        let taken = force_feed(&shop, first, &again).await;
        assert!(taken < 48 * 1024 * 1024, "{what}: {taken} bytes were taken");
        assert!(resident() < before + 64 * 1024, "{what}: from {before} to {} KiB", resident());
        assert_eq!(shop.caller().await.get("/").await.0, 200, "after {what}");
    }
}

/// Sends these bytes again and again and reads whatever comes, for as long as the door goes along. Counts what it was told.
async fn converse(stream: Stream, again: &[u8], told: &AtomicUsize) {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let many = again.repeat((16 * 1024 / again.len()).max(1));
    let write = async { while writing.write_all(&many).await.is_ok() {} };
    let read = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = reading.read(&mut buffer).await {
            told.fetch_add(count, Ordering::Relaxed);
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_makes_us_answer_and_reads_the_answers_keeps_nobody_waiting() {
    /// Peers that do nothing else, each from a connection of its own.
    const FLOODERS: u16 = 2;
    let _alone = ALONE.lock().await;
    let shop = Arc::new(Shop::open(Protocol::Http).await);
    let floods =
        [("SETTINGS", frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])), ("PING", frame(6, 0, 0, &[7; 8]))];
    for (what, again) in floods {
        let (before, told) = (resident(), Arc::new(AtomicUsize::new(0)));
        let mut crowd = JoinSet::new();
        for source in 0..FLOODERS {
            let (shop, again, told) = (Arc::clone(&shop), again.clone(), Arc::clone(&told));
            crowd.spawn(async move {
                loop {
                    converse(speaks_http_2(&shop, source).await, &again, &told).await;
                }
            });
        }
        // It goes on all the while, beside them on the same two threads, so that the bound is a generous one.
        let mut longest = Duration::ZERO;
        for round in 0..20 {
            let least = told.load(Ordering::Relaxed) + 64 * 1024;
            eventually(|| (least <= told.load(Ordering::Relaxed)).then_some(())).await;
            let begun = Instant::now();
            assert_eq!(shop.caller().await.get("/").await.0, 200, "beside {what}");
            answered(&visit(&shop, 50_000 + round).await);
            longest = longest.max(begun.elapsed());
            assert!(longest < Duration::from_secs(30), "beside {what}: {longest:?}");
        }
        crowd.shutdown().await;
        println!("beside {what}: {longest:?} at most");
        assert!(resident() < before + 64 * 1024, "{what}: from {before} to {} KiB", resident());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_cost_a_buffer_each_and_the_others_nothing() {
    const BODY: usize = 8 * 1024 * 1024;
    let _alone = ALONE.lock().await;
    let shop = Shop::open(Protocol::Http).await;
    let before = resident();
    let mut slow = Vec::new();
    for source in 0..16 {
        let tcp = from(source, shop.orders.door()).await.unwrap();
        let outbound = to_orders();
        let mut stream = connect(&shop.web.plane.trust, tcp, &outbound).await.unwrap().stream;
        stream.write_all(b"GET /large HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
        let mut beginning = [0; 12];
        stream.read_exact(&mut beginning).await.unwrap();
        assert_eq!(&beginning, b"HTTP/1.1 200");
        slow.push(stream);
    }
    for _ in 0..20 {
        assert_eq!(shop.caller().await.get("/").await.0, 200);
    }
    let most = before + 16 * 2 * 1024;
    assert!(resident() < most, "16 bodies of {BODY} bytes: from {before} to {} KiB", resident());
}
