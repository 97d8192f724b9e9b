//! Callers that open streams only to give them up, and guess by them.

use std::time::{Duration, Instant};

use countersign_api::v1;
use countersign_api::v1::renew_request::Step as Asked;
use countersign_identity::{Code, NodeId};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::{Node, raw_from, stranger_from};
use super::edge::{beginning, frame, is_served};
use super::floods::serve;
use super::renew::{Claim, renew};
use super::start::ask;
use super::{Agent, Realm, Running, attest, code, soon};

/// Where the attacker comes from: the tests' agents are at another address.
const ATTACKER: [u8; 4] = [127, 0, 0, 2];
/// How many wrong guesses of one source are looked up at once.
const GUESSES: usize = 20;
/// How long each further one waits before.
const PAUSE: Duration = Duration::from_millis(200);
/// How many requests of one connection are worked on at once.
const WORKS: usize = 32;

const NOBODY: NodeId = NodeId::from_bytes([7; 16]);

/// Opens a renewal's stream, says which node it is, and gives it up as soon as the server has taken it.
async fn given_up(mut node: Node) {
    let (say, said) = mpsc::channel(1);
    let hello = v1::RenewHello { node_id: NOBODY.as_bytes().to_vec().into(), ..Default::default() };
    say.send(v1::RenewRequest { step: Some(Asked::Hello(hello)) }).await.unwrap();
    if let Ok(taken) = node.renew(ReceiverStream::new(said)).await {
        // Time for what was said to arrive.
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(taken);
    }
}

/// How often a node was refused because there is none of this name, each time after a look-up.
async fn looked_up(running: &Running) -> usize {
    let text = ask(running.ready.metrics.unwrap(), "/metrics").await;
    let refused = |line: &&str| {
        line.starts_with("countersign_server_attestations_refused_total")
            && line.contains("\"unknown-node\"")
    };
    let line = text.lines().find(refused);
    line.map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_up_streams_and_opens_others_has_no_more_work_under_way_and_an_agent_notices_nothing()
 {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let known = Agent::join(&realm, &running, &[]).await;
    let agent = known.client(&realm, &running).await;
    let mut attacker = stranger_from(&realm, &running, ATTACKER).await;
    for _ in 0..GUESSES {
        let claim = Claim { node: NOBODY, ..Claim::honest(&known) };
        assert_eq!(code(&renew(&mut attacker, claim).await.unwrap_err()), Code::UnknownNode);
    }
    let began = Instant::now();
    let flood = async {
        for _ in 0..20 {
            let streams = (0..WORKS).map(|_| given_up(attacker.node.clone()));
            futures_util::future::join_all(streams).await;
        }
    };
    soon(async { tokio::join!(flood, is_served(&agent)) }).await;
    // What was taken on is done also after it was given up, so it is waited for.
    tokio::time::sleep(2 * PAUSE).await;
    let (guesses, took) = (looked_up(&running).await, began.elapsed());
    let rounds = usize::try_from(took.as_millis() / PAUSE.as_millis()).unwrap() + 1;
    assert!(guesses <= GUESSES + WORKS * rounds, "{guesses} in {took:?}");
    assert!(GUESSES < guesses, "the flood was heard");
    // Another connection of its address has places of its own, and waits for its wrong guesses only.
    let mut neighbour = stranger_from(&realm, &running, ATTACKER).await;
    renew(&mut neighbour, Claim::honest(&known)).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn generations_that_are_not_the_newest_count_as_guesses() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut attacker = stranger_from(&realm, &running, ATTACKER).await;
    for number in 0..GUESSES {
        let (generation, refused) =
            [(0, Code::StaleGeneration), (2, Code::BadPossession)][number % 2];
        let claim = Claim { generation, ..Claim::honest(&agent) };
        assert_eq!(code(&renew(&mut attacker, claim).await.unwrap_err()), refused);
    }
    let refused = attest(&mut attacker, "guess", &agent.key).await.unwrap_err();
    assert_eq!(code(&refused), Code::RateLimited);
    // Right ones are not held up by what is wrong for ever, and use nothing up.
    renew(&mut attacker, Claim::honest(&agent)).await.unwrap();
    running.stop().await;
    realm.verify_everything().await;
}

/// The kinds of the frames that follow, until there is one of this kind or the connection has ended.
async fn frames_until(tls: &mut (impl AsyncRead + Unpin), last: Option<u8>) -> Vec<u8> {
    let mut kinds = Vec::new();
    loop {
        let mut header = [0; 9];
        if tls.read_exact(&mut header).await.is_err() {
            return kinds;
        }
        let [a, b, c, kind, ..] = header;
        let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap()];
        if tls.read_exact(&mut payload).await.is_err() {
            return kinds;
        }
        kinds.push(kind);
        if Some(kind) == last {
            return kinds;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_way_is_cut_at_once_whatever_it_has_under_way() {
    const PLACES: usize = 128;
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let mut oldest = raw_from(&realm, &running, ATTACKER).await.stream;
    // A stream that waits for its first message: :method POST, :scheme https, a :path, and a content type (RFC 7541, 6.2.2).
    let path = b"/countersign.v1.Node/Renew";
    let kind = b"application/grpc";
    let lengths = [path.len(), kind.len()].map(|length| u8::try_from(length).unwrap());
    let head = [&[0x83, 0x87, 0x04, lengths[0]], &path[..], &[0x0f, 0x10, lengths[1]], &kind[..]];
    oldest.write_all(&[beginning(), frame(1, 4, 1, &head.concat())].concat()).await.unwrap();
    let kinds = soon(frames_until(&mut oldest, Some(1))).await;
    assert_eq!(kinds.last(), Some(&1), "the stream was taken: {kinds:?}");
    let mut others = Vec::new();
    for _ in 1..PLACES {
        others.push(raw_from(&realm, &running, ATTACKER).await);
    }
    realm.clock.advance(Duration::from_millis(500));
    others.push(raw_from(&realm, &running, ATTACKER).await);
    // Without a GOAWAY, after which the stream might go on.
    let kinds = soon(frames_until(&mut oldest, None)).await;
    assert!(!kinds.contains(&7), "{kinds:?}");
    running.stop().await;
}
