//! A key in a token that opens the key file: AES-256-GCM (CKM_AES_GCM), where the key never leaves the token.
//!
//! What is wrapped is a nonce of ours, and what the token made: ciphertext and tag. The note is the name of the key, for people:
//! which token is asked, and through which module, is said by who opens it, never by the file.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use countersign_identity::Entropy;
use countersign_seal::{KeyWrap, WrapMethod, WrapRefused};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use zeroize::Zeroizing;

use crate::module::{Trouble, Wish, answer, failed, names, one, with_session};
use crate::{PinFrom, TokenUri};

const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// AES-256.
const KEY_BYTES: u64 = 32;

/// A key in a token, as something that opens key files.
pub struct TokenWrap {
    uri: TokenUri,
    pin: PinFrom,
}

impl TokenWrap {
    /// The key that this names, in a token whose PIN comes from there. The token is reached when something is wrapped or opened, and
    /// not before.
    pub fn new(uri: TokenUri, pin: PinFrom) -> Self {
        Self { uri, pin }
    }

    /// Opens the key, and gives it to `act`. Blocks this thread, for no longer than one use of a module may take.
    fn with<T: Send + 'static>(
        &self,
        wish: Wish,
        act: impl Fn(&TokenUri, &Session, ObjectHandle) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, WrapRefused> {
        let used = with_session(self.uri.clone(), self.pin.clone(), wish, move |uri, session| {
            let key = match (one(&session, uri, ObjectClass::SECRET_KEY, KeyType::AES)?, wish) {
                (Some(key), _) => key,
                (None, Wish::FindOrMake) => make(&session, uri)?,
                (None, Wish::Find) => {
                    let (key, token) = (uri.object_named(), uri.token_named());
                    return Err(Trouble::Final(format!("token {token} holds no key {key} of AES")));
                }
            };
            act(uri, &session, key)
        });
        // On a thread of its own: who calls may be within a runtime, which must not be waited for from inside.
        let waited = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
                runtime.map(|runtime| runtime.block_on(used))
            });
            waiting.join()
        });
        let broken =
            |why: String| WrapRefused::Token(format!("the token cannot be waited for: {why}"));
        let waited = waited.map_err(|_panic| broken("it ended by a panic".to_owned()))?;
        let used = waited.map_err(|why| broken(why.to_string()))?;
        used.map_err(|trouble| WrapRefused::Token(trouble.into_text()))
    }
}

impl KeyWrap for TokenWrap {
    fn method(&self) -> WrapMethod {
        WrapMethod::Token
    }

    fn note(&self, _entropy: &dyn Entropy) -> Result<Vec<u8>, WrapRefused> {
        Ok(self.uri.name().as_bytes().to_vec())
    }

    fn wrap(
        &self,
        _note: &[u8],
        context: &[u8],
        key: &[u8],
        entropy: &dyn Entropy,
    ) -> Result<Vec<u8>, WrapRefused> {
        let mut nonce = [0; NONCE_BYTES];
        entropy.fill(&mut nonce)?;
        let (context, plain) = (context.to_vec(), Zeroizing::new(key.to_vec()));
        let sealed = self.with(Wish::FindOrMake, move |uri, session, key| {
            let sealed = encrypt(session, key, nonce, &context, &plain)
                .map_err(|error| cannot(uri, &error))?;
            // What is foreign is not believed: a key file that does not open is found when it is needed.
            let opened = decrypt(session, key, nonce, &context, &sealed).map(Zeroizing::new);
            let opened =
                opened.map_err(|error| failed("open again what was sealed by", uri, &error))?;
            let fits = sealed.len() == plain.len() + TAG_BYTES
                && verify_slices_are_equal(&opened, &plain).is_ok()
                && verify_slices_are_equal(&sealed[..plain.len()], &plain).is_err();
            fits.then_some(sealed).ok_or_else(|| {
                let (key, token) = (uri.object_named(), uri.token_named());
                Trouble::Final(format!(
                    "token {token} does not encrypt by key {key} what it says it does"
                ))
            })
        })?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    fn unwrap(
        &self,
        note: &[u8],
        context: &[u8],
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, WrapRefused> {
        let (nonce, sealed) =
            wrapped.split_first_chunk::<NONCE_BYTES>().ok_or(WrapRefused::Note)?;
        let named = String::from_utf8_lossy(note).escape_debug().to_string();
        let (nonce, context, sealed) = (*nonce, context.to_vec(), sealed.to_vec());
        self.with(Wish::Find, move |uri, session, key| {
            let opened = decrypt(session, key, nonce, &context, &sealed).map(Zeroizing::new);
            opened.map_err(|error| not_opened(uri, &named, &error))
        })
    }
}

impl fmt::Debug for TokenWrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenWrap")
    }
}

type Nonce = [u8; NONCE_BYTES];

fn encrypt(
    session: &Session,
    key: ObjectHandle,
    mut nonce: Nonce,
    context: &[u8],
    plain: &[u8],
) -> Result<Vec<u8>, Error> {
    let tag_bits = (8 * TAG_BYTES as u64).into();
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut nonce, context, tag_bits)?);
    session.encrypt(&mechanism, key, plain)
}

fn decrypt(
    session: &Session,
    key: ObjectHandle,
    mut nonce: Nonce,
    context: &[u8],
    sealed: &[u8],
) -> Result<Vec<u8>, Error> {
    let tag_bits = (8 * TAG_BYTES as u64).into();
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut nonce, context, tag_bits)?);
    session.decrypt(&mechanism, key, sealed)
}

/// Makes a key that never leaves the token.
fn make(session: &Session, uri: &TokenUri) -> Result<ObjectHandle, Trouble> {
    let fixed = vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::ValueLen(KEY_BYTES.into()),
    ];
    let made = session.generate_key(&Mechanism::AesKeyGen, &[fixed, names(uri)].concat());
    made.map_err(|error| match error {
        Error::Pkcs11(RvError::MechanismInvalid, _) => Trouble::Final(format!(
            "token {} does not make keys of AES (CKM_AES_KEY_GEN): make one by its own tools, and name that",
            uri.token_named()
        )),
        error => failed("make a key in", uri, &error),
    })
}

/// Why a token did not encrypt.
fn cannot(uri: &TokenUri, error: &Error) -> Trouble {
    let (key, token) = (uri.object_named(), uri.token_named());
    match error {
        Error::Pkcs11(RvError::MechanismInvalid, _) => Trouble::Final(format!(
            "token {token} does not encrypt by AES-GCM (CKM_AES_GCM): another kind of token is needed"
        )),
        Error::Pkcs11(RvError::KeyFunctionNotPermitted | RvError::KeyTypeInconsistent, _) => {
            Trouble::Final(format!("key {key} in token {token} may not encrypt (CKA_ENCRYPT)"))
        }
        error => failed("encrypt by", uri, error),
    }
}

/// Why a token did not open it. Which of another key and changed bytes it is cannot be told.
fn not_opened(uri: &TokenUri, named: &str, error: &Error) -> Trouble {
    match error {
        Error::Pkcs11(
            RvError::EncryptedDataInvalid
            | RvError::EncryptedDataLenRange
            | RvError::DataInvalid
            | RvError::DataLenRange
            | RvError::GeneralError
            | RvError::FunctionFailed,
            _,
        ) => Trouble::Final(format!(
            "key {} in token {} does not open it ({}): it was sealed by another key, then named `{named}`, or the file was changed",
            uri.object_named(),
            uri.token_named(),
            answer(error)
        )),
        error => failed("decrypt by", uri, error),
    }
}
