//! Whether what was presented has been taken out of service since it was issued.

use std::sync::Arc;

use countersign_identity::{Code, Ending, Presented, Revocation, Revocations};
use countersign_pki::{Refused, Verified};

/// A rule covers what was presented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covered {
    /// Which rule; of several, one that cuts.
    pub rule: Arc<Revocation>,
    /// What a handshake with it is told.
    pub refused: Refused,
}

impl Covered {
    /// How a live connection ends that was made with it.
    pub fn ending(&self) -> Ending {
        self.rule.reason.ending()
    }
}

/// Whether these rules let stand what was presented: the leaf, its key, who issued it and through which node.
///
/// # Errors
/// When a rule covers it, whatever the ending: a handshake is refused in either case.
pub fn revoked(presented: &Verified, revocations: &Revocations) -> Result<(), Covered> {
    let found = revocations.covering(&Presented {
        id: &presented.id,
        serial: presented.leaf.serial(),
        key: presented.key,
        authorities: &presented.authorities,
        provenance: presented.provenance().map(|it| (it.revision, it.node)),
    });
    let Some(rule) = found else { return Ok(()) };
    let Revocation { target, reason, .. } = &**rule;
    let why = format!("the certificate of `{}` is revoked by {target}: {reason}", presented.id);
    Err(Covered { rule: Arc::clone(rule), refused: Refused { code: Code::Revoked, why } })
}
