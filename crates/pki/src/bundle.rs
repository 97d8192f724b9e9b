//! Bundles: whose signatures count, for each trust domain (SPIFFE Trust Domain and Bundle, section 4).

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::{Code, KeyId, Timestamp, TrustDomain};
use serde_json::{Map, Value, json};

use crate::chain::split;
use crate::json::{self, BadJson};
use crate::{BadCertificate, Certificate, algorithm, pem};

/// The longest document that is read.
const BUNDLE_BYTES_MAX: usize = 256 * 1024;
/// How often to ask for a newer bundle, when it does not say (SPIFFE Federation, section 5).
const REFRESH_HINT: Duration = Duration::from_secs(300);
/// No hint of years may keep an old bundle in place.
const REFRESH_HINT_MAX: Duration = Duration::from_secs(31 * 86_400);
const USE_X509: &str = "x509-svid";
const SEQUENCE: &str = "spiffe_sequence";
const HINT: &str = "spiffe_refresh_hint";
/// Ours, and of no meaning to others: what the standard does not know is passed over (section 4.1).
const RETIRING: &str = "countersign_retiring";
const REISSUE_WITHIN: &str = "countersign_reissue_within_ms";
/// No bundle holds so many roots.
const RETIRING_MAX: usize = 64;

/// The authorities of one trust domain. The document itself does not say of which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The trust domain.
    pub domain: TrustDomain,
    /// Its roots.
    pub authorities: Vec<Certificate>,
    /// Grows with each change.
    pub sequence: u64,
    /// How long until a copy should be looked at again.
    pub refresh_hint: Duration,
    /// Roots that are trusted still and on their way out: what they vouch for is to be issued anew.
    pub retiring: Vec<KeyId>,
    /// The span over which that is to be spread, so that a fleet does not come at once.
    pub reissue_within: Duration,
}

/// The bundles that a verifier trusts, one a trust domain. Anchors are never pooled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundles(HashMap<TrustDomain, Bundle>);

/// Why a bundle is not taken. The one before it stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBundle {
    /// Over the bound.
    #[error("a bundle of {bytes} bytes is over the limit of {BUNDLE_BYTES_MAX}")]
    Long {
        /// How many.
        bytes: usize,
    },
    /// Not the JSON of a bundle.
    #[error("the bundle does not parse: {0}")]
    Malformed(String),
    /// One of its certificates.
    #[error("authority {position} of the bundle: {bad}")]
    Certificate {
        /// Which one, from 1.
        position: usize,
        /// What is wrong with it.
        bad: BadCertificate,
    },
    /// A PEM text that is none.
    #[error(transparent)]
    Pem(#[from] pem::BadPem),
    /// Two bundles for one trust domain.
    #[error("there are two bundles for trust domain `{0}`")]
    Twice(TrustDomain),
}

impl BadBundle {
    /// The stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::Long { .. } => Code::TooLarge,
            Self::Malformed(_) | Self::Certificate { .. } | Self::Pem(_) | Self::Twice(_) => {
                Code::NotUnderstood
            }
        }
    }
}

impl From<BadJson> for BadBundle {
    fn from(bad: BadJson) -> Self {
        Self::Malformed(bad.to_string())
    }
}

impl Bundle {
    /// A bundle of these authorities, with the usual refresh hint.
    pub fn new(domain: TrustDomain, authorities: Vec<Certificate>, sequence: u64) -> Self {
        let (refresh_hint, retiring) = (REFRESH_HINT, Vec::new());
        Self {
            domain,
            authorities,
            sequence,
            refresh_hint,
            retiring,
            reissue_within: Duration::ZERO,
        }
    }

    /// When the next of the authorities ends: from then on nobody is verified any more whom it vouches for. Once all have
    /// ended, when the last of them did.
    pub fn ends(&self, now: Timestamp) -> Option<Timestamp> {
        let ends = self.authorities.iter().map(|authority| authority.validity().not_after);
        ends.clone().filter(|end| now < *end).min().or(ends.max())
    }

