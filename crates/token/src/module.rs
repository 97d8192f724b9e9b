//! Modules: each is loaded and initialised once in a process, as PKCS#11 wants it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use crate::bounded::{Bounded, Silence};
use crate::{PinFrom, TokenUri};

/// The curve P-256, as the parameters of a key (an OBJECT IDENTIFIER).
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// A point on it, uncompressed.
const POINT_BYTES: usize = 65;
/// The head of the OCTET STRING around a point.
const POINT_HEAD: [u8; 2] = [0x04, 65];

/// PINs that are remembered as refused, for each module.
const REFUSED_MAX: usize = 64;

/// How long one use of a module may take, with those before it. A token that is reached over a network answers within seconds,
/// and after some more when its other half has to take over.
const USE_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a token did not do what it should, as the end of a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is away, or forgot us. Worth a second try with a module that looks anew.
    Lost(String),
    /// Trying again changes nothing.
    Final(String),
}

/// The modules of this process. Calls into one are made one after the other: what a module does when two threads log in to one
/// token differs too much.
static MODULES: Mutex<BTreeMap<PathBuf, Arc<Bounded<Module>>>> = Mutex::new(BTreeMap::new());

/// What this process knows of a module and its tokens.
#[derive(Default)]
struct Module {
    loaded: Option<Pkcs11>,
    /// PINs that tokens refused. They lock themselves after a few of those, so none is tried twice.
    refused: Vec<(String, Zeroizing<String>)>,
}

/// A key in a token, ready for use.
pub(crate) struct Opened {
    session: Session,
    private: ObjectHandle,
    /// The point of the public half.
    pub(crate) point: Vec<u8>,
}

/// What to do with a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It must be there.
    Find,
    /// It is made if it is not there.
    FindOrMake,
}

/// Opens a key, and gives it to `act`. A token that went away and came back is found again.
///
/// Takes no longer than [`USE_TIMEOUT`], whatever the module does. What was asked for may still happen after that.
pub(crate) async fn with_key<T: Send + 'static>(
    uri: TokenUri,
    pin: PinFrom,
    wish: Wish,
    act: impl Fn(&TokenUri, &Opened) -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    with_session(uri, pin, wish, move |uri, session| act(uri, &Opened::of(session, uri, wish)?))
        .await
}

/// The same with the token of a key, before the key is looked for.
pub(crate) async fn with_session<T: Send + 'static>(
    uri: TokenUri,
    pin: PinFrom,
    wish: Wish,
    act: impl Fn(&TokenUri, Session) -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    let module = {
        let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        let module = modules.entry(uri.module.clone());
        Arc::clone(module.or_insert_with(|| Arc::new(Bounded::new(Module::default()))))
    };
    let (token, shown) = (uri.token_named(), uri.module.display().to_string());
    let used = module.run(USE_TIMEOUT, move |module| module.with_session(&uri, &pin, wish, act));
    used.await.unwrap_or_else(|silence| Err(Trouble::Lost(silent(&token, &shown, &silence))))
}

fn silent(token: &str, module: &str, silence: &Silence) -> String {
    match silence {
        Silence::Late => {
            format!("token {token} did not answer within {USE_TIMEOUT:?}: `{module}` hangs")
        }
        Silence::Hangs(busy) => format!(
            "token {token} does not answer: `{module}` has been busy with one call for {} s, and is asked again only when that \
             ends; a new start of this program begins it anew",
            busy.as_secs()
        ),
        Silence::Broken(why) => format!("token {token} cannot be asked by `{module}`: {why}"),
    }
}

impl Trouble {
    /// The sentence.
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Lost(text) | Self::Final(text) => text,
        }
    }
}

impl Opened {
    fn of(session: Session, uri: &TokenUri, wish: Wish) -> Result<Self, Trouble> {
        let (private, point) = match (find(&session, uri)?, wish) {
            (Some(found), _) => found,
            (None, Wish::FindOrMake) => make(&session, uri)?,
            (None, Wish::Find) => {
                let (key, token) = (uri.object_named(), uri.token_named());
                let why = format!("token {token} holds no key {key} on P-256");
                return Err(Trouble::Final(why));
            }
        };
        Ok(Self { session, private, point })
    }

    /// The two numbers of an ECDSA signature over a digest.
    pub(crate) fn sign(&self, uri: &TokenUri, digest: &[u8]) -> Result<Vec<u8>, Trouble> {
        let signed = self.session.sign(&Mechanism::Ecdsa, self.private, digest);
        signed.map_err(|error| match error {
            Error::Pkcs11(RvError::MechanismInvalid, _) => Trouble::Final(format!(
                "token {} does not sign by ECDSA (CKM_ECDSA): another kind of token is needed",
                uri.token_named()
            )),
            Error::Pkcs11(RvError::KeyFunctionNotPermitted | RvError::KeyTypeInconsistent, _) => {
                let (key, token) = (uri.object_named(), uri.token_named());
                Trouble::Final(format!("key {key} in token {token} may not sign (CKA_SIGN)"))
            }
            error => failed("sign with", uri, &error),
        })
    }
}

