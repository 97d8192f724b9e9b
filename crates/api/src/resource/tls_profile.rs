//! TLS profiles: what the doors of services agree to, and whom they take for somebody.

use std::fmt;
use std::str::FromStr;

use countersign_identity::{
    BadName, KeyId, Name, TlsGroup, TlsProfile, TlsSuite, TlsTerms, TlsVersion, TrustDomain,
};
use serde::Serialize;

use super::problem::shorten;
use super::reader::{Fields, Place, Problems, parse};
use super::text::Reason;
use super::tree::{Node, Tree};

/// How many items a list may have.
const LISTED_MAX: usize = 64;

/// Whether callers must show a certificate. They must.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClientCertificate {
    /// Without one there is no connection.
    #[default]
    Required,
}

/// A text that says something else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` cannot be had: whoever shows no certificate is nobody, whom no policy can let in, so write `required`"
)]
pub struct UnknownClientCertificate(String);

impl FromStr for ClientCertificate {
    type Err = UnknownClientCertificate;

    fn from_str(text: &str) -> Result<Self, UnknownClientCertificate> {
        match text {
            "required" => Ok(Self::Required),
            _ => Err(UnknownClientCertificate(shorten(text))),
        }
    }
}

impl Serialize for ClientCertificate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Required => serializer.serialize_str("required"),
        }
    }
}

/// What the doors of services agree to, and those who dial them offer; and whose certificates they take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct TlsProfileSpec {
    /// `"1.3"` (the default), and `"1.2"` for peers that know nothing else, which is weak.
    #[schemars(with = "Option<Vec<super::schema::TlsVersionText>>")]
    pub versions: Vec<TlsVersion>,
    /// Key exchanges; absent: `X25519MLKEM768`, `X25519` and `P-256`. Without the first of these it is weak.
    #[schemars(with = "Option<Vec<super::schema::TlsGroupText>>")]
    pub groups: Vec<TlsGroup>,
    /// Cipher suites, by their names in TLS 1.3; with 1.2 each stands for those that seal records alike. Absent: all three.
    #[schemars(with = "Option<Vec<super::schema::TlsSuiteText>>")]
    pub suites: Vec<TlsSuite>,
    /// `required`: callers must show a certificate. There is no other rule.
    #[schemars(with = "Option<super::schema::ClientCertificateText>")]
    pub client_certificate: ClientCertificate,
    /// The trust domains whose identities are taken; absent: all of which there is a bundle.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<super::schema::TrustDomainText>>")]
    pub trust_domains: Vec<TrustDomain>,
    /// The roots to one of which a certificate must lead, by key id; absent: every one in the bundle.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<String>>")]
    pub roots: Vec<KeyId>,
    /// `true` where one of these is weak, and only there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(with = "Option<bool>")]
    pub weak: bool,
    /// Why it is as it is; needed where it is weak.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(min = 1, max = 500))]
    pub reason: Option<Reason>,
}

impl TlsProfileSpec {
    /// What handshakes may agree on.
    pub fn terms(&self) -> TlsTerms {
        TlsTerms::new(&self.versions, &self.groups, &self.suites).expect("it was read so")
    }

    pub(super) fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let versions = some(fields, "versions", &[TlsVersion::V13], problems);
        let modern = [TlsGroup::X25519Mlkem768, TlsGroup::X25519, TlsGroup::P256];
        let groups = some(fields, "groups", &modern, problems);
        let suites = some(fields, "suites", TlsSuite::ALL, problems);
        let client_certificate = fields.optional("clientCertificate", problems);
        let trust_domains = some(fields, "trustDomains", &[], problems);
        let roots = some(fields, "roots", &[], problems);
        let weak = fields.switch("weak", problems);
        let reason = fields.optional::<Reason>("reason", problems);
        let spec = Self {
            versions: versions?,
            groups: groups?,
            suites: suites?,
            client_certificate: client_certificate?.unwrap_or_default(),
            trust_domains: trust_domains?,
            roots: roots?,
            weak: weak?.unwrap_or(false),
            reason: reason?,
        };
        if let Err(why) = TlsTerms::new(&spec.versions, &spec.groups, &spec.suites) {
            problems.add(&fields.place_of("groups"), why.to_string());
            return None;
        }
        spec.refuse_unmarked(fields, problems);
        Some(spec)
    }

    /// What is weak in it must be marked, and nothing else may be: a mark that stands there already would hide what becomes
    /// weak later.
    fn refuse_unmarked(&self, fields: &Fields<'_>, problems: &mut Problems) {
        let weaknesses = self.weaknesses();
        if self.weak && weaknesses.is_empty() {
            let message = "marks nothing that is weak: remove it";
            problems.add(&fields.place_of("weak"), message);
        }
        if self.weak && self.reason.is_none() {
            let message = "is missing: `weak: true` needs a sentence that says why";
            problems.add(&fields.place_of("reason"), message);
        }
        for (field, why) in weaknesses.into_iter().filter(|_| !self.weak) {
            let message =
                format!("is weak, since {why}: change it, or write `weak: true` and a `reason`");
            problems.add(&fields.place_of(field), message);
        }
    }

    fn weaknesses(&self) -> Vec<(&'static str, &'static str)> {
        let mut weaknesses = Vec::new();
        if self.versions.contains(&TlsVersion::V12) {
            let why = "TLS 1.2 shows certificates to whoever listens, and what is recorded of it can be read by a quantum computer later";
            weaknesses.push(("versions", why));
        }
        if !self.groups.contains(&TlsGroup::X25519Mlkem768) {
            let why = "without `X25519MLKEM768` what is recorded today can be read by a quantum computer later";
            weaknesses.push(("groups", why));
        }
        weaknesses
    }
}

