//! Prometheus metrics, from one table.

use std::fmt::Write;
use std::sync::Arc;

use countersign_identity::{Clock, Told};
use countersign_program::exposition::{self, Format};
use countersign_program::trace::Tracer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::enforcement::Points;
use crate::places::TurnedAway;
use crate::reports::{Facts, resident_bytes};
use crate::view::View;
use crate::vitals::vitals;

/// Name, kind, labels and meaning of every metric of the agent.
pub const METRICS: [(&str, &str, &[&str], &str); 18] = [
    ("countersign_agent_connected", "gauge", &[], "1 while a server is reached"),
    ("countersign_agent_revision_number", "gauge", &[], "the revision that is served"),
    ("countersign_agent_svids", "gauge", &[], "SVIDs held for workloads"),
    ("countersign_agent_svids_in_trouble", "gauge", &[], "workloads whose last renewal failed"),
    ("countersign_agent_outage_budget_seconds", "gauge", &[], "until the first SVID held expires"),
    ("countersign_agent_points", "gauge", &[], "enforcement points with an open stream"),
    ("countersign_agent_resident_bytes", "gauge", &[], "memory of this process"),
    ("countersign_agent_revocations", "gauge", &[], "revocations in force on this node"),
    (
        "countersign_agent_svids_reissued_total",
        "counter",
        &[],
        "SVIDs that took the place of revoked ones",
    ),
    (
        "countersign_agent_unaware_processes",
        "gauge",
        &[],
        "processes that hold an SVID and cannot say what they enforce",
    ),
    ("countersign_agent_refused", "gauge", &[], "1 while the servers refuse this node itself"),
    (
        "countersign_agent_last_good_seconds",
        "gauge",
        &["part"],
        "when leaf, issuer, bundle or policy was last had or confirmed, in seconds since 1970",
    ),
    (
        "countersign_agent_last_failure_seconds",
        "gauge",
        &["part"],
        "when it was last wanted and not had, in seconds since 1970; absent when never",
    ),
    (
        "countersign_agent_ends_seconds",
        "gauge",
        &["part"],
        "when the first leaf, issuer, authority of the bundle or policy ends, in seconds since 1970",
    ),
    (
        "countersign_agent_node_ends_seconds",
        "gauge",
        &[],
        "when the agent's own certificate ends, in seconds since 1970",
    ),
    ("countersign_agent_spans_dropped_total", "counter", &[], "spans that no collector took"),
    ("countersign_agent_facts_dropped_total", "counter", &[], "facts that were lost on their way"),
    (
        "countersign_agent_connections_turned_away_total",
        "counter",
        &[],
        "connections to the socket that were closed because their process, their user or all had too many",
    ),
];

/// What the page is made of.
#[derive(Clone)]
pub(crate) struct Exposition {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) views: watch::Receiver<Option<Arc<View>>>,
    pub(crate) points: Points,
    pub(crate) facts: Facts,
    pub(crate) tracer: Tracer,
    pub(crate) turned_away: TurnedAway,
}

impl Exposition {
    /// Serves the page until stopped.
    pub(crate) async fn serve(self, listener: tokio::net::TcpListener, stop: CancellationToken) {
        let page = move || std::future::ready(self.page());
        exposition::serve(listener, Format::Prometheus, page, stop).await;
    }

    fn page(&self) -> String {
        let view = self.views.borrow().clone();
        let vitals = view.as_deref().map(|view| vitals(view, self.clock.now()));
        let vitals = vitals.unwrap_or_default();
        let mut page = String::new();
        for ((name, kind, _labels, meaning), value) in
            METRICS.iter().zip(self.values(view.as_deref()))
        {
            writeln!(page, "# HELP {name} {meaning}\n# TYPE {name} {kind}")
                .expect("a string takes everything");
            match value {
                Value::Number(value) => writeln!(page, "{name} {value}"),
                Value::Parts(told) => vitals.told(told).try_for_each(|(part, at)| {
                    writeln!(page, "{name}{{part=\"{}\"}} {at}", part.as_str())
                }),
            }
            .expect("a string takes everything");
        }
        page
    }

    /// In the order of the table.
    fn values(&self, view: Option<&View>) -> [Value; 18] {
        let number = |value: usize| Value::Number(value.to_string());
        let troubled = view.map_or(0, |view| {
            view.standings.values().filter(|standing| standing.trouble.is_some()).count()
        });
        let budget = view.and_then(|view| view.budget_ends);
        let budget = budget.map_or(0.0, |ends| ends.since(self.clock.now()).as_secs_f64());
        let node_ends = view.and_then(|view| view.node.standing.term);
        [
            number(usize::from(view.is_some_and(|view| view.link.disconnected.is_none()))),
            Value::Number(view.map_or(0, |view| view.replica.revision().number).to_string()),
            number(view.map_or(0, |view| view.svids.len())),
            number(troubled),
            Value::Number(budget.to_string()),
            number(self.points.open()),
            Value::Number(resident_bytes().to_string()),
            number(view.map_or(0, |view| view.replica.rules().len())),
            Value::Number(view.map_or(0, |view| view.reissued).to_string()),
            Value::Number(self.points.unaware().to_string()),
            number(usize::from(view.is_some_and(|view| view.link.refused.is_some()))),
            Value::Parts(Told::Good),
            Value::Parts(Told::Failed),
            Value::Parts(Told::Ends),
            Value::Number(node_ends.map_or(0, |term| term.expires.secs()).to_string()),
            Value::Number(self.tracer.dropped().to_string()),
            Value::Number(self.facts.lost().to_string()),
            Value::Number(self.turned_away.total().to_string()),
        ]
    }
}

enum Value {
    Number(String),
    /// One for each part that there is something to tell of.
    Parts(Told),
}
