//! One record of the state: what names it, the bytes that say it, and what they say, parsed once.

use std::sync::Arc;

use countersign_api::resource::{
    AuthoritySpec, PolicyRecord, PolicySpec, Resource, RoleRecord, ServiceSpec, Spec,
    TlsProfileSpec, TrustDomainSpec, WorkloadSpec,
};
use countersign_api::{resource, v1};
use countersign_identity::{Name, Revocation, Suspension, TrustDomain};
use countersign_pki::Bundle;
use countersign_store::{Kind, Record};

use super::shown::Shown;
use super::snapshot::BadState;
use crate::incarnation::Life;
use crate::rotate::Walk;

/// What names a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) name: Arc<str>,
}

impl Key {
    pub(crate) fn new(kind: Kind, name: &str) -> Self {
        Self { kind, name: name.into() }
    }

    /// As it travels.
    pub(crate) fn wire(&self) -> v1::RecordKey {
        v1::RecordKey { kind: self.kind.as_str().to_owned(), name: self.name.to_string() }
    }
}

/// A record: what it says, and the bytes that say it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) wire: v1::Record,
    pub(crate) parsed: Parsed,
    pub(super) shown: Shown,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        // What it says follows from the bytes that say it.
        self.wire == other.wire
    }
}

impl Eq for Entry {}

/// What a record says.
#[derive(Debug)]
pub(crate) enum Parsed {
    Workload { name: Name, spec: WorkloadSpec },
    Service { name: Name, spec: ServiceSpec },
    Policy { name: Name, record: PolicyRecord },
    Role { name: Name, record: RoleRecord },
    TlsProfile { name: Name, spec: TlsProfileSpec },
    TrustDomain { name: Name, spec: TrustDomainSpec },
    Authority { name: Name, spec: AuthoritySpec },
    Bundle(Bundle),
    Revocation(Arc<Revocation>),
    Suspension(Suspension),
    Walk(Arc<Walk>),
    Incarnation(Arc<Life>),
}

impl Entry {
    /// A role as nodes see it that may know only these of its members.
    pub(crate) fn role_of(&self, told: impl Fn(&str) -> bool) -> Option<Arc<Self>> {
        let Parsed::Role { name, record } = &self.parsed else { return None };
        let record = record.only(told);
        let wire = v1::Record { value: record.encode().into(), ..self.wire.clone() };
        let parsed = Parsed::Role { name: name.clone(), record };
        Some(Arc::new(Self { wire, parsed, shown: Shown::default() }))
    }

    /// As the operator declared it; `None` for what nobody declares.
    pub(crate) fn resource(&self) -> Option<Resource> {
        let (name, spec) = match &self.parsed {
            Parsed::Workload { name, spec } => (name, Spec::Workload(spec.clone())),
            Parsed::Service { name, spec } => (name, Spec::Service(spec.clone())),
            Parsed::Policy { name, record } => {
                let PolicyRecord { cedar, mode, until, reason, .. } = record.clone();
                (name, Spec::Policy(PolicySpec { cedar, mode, until, reason }))
            }
            Parsed::Role { name, record } => (name, Spec::Role(record.spec.clone())),
            Parsed::TlsProfile { name, spec } => (name, Spec::TlsProfile(spec.clone())),
            Parsed::TrustDomain { name, spec } => (name, Spec::TrustDomain(spec.clone())),
            Parsed::Authority { name, spec } => (name, Spec::Authority(spec.clone())),
            Parsed::Bundle(_)
            | Parsed::Revocation(_)
            | Parsed::Suspension(_)
            | Parsed::Walk(_)
            | Parsed::Incarnation(_) => return None,
        };
        Some(Resource { name: name.clone(), spec })
    }
}

pub(super) fn parse(record: Record) -> Result<(Key, Arc<Entry>), BadState> {
    let Record { kind, name, value } = record;
    let parsed = understand(kind, &name, &value).map_err(|why| BadState::Record {
        kind,
        name: name.clone(),
        why,
    })?;
    let key = Key::new(kind, &name);
    let wire = v1::Record { kind: kind.as_str().to_owned(), name, value: value.into() };
    Ok((key, Arc::new(Entry { wire, parsed, shown: Shown::default() })))
}

/// What an operator declared with a record of the past.
///
/// # Errors
/// When this version does not understand it, or nobody declares such records.
pub(crate) fn declared(key: &Key, value: &[u8]) -> Result<Resource, crate::refusal::Refused> {
    let record = Record { kind: key.kind, name: key.name.to_string(), value: value.to_vec() };
    let (_, entry) = parse(record)?;
    let nobody = || crate::authority::internal(format!("`{}` is not declared", key.kind));
    entry.resource().ok_or_else(nobody)
}

fn understand(kind: Kind, name: &str, value: &[u8]) -> Result<Parsed, String> {
    let named = || name.parse::<Name>().map_err(|bad| bad.to_string());
    let kind = match kind {
        Kind::Bundle => {
            let domain: TrustDomain =
                name.parse().map_err(|bad: countersign_identity::IdError| bad.to_string())?;
            let bundle = Bundle::parse_json(domain, value).map_err(|bad| bad.to_string())?;
            return Ok(Parsed::Bundle(bundle));
        }
        Kind::Policy => {
            let record = PolicyRecord::decode(value).map_err(|bad| bad.to_string())?;
            return Ok(Parsed::Policy { name: named()?, record });
        }
        Kind::Role => {
            let record = RoleRecord::decode(value).map_err(|bad| bad.to_string())?;
            return Ok(Parsed::Role { name: named()?, record });
        }
        Kind::Revocation => {
            let rule = serde_json::from_slice(value).map_err(|bad| bad.to_string())?;
            return Ok(Parsed::Revocation(Arc::new(rule)));
        }
        Kind::Suspension => {
            let suspension = serde_json::from_slice(value).map_err(|bad| bad.to_string())?;
            return Ok(Parsed::Suspension(suspension));
        }
        Kind::Walk => {
            let walk = serde_json::from_slice(value).map_err(|bad| bad.to_string())?;
            return Ok(Parsed::Walk(Arc::new(walk)));
        }
        Kind::Incarnation => {
            let life = serde_json::from_slice(value).map_err(|bad| bad.to_string())?;
            return Ok(Parsed::Incarnation(Arc::new(life)));
        }
        Kind::Workload => resource::Kind::Workload,
        Kind::Service => resource::Kind::Service,
        Kind::TrustDomain => resource::Kind::TrustDomain,
        Kind::Authority => resource::Kind::Authority,
        Kind::TlsProfile => resource::Kind::TlsProfile,
    };
    let spec = Spec::decode(kind, value).map_err(|problems| {
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    })?;
    let name = named()?;
    Ok(match spec {
        Spec::Workload(spec) => Parsed::Workload { name, spec },
        Spec::Service(spec) => Parsed::Service { name, spec },
        Spec::TrustDomain(spec) => Parsed::TrustDomain { name, spec },
        Spec::Authority(spec) => Parsed::Authority { name, spec },
        Spec::TlsProfile(spec) => Parsed::TlsProfile { name, spec },
        Spec::Policy(_) | Spec::Role(_) => unreachable!("these were read above"),
    })
}
