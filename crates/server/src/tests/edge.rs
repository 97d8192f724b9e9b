//! Callers that want to do harm before they have said who they are.

use std::time::Duration;

use countersign_api::standing::{ALPN, Reader, put};
use countersign_api::v1;
use countersign_identity::Code;
use countersign_pki::{KeyKind, PrivateKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::client::{dialled, raw_from, shows};
use super::{Agent, Realm, Running, attest, soon, stranger};

/// Where those come from who want to do harm: the tests' agents are at another address.
const ATTACKER: [u8; 4] = [127, 0, 0, 2];

/// Whether the server has closed this connection.
async fn closed(tcp: &mut TcpStream) -> bool {
    let mut byte = [0];
    match tokio::time::timeout(Duration::from_millis(200), tcp.read(&mut byte)).await {
        Ok(read) => matches!(read, Ok(0) | Err(_)),
        Err(_elapsed) => false,
    }
}

#[tokio::test]
async fn handshakes_that_never_end_are_bounded_and_cut() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let known = agent.client(&realm, &running).await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(TcpStream::connect(running.address()).await.unwrap());
    }
    // Those beyond the bound are closed unread; who is known is served all the same.
    soon(async { while !closed(idle.last_mut().unwrap()).await {} }).await;
    soon(known.node.sign(countersign_api::v1::SignRequest::default())).await.unwrap();
    // The others end with the time for a handshake, and there is room again.
    realm.clock.advance(Duration::from_secs(11));
    for tcp in &mut idle {
        soon(async { while !closed(tcp).await {} }).await;
    }
    drop(stranger(&realm, &running).await);
    running.stop().await;
}

#[tokio::test]
async fn what_is_no_tls_is_closed_and_seen() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let mut tcp = TcpStream::connect(running.address()).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    soon(async { while !closed(&mut tcp).await {} }).await;
    // A refused peer is given a moment to read why; this one goes before.
    drop(tcp);
    let facts = soon(async {
        loop {
            let facts = running.admin.handshakes(10, None).await.unwrap().handshakes;
            if !facts.is_empty() {
                return facts;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(facts[0].point, "server");
    assert!(facts[0].code.is_some(), "{facts:?}");
    running.stop().await;
}

#[tokio::test]
async fn stranger_that_stays_is_cut() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let mut client = stranger(&realm, &running).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    realm.clock.advance(Duration::from_secs(61));
    let ended = soon(async {
        loop {
            let status = attest(&mut client, "unknown", &key).await.unwrap_err();
            if countersign_api::wire::refusal_of(&status).is_none() {
                return status;
            }
            tokio::task::yield_now().await;
        }
    });
    ended.await;
    running.stop().await;
}

#[tokio::test]
async fn stop_ends_open_streams_and_does_not_wait_for_them() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let client = agent.client(&realm, &running).await;
    let (say, said) = tokio::sync::mpsc::channel(1);
    let hello = countersign_api::v1::sync_request::Step::Hello(Default::default());
    say.send(countersign_api::v1::SyncRequest { step: Some(hello) }).await.unwrap();
    let said = tokio_stream::wrappers::ReceiverStream::new(said);
    let mut told = client.node.sync(said).await.unwrap().into_inner();
    told.message().await.unwrap();
    let stopping = tokio::spawn(running.stop());
    let status = soon(async {
        loop {
            if let Err(status) = told.message().await {
                return status;
            }
        }
    })
    .await;
    assert_eq!(status.code(), tonic::Code::Unavailable);
    soon(stopping).await.unwrap();
    realm.verify_everything().await;
}

/// What the server answers to bytes of an agent, until it closes.
async fn answers(
    realm: &Realm,
    running: &Running,
    agent: &Agent,
    said: &[u8],
) -> Vec<v1::FromServer> {
    let trust = shows(realm, &agent.bundle, &agent.chain, &agent.key);
    let mut tls = dialled(&trust, running.address(), ALPN).await;
    // The server may close while this is still being written.
    let _broken = tls.write_all(said).await;
    let mut reader = Reader::new(1 << 20, Duration::from_secs(60));
    let mut answers = Vec::new();
    while let Ok(Some(answer)) = soon(reader.next(&mut tls)).await {
        answers.push(answer);
    }
    answers
}

fn said(step: v1::from_agent::Step) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    put(&v1::FromAgent { step: Some(step) }, &mut out);
    out.to_vec()
}

