//! By what a machine became a node.

use std::fmt;
use std::str::FromStr;

/// By what a machine proved itself when it became a node. The list is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeEvidence {
    /// It held a join token, which is good once.
    JoinToken,
    /// It held the key of a certificate that an authority for machines had issued.
    X509,
}

/// A text that is none of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is nothing by which a machine becomes a node: expected `join-token` or `x509`")]
pub struct UnknownNodeEvidence(String);

impl NodeEvidence {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JoinToken => "join-token",
            Self::X509 => "x509",
        }
    }
}

impl fmt::Display for NodeEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for NodeEvidence {
    type Err = UnknownNodeEvidence;

    fn from_str(text: &str) -> Result<Self, UnknownNodeEvidence> {
        match text {
            "join-token" => Ok(Self::JoinToken),
            "x509" => Ok(Self::X509),
            _ => Err(UnknownNodeEvidence(text.chars().take(40).collect())),
        }
    }
}

impl serde::Serialize for NodeEvidence {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for NodeEvidence {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written_and_no_others() {
        for evidence in [NodeEvidence::JoinToken, NodeEvidence::X509] {
            assert_eq!(evidence.to_string().parse(), Ok(evidence));
        }
        for bad in ["", "X509", "join_token", "token", "x509 "] {
            assert!(bad.parse::<NodeEvidence>().is_err(), "{bad}");
        }
    }
}
