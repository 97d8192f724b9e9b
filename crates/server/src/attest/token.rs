//! Join tokens: what a new node proves itself with, once.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_identity::{Code, Entropy, EntropyLost, Sha256};
use zeroize::Zeroizing;

use crate::digest::sha256;
use crate::refusal::Refused;

/// Random bytes in a token.
const TOKEN_BYTES: usize = 32;
/// The longest text that is even looked at.
const TEXT_BYTES_MAX: usize = 128;

/// A join token's text, shown once to the operator who asked for it. Only its digest is kept.
pub(crate) struct JoinToken(Zeroizing<String>);

impl JoinToken {
    /// Draws a new token.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub(crate) fn draw(entropy: &dyn Entropy) -> Result<Self, EntropyLost> {
        let mut bytes = Zeroizing::new([0; TOKEN_BYTES]);
        entropy.fill(&mut *bytes)?;
        Ok(Self(Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes))))
    }

    /// The text, for the operator.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// The digest, for the store.
    pub(crate) fn digest(&self) -> Sha256 {
        sha256(self.0.as_bytes())
    }
}

/// The digest by which a presented token is looked up.
///
/// The text itself is never compared: whoever measures time learns about a digest which they cannot steer.
///
/// # Errors
/// When the text cannot be a token.
pub(crate) fn presented(text: &str) -> Result<Sha256, Refused> {
    if TEXT_BYTES_MAX < text.len() {
        return Err(Refused::new(
            Code::NotUnderstood,
            format!("a join token of {} bytes is over the limit of {TEXT_BYTES_MAX}", text.len()),
        ));
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() == TOKEN_BYTES);
    match bytes {
        Some(bytes) => {
            drop(Zeroizing::new(bytes));
            Ok(sha256(text.as_bytes()))
        }
        None => Err(Refused::new(Code::UnknownToken, "the join token is not known")),
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinToken")
    }
}

#[cfg(test)]
mod tests {
    use countersign_identity::SystemEntropy;

    use super::*;

    #[test]
    fn drawn_token_is_found_by_its_digest_and_does_not_print() {
        let token = JoinToken::draw(&SystemEntropy).unwrap();
        assert_eq!(presented(token.reveal()).unwrap(), token.digest());
        assert_eq!(format!("{token:?}"), "JoinToken");
    }

    #[test]
    fn what_cannot_be_a_token_is_refused_before_any_look_up() {
        for text in ["", "short", "*", "%00", &"A".repeat(44)] {
            assert_eq!(presented(text).unwrap_err().code, Code::UnknownToken, "{text}");
        }
        assert_eq!(presented(&"A".repeat(4096)).unwrap_err().code, Code::NotUnderstood);
    }
}
