//! What one handshake showed.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use countersign_identity::{Code, Name, SpiffeId, Timestamp};
use countersign_pki::{Refused, Verified};

use crate::rule::{Purpose, Rule};
use crate::standing::Outcome;

/// Who dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The other end dialled us.
    Inbound,
    /// We dialled.
    Outbound,
}

/// One observed handshake, admitted or not. Every handshake yields exactly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeFact {
    /// When it began.
    pub at: Timestamp,
    /// Who dialled.
    pub direction: Direction,
    /// Whose door, or which upstream; none for the control plane.
    pub service: Option<Name>,
    /// Who we were; none when we showed nothing.
    pub local: Option<SpiffeId>,
    /// Who the peer proved to be; none when it proved nothing.
    pub peer: Option<SpiffeId>,
    /// Where the peer was.
    pub peer_address: Option<SocketAddr>,
    /// The serial of the peer's leaf, when the peer proved to be somebody.
    pub peer_serial: Vec<u8>,
    /// `1.3`; empty when it was not agreed on.
    pub version: &'static str,
    /// The key exchange, such as `X25519MLKEM768`; empty likewise.
    pub group: &'static str,
    /// The cipher suite; empty likewise.
    pub suite: &'static str,
    /// Whether the session was resumed. Never so among our own.
    pub resumed: bool,
    /// How long it took.
    pub took: Duration,
    /// Why it was refused or failed; none when the connection was admitted.
    pub code: Option<Code>,
    /// The sentence to the code, of at most [`DETAIL_CHARS_MAX`] characters.
    pub detail: String,
}

/// A peer chooses some of the words in a detail, but not how many.
pub const DETAIL_CHARS_MAX: usize = 400;

impl HandshakeFact {
    pub(crate) fn begin(at: Timestamp, rule: &Rule, peer_address: Option<SocketAddr>) -> Self {
        let service = match &rule.purpose {
            Purpose::Service(name) => Some(name.clone()),
            Purpose::Control => None,
        };
        Self {
            at,
            direction: rule.direction,
            service,
            local: None,
            peer: None,
            peer_address,
            peer_serial: Vec::new(),
            version: "",
            group: "",
            suite: "",
            resumed: false,
            took: Duration::ZERO,
            code: None,
            detail: String::new(),
        }
    }

    pub(crate) fn proven(&mut self, peer: &Verified) {
        self.peer = Some(peer.id.clone());
        self.peer_serial = peer.serial_bytes().to_vec();
    }

    pub(crate) fn failed(mut self, refused: &Refused, now: Timestamp) -> HandshakeFailure {
        self.took = now.since(self.at);
        self.code = Some(refused.code);
        self.detail = refused.why.chars().take(DETAIL_CHARS_MAX).collect();
        let (code, detail) = (refused.code, self.detail.clone());
        HandshakeFailure { code, detail, outcome: Outcome::of(Some(code)), fact: Box::new(self) }
    }
}

/// A handshake that did not lead to an admitted connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeFailure {
    /// Why.
    pub code: Code,
    /// The sentence to it.
    pub detail: String,
    /// How it counts for where the peer came from.
    pub outcome: Outcome,
    /// What was seen of it.
    pub fact: Box<HandshakeFact>,
}

impl fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.detail, self.code)
    }
}

impl std::error::Error for HandshakeFailure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_bounded_whatever_the_peer_chose_to_be_called() {
        let rule = Rule::inbound(&crate::Inbound::control());
        let fact = HandshakeFact::begin(Timestamp::EPOCH, &rule, None);
        let refused = Refused { code: Code::PolicyDenied, why: "é".repeat(5000) };
        let failure = fact.failed(&refused, Timestamp::EPOCH + Duration::from_millis(3));
        assert_eq!(failure.detail.chars().count(), DETAIL_CHARS_MAX);
        assert_eq!(failure.fact.detail, failure.detail);
        assert_eq!(failure.fact.took, Duration::from_millis(3));
    }
}
