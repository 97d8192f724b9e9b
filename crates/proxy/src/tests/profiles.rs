//! Which key exchanges a door agrees to, asked by OpenSSL.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use countersign_identity::TlsProfile;

use super::world::Shop;
use crate::config::Protocol;

/// What OpenSSL says of a handshake that offers this: the version and the key that was agreed on, or that there was none.
async fn asked(door: SocketAddr, offer: &'static [&'static str]) -> String {
    let ask = move || {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-brief", "-connect", &door.to_string()]).args(offer);
        openssl.stdin(Stdio::null()).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(ask).await.unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Whether the door agrees to X25519, P-256 and P-384, each offered alone, and to TLS 1.2.
async fn agrees(profile: TlsProfile) -> [bool; 4] {
    let shop = Shop::open_as(Protocol::Http, |manners| manners.profile = profile).await;
    assert_eq!(shop.caller().await.get("/").await.0, 200, "our own callers always come in");
    let fact = shop.orders.fact(|fact| fact.code.is_none()).await;
    assert_eq!((fact.version, fact.group), ("1.3", "X25519MLKEM768"));
    let mut agreed = [false; 4];
    let offers: [(&[&str], &str); 4] = [
        (&["-tls1_3", "-groups", "X25519"], "Server Temp Key: X25519"),
        (&["-tls1_3", "-groups", "P-256"], "Server Temp Key: ECDH, prime256v1"),
        (&["-tls1_3", "-groups", "P-384"], "Server Temp Key: ECDH, secp384r1"),
        (&["-tls1_2"], "Protocol version: TLSv1.2"),
    ];
    for (agreed, (offer, sign)) in agreed.iter_mut().zip(offers) {
        let said = asked(shop.orders.door(), offer).await;
        *agreed = said.contains(sign);
        assert!(*agreed || said.contains("alert"), "neither agreed nor refused: {said}");
    }
    agreed
}

#[tokio::test]
async fn a_door_agrees_to_the_key_exchanges_of_its_profile_and_to_no_others() {
    assert_eq!(agrees(TlsProfile::Modern).await, [true, true, false, false]);
    assert_eq!(agrees(TlsProfile::Compatible).await, [true, true, true, false]);
    assert_eq!(agrees(TlsProfile::PqOnly).await, [false, false, false, false]);
}
