//! Whether a connection may exist: asked when it is made, and again whenever what is enforced changes.

use std::sync::Arc;

use countersign_identity::{Code, Timestamp};
use countersign_pki::{Refused, Verified};

use crate::register::{Arrival, Entry, Register, Standing};
use crate::rule::{decide, lasts};
use crate::{Slice, Trust};

/// One admitted connection, for whoever steers it. It may be cloned freely and does not keep the
/// connection in the register: the [`Stream`](crate::Stream) does.
#[derive(Clone, Debug)]
pub struct Admitted {
    entry: Arc<Entry>,
    policies: Arc<[String]>,
}

impl Admitted {
    /// Who is at the other end; none when an anonymous client was let in, where that is allowed.
    pub fn peer(&self) -> Option<&Verified> {
        self.entry.standing.as_ref().map(|standing| &standing.peer)
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

    /// When the handshake was done.
    pub fn opened(&self) -> Timestamp {
        self.entry.opened
    }

    /// The last moment at which we let it be open: the first end in the peer's chain.
    pub fn expires(&self) -> Timestamp {
        self.entry.expires
    }

    /// The last moment at which an honest peer lets it be open: the first end in the chain that we showed.
    pub fn presented_ends(&self) -> Timestamp {
        self.entry.shown_until
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
/// the new slice: the register's lock orders the two.
pub(crate) fn admit(trust: &Trust, arrival: Arrival) -> Result<Place, Refused> {
    let register = Arc::clone(&trust.register);
    let entry = register.enter(arrival).ok_or_else(too_many)?;
    let admitted = Admitted { entry, policies: Arc::from([]) };
    // From here on, every way out takes the connection out of the register again.
    let mut place = Place { register, admitted };
    let policies = verdict(&place.admitted.entry, &trust.slice(), trust.now())?;
    if let Some(code) = place.admitted.entry.ended() {
        let why = "what is enforced changed while the connection was made".to_owned();
        return Err(Refused { code, why });
    }
    place.admitted.policies = policies.into();
    Ok(place)
}

/// Ends what the slice does not let exist, and tells how many those were.
pub(crate) fn review(register: &Register, slice: &Slice, now: Timestamp) -> usize {
    let entries = register.entries();
    let denied = entries.iter().filter_map(|entry| {
        let refused = verdict(entry, slice, now).err()?;
        Some((entry, refused.code))
    });
    denied.filter(|(entry, code)| entry.end(*code)).count()
}

fn verdict(entry: &Entry, slice: &Slice, now: Timestamp) -> Result<Vec<String>, Refused> {
    let Some(Standing { rule, peer, local, context }) = &entry.standing else {
        return Ok(Vec::new());
    };
    lasts(peer, now)?;
    decide(rule, peer, local.as_ref(), context, slice)
}

pub(crate) fn too_many() -> Refused {
    let why = "the limit on connections is reached".to_owned();
    Refused { code: Code::TooManyConnections, why }
}

#[cfg(test)]
mod tests;