    /// Reads the JSON document of this trust domain.
    ///
    /// Entries of another use, or of an unknown kind of key, are passed over, as the standard asks. A
    /// certificate that does not parse spoils the whole, so that no half of a bundle takes effect.
    ///
    /// # Errors
    /// When it is over 256 KiB, names a member twice, or breaks the form.
    pub fn parse_json(domain: TrustDomain, document: &[u8]) -> Result<Self, BadBundle> {
        if BUNDLE_BYTES_MAX < document.len() {
            return Err(BadBundle::Long { bytes: document.len() });
        }
        let malformed = |why: &str| BadBundle::Malformed(why.to_owned());
        let Value::Object(members) = json::parse(document)? else {
            return Err(malformed("a JSON object is expected"));
        };
        let Some(Value::Array(keys)) = members.get("keys") else {
            return Err(malformed("`keys` is missing or not a list"));
        };
        let mut authorities = Vec::new();
        for (position, key) in (1..).zip(keys) {
            authorities.extend(authority(position, key)?);
        }
        let sequence = number(&members, SEQUENCE)?.unwrap_or(0);
        let hint = number(&members, HINT)?.map_or(REFRESH_HINT, Duration::from_secs);
        let within =
            number(&members, REISSUE_WITHIN)?.map_or(Duration::ZERO, Duration::from_millis);
        Ok(Self {
            domain,
            authorities,
            sequence,
            refresh_hint: hint.min(REFRESH_HINT_MAX),
            retiring: retiring(&members)?,
            reissue_within: within.min(REFRESH_HINT_MAX),
        })
    }

    /// Reads a PEM text that holds the authorities and nothing else.
    ///
    /// # Errors
    /// When it holds no certificate, something else, or a broken one.
    pub fn from_pem(domain: TrustDomain, text: &str) -> Result<Self, BadBundle> {
        let ders = pem::decode_certificates(text)?;
        Ok(Self::new(domain, certificates(ders.iter().map(Vec::as_slice))?, 0))
    }

    /// Reads the authorities' DER, one after the other, as the Workload API gives them.
    ///
    /// # Errors
    /// When one does not parse, or they are over 256 KiB.
    pub fn from_concatenated(domain: TrustDomain, bytes: &[u8]) -> Result<Self, BadBundle> {
        if BUNDLE_BYTES_MAX < bytes.len() {
            return Err(BadBundle::Long { bytes: bytes.len() });
        }
        Ok(Self::new(domain, certificates(split(bytes))?, 0))
    }

    /// Writes the JSON document.
    pub fn to_json(&self) -> String {
        let keys: Vec<Value> = self.authorities.iter().map(jwk).collect();
        let mut document =
            json!({ "keys": keys, SEQUENCE: self.sequence, HINT: self.refresh_hint.as_secs() });
        if !self.retiring.is_empty() {
            let retiring: Vec<_> = self.retiring.iter().map(ToString::to_string).collect();
            document[RETIRING] = json!(retiring);
            document[REISSUE_WITHIN] =
                json!(u64::try_from(self.reissue_within.as_millis()).unwrap_or(u64::MAX));
        }
        document.to_string()
    }

    /// Writes the authorities as PEM.
    pub fn to_pem(&self) -> String {
        self.authorities.iter().map(|authority| pem::encode_certificate(authority.der())).collect()
    }

    /// The authorities' DER, one after the other, as the Workload API gives them.
    pub fn authorities_der_concat(&self) -> Vec<u8> {
        self.authorities.iter().flat_map(Certificate::der).copied().collect()
    }
}

impl Bundles {
    /// Takes the bundles that count from now on.
    ///
    /// # Errors
    /// When two are of one trust domain.
    pub fn new(bundles: Vec<Bundle>) -> Result<Self, BadBundle> {
        let mut by_domain = HashMap::with_capacity(bundles.len());
        for bundle in bundles {
            if let Some(before) = by_domain.insert(bundle.domain.clone(), bundle) {
                return Err(BadBundle::Twice(before.domain));
            }
        }
        Ok(Self(by_domain))
    }

