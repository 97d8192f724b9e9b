//! What a suspension stops, and what a rule can be about: nobody is told that something is stopped which goes on.

use countersign_identity::{Code, SpiffeId, Suspended, TrustDomain};

use crate::attest::node_of;
use crate::refusal::Refused;

/// Goes on only with what a suspension stops: a node, or an identity that this trust domain issues for a workload.
///
/// # Errors
/// `foreign-domain`; `not-understood` when it names nobody; `reserved-path` for what only servers and agents are.
pub(super) fn stops(target: &Suspended, domain: &TrustDomain) -> Result<(), Refused> {
    let Suspended::Identity(id) = target else { return Ok(()) };
    if id.trust_domain() != domain {
        let why = format!(
            "`{id}` is outside trust domain `{domain}`, which issues nothing for it: its own operators suspend it; \
             a policy with `forbid` keeps it out here"
        );
        return Err(Refused::new(Code::ForeignDomain, why));
    }
    names_somebody(id)?;
    if !id.is_reserved() {
        return Ok(());
    }
    let whose = id.path().split('/').nth(2).unwrap_or_default();
    let why = match (node_of(id, domain), whose) {
        (Some(node), _) => format!(
            "`{id}` is the agent of a node: to stop it, and all that is issued through it, write `--node {node}`"
        ),
        (None, "server" | "console") => format!(
            "`{id}` is of a server, which issues for itself as long as it runs, so nothing suspends it: stop that server, then \
             `countersign revoke {id} --reason key-compromise` takes out of service what it held; if somebody else \
             may have its keys, `countersign recover --compromised` puts other authorities in their place"
        ),
        (None, _) => {
            format!("`{id}` lies under `/countersign`, where no workload is: nothing suspends it")
        }
    };
    Err(Refused::new(Code::ReservedPath, why))
}

/// Goes on only with an ID that somebody can have: the one of the trust domain itself is on no X.509-SVID.
///
/// # Errors
/// `not-understood`.
pub(super) fn names_somebody(id: &SpiffeId) -> Result<(), Refused> {
    if !id.is_root() {
        return Ok(());
    }
    let why = format!(
        "`{id}` has no path, so it is nobody's: expected an identity, such as `{id}/web`, as `countersign status` lists those that \
         are held; `countersign revoke --authority` takes an authority out of service"
    );
    Err(Refused::new(Code::NotUnderstood, why))
}
