//! What wraps keys may be foreign: a token, a service. Whatever it does, no key file comes of it that does not open, and nothing opens
//! as a key that is not the one that the file names.

use countersign_identity::{Entropy, SystemEntropy};
use countersign_seal::{KekFile, KekFileRefused, KeyWrap, WrapMethod, WrapRefused};
use zeroize::Zeroizing;

/// How it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Foreign {
    /// As it should, as far as this needs it: it "encrypts" by turning every bit.
    Right,
    /// It is away.
    Away,
    /// It opens everything, as another key.
    OtherKey,
    /// It opens everything, as less than a key.
    Short,
    /// It opens everything, as what it was given.
    Echo,
}

impl KeyWrap for Foreign {
    fn method(&self) -> WrapMethod {
        WrapMethod::Token
    }

    fn note(&self, _entropy: &dyn Entropy) -> Result<Vec<u8>, WrapRefused> {
        Ok(b"a key elsewhere".to_vec())
    }

    fn wrap(
        &self,
        _note: &[u8],
        _context: &[u8],
        key: &[u8],
        _entropy: &dyn Entropy,
    ) -> Result<Vec<u8>, WrapRefused> {
        match self {
            Self::Away => Err(WrapRefused::Token("it is away".to_owned())),
            _ => Ok(key.iter().map(|byte| !byte).collect()),
        }
    }

    fn unwrap(
        &self,
        note: &[u8],
        _context: &[u8],
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, WrapRefused> {
        assert_eq!(note, b"a key elsewhere");
        let opened = match self {
            Self::Right => wrapped.iter().map(|byte| !byte).collect(),
            Self::Away => return Err(WrapRefused::Token("it is away".to_owned())),
            Self::OtherKey => vec![7; 32],
            Self::Short => vec![7; 31],
            Self::Echo => wrapped.to_vec(),
        };
        Ok(Zeroizing::new(opened))
    }
}

#[test]
fn nothing_opens_as_a_key_but_the_key_that_the_file_names() {
    let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap();
    let path = folder.path().join("kek");
    let made = KekFile::create_by(&path, Some(&Foreign::Right), &SystemEntropy).unwrap();
    assert_eq!(KekFile::open_by(&path, Some(&Foreign::Right)).unwrap().id(), made.id());
    for wrong in [Foreign::OtherKey, Foreign::Short, Foreign::Echo] {
        let refused = KekFile::open_by(&path, Some(&wrong)).unwrap_err();
        let is_other = matches!(&refused, KekFileRefused::Wrap { why: WrapRefused::OtherKey, .. });
        assert!(is_other, "{wrong:?}: {refused}");
    }
    let refused = KekFile::open_by(&path, Some(&Foreign::Away)).unwrap_err().to_string();
    assert!(refused.ends_with("kek`: it is away"), "{refused}");
    let refused = KekFile::open(&path).unwrap_err().to_string();
    assert!(refused.contains("is sealed by a key in a token, and none was given"), "{refused}");
}

#[test]
fn no_key_file_is_left_of_what_could_not_be_wrapped() {
    let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap();
    let path = folder.path().join("kek");
    let refused = KekFile::create_by(&path, Some(&Foreign::Away), &SystemEntropy).unwrap_err();
    assert!(refused.to_string().ends_with("it is away"), "{refused}");
    assert!(!path.exists());
}
