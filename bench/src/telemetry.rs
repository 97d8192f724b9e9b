//! What it costs a proxy to tell of its handshakes: counted, passed on, gathered and made ready for the agent.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use countersign_api::v1;
use countersign_identity::{Clock as _, Name, SpiffeId, SystemClock};
use countersign_proxy::{Facts, Metrics};
use countersign_tls::{Direction, HandshakeFact};
use tokio::sync::mpsc;

use crate::figure::{Asked, Figure, Output, Verdict, rate};

/// Handshakes a second, far more than a core can make.
const FACTS: f64 = 20_000.0;
/// Facts that wait for the agent, as in the library.
const WAITING: usize = 1024;
/// Facts that travel together.
const TOGETHER: usize = 512;

/// A fact as it travels to the agent.
fn wire(fact: HandshakeFact) -> v1::HandshakeFact {
    let text = |id: Option<SpiffeId>| id.map(|id| id.to_string()).unwrap_or_default();
    v1::HandshakeFact {
        at_micros: fact.at.micros(),
        point: "orders-proxy".to_owned(),
        direction: v1::Direction::Inbound.into(),
        service: fact.service.map(|name| name.to_string()).unwrap_or_default(),
        local_id: text(fact.local),
        peer_id: text(fact.peer),
        peer_address: fact.peer_address.map(|at| at.to_string()).unwrap_or_default(),
        peer_serial: fact.peer_serial.into(),
        version: fact.version.to_owned(),
        group: fact.group.to_owned(),
        suite: fact.suite.to_owned(),
        resumed: fact.resumed,
        micros: u64::try_from(fact.took.as_micros()).unwrap_or(u64::MAX),
        code: String::new(),
        detail: fact.detail,
        count: 1,
    }
}

/// The share of a core that so many facts a second take.
pub(crate) fn run(output: Output) -> Result<Verdict> {
    let clock = SystemClock::new();
    let (queue, mut waiting) = mpsc::channel(WAITING);
    let sink = Arc::new(move |fact| {
        // The queue is emptied often enough below, so that every fact is paid for to its end.
        let _full = queue.try_send(fact);
    });
    let facts = Facts::new(sink, Metrics::default());
    let service: Name = "orders".parse()?;
    let fact = HandshakeFact {
        at: clock.now(),
        direction: Direction::Inbound,
        service: Some(service),
        local: Some("spiffe://shop.example/orders".parse()?),
        peer: Some("spiffe://shop.example/web".parse()?),
        peer_address: Some("127.0.0.1:40000".parse()?),
        peer_serial: vec![7; 16],
        version: "TLSv1.3",
        group: "X25519MLKEM768",
        suite: "TLS13_AES_256_GCM_SHA384",
        resumed: false,
        took: Duration::from_micros(900),
        code: None,
        detail: String::new(),
    };
    let gathers = rate(Duration::from_secs(1), || {
        for _ in 0..TOGETHER {
            facts.report(HandshakeFact { at: clock.now(), ..fact.clone() });
        }
        let mut ready = Vec::with_capacity(TOGETHER);
        while let Ok(fact) = waiting.try_recv() {
            ready.push(wire(fact));
        }
        std::hint::black_box(ready);
    });
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let per_second = gathers * TOGETHER as f64;
    let figure = Figure {
        name: "telemetry",
        value: FACTS / per_second * 100.0,
        unit: "% of a core",
        limit: 3.0,
        limit_is: "what 20,000 handshake facts a second may cost a proxy",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}