impl Module {
    fn with_session<T>(
        &mut self,
        uri: &TokenUri,
        pin: &PinFrom,
        wish: Wish,
        act: impl Fn(&TokenUri, Session) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let is_known = self.loaded.is_some();
        let tried = self.open(uri, pin, wish).and_then(|session| act(uri, session));
        match tried {
            // Some modules look for tokens only when they are initialised.
            Err(Trouble::Lost(_)) if is_known => {
                self.forget();
                self.open(uri, pin, wish).and_then(|session| act(uri, session))
            }
            tried => tried,
        }
    }

    fn open(&mut self, uri: &TokenUri, pin: &PinFrom, wish: Wish) -> Result<Session, Trouble> {
        let module = self.begun(uri)?;
        let slot = slot(&module, uri)?;
        let session = match wish {
            Wish::Find => module.open_ro_session(slot),
            Wish::FindOrMake => module.open_rw_session(slot),
        };
        let session = session.map_err(|error| failed("open a session with", uri, &error))?;
        self.log_in(&session, uri, pin)?;
        Ok(session)
    }

    /// Loads and initialises it, if that was not done.
    fn begun(&mut self, uri: &TokenUri) -> Result<Pkcs11, Trouble> {
        if let Some(module) = &self.loaded {
            return Ok(module.clone());
        }
        let path: &Path = &uri.module;
        let shown = path.display();
        let module = Pkcs11::new(path).map_err(|error| {
            Trouble::Final(format!("`{shown}` cannot be loaded as a PKCS#11 module: {error}"))
        })?;
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        match module.initialize(arguments) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => {
                let token = uri.token_named();
                return Err(Trouble::Lost(format!(
                    "token {token} is not there: `{shown}` cannot be initialised ({})",
                    answer(&error)
                )));
            }
        }
        self.loaded = Some(module.clone());
        Ok(module)
    }

    /// Ends it, so that the next use begins it anew.
    fn forget(&mut self) {
        let Some(module) = self.loaded.take() else { return };
        // One that does not even end is begun anew all the same, and says then what is wrong.
        let _ended = module.finalize();
    }

    fn log_in(&mut self, session: &Session, uri: &TokenUri, from: &PinFrom) -> Result<(), Trouble> {
        let token = uri.token_named();
        let pin = from
            .read(uri)
            .map_err(|why| Trouble::Final(format!("token {token} stays closed: {why}")))?;
        let refused = &mut self.refused;
        let is_refused = |(of, was): &(String, Zeroizing<String>)| {
            *of == token && verify_slices_are_equal(was.as_bytes(), pin.as_bytes()).is_ok()
        };
        if refused.iter().any(is_refused) {
            let why = format!(
                "token {token} refused the PIN before, and is not asked again with the same: give another, or start anew"
            );
            return Err(Trouble::Final(why));
        }
        match session.login(UserType::User, Some(&AuthPin::new(pin.as_str().into()))) {
            Ok(()) => {
                // Another PIN may be the right one again, once one was.
                refused.retain(|(of, _)| *of != token);
                Ok(())
            }
            Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(Error::Pkcs11(
                RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
                _,
            )) => {
                refused.truncate(REFUSED_MAX - 1);
                refused.insert(0, (token.clone(), pin));
                let why =
                    format!("token {token} refuses the PIN: after a few more it locks itself");
                Err(Trouble::Final(why))
            }
            Err(Error::Pkcs11(RvError::PinLocked, _)) => {
                let why = format!("token {token} is locked: its PIN was wrong too often");
                Err(Trouble::Final(why))
            }
            Err(error) => Err(failed("log in to", uri, &error)),
        }
    }
}

/// Where the token is that the name means.
fn slot(module: &Pkcs11, uri: &TokenUri) -> Result<Slot, Trouble> {
    let slots = module.get_slots_with_token();
    let slots = slots.map_err(|error| failed("look for", uri, &error))?;
    let found = slots.into_iter().filter(|slot| {
        module.get_token_info(*slot).is_ok_and(|info| {
            uri.token.as_ref().is_none_or(|label| *label == info.label())
                && uri.serial.as_ref().is_none_or(|serial| *serial == info.serial_number())
        })
    });
    let (token, module) = (uri.token_named(), uri.module.display());
    match found.collect::<Vec<_>>().as_slice() {
        [one] => Ok(*one),
        [] => Err(Trouble::Lost(format!(
            "token {token} is not there, by what `{module}` says: plug it in, or start what it belongs to"
        ))),
        // The PIN would be shown to whichever comes first, and anybody can give a token a label.
        several => Err(Trouble::Final(format!(
            "`{module}` has {} tokens {token}: name one of them by `serial` as well",
            several.len()
        ))),
    }
}

