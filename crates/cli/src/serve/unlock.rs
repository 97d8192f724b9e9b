//! What opens the keys: the passphrase of the key file, and the PIN of a token.

use std::io::IsTerminal as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use countersign_server::{KekFile, KeyVault, KeyWrap, Passphrase, WrapMethod};
use zeroize::Zeroizing;

use crate::exit::Failure;
use crate::find;
use crate::output;
use crate::settings::{Field, Resolved};

/// Where the passphrase is.
pub(super) const PASSPHRASE_FILE: Field = Field::one(
    "passphrase-file",
    "FILE",
    "The file of the passphrase by which the key file is sealed [default: COUNTERSIGN_PASSPHRASE, or asked for at a terminal]",
);
/// Where the PIN is.
pub(super) const PIN_FILE: Field = Field::one(
    "pin-file",
    "FILE",
    "The file of the PIN of the token that holds the root's key, or the one that seals the key file [default: COUNTERSIGN_PIN, or \
     `pin-source` of its URI]",
);
/// Which key in a token.
pub(super) const SEAL: Field = Field::one(
    "seal",
    "WHERE",
    "The key in a token that the key file is sealed by, if it is, `pkcs11:token=…;object=…?module-path=…`",
);

/// What an operator gave that may open a key file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Openers {
    pub(crate) passphrase_file: Option<PathBuf>,
    pub(crate) seal: Option<SealKey>,
    pub(crate) pin_file: Option<PathBuf>,
}

impl Openers {
    pub(super) fn resolve(resolved: &mut Resolved) -> Self {
        let passphrase_file = resolved.optional("passphrase-file");
        Self {
            passphrase_file,
            // The environment may say how the file was made, which is no key.
            seal: resolved.optional::<Seal>("seal").and_then(Seal::token),
            pin_file: resolved.optional("pin-file"),
        }
    }
}

/// The URI of a key in a token by which a key file is sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SealKey(String);

impl SealKey {
    /// It holds no PIN.
    pub(super) fn uri(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for SealKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        check_token_uri(text).map(Self)
    }
}

/// How a key file is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    File,
    Passphrase,
    Token(SealKey),
}

impl Seal {
    /// The key in a token by which it is sealed, if it is by one.
    pub(crate) fn token(self) -> Option<SealKey> {
        match self {
            Self::Token(key) => Some(key),
            Self::File | Self::Passphrase => None,
        }
    }
}

impl std::str::FromStr for Seal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "file" => Ok(Self::File),
            "passphrase" => Ok(Self::Passphrase),
            token if token.starts_with("pkcs11:") => token.parse().map(Self::Token),
            other => {
                let other = output::printable(other);
                Err(format!(
                    "`{other}` is no way to keep the key file: write `file`, `passphrase` or `pkcs11:…`"
                ))
            }
        }
    }
}

/// What opens this key file; nothing when it lies open, or nobody has said.
pub(crate) fn unlock(kek: &Path, openers: Openers) -> Result<Option<Arc<dyn KeyWrap>>> {
    unlock_or_ask(kek, openers, ask)
}

/// The same, by what was given alone: nobody is asked.
pub(crate) fn unlock_unasked(kek: &Path, openers: Openers) -> Result<Option<Arc<dyn KeyWrap>>> {
    unlock_or_ask(kek, openers, |_prompt| Ok(None))
}

fn unlock_or_ask(
    kek: &Path,
    openers: Openers,
    ask: impl FnOnce(&str) -> Result<Option<Zeroizing<String>>>,
) -> Result<Option<Arc<dyn KeyWrap>>> {
    // What is wrong with the file is told by who needs it.
    match KekFile::method(kek) {
        Ok(Some(WrapMethod::Passphrase)) => {
            let text = match given(openers.passphrase_file)? {
                Some(text) => Some(text),
                None => ask("passphrase of the key file: ")?,
            };
            text.map(passphrase).transpose()
        }
        // Never what the file names: who can write it could have any module loaded.
        Ok(Some(WrapMethod::Token)) => {
            openers.seal.map(|key| token(&key, openers.pin_file)).transpose()
        }
        Ok(None) | Err(_) => Ok(None),
    }
}

