//! What is counted, in one table, with labels from closed lists and manifests only.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use countersign::{Parts, Served, ServedAt};
use countersign_identity::Told;
use countersign_tls::{Direction, HandshakeFact, Trust};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

/// Name as it is exposed, kind, labels and meaning of every metric.
pub const METRICS: [Row; 18] = [
    (
        "countersign_proxy_handshakes_total",
        "counter",
        &["service", "direction", "outcome"],
        "Handshakes, by service, direction and outcome",
    ),
    (
        "countersign_proxy_requests_total",
        "counter",
        &["service", "direction", "outcome"],
        "Requests answered, by service, direction and class of status",
    ),
    (
        "countersign_proxy_connections",
        "gauge",
        &["service", "direction"],
        "Connections open now, by service and direction",
    ),
    (
        "countersign_proxy_tunnels_total",
        "counter",
        &["service", "direction"],
        "Byte streams joined, upgraded ones included, by service and direction",
    ),
    (
        "countersign_proxy_refused_connections_total",
        "counter",
        &["service", "reason"],
        "Connections closed before any handshake, by service and reason",
    ),
    (
        "countersign_proxy_listeners_missing",
        "gauge",
        &[],
        "Doors and ways out that there are to be and that could not be opened; a door may be open at the address before",
    ),
    (
        "countersign_proxy_connections_revoked_total",
        "counter",
        &[],
        "Connections that a revocation ended, or began to drain, the peer's credential or our own being covered",
    ),
    (
        "countersign_proxy_connections_draining",
        "gauge",
        &[],
        "Connections that a graceful revocation ends, and which are not closed yet",
    ),
    (
        "countersign_proxy_chain_signatures_total",
        "counter",
        &["outcome"],
        "Signatures of peers' certificates that handshakes asked for, by outcome: verified, or recalled from an earlier handshake",
    ),
    (
        "countersign_proxy_facts_dropped_total",
        "counter",
        &[],
        "Facts that were counted and not reported",
    ),
    (
        "countersign_proxy_request_seconds",
        "histogram",
        &["service", "direction"],
        "From a request's head to the head of its answer, by service and direction",
    ),
    (
        "countersign_proxy_handshake_seconds",
        "histogram",
        &["service", "direction"],
        "How long handshakes took that let somebody in, by service and direction",
    ),
    (
        "countersign_proxy_last_good_seconds",
        "gauge",
        &["part"],
        "When leaf, issuer, bundle, policy or doors were last had or confirmed, in seconds since 1970",
    ),
    (
        "countersign_proxy_last_failure_seconds",
        "gauge",
        &["part"],
        "When they were last wanted and not had, in seconds since 1970; absent when never",
    ),
    (
        "countersign_proxy_ends_seconds",
        "gauge",
        &["part"],
        "When the own leaf, its issuer, the first authority of the bundle or the first policy ends, in seconds since 1970",
    ),
    (
        "countersign_proxy_revision_number",
        "gauge",
        &[],
        "The revision that is enforced, within its incarnation; 0 by local rules",
    ),
    (
        "countersign_proxy_subscribed",
        "gauge",
        &[],
        "1 while the agent says who may connect; 0 by local rules, and while it is away",
    ),
    ("countersign_proxy_spans_dropped_total", "counter", &[], "Spans that no collector took"),
];

/// Name, kind, labels, meaning.
pub type Row = (&'static str, &'static str, &'static [&'static str], &'static str);

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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Part {
    part: &'static str,
}

/// The counters of one proxy.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Default)]
struct Inner {
    handshakes: Family<Outcome, Counter>,
    requests: Family<Outcome, Counter>,
    connections: Family<Place, Gauge>,
    tunnels: Family<Place, Counter>,
    refused: Family<Reason, Counter>,
    facts_dropped: Counter,
    missing: Gauge,
    request_seconds: Seconds,
    handshake_seconds: Seconds,
    /// What the server is told of answers.
    answered: Served,
}

/// How long things take, by place.
#[derive(Clone)]
struct Seconds(Family<Place, Histogram>);

