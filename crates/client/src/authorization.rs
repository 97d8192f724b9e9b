//! Who may connect: where the policies come from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_identity::SpiffeId;
use countersign_policy::{Policies, PolicySource, Scope, TEXT_BYTES_MAX, scope};

use crate::files::{ReadFault, read_bounded};

/// Where the policies come from. There is no "everybody".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorization {
    /// From the agent's Enforcement service. Until it has told, and where it does not offer the service, nothing
    /// is allowed.
    ///
    /// Only so is the process an enforcement point: with every other choice it enforces rules of its own, and
    /// the control plane counts it among the unaware.
    FromAgent,
    /// From a file with Cedar policies, read again when it changes. Peers go by their SPIFFE IDs:
    /// `Workload::"spiffe://shop.example/web"`.
    PolicyFile(PathBuf),
    /// These peers may connect to every service of this process.
    AllowIds(Vec<SpiffeId>),
    /// Nobody may.
    Nothing,
}

/// Why a policy file is not used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileFault {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] ReadFault),
    /// It is not text.
    #[error("policy file `{0}` is not UTF-8")]
    NotText(PathBuf),
    /// It does not compile.
    #[error("policy file `{path}`: {problems}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Every problem, one a line.
        problems: String,
    },
}

impl Authorization {
    /// What is allowed before anybody else has told anything.
    pub(crate) fn initial(&self) -> Result<Arc<Policies>, PolicyFileFault> {
        match self {
            Self::FromAgent | Self::Nothing => Ok(Arc::new(Policies::none())),
            Self::AllowIds(ids) => Ok(Arc::new(Policies::allow_ids(ids.clone()))),
            Self::PolicyFile(path) => read_policies(path).map(Arc::new),
        }
    }
}

/// Reads and compiles a policy file. Blocks.
pub(crate) fn read_policies(path: &Path) -> Result<Policies, PolicyFileFault> {
    let bytes = read_bounded(path, TEXT_BYTES_MAX)?;
    let text =
        str::from_utf8(&bytes).map_err(|_not_text| PolicyFileFault::NotText(path.to_owned()))?;
    // A file says neither who is in which role or has which label nor what touches which data, so what it forbids to them, or of
    // that, it would forbid to nobody.
    let of_manifests =
        |scope: &Scope| scope.labels || !scope.roles.is_empty() || scope.speaks_of_data();
    if scope(text).is_ok_and(|scopes| scopes.iter().any(of_manifests)) {
        let problems = "roles, labels and data sets are those of manifests, which a file does not have; name SPIFFE IDs and services";
        return Err(PolicyFileFault::Invalid {
            path: path.to_owned(),
            problems: problems.to_owned(),
        });
    }
    let source = PolicySource::enforced("file".parse().expect("a label"), text);
    Policies::compile(&[source], None).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        PolicyFileFault::Invalid { path: path.to_owned(), problems: lines.join("\n") }
    })
}
