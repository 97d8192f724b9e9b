//! What operators declare: trust domains, workloads, services, roles, TLS profiles and policies.
//!
//! A manifest in YAML, the body of `apply`, and the value of a record in the store are the same fields.
//! All three are read by one reader ([`Resource::read`], [`Spec::decode`]), which tells every problem at
//! once, each with its place and its remedy, and gives types that cannot hold a bad value.

mod address;
mod authority;
mod check;
mod data_set;
mod network;
mod observations;
mod operation;
mod policy;
mod problem;
mod reader;
mod revocation_views;
mod role;
mod schema;
mod service;
mod text;
mod tls_profile;
mod topic;
mod tree;
mod trust_domain;
mod workload;

use std::fmt;
use std::str::FromStr;

use countersign_identity::Name;
use serde::Serialize;

pub use self::address::{
    BadAddress, HostPort, ListenAddress, Local, LoopbackAddress, SOCKET_PATH_BYTES_MAX, SocketPath,
};
pub use self::authority::{Approval, Approver, AuthoritySpec, UnknownApproval};
pub use self::check::{Declaration, Unread, check, check_beside, check_change};
pub use self::data_set::{
    Classification, DataSet, MutualTls, UnknownClassification, UnknownMutualTls,
};
pub use self::network::{BadNetwork, Network};
pub use self::observations::{BadEntriesMax, EntriesMax, Observations};
pub use self::operation::{OPERATIONS_MAX, OperationSpec};
pub use self::policy::{BadPolicyRecord, PolicyRecord, PolicyScope, PolicySpec, ScopeNames};
pub(crate) use self::problem::shorten;
pub use self::problem::{Position, Problem};
pub use self::revocation_views::RevocationViews;
pub use self::role::{BadRoleRecord, ROLE_MEMBERS_MAX, RoleRecord, RoleSpec, roles};
pub use self::schema::schema;
pub use self::service::{
    Connections, Expired, ForwardClientCertificate, Protocol, ProxyProtocol, ProxyVersion,
    ServiceSpec, UPSTREAMS_MAX, UnknownExpired, UnknownForward, UnknownProxyVersion, Upstream,
};
pub use self::text::{
    Argument, BadText, CEDAR_BYTES_MAX, CedarText, EnvName, EnvValue, Hint, Reason,
};
pub use self::tls_profile::{
    ClientCertificate, TlsChoice, TlsChoiceName, TlsProfileSpec, UnknownClientCertificate,
    UnknownTlsChoice,
};
pub use self::topic::TopicSpec;
pub use self::tree::{BadTree, Entry, Node, TREE_DEPTH_MAX, Tree};
pub use self::trust_domain::{Changes, TrustDomainSpec};
pub use self::workload::{SELECTORS_MAX, WORKLOAD_ID_BYTES_MAX, WorkloadSpec};

use self::reader::{Fields, Problems};

/// The version of the manifests that this program reads and writes.
pub const API_VERSION: &str = "countersign.dev/v1alpha1";

/// The kinds of resources. Closed: another word is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The trust domain and its lifetimes.
    TrustDomain,
    /// How authorities are made and succeeded.
    Authority,
    /// A SPIFFE ID and what a process must show to be it.
    Workload,
    /// A door of a workload, or the doors that it knocks at.
    Service,
    /// Cedar text.
    Policy,
    /// A group of workloads.
    Role,
    /// What the doors of services agree to.
    TlsProfile,
}

/// A text that is none of the kinds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a kind{later}: expected one of `TrustDomain`, `Authority`, `Workload`, `Service`, `Policy`, `Role`, `TlsProfile`",
    later = later(.0)
)]
pub struct UnknownKind(String);

/// The words of kinds that are planned. What they would ask for is not left out in silence.
const LATER: [&str; 3] = ["Federation", "Notifier", "Playbook"];

fn later(word: &str) -> &'static str {
    if LATER.contains(&word) { " that this version knows yet" } else { "" }
}

impl Kind {
    /// Every kind, in the order in which lists show them.
    pub const ALL: [Self; 7] = [
        Self::TrustDomain,
        Self::Authority,
        Self::Workload,
        Self::Service,
        Self::Policy,
        Self::Role,
        Self::TlsProfile,
    ];

    /// The word in manifests and records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TrustDomain => "TrustDomain",
            Self::Authority => "Authority",
            Self::Workload => "Workload",
            Self::Service => "Service",
            Self::Policy => "Policy",
            Self::Role => "Role",
            Self::TlsProfile => "TlsProfile",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let kind = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        kind.ok_or_else(|| UnknownKind(text.chars().take(80).collect()))
    }
}

impl Serialize for Kind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for Kind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a resource says, by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// See [`Kind::TrustDomain`].
    TrustDomain(TrustDomainSpec),
    /// See [`Kind::Authority`].
    Authority(AuthoritySpec),
    /// See [`Kind::Workload`].
    Workload(WorkloadSpec),
    /// See [`Kind::Service`].
    Service(ServiceSpec),
    /// See [`Kind::Policy`].
    Policy(PolicySpec),
    /// See [`Kind::Role`].
    Role(RoleSpec),
    /// See [`Kind::TlsProfile`].
    TlsProfile(TlsProfileSpec),
}

/// One declared thing. Its identity is its kind and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its name, unique within its kind.
    pub name: Name,
    /// What it says.
    pub spec: Spec,
}

impl Resource {
    /// The kind.
    pub fn kind(&self) -> Kind {
        self.spec.kind()
    }

    /// Kind and name as one word, `Workload/web`, as problems and lists show it.
    pub fn label(&self) -> String {
        format!("{}/{}", self.kind(), self.name)
    }

