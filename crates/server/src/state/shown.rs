//! What of a record is shown to nodes: to those whose own it is, and to those that only deal with it.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use countersign_api::resource::{Hint, Local, ServiceSpec, Spec, WorkloadSpec};
use countersign_api::v1;
use countersign_identity::{Selector, SelectorKind};
use countersign_pki::KeyKind;

use crate::state::{Entry, Parsed};

/// A selector that no process has: the kernel takes this uid for "none" (`setreuid(2)`).
const NOBODY: &str = "4294967295";

/// The forms in which a record is shown, made when first asked for. `None` in a form: the record itself.
#[derive(Debug, Default)]
pub(super) struct Shown {
    home: OnceLock<Option<Arc<Entry>>>,
    abroad: OnceLock<Option<Arc<Entry>>>,
}

impl Entry {
    /// As nodes see it whose own it is. How a program is started concerns its launcher alone, and may hold secrets.
    pub(crate) fn home(self: &Arc<Self>) -> Arc<Self> {
        let made = self.shown.home.get_or_init(|| self.form(Self::at_home));
        made.as_ref().map_or_else(|| Arc::clone(self), Arc::clone)
    }

    /// As nodes see it that only deal with it: its name, its identity, where it is dialled.
    pub(crate) fn abroad(self: &Arc<Self>) -> Arc<Self> {
        let made = self.shown.abroad.get_or_init(|| self.form(Self::at_others));
        made.as_ref().map_or_else(|| Arc::clone(self), Arc::clone)
    }

    fn form(&self, of: fn(&Self) -> Option<Parsed>) -> Option<Arc<Self>> {
        let parsed = of(self)?;
        let spec = match &parsed {
            Parsed::Workload { spec, .. } => Spec::Workload(spec.clone()),
            Parsed::Service { spec, .. } => Spec::Service(spec.clone()),
            Parsed::Policy { .. }
            | Parsed::Role { .. }
            | Parsed::TlsProfile { .. }
            | Parsed::TrustDomain { .. }
            | Parsed::Authority { .. }
            | Parsed::Bundle(_)
            | Parsed::Revocation(_)
            | Parsed::Suspension(_)
            | Parsed::Walk(_)
            | Parsed::Incarnation(_) => return None,
        };
        let wire = v1::Record { value: spec.encode().into(), ..self.wire.clone() };
        (wire != self.wire).then(|| Arc::new(Self { wire, parsed, shown: Shown::default() }))
    }

    fn at_home(&self) -> Option<Parsed> {
        match &self.parsed {
            Parsed::Service { name, spec } => {
                Some(Parsed::Service { name: name.clone(), spec: unstarted(spec) })
            }
            Parsed::Workload { .. }
            | Parsed::Policy { .. }
            | Parsed::Role { .. }
            | Parsed::TlsProfile { .. }
            | Parsed::TrustDomain { .. }
            | Parsed::Authority { .. }
            | Parsed::Bundle(_)
            | Parsed::Revocation(_)
            | Parsed::Suspension(_)
            | Parsed::Walk(_)
            | Parsed::Incarnation(_) => None,
        }
    }

    fn at_others(&self) -> Option<Parsed> {
        match &self.parsed {
            Parsed::Workload { name, spec } => {
                Some(Parsed::Workload { name: name.clone(), spec: named(spec) })
            }
            Parsed::Service { name, spec } => {
                // A door needs a way behind it to be a service at all; where that leads is not told.
                let forward = spec.listen.as_ref().map(|_door| Local::Unix);
                let spec = ServiceSpec {
                    forward,
                    upstreams: Vec::new(),
                    operations: Vec::new(),
                    topics: Vec::new(),
                    data_sets: spec.data_at_the_door().to_vec(),
                    ..unstarted(spec)
                };
                Some(Parsed::Service { name: name.clone(), spec })
            }
            Parsed::Policy { .. }
            | Parsed::Role { .. }
            | Parsed::TlsProfile { .. }
            | Parsed::TrustDomain { .. }
            | Parsed::Authority { .. }
            | Parsed::Bundle(_)
            | Parsed::Revocation(_)
            | Parsed::Suspension(_)
            | Parsed::Walk(_)
            | Parsed::Incarnation(_) => None,
        }
    }
}

fn unstarted(spec: &ServiceSpec) -> ServiceSpec {
    ServiceSpec { command: Vec::new(), environment: BTreeMap::new(), ..spec.clone() }
}

/// A workload by name and identity, which no process of the reader's can be.
fn named(spec: &WorkloadSpec) -> WorkloadSpec {
    let nobody = Selector::new(SelectorKind::UnixUid, NOBODY).expect("it is a number");
    WorkloadSpec {
        spiffe_id: spec.spiffe_id.clone(),
        selectors: vec![nobody],
        lifetime: None,
        key_type: KeyKind::P256,
        dns_names: Vec::new(),
        nodes: Vec::new(),
        labels: spec.labels.clone(),
        hint: Hint::default(),
        crl: false,
    }
}
