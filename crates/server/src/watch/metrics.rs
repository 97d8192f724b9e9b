//! Prometheus metrics, on an address of their own which serves nothing else.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use countersign_identity::{Timestamp, Told, Vital, Vitals};
use countersign_program::exposition::{self, Format};
use countersign_store::TallyOf;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::authority::Authorities;
use crate::control::Control;
use crate::publish::Fleet;
use crate::revoke::{Progress, progress, unaware};
use crate::rotate::Gate;
use crate::state::State;
use crate::watch::status::all_nodes;
use crate::watch::table::{METRICS, Metric, Row};
use crate::watch::vitals::vitals;
use crate::watch::{Count, Watch, resident_bytes};

/// Name, kind, labels and help of every metric.
pub(crate) fn metric_table() -> impl Iterator<Item = Row> {
    METRICS.into_iter().map(|(_, row)| row)
}

/// One value, with what follows the name in the text, such as `{code="expired"}`.
type Sample = (String, f64);

/// What is read once for one text.
struct Scrape<'a> {
    control: &'a Control,
    state: Arc<State>,
    authorities: Arc<Authorities>,
    fleet: Fleet,
    vitals: Vitals,
    nodes_on_record: usize,
    unaware: u64,
    now: Timestamp,
}

impl<'a> Scrape<'a> {
    async fn of(control: &'a Control) -> Self {
        let (state, authorities) = (control.feed.current(), control.desk.authorities.load_full());
        let now = control.clock.now();
        let nodes_on_record = nodes_on_record(control, now).await;
        let vitals = vitals(control, &state, &authorities, now);
        let fleet = control.roster.fleet(now);
        let unaware = unaware(control).await;
        Self { control, state, authorities, fleet, vitals, nodes_on_record, unaware, now }
    }

