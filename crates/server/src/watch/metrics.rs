//! Prometheus metrics, on an address of their own which serves nothing else.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use countersign_identity::Timestamp;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::control::Control;
use crate::rotate::Gate;
use crate::watch::{Count, resident_bytes};

/// Scrapers at once.
const CONNECTIONS_MAX: usize = 16;
/// How long to wait after the system refused to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a scrape may take, or a connection idle.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Every metric: name, type, help. A name is written here and nowhere else.
const METRICS: [(Metric, &str, &str, &str); 21] = {
    use Metric::*;
    [
        (Resident, "countersign_server_resident_bytes", "gauge", "Resident memory of the process."),
        (
            Started,
            "countersign_server_started_seconds",
            "gauge",
            "When the process started, in seconds since 1970.",
        ),
        (
            Revision,
            "countersign_server_revision_number",
            "gauge",
            "The revision of the snapshot, within its incarnation.",
        ),
        (Records, "countersign_server_records_count", "gauge", "Records of the state."),
        (
            Connections,
            "countersign_server_connections_count",
            "gauge",
            "Connections on the agents' port that are open.",
        ),
        (Agents, "countersign_server_agents_count", "gauge", "Agents whose stream is open."),
        (
            Handshakes,
            "countersign_server_handshakes_total",
            "counter",
            "Handshakes seen everywhere, by how they ended.",
        ),
        (
            FlowsLost,
            "countersign_server_flows_lost_total",
            "counter",
            "Requests and connections that were counted in no flow.",
        ),
        (
            FactsLost,
            "countersign_server_facts_lost_total",
            "counter",
            "Facts that were lost before they came here.",
        ),
        (
            Issued,
            "countersign_server_svids_issued_total",
            "counter",
            "Certificates made for workloads.",
        ),
        (
            IssueRefused,
            "countersign_server_svids_refused_total",
            "counter",
            "Certificates refused, by reason.",
        ),
        (
            AttestationRefused,
            "countersign_server_attestations_refused_total",
            "counter",
            "Attestations and renewals of nodes refused, and connections closed unread, by reason.",
        ),
        (
            Calls,
            "countersign_server_calls_total",
            "counter",
            "Calls of agents, by method and how they ended.",
        ),
        (
            ListsPublished,
            "countersign_server_revocation_lists_total",
            "counter",
            "Times that the revocation lists of an authority were made.",
        ),
        (
            ListEntries,
            "countersign_server_revocation_list_entries_count",
            "gauge",
            "Certificates on the revocation lists of all authorities.",
        ),
        (
            OcspAnswers,
            "countersign_server_ocsp_answers_total",
            "counter",
            "OCSP requests, by what was answered.",
        ),
        (
            RootEnds,
            "countersign_server_root_ends_seconds",
            "gauge",
            "When the active root ends, in seconds since 1970.",
        ),
        (
            IssuerEnds,
            "countersign_server_issuer_ends_seconds",
            "gauge",
            "When the issuer ends that signs now, in seconds since 1970.",
        ),
        (
            CeremonyDue,
            "countersign_server_ceremony_due_count",
            "gauge",
            "1 when a root that is held outside has to sign a successor of the issuer.",
        ),
        (
            RootKeyAway,
            "countersign_server_root_key_away_count",
            "gauge",
            "1 when the root's key, in a token, did not sign when it was last asked to.",
        ),
        (
            ApprovalsMissing,
            "countersign_server_approvals_missing_count",
            "gauge",
            "Operators who still have to approve that a new root signs.",
        ),
    ]
};

#[derive(Clone, Copy)]
enum Metric {
    Resident,
    Started,
    Revision,
    Records,
    Connections,
    Agents,
    Handshakes,
    FlowsLost,
    FactsLost,
    Issued,
    IssueRefused,
    AttestationRefused,
    Calls,
    ListsPublished,
    ListEntries,
    OcspAnswers,
    RootEnds,
    IssuerEnds,
    CeremonyDue,
    RootKeyAway,
    ApprovalsMissing,
}

/// Name, type and help of every metric.
pub(crate) fn metric_table() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    METRICS.into_iter().map(|(_, name, kind, help)| (name, kind, help))
}

/// One value, with its labels in the form of the text, such as `{code="expired"}`.
type Sample = (String, u64);

