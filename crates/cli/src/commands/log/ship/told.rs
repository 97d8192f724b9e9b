//! What an exporter tells of itself: when the receiver last had what there was, when it did not, and how much it lacks.

use std::fmt::Write as _;
use std::time::Duration;

use countersign_identity::{Clock as _, SystemClock, Timestamp};
use tokio::sync::watch;

/// How often it is counted what the receiver lacks.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// Name, kind, labels and meaning of every metric of an exporter.
pub(crate) const METRICS: [(&str, &str, &[&str], &str); 5] = [
    (
        "countersign_export_last_good_seconds",
        "gauge",
        &[],
        "When the receiver was last known to have taken an event, or to have all of them, in seconds since 1970; absent when never.",
    ),
    (
        "countersign_export_last_failure_seconds",
        "gauge",
        &["end"],
        "When the `receiver` or the `server` was last wanted and not had, in seconds since 1970; absent when never.",
    ),
    (
        "countersign_export_failures_total",
        "counter",
        &["end"],
        "How often that was so, since the exporter started.",
    ),
    (
        "countersign_export_lag_events",
        "gauge",
        &[],
        "Events of the present log that the receiver is not known to have; absent until they were counted.",
    ),
    (
        "countersign_export_delivered_total",
        "counter",
        &[],
        "Events that the receiver is known to have taken, since the exporter started.",
    ),
];

/// Between which an exporter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Where the log is.
    Server,
    /// Where it goes.
    Receiver,
}

impl End {
    const ALL: [Self; 2] = [Self::Server, Self::Receiver];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Receiver => "receiver",
        }
    }
}

/// How it stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    good: Option<Timestamp>,
    failed: [Option<Timestamp>; 2],
    failures: [u64; 2],
    lag: Option<u64>,
    delivered: u64,
}

/// Tells scrapers how it stands.
#[derive(Debug)]
pub(super) struct Teller {
    standing: watch::Sender<Standing>,
    count_at: Option<Timestamp>,
}

impl Teller {
    pub(super) fn new() -> (Self, watch::Receiver<Standing>) {
        let (standing, told) = watch::channel(Standing::default());
        (Self { standing, count_at: None }, told)
    }

    /// The receiver has so many more events; with none, it has all that there are.
    pub(super) fn good(&self, events: u64) {
        let now = SystemClock::new().now();
        self.standing.send_modify(|standing| {
            standing.good = Some(now);
            standing.delivered = standing.delivered.saturating_add(events);
        });
    }

    /// One end was not to be had.
    pub(super) fn failed(&self, end: End) {
        let now = SystemClock::new().now();
        self.standing.send_modify(|standing| {
            standing.failed[end as usize] = Some(now);
            standing.failures[end as usize] = standing.failures[end as usize].saturating_add(1);
        });
    }

    /// Whether it should be counted again what the receiver lacks.
    pub(super) fn count_is_due(&mut self) -> bool {
        let now = SystemClock::new().now();
        let due = self.count_at.is_none_or(|at| at <= now || now + COUNT_EVERY < at);
        if due {
            self.count_at = Some(now + COUNT_EVERY);
        }
        due
    }

    /// The receiver lacks so many.
    pub(super) fn lacks(&self, events: u64) {
        self.standing.send_modify(|standing| standing.lag = Some(events));
    }
}

/// The text of the exposition format, version 0.0.4.
pub(super) fn page(standing: &Standing) -> String {
    let secs = |at: Option<Timestamp>| at.map(|at| at.secs().to_string());
    let number = |count: u64| Some(count.to_string());
    let of = |end: End| format!("{{end=\"{}\"}}", end.as_str());
    let mut page = String::new();
    for (name, kind, _labels, meaning) in METRICS {
        let samples: Vec<(String, Option<String>)> = match name {
            "countersign_export_last_good_seconds" => vec![(String::new(), secs(standing.good))],
            "countersign_export_last_failure_seconds" => {
                End::ALL.map(|end| (of(end), secs(standing.failed[end as usize]))).to_vec()
            }
            "countersign_export_failures_total" => {
                End::ALL.map(|end| (of(end), number(standing.failures[end as usize]))).to_vec()
            }
            "countersign_export_lag_events" => {
                vec![(String::new(), standing.lag.map(|lag| lag.to_string()))]
            }
            _ => vec![(String::new(), number(standing.delivered))],
        };
        // Writing to a string cannot fail.
        let _ = writeln!(page, "# HELP {name} {meaning}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            if let Some(value) = value {
                let _ = writeln!(page, "{name}{labels} {value}");
            }
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tells_each_end_apart_and_leaves_out_what_never_was() {
        let (teller, told) = Teller::new();
        let first = page(&told.borrow());
        assert!(!first.contains("\ncountersign_export_last_good_seconds "), "{first}");
        assert!(first.contains("\ncountersign_export_failures_total{end=\"receiver\"} 0\n"));
        teller.good(3);
        teller.good(0);
        teller.failed(End::Receiver);
        teller.lacks(7);
        let then = page(&told.borrow());
        for line in [
            "countersign_export_failures_total{end=\"receiver\"} 1",
            "countersign_export_failures_total{end=\"server\"} 0",
            "countersign_export_lag_events 7",
            "countersign_export_delivered_total 3",
        ] {
            assert!(then.lines().any(|found| found == line), "{line}: {then}");
        }
        assert!(then.contains("\ncountersign_export_last_good_seconds "), "{then}");
        assert!(then.contains("\ncountersign_export_last_failure_seconds{end=\"receiver\"} "));
        assert!(!then.contains("\ncountersign_export_last_failure_seconds{end=\"server\"} "));
    }
}
