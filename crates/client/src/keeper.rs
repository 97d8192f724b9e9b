//! What the source holds, and the rules by which one thing replaces another.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use countersign_api::v1;
use countersign_identity::{Reason, Revision, Revocation, SpiffeId, Timestamp};
use countersign_pki::{Bundle, Bundles};
use countersign_policy::Policies;
use countersign_tls::{Applied, Identity, Slice, Trust};
use tokio::sync::watch;

use crate::slice::{BadSlice, Compiled, Decoded, decode, following};
use crate::svid::{Unusable, Update};
use crate::{Enforcement, IdentityStatus, Link, Parts, Services, Status, Topic};

/// The one place where trust, identity, services and status change, each change as a whole.
///
/// No method waits, so the lock is never held over an await.
pub(crate) struct Keeper {
    trust: Arc<Trust>,
    status: watch::Sender<Status>,
    parts: Parts,
    services: watch::Sender<Option<Arc<Services>>>,
    held: Mutex<Held>,
    /// Where peers are let in, each as often as it was said.
    doors: watch::Sender<Vec<SocketAddr>>,
}

/// That peers are let in somewhere, until it is dropped.
pub(crate) struct Announced {
    keeper: Arc<Keeper>,
    door: SocketAddr,
}

impl fmt::Debug for Announced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Announced({})", self.door)
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.keeper.doors.send_modify(|doors| {
            if let Some(place) = doors.iter().position(|door| *door == self.door) {
                doors.swap_remove(place);
            }
        });
    }
}

struct Held {
    /// Of the Workload API or of files. In force only while no agent has sent a slice.
    bundles: Arc<Bundles>,
    /// Of the program itself; without an agent's.
    policies: Arc<Policies>,
    /// Whether an agent's slice is in force.
    sliced: bool,
    /// What was acknowledged, or would be.
    reached: Revision,
    /// A slice was not taken, so the agent's marks, which speak of that one, must not be acknowledged.
    behind: bool,
    /// Verified against the bundle that came with it, but not by the slice in force. A root that is new to both
    /// arrives on two streams.
    waiting: Option<Identity>,
    /// How many live connections changes have ended.
    cut: u64,
    /// The policies of the last slice.
    compiled: Arc<Compiled>,
    /// The highest time seen: a clock that is set back does not end a revocation, nor one that is set forth and back.
    latest: Timestamp,
}

/// What came of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is enforced.
    Enforced(Acknowledgement),
    /// It is older than what is enforced, which stays. The agent has to be asked again: what it says next would
    /// build on a slice that is not in force.
    Older,
}

/// That a revision is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledgement {
    pub(crate) revision: Revision,
    pub(crate) cut: u64,
    /// Connections that a graceful revocation ends, and which are not closed yet.
    pub(crate) draining: u64,
}

impl Keeper {
    /// Allows what `policies` allow to those whom bundles will vouch for; so far there are none.
    pub(crate) fn new(trust: Arc<Trust>, policies: Arc<Policies>, status: Status) -> Self {
        let held = Held {
            bundles: Arc::default(),
            policies,
            sliced: false,
            reached: Revision::default(),
            behind: false,
            waiting: None,
            cut: 0,
            compiled: Arc::new(Compiled::nothing()),
            latest: trust.clock().now(),
        };
        let parts = Parts::new(Arc::clone(&trust));
        parts.saw(&status, held.latest);
        let keeper = Self {
            trust,
            status: watch::Sender::new(status),
            parts,
            services: watch::Sender::new(None),
            held: Mutex::new(held),
            doors: watch::Sender::default(),
        };
        keeper.apply_local(&mut keeper.held());
        keeper
    }

    pub(crate) fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// How the parts stand that this process cannot do without.
    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Peers are let in here from now on, until what is given back is dropped.
    pub(crate) fn announce(self: &Arc<Self>, door: SocketAddr) -> Announced {
        self.doors.send_modify(|doors| doors.push(door));
        Announced { keeper: Arc::clone(self), door }
    }

    /// Whether all doors are open that there are to be, and why not.
    pub(crate) fn doors_open(&self, open: Result<(), String>) {
        self.parts.doors(open.as_ref().map_err(String::as_str).copied(), self.trust.clock().now());
        self.trouble(Topic::Door, open.err());
    }

    /// Where peers are let in.
    pub(crate) fn doors(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.doors.subscribe()
    }

    pub(crate) fn services(&self) -> watch::Receiver<Option<Arc<Services>>> {
        self.services.subscribe()
    }