/// The text of the exposition format, version 0.0.4.
fn render(control: &Control) -> String {
    let mut text = String::new();
    for (metric, name, kind, help) in METRICS {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples(metric, control) {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    text
}

fn samples(metric: Metric, control: &Control) -> Vec<Sample> {
    let watch = &control.watch;
    let single = |value: u64| vec![(String::new(), value)];
    let size = |count: usize| single(u64::try_from(count).unwrap_or(u64::MAX));
    let state = control.feed.current();
    let authorities = control.desk.authorities.load();
    let seconds = |moment: Timestamp| u64::try_from(moment.secs()).unwrap_or(0);
    let counted = |label: &dyn Fn(&Count) -> Option<String>| {
        let counts = watch.counts().into_iter();
        counts.filter_map(|(count, value)| Some((label(&count)?, value))).collect()
    };
    match metric {
        Metric::Resident => single(resident_bytes()),
        Metric::Started => single(u64::try_from(watch.started.secs()).unwrap_or(0)),
        Metric::Revision => single(state.revision.number),
        Metric::Records => size(state.records.len()),
        Metric::Connections => size(watch.connections.load(Ordering::Relaxed)),
        Metric::Agents => size(control.roster.connected()),
        Metric::Handshakes => {
            let (outcomes, _lost) = watch.facts.totals();
            let sample =
                |outcome: super::facts::Outcome| format!("{{code=\"{}\"}}", outcome.as_str());
            outcomes.into_iter().map(|(outcome, value)| (sample(outcome), value)).collect()
        }
        Metric::RootEnds => single(seconds(authorities.root_certificate().validity().not_after)),
        Metric::IssuerEnds => single(seconds(authorities.issuer_validity().not_after)),
        Metric::CeremonyDue => {
            let due = authorities.is_outside() && authorities.successor_due(control.clock.now());
            single(u64::from(due))
        }
        Metric::RootKeyAway => {
            let signer = authorities.root_signer.as_ref();
            single(u64::from(signer.is_some_and(|signer| signer.trouble().is_some())))
        }
        Metric::ApprovalsMissing => single(match state.walk().map(|walk| walk.approval()) {
            Ok(Gate::Waits { done, of, .. }) => of.saturating_sub(done),
            Ok(Gate::Open) | Err(_) => 0,
        }),
        Metric::FlowsLost => single(watch.flows.dropped()),
        Metric::FactsLost => single(watch.facts.totals().1),
        Metric::Issued => single(watch.issued.load(Ordering::Relaxed)),
        Metric::ListsPublished => single(watch.lists.load(Ordering::Relaxed)),
        Metric::ListEntries => {
            size(control.views.now().all().map(|view| view.lists.whole.count).sum())
        }
        Metric::IssueRefused => counted(&|count| match count {
            Count::IssueRefused(code) => Some(format!("{{code=\"{code}\"}}")),
            Count::TurnedAway(_)
            | Count::AttestationRefused(_)
            | Count::Called(..)
            | Count::Asked(_) => None,
        }),
        Metric::AttestationRefused => counted(&|count| match count {
            Count::AttestationRefused(code) => {
                Some(format!("{{stage=\"attestation\",code=\"{code}\"}}"))
            }
            Count::TurnedAway(code) => Some(format!("{{stage=\"connection\",code=\"{code}\"}}")),
            Count::IssueRefused(_) | Count::Called(..) | Count::Asked(_) => None,
        }),
        Metric::Calls => counted(&|count| match count {
            Count::Called(call, code) => {
                let code = code.map_or("ok", countersign_identity::Code::as_str);
                Some(format!("{{method=\"{call}\",code=\"{code}\"}}"))
            }
            Count::TurnedAway(_)
            | Count::AttestationRefused(_)
            | Count::IssueRefused(_)
            | Count::Asked(_) => None,
        }),
        Metric::OcspAnswers => counted(&|count| match count {
            Count::Asked(outcome) => Some(format!("{{outcome=\"{outcome}\"}}")),
            Count::TurnedAway(_)
            | Count::AttestationRefused(_)
            | Count::IssueRefused(_)
            | Count::Called(..) => None,
        }),
    }
}

/// Serves `/metrics` until stopped.
pub(crate) async fn serve_metrics(
    listener: TcpListener,
    control: Arc<Control>,
    stop: CancellationToken,
) {
    let answer = move || {
        let control = Arc::clone(&control);
        async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], render(&control)) }
    };
    let router = Router::new().route("/metrics", get(answer));
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => {
                let Ok((tcp, _)) = accepted else {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                };
                let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
                let service = TowerToHyperService::new(router.clone());
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(CONNECTION_TIMEOUT)
                    .serve_connection(TokioIo::new(tcp), service);
                connections.spawn(async move {
                    let _place = place;
                    // How a scraper's connection ends concerns nobody.
                    let _ended = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
                });
            }
        }
    }
}
