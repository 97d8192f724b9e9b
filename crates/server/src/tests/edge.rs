//! Callers that want to do harm before they have said who they are.

use std::time::Duration;

use countersign_pki::{KeyKind, PrivateKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Agent, Realm, attest, soon, stranger};

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

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once_end_their_connection_only() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let contact = countersign_tls::FirstContact {
        pin: realm.trust,
        domain: None,
        alpn: vec![b"h2".to_vec()],
        timeout: Duration::from_secs(10),
    };
    let tcp = TcpStream::connect(running.address()).await.unwrap();
    let pinned = countersign_tls::connect_pinned(&realm.time(), tcp, &contact).await.unwrap();
    let mut tls = pinned.stream;
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
