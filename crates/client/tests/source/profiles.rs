//! What a door of the library agrees to, asked by OpenSSL.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use countersign::{Door, Inbound};
use tokio::net::TcpListener;

use crate::agent::Offer;
use crate::enforcement::{orders, web};
use crate::world::{World, connect};

/// A profile of a manifest, as the record of a service that names it holds it.
const PRESS: &str = r#"{"name":"press","spec":{"versions":["1.3","1.2"],"groups":["X25519MLKEM768","P-384"],"suites":["TLS_AES_256_GCM_SHA384"],"clientCertificate":"required","weak":true,"reason":"a press that nobody can update"}}"#;

/// What OpenSSL says of a handshake that offers this.
async fn asked(door: SocketAddr, offer: &'static [&'static str]) -> String {
    let ask = move || {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-brief", "-connect", &door.to_string()]).args(offer);
        openssl.stdin(Stdio::null()).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(ask).await.unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Whether the door agrees to X25519, to P-384, and to P-384 with AES-128 alone, all of TLS 1.3.
async fn agrees(door: SocketAddr) -> [bool; 3] {
    let mut agreed = [false; 3];
    let offers: [(&[&str], &str); 3] = [
        (&["-tls1_3", "-groups", "X25519"], "Server Temp Key: X25519"),
        (&["-tls1_3", "-groups", "P-384"], "Server Temp Key: ECDH, secp384r1"),
        (
            &["-tls1_3", "-groups", "P-384", "-ciphersuites", "TLS_AES_128_GCM_SHA256"],
            "Ciphersuite: TLS_AES_128_GCM_SHA256",
        ),
    ];
    for (agreed, (offer, sign)) in agreed.iter_mut().zip(offers) {
        let said = asked(door, offer).await;
        *agreed = said.contains(sign);
        assert!(*agreed || said.contains("alert"), "neither agreed nor refused: {said}");
    }
    agreed
}

#[tokio::test]
async fn a_door_agrees_to_what_the_profile_of_its_service_says_and_follows_its_changes() {
    let mut world = World::new(Offer::Enforcement);
    let (web, neighbour, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut door = Door::new(&orders, listener, Inbound::service("orders".parse().unwrap()));
    let address = door.local_address().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            drop(door.accept().await);
        }
    });
    for (number, profile, agreed) in [
        (6, r#""modern""#, [true, false, false]),
        (7, r#""compatible""#, [true, true, true]),
        (8, PRESS, [false, true, false]),
        (9, r#""pq-only""#, [false, false, false]),
    ] {
        let mut slice = world.slice(number, "orders");
        let record = format!(
            r#"{{"workload":"orders","listen":"127.0.0.1:4","forward":"unix","tlsProfile":{profile}}}"#
        );
        slice.services[0].value = record.into();
        world.agent.enforce(slice);
        assert_eq!(world.agent.acknowledged().await, (number, 0));
        assert_eq!(agrees(address).await, agreed, "{profile}");
        let said = asked(address, &["-tls1_2"]).await;
        // Whoever shows no certificate is told so only by those who would speak 1.2 with it.
        assert_eq!(said.contains("alert protocol version"), profile != PRESS, "{profile}: {said}");
        let (client, server) = connect(&web, &orders).await;
        assert!(client.is_ok() && server.is_ok(), "our own come in by every one of them");
    }
    serving.abort();
    drop(neighbour);
}
