//! What a neighbour on the same machine may try on the agent's socket.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign_agent::attest::{Attestor, Caller, Peer, PinRefused, SimulatedProcess};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::world::{Agent, World, selectors};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// Reads until the agent closes.
async fn closed(mut stream: UnixStream) {
    let mut sink = Vec::new();
    // An end or a reset: both are a close.
    stream.read_to_end(&mut sink).await.ok();
}

#[tokio::test]
async fn http1_and_noise_are_closed_and_the_agent_goes_on() {
    let world = World::new().await;
    let agent = world.agent().await;
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        &[0; 4096],
    ] {
        let mut stream = UnixStream::connect(&agent.socket).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        closed(stream).await;
    }
    agent.client().await.fetch_x509_svid().await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn floods_of_continuations_and_unfolding_headers_are_closed() {
    let world = World::new().await;
    let agent = world.agent().await;
    let mut continuations = frame(1, 0, 1, &[]);
    (0..100).for_each(|_| continuations.extend(frame(9, 0, 1, &[])));
    let mut bomb = vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e];
    bomb.extend_from_slice(&[b'b'; 4000]);
    bomb.extend_from_slice(&[0xbe; 10_000]);
    let bomb = frame(1, 4, 1, &bomb);
    for bytes in [continuations, bomb, frame(1, 4, 1, &[0x3f])] {
        let mut stream = UnixStream::connect(&agent.socket).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        // The agent may close before all is written.
        stream.write_all(&bytes).await.ok();
        closed(stream).await;
    }
    agent.client().await.fetch_x509_svid().await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection_and_not_the_agent() {
    let world = World::new().await;
    let agent = world.agent().await;
    let mut stream = UnixStream::connect(&agent.socket).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    // :method POST, :scheme http, :path /, and a reset at once, a thousand times.
    let mut bytes = Vec::new();
    for stream in (1..2001).step_by(2) {
        bytes.extend(frame(1, 4, stream, &[0x83, 0x86, 0x84]));
        bytes.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    stream.write_all(&bytes).await.ok();
    closed(stream).await;
    agent.client().await.fetch_x509_svid().await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn one_process_cannot_take_all_connections_or_streams() {
    let world = World::new().await;
    let agent = world.agent().await;
    let clients = [agent.client().await, agent.client().await];
    let mut held = Vec::new();
    let mut refused = 0;
    for number in 0..70 {
        match clients[number % 2].stream_x509_contexts().await {
            Ok(stream) => held.push(Box::pin(stream)),
            Err(_) => refused += 1,
        }
    }
    assert!(held.len() <= 64 && 0 < refused, "{} streams", held.len());
    drop((held, clients));
    let mut connections = Vec::new();
    for _ in 0..40 {
        connections.push(UnixStream::connect(&agent.socket).await.unwrap());
    }
    // The last ones are closed unheard.
    let mut last = connections.pop().unwrap();
    let mut heard = Vec::new();
    let unheard = async {
        // It may be closed already.
        let _closed = last.write_all(PREFACE).await;
        let _closed = last.write_all(&frame(4, 0, 0, &[])).await;
        last.read_to_end(&mut heard).await.ok();
    };
    tokio::time::timeout(Duration::from_secs(30), unheard).await.unwrap();
    assert!(heard.is_empty(), "not even settings were answered: {heard:?}");
    drop(connections);
    world.settle().await;
    agent.client().await.fetch_x509_svid().await.unwrap();
    agent.stop().await;
}

/// Many processes, of many users: whoever connects is the next of them.
struct Crowd {
    next: Mutex<Peer>,
    came: AtomicUsize,
}

impl Attestor for Crowd {
    fn pin(&self, _socket: &UnixStream) -> Result<Arc<dyn Caller>, PinRefused> {
        let peer = *self.next.lock().unwrap();
        self.came.fetch_add(1, Ordering::SeqCst);
        let facts = selectors(if peer.uid == 1000 { &["launch:web"] } else { &[] });
        Ok(Arc::new(SimulatedProcess::new(peer, facts)))
    }
}

impl Crowd {
    fn come(&self, uid: u32, pid: u32) {
        *self.next.lock().unwrap() = Peer { pid, uid, gid: uid };
    }

    /// A connection of this process, on which it has begun to speak.
    async fn connect(&self, agent: &Agent, uid: u32, pid: u32) -> UnixStream {
        self.come(uid, pid);
        let before = self.came.load(Ordering::SeqCst);
        let mut stream = UnixStream::connect(&agent.socket).await.unwrap();
        while self.came.load(Ordering::SeqCst) == before {
            tokio::task::yield_now().await;
        }
        // It may have been turned away.
        let _closed = stream.write_all(PREFACE).await;
        let _closed = stream.write_all(&frame(4, 0, 0, &[])).await;
        stream
    }
}

#[tokio::test]
async fn two_users_cannot_take_all_connections() {
    const EACH: u32 = 2048;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let first = Peer { pid: 1, uid: 4001, gid: 4001 };
    let crowd = Arc::new(Crowd { next: Mutex::new(first), came: AtomicUsize::new(0) });
    let mut world = World::new().await;
    world.others = Some(Arc::clone(&crowd) as Arc<dyn Attestor>);
    let agent = world.agent().await;
    let mut held = Vec::new();
    for number in 0..2 * EACH {
        let uid = 4001 + number / EACH;
        held.push(crowd.connect(&agent, uid, 10_000 + number / 32).await);
    }
    for uid in [0, 1000, 4003] {
        let mut stream = crowd.connect(&agent, uid, uid + 2).await;
        let settings = async {
            let mut header = [0; 9];
            stream.read_exact(&mut header).await.map(|_| header[3])
        };
        let settings = tokio::time::timeout(Duration::from_secs(60), settings).await;
        assert_eq!(settings.unwrap().unwrap(), 4, "uid {uid} is answered with settings");
    }
    crowd.come(1000, 2);
    agent.client().await.fetch_x509_svid().await.unwrap();
    // Those who had most have made room, and are cut off: at once, not for want of answers to pings, which takes 30 s.
    let cut = closed(held.swap_remove(0));
    tokio::time::timeout(Duration::from_secs(25), cut).await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn clients_that_send_the_sockets_path_as_authority_are_served() {
    let world = World::new().await;
    let agent = world.agent().await;
    // hyper refuses such an authority as h2 does, so the header block is made by hand, as gRPC's C core makes it.
    let mut stream = UnixStream::connect(&agent.socket).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    let fields: [(&[u8], &[u8]); 7] = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/SpiffeWorkloadAPI/FetchX509SVID"),
        (b":authority", b"tmp%2Frun%2Fagent.sock"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"workload.spiffe.io", b"true"),
    ];
    let block = fluke_hpack::Encoder::new().encode(fields);
    stream.write_all(&frame(1, 4, 1, &block)).await.unwrap();
    stream.write_all(&frame(0, 1, 1, &[0; 5])).await.unwrap();
    // A DATA frame with the SVID comes back on stream 1.
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await.unwrap();
        let bytes = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut payload = vec![0; bytes as usize];
        stream.read_exact(&mut payload).await.unwrap();
        assert_ne!(header[3], 3, "the stream was reset");
        if header[3] == 0 {
            assert!(payload.windows(8).any(|part| part == b"spiffe:/"), "it holds the identity");
            break;
        }
    }
    agent.stop().await;
}
