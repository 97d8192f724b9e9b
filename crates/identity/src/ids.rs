//! Binary identifiers: serials, keys, nodes, digests.

use std::fmt;
use std::str::FromStr;

use crate::{Entropy, EntropyLost, Timestamp, hex};

/// Why a text is not one of the binary identifiers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}: expected {expected}")]
pub struct BadId {
    what: &'static str,
    text: String,
    expected: String,
}

macro_rules! binary_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                let bad = |expected| {
                    let text = text.chars().take(80).collect();
                    BadId { what: $what, text, expected }
                };
                let bytes = hex::decode(text).ok_or_else(|| {
                    let digits = $bytes * 2;
                    bad(format!("{digits} lower-case hexadecimal digits without separators"))
                })?;
                // Of all these, only a serial may have the right digits and be none.
                Self::checked(bytes).ok_or_else(|| bad(SERIAL_DIGITS.to_owned()))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

const SERIAL_DIGITS: &str =
    "a first digit from 0 to 7, and one that is not 0: no certificate has any other serial";

macro_rules! any_bytes {
    ($name:ident, $bytes:literal) => {
        impl $name {
            /// Takes any bytes of the right length.
            pub const fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            const fn checked(bytes: [u8; $bytes]) -> Option<Self> {
                Some(Self(bytes))
            }
        }
    };
}

binary_id! {
    /// A certificate's serial number: 16 bytes whose first bit is 0, so that the DER INTEGER never
    /// needs a leading zero byte. The first half is the time of issue in microseconds, so that rows
    /// are appended; the second half is random (64 bits, RFC 5280 4.1.2.2 and CA/B practice).
    Serial, 16, "serial"
}
binary_id! {
    /// SHA-256 of a SubjectPublicKeyInfo in DER: the name of a key, and so of an authority.
    KeyId, 32, "key id"
}
binary_id! {
    /// The name of a node: 16 random bytes, given at its first attestation.
    NodeId, 16, "node id"
}
binary_id! {
    /// The opaque 8 bytes that an SVID carries to say through which node it was issued.
    NodeTag, 8, "node tag"
}
binary_id! {
    /// A SHA-256 digest.
    Sha256, 32, "SHA-256 digest"
}

any_bytes!(KeyId, 32);
any_bytes!(NodeId, 16);
any_bytes!(NodeTag, 8);
any_bytes!(Sha256, 32);

impl Serial {
    /// Makes the serial of a certificate issued at `now`.
    ///
    /// # Errors
    /// When the source of randomness fails.
    pub fn draw(now: Timestamp, entropy: &dyn Entropy) -> Result<Self, EntropyLost> {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes[8..])?;
        bytes[..8].copy_from_slice(&now.micros().max(1).to_be_bytes());
        // A set second bit keeps DER from dropping leading zero bytes, so that every tool shows all 32 digits;
        // as a time it lies 146,000 years away.
        bytes[0] |= 0x40;
        Ok(Self(bytes))
    }

    /// The moment for which it was drawn. Whoever made it up chose it, so it only tells where to look.
    pub fn drawn_for(&self) -> Timestamp {
        let [first, rest @ ..] = self.0.first_chunk::<8>().expect("16 bytes begin with 8");
        let mut micros = [first & 0x3f; 8];
        micros[1..].copy_from_slice(rest);
        Timestamp::from_micros(i64::from_be_bytes(micros))
    }

    /// Takes 16 bytes; `None` when the first bit is set or all are zero.
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        Self::checked(bytes)
    }

    /// Reads the content octets of a DER INTEGER; `None` when it is not one of our serials.
    pub fn from_integer(content: &[u8]) -> Option<Self> {
        let bytes: [u8; 16] = content.try_into().ok()?;
        // DER forbids a leading zero byte that the sign does not ask for (X.690, 8.3.2).
        if bytes[0] == 0 && bytes[1] & 0x80 == 0 {
            return None;
        }
        Self::checked(bytes)
    }

    fn checked(bytes: [u8; 16]) -> Option<Self> {
        (bytes[0] & 0x80 == 0 && bytes != [0; 16]).then_some(Self(bytes))
    }
}

impl NodeId {
    /// Draws a new name.
    ///
    /// # Errors
    /// When the source of randomness fails.
    pub fn draw(entropy: &dyn Entropy) -> Result<Self, EntropyLost> {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes)?;
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededEntropy;

    #[test]
    fn serials_of_later_moments_sort_later() {
        let entropy = SeededEntropy::new(1);
        let early = Serial::draw(Timestamp::from_micros(1_000_000), &entropy).unwrap();
        let late = Serial::draw(Timestamp::from_micros(1_000_001), &entropy).unwrap();
        assert!(early < late);
    }

    #[test]
    fn serials_tell_their_moment() {
        let moment = Timestamp::from_micros(1_795_262_400_123_456);
        let serial = Serial::draw(moment, &SeededEntropy::new(1)).unwrap();
        assert_eq!(serial.drawn_for(), moment);
    }

    #[test]
    fn serial_text_is_lower_hex_and_round_trips() {
        let serial = Serial::from_bytes([0x0a; 16]).unwrap();
        assert_eq!(serial.to_string(), "0a".repeat(16));
        assert_eq!(serial.to_string().parse(), Ok(serial));
        assert!("0A".repeat(16).parse::<Serial>().is_err());
        assert!("0a".repeat(15).parse::<Serial>().is_err());
        assert!("8a".repeat(16).parse::<Serial>().is_err(), "first bit must be 0");
    }

    #[test]
    fn what_is_no_serial_is_told_by_what_is_wrong_with_it() {
        let says = |text: &str| text.parse::<Serial>().unwrap_err().to_string();
        for digits in ["00".repeat(16), "8a".repeat(16)] {
            let said = says(&digits);
            let expected =
                format!("`{digits}` is not a serial: expected a first digit from 0 to 7");
            assert!(said.starts_with(&expected), "{said}");
        }
        let said = says(&"0a".repeat(15));
        assert!(said.contains("expected 32 lower-case hexadecimal digits"), "{said}");
    }
}
