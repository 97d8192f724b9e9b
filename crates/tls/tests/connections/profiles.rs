//! TLS profiles that come to ask for more while handshakes are under way, and when they are done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Code, TlsGroup, TlsProfile, TlsSuite, TlsTerms, TlsVersion};
use countersign_tls::{
    Accepted, Applied, DRAIN_TIMEOUT, Established, HandshakeFailure, Inbound, Outbound, ServiceTls,
    Slice, Trust, accept, code_of_io, dial,
};
use rustls::ServerConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::ends::{Shaken, Shop, door, end_of, exchange, name, shake, tcp_pair};
use crate::lifetime::run;

const ONLY_HYBRID: TlsTerms = TlsTerms::of(TlsProfile::PqOnly);

/// TLS 1.3 by this key exchange.
fn by(groups: &[TlsGroup]) -> TlsTerms {
    TlsTerms::new(&[TlsVersion::V13], groups, TlsSuite::ALL).unwrap()
}

fn version(version: TlsVersion) -> TlsTerms {
    TlsTerms::new(&[version], &[TlsGroup::X25519], TlsSuite::ALL).unwrap()
}

/// Has the service `orders` a profile of these terms from now on.
fn profile(trust: &Trust, terms: TlsTerms) -> Applied {
    let tls = ServiceTls { terms, accepted: Accepted::default() };
    let profiles = Arc::new(HashMap::from([(name("orders"), tls)]));
    trust.apply(Slice { profiles, ..Slice::clone(&trust.slice()) })
}

/// Whose answer to the other end is held back on its way.
#[derive(Clone, Copy, Debug)]
enum Held {
    Caller,
    Door,
}

/// A handshake in whose midst something else is done.
async fn shake_while(
    shop: &Shop,
    (outbound, inbound): (&Outbound, &Inbound),
    held: Held,
    meanwhile: impl FnOnce(),
) -> Shaken {
    let (door, way) = (listener().await, listener().await);
    let (to_door, to_way) = (door.local_addr().unwrap(), way.local_addr().unwrap());
    let greeting = async {
        let mut done = accept(&shop.orders, door.accept().await.unwrap().0, inbound).await;
        if let Ok(established) = &mut done {
            established.stream.write_all(b"hello").await.unwrap();
            established.stream.flush().await.unwrap();
        }
        done
    };
    let calling = async {
        let mut done = dial(&shop.web, to_way, outbound).await.map(Some);
        let mut told = None;
        if let Ok(slot) = &mut done {
            let stream = &mut slot.as_mut().unwrap().stream;
            told = stream.read_exact(&mut [0; 5]).await.err().map(|error| code_of_io(&error));
            slot.take_if(|_| told.is_some());
        }
        (done, told)
    };
    let between = async {
        let mut caller = way.accept().await.unwrap().0;
        let mut door = TcpStream::connect(to_door).await.unwrap();
        let mut meanwhile = Some(meanwhile);
        door.write_all(&record(&mut caller).await).await.unwrap();
        if let Held::Door = held {
            let answer = record(&mut door).await;
            meanwhile.take().unwrap()();
            caller.write_all(&answer).await.unwrap();
        }
        let ((mut from_caller, mut to_caller), (mut from_door, mut to_door)) =
            (caller.split(), door.split());
        // Whichever of the two closes: so does the way.
        let back = async {
            tokio::io::copy(&mut from_door, &mut to_caller).await.ok();
            to_caller.shutdown().await.ok();
        };
        let forth = async {
            if let Some(act) = meanwhile.take() {
                let answer = record(&mut from_caller).await;
                act();
                to_door.write_all(&answer).await.unwrap();
            }
            tokio::io::copy(&mut from_caller, &mut to_door).await.ok();
            to_door.shutdown().await.ok();
        };
        tokio::join!(back, forth);
    };
    // What is between ends when both ends have gone, which is after this is over where they have not.
    let shaking = async { tokio::join!(greeting, calling) };
    let mut shaking = std::pin::pin!(shaking);
    let (server, (client, told)) = tokio::select! {
        done = &mut shaking => done,
        () = between => shaking.await,
    };
    Shaken { client, server, told }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// One record of TLS.
async fn record(from: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut record = vec![0; 5];
    from.read_exact(&mut record).await.unwrap();
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + length, 0);
    from.read_exact(&mut record[5..]).await.unwrap();
    record
}

