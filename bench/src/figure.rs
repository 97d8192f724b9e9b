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
    pub better: Better,
}

#[derive(Clone, Copy)]
pub(crate) enum Better {
    Higher,
    Lower,
}

impl Figure {
    pub(crate) fn print(&self, output: Output) {
        let ratio = self.value / self.limit;
        let better = match self.better {
            Better::Higher => "higher",
            Better::Lower => "lower",
        };
        match output {
            Output::Json => println!(
                "{}",
                json!({"name": self.name, "value": self.value, "unit": self.unit,
                    "limit": self.limit, "limit_is": self.limit_is, "ratio": ratio, "better": better})
            ),
            Output::Human => println!(
                "{:<16} {:>12.2} {:<14} ratio {ratio:.3} ({better} is better) to {:.2}: {}",
                self.name, self.value, self.unit, self.limit, self.limit_is
            ),
        }
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
