//! Handshakes that were stored, as operators search and count them.

use std::str::FromStr;

use countersign_identity::{Code, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::HandshakeDirection;

/// Which handshakes. What is not said is not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HandshakeFilter {
    /// Dialled by this one: the name of a workload, or a SPIFFE ID; with a `*` at the end, any that begins so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// To this one, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// At the door of this service, or dialling it, or seen by this enforcement point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// With this outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Refused for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Code>,
    /// With this version of TLS, such as `1.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// With this group of the key exchange, such as `X25519MLKEM768`; as for the others, however it is capitalised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// With this cipher suite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
    /// At this time or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Counted together by what they have in common, as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<HandshakeBy>,
}

/// A text that is none of the words of a closed list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not known here: expected {1}")]
pub struct UnknownWord(String, &'static str);

/// How handshakes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The peer was admitted.
    Admitted,
    /// It was not.
    Refused,
}

impl FromStr for Outcome {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "admitted" => Ok(Self::Admitted),
            "refused" => Ok(Self::Refused),
            other => Err(UnknownWord(other.to_owned(), "`admitted` or `refused`")),
        }
    }
}

/// What handshakes that are counted together have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HandshakeBy {
    /// Who dialled whom.
    Pair,
    /// Whether the peer was admitted, or why not.
    Outcome,
    /// The version of TLS.
    Version,
    /// The group of the key exchange.
    Group,
    /// The cipher suite.
    Suite,
}

impl HandshakeBy {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Pair, Self::Outcome, Self::Version, Self::Group, Self::Suite];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Outcome => "outcome",
            Self::Version => "version",
            Self::Group => "group",
            Self::Suite => "suite",
        }
    }
}

impl FromStr for HandshakeBy {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let word = Self::ALL.into_iter().find(|by| by.as_str() == text);
        word.ok_or_else(|| {
            UnknownWord(text.to_owned(), "`pair`, `outcome`, `version`, `group` or `suite`")
        })
    }
}

/// Stored handshakes, newest first. Those that are alike and of one minute are one entry with a count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HandshakeHistory {
    /// From when on it was looked.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// Until when.
    #[schema(value_type = String)]
    pub until: Timestamp,
    /// Whether all that is stored of that time was looked through; when not, `since` is how far it came.
    pub whole: bool,
    /// The entries.
    pub handshakes: Vec<HandshakeCount>,
    /// How many entries there are in all.
    pub entries: usize,
    /// What they have in common, as it was asked for, the most frequent first.
    pub groups: Vec<HandshakeGroup>,
    /// Handshakes that this server did not store, because there were too many at once; since it started.
    pub dropped: u64,
}

/// Handshakes alike, of one minute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HandshakeCount {
    /// When the first was seen.
    #[schema(value_type = String)]
    pub first: Timestamp,
    /// When the last was seen.
    #[schema(value_type = String)]
    pub last: Timestamp,
    /// How many.
    pub count: u64,
    /// How long they took on average, in microseconds.
    pub micros: u64,
    /// Which enforcement point saw them.
    pub point: String,
    /// Whether it was dialled or dialling.
    pub direction: HandshakeDirection,
    /// Whose door it was, or which upstream.
    pub service: String,
    /// Who dialled; empty when it was not authenticated.
    pub from: String,
    /// Who was dialled; empty when it was not authenticated.
    pub to: String,
    /// The version of TLS; empty when none was agreed on, and so for the others.
    pub version: String,
    /// The group of the key exchange.
    pub group: String,
    /// The cipher suite.
    pub suite: String,
    /// Whether sessions were resumed.
    pub resumed: bool,
    /// Why they were refused; absent when they were admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub code: Option<Code>,
    /// Where the peer of one of them was.
    pub peer_address: String,
    /// The serial of the certificate that the peer of that one presented.
    pub peer_serial: String,
    /// What more is known of that one.
    pub detail: String,
}

/// Handshakes that have something in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HandshakeGroup {
    /// Who dialled, when counted by pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Who was dialled, when counted by pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What they have in common, otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Those that the accepting end told of.
    pub accepting: OutcomeCounts,
    /// Those that the dialling end told of: mostly the same ones, from their other end.
    pub dialling: OutcomeCounts,
    /// When the last was seen.
    #[schema(value_type = String)]
    pub last: Timestamp,
}

/// How many ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutcomeCounts {
    /// Admitted.
    pub admitted: u64,
    /// Refused.
    pub refused: u64,
}