impl Default for Seconds {
    fn default() -> Self {
        // From half a millisecond to ten seconds.
        const BOUNDS: [f64; 14] =
            [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        Self(Family::new_with_constructor(|| Histogram::new(BOUNDS)))
    }
}

/// What is exposed, in the order of the table.
struct Page {
    registry: Registry,
    rows: std::array::IntoIter<Row, 18>,
}

impl Page {
    fn add(&mut self, metric: impl Metric) {
        let (name, _kind, _labels, help) = self.rows.next().expect("the table has them all");
        // The form of the text adds it to counters by itself.
        let name = name.strip_suffix("_total").unwrap_or(name);
        self.registry.register(name, help, metric);
    }
}

/// The counters of one door or local listener, looked up once.
#[derive(Clone)]
pub(crate) struct Meter {
    requests: [Counter; 6],
    seconds: Histogram,
    connections: Gauge,
    tunnels: Counter,
    answered: Option<ServedAt>,
}

/// Counts a connection as open until dropped.
pub(crate) struct Open(Gauge);

const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl Metrics {
    /// Counters that tell of answers here, too.
    pub(crate) fn telling(answered: Served) -> Self {
        Self(Arc::new(Inner { answered, ..Inner::default() }))
    }

    pub(crate) fn handshake(&self, fact: &HandshakeFact) {
        let service = fact.service.as_ref().map_or_else(String::new, ToString::to_string);
        let outcome = fact.code.map_or("admitted", countersign_identity::Code::as_str);
        if fact.code.is_none() {
            let place = Place { service: service.clone(), direction: word(fact.direction) };
            let seconds = fact.took.as_secs_f64();
            self.0.handshake_seconds.0.get_or_create(&place).observe(seconds);
        }
        let labels = Outcome { service, direction: word(fact.direction), outcome };
        self.0.handshakes.get_or_create(&labels).inc();
    }

    pub(crate) fn fact_dropped(&self) {
        self.0.facts_dropped.inc();
    }

    /// How many listeners could not be opened.
    pub(crate) fn missing(&self, count: usize) {
        self.0.missing.set(i64::try_from(count).unwrap_or(i64::MAX));
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
        let answered = match direction {
            Direction::Inbound => service.parse().ok().map(|name| self.0.answered.at(&name)),
            Direction::Outbound => None,
        };
        Meter {
            answered,
            requests: CLASSES.map(request),
            seconds: self.0.request_seconds.0.get_or_create(&place).clone(),
            connections: self.0.connections.get_or_create(&place).clone(),
            tunnels: self.0.tunnels.get_or_create(&place).clone(),
        }
    }

    /// The exposition text.
    pub(crate) fn text(&self, trust: &Trust, parts: &Parts, spans_dropped: u64) -> String {
        let mut page = Page { registry: Registry::default(), rows: METRICS.into_iter() };
        let inner = &*self.0;
        let vitals = parts.vitals();
        let part = |told| {
            let family = Family::<Part, Gauge>::default();
            for (vital, at) in vitals.told(told) {
                family.get_or_create(&Part { part: vital.as_str() }).set(at);
            }
            family
        };
        let dropped = Counter::<u64>::default();
        dropped.inc_by(spans_dropped);
        // Counted where they happen, whoever holds the connection.
        let ended = Counter::<u64>::default();
        ended.inc_by(trust.revoked());
        let (asked, counts) = (Family::<How, Counter>::default(), trust.signatures());
        for (outcome, count) in [("verified", counts.verified), ("recalled", counts.recalled)] {
            asked.get_or_create(&How { outcome }).inc_by(count);
        }
        let draining = i64::try_from(*trust.draining().borrow()).unwrap_or(i64::MAX);
        let revision = i64::try_from(trust.slice().revision.number).unwrap_or(i64::MAX);
        let subscribed = i64::from(parts.is_subscribed());
        page.add(inner.handshakes.clone());
        page.add(inner.requests.clone());
        page.add(inner.connections.clone());
        page.add(inner.tunnels.clone());
        page.add(inner.refused.clone());
        page.add(inner.missing.clone());
        page.add(ended);
        page.add(gauge(draining));
        page.add(asked);
        page.add(inner.facts_dropped.clone());
        page.add(inner.request_seconds.0.clone());
        page.add(inner.handshake_seconds.0.clone());
        page.add(part(Told::Good));
        page.add(part(Told::Failed));
        page.add(part(Told::Ends));
        page.add(gauge(revision));
        page.add(gauge(subscribed));
        page.add(dropped);
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &page.registry).is_err() {
            // Writing to a string does not fail; if it did, half a text must not be taken for a whole one.
            text.clear();
            let _ = writeln!(text, "# EOF");
        }
        text
    }
}

fn gauge(value: i64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

impl Meter {
    pub(crate) fn request(&self, status: http::StatusCode, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
        if let Some(answered) = &self.answered {
            answered.count(status.as_u16(), took);
        }
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
        meter.request(http::StatusCode::OK, Duration::from_millis(3));
        let _open = meter.open();
        meter.tunnel();
        metrics.refused("orders", "too-many-connections");
        metrics.fact_dropped();
        let labels =
            Outcome { service: "orders".into(), direction: "inbound", outcome: "admitted" };
        metrics.0.handshakes.get_or_create(&labels).inc();
        let trust = Trust::new(Arc::new(SystemClock::new()), Slice::nothing());
        let place = Place { service: "orders".into(), direction: "inbound" };
        metrics.0.handshake_seconds.0.get_or_create(&place).observe(0.01);
        let text = metrics.text(&trust, &Parts::new(trust.clone()), 0);
        // Nobody has anything here that could be good, fail or end.
        let whole = METRICS.iter().filter(|(.., labels, _)| *labels != ["part"]);
        for (name, kind, ..) in whole {
            let family = name.strip_suffix("_total").unwrap_or(name);
            assert_eq!(text.matches(&format!("# TYPE {family} {kind}\n")).count(), 1, "{name}");
        }
        assert!(text.contains(
            "countersign_proxy_request_seconds_bucket{le=\"0.005\",service=\"orders\",direction=\"inbound\"} 1"
        ), "{text}");
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
