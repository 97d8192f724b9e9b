//! The door, and what frameworks make of it.

use std::process::Stdio;

use countersign::{Authorization, Code, Door, Expected, Inbound, Outbound, dial};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::agent::Offer;
use crate::world::{World, source_with};

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

/// The example runs as its first lines say.
#[tokio::test]
async fn the_hyper_example_serves_and_calls() {
    let world = World::new(Offer::WorkloadApiOnly);
    let (other, _folder) = world.neighbour(Offer::WorkloadApiOnly);
    world.agent.give(world.wire(&world.svid("/web")));
    other.give(world.wire(&world.svid("/orders")));
    let tests = std::env::current_exe().unwrap();
    let example = tests.ancestors().nth(2).unwrap().join("examples/hyper");
    assert!(example.is_file(), "build it with `cargo build -p countersign --examples`");
    let run = |agent: &crate::agent::Agent, words: &[&str]| {
        let mut command = Command::new(&example);
        command.args(words).env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint().to_string());
        command.stdout(Stdio::piped()).kill_on_drop(true);
        command
    };
    let mut server = run(&other, &["serve", "127.0.0.1:0", "--allow", WEB]).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    let address = line.strip_prefix("listening on ").unwrap();

    let called = run(&world.agent, &["call", address, "--peer", ORDERS]).output().await.unwrap();
    let answer = String::from_utf8(called.stdout).unwrap();
    assert_eq!(answer, format!("200 OK GET /: hello, {WEB}\n"));
    // Somebody else than who was meant.
    let called = run(&world.agent, &["call", address, "--peer", WEB]).output().await.unwrap();
    assert!(!called.status.success() && called.stdout.is_empty());
    // Not on the list.
    let called = run(&other, &["call", address, "--peer", ORDERS]).output().await.unwrap();
    assert!(!called.status.success() && called.stdout.is_empty());
}
