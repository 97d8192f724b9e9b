//! What opens a key-encryption key that does not lie open in its file.
//!
//! | bytes | what |
//! | --- | --- |
//! | 7 | `CSKEK` and two zero bytes |
//! | 1 | the version, 1 |
//! | 1 | the method: 1 for a passphrase, 2 for a token |
//! | 8 | the id of the key-encryption key |
//! | 2 | how long what follows is |
//! | any | what the method needs to open it: salt and cost, or the name of a token's key |
//! | any | the key-encryption key, encrypted and authenticated by the method, together with all that precedes |

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use countersign_identity::{Entropy, EntropyLost};
use zeroize::Zeroizing;

use crate::kek::KEY_BYTES;
use crate::{Kek, KekId};

const MAGIC: &[u8; 7] = b"CSKEK\0\0";
const VERSION: u8 = 1;
const METHOD_AT: usize = MAGIC.len() + 1;
const ID_AT: usize = METHOD_AT + 1;
const LENGTH_AT: usize = ID_AT + 8;
const NOTE_AT: usize = LENGTH_AT + 2;
/// The longest file that is read.
pub(crate) const WRAPPED_BYTES_MAX: usize = 4096;

/// How a key-encryption key is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WrapMethod {
    /// Under a key that a passphrase gives.
    Passphrase,
    /// By a key in a token or a service, which never leaves it.
    Token,
}

/// Something with a key of its own, which opens what was wrapped by it: a passphrase, a hardware token, a cloud service.
///
/// It may take its time, and block: callers keep it off threads that must not.
pub trait KeyWrap: fmt::Debug + Send + Sync {
    /// How it wraps.
    fn method(&self) -> WrapMethod;

    /// What it will need to open again what it wraps next, for all to read.
    ///
    /// # Errors
    /// When it is not reachable, or there is no randomness.
    fn note(&self, entropy: &dyn Entropy) -> Result<Vec<u8>, WrapRefused>;

    /// Encrypts and authenticates a key, together with `context`, as its note says.
    ///
    /// # Errors
    /// When it is not reachable, or there is no randomness.
    fn wrap(
        &self,
        note: &[u8],
        context: &[u8],
        key: &[u8],
        entropy: &dyn Entropy,
    ) -> Result<Vec<u8>, WrapRefused>;

    /// Opens what it wrapped.
    ///
    /// # Errors
    /// When it is not reachable, or what is given was not wrapped by it with this context.
    fn unwrap(
        &self,
        note: &[u8],
        context: &[u8],
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, WrapRefused>;
}

/// Why a key was not wrapped, or not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrapRefused {
    /// Another passphrase, or changed bytes: the two cannot be told apart.
    #[error("the passphrase does not open it: it is another one, or the file was changed")]
    Passphrase,
    /// Nothing that could be tried.
    #[error("the passphrase is empty")]
    EmptyPassphrase,
    /// A cost that nobody meant.
    #[error(
        "it asks for {mebibytes} MiB and {passes} passes over {lanes} lanes, which is over the limits: it was changed"
    )]
    Cost {
        /// Memory.
        mebibytes: u32,
        /// Passes.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// Not the note of the method.
    #[error("what it needs to be opened does not parse: it was changed")]
    Note,
    /// The token or service.
    #[error("{0}")]
    Token(String),
    /// What came out is no key, or another one.
    #[error("what was opened is not the key that the file names")]
    OtherKey,
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyLost),
    /// The machine has not enough memory.
    #[error("{mebibytes} MiB of memory are needed to open it")]
    Memory {
        /// How much.
        mebibytes: u32,
    },
}

impl WrapMethod {
    const fn number(self) -> u8 {
        match self {
            Self::Passphrase => 1,
            Self::Token => 2,
        }
    }

    /// How a person says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passphrase => "a passphrase",
            Self::Token => "a key in a token",
        }
    }
}

/// A wrapped key, taken apart.
pub(crate) struct Wrapped<'a> {
    pub(crate) method: WrapMethod,
    id: KekId,
    note: &'a [u8],
    context: &'a [u8],
    sealed: &'a [u8],
}

impl<'a> Wrapped<'a> {
    /// Takes it apart; nothing when it is something else, or of a version that is not known.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        let known = bytes.starts_with(MAGIC) && bytes.get(MAGIC.len()) == Some(&VERSION);
        if !known || bytes.len() < NOTE_AT {
            return None;
        }
        let methods = [WrapMethod::Passphrase, WrapMethod::Token];
        let method = methods.into_iter().find(|method| method.number() == bytes[METHOD_AT])?;
        let mut id = [0; 8];
        id.copy_from_slice(&bytes[ID_AT..LENGTH_AT]);
        let length = usize::from(u16::from_be_bytes([bytes[LENGTH_AT], bytes[LENGTH_AT + 1]]));
        let (context, sealed) = bytes.split_at_checked(NOTE_AT + length)?;
        let note = &context[NOTE_AT..];
        Some(Self { method, id: KekId::from_bytes(id), note, context, sealed })
    }

    /// Opens it.
    pub(crate) fn open(&self, by: &dyn KeyWrap) -> Result<Kek, WrapRefused> {
        let opened = by.unwrap(self.note, self.context, self.sealed)?;
        let kek = Kek::copied(&opened).ok_or(WrapRefused::OtherKey)?;
        if kek.id() == self.id { Ok(kek) } else { Err(WrapRefused::OtherKey) }
    }
}

/// Whether these are the bytes of a wrapped key, of whatever version.
pub(crate) fn is_wrapped(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Wraps a key.
pub(crate) fn wrap(
    kek: &Kek,
    by: &dyn KeyWrap,
    entropy: &dyn Entropy,
) -> Result<Vec<u8>, WrapRefused> {
    let note = by.note(entropy)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend([VERSION, by.method().number()]);
    bytes.extend_from_slice(kek.id().as_bytes());
    bytes.extend(u16::try_from(note.len()).map_err(|_long| WrapRefused::Note)?.to_be_bytes());
    bytes.extend_from_slice(&note);
    let sealed = by.wrap(&note, &bytes, kek.bytes(), entropy)?;
    bytes.extend_from_slice(&sealed);
    Ok(bytes)
}

/// AES-256-GCM under a key that is used for nothing else: nonce, ciphertext, tag.
pub(crate) fn encrypt(
    key: &[u8; KEY_BYTES],
    context: &[u8],
    plaintext: &[u8],
    entropy: &dyn Entropy,
) -> Result<Vec<u8>, EntropyLost> {
    let mut nonce = [0; NONCE_LEN];
    entropy.fill(&mut nonce)?;
    let mut sealed = nonce.to_vec();
    sealed.extend_from_slice(plaintext);
    let tag = cipher(key)
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(context),
            &mut sealed[NONCE_LEN..],
        )
        .expect("a key is within the cipher's bound");
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

/// Opens that; `None` when the tag does not fit.
pub(crate) fn decrypt(
    key: &[u8; KEY_BYTES],
    context: &[u8],
    sealed: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut plain = Zeroizing::new(ciphertext.to_vec());
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let length = cipher(key).open_in_place(nonce, Aad::from(context), &mut plain).ok()?.len();
    plain.truncate(length);
    Some(plain)
}

fn cipher(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("the key has the cipher's length"))
}