    /// Reads one manifest.
    ///
    /// # Errors
    /// With every problem in it, not only the first.
    pub fn read(tree: &Tree) -> Result<Self, Vec<Problem>> {
        let mut problems = Problems::of(tree);
        let resource = read(tree, &mut problems);
        match resource {
            Some(resource) if problems.is_empty() => Ok(resource),
            Some(_) | None => Err(problems.into_inner()),
        }
    }

    /// The manifest as JSON, every field with its default written out.
    pub fn manifest(&self) -> serde_json::Value {
        serde_json::json!({
            "apiVersion": API_VERSION,
            "kind": self.kind(),
            "metadata": { "name": self.name },
            "spec": self.spec.json(),
        })
    }
}

/// Reads what can be read; `None` when too little is there to make a resource.
fn read(tree: &Tree, problems: &mut Problems) -> Option<Resource> {
    let mut fields = Fields::open(tree, "", problems)?;
    let version = fields.text("apiVersion", problems);
    if let Some((version, place)) = &version
        && version != API_VERSION
    {
        problems.add(place, format!("`{version}` is not supported: write `{API_VERSION}`"));
    }
    let kind = fields.required::<Kind>("kind", problems);
    let name = fields.required_child("metadata", problems).and_then(|(metadata, path)| {
        let mut fields = Fields::open(metadata, &path, problems)?;
        let name = fields.required::<Name>("name", problems);
        fields.close(problems);
        name
    });
    problems.speak_of(kind, name.as_ref());
    let spec = fields.required_child("spec", problems);
    fields.close(problems);
    let (kind, (tree, path)) = (kind?, spec?);
    let spec = Spec::read(kind, tree, &path, problems)?;
    Some(Resource { name: name?, spec })
}

impl Spec {
    /// The kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::TrustDomain(_) => Kind::TrustDomain,
            Self::Authority(_) => Kind::Authority,
            Self::Workload(_) => Kind::Workload,
            Self::Service(_) => Kind::Service,
            Self::Policy(_) => Kind::Policy,
            Self::Role(_) => Kind::Role,
            Self::TlsProfile(_) => Kind::TlsProfile,
        }
    }

    fn read(kind: Kind, tree: &Tree, path: &str, problems: &mut Problems) -> Option<Self> {
        let mut fields = Fields::open(tree, path, problems)?;
        let spec = match kind {
            Kind::TrustDomain => {
                TrustDomainSpec::read(&mut fields, problems).map(Self::TrustDomain)
            }
            Kind::Authority => AuthoritySpec::read(&mut fields, problems).map(Self::Authority),
            Kind::Workload => WorkloadSpec::read(&mut fields, problems).map(Self::Workload),
            Kind::Service => ServiceSpec::read(&mut fields, problems).map(Self::Service),
            Kind::Policy => PolicySpec::read(&mut fields, problems).map(Self::Policy),
            Kind::Role => RoleSpec::read(&mut fields, problems).map(Self::Role),
            Kind::TlsProfile => TlsProfileSpec::read(&mut fields, problems).map(Self::TlsProfile),
        };
        fields.close(problems);
        spec
    }

    /// The fields as JSON.
    pub fn json(&self) -> serde_json::Value {
        let value = match self {
            Self::TrustDomain(spec) => serde_json::to_value(spec),
            Self::Authority(spec) => serde_json::to_value(spec),
            Self::Workload(spec) => serde_json::to_value(spec),
            Self::Service(spec) => serde_json::to_value(spec),
            Self::Policy(spec) => serde_json::to_value(spec),
            Self::Role(spec) => serde_json::to_value(spec),
            Self::TlsProfile(spec) => serde_json::to_value(spec),
        };
        value.expect("texts, lists and maps with text keys always have a JSON form")
    }

    /// The value of this resource's record: canonical JSON (RFC 8785; no numbers occur in it).
    pub fn encode(&self) -> Vec<u8> {
        let mut json = self.json();
        if let Self::Service(spec) = self
            && let Some(profile) = spec.tls_profile.record_json()
        {
            json["tlsProfile"] = profile;
        }
        canonical(&json)
    }

    /// Reads the value of a record.
    ///
    /// # Errors
    /// With every problem in it.
    pub fn decode(kind: Kind, value: &[u8]) -> Result<Self, Vec<Problem>> {
        let tree = Tree::from_json(value)
            .map_err(|bad| vec![Problem::about(kind.as_str(), "", bad.to_string())])?;
        let mut problems = Problems::of_record(&tree);
        match Self::read(kind, &tree, "spec", &mut problems) {
            Some(spec) if problems.is_empty() => Ok(spec),
            Some(_) | None => Err(problems.into_inner()),
        }
    }
}

/// Canonical JSON: no blanks, members sorted. For texts, lists, integers and maps with ASCII keys this is
/// RFC 8785.
pub fn canonical(value: &serde_json::Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_canonical(value, &mut out);
    out
}

fn write_canonical(value: &serde_json::Value, out: &mut Vec<u8>) {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.extend_from_slice(value.to_string().as_bytes());
        }
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if 0 < index {
                    out.push(b',');
                }
                write_canonical(item, out);
            }
            out.push(b']');
        }
        Value::Object(members) => {
            let sorted: std::collections::BTreeMap<_, _> = members.iter().collect();
            out.push(b'{');
            for (index, (key, member)) in sorted.into_iter().enumerate() {
                if 0 < index {
                    out.push(b',');
                }
                out.extend_from_slice(Value::from(key.as_str()).to_string().as_bytes());
                out.push(b':');
                write_canonical(member, out);
            }
            out.push(b'}');
        }
    }
}

#[cfg(test)]
mod tests;
