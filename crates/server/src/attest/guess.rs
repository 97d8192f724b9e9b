//! Words of callers by which something is looked up, such as a token or the name of a node.

use std::time::Duration;

use countersign_tls::{Leave, Outcome};

use crate::control::Control;
use crate::edge::Peer;
use crate::refusal::Refused;

/// How long each further guess waits until it is looked up.
const GUESS_PAUSE: Duration = Duration::from_millis(200);

/// One word of a caller. It is begun before anything is looked up by it, and waits then, so that what a caller does not wait for
/// costs no look-up either.
#[must_use]
pub(super) struct Guess<'a> {
    control: &'a Control,
    peer: &'a Peer,
    /// None for who guessed wrongly too often, and waited.
    leave: Option<Leave>,
}

impl<'a> Guess<'a> {
    /// Waits, if so much that came from there was wrong.
    pub(super) async fn begin(control: &'a Control, peer: &'a Peer) -> Self {
        let leave = peer.conduct.guesses(control.clock.now());
        if leave.is_none() {
            tokio::time::sleep(GUESS_PAUSE).await;
        }
        Self { control, peer, leave }
    }

    /// It ended so, which is held against the caller where it is its fault. Says whether there was leave for it.
    pub(super) fn ended<T>(self, ended: &Result<T, Refused>) -> bool {
        let outcome = match ended {
            Ok(_) => Outcome::Nothing,
            Err(refused) => Outcome::of(Some(refused.code)),
        };
        let now = self.control.clock.now();
        self.leave.map(|leave| self.peer.conduct.guessed(leave, outcome, now)).is_some()
    }
}
