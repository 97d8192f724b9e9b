//! Whether the servers refuse this node itself, and how often to ask them again then.

use std::time::Duration;

use countersign_identity::{Backoff, BackoffPolicy, Code, Entropy, Timestamp};

/// The servers' word about this node, since they last let it in.
#[derive(Clone, Copy, Debug)]
pub(super) struct ShutOut {
    code: Option<Code>,
    backoff: Backoff,
}

/// An operator has to act, which takes minutes and not milliseconds; and asking costs the server a look-up or a handshake.
const RETRY: BackoffPolicy =
    BackoffPolicy { first: Duration::from_secs(2), longest: Duration::from_secs(60) };

impl ShutOut {
    pub(super) const fn new() -> Self {
        Self { code: None, backoff: Backoff::new(RETRY) }
    }

    pub(super) const fn code(&self) -> Option<Code> {
        self.code
    }

    /// Whether more than the first refusal lies behind us, so that nothing is tried at once.
    pub(super) const fn waits(&self) -> bool {
        1 < self.backoff.failures()
    }

    /// A server ended or refused the stream, or the renewal that it needs; says when to try again, when it was for what this
    /// node is. A revoked certificate has a successor at once, the first time.
    pub(super) fn refused(
        &mut self,
        code: Code,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) -> Option<Timestamp> {
        if !is_about_us(code) {
            return None;
        }
        let first = self.backoff.failures() == 0;
        let later = self.backoff.failed(now, entropy);
        self.code = Some(code);
        Some(if first && code == Code::Revoked { now } else { later })
    }

    pub(super) fn let_in(&mut self) {
        *self = Self::new();
    }
}

/// Whether a code says that the node itself is not, or not any more, what it says it is.
fn is_about_us(code: Code) -> bool {
    matches!(
        code,
        Code::Suspended
            | Code::UnknownNode
            | Code::Revoked
            | Code::RevokedKey
            | Code::SilentTooLong
    )
}
