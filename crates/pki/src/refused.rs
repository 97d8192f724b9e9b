//! Why a certificate or a chain is not accepted.

use countersign_identity::Code;

/// A refusal: its stable code and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    /// The closed reason.
    pub code: Code,
    /// What was expected and what was found.
    pub why: String,
}

impl Refused {
    pub(crate) fn new(code: Code, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }
}
