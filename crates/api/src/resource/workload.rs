//! Workloads: who there is, and what a process must show to be one.

use countersign_identity::{Lifetime, Name, Selector, SpiffeId, TrustDomain};
use countersign_pki::{DnsName, KeyKind};
use serde::Serialize;

use super::reader::{Fields, Problems};
use super::text::Hint;

/// How many selectors, DNS names or node labels one workload may name.
pub const SELECTORS_MAX: usize = 16;

/// The longest SPIFFE ID of a workload: shorter than the standard's 2048 bytes, so that every event about it
/// fits in a leaf of the audit log.
pub const WORKLOAD_ID_BYTES_MAX: usize = 512;

/// A SPIFFE ID and the attested facts that a process must have to be it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct WorkloadSpec {
    /// Its SPIFFE ID; absent: `spiffe://TRUST-DOMAIN/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<super::schema::SpiffeIdText>")]
    pub spiffe_id: Option<SpiffeId>,
    /// What a process must all be; at least one.
    #[schemars(with = "super::schema::SelectorTexts")]
    pub selectors: Vec<Selector>,
    /// How long its SVIDs live; absent: what the trust domain says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<super::schema::LifetimeText>")]
    pub lifetime: Option<Lifetime>,
    /// The kind of its keys: `ecdsa-p256` (the default), `ecdsa-p384`, `ed25519`, or, only for clients that know nothing
    /// else, `rsa-2048` or `rsa-3072`.
    #[schemars(with = "Option<super::schema::KeyTypeText>")]
    pub key_type: KeyKind,
    /// DNS names to put in its certificates, for clients that know no SPIFFE. Nothing is decided by them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<String>>")]
    pub dns_names: Vec<DnsName>,
    /// Labels that a node must all have to run it; none: any node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<super::schema::NameText>>")]
    pub nodes: Vec<Name>,
    /// Words that roles and policies can ask for: `principal.labels.contains("pci")`. A process cannot choose them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<super::schema::NameText>>")]
    pub labels: Vec<Name>,
    /// A hint for programs that get several SVIDs.
    #[serde(skip_serializing_if = "is_empty")]
    #[schemars(with = "Option<String>")]
    pub hint: Hint,
    /// Whether its processes get revocation lists in the `crl` fields of the Workload API; `false` by default, since
    /// clients differ in what a list that is missing or old does to them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(with = "Option<bool>")]
    pub crl: bool,
}

fn is_empty(hint: &Hint) -> bool {
    hint.as_str().is_empty()
}

impl WorkloadSpec {
    /// The SPIFFE ID, spelled out.
    pub fn spiffe_id_in(&self, name: &Name, domain: &TrustDomain) -> SpiffeId {
        self.spiffe_id.clone().unwrap_or_else(|| {
            domain.with_path(&format!("/{name}")).expect("a name is a path segment")
        })
    }

    pub(super) fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let spiffe_id = fields.optional::<SpiffeId>("spiffeId", problems);
        let selectors = fields.set("selectors", SELECTORS_MAX, problems);
        let lifetime = fields.optional("lifetime", problems);
        let key_type = fields.optional("keyType", problems);
        let dns_names = fields.set("dnsNames", SELECTORS_MAX, problems);
        let nodes = fields.set("nodes", SELECTORS_MAX, problems);
        let labels = fields.set("labels", SELECTORS_MAX, problems);
        let hint = fields.optional("hint", problems);
        let crl = fields.switch("crl", problems);
        if selectors.as_ref().is_some_and(Vec::is_empty) {
            let message = "needs at least one selector, or no process could be it: write `[launch:NAME]` or `[unix:uid:1000]`";
            problems.add(&fields.place_of("selectors"), message);
        }
        if let Some(Some(id)) = &spiffe_id
            && id.is_root()
        {
            let message = format!("`{id}` names the trust domain: add a path, `{id}/NAME`");
            problems.add(&fields.place_of("spiffeId"), message);
        }
        if let Some(Some(id)) = &spiffe_id
            && WORKLOAD_ID_BYTES_MAX < id.as_str().len()
        {
            let bytes = id.as_str().len();
            let message = format!(
                "has {bytes} bytes: at most {WORKLOAD_ID_BYTES_MAX} are allowed, so shorten its path"
            );
            problems.add(&fields.place_of("spiffeId"), message);
        }
        Some(Self {
            spiffe_id: spiffe_id?,
            selectors: selectors?,
            lifetime: lifetime?,
            key_type: key_type?.unwrap_or(KeyKind::P256),
            dns_names: dns_names?,
            nodes: nodes?,
            labels: labels?,
            hint: hint?.unwrap_or_default(),
            crl: crl?.unwrap_or(false),
        })
    }
}
