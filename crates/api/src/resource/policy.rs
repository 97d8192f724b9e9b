//! Policies: Cedar text. Only the crate `policy` understands it; here it is a bounded text with a name.

use std::collections::BTreeSet;

use countersign_identity::{Mode, Timestamp};
use serde::{Deserialize, Serialize};

use super::reader::{Fields, Problems};
use super::service::ServiceSpec;
use super::text::{CedarText, Reason};

/// Cedar text that says who may do what to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct PolicySpec {
    /// The policies themselves. A manifest may give `cedarFile` instead, a file beside it.
    #[schemars(with = "String")]
    pub cedar: CedarText,
    /// `enforce` (the default), or `observe`: decided, counted and reported, while what its scope admits is let pass.
    #[serde(skip_serializing_if = "Mode::is_usual")]
    #[schemars(with = "Option<super::schema::ModeText>")]
    pub mode: Mode,
    /// From when on it is as if it were not there, `2027-01-31T00:00:00Z`. Without it, it has no end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub until: Option<Timestamp>,
    /// Why it is there, for whoever reads it later.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(min = 1, max = 500))]
    pub reason: Option<Reason>,
}

impl PolicySpec {
    pub(super) fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let mode = fields.optional("mode", problems);
        let until = fields.optional("until", problems);
        let reason = fields.optional("reason", problems);
        let cedar = fields.required("cedar", problems)?;
        Some(Self { cedar, mode: mode?.unwrap_or_default(), until: until?, reason: reason? })
    }
}

/// What the store keeps of a policy and agents get: its text, and whom it speaks of, so that an agent can
/// cut the slice of its callers without knowing Cedar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRecord {
    /// The text.
    pub cedar: CedarText,
    /// How far it goes.
    pub mode: Mode,
    /// When it ends.
    pub until: Option<Timestamp>,
    /// Why it is there.
    pub reason: Option<Reason>,
    /// One entry for each policy in the text.
    pub scopes: Vec<PolicyScope>,
}

/// Whom one policy speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyScope {
    /// The workloads that call.
    pub principals: ScopeNames,
    /// The services that are called.
    pub resources: ScopeNames,
    /// Every workload that the policy mentions anywhere, also in its conditions.
    #[serde(default)]
    pub workloads: BTreeSet<String>,
    /// Every service that the policy mentions anywhere.
    #[serde(default)]
    pub services: BTreeSet<String>,
    /// Every role that the policy mentions anywhere.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub roles: BTreeSet<String>,
    /// Whether the policy reads labels.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub labels: bool,
    /// Every data set that the policy mentions anywhere.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub data_sets: BTreeSet<String>,
    /// Whether the policy reads how data is classified.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub classifications: bool,
}

impl PolicyScope {
    /// Whether what it says can depend on which data is touched.
    pub fn speaks_of_data(&self) -> bool {
        self.classifications || !self.data_sets.is_empty()
    }

    /// Whether it can apply to what this principal does. `in_role` says whether that is in a role.
    pub fn admits(&self, principal: &str, in_role: impl Fn(&str) -> bool) -> bool {
        match &self.principals {
            ScopeNames::Any => true,
            ScopeNames::Only(names) => names.contains(principal),
            ScopeNames::Role(role) => in_role(role),
            // Of resources alone. Whatever it meant, it must not be left out.
            ScopeNames::Dataset(_) => true,
        }
    }

    /// Whether it can apply to what is done to this service.
    pub fn is_about(&self, name: &str, service: &ServiceSpec) -> bool {
        match &self.resources {
            ScopeNames::Any => true,
            ScopeNames::Only(names) => names.contains(name),
            ScopeNames::Dataset(data) => {
                service.data_sets.iter().any(|one| one.name.as_str() == data)
            }
            // Of principals alone. Whatever it meant, it must not be left out.
            ScopeNames::Role(_) => true,
        }
    }
}

/// The names that a scope holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ScopeNames {
    /// Everybody.
    Any,
    /// These.
    Only(BTreeSet<String>),
    /// Those in this role; of principals alone.
    Role(String),
    /// What touches this data set; of resources alone.
    Dataset(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PolicyRecordJson {
    cedar: String,
    #[serde(default, skip_serializing_if = "Mode::is_usual")]
    mode: Mode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    scopes: Vec<PolicyScope>,
}

impl PolicyRecord {
    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        let json = PolicyRecordJson {
            cedar: self.cedar.as_str().to_owned(),
            mode: self.mode,
            until: self.until,
            reason: self.reason.as_ref().map(ToString::to_string),
            scopes: self.scopes.clone(),
        };
        super::canonical(&serde_json::to_value(json).expect("texts and lists have a JSON form"))
    }

    /// Reads the record's value.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(value: &[u8]) -> Result<Self, BadPolicyRecord> {
        let json: PolicyRecordJson = serde_json::from_slice(value)?;
        let PolicyRecordJson { mode, until, scopes, .. } = json;
        let reason = json.reason.map(|text| text.parse()).transpose()?;
        Ok(Self { cedar: json.cedar.parse()?, mode, until, reason, scopes })
    }
}

/// Why bytes are not the record of a policy.
#[derive(Debug, thiserror::Error)]
pub enum BadPolicyRecord {
    /// Another form.
    #[error("the record of a policy is not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// A text over its bound, or an empty one.
    #[error("the text of a policy {0}")]
    Text(#[from] super::text::BadText),
}