#[track_caller]
fn refused<T>(done: Result<T, HandshakeFailure>) {
    let Err(failure) = done else { panic!("it was let in") };
    assert_eq!(failure.code, Code::NoSharedProtocol, "{failure}");
    assert_eq!(failure.fact.code, Some(Code::NoSharedProtocol));
}

#[tokio::test]
async fn a_handshake_under_way_is_refused_by_what_the_profile_asks_for_at_its_end() {
    let suite = |suite| TlsTerms::new(&[TlsVersion::V13], TlsGroup::ALL, &[suite]).unwrap();
    for (offered, before, after, told) in [
        // What is offered is never agreed on any more: there is an alert that says so.
        (by(&[TlsGroup::X25519]), by(&[TlsGroup::X25519]), ONLY_HYBRID, Code::NoSharedProtocol),
        (
            suite(TlsSuite::Aes128),
            suite(TlsSuite::Aes128),
            suite(TlsSuite::Aes256),
            Code::NoSharedProtocol,
        ),
        // On what was agreed is known only when the handshake is done, which is too late for an alert.
        (by(&[TlsGroup::X25519]), TlsTerms::MODERN, ONLY_HYBRID, Code::PeerClosed),
        (suite(TlsSuite::Aes128), TlsTerms::MODERN, suite(TlsSuite::Aes256), Code::PeerClosed),
    ] {
        let shop = Shop::open();
        profile(&shop.orders, before);
        let outbound = Outbound { terms: offered, ..shop.to_orders() };
        let tighten = || assert_eq!(profile(&shop.orders, after).draining, 0);
        let shaken = shake_while(&shop, (&outbound, &door()), Held::Caller, tighten).await;
        refused(shaken.server);
        assert_eq!(shaken.told, Some(told), "{offered:?}");
        assert_eq!(shop.orders.connections(), 0);
    }
    // By 1.2, whoever dials is done last.
    let shop = Shop::open();
    let old = version(TlsVersion::V12);
    profile(&shop.orders, TlsTerms::ANY);
    let outbound = Outbound { terms: old, ..shop.to_orders() };
    let tighten = || assert_eq!(profile(&shop.orders, version(TlsVersion::V13)).draining, 0);
    let shaken = shake_while(&shop, (&outbound, &door()), Held::Caller, tighten).await;
    refused(shaken.server);
    refused(shaken.client);
}

#[tokio::test]
async fn whoever_dials_is_held_to_what_the_profile_asks_for_at_the_end_as_well() {
    let shop = Shop::open();
    let outbound = Outbound { terms: by(&[TlsGroup::X25519]), ..shop.to_orders() };
    let tighten = || assert_eq!(profile(&shop.web, ONLY_HYBRID).draining, 0);
    let shaken = shake_while(&shop, (&outbound, &door()), Held::Door, tighten).await;
    refused(shaken.client);
    assert_eq!(shop.web.connections(), 0);
}

#[tokio::test]
async fn a_handshake_under_way_is_let_in_when_what_it_agrees_on_is_still_asked_for() {
    let shop = Shop::open();
    let tighten = || assert_eq!(profile(&shop.orders, ONLY_HYBRID).draining, 0);
    let outbound = shop.to_orders();
    let shaken = shake_while(&shop, (&outbound, &door()), Held::Caller, tighten).await;
    let (_web, orders) = shaken.both();
    assert_eq!(orders.fact.group, "X25519MLKEM768");
}

