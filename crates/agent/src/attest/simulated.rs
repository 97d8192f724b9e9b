//! Attestation by a simulation's word.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use countersign_identity::{Selector, SelectorKind};
use tokio::net::UnixStream;

use super::{AttestRefused, Attestor, Caller, Facts, Household, Peer, PinRefused};

/// Takes every caller for one simulated process, whose facts can be changed under way, as when it runs another program.
#[derive(Clone, Debug)]
pub struct SimulatedAttestor {
    process: SimulatedProcess,
}

/// A process that exists in words only.
#[derive(Clone, Debug)]
pub struct SimulatedProcess {
    peer: Peer,
    household: Household,
    facts: Arc<Mutex<Option<BTreeSet<Selector>>>>, // None: it has ended
}

impl SimulatedAttestor {
    /// Everybody who connects is this process.
    pub fn new(process: SimulatedProcess) -> Self {
        Self { process }
    }
}

impl SimulatedProcess {
    /// A live process of which these facts hold.
    pub fn new(peer: Peer, facts: impl IntoIterator<Item = Selector>) -> Self {
        let facts = Arc::new(Mutex::new(Some(facts.into_iter().collect())));
        Self { peer, household: Household::Ours, facts }
    }

    /// The same elsewhere.
    pub fn living_in(self, household: Household) -> Self {
        Self { household, ..self }
    }

    /// From now on these facts hold.
    pub fn become_(&self, facts: impl IntoIterator<Item = Selector>) {
        *self.lock() = Some(facts.into_iter().collect());
    }

    /// It ends.
    pub fn end(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<BTreeSet<Selector>>> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attestor for SimulatedAttestor {
    fn pin(&self, _socket: &UnixStream) -> Result<Arc<dyn Caller>, PinRefused> {
        Ok(Arc::new(self.process.clone()))
    }
}

impl Caller for SimulatedProcess {
    fn peer(&self) -> Peer {
        self.peer
    }

    fn household(&self) -> Household {
        self.household
    }

    fn facts(&self, kinds: &BTreeSet<SelectorKind>) -> Result<Facts, AttestRefused> {
        let facts = self.lock();
        let facts = facts.as_ref().ok_or(AttestRefused::Gone { pid: self.peer.pid })?;
        Ok(Facts::assertion(facts.iter().filter(|fact| kinds.contains(&fact.kind())).cloned()))
    }

    fn alive(&self) -> Result<(), AttestRefused> {
        self.lock().as_ref().map(|_| ()).ok_or(AttestRefused::Gone { pid: self.peer.pid })
    }
}
