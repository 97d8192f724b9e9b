//! Questions without end about certificates, from addresses of their own, and the first questions of everybody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use countersign_pki::Certificate;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Agent, Realm, Running, soon};
use crate::config::Config;
use crate::digest::sha256;

/// What one source may have done for it at once, before it has asked about a certificate that exists, and after that.
const UNKNOWN: usize = 64;
const KNOWN: usize = 512;
/// Without end, as far as a test goes.
const QUESTIONS_MAX: usize = 2000;

const TRY_LATER: &[u8] = &[0x30, 3, 0x0a, 1, 3];

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Good,
    Unknown,
    Later,
}

fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let contents = parts.concat();
    let length = u8::try_from(contents.len()).unwrap();
    let head = if length < 0x80 { vec![tag, length] } else { vec![tag, 0x81, length] };
    [head, contents].concat()
}

/// The next value of DER whole, and what follows.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (head, length) = match bytes[1] {
        0x81 => (3, usize::from(bytes[2])),
        0x82 => (4, usize::from(bytes[2]) << 8 | usize::from(bytes[3])),
        short => (2, usize::from(short)),
    };
    bytes.split_at(head + length)
}

/// A request about a certificate of the agent's issuer.
fn question(agent: &Agent, serial: [u8; 16], nonce: Option<[u8; 16]>) -> Vec<u8> {
    let leaf = Certificate::parse(&agent.chain[0]).unwrap();
    let issuer = Certificate::parse(&agent.chain[1]).unwrap();
    // Version, serial and algorithm come before the issuer's name.
    let fields = &leaf.tbs()[if leaf.tbs()[1] == 0x82 { 4 } else { 3 }..];
    let (_version, fields) = split(fields);
    let (_serial, fields) = split(fields);
    let (_algorithm, fields) = split(fields);
    let (name, _) = split(fields);
    let spki = issuer.spki();
    let key = &spki[spki.len() - 65..];
    assert_eq!(key[0], 4, "a point of P-256 that is not compressed");
    let sha256_id = [0x06, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
    let id = der(
        0x30,
        &[
            &der(0x30, &[&sha256_id]),
            &der(4, &[sha256(name).as_bytes()]),
            &der(4, &[sha256(key).as_bytes()]),
            &der(2, &[&serial]),
        ],
    );
    let questions = der(0x30, &[&der(0x30, &[&id])]);
    let nonce = nonce.map(|nonce| {
        let oid = [0x06, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 2];
        let extension = der(0x30, &[&oid, &der(4, &[&der(4, &[&nonce])])]);
        der(0xa2, &[&der(0x30, &[&extension])])
    });
    der(0x30, &[&der(0x30, &[&questions, &nonce.unwrap_or_default()])])
}

fn serial(agent: &Agent) -> [u8; 16] {
    let leaf = Certificate::parse(&agent.chain[0]).unwrap();
    leaf.serial_bytes().try_into().unwrap()
}

/// A serial of the same moment as the agent's that nobody has, each another.
fn made_up(agent: &Agent) -> [u8; 16] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut serial = serial(agent);
    serial[8..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    serial
}

/// A connection from an address of its own.
struct Caller(BufReader<TcpStream>);

impl Caller {
    async fn from(source: [u8; 4], views: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        Self(BufReader::new(socket.connect(views).await.unwrap()))
    }

    async fn ask(&mut self, question: &[u8]) -> Vec<u8> {
        let head =
            format!("POST /ocsp HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", question.len());
        self.0.write_all(&[head.as_bytes(), question].concat()).await.unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).await.unwrap();
            if line == "\r\n" {
                break;
            }
            if let Some(said) = line.strip_prefix("content-length: ") {
                length = said.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        body
    }

    async fn asks_about(
        &mut self,
        agent: &Agent,
        serial: [u8; 16],
        nonce: Option<[u8; 16]>,
    ) -> Told {
        let answer = self.ask(&question(agent, serial, nonce)).await;
        if answer == TRY_LATER {
            return Told::Later;
        }
        // What is said of a certificate follows its serial.
        let place = answer.windows(16).position(|bytes| bytes == serial).expect("it is about it");
        match answer[place + 16] {
            0x80 => Told::Good,
            0x82 => Told::Unknown,
            other => panic!("{other:#x}"),
        }
    }
}

/// A server that answers, and agents whose certificates are newer than what it answers from.
async fn serve(realm: &Realm, agents: usize) -> (Running, SocketAddr, Vec<Agent>) {
    let views = Some("127.0.0.1:0".parse().unwrap());
    let running = realm.start(Config { views, ..realm.config() }).await.unwrap();
    let views = running.ready.views.unwrap();
    let first = Agent::join(realm, &running, &[]).await;
    let mut caller = Caller::from([127, 0, 9, 9], views).await;
    let question = question(&first, serial(&first), None);
    soon(async {
        while !caller.ask(&question).await.windows(16).any(|bytes| bytes == serial(&first)) {
            realm.clock.advance(Duration::from_millis(100));
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut fresh = Vec::new();
    for _ in 0..agents {
        fresh.push(Agent::join(realm, &running, &[]).await);
    }
    (running, views, fresh)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_makes_serials_up_without_end_keeps_nobody_from_a_first_answer() {
    let realm = Realm::begin().await;
    let (running, views, agents) = serve(&realm, 8).await;
    let agents = Arc::new(agents);
    let (ended, mut flood) = (CancellationToken::new(), JoinSet::new());
    for _ in 0..12 {
        let (agents, ended) = (Arc::clone(&agents), ended.clone());
        flood.spawn(async move {
            let mut caller = Caller::from([127, 0, 0, 2], views).await;
            let (mut answered, mut refused) = (0, 0);
            for _ in 0..QUESTIONS_MAX {
                if ended.is_cancelled() && 50 <= refused {
                    break;
                }
                match caller.asks_about(&agents[0], made_up(&agents[0]), None).await {
                    Told::Unknown => answered += 1,
                    Told::Later => refused += 1,
                    Told::Good => panic!("nobody has it"),
                }
            }
            answered
        });
    }
    for (place, agent) in (10..).zip(agents.iter()) {
        let mut caller = Caller::from([127, 0, 0, place], views).await;
        assert_eq!(caller.asks_about(agent, serial(agent), None).await, Told::Good);
    }
    for place in 1..=200 {
        let mut caller = Caller::from([127, 0, 1, place], views).await;
        let told = caller.asks_about(&agents[0], made_up(&agents[0]), None).await;
        assert_eq!(told, Told::Unknown, "the first question of {place}");
    }
    ended.cancel();
    let answered: usize = flood.join_all().await.into_iter().sum();
    assert_eq!(answered, UNKNOWN, "time stands still here, so nothing was earned");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_with_nonces_without_end_is_signed_for_so_often_a_second() {
    let realm = Realm::begin().await;
    let (running, views, agents) = serve(&realm, 1).await;
    let agent = &agents[0];
    let mut caller = Caller::from([127, 0, 0, 2], views).await;
    let mut signed = async |questions: u64| {
        let mut signed = 0;
        for number in 0..questions {
            let mut nonce = [7; 16];
            nonce[..8].copy_from_slice(&number.to_be_bytes());
            let told = caller.asks_about(agent, serial(agent), Some(nonce)).await;
            signed += usize::from(told == Told::Good);
        }
        signed
    };
    // With the first it is not known yet that it asks about what exists.
    assert_eq!(signed(1000).await, 1 + KNOWN);
    realm.clock.advance(Duration::from_secs(1));
    assert_eq!(signed(300).await, 100);
    // What is in memory costs nothing, and another's first question is answered.
    let mut other = Caller::from([127, 0, 0, 3], views).await;
    assert_eq!(other.asks_about(agent, serial(agent), None).await, Told::Good);
    assert_eq!(caller.asks_about(agent, serial(agent), None).await, Told::Good);
    running.stop().await;
}
