//! Whether a connection may exist: asked when it is made, and again whenever what is enforced changes.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Code, Ending, SpiffeId, Timestamp};
use countersign_pki::{Refused, Verified};

use crate::register::{Arrival, Entry, Full, Register, Standing};
use crate::revoked::{Covered, revoked};
use crate::rule::{decide, lasts};
use crate::standing::Outcome;
use crate::{Slice, Trust};

/// How long a connection may take to finish what is under way when a graceful revocation ends it, or a TLS profile that asks for
/// more than its handshake has agreed on.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// One admitted connection, for whoever steers it. It may be cloned freely and does not keep the
/// connection in the register: the [`Stream`](crate::Stream) does.
#[derive(Clone, Debug)]
pub struct Admitted {
    entry: Arc<Entry>,
    policies: Arc<[String]>,
}

impl Admitted {
    pub(crate) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Who is at the other end, as it was proven when the connection was made; none when an anonymous client was let in, where that is allowed.
    pub fn peer(&self) -> Option<&Verified> {
        self.entry.standing.as_ref().map(|standing| &standing.peer)
    }

    /// Who we were when it was made; none where we showed nothing.
    pub fn local(&self) -> Option<&SpiffeId> {
        self.entry.shown.as_ref().map(|own| own.identity.id())
    }

    /// The policies that allowed it when it was made.
    pub fn policies(&self) -> &[String] {
        &self.policies
    }

    /// Resolves when we end the connection, with the reason. By then its socket is shut both ways.
    pub fn ended(&self) -> impl Future<Output = Code> + Send + 'static + use<> {
        let entry = Arc::clone(&self.entry);
        async move { entry.until_ended().await }
    }

    /// Why we ended it, if we did.
    pub fn why_ended(&self) -> Option<Code> {
        self.entry.ended()
    }

    /// Resolves when nothing new may begin on the connection any more, with the reason. What is under way may be
    /// finished; what is left after [`DRAIN_TIMEOUT`] is cut.
    pub fn retires(&self) -> impl Future<Output = Code> + Send + 'static + use<> {
        let entry = Arc::clone(&self.entry);
        async move { entry.until_retiring().await }
    }

    /// Why nothing new may begin on it, if so.
    pub fn why_retiring(&self) -> Option<Code> {
        self.entry.retiring()
    }

    /// Whether something new may begin on it: we have neither ended it, nor does it retire.
    pub fn takes_more(&self) -> bool {
        self.why_ended().is_none() && self.why_retiring().is_none()
    }

    /// What whoever serves the connection keeps with it, until it ends. `None` to whoever asks for another thing than the first did.
    pub fn kept<T: Default + Send + Sync + 'static>(&self) -> Option<&T> {
        self.entry.kept.get_or_init(|| Box::new(T::default())).downcast_ref()
    }

    /// When the handshake was done.
    pub fn opened(&self) -> Timestamp {
        self.entry.opened
    }

    /// The last moment at which we let it be open: the first end in the peer's chain.
    pub fn expires(&self) -> Timestamp {
        self.entry.expires()
    }

    /// The last moment at which an honest peer lets it be open: the first end in the chain that we showed.
    pub fn presented_ends(&self) -> Timestamp {
        self.entry.shown_until()
    }

    /// From when on it is proven anew by whoever dialled, where both ends know of that.
    pub fn proof_due(&self) -> Timestamp {
        self.entry.proof_due()
    }

    /// When to begin to put another connection in its place: three quarters of the way to the moment at which
    /// either end is going to cut it.
    pub fn retire_at(&self) -> Timestamp {
        let left = self.expires().min(self.presented_ends()).since(self.opened());
        self.opened() + left * 3 / 4
    }
}

/// Holds a connection's place in the register.
#[derive(Debug)]
pub(crate) struct Place {
    register: Arc<Register>,
    pub(crate) admitted: Admitted,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.register.evict(&self.admitted.entry);
    }
}

