//! The door, and what frameworks make of it.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use countersign::{Authorization, Code, Door, Expected, Inbound, Outbound, Source, connect, dial};
use futures_util::future::join_all;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;

use crate::agent::{Agent, Offer};
use crate::world::{PATIENCE, World, source_with};

fn ids(ids: &[&str]) -> Authorization {
    Authorization::AllowIds(ids.iter().map(|id| id.parse().unwrap()).collect())
}

const WEB: &str = "spiffe://shop.example/web";
const ORDERS: &str = "spiffe://shop.example/orders";

#[tokio::test]
async fn a_silent_and_a_refused_caller_do_not_keep_others_waiting() {
    let world = World::new(Offer::WorkloadApiOnly);
    let (other, _folder) = world.neighbour(Offer::WorkloadApiOnly);
    world.agent.give(world.wire(&world.svid("/web")));
    other.give(world.wire(&world.svid("/orders")));
    let web = source_with(&world.agent, ids(&[])).await;
    let orders = source_with(&other, ids(&[WEB])).await;
    web.ready().await.unwrap();
    orders.ready().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut door = Door::new(&orders, listener, Inbound::service("orders".parse().unwrap()));
    let address = door.local_address().unwrap();

    let _silent = TcpStream::connect(address).await.unwrap();
    let mut noisy = TcpStream::connect(address).await.unwrap();
    noisy.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let expected = Expected::Id(ORDERS.parse().unwrap());
    let outbound = Outbound::service("orders".parse().unwrap(), expected);
    let trust = web.trust();
    let calling = dial(&trust, address, &outbound);
    let answering = async { Ok(door.accept().await) };
    let (established, mut connection) = tokio::try_join!(calling, answering).unwrap();
    let mut stream = established.stream;
    assert_eq!(connection.admitted().peer().unwrap().id.as_str(), WEB);
    assert_eq!(connection.peer_address().ip(), address.ip());
    stream.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    connection.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");

    // Who is not on the list is refused, and learns why.
    let trust = orders.trust();
    let calling = async {
        let mut stream = dial(&trust, address, &outbound).await.unwrap().stream;
        stream.read_to_end(&mut Vec::new()).await.unwrap_err()
    };
    let error = tokio::select! {
        error = calling => error,
        _ = door.accept() => panic!("`orders` is not on its own list"),
    };
    assert_eq!(countersign_tls::code_of_io(&error), Code::PeerRefused);
}

#[tokio::test]
async fn a_crowd_of_silent_callers_keeps_nobody_out() {
    // Of twenty sources. Together they are more than there are places, and than strangers may come at once.
    const SILENT_EACH: usize = 30;
    let two = Two::new();
    let web = source_with(two.web(), ids(&[])).await;
    let orders = source_with(two.orders(), ids(&[WEB])).await;
    web.ready().await.unwrap();
    orders.ready().await.unwrap();
    let mut inbound = Inbound::service("orders".parse().unwrap());
    // Silence does not end by itself.
    inbound.timeout = Duration::from_secs(3600);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut door = Door::new(&orders, listener, inbound);
    let address = door.local_address().unwrap();
    let expected = Expected::Id(ORDERS.parse().unwrap());
    let outbound = Outbound::service("orders".parse().unwrap(), expected);
    let trust = web.trust();
    let mut admitting = tokio::spawn(async move {
        loop {
            let mut connection = door.accept().await;
            connection.write_all(b"hello").await.unwrap();
        }
    });
    let call = async || {
        let tcp = from([127, 2, 0, 1], address).await;
        let mut stream = connect(&trust, tcp, &outbound).await.unwrap().stream;
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
    };
    let calling = async {
        call().await;
        let mut silent = Vec::new();
        for source in (1..=20).cycle().take(20 * SILENT_EACH) {
            silent.push(from([127, 1, 0, source], address).await);
        }
        for _ in 0..20 {
            call().await;
        }
    };
    tokio::select! {
        called = tokio::time::timeout(PATIENCE, calling) => called.expect("the crowd keeps it out"),
        ended = &mut admitting => panic!("{ended:?}"),
    }
    admitting.abort();
}

