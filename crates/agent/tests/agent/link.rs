//! The real link, over TLS on loopback: what is revoked is refused by both of its ends.

use std::net::SocketAddr;
use std::sync::Arc;

use countersign_agent::server_link::{LinkFault, NodeCredential, ServerLink, TlsLink};
use countersign_api::standing::ALPN;
use countersign_identity::{Clock, Code, Reason, Revocation, Revocations, Revoked};
use countersign_pki::{Bundles, Chain};
use countersign_tls::{Identity, Inbound, Slice, Trust, accept};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::server::{NODE, RULE_LASTS};
use crate::world::World;

fn rules(world: &World, chain: &Chain) -> Arc<Revocations> {
    let at = world.clock.now();
    let target = Revoked::Serial(chain.leaf().serial().unwrap());
    let reason = Reason::KeyCompromise;
    let rule = Revocation { target, about: None, reason, at, until: at + RULE_LASTS };
    Arc::new(Revocations::new([(Arc::from("r1"), Arc::new(rule))]))
}

/// A server's door, and what becomes of the one connection that comes.
async fn door(trust: Arc<Trust>) -> (SocketAddr, JoinHandle<Result<(), Code>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut inbound = Inbound::control();
        inbound.alpn = vec![ALPN.to_vec()];
        accept(&trust, tcp, &inbound).await.map(drop).map_err(|failure| failure.code)
    });
    (address, accepting)
}

/// Opens a stream to a door that closes as soon as it has let somebody in. The two sides enforce these rules.
async fn opened(
    theirs: impl FnOnce(&World, &Chain) -> Arc<Revocations>,
    ours: impl FnOnce(&World, &Chain) -> Arc<Revocations>,
) -> (LinkFault, Result<(), Code>) {
    let world = World::new().await;
    let (server, server_key) = world.server.identity("/countersign/server/1").await;
    let (node, node_key) = world.server.identity(&format!("/countersign/agent/{NODE}")).await;
    let clock = Arc::clone(&world.clock) as Arc<dyn Clock>;
    let bundles = Arc::new(Bundles::of(world.server.bundle()));
    let revocations = theirs(&world, &node);
    let slice = Slice { bundles, revocations, ..Slice::nothing() };
    let door_trust = Trust::new(Arc::clone(&clock), slice);
    door_trust.set_identity(Identity::new(server.clone(), server_key.pkcs8()).unwrap()).unwrap();
    let (address, accepting) = door(door_trust).await;

    let trust = Trust::new(Arc::clone(&clock), Slice::nothing());
    let link = TlsLink::new(clock, trust);
    let credential = NodeCredential { chain: &node, key: &node_key };
    link.present(Some(credential), &world.server.bundle()).unwrap();
    link.revoke(&ours(&world, &server));
    // What is shown is told again with each renewal, and takes no rule away.
    link.present(Some(credential), &world.server.bundle()).unwrap();
    let fault = link.open(&address.to_string(), None).await.unwrap_err();
    (fault, accepting.await.unwrap())
}

fn none(_world: &World, _chain: &Chain) -> Arc<Revocations> {
    Arc::default()
}

#[tokio::test]
async fn server_whose_certificate_is_revoked_is_refused_and_counts_as_away() {
    let (fault, accepted) = opened(none, rules).await;
    assert_eq!(fault.code, Code::Unavailable, "{fault}: it says nothing about this agent");
    assert!(fault.why.contains("revoked"), "{fault}");
    assert!(accepted.is_err(), "the server was told");
}

#[tokio::test]
async fn agent_hears_that_its_own_certificate_is_revoked() {
    let (fault, accepted) = opened(rules, none).await;
    assert_eq!(accepted, Err(Code::Revoked));
    assert_eq!(fault.code, Code::Revoked, "{fault}");
}

#[tokio::test]
async fn server_that_goes_away_says_nothing_about_certificates() {
    let (fault, accepted) = opened(none, none).await;
    assert_eq!(accepted, Ok(()));
    assert_ne!(fault.code, Code::Revoked, "{fault}");
}