/// A list that is not empty where it is written; these where it is not.
fn some<T>(
    fields: &mut Fields<'_>,
    key: &'static str,
    usual: &[T],
    problems: &mut Problems,
) -> Option<Vec<T>>
where
    T: FromStr<Err: fmt::Display> + PartialEq + Clone + fmt::Display,
{
    if !fields.is_there(key) {
        fields.optional_child(key);
        return Some(usual.to_vec());
    }
    let listed = fields.set(key, LISTED_MAX, problems)?;
    if listed.is_empty() {
        problems.add(&fields.place_of(key), "is empty: name at least one, or leave it out");
        return None;
    }
    Some(listed)
}

/// Which profile a service has: one of the three that need no manifest, or a manifest's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsChoice {
    /// Its name.
    pub name: TlsChoiceName,
    /// What the manifest of that name says; the server writes it into the record of each service that names it, so that whoever
    /// has the service has its profile. `None` in manifests, and for the three.
    pub spec: Option<Box<TlsProfileSpec>>,
}

/// The name of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsChoiceName {
    /// One of the three that need no manifest.
    Known(TlsProfile),
    /// A manifest's.
    Manifest(Name),
}

impl Default for TlsChoiceName {
    fn default() -> Self {
        Self::Known(TlsProfile::default())
    }
}

/// A text that names no profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a TLS profile: expected `modern`, `compatible`, `pq-only` or the name of a TlsProfile manifest ({why})"
)]
pub struct UnknownTlsChoice {
    text: String,
    why: BadName,
}

impl FromStr for TlsChoiceName {
    type Err = UnknownTlsChoice;

    fn from_str(text: &str) -> Result<Self, UnknownTlsChoice> {
        if let Ok(profile) = text.parse() {
            return Ok(Self::Known(profile));
        }
        let unknown = |why| UnknownTlsChoice { text: shorten(text), why };
        text.parse().map(Self::Manifest).map_err(unknown)
    }
}

impl fmt::Display for TlsChoiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(profile) => profile.fmt(f),
            Self::Manifest(name) => name.fmt(f),
        }
    }
}

impl TlsChoice {
    /// What handshakes may agree on; `None` where a manifest says so, and what it says is not known.
    pub fn terms(&self) -> Option<TlsTerms> {
        match (&self.name, &self.spec) {
            (TlsChoiceName::Known(profile), _) => Some(TlsTerms::of(*profile)),
            (TlsChoiceName::Manifest(_), Some(spec)) => Some(spec.terms()),
            (TlsChoiceName::Manifest(_), None) => None,
        }
    }

    pub(super) fn is_usual(&self) -> bool {
        *self == Self::default()
    }

    /// As records have it.
    pub(super) fn record_json(&self) -> Option<serde_json::Value> {
        let spec = self.spec.as_ref()?;
        Some(serde_json::json!({ "name": self.name.to_string(), "spec": spec }))
    }

    /// A name; in records also a name and what the manifest says.
    pub(super) fn read(tree: &Tree, place: &Place, problems: &mut Problems) -> Option<Self> {
        if !problems.is_of_record() || !matches!(tree.node, Node::Map(_)) {
            let name = parse(tree, place, problems)?;
            return Some(Self { name, spec: None });
        }
        let mut fields = Fields::open(tree, &place.path, problems)?;
        let name = fields.required("name", problems);
        let spec = fields.required_child("spec", problems).and_then(|(tree, path)| {
            let mut fields = Fields::open(tree, &path, problems)?;
            let spec = TlsProfileSpec::read(&mut fields, problems);
            fields.close(problems);
            spec
        });
        fields.close(problems);
        Some(Self { name: name?, spec: Some(Box::new(spec?)) })
    }
}

impl Serialize for TlsChoice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.name)
    }
}