#[tokio::test]
async fn one_that_is_let_in_keeps_nobody_else_out() {
    let two = Two::new();
    let (third, _folder) = two.world.neighbour(Offer::WorkloadApiOnly);
    third.give(two.world.wire(&two.world.svid("/cron")));
    let cron = "spiffe://shop.example/cron";
    let web = source_with(two.web(), ids(&[])).await;
    let orders = source_with(two.orders(), ids(&[WEB, cron])).await;
    let other = source_with(&third, ids(&[])).await;
    for source in [&web, &orders, &other] {
        source.ready().await.unwrap();
    }
    let mut inbound = Inbound::service("orders".parse().unwrap());
    inbound.each_max = std::num::NonZeroUsize::new(4);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = Door::new(&orders, listener, inbound);
    let address = door.local_address().unwrap();
    let expected = Expected::Id(ORDERS.parse().unwrap());
    let outbound = Outbound::service("orders".parse().unwrap(), expected);
    let mut admitting = greeting(door);
    let call = async |source: &Source| {
        let trust = source.trust();
        let mut stream = dial(&trust, address, &outbound).await.unwrap().stream;
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.map(|_bytes| stream)
    };
    let calling = async {
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(call(&web).await.unwrap());
        }
        assert!(call(&web).await.is_err(), "it has its share");
        held.push(call(&other).await.unwrap());
    };
    tokio::select! {
        called = tokio::time::timeout(PATIENCE, calling) => called.expect("all are answered"),
        ended = &mut admitting => panic!("{ended:?}"),
    }
    admitting.abort();
}

#[tokio::test]
async fn who_comes_again_and_again_over_its_share_is_turned_away_unread_before_long() {
    let two = Two::new();
    let web = source_with(two.web(), ids(&[])).await;
    let orders = source_with(two.orders(), ids(&[WEB])).await;
    for source in [&web, &orders] {
        source.ready().await.unwrap();
    }
    let mut inbound = Inbound::service("orders".parse().unwrap());
    inbound.each_max = std::num::NonZeroUsize::new(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = Door::new(&orders, listener, inbound);
    let address = door.local_address().unwrap();
    let expected = Expected::Id(ORDERS.parse().unwrap());
    let outbound = Outbound::service("orders".parse().unwrap(), expected);
    let mut admitting = greeting(door);
    let trust = web.trust();
    let calling = async {
        let mut first = dial(&trust, address, &outbound).await.unwrap().stream;
        first.read_exact(&mut [0; 5]).await.unwrap();
        // In TLS 1.3 the caller is done first: what ends before that was not read.
        let is_whole = async || {
            let Ok(mut second) = dial(&trust, address, &outbound).await else { return false };
            assert!(second.stream.read_exact(&mut [0; 5]).await.is_err(), "it has its share");
            true
        };
        let mut whole = 0;
        // Side by side, so that what is earned meanwhile does not make up for it.
        loop {
            let turn = join_all((0..16).map(|_| is_whole())).await;
            whole += turn.iter().filter(|is_whole| **is_whole).count();
            if turn.contains(&false) {
                break;
            }
        }
        whole
    };
    let whole = tokio::select! {
        called = tokio::time::timeout(PATIENCE, calling) => called.expect("it is never limited"),
        ended = &mut admitting => panic!("{ended:?}"),
    };
    assert!(100 < whole, "an honest one is not shut out for some tries: {whole}");
    admitting.abort();
}

/// Greets whoever is let in, and lets nobody go.
fn greeting(mut door: Door) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut let_in = Vec::new();
        loop {
            let mut connection = door.accept().await;
            connection.write_all(b"hello").await.unwrap();
            let_in.push(connection);
        }
    })
}

/// A connection from one of this machine's own addresses.
async fn from(ip: [u8; 4], door: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((ip, 0))).unwrap();
    socket.connect(door).await.unwrap()
}

/// `web` and `orders`, each with an agent of its own.
struct Two {
    world: World,
    other: Agent,
    _folder: tempfile::TempDir,
}

impl Two {
    fn new() -> Self {
        let world = World::new(Offer::WorkloadApiOnly);
        let (other, _folder) = world.neighbour(Offer::WorkloadApiOnly);
        world.agent.give(world.wire(&world.svid("/web")));
        other.give(world.wire(&world.svid("/orders")));
        Self { world, other, _folder }
    }

    fn web(&self) -> &Agent {
        &self.world.agent
    }

    fn orders(&self) -> &Agent {
        &self.other
    }
}