    /// A message of the Workload API, or a set of files.
    pub(crate) fn update(&self, update: Result<Update, Unusable>) {
        match update {
            Ok(update) => self.accept(update),
            Err(Unusable::Withdrawn(why)) => self.withdraw(why),
            Err(wrong @ (Unusable::Bad(_) | Unusable::Empty)) => {
                let why = wrong.to_string();
                tracing::warn!(%why, "the new SVID is not used; the one before stays");
                self.trouble(Topic::Identity, Some(why));
            }
        }
    }

    fn accept(&self, update: Update) {
        let mut held = self.held();
        if self.hold_bundles(&mut held, update.bundles) {
            held.waiting = Some(update.identity);
            self.try_identity(&mut held);
        }
        let left_out = (!update.left_out.is_empty()).then(|| update.left_out.join("; "));
        self.trouble(Topic::Bundle, left_out);
    }

    fn hold_bundles(&self, held: &mut Held, bundles: Vec<Bundle>) -> bool {
        match Bundles::new(bundles) {
            Ok(bundles) => {
                held.bundles = Arc::new(bundles);
                if !held.sliced {
                    self.apply_local(held);
                }
                true
            }
            Err(why) => {
                self.trouble(Topic::Identity, Some(format!("the bundles are not usable: {why}")));
                false
            }
        }
    }

    /// We are not who we were: nothing is shown any more.
    pub(crate) fn withdraw(&self, why: String) {
        let mut held = self.held();
        held.waiting = None;
        match self.trust.identity() {
            Some(shown) => tracing::warn!(id = %shown.id(), %why, "the identity was withdrawn"),
            // Whoever starts may be quicker than the word of its launcher.
            None => tracing::info!(%why, "no identity is given"),
        }
        self.trust.clear_identity();
        self.tell(|status| {
            status.identity = None;
            status.troubles.insert(Topic::Identity, why);
        });
    }

    /// A slice of the agent's. Takes long when its policies have changed, or when many connections are live.
    ///
    /// # Errors
    /// When it cannot be read. What was enforced before stays.
    pub(crate) fn slice(&self, slice: v1::Slice) -> Result<Taken, BadSlice> {
        let compiled = Arc::clone(&self.held().compiled);
        match decode(slice, &compiled) {
            Ok(decoded) => Ok(self.enforce(decoded)),
            Err(bad) => {
                self.bad_slice(bad.to_string());
                Err(bad)
            }
        }
    }

    fn enforce(&self, decoded: Decoded) -> Taken {
        let mut held = self.held();
        let revision = decoded.slice.revision;
        if held.sliced && revision < held.reached {
            let reached = held.reached;
            let why = format!("revision {revision} is older than {reached}, which is enforced");
            tracing::warn!(%why, "slice refused");
            held.behind = true;
            self.trouble(Topic::Slice, Some(why));
            return Taken::Older;
        }
        held.latest = held.latest.max(self.trust.clock().now());
        let slice = following(decoded.slice, &self.trust.slice(), held.latest);
        let who = self.trust.identity().map(|own| own.id().clone());
        let Applied { cut, own, .. } = self.trust.apply(slice);
        held.sliced = true;
        held.behind = false;
        held.compiled = decoded.compiled;
        self.services.send_replace(Some(Arc::new(decoded.services)));
        if let (Some(id), Some(rule)) = (who, own) {
            self.revoked(&id, &rule);
        }
        self.try_identity(&mut held);
        self.trouble(Topic::Slice, None);
        Taken::Enforced(self.reached(&mut held, revision, cut))
    }

    /// What we show was taken out of service. Trust has given it up already.
    fn revoked(&self, id: &SpiffeId, rule: &Revocation) {
        let Revocation { target, reason, .. } = rule;
        let next = what_next(*reason);
        let why =
            format!("`{id}` is not shown any more, it is revoked by {target} ({reason}); {next}");
        tracing::warn!(%why, "the own identity is revoked");
        self.tell(|status| {
            status.identity = None;
            status.troubles.insert(Topic::Identity, why);
        });
    }

    /// A slice that could not be read.
    pub(crate) fn bad_slice(&self, why: String) {
        self.held().behind = true;
        tracing::error!(%why, "slice refused; the one before stays");
        self.trouble(Topic::Slice, Some(why));
    }

