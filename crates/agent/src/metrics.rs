//! Prometheus metrics, from one table.

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use countersign_identity::Clock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::enforcement::Points;
use crate::reports::resident_bytes;
use crate::view::View;

/// Name, kind and meaning of every metric of the agent.
pub const METRICS: [(&str, &str, &str); 7] = [
    ("countersign_agent_connected", "gauge", "1 while a server is reached"),
    ("countersign_agent_revision_number", "gauge", "the revision that is served"),
    ("countersign_agent_svids", "gauge", "SVIDs held for workloads"),
    ("countersign_agent_svids_in_trouble", "gauge", "workloads whose last renewal failed"),
    ("countersign_agent_outage_budget_seconds", "gauge", "until the first SVID held expires"),
    ("countersign_agent_points", "gauge", "enforcement points with an open stream"),
    ("countersign_agent_resident_bytes", "gauge", "memory of this process"),
];

/// What the page is made of.
#[derive(Clone)]
pub(crate) struct Exposition {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) views: watch::Receiver<Option<Arc<View>>>,
    pub(crate) points: Points,
}

impl Exposition {
    /// Serves the page until stopped.
    pub(crate) async fn serve(
        self,
        listener: tokio::net::TcpListener,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let page = move || {
            let page = self.page();
            async move { ([("content-type", "text/plain; version=0.0.4")], page) }
        };
        let routes = axum::Router::new().route("/metrics", axum::routing::get(page));
        axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
    }

    fn page(&self) -> String {
        let view = self.views.borrow().clone();
        let view = view.as_deref();
        let number = |value: usize| value.to_string();
        let troubled = view.map_or(0, |view| {
            view.standings.values().filter(|standing| standing.trouble.is_some()).count()
        });
        let budget = view.and_then(|view| view.budget_ends);
        let budget = budget.map_or(0.0, |ends| ends.since(self.clock.now()).as_secs_f64());
        let values = [
            number(usize::from(view.is_some_and(|view| view.link.disconnected.is_none()))),
            view.map_or(0, |view| view.replica.revision().number).to_string(),
            number(view.map_or(0, |view| view.svids.len())),
            number(troubled),
            budget.to_string(),
            number(self.points.open()),
            resident_bytes().to_string(),
        ];
        let mut page = String::new();
        for ((name, kind, meaning), value) in METRICS.iter().zip(values) {
            writeln!(page, "# HELP {name} {meaning}\n# TYPE {name} {kind}\n{name} {value}")
                .expect("a string takes everything");
        }
        page
    }
}

/// Listens for scrapers.
pub(crate) async fn listen(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(address).await
}