/// An example, as its first lines say that it is run.
fn example(name: &str, agent: &Agent, words: &[&str]) -> Command {
    let tests = std::env::current_exe().unwrap();
    let example = tests.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(example.is_file(), "build it with `cargo build -p countersign --examples`");
    let mut command = Command::new(&example);
    command.args(words).env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint().to_string());
    command.stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// A serving example: the process, its further lines, and where it listens.
async fn serving(mut command: Command) -> (Child, Lines<BufReader<ChildStdout>>, String) {
    let mut server = command.spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    let address = line.strip_prefix("listening on ").unwrap().to_owned();
    (server, lines, address)
}

/// What a calling example printed; nothing when it failed.
async fn called(mut command: Command) -> Option<String> {
    let output = command.output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    if output.status.success() {
        return Some(said);
    }
    assert_eq!(said, "", "a refused caller gets no answer");
    None
}

#[tokio::test]
async fn the_hyper_example_serves_and_calls() {
    let two = Two::new();
    let server = example("hyper", two.orders(), &["serve", "127.0.0.1:0", "--allow", WEB]);
    let (_server, _lines, address) = serving(server).await;
    let call = |agent, peer| called(example("hyper", agent, &["call", &address, "--peer", peer]));
    let answer = call(two.web(), ORDERS).await.unwrap();
    assert_eq!(answer, format!("200 OK GET /: hello, {WEB}\n"));
    assert_eq!(call(two.web(), WEB).await, None, "somebody else than who was meant");
    assert_eq!(call(two.orders(), ORDERS).await, None, "not on the list");
}

#[tokio::test]
async fn the_axum_example_greets_who_is_on_its_list_and_nobody_else() {
    let two = Two::new();
    let server = example("axum", two.orders(), &["127.0.0.1:0", "--allow", WEB]);
    let (_server, _lines, address) = serving(server).await;
    let call = |agent, peer| called(example("hyper", agent, &["call", &address, "--peer", peer]));
    assert_eq!(call(two.web(), ORDERS).await.unwrap(), format!("200 OK hello, {WEB}\n"));
    assert_eq!(call(two.web(), WEB).await, None, "somebody else than who was meant");
    assert_eq!(call(two.orders(), ORDERS).await, None, "not on the list");
    // A list that names nobody else is no list for everybody.
    let closed = example("axum", two.orders(), &["127.0.0.1:0", "--service", "orders"]);
    let (_server, _lines, address) = serving(closed).await;
    let refused = called(example("hyper", two.web(), &["call", &address, "--peer", ORDERS])).await;
    assert_eq!(refused, None, "its agent tells no policies, so nobody may connect");
}

#[tokio::test]
async fn the_tonic_example_answers_who_is_on_its_list_and_sees_who_asks() {
    let two = Two::new();
    let server = example("tonic", two.orders(), &["serve", "127.0.0.1:0", "--allow", WEB]);
    let (_server, mut lines, address) = serving(server).await;
    let call = |agent, peer| called(example("tonic", agent, &["call", &address, "--peer", peer]));
    assert_eq!(call(two.web(), ORDERS).await.unwrap(), "SERVING\n");
    let seen = lines.next_line().await.unwrap().unwrap();
    assert_eq!(seen, format!("asked by {WEB}"));
    assert_eq!(call(two.web(), WEB).await, None, "somebody else than who was meant");
    assert_eq!(call(two.orders(), ORDERS).await, None, "not on the list");
}

#[tokio::test]
async fn the_reqwest_example_talks_to_whom_it_means_and_to_nobody_else() {
    let two = Two::new();
    let server = example("axum", two.orders(), &["127.0.0.1:0", "--allow", WEB]);
    let (_server, _lines, address) = serving(server).await;
    let url = format!("https://{address}/");
    let call = |agent, peer| called(example("reqwest", agent, &[&url, "--peer", peer]));
    assert_eq!(call(two.web(), ORDERS).await.unwrap(), format!("200 OK hello, {WEB}\n"));
    assert_eq!(call(two.web(), WEB).await, None, "somebody else than who was meant");
    assert_eq!(call(two.orders(), ORDERS).await, None, "not on the list");
    let plain = format!("http://{address}/");
    let refused = called(example("reqwest", two.web(), &[&plain, "--peer", ORDERS])).await;
    assert_eq!(refused, None, "without TLS");
}
