//! Prometheus metrics, from one table.

use std::fmt::Write;
use std::sync::Arc;

use countersign_identity::{Clock, Timestamp, Told, Vital, Vitals};
use countersign_program::exposition;
use countersign_program::trace::Tracer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::core::{Knowledge, Standing};
use crate::enforcement::Points;
use crate::reports::{Facts, resident_bytes};
use crate::view::View;

/// Name, kind, labels and meaning of every metric of the agent.
pub const METRICS: [(&str, &str, &[&str], &str); 17] = [
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
        "when the first leaf or issuer, the whole bundle or the first policy ends, in seconds since 1970",
    ),
    (
        "countersign_agent_node_ends_seconds",
        "gauge",
        &[],
        "when the agent's own certificate ends, in seconds since 1970",
    ),
    ("countersign_agent_spans_dropped_total", "counter", &[], "spans that no collector took"),
    ("countersign_agent_facts_dropped_total", "counter", &[], "facts that were lost on their way"),
];

/// What the page is made of.
#[derive(Clone)]
pub(crate) struct Exposition {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) views: watch::Receiver<Option<Arc<View>>>,
    pub(crate) points: Points,
    pub(crate) facts: Facts,
    pub(crate) tracer: Tracer,
}

impl Exposition {
    /// Serves the page until stopped.
    pub(crate) async fn serve(self, listener: tokio::net::TcpListener, stop: CancellationToken) {
        exposition::serve(listener, move || self.page(), stop).await;
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
    fn values(&self, view: Option<&View>) -> [Value; 17] {
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
        ]
    }
}

enum Value {
    Number(String),
    /// One for each part that there is something to tell of.
    Parts(Told),
}

/// How the node stands. An issuer comes with the leaf that it signed; bundles and policies are confirmed for as long as the
/// stream from a server stands.
fn vitals(view: &View, now: Timestamp) -> Vitals {
    let mut vitals = Vitals::default();
    let standings = view.standings.values().chain([&view.node.standing]);
    let first_end = standings.clone().filter_map(|standing| Some(standing.term?.expires)).min();
    let issuers_end = view.svids.values().filter_map(|svid| svid.chain.issuers_end()).min();
    for Standing { term, failed, .. } in standings {
        for (part, ends) in [(Vital::Leaf, first_end), (Vital::Issuer, issuers_end)] {
            term.iter().for_each(|term| vitals.good(part, term.issued, ends));
            failed.iter().for_each(|failed| vitals.failed(part, *failed));
        }
    }
    let policies = view.replica.policies().values();
    let policies_end =
        policies.filter_map(|policy| policy.record.as_ref()?.until).filter(|end| now < *end);
    let bundle_ends = view.replica.own_bundle().and_then(|bundle| bundle.ends());
    for (part, ends) in [(Vital::Bundle, bundle_ends), (Vital::Policy, policies_end.min())] {
        vitals.ends(part, ends);
        if view.knowledge == Knowledge::Synced {
            vitals.good(part, view.link.disconnected.unwrap_or(now), ends);
        }
        view.link.failed.iter().for_each(|failed| vitals.failed(part, *failed));
    }
    vitals
}
