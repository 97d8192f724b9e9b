//! Roles: groups of workloads, so that a policy can speak of all of them at once.

use std::collections::{BTreeMap, BTreeSet};

use countersign_identity::{Name, Selector, SpiffeId, TrustDomain};
use serde::{Deserialize, Serialize};

use super::reader::{Fields, Problems};
use super::workload::SELECTORS_MAX;
use super::{Resource, Spec, WorkloadSpec};

/// How many workloads or SPIFFE IDs one role may list.
const LISTED_MAX: usize = 256;
/// How many workloads one role may hold, so that its record stays small enough to travel.
pub const ROLE_MEMBERS_MAX: usize = 5000;

/// A group of workloads: those that it lists, and those that are what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct RoleSpec {
    /// Workloads in it, by the names of their manifests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<super::schema::NameText>>")]
    pub workloads: Vec<Name>,
    /// SPIFFE IDs in it, also of other trust domains.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<super::schema::SpiffeIdText>>")]
    pub spiffe_ids: Vec<SpiffeId>,
    /// Every workload is in it that has all of these labels, and asks its processes for all of `selectors`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<super::schema::NameText>>")]
    pub labels: Vec<Name>,
    /// Every workload is in it that asks its processes for all of these, so that they are attested of each, and has all
    /// of `labels`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<String>>")]
    pub selectors: Vec<Selector>,
}

impl RoleSpec {
    /// Whether a workload is in it.
    fn holds(&self, name: &Name, id: &SpiffeId, spec: &WorkloadSpec) -> bool {
        let asks = !self.labels.is_empty() || !self.selectors.is_empty();
        let is_it = self.labels.iter().all(|label| spec.labels.contains(label))
            && self.selectors.iter().all(|selector| spec.selectors.contains(selector));
        self.workloads.contains(name) || self.spiffe_ids.contains(id) || (asks && is_it)
    }

    pub(super) fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Self> {
        if fields.optional_child("roles").is_some() {
            let message = "does not exist: no role is in another, so list in each the workloads that it holds";
            problems.add(&fields.place_of("roles"), message);
        }
        let workloads = fields.set("workloads", LISTED_MAX, problems);
        let spiffe_ids = fields.set("spiffeIds", LISTED_MAX, problems);
        let labels = fields.set("labels", SELECTORS_MAX, problems);
        let selectors = fields.set("selectors", SELECTORS_MAX, problems);
        let spec = Self {
            workloads: workloads?,
            spiffe_ids: spiffe_ids?,
            labels: labels?,
            selectors: selectors?,
        };
        if spec == Self::nobody() {
            let message =
                "holds nobody: list `workloads` or `spiffeIds`, or ask for `labels` or `selectors`";
            problems.add(&fields.place(), message);
        }
        if let Some(root) = spec.spiffe_ids.iter().find(|id| id.is_root()) {
            let message = format!("`{root}` names a trust domain, not a workload: add a path");
            problems.add(&fields.place_of("spiffeIds"), message);
        }
        Some(spec)
    }

    const fn nobody() -> Self {
        Self {
            workloads: Vec::new(),
            spiffe_ids: Vec::new(),
            labels: Vec::new(),
            selectors: Vec::new(),
        }
    }
}

/// What the store keeps of a role: what it asks for, and who is in it, so that whoever enforces need not know why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRecord {
    /// As it was declared.
    pub spec: RoleSpec,
    /// Who is in it, by the words that policies have for them: names of workloads, and SPIFFE IDs that no manifest names.
    pub members: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RoleRecordJson {
    spec: serde_json::Value,
    members: BTreeSet<String>,
}

impl RoleRecord {
    /// The same, of which only these members are told, and nothing of why they are in it.
    #[must_use]
    pub fn only(&self, told: impl Fn(&str) -> bool) -> Self {
        let members = self.members.iter().filter(|name| told(name)).cloned().collect();
        Self { spec: RoleSpec::nobody(), members }
    }

    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        let spec = serde_json::to_value(&self.spec).expect("texts and lists have a JSON form");
        let json = RoleRecordJson { spec, members: self.members.clone() };
        super::canonical(&serde_json::to_value(json).expect("texts and lists have a JSON form"))
    }

    /// Reads the record's value.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(value: &[u8]) -> Result<Self, BadRoleRecord> {
        let json: RoleRecordJson = serde_json::from_slice(value)?;
        let bad = |field: &'static str| move || BadRoleRecord::Spec(field);
        let list = |field: &'static str| match json.spec.get(field) {
            None => Ok(Vec::new()),
            Some(list) => {
                let texts = list.as_array().ok_or_else(bad(field))?.iter();
                texts.map(|text| text.as_str().ok_or_else(bad(field))).collect()
            }
        };
        Ok(Self {
            spec: RoleSpec {
                workloads: parsed("workloads", list("workloads")?)?,
                spiffe_ids: parsed("spiffeIds", list("spiffeIds")?)?,
                labels: parsed("labels", list("labels")?)?,
                selectors: parsed("selectors", list("selectors")?)?,
            },
            members: json.members,
        })
    }
}

fn parsed<T: std::str::FromStr>(
    field: &'static str,
    texts: Vec<&str>,
) -> Result<Vec<T>, BadRoleRecord> {
    let parsed = texts.into_iter().map(|text| text.parse().ok());
    parsed.collect::<Option<_>>().ok_or(BadRoleRecord::Spec(field))
}

/// Why bytes are not the record of a role.
#[derive(Debug, thiserror::Error)]
pub enum BadRoleRecord {
    /// Another form.
    #[error("the record of a role is not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// A field of what was declared.
    #[error("`spec.{0}` of the record of a role is not understood")]
    Spec(&'static str),
}

/// Who is in each of the roles among these resources, which are all that are declared.
pub fn roles<'a>(
    resources: &'a [Resource],
    domain: &TrustDomain,
) -> BTreeMap<&'a Name, RoleRecord> {
    let workloads: Vec<_> = resources
        .iter()
        .filter_map(|resource| match &resource.spec {
            Spec::Workload(spec) => {
                Some((&resource.name, spec.spiffe_id_in(&resource.name, domain), spec))
            }
            Spec::TrustDomain(_)
            | Spec::Authority(_)
            | Spec::Service(_)
            | Spec::Policy(_)
            | Spec::Role(_)
            | Spec::TlsProfile(_) => None,
        })
        .collect();
    let record = |resource: &'a Resource| {
        let Spec::Role(spec) = &resource.spec else { return None };
        let named = workloads.iter().filter(|(name, id, workload)| spec.holds(name, id, workload));
        let named = named.map(|(name, _, _)| name.to_string());
        // Whoever has a name is known by it.
        let nameless = |id: &&SpiffeId| workloads.iter().all(|(_, named, _)| named != *id);
        let foreign = spec.spiffe_ids.iter().filter(nameless).map(ToString::to_string);
        let members = named.chain(foreign).collect();
        Some((&resource.name, RoleRecord { spec: spec.clone(), members }))
    };
    resources.iter().filter_map(record).collect()
}
