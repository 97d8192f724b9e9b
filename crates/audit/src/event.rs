//! What can happen, in a closed list.

use std::fmt;
use std::str::FromStr;

use countersign_identity::{Serial, Sha256, Timestamp};

/// A text that is none of the kinds of this version. Whoever reads one must not guess what it means.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a kind of event of this version")]
pub struct UnknownEventKind(String);

macro_rules! kinds {
    ($($name:ident $text:literal $doc:literal;)*) => {
        /// What happened. Closed: an event of another kind is not written and not read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum EventKind { $(#[doc = $doc] $name,)* }

        impl EventKind {
            /// Every kind, in the order of the reference.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The stable word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it means, in one sentence, for the reference.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $doc,)* }
            }
        }
    };
}

kinds! {
    IncarnationBegan "incarnation-began" "The store began a new life, and this log with it.";
    ServerStarted "server-started" "A server opened the store and began to serve.";
    AuthorityCreated "authority-created" "A key that signs was made, and its certificate is about to be signed.";
    AuthorityRequested "authority-requested" "A key that signs was made, and waits for a certificate from outside.";
    AuthorityImported "authority-imported" "A certificate that an outside authority signed was taken in.";
    CeremonyDue "ceremony-due" "An issuer whose root is held outside is past half of its life: its root has to sign a successor.";
    AuthorityWalked "authority-walked" "An authority took a step of its walk: prepared, published, active, superseded, retired, tainted, or back.";
    AuthorityApproved "authority-approved" "An operator approved that a new root signs.";
    WalkOrdered "walk-ordered" "An operator, or the schedule, ordered a rotation or a recovery, or it came to its end.";
    ResponderCreated "responder-created" "A server made a key for its OCSP answers, and its certificate is about to be signed.";
    TokenCreated "token-created" "An operator made a join token.";
    NodeAttested "node-attested" "A machine proved itself and was registered.";
    NodeRenewed "node-renewed" "A registered machine renewed, or brought the successor of its key.";
    NodeRemoved "node-removed" "An operator removed a machine.";
    SvidIssued "svid-issued" "A certificate is about to be signed; its contents are fixed by their digest.";
    RecordPut "record-put" "A record of the state was made or changed.";
    RecordRemoved "record-removed" "A record of the state was removed.";
    Revoked "revoked" "An operator took credentials out of service.";
    Suspended "suspended" "An operator stopped what would be issued.";
    Resumed "resumed" "An operator lifted a suspension.";
    ChangeApproved "change-approved" "An operator approved a plan: a change of what is declared, for one revision.";
    ReviewStarted "review-started" "An operator began a review of what policies grant.";
    ReviewSigned "review-signed" "An operator signed a review: what is granted stays, was narrowed, or was removed.";
    ConsoleLinkCreated "console-link-created" "An operator made a link that lets one browser in to the console.";
    SessionBegan "session-began" "A link was used, and a session of the console is about to begin.";
    SessionRefused "session-refused" "Links that were none, were used or too old were refused: counted, at most one such event a minute.";
    SessionEnded "session-ended" "A session of the console came to its end.";
    Summary "summary" "Many facts of one kind were counted, at most one such event a minute and reason.";
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EventKind {
    type Err = UnknownEventKind;

    fn from_str(text: &str) -> Result<Self, UnknownEventKind> {
        let kind = Self::ALL.iter().find(|kind| kind.as_str() == text);
        kind.copied().ok_or_else(|| UnknownEventKind(text.chars().take(80).collect()))
    }
}

impl serde::Serialize for EventKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for EventKind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Something that happened, before it has its place in the log.
///
/// No secret belongs in any field: the log is made to be read by others.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// When.
    pub at: Timestamp,
    /// Who did it: a SPIFFE ID, `operator:uid:1000`, or `server`.
    pub actor: String,
    /// To what it happened: a SPIFFE ID, a node id, or `Kind/name`.
    pub subject: String,
    /// The serial of the certificate that was issued, if one was.
    pub serial: Option<Serial>,
    /// The digest of that certificate's to-be-signed bytes.
    pub tbs: Option<Sha256>,
    /// What else there is to say: JSON without fractions, kept beside the leaf and bound to it by a salted digest.
    pub details: serde_json::Value,
}

impl Event {
    /// An event without a certificate and without details.
    pub fn new(
        kind: EventKind,
        at: Timestamp,
        actor: impl Into<String>,
        subject: impl Into<String>,
    ) -> Self {
        let details = serde_json::Value::Object(serde_json::Map::new());
        let (actor, subject) = (actor.into(), subject.into());
        Self { kind, at, actor, subject, serial: None, tbs: None, details }
    }

    /// The same event with these details.
    #[must_use]
    pub fn with_details(self, details: serde_json::Value) -> Self {
        Self { details, ..self }
    }

    /// The same event about the certificate with this serial and these contents.
    #[must_use]
    pub fn with_certificate(self, serial: Serial, tbs: Sha256) -> Self {
        Self { serial: Some(serial), tbs: Some(tbs), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_kind_is_refused_and_every_known_one_round_trips() {
        for kind in EventKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        for text in ["", "svid_issued", "SVID-ISSUED", "svid-issued ", "anything"] {
            assert!(text.parse::<EventKind>().is_err(), "{text:?}");
        }
    }
}
