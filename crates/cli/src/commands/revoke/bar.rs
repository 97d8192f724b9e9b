//! A line that shows how far a revision has come, where somebody looks at it.

use std::io::{IsTerminal as _, Write as _};

use countersign_api::admin::Convergence;

use crate::output::Output;

const WIDTH: u64 = 30;

/// The line. It is written to standard error, and only to a terminal.
pub(in crate::commands) struct Bar {
    shown: bool,
    wanted: bool,
}

impl Bar {
    pub(in crate::commands) fn new(output: Output) -> Self {
        let wanted = output == Output::Human && std::io::stderr().is_terminal();
        Self { shown: false, wanted }
    }

    pub(super) fn show(&mut self, convergence: &Convergence) {
        self.say(&line(convergence));
    }

    /// Shows this text in the place of the one before.
    pub(in crate::commands) fn say(&mut self, text: &str) {
        if self.wanted {
            self.shown = true;
            self.write(&format!("\r\x1b[K{text}"));
        }
    }

    pub(in crate::commands) fn clear(&self) {
        if self.shown {
            self.write("\r\x1b[K");
        }
    }

    fn write(&self, text: &str) {
        let mut stderr = std::io::stderr().lock();
        // Who has closed it does not look.
        let _unseen = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }
}

fn line(convergence: &Convergence) -> String {
    let Convergence { live, enforcing, .. } = convergence;
    let bar = share(*enforcing, *live);
    let pending = if convergence.reissue_pending { ", waiting for new credentials" } else { "" };
    format!("{bar} {enforcing} of {live} enforcing{pending}")
}

/// So much of so much, drawn.
pub(in crate::commands) fn share(done: u64, of: u64) -> String {
    let done = (WIDTH * done.min(of)).checked_div(of).unwrap_or(WIDTH);
    (0..WIDTH).map(|place| if place < done { '█' } else { '░' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_is_as_long_as_the_share_of_points_that_enforce() {
        let convergence: Convergence = serde_json::from_value(serde_json::json!({
            "revision": "1.5", "live": 3, "enforcing": 1, "missing": [], "unaware": 0,
            "draining": 0, "reissuePending": true,
        }))
        .unwrap();
        let line = line(&convergence);
        assert_eq!(line.chars().filter(|character| *character == '█').count(), 10, "{line}");
        assert!(line.ends_with("1 of 3 enforcing, waiting for new credentials"), "{line}");
    }
}