#[tokio::test]
async fn what_is_no_message_too_large_or_never_whole_ends_its_connection_only() {
    use v1::from_agent::Step;
    use v1::sync_request::Step as Sync;
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let honest = agent.client(&realm, &running).await;
    let sync = |step| said(Step::Sync(v1::SyncRequest { step: Some(step) }));
    let hello = sync(Sync::Hello(v1::SyncHello::default()));
    let ack = sync(Sync::Ack(v1::SyncAck::default()));
    let unknown = said(Step::Call(v1::Call { number: 7, asked: None }));
    let cases = [
        ("no protobuf", b"\0\0\0\x02\xff\xff".to_vec(), Code::NotUnderstood),
        ("3 MiB by its length", (3_u32 << 20).to_be_bytes().to_vec(), Code::NotUnderstood),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Code::NotUnderstood),
        ("an empty message", vec![0; 4], Code::NotUnderstood),
        ("an acknowledgement first", ack, Code::NotUnderstood),
        ("two hellos", [hello.clone(), hello].concat(), Code::NotUnderstood),
    ];
    for (what, bytes, code) in cases {
        let mut answers = answers(&realm, &running, &agent, &bytes).await;
        match answers.pop().and_then(|last| last.step) {
            Some(v1::from_server::Step::Ended(refusal)) => {
                assert_eq!(refusal.code, code.as_str(), "{what}: {}", refusal.message);
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    // A call that is not known is answered, so that an older server may be asked what a newer one knows.
    let trust = shows(&realm, &agent.bundle, &agent.chain, &agent.key);
    let mut tls = dialled(&trust, running.address(), ALPN).await;
    tls.write_all(&unknown).await.unwrap();
    let mut reader = Reader::new(1 << 20, Duration::from_secs(60));
    let answer: v1::FromServer = soon(reader.next(&mut tls)).await.unwrap().unwrap();
    let Some(v1::from_server::Step::Answer(answer)) = answer.step else { panic!("{answer:?}") };
    assert_eq!(answer.number, 7);
    soon(honest.node.sign(v1::SignRequest::default())).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn calls_without_end_are_read_no_faster_than_they_are_answered() {
    use v1::from_agent::Step;
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let trust = shows(&realm, &agent.bundle, &agent.chain, &agent.key);
    let mut tls = dialled(&trust, running.address(), ALPN).await;
    let asked = |number| {
        let asked = Some(v1::call::Asked::Sign(v1::SignRequest::default()));
        said(Step::Call(v1::Call { number, asked }))
    };
    let many: Vec<u8> = (1..=1000).flat_map(asked).collect();
    tls.write_all(&many).await.unwrap();
    let mut reader = Reader::new(1 << 20, Duration::from_secs(60));
    let mut answered = std::collections::BTreeSet::new();
    while answered.len() < 1000 {
        let answer: v1::FromServer = soon(reader.next(&mut tls)).await.unwrap().unwrap();
        let Some(v1::from_server::Step::Answer(answer)) = answer.step else { panic!("{answer:?}") };
        assert!(answered.insert(answer.number), "answered twice");
    }
    running.stop().await;
}

#[tokio::test]
async fn calls_that_wait_before_a_hello_hold_no_turn_that_others_wait_for() {
    use v1::from_agent::Step;
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let (agent, other) =
        (Agent::join(&realm, &running, &[]).await, Agent::join(&realm, &running, &[]).await);
    let honest = other.client(&realm, &running).await;
    let asked = |number| {
        let asked = Some(v1::call::Asked::Sign(v1::SignRequest::default()));
        said(Step::Call(v1::Call { number, asked }))
    };
    let hello = v1::sync_request::Step::Hello(v1::SyncHello::default());
    let hello = said(Step::Sync(v1::SyncRequest { step: Some(hello) }));
    let all: Vec<u8> = (1..=7).flat_map(asked).chain(hello).collect();
    let trust = shows(&realm, &agent.bundle, &agent.chain, &agent.key);
    let mut crowd = Vec::new();
    for _ in 0..8 {
        let mut tls = dialled(&trust, running.address(), ALPN).await;
        tls.write_all(&all).await.unwrap();
        crowd.push(tls);
    }
    for _ in 0..20 {
        soon(honest.node.sign(v1::SignRequest::default())).await.unwrap();
    }
    drop(crowd);
    running.stop().await;
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once_end_their_connection_only() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let mut tls = raw_from(&realm, &running, ATTACKER).await.stream;
    // The preface, empty settings, and then each stream's HEADERS with its RST_STREAM (RFC 9113, 3.4 and 6).
    let mut attack = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream in (1..40_001_u32).step_by(2) {
        // :method POST, :scheme https, :path /, all from the static table.
        attack.extend_from_slice(&[0, 0, 3, 1, 4]);
        attack.extend_from_slice(&stream.to_be_bytes());
        attack.extend_from_slice(&[0x83, 0x87, 0x84]);
        attack.extend_from_slice(&[0, 0, 4, 3, 0]);
        attack.extend_from_slice(&stream.to_be_bytes());
        attack.extend_from_slice(&8_u32.to_be_bytes());
    }
    // The server may close while this is still being written.
    let _broken = tls.write_all(&attack).await;
    let mut answer = Vec::new();
    let _broken = soon(tls.read_to_end(&mut answer)).await;
    let goaway = answer.windows(2).any(|window| window == [7, 0]);
    assert!(goaway, "the connection was ended by the server: {} bytes", answer.len());
    let agent = Agent::join(&realm, &running, &[]).await;
    drop(agent);
    running.stop().await;
}

/// A frame of HTTP/2 (RFC 9113, 4.1) on this stream.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The preface and empty settings.
pub(super) fn beginning() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat()
}

/// An agent that asks for something again and again while a crowd does harm.
pub(super) async fn is_served(agent: &super::Client) {
    for _ in 0..5 {
        soon(agent.node.sign(v1::SignRequest::default())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_without_end_close_their_connection_and_an_agent_notices_nothing() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await.client(&realm, &running).await;
    // Heads that are not finished, and CONTINUATION frames that do not finish them: with fields, and with nothing in them.
    let field = [&[0x00, 0x01, b'x', 0x7f, 0x81, 0x07][..], &[b'a'; 256]].concat();
    for payload in [&field[..], &[]] {
        let tls = raw_from(&realm, &running, ATTACKER).await.stream;
        let (mut reading, mut writing) = tokio::io::split(tls);
        let (first, again) = (frame(1, 0, 1, payload), frame(9, 0, 1, payload));
        let sending = async {
            writing.write_all(&[beginning(), first].concat()).await?;
            // Bounded, so that a server which takes everything fails the test and does not hang it.
            for _ in 0..100_000 {
                writing.write_all(&again).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        let mut sink = [0; 4096];
        let reading = async { while let Ok(1..) = reading.read(&mut sink).await {} };
        let closed = async {
            tokio::select! {
                sent = sending => assert!(sent.is_err(), "all of it was taken"),
                () = reading => {}
            }
        };
        soon(async { tokio::join!(closed, is_served(&agent)) }).await;
    }
    is_served(&agent).await;
    running.stop().await;
}

/// A request's head with this many more fields of 4,033 bytes each, all but the first told by one byte (RFC 7541, 6.1 and 4.1).
fn head(fields: usize) -> Vec<u8> {
    // :method POST, :scheme https, :path /, and `a` with a value of 4,000 bytes.
    let mut head = vec![0x83, 0x87, 0x84, 0x40, 1, b'a', 0x7f, 0xa1, 0x1e];
    head.extend_from_slice(&[b'b'; 4000]);
    head.resize(head.len() + fields, 0xbe);
    head
}

/// Whether a method answered on this connection, which is read until the server has answered or closed.
async fn is_answered(tls: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    loop {
        let mut header = [0; 9];
        if tls.read_exact(&mut header).await.is_err() {
            return false;
        }
        let [a, b, c, kind, ..] = header;
        let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap()];
        if tls.read_exact(&mut payload).await.is_err() {
            return false;
        }
        match kind {
            // The first field is the status, and 200 is one byte (RFC 7541, A); gRPC says everything else in trailers.
            1 => return payload.contains(&0x88),
            3 | 7 => return false,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_heads_reach_no_method_and_an_agent_notices_nothing() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await.client(&realm, &running).await;
    for (fields, reaches) in [(0, true), (4, false), (1000, false), (12_000, false)] {
        let mut tls = raw_from(&realm, &running, ATTACKER).await.stream;
        let request = frame(1, 5, 1, &head(fields));
        tls.write_all(&[beginning(), request].concat()).await.unwrap();
        assert_eq!(soon(is_answered(&mut tls)).await, reaches, "{fields} more fields");
        is_served(&agent).await;
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_makes_the_server_answer_and_reads_nothing_is_heard_no_more() {
    /// What the system and TLS hold between two ends that do not read is far less.
    const TAKEN_MAX: usize = 48 * 1024 * 1024;
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await.client(&realm, &running).await;
    for (what, again) in [
        ("SETTINGS", frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("PING", frame(6, 0, 0, &[7; 8])),
        ("HEADERS of no request", frame(1, 5, 1, &[0x82])),
    ] {
        let mut tls = raw_from(&realm, &running, ATTACKER).await.stream;
        tls.write_all(&beginning()).await.unwrap();
        let many = again.repeat(1000);
        let mut taken = 0;
        let feeding = async {
            // It is heard no more when nothing was taken for as long as this, or when the server has closed.
            let patience = Duration::from_secs(2);
            while let Ok(Ok(())) = tokio::time::timeout(patience, tls.write_all(&many)).await {
                taken += many.len();
                assert!(taken < TAKEN_MAX, "{what}: {taken} bytes were taken");
            }
        };
        soon(async { tokio::join!(feeding, is_served(&agent)) }).await;
        is_served(&agent).await;
    }
    running.stop().await;
}
