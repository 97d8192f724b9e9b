//! One measured number beside its limit.

use std::time::{Duration, Instant};

use serde_json::json;

/// How figures are printed.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Output {
    Human,
    Json,
}

/// A number, and the one that it is held against.
pub(crate) struct Figure {
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
    pub limit: f64,
    /// What the limit is.
    pub limit_is: &'static str,
    pub asked: Asked,
}

/// What is asked of the ratio, which is value over limit.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked {
    AtLeast(f64),
    AtMost(f64),
    /// Higher is better, and nothing was promised.
    More,
    /// Lower is better, and nothing was promised.
    Less,
}

/// Whether figures are as good as was asked.
#[must_use = "who runs the benchmarks is told by the exit status"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    Missed,
}

impl Asked {
    fn of(self, ratio: f64) -> Verdict {
        let met = match self {
            Self::AtLeast(least) => least <= ratio,
            Self::AtMost(most) => ratio <= most,
            Self::More | Self::Less => true,
        };
        // What is no number was not met: comparisons with it are false.
        if met { Verdict::Met } else { Verdict::Missed }
    }

    const fn ratio(self) -> Option<f64> {
        match self {
            Self::AtLeast(ratio) | Self::AtMost(ratio) => Some(ratio),
            Self::More | Self::Less => None,
        }
    }

    const fn better(self) -> &'static str {
        match self {
            Self::AtLeast(_) | Self::More => "higher",
            Self::AtMost(_) | Self::Less => "lower",
        }
    }
}

impl Verdict {
    /// Of both: whatever misses one misses all.
    pub(crate) const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Met, Self::Met) => Self::Met,
            (Self::Missed, _) | (_, Self::Missed) => Self::Missed,
        }
    }
}

impl Figure {
    pub(crate) fn print(&self, output: Output) -> Verdict {
        let ratio = self.value / self.limit;
        let (asked, better) = (self.asked.ratio(), self.asked.better());
        let verdict = self.asked.of(ratio);
        match output {
            Output::Json => println!(
                "{}",
                json!({"name": self.name, "value": self.value, "unit": self.unit,
                    "limit": self.limit, "limit_is": self.limit_is, "ratio": ratio, "better": better,
                    "asked": asked, "met": verdict == Verdict::Met})
            ),
            Output::Human => println!(
                "{:<16} {:>12.2} {:<14} ratio {ratio:.3} ({better} is better{}) to {:.2}: {}",
                self.name,
                self.value,
                self.unit,
                match (asked, verdict) {
                    (Some(asked), Verdict::Met) => format!(", {asked} is asked"),
                    (Some(asked), Verdict::Missed) => format!(", {asked} is asked: MISSED"),
                    (None, _) => String::new(),
                },
                self.limit,
                self.limit_is
            ),
        }
        verdict
    }
}

/// How often a second something can be done, on one thread: the best of three spans.
pub(crate) fn rate(span: Duration, mut work: impl FnMut()) -> f64 {
    let mut best: f64 = 0.0;
    for _ in 0..3 {
        let begin = Instant::now();
        let mut done = 0_u32;
        while begin.elapsed() < span {
            work();
            done += 1;
        }
        best = best.max(f64::from(done) / begin.elapsed().as_secs_f64());
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn judged(asked: Asked, ratio: f64, verdict: Verdict) {
        assert_eq!(asked.of(ratio), verdict, "{asked:?} of {ratio}");
    }

    #[test]
    fn a_figure_beyond_what_is_asked_is_missed() {
        judged(Asked::AtMost(2.0), 2.0, Verdict::Met);
        judged(Asked::AtMost(2.0), 2.001, Verdict::Missed);
        judged(Asked::AtLeast(0.7), 0.7, Verdict::Met);
        judged(Asked::AtLeast(0.7), 0.699, Verdict::Missed);
        judged(Asked::Less, 9.0, Verdict::Met);
        judged(Asked::AtMost(2.0), f64::NAN, Verdict::Missed);
        judged(Asked::AtLeast(0.7), f64::NAN, Verdict::Missed);
    }

    #[test]
    fn one_that_is_missed_is_not_made_up_for_by_others() {
        assert_eq!(Verdict::Met.and(Verdict::Met), Verdict::Met);
        assert_eq!(Verdict::Met.and(Verdict::Missed), Verdict::Missed);
        assert_eq!(Verdict::Missed.and(Verdict::Met), Verdict::Missed);
    }
}
