//! Bounded texts of manifests.

use std::fmt;
use std::str::FromStr;

use super::problem::shorten;

/// The longest Cedar text of one policy.
pub const CEDAR_BYTES_MAX: usize = 64 * 1024;

/// Why a text does not fit where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadText {
    /// Nothing, where something must be.
    #[error("is empty: write {0}")]
    Empty(&'static str),
    /// Too much.
    #[error("has {bytes} bytes: at most {max} are allowed")]
    Long {
        /// How much.
        bytes: usize,
        /// How much is allowed.
        max: usize,
    },
    /// A byte that cannot be there.
    #[error("`{text}` holds {what}: remove it")]
    Character {
        /// The beginning of the text.
        text: String,
        /// What was found.
        what: &'static str,
    },
    /// Not a name of an environment variable.
    #[error("`{0}` is not a variable's name: expected A-Z, a-z, 0-9 and `_`, no digit first")]
    EnvName(String),
    /// A variable that `up` sets itself.
    #[error("`{0}` is set by `up` itself: choose another name")]
    ReservedEnvName(String),
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

text! {
    #[derive(Default)]
    /// What a workload's program may use to choose among its SVIDs. At most 256 bytes; may be empty.
    Hint
}
text! {
    /// One word of a command line. At most 4096 bytes, no NUL.
    Argument
}
text! {
    /// The name of an environment variable.
    EnvName
}
text! {
    /// The value of an environment variable. At most 32 KiB, no NUL.
    EnvValue
}
text! {
    /// Why something is as it is, for people. At most 500 bytes, one line.
    Reason
}
text! {
    /// Cedar policies as text; whether they compile, the crate `policy` says. At most 64 KiB.
    CedarText
}

fn bounded(text: &str, max: usize) -> Result<(), BadText> {
    if max < text.len() {
        return Err(BadText::Long { bytes: text.len(), max });
    }
    if text.contains('\0') {
        return Err(BadText::Character { text: shorten(text), what: "a NUL byte" });
    }
    Ok(())
}

impl FromStr for Hint {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        bounded(text, 256)?;
        if text.chars().any(char::is_control) {
            let what = "a control character";
            return Err(BadText::Character { text: shorten(text), what });
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for Reason {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        bounded(text, 500)?;
        if text.chars().any(char::is_control) {
            let what = "a control character";
            return Err(BadText::Character { text: shorten(text), what });
        }
        if text.trim().is_empty() {
            return Err(BadText::Empty("a sentence, or leave the field out"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for Argument {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        bounded(text, 4096)?;
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for EnvName {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let digit_first = text.starts_with(|c: char| c.is_ascii_digit());
        if text.is_empty() || digit_first || 128 < text.len() || !text.bytes().all(allowed) {
            return Err(BadText::EnvName(shorten(text)));
        }
        if text == "LISTEN" || text.starts_with("UPSTREAM_") {
            return Err(BadText::ReservedEnvName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for EnvValue {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        bounded(text, 32 * 1024)?;
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for CedarText {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        bounded(text, CEDAR_BYTES_MAX)?;
        if text.trim().is_empty() {
            return Err(BadText::Empty("Cedar policies, such as `permit (principal == …);`"));
        }
        Ok(Self(text.to_owned()))
    }
}