/// What names the key, besides its class.
pub(crate) fn names(uri: &TokenUri) -> Vec<Attribute> {
    let label = uri.object.as_ref().map(|label| Attribute::Label(label.clone().into_bytes()));
    let id = uri.id.as_ref().map(|id| Attribute::Id(id.clone()));
    [label, id].into_iter().flatten().collect()
}

/// The one object of this class and kind that the name means.
pub(crate) fn one(
    session: &Session,
    uri: &TokenUri,
    class: ObjectClass,
    kind: KeyType,
) -> Result<Option<ObjectHandle>, Trouble> {
    let template = [vec![Attribute::Class(class), Attribute::KeyType(kind)], names(uri)].concat();
    let found = session.find_objects(&template);
    match found.map_err(|error| failed("look into", uri, &error))?.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        several => Err(Trouble::Final(format!(
            "token {} holds {} keys {}: name one of them by `id` as well",
            uri.token_named(),
            several.len(),
            uri.object_named()
        ))),
    }
}

/// The private key and the point of its public half.
fn find(session: &Session, uri: &TokenUri) -> Result<Option<(ObjectHandle, Vec<u8>)>, Trouble> {
    let one = |class| one(session, uri, class, KeyType::EC);
    let Some(private) = one(ObjectClass::PRIVATE_KEY)? else { return Ok(None) };
    let public = one(ObjectClass::PUBLIC_KEY)?.ok_or_else(|| {
        let (key, token) = (uri.object_named(), uri.token_named());
        Trouble::Final(format!(
            "token {token} holds the private half of key {key} and not the public one: put it beside"
        ))
    })?;
    Ok(Some((private, point(session, public, uri)?)))
}

fn point(session: &Session, public: ObjectHandle, uri: &TokenUri) -> Result<Vec<u8>, Trouble> {
    let wanted = [AttributeType::EcParams, AttributeType::EcPoint];
    let attributes = session.get_attributes(public, &wanted);
    let attributes = attributes.map_err(|error| failed("look into", uri, &error))?;
    let mut found = (None, None);
    for attribute in attributes {
        match attribute {
            Attribute::EcParams(params) => found.0 = Some(params),
            Attribute::EcPoint(point) => found.1 = Some(point),
            _ => {}
        }
    }
    let curve = found.0.is_some_and(|params| params == P256);
    // Most give it inside an OCTET STRING, as the standard says, and some do not.
    let point = found.1.filter(|_point| curve).map(|point| match point.strip_prefix(&POINT_HEAD) {
        Some(inner) if inner.len() == POINT_BYTES => inner.to_vec(),
        Some(_) | None => point,
    });
    point.filter(|point| point.len() == POINT_BYTES).ok_or_else(|| {
        let (key, token) = (uri.object_named(), uri.token_named());
        Trouble::Final(format!("key {key} in token {token} is not on P-256"))
    })
}

/// Makes a key that never leaves the token.
fn make(session: &Session, uri: &TokenUri) -> Result<(ObjectHandle, Vec<u8>), Trouble> {
    let public = [
        vec![
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Verify(true),
            Attribute::EcParams(P256.to_vec()),
        ],
        names(uri),
    ];
    let private = [
        vec![
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
        ],
        names(uri),
    ];
    let made =
        session.generate_key_pair(&Mechanism::EccKeyPairGen, &public.concat(), &private.concat());
    let (public, private) = made.map_err(|error| match error {
        Error::Pkcs11(RvError::MechanismInvalid, _) => Trouble::Final(format!(
            "token {} does not make keys on curves (CKM_EC_KEY_PAIR_GEN): make one by its own tools, and name that",
            uri.token_named()
        )),
        error => failed("make a key in", uri, &error),
    })?;
    Ok((private, point(session, public, uri)?))
}

pub(crate) fn failed(what: &str, uri: &TokenUri, error: &Error) -> Trouble {
    let (token, answer) = (uri.token_named(), answer(error));
    Trouble::Lost(format!("could not {what} token {token} ({answer})"))
}

/// What a module answered, by the name that its standard gives that.
pub(crate) fn answer(error: &Error) -> String {
    match error {
        Error::Pkcs11(value, function) => format!("{function:?}: {value:?}"),
        error => error.to_string(),
    }
}