    /// Only this bundle.
    pub fn of(bundle: Bundle) -> Self {
        Self(HashMap::from([(bundle.domain.clone(), bundle)]))
    }

    /// The bundle of exactly this trust domain.
    pub fn get(&self, domain: &TrustDomain) -> Option<&Bundle> {
        self.0.get(domain)
    }

    /// No bundle: every peer is refused.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether this authority's key is in the bundle of this trust domain.
    pub fn holds(&self, domain: &TrustDomain, anchor: &KeyId) -> bool {
        self.get(domain).is_some_and(|bundle| {
            bundle.authorities.iter().any(|authority| authority.key_id() == *anchor)
        })
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Bundle> {
        self.0.values()
    }
}

fn certificates<'a>(ders: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Certificate>, BadBundle> {
    (1..)
        .zip(ders)
        .map(|(position, der)| {
            Certificate::parse(der).map_err(|bad| BadBundle::Certificate { position, bad })
        })
        .collect()
}

fn number(members: &Map<String, Value>, name: &str) -> Result<Option<u64>, BadBundle> {
    match members.get(name) {
        None => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(BadBundle::Malformed(format!("`{name}` is not a whole number from 0"))),
        },
    }
}

/// The roots on their way out.
fn retiring(members: &Map<String, Value>) -> Result<Vec<KeyId>, BadBundle> {
    let malformed = |why: String| BadBundle::Malformed(format!("`{RETIRING}` {why}"));
    let values = match members.get(RETIRING) {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) if values.len() <= RETIRING_MAX => values,
        Some(_) => return Err(malformed(format!("is not a list of at most {RETIRING_MAX} keys"))),
    };
    let key = |value: &Value| {
        let text = value.as_str().ok_or_else(|| malformed("does not hold texts".to_owned()))?;
        text.parse().map_err(|bad| malformed(format!("holds no key id: {bad}")))
    };
    values.iter().map(key).collect()
}

/// The certificate of one entry; `None` for an entry that is to be passed over (section 4.2).
fn authority(position: usize, key: &Value) -> Result<Option<Certificate>, BadBundle> {
    let malformed = |why: &str| BadBundle::Malformed(format!("key {position}: {why}"));
    let Value::Object(key) = key else { return Err(malformed("a JSON object is expected")) };
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    if text("use") != Some(USE_X509) || !matches!(text("kty"), Some("EC" | "RSA" | "OKP")) {
        return Ok(None);
    }
    if key.contains_key("kid") {
        return Err(malformed("an entry for `x509-svid` has a `kid`, which it must not"));
    }
    // Only the first value counts, and an entry without any is passed over (X.509-SVID, 6.2).
    let first = match key.get("x5c") {
        None => return Ok(None),
        Some(Value::Array(values)) => values.first(),
        Some(_) => return Err(malformed("`x5c` is not a list")),
    };
    let Some(first) = first else { return Ok(None) };
    let der = first.as_str().and_then(|text| STANDARD.decode(text).ok());
    let der = der.ok_or_else(|| malformed("`x5c` does not hold base64"))?;
    let certificate =
        Certificate::parse(&der).map_err(|bad| BadBundle::Certificate { position, bad })?;
    // The key is the certificate's, whatever kind the entry names. One of an unknown kind verifies nothing, and
    // would be lost without a word when the bundle is written again.
    let known = algorithm::VerifyingKey::from_spki(certificate.spki()).is_ok();
    Ok(known.then_some(certificate))
}

fn jwk(authority: &Certificate) -> Value {
    let mut members = algorithm::jwk_members(authority.spki());
    members.insert("use".to_owned(), USE_X509.into());
    members.insert("x5c".to_owned(), json!([STANDARD.encode(authority.der())]));
    Value::Object(members)
}