/// Admission. Register first, decide second, on the slice that is current *after* registering.
///
/// [`Trust::apply`] swaps first and scans second. So either the scan finds the connection, or the connection finds
/// the new slice: the lock of its part of the register orders the two.
pub(crate) fn admit(trust: &Trust, arrival: Arrival) -> Result<Place, NotAdmitted> {
    let register = Arc::clone(&trust.register);
    let entry = register.enter(arrival)?;
    let admitted = Admitted { entry, policies: Arc::from([]) };
    // From here on, every way out takes the connection out of the register again.
    let mut place = Place { register, admitted };
    let (slice, now) = trust.slice_now();
    let policies = newcomer(&place.admitted.entry, &slice, now)?;
    let entry = &place.admitted.entry;
    if let Some(code) = entry.ended().or_else(|| entry.retiring()) {
        let why = "what is enforced changed while the connection was made".to_owned();
        return Err(Refused { code, why }.into());
    }
    place.admitted.policies = policies.into();
    Ok(place)
}

/// Why a connection is not admitted, and how that counts for where its peer came from.
#[derive(Debug)]
pub(crate) struct NotAdmitted {
    pub(crate) refused: Refused,
    pub(crate) outcome: Outcome,
}

impl From<Refused> for NotAdmitted {
    fn from(refused: Refused) -> Self {
        Self { outcome: Outcome::of(Some(refused.code)), refused }
    }
}

impl From<Full> for NotAdmitted {
    fn from(full: Full) -> Self {
        match full {
            Full::All => too_many().into(),
            Full::OfPeer => {
                let why = "the limit on connections of this peer is reached".to_owned();
                let refused = Refused { code: Code::TooManyConnections, why };
                Self { refused, outcome: Outcome::OverShare }
            }
        }
    }
}

/// What a review has to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// The same things at a later revision. Everything in the register was decided on them, or is being decided.
    Nothing,
    /// The revocations alone: no policy has to be asked again.
    Revocations,
    /// Whatever decisions read.
    Decisions,
}

impl Changed {
    /// Told by identity of the parts, which is cheap, and never says that less changed than did.
    pub(crate) fn between(before: &Slice, after: &Slice) -> Self {
        let same = Arc::ptr_eq(&before.bundles, &after.bundles)
            && Arc::ptr_eq(&before.names, &after.names)
            && Arc::ptr_eq(&before.profiles, &after.profiles)
            && Arc::ptr_eq(&before.policies, &after.policies);
        match (same, Arc::ptr_eq(&before.revocations, &after.revocations)) {
            (true, true) => Self::Nothing,
            (true, false) => Self::Revocations,
            (false, _) => Self::Decisions,
        }
    }
}

/// What a review came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reviewed {
    pub(crate) cut: usize,
    pub(crate) draining: usize,
}

/// Ends or retires what the slice does not let exist.
pub(crate) fn review(
    register: &Register,
    slice: &Slice,
    changed: Changed,
    now: Timestamp,
) -> Reviewed {
    let asked: fn(&Entry, &Slice, Timestamp) -> Option<Denied> = match changed {
        Changed::Nothing => return Reviewed::default(),
        Changed::Revocations => |entry, slice, _now| out_of_service(entry, slice),
        Changed::Decisions => |entry, slice, now| verdict(entry, slice, now).err(),
    };
    let mut reviewed = Reviewed::default();
    for entry in register.entries() {
        let denied = asked(&entry, slice, now);
        let cut = denied.as_ref().is_some_and(|denied| denied.ending == Ending::Cut);
        if changed == Changed::Decisions && !cut {
            // Also where it drains: what is under way goes on for a while.
            entry.calls.review(slice, entry.standing.as_ref(), now);
        }
        let Some(denied) = denied else { continue };
        let reached = usize::from(finish(register, &entry, &denied, now));
        match denied.ending {
            Ending::Cut => reviewed.cut += reached,
            Ending::Drain => reviewed.draining += reached,
        }
    }
    reviewed
}

