//! What is counted, in one table, with labels from closed lists and manifests only.

use std::fmt::Write;
use std::sync::Arc;

use countersign_tls::{Direction, HandshakeFact, Trust};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The table: name, meaning. Counters get `_total` from the exposition format.
pub const METRICS: [(&str, &str); 9] = [
    ("countersign_proxy_handshakes", "Handshakes, by service, direction and outcome"),
    ("countersign_proxy_requests", "Requests answered, by service, direction and class of status"),
    ("countersign_proxy_connections", "Connections open now, by service and direction"),
    (
        "countersign_proxy_tunnels",
        "Byte streams joined, upgraded ones included, by service and direction",
    ),
    (
        "countersign_proxy_refused_connections",
        "Connections closed before any handshake, by service and reason",
    ),
    (
        "countersign_proxy_connections_revoked",
        "Connections that a revocation ended, or began to drain, the peer's credential or our own being covered",
    ),
    (
        "countersign_proxy_connections_draining",
        "Connections that a graceful revocation ends, and which are not closed yet",
    ),
    (
        "countersign_proxy_chain_signatures",
        "Signatures of peers' certificates that handshakes asked for, by outcome: verified, or recalled from an earlier handshake",
    ),
    ("countersign_proxy_facts_dropped", "Facts that were counted and not reported"),
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    service: String,
    direction: &'static str,
    outcome: &'static str,
}

/// Which connections: a service of the manifests, and who dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Place {
    service: String,
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    service: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct How {
    outcome: &'static str,
}

/// The counters of one proxy.
#[derive(Clone, Default)]
pub(crate) struct Metrics(Arc<Inner>);

#[derive(Default)]
struct Inner {
    handshakes: Family<Outcome, Counter>,
    requests: Family<Outcome, Counter>,
    connections: Family<Place, Gauge>,
    tunnels: Family<Place, Counter>,
    refused: Family<Reason, Counter>,
    facts_dropped: Counter,
}

/// The counters of one door or local listener, looked up once.
#[derive(Clone)]
pub(crate) struct Meter {
    requests: [Counter; 6],
    connections: Gauge,
    tunnels: Counter,
}

/// Counts a connection as open until dropped.
pub(crate) struct Open(Gauge);

const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl Metrics {
    pub(crate) fn handshake(&self, fact: &HandshakeFact) {
        let service = fact.service.as_ref().map_or_else(String::new, ToString::to_string);
        let outcome = fact.code.map_or("admitted", countersign_identity::Code::as_str);
        let labels = Outcome { service, direction: word(fact.direction), outcome };
        self.0.handshakes.get_or_create(&labels).inc();
    }

    pub(crate) fn fact_dropped(&self) {
        self.0.facts_dropped.inc();
    }

    pub(crate) fn refused(&self, service: &str, reason: &'static str) {
        self.0.refused.get_or_create(&Reason { service: service.to_owned(), reason }).inc();
    }

    pub(crate) fn meter(&self, service: &str, direction: Direction) -> Meter {
        let place = Place { service: service.to_owned(), direction: word(direction) };
        let request = |outcome| {
            let labels =
                Outcome { service: service.to_owned(), direction: word(direction), outcome };
            self.0.requests.get_or_create(&labels).clone()
        };
        Meter {
            requests: CLASSES.map(request),
            connections: self.0.connections.get_or_create(&place).clone(),
            tunnels: self.0.tunnels.get_or_create(&place).clone(),
        }
    }

    /// The exposition text.
    pub(crate) fn text(&self, trust: &Trust) -> String {
        let mut registry = Registry::default();
        let inner = &*self.0;
        let [
            handshakes,
            requests,
            connections,
            tunnels,
            refused,
            revoked,
            draining,
            signatures,
            dropped,
        ] = METRICS;
        // Counted where they happen, whoever holds the connection.
        let (ended, retiring) = (Counter::<u64>::default(), Gauge::<i64>::default());
        ended.inc_by(trust.revoked());
        retiring.set(i64::try_from(*trust.draining().borrow()).unwrap_or(i64::MAX));
        let (asked, counts) = (Family::<How, Counter>::default(), trust.signatures());
        for (outcome, count) in [("verified", counts.verified), ("recalled", counts.recalled)] {
            asked.get_or_create(&How { outcome }).inc_by(count);
        }
        registry.register(handshakes.0, handshakes.1, inner.handshakes.clone());
        registry.register(requests.0, requests.1, inner.requests.clone());
        registry.register(connections.0, connections.1, inner.connections.clone());
        registry.register(tunnels.0, tunnels.1, inner.tunnels.clone());
        registry.register(refused.0, refused.1, inner.refused.clone());
        registry.register(revoked.0, revoked.1, ended);
        registry.register(draining.0, draining.1, retiring);
        registry.register(signatures.0, signatures.1, asked);
        registry.register(dropped.0, dropped.1, inner.facts_dropped.clone());
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
            // Writing to a string does not fail; if it did, half a text must not be taken for a whole one.
            text.clear();
            let _ = writeln!(text, "# EOF");
        }
        text
    }
}

impl Meter {
    pub(crate) fn request(&self, status: http::StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        self.requests.get(class).unwrap_or(&self.requests[0]).inc();
    }

    pub(crate) fn tunnel(&self) {
        self.tunnels.inc();
    }

    pub(crate) fn open(&self) -> Open {
        self.connections.inc();
        Open(self.connections.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

const fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    }
}

#[cfg(test)]
mod tests {
    use countersign_identity::SystemClock;
    use countersign_tls::Slice;

    use super::*;

    #[test]
    fn every_metric_of_the_table_is_exposed_once() {
        let metrics = Metrics::default();
        let meter = metrics.meter("orders", Direction::Inbound);
        meter.request(http::StatusCode::OK);
        let _open = meter.open();
        meter.tunnel();
        metrics.refused("orders", "too-many-connections");
        metrics.fact_dropped();
        let labels =
            Outcome { service: "orders".into(), direction: "inbound", outcome: "admitted" };
        metrics.0.handshakes.get_or_create(&labels).inc();
        let trust = Trust::new(Arc::new(SystemClock::new()), Slice::nothing());
        let text = metrics.text(&trust);
        for (name, _) in METRICS {
            assert_eq!(text.matches(&format!("# HELP {name} ")).count(), 1, "{name}");
        }
        assert!(text.contains(
            "countersign_proxy_requests_total{service=\"orders\",direction=\"inbound\",outcome=\"2xx\"} 1"
        ));
        assert!(
            text.contains(
                "countersign_proxy_connections{service=\"orders\",direction=\"inbound\"} 1"
            )
        );
    }
}