/// The key in a token by which a key file is sealed.
#[cfg(feature = "pkcs11")]
pub(super) fn token(key: &SealKey, pin_file: Option<PathBuf>) -> Result<Arc<dyn KeyWrap>> {
    let uri = key.0.parse::<countersign_token::TokenUri>();
    let uri = uri.map_err(|bad| Failure::not_understood(bad.to_string()))?;
    Ok(Arc::new(countersign_token::TokenWrap::new(uri, pin(pin_file)?)))
}

/// This program was built without what reaches tokens.
#[cfg(not(feature = "pkcs11"))]
pub(super) fn token(key: &SealKey, _pin_file: Option<PathBuf>) -> Result<Arc<dyn KeyWrap>> {
    let why = format!("`{}` is not reached: this program was built without PKCS#11", key.0);
    Err(Failure::not_understood(why).into())
}

#[cfg(feature = "pkcs11")]
fn pin(file: Option<PathBuf>) -> Result<countersign_token::PinFrom> {
    let text = find::variable("COUNTERSIGN_PIN")?.map(Zeroizing::new);
    Ok(countersign_token::PinFrom { file, text })
}

/// A passphrase for a new key file.
pub(super) fn new_passphrase(file: Option<PathBuf>) -> Result<Arc<dyn KeyWrap>> {
    if let Some(text) = given(file)? {
        return passphrase(text);
    }
    let Some(text) = ask("a passphrase for the key file: ")? else {
        let why = "a passphrase is needed to seal the key file: give `--passphrase-file` or COUNTERSIGN_PASSPHRASE where nobody \
                   can be asked";
        return Err(Failure::not_understood(why).into());
    };
    if ask("the same again: ")?.as_ref() != Some(&text) {
        return Err(Failure::not_understood("the two passphrases differ").into());
    }
    passphrase(text)
}

fn passphrase(text: Zeroizing<String>) -> Result<Arc<dyn KeyWrap>> {
    let passphrase = Passphrase::new(text);
    Ok(Arc::new(passphrase.map_err(|empty| Failure::not_understood(empty.to_string()))?))
}

/// What a file or the environment says.
fn given(file: Option<PathBuf>) -> Result<Option<Zeroizing<String>>> {
    let Some(file) = file else {
        return Ok(find::variable("COUNTERSIGN_PASSPHRASE")?.map(Zeroizing::new));
    };
    let shown = file.display().to_string();
    let cannot = |error: &std::io::Error| {
        let why = crate::manifest::plain(error);
        Failure::not_understood(format!("`{shown}` cannot be read: {why}"))
    };
    let mode = std::fs::metadata(&file).map_err(|error| cannot(&error))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        let why = format!(
            "`{shown}` has mode {mode:03o}, which lets others read the passphrase; run `chmod 600` on it"
        );
        return Err(Failure::not_understood(why).into());
    }
    let text = std::fs::read_to_string(&file).map_err(|error| cannot(&error))?;
    Ok(Some(Zeroizing::new(text)))
}

/// Asks whoever sits there; nobody when it is no terminal.
fn ask(prompt: &str) -> Result<Option<Zeroizing<String>>> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(None);
    }
    Ok(Some(Zeroizing::new(rpassword::prompt_password(prompt)?)))
}

/// The tokens that this program reaches.
#[cfg(feature = "pkcs11")]
pub(super) fn vault(pin_file: Option<PathBuf>) -> Result<Arc<dyn KeyVault>> {
    Ok(Arc::new(countersign_token::Tokens::new(pin(pin_file)?)))
}

/// This program was built without what reaches tokens.
#[cfg(not(feature = "pkcs11"))]
pub(super) fn vault(_pin_file: Option<PathBuf>) -> Result<Arc<dyn KeyVault>> {
    Ok(Arc::new(countersign_server::NoVault))
}

/// Whether this names a key in a token that this program could reach.
///
/// # Errors
/// With what is wrong with the name.
pub(crate) fn check_token_uri(text: &str) -> Result<String, String> {
    #[cfg(feature = "pkcs11")]
    if let Err(bad) = text.parse::<countersign_token::TokenUri>() {
        return Err(bad.to_string());
    }
    #[cfg(not(feature = "pkcs11"))]
    if !text.is_empty() {
        return Err("this program was built without PKCS#11".to_owned());
    }
    Ok(text.to_owned())
}