/// Ends or retires one connection, if the slice does not let it exist. True when it does.
pub(crate) fn review_one(
    register: &Register,
    entry: &Entry,
    slice: &Slice,
    now: Timestamp,
) -> bool {
    let Err(denied) = verdict(entry, slice, now) else { return true };
    finish(register, entry, &denied, now);
    false
}

/// True the first time.
fn finish(register: &Register, entry: &Entry, denied: &Denied, now: Timestamp) -> bool {
    let code = denied.refused.code;
    match denied.ending {
        Ending::Cut => register.end(entry, code),
        Ending::Drain => {
            let drained = now + DRAIN_TIMEOUT;
            let deadline = if entry.outlives() { drained } else { drained.min(entry.expires()) };
            register.retire(entry, code, deadline)
        }
    }
}

/// Why a connection may not exist, and how it ends if it does.
#[derive(Debug)]
struct Denied {
    refused: Refused,
    ending: Ending,
}

impl From<Refused> for Denied {
    fn from(refused: Refused) -> Self {
        Self { refused, ending: Ending::Cut }
    }
}

impl From<Covered> for Denied {
    fn from(covered: Covered) -> Self {
        Self { ending: covered.ending(), refused: covered.refused }
    }
}

/// The verdict on a connection that is being made. However an existing one would end, this one does not begin.
fn newcomer(entry: &Entry, slice: &Slice, now: Timestamp) -> Result<Vec<String>, Refused> {
    if let Some(own) = &entry.shown
        && let Err(covered) = revoked(&own.verified, &slice.revocations)
    {
        let why = format!("what we showed is not ours to show any more: {}", covered.refused.why);
        return Err(Refused { code: Code::NoOwnIdentity, why });
    }
    verdict(entry, slice, now).map_err(|denied| denied.refused)
}

fn verdict(entry: &Entry, slice: &Slice, now: Timestamp) -> Result<Vec<String>, Denied> {
    let graceful = match out_of_service(entry, slice) {
        Some(denied) if denied.ending == Ending::Cut => return Err(denied),
        graceful => graceful,
    };
    if let Some(call) = entry.lasting.get() {
        call.permitted(slice, entry.standing.as_ref(), now)?;
    }
    let policies = match &entry.standing {
        Some(Standing { context, .. }) => entry.credentials(|peer, own| {
            let Some(peer) = peer else { return Ok(Vec::new()) };
            if !entry.outlives() {
                lasts(peer, now)?;
            }
            decide(&entry.rule, peer, own.map(|own| own.identity.id()), (context, now), slice)
        })?,
        None => Vec::new(),
    };
    // Last: what something else ends at once is not drained.
    graceful.or_else(|| unfit(entry, slice)).map_or(Ok(policies), Err)
}

/// Whether its handshake agreed on what may not be agreed on any more. Nobody has lost a right by that, so what is under way is
/// finished, and the next connection agrees on something else.
fn unfit(entry: &Entry, slice: &Slice) -> Option<Denied> {
    let Entry { agreed, rule, .. } = entry;
    if agreed.fits(rule.terms(slice)) {
        return None;
    }
    let why = format!("the TLS profile of the service does not let agree on {agreed}");
    let refused = Refused { code: Code::NoSharedProtocol, why };
    Some(Denied { refused, ending: Ending::Drain })
}

/// What revocations say of the two credentials by which the connection was made, the peer's and our own.
fn out_of_service(entry: &Entry, slice: &Slice) -> Option<Denied> {
    entry.credentials(|peer, own| {
        let presented = peer.into_iter().chain(own.map(|own| &own.verified));
        let covered = presented.filter_map(|it| revoked(it, &slice.revocations).err());
        covered.max_by_key(Covered::ending).map(Denied::from)
    })
}

pub(crate) fn too_many() -> Refused {
    let why = "the limit on connections is reached".to_owned();
    Refused { code: Code::TooManyConnections, why }
}

#[cfg(test)]
mod tests;
