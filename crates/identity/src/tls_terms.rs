//! What handshakes may agree on, in every detail.

use std::fmt;
use std::str::FromStr;

use crate::TlsProfile;

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2, which shows certificates to whoever listens and knows no key exchange that a quantum computer cannot undo.
    V12,
    /// 1.3.
    V13,
}

/// A key exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsGroup {
    /// The hybrid.
    X25519Mlkem768,
    /// Curve25519.
    X25519,
    /// NIST's curve of 256 bits.
    P256,
    /// NIST's curve of 384 bits.
    P384,
}

/// How records are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsSuite {
    /// AES with 128 bits.
    Aes128,
    /// AES with 256 bits.
    Aes256,
    /// ChaCha20.
    Chacha20,
}

/// A text that is none of the words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: expected one of {words}")]
pub struct UnknownTlsWord {
    text: String,
    what: &'static str,
    words: String,
}

macro_rules! words {
    ($name:ident, $what:literal, $($variant:ident = $word:literal),+) => {
        impl $name {
            /// All of them, best first.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }

            const fn bit(self) -> u8 {
                1 << self as u8
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownTlsWord;

            fn from_str(text: &str) -> Result<Self, UnknownTlsWord> {
                let unknown = || UnknownTlsWord {
                    text: text.chars().take(40).collect(),
                    what: $what,
                    words: Self::ALL.iter().map(|one| format!("`{one}`")).collect::<Vec<_>>().join(", "),
                };
                Self::ALL.iter().copied().find(|one| one.as_str() == text).ok_or_else(unknown)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

words!(TlsVersion, "a version of TLS that is spoken here", V13 = "1.3", V12 = "1.2");
words!(
    TlsGroup,
    "a key exchange that is known here",
    X25519Mlkem768 = "X25519MLKEM768",
    X25519 = "X25519",
    P256 = "P-256",
    P384 = "P-384"
);
words!(
    TlsSuite,
    "a cipher suite that is known here",
    Aes128 = "TLS_AES_128_GCM_SHA256",
    Aes256 = "TLS_AES_256_GCM_SHA384",
    Chacha20 = "TLS_CHACHA20_POLY1305_SHA256"
);

/// The versions, key exchanges and suites that a door agrees to, and those who dial it offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TlsTerms {
    versions: u8, // INVARIANT: at least one bit of `TlsVersion`
    groups: u8,   // INVARIANT: likewise of `TlsGroup`; with version 1.2 one that is not the hybrid
    suites: u8,   // INVARIANT: likewise of `TlsSuite`
}

/// Why there could be no handshake on such terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTerms {
    /// One of the lists is empty.
    #[error("is empty: name at least one, or leave it out")]
    Nothing,
    /// The hybrid key exchange is one of 1.3.
    #[error("holds nothing that TLS 1.2 could use: add `X25519` or `P-256`")]
    NoGroupOfV12,
}

impl TlsTerms {
    /// Those of the usual profile.
    pub const MODERN: Self = Self::of(TlsProfile::Modern);

    /// Everything that is known here: what asks a question of a door, and shows and learns nothing by it, offers this.
    pub const ANY: Self = {
        let TlsTerms { groups, suites, .. } = Self::of(TlsProfile::Compatible);
        Self { versions: TlsVersion::V12.bit() | TlsVersion::V13.bit(), groups, suites }
    };

    /// Those of a named profile.
    pub const fn of(profile: TlsProfile) -> Self {
        let hybrid = TlsGroup::X25519Mlkem768.bit();
        let modern = hybrid | TlsGroup::X25519.bit() | TlsGroup::P256.bit();
        let groups = match profile {
            TlsProfile::Modern => modern,
            TlsProfile::Compatible => modern | TlsGroup::P384.bit(),
            TlsProfile::PqOnly => hybrid,
        };
        let suites = TlsSuite::Aes128.bit() | TlsSuite::Aes256.bit() | TlsSuite::Chacha20.bit();
        Self { versions: TlsVersion::V13.bit(), groups, suites }
    }

    /// These.
    ///
    /// # Errors
    /// When no handshake could be made on them.
    pub fn new(
        versions: &[TlsVersion],
        groups: &[TlsGroup],
        suites: &[TlsSuite],
    ) -> Result<Self, NoTerms> {
        let terms = Self {
            versions: versions.iter().fold(0, |all, one| all | one.bit()),
            groups: groups.iter().fold(0, |all, one| all | one.bit()),
            suites: suites.iter().fold(0, |all, one| all | one.bit()),
        };
        if terms.versions == 0 || terms.groups == 0 || terms.suites == 0 {
            return Err(NoTerms::Nothing);
        }
        if terms.has_version(TlsVersion::V12) && terms.groups == TlsGroup::X25519Mlkem768.bit() {
            return Err(NoTerms::NoGroupOfV12);
        }
        Ok(terms)
    }

    /// Whether this version is among them.
    pub const fn has_version(self, version: TlsVersion) -> bool {
        self.versions & version.bit() != 0
    }

    /// Whether this key exchange is among them.
    pub const fn has_group(self, group: TlsGroup) -> bool {
        self.groups & group.bit() != 0
    }

    /// Whether this suite is among them; with TLS 1.2 it stands for those that seal records as it does.
    pub const fn has_suite(self, suite: TlsSuite) -> bool {
        self.suites & suite.bit() != 0
    }
}

impl From<TlsProfile> for TlsTerms {
    fn from(profile: TlsProfile) -> Self {
        Self::of(profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_read_as_it_is_written_and_no_other_is_one() {
        for group in TlsGroup::ALL {
            assert_eq!(group.as_str().parse(), Ok(*group));
        }
        let told = "secp192r1".parse::<TlsGroup>().unwrap_err().to_string();
        assert!(told.contains("`X25519MLKEM768`, `X25519`, `P-256`, `P-384`"), "{told}");
        for word in ["1.1", "1.0", "1", "TLSv1.3", "", "*"] {
            assert!(word.parse::<TlsVersion>().is_err(), "{word}");
        }
        assert!("TLS_RSA_WITH_AES_128_CBC_SHA".parse::<TlsSuite>().is_err());
    }

    #[test]
    fn terms_hold_what_they_were_made_of_and_never_nothing() {
        let suites = &[TlsSuite::Aes256];
        let terms = TlsTerms::new(&[TlsVersion::V13], &[TlsGroup::P384], suites).unwrap();
        assert!(terms.has_group(TlsGroup::P384) && !terms.has_group(TlsGroup::X25519));
        assert!(terms.has_version(TlsVersion::V13) && !terms.has_version(TlsVersion::V12));
        assert!(terms.has_suite(TlsSuite::Aes256) && !terms.has_suite(TlsSuite::Aes128));
        assert_eq!(TlsTerms::new(&[], TlsGroup::ALL, suites), Err(NoTerms::Nothing));
        assert_eq!(TlsTerms::new(TlsVersion::ALL, &[], suites), Err(NoTerms::Nothing));
        let hybrid = &[TlsGroup::X25519Mlkem768];
        assert_eq!(TlsTerms::new(TlsVersion::ALL, hybrid, suites), Err(NoTerms::NoGroupOfV12));
        assert_eq!(TlsTerms::new(TlsVersion::ALL, TlsGroup::ALL, TlsSuite::ALL), Ok(TlsTerms::ANY));
        for profile in TlsProfile::ALL {
            assert!(!TlsTerms::of(profile).has_version(TlsVersion::V12), "{profile}");
            assert!(TlsTerms::of(profile).has_group(TlsGroup::X25519Mlkem768), "{profile}");
        }
    }
}
