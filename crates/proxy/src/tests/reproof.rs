//! What cannot be drained outlives the certificates of both ends, and ends when they are revoked.

use std::time::Duration;

use countersign_identity::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::http::upgraded;
use super::world::{PATIENCE, Shop, directory, eventually, inbound, patient_clock};
use crate::config::Protocol;
use crate::dial::Target;

const LIFETIME_SECS: u64 = 12;
const RENEWED_EVERY_SECS: u64 = 2;

/// Renews both ends long before they end, for two lives of the first certificates.
async fn live(shop: &Shop) {
    for _ in 0..2 * LIFETIME_SECS / RENEWED_EVERY_SECS {
        shop.pass(Duration::from_secs(RENEWED_EVERY_SECS)).await;
        shop.web.renew(LIFETIME_SECS).await;
        shop.orders.renew(LIFETIME_SECS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgraded_connections_and_byte_streams_outlive_certificates_and_not_a_revocation() {
    let clock = patient_clock();
    let http = Shop::open_on(clock.clone(), Protocol::Http).await;
    let mut raw = Shop::open_on(clock, Protocol::Tcp).await;
    let directory = directory();
    let path = directory.path().join("raw.sock");
    let listener = UnixListener::bind(&path).unwrap();
    raw.orders.listen(&[inbound(&Target::Unix(path), Protocol::Tcp)], &[]);
    for shop in [&http, &raw] {
        shop.web.renew(LIFETIME_SECS).await;
        shop.orders.renew(LIFETIME_SECS).await;
    }
    let mut tunnel = upgraded(&mut http.caller().await).await;
    let mut client = UnixStream::connect(&raw.local).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    server.read_exact(&mut [0; 1]).await.unwrap();
    tokio::join!(live(&http), live(&raw));
    tunnel.write_all(b"y").await.unwrap();
    tunnel.read_exact(&mut [0; 1]).await.unwrap();
    client.write_all(b"y").await.unwrap();
    server.read_exact(&mut [0; 1]).await.unwrap();
    for shop in [&http, &raw] {
        // By the certificate that was shown last, or by the one before it.
        let id = shop.realm.id("web");
        let before = countersign_identity::Revision { incarnation: 1, number: 8 };
        let rule = countersign_identity::Revoked::Identity { id, before };
        assert!(0 < shop.orders.revoke(Reason::KeyCompromise, &rule).cut);
    }
    let reading = async { while let Ok(1..) = tunnel.read(&mut [0; 8]).await {} };
    tokio::time::timeout(PATIENCE, reading).await.expect("the tunnel ends");
    let reading = async { while let Ok(1..) = server.read(&mut [0; 8]).await {} };
    tokio::time::timeout(PATIENCE, reading).await.expect("the byte stream ends");
    eventually(|| (http.orders.connections() + raw.orders.connections() == 0).then_some(())).await;
}