    /// The text of the exposition format, version 0.0.4.
    fn render(&self) -> String {
        let mut text = String::new();
        for (metric, (name, kind, _labels, help)) in METRICS {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in self.samples(metric) {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        }
        text
    }

    fn samples(&self, metric: Metric) -> Vec<Sample> {
        let Self { control, state, authorities, fleet, .. } = self;
        let watch = &control.watch;
        match metric {
            Metric::Resident => number(resident_bytes()),
            Metric::Started => moment(Some(watch.started)),
            Metric::Revision => number(state.revision.number),
            Metric::Records => size(state.records.len()),
            Metric::Connections => size(watch.connections.load(Ordering::Relaxed)),
            Metric::Agents => size(fleet.connected),
            Metric::Handshakes => {
                let (outcomes, _lost) = watch.facts.totals();
                let outcomes = outcomes.into_iter();
                labelled("code", outcomes.map(|(outcome, count)| (outcome.as_str(), count)))
            }
            Metric::RootEnds => moment(Some(authorities.root_certificate().validity().not_after)),
            Metric::IssuerEnds => moment(Some(authorities.issuer_validity().not_after)),
            Metric::CeremonyDue => {
                flag(authorities.is_outside() && authorities.successor_due(self.now))
            }
            Metric::RootKeyAway => {
                let signer = authorities.root_signer.as_ref();
                flag(signer.is_some_and(|signer| signer.trouble().is_some()))
            }
            Metric::ApprovalsMissing => number(match state.walk().map(|walk| walk.approval()) {
                Ok(Gate::Waits { done, of, .. }) => of.saturating_sub(done),
                Ok(Gate::Open) | Err(_) => 0,
            }),
            Metric::ReviewsOverdue => size(watch.reviews.overdue(self.now)),
            Metric::FlowsLost => number(watch.flows.dropped()),
            Metric::FactsLost => number(watch.facts.totals().1),
            Metric::ObservationsLost => labelled(
                "of",
                [("handshakes", TallyOf::Handshakes), ("requests", TallyOf::Requests)]
                    .map(|(word, of)| (word, watch.tallies.dropped(of))),
            ),
            Metric::Issued => number(watch.issued.load(Ordering::Relaxed)),
            Metric::ListsPublished => number(watch.lists.load(Ordering::Relaxed)),
            Metric::ListEntries => {
                size(control.views.now().all().map(|view| view.lists.whole.count).sum())
            }
            Metric::IssueRefused
            | Metric::AttestationRefused
            | Metric::ProofsVerified
            | Metric::Calls
            | Metric::OcspAnswers => counted(watch, metric),
            Metric::CallSeconds => call_seconds(watch),
            Metric::LastGood => self.parts(Told::Good),
            Metric::LastFailure => self.parts(Told::Failed),
            Metric::Ends => self.parts(Told::Ends),
            Metric::StoreWritable => flag(watch.store_writable() && control.pulse.beats().is_ok()),
            Metric::JournalWhole => match &control.journal {
                Some(journal) => flag(journal.trouble().is_none()),
                None => Vec::new(),
            },
            Metric::LogEvents => number(control.signing.progress().events),
            Metric::LogSigned => number(control.signing.progress().signed),
            Metric::LogSignedAt => moment(control.signing.progress().at),
            Metric::Nodes => size(self.nodes_on_record),
            Metric::Points => {
                let Progress { enforcing, behind, silent } = progress(control);
                labelled(
                    "state",
                    [("enforcing", enforcing), ("behind", behind), ("silent", silent)],
                )
            }
            Metric::Unaware => number(self.unaware),
            Metric::Revocations => size(state.revocations().len()),
            Metric::Suspensions => size(state.suspensions().count()),
            Metric::SvidsHeld => number(fleet.svids),
            Metric::SvidsInTrouble => number(fleet.in_trouble),
            Metric::FirstExpiry => moment(fleet.first_expiry),
            Metric::ClockSkew => vec![(String::new(), fleet.skew.as_secs_f64())],
            Metric::SpansDropped => number(control.tracer.dropped()),
            Metric::ClockBehind => flag(control.desk.time.trusted(self.now).is_err()),
        }
    }

    fn parts(&self, told: Told) -> Vec<Sample> {
        let sample = |(part, at): (Vital, i64)| {
            (format!("{{part=\"{}\"}}", part.as_str()), secs(Timestamp::from_secs(at)))
        };
        self.vitals.told(told).map(sample).collect()
    }
}

/// Whole seconds are exact in this type for as long as there are people.
fn secs(moment: Timestamp) -> f64 {
    u32::try_from(moment.secs()).map_or(0.0, f64::from)
}

fn moment(moment: Option<Timestamp>) -> Vec<Sample> {
    moment.into_iter().map(|moment| (String::new(), secs(moment))).collect()
}

fn number(value: u64) -> Vec<Sample> {
    vec![(String::new(), value as f64)]
}

fn size(count: usize) -> Vec<Sample> {
    vec![(String::new(), count as f64)]
}

fn flag(is: bool) -> Vec<Sample> {
    size(usize::from(is))
}

fn labelled(label: &str, counts: impl IntoIterator<Item = (&'static str, u64)>) -> Vec<Sample> {
    let sample = |(value, count)| (format!("{{{label}=\"{value}\"}}"), count as f64);
    counts.into_iter().map(sample).collect()
}

fn call_seconds(watch: &Watch) -> Vec<Sample> {
    let took = watch.took();
    let samples = took.into_iter().flat_map(|(call, (count, took))| {
        let labels = format!("{{method=\"{call}\"}}");
        [(format!("_sum{labels}"), took.as_secs_f64()), (format!("_count{labels}"), count as f64)]
    });
    samples.collect()
}

/// What is counted by reason, of one metric.
fn counted(watch: &Watch, metric: Metric) -> Vec<Sample> {
    let labels = |count: &Count| match (metric, count) {
        (Metric::IssueRefused, Count::IssueRefused(code)) => Some(format!("{{code=\"{code}\"}}")),
        (Metric::AttestationRefused, Count::AttestationRefused(code)) => {
            Some(format!("{{stage=\"attestation\",code=\"{code}\"}}"))
        }
        (Metric::AttestationRefused, Count::TurnedAway(code)) => {
            Some(format!("{{stage=\"connection\",code=\"{code}\"}}"))
        }
        (Metric::ProofsVerified, Count::Verified(proof)) => {
            Some(format!("{{of=\"{}\"}}", proof.as_str()))
        }
        (Metric::Calls, Count::Called(call, code)) => {
            let code = code.map_or("ok", countersign_identity::Code::as_str);
            Some(format!("{{method=\"{call}\",code=\"{code}\"}}"))
        }
        (Metric::OcspAnswers, Count::Asked(outcome)) => Some(format!("{{outcome=\"{outcome}\"}}")),
        _ => None,
    };
    let counts = watch.counts().into_iter();
    counts.filter_map(|(count, value)| Some((labels(&count)?, value as f64))).collect()
}

/// How many nodes are on record. They are counted now and then; while the store is away, what was counted last counts.
async fn nodes_on_record(control: &Control, now: Timestamp) -> usize {
    if control.watch.nodes_are_due(now)
        && let Ok(nodes) = all_nodes(&*control.store).await
    {
        control.watch.remember_nodes(&nodes);
    }
    control.watch.remembered_nodes_count()
}

/// Serves `/metrics` until stopped.
pub(crate) async fn serve_metrics(
    listener: TcpListener,
    control: Arc<Control>,
    stop: CancellationToken,
) {
    let page = move || {
        let control = Arc::clone(&control);
        async move { Scrape::of(&control).await.render() }
    };
    exposition::serve(listener, Format::Prometheus, page, stop).await;
}
