//! What a door asks of handshakes.

use std::fmt;
use std::str::FromStr;

/// Which key exchanges a service's door agrees to, at both ends. All of them are TLS 1.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsProfile {
    /// X25519MLKEM768, X25519 and P-256, in this order.
    #[default]
    Modern,
    /// These and P-384, for peers that know nothing else.
    Compatible,
    /// X25519MLKEM768 alone: what is recorded today cannot be read by a quantum computer later.
    PqOnly,
}

/// A text that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a TLS profile: expected `modern`, `compatible` or `pq-only`")]
pub struct UnknownTlsProfile(String);

impl TlsProfile {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Modern, Self::Compatible, Self::PqOnly];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Modern => "modern",
            Self::Compatible => "compatible",
            Self::PqOnly => "pq-only",
        }
    }

    /// Whether it is the usual one.
    pub fn is_usual(&self) -> bool {
        *self == Self::Modern
    }
}

impl fmt::Display for TlsProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TlsProfile {
    type Err = UnknownTlsProfile;

    fn from_str(text: &str) -> Result<Self, UnknownTlsProfile> {
        let unknown = || UnknownTlsProfile(text.chars().take(40).collect());
        Self::ALL.into_iter().find(|profile| profile.as_str() == text).ok_or_else(unknown)
    }
}

impl serde::Serialize for TlsProfile {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_read_as_it_is_written_and_no_other_word_is_one() {
        for profile in TlsProfile::ALL {
            assert_eq!(profile.as_str().parse(), Ok(profile));
        }
        for word in ["", "Modern", "pq", "pqOnly", "pq_only", "legacy", "modern "] {
            assert!(word.parse::<TlsProfile>().is_err(), "{word}");
        }
    }
}