#[tokio::test]
async fn connections_that_agreed_on_less_than_a_profile_has_come_to_ask_for_drain_and_no_other() {
    let shop = Shop::open();
    let (running, stop) = run(&shop.orders);
    let less = Outbound { terms: by(&[TlsGroup::X25519]), ..shop.to_orders() };
    let (mut web, mut weak) = shake(&shop.web, &less, &shop.orders, &door()).await.both();
    let (mut other, mut strong) = shop.shake().await.both();
    let draining = |applied: Applied| (applied.cut, applied.draining);
    assert_eq!(draining(profile(&shop.orders, TlsTerms::MODERN)), (0, 0), "both fit");
    assert_eq!(draining(profile(&shop.orders, ONLY_HYBRID)), (0, 1));
    let why = |end: &Established| end.stream.admitted().why_retiring();
    assert_eq!((why(&weak), why(&strong)), (Some(Code::NoSharedProtocol), None));
    exchange(&mut web, &mut weak).await;
    shop.clock.advance(DRAIN_TIMEOUT + Duration::from_micros(1));
    assert_eq!(weak.stream.admitted().ended().await, Code::NoSharedProtocol);
    assert_eq!(end_of(&mut weak).await, Code::NoSharedProtocol);
    assert_eq!(end_of(&mut web).await, Code::PeerClosed);
    exchange(&mut other, &mut strong).await;
    stop.cancel();
    running.await.unwrap();
}

/// What the two ends of a handshake say by a configuration that is shared.
async fn by_shared(
    shop: &Shop,
    config: &Arc<ServerConfig>,
    offered: TlsTerms,
) -> (Result<(), Code>, Result<(), Code>) {
    let (near, far) = tcp_pair().await;
    let outbound = Outbound { terms: offered, ..shop.to_orders() };
    let connector = TlsConnector::from(shop.web.client_config(&outbound));
    let calling = async {
        let name = ServerName::try_from("anything.example").unwrap();
        let mut tls = connector.connect(name, near).await.map_err(|error| code_of_io(&error))?;
        tls.read_exact(&mut [0; 5]).await.map_err(|error| code_of_io(&error)).map(drop)
    };
    let greeting = async {
        let acceptor = TlsAcceptor::from(Arc::clone(config));
        let mut tls = acceptor.accept(far).await.map_err(|error| code_of_io(&error))?;
        tls.write_all(b"hello").await.unwrap();
        tls.flush().await.unwrap();
        Ok(())
    };
    tokio::join!(calling, greeting)
}

#[tokio::test]
async fn a_shared_configuration_lets_nobody_in_by_less_than_the_profile_asks_for_by_now() {
    let shop = Shop::open();
    let made = shop.orders.server_config(&door());
    let both = (Ok(()), Ok(()));
    assert_eq!(by_shared(&shop, &made, TlsTerms::MODERN).await, both);
    profile(&shop.orders, ONLY_HYBRID);
    for less in [by(&[TlsGroup::X25519]), TlsTerms::MODERN] {
        let (caller, told) = by_shared(&shop, &made, less).await;
        assert!(caller.is_err() && told.is_err(), "it might agree on less");
    }
    assert_eq!(by_shared(&shop, &made, ONLY_HYBRID).await, both, "who offers no less comes in");
    let anew = shop.orders.server_config(&door());
    assert_eq!(by_shared(&shop, &anew, TlsTerms::MODERN).await, both);

    profile(&shop.orders, TlsTerms::ANY);
    let made = shop.orders.server_config(&door());
    let old = version(TlsVersion::V12);
    assert_eq!(by_shared(&shop, &made, old).await, both);
    profile(&shop.orders, TlsTerms::of(TlsProfile::Compatible));
    let (caller, told) = by_shared(&shop, &made, old).await;
    assert!(caller.is_err() && told.is_err(), "1.2 is not spoken any more");
    assert_eq!(by_shared(&shop, &made, TlsTerms::MODERN).await, both);
}
