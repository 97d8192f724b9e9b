//! The named operations of services, and which of them a request is.

use std::collections::BTreeMap;
use std::fmt;

use countersign_identity::{CanonicalPath, Name, PathTemplate, Verb};

/// One thing that a service does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its name, unique within its service.
    pub name: Name,
    /// With which method it is asked for.
    pub verb: Verb,
    /// Under which paths.
    pub template: PathTemplate,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.template)
    }
}

/// The declared operations, by service. Requests to a service that has some are decided on one by one; to one that has
/// none they are not, and whoever may connect may ask for anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operations(BTreeMap<String, Vec<Operation>>); // INVARIANT: no list is empty

impl Operations {
    /// Those of these services.
    pub fn new(of: impl IntoIterator<Item = (Name, Vec<Operation>)>) -> Self {
        let some = of.into_iter().filter(|(_, operations)| !operations.is_empty());
        Self(some.map(|(service, operations)| (service.to_string(), operations)).collect())
    }

    /// Those of a service; `None` when it declares none.
    pub fn of(&self, service: &str) -> Option<&[Operation]> {
        self.0.get(service).map(Vec::as_slice)
    }

    /// Which operation a request is: of several that match, the one whose template says more.
    pub fn find(&self, service: &str, verb: Verb, path: &CanonicalPath) -> Option<&Operation> {
        let matching = self
            .of(service)?
            .iter()
            .filter(|operation| operation.verb == verb && operation.template.matches(path));
        matching.min_by(|a, b| a.template.says_more(&b.template))
    }
}