    /// Nothing changed for us up to this revision. None when we cannot say that we enforce it.
    pub(crate) fn mark(&self, revision: Revision) -> Option<Acknowledgement> {
        let mut held = self.held();
        let enforces = held.sliced && !held.behind && held.reached <= revision;
        enforces.then(|| self.reached(&mut held, revision, 0))
    }

    fn reached(&self, held: &mut Held, revision: Revision, cut: usize) -> Acknowledgement {
        held.reached = revision;
        held.latest = held.latest.max(self.trust.clock().now());
        held.cut = held.cut.saturating_add(u64::try_from(cut).unwrap_or(u64::MAX));
        self.tell(|status| status.revision = Some(revision));
        let draining = u64::try_from(*self.trust.draining().borrow()).unwrap_or(u64::MAX);
        Acknowledgement { revision, cut: held.cut, draining }
    }

    /// The program's own policies have changed.
    pub(crate) fn policies(&self, policies: Result<Policies, String>) {
        match policies {
            Ok(policies) => {
                let mut held = self.held();
                held.policies = Arc::new(policies);
                self.apply_local(&mut held);
                self.trouble(Topic::Policy, None);
            }
            Err(why) => {
                tracing::error!(%why, "the policy file is not used; the policies before stay");
                self.trouble(Topic::Policy, Some(why));
            }
        }
    }

    /// Trusts nobody from now on, shows nothing, and ends all live connections: who says goodbye lets nothing in any more.
    pub(crate) fn close(&self) {
        let held = self.held();
        self.trust.close();
        drop(held);
    }

    pub(crate) fn link(&self, link: Link) {
        self.tell(|status| status.link = link);
    }

    pub(crate) fn enforcement(&self, enforcement: Enforcement) {
        self.tell(|status| status.enforcement = enforcement);
    }

    /// Sets or clears a trouble.
    pub(crate) fn trouble(&self, topic: Topic, why: Option<String>) {
        self.tell(|status| {
            match why {
                Some(why) => status.troubles.insert(topic, why),
                None => status.troubles.remove(&topic),
            };
        });
    }

    /// Enforces what is held, without an agent's slice.
    fn apply_local(&self, held: &mut Held) {
        let applied = self.trust.apply(Slice {
            revision: Revision::default(),
            bundles: Arc::clone(&held.bundles),
            // No agent, no names: peers go by their SPIFFE IDs.
            names: Arc::new(HashMap::new()),
            policies: Arc::clone(&held.policies),
            revocations: Arc::clone(&self.trust.slice().revocations),
            // No agent, no services.
            profiles: Arc::default(),
        });
        held.cut = held.cut.saturating_add(u64::try_from(applied.cut).unwrap_or(u64::MAX));
    }

    /// Shows the identity that waits, if what is enforced vouches for it.
    fn try_identity(&self, held: &mut Held) {
        let Some(identity) = held.waiting.take() else { return };
        match self.trust.set_identity(identity.clone()) {
            Ok(()) => {
                let shown = IdentityStatus {
                    id: identity.id().clone(),
                    serial: identity.serial(),
                    expires: identity.expires(),
                };
                tracing::info!(id = %shown.id, expires = %shown.expires, "identity is shown");
                self.parts.identified(self.trust.clock().now());
                self.tell(|status| {
                    status.identity = Some(shown);
                    status.troubles.remove(&Topic::Identity);
                });
            }
            Err(refused) => {
                let id = identity.id();
                let why =
                    format!("`{id}` is not shown yet, what is enforced refuses it: {refused}");
                self.trouble(Topic::Identity, Some(why));
                held.waiting = Some(identity);
            }
        }
    }

    /// Changes the status. How the parts stand follows from it, so no change of it goes unseen.
    fn tell(&self, change: impl FnOnce(&mut Status)) {
        let now = self.trust.clock().now();
        self.status.send_modify(|status| {
            change(status);
            self.parts.saw(status, now);
        });
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Each statement leaves it whole, so a panic elsewhere does not spoil it.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keeper({:?})", self.trust)
    }
}

/// What happens after a credential of our own was revoked, for whoever reads the status.
const fn what_next(reason: Reason) -> &'static str {
    match reason {
        Reason::KeyCompromise | Reason::Superseded | Reason::Unspecified => {
            "the agent brings another one by itself"
        }
        Reason::ProcessCompromise => "another one comes once an operator has resumed the identity",
        Reason::NodeCompromise => "another one comes once the node has attested anew",
        Reason::AuthorityCompromise => "another one comes once another authority signs",
        Reason::CessationOfOperation | Reason::PrivilegeWithdrawn => "no other one comes",
    }
}
