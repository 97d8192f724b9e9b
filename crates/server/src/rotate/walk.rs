//! How roots walk: prepared → published → active → retiring → retired, and from anywhere to tainted (design, section 6).
//!
//! Pure: what may come next follows from where the roots are and from what is known of the trust domain, never from a
//! counter, so that an order that was interrupted goes on wherever it was.

use std::collections::BTreeMap;
use std::time::Duration;

use countersign_api::admin::{Cause, Goal, RootKey, RootState, Step, TrialSummary};
use countersign_identity::{Code, KeyId, Lifetime, Revision, SKEW_ALLOWED, Timestamp, Trial};
use countersign_pki::{Bundle, Certificate};
use countersign_store::{Kind, Record};
use serde::{Deserialize, Serialize};

use crate::authority::Imported;
use crate::refusal::Refused;
use crate::rotate::approval::Approvals;
use crate::rotate::next_key::NextKey;

/// The one record of its kind.
const NAME: &str = "roots";
/// Roots that are kept, the retired ones among them until they end.
const ROOTS_MAX: usize = 16;
/// Issuers of one root outside that are remembered.
const ISSUERS_MAX: usize = 16;
/// How long after the last successor was issued its holders may take to show it instead of the one before.
pub(crate) const SETTLE: Duration = Duration::from_secs(3);
/// How long connections may take to drain that a superseded authority vouches for.
pub(crate) const DRAIN: Duration = Duration::from_secs(30);
/// How long a recovery waits for points that do not answer before it goes on without them.
pub(crate) const REACHABLE: Duration = Duration::from_secs(10);
/// The longest reason on record.
pub(crate) const REASON_BYTES_MAX: usize = 512;

/// Where all roots of the trust domain are, and what was ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Walk {
    /// The oldest first.
    pub(crate) roots: Vec<Root>,
    /// What is under way.
    pub(crate) order: Option<Order>,
    /// What was under way before.
    pub(crate) last: Option<Order>,
    /// What goes on once the recovery from an issuer's leaked key has come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) paused: Option<Order>,
    /// A key that waits for a certificate from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request: Option<Request>,
}

/// An issuer's key that was made for an authority outside, which has to sign its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Request {
    /// The key.
    pub(crate) key: KeyId,
    /// The signing request (PKCS#10), PEM.
    pub(crate) csr: String,
    /// Who asked for it.
    pub(crate) actor: String,
    /// When.
    pub(crate) at: Timestamp,
}

/// One root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Root {
    /// Its key.
    pub(crate) key: KeyId,
    /// Its certificate, PEM.
    pub(crate) certificate: String,
    /// The same key, certified by the root that was active when this one was prepared; PEM.
    pub(crate) cross: Option<String>,
    /// Where it is.
    pub(crate) state: RootState,
    /// Since when.
    pub(crate) since: Timestamp,
    /// Why it must not be trusted any more.
    pub(crate) tainted: Option<Cause>,
    /// The revision that put it into the bundle.
    pub(crate) published: Option<Revision>,
    /// The revision that took out of service what it vouches for.
    pub(crate) superseded: Option<Revision>,
    /// The revision that took it out of the bundle.
    pub(crate) dropped: Option<Revision>,
    /// Where its key is.
    #[serde(default)]
    pub(crate) held: RootKey,
    /// The issuers that a root outside has signed, PEM, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) issuers: Vec<String>,
    /// The issuer whose end was told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) told: Option<KeyId>,
}

/// A walk of several steps that somebody ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Order {
    /// To what end.
    pub(crate) goal: Goal,
    /// The root that has to go; in a recovery it may be an issuer.
    pub(crate) from: KeyId,
    /// Who ordered it.
    pub(crate) actor: String,
    /// Why, in words.
    pub(crate) reason: Option<String>,
    /// When.
    pub(crate) begun: Timestamp,
    /// When it came to its end.
    pub(crate) ended: Option<Timestamp>,
    /// Gates that are not waited for, each with the words of who said so.
    pub(crate) forced: BTreeMap<Step, String>,
    /// Whether an operator has to say the word before a new root becomes active.
    pub(crate) asks: bool,
    /// Which operators have to, as it was declared when the walk was ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) approvals: Option<Approvals>,
    /// Where the new root's key is to be, if somebody said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) root_key: Option<NextKey>,
    /// What was done, in order.
    pub(crate) done: Vec<Done>,
    /// Who had done all of it, at the end.
    pub(crate) proof: Option<Proof>,
}

/// Who enforces what a walk came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Proof {
    /// The revision that they have to have reached.
    pub(crate) revision: Revision,
    /// Enforcement points that are live.
    pub(crate) live: u64,
    /// Those that have acknowledged it.
    pub(crate) enforcing: u64,
    /// Verifiers that cannot acknowledge.
    pub(crate) unaware: u64,
    /// What was tried at their doors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trial: Option<TrialSummary>,
}

/// A step that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Done {
    /// Which.
    pub(crate) step: Step,
    /// When.
    pub(crate) at: Timestamp,
    /// The revision that it made.
    pub(crate) revision: Revision,
}

/// What a gate is judged by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Enforcement points that are live.
    pub(crate) live: u64,
    /// Those that have acknowledged the revision that the gate is about.
    pub(crate) enforcing: u64,
    /// Those that have not, by name.
    pub(crate) missing: Vec<String>,
    /// Verifiers that cannot acknowledge.
    pub(crate) unaware: u64,
    /// Connections that are being drained.
    pub(crate) draining: u64,
    /// Credentials under the root that has to go whose holder has no other yet.
    pub(crate) left: Vec<Left>,
    /// When the latest successor of one of those was issued.
    pub(crate) settled_from: Option<Timestamp>,
    /// How long SVIDs may live.
    pub(crate) lifetime: Option<Lifetime>,
    /// Points whose doors are still to be tried, by name.
    pub(crate) untried: Vec<String>,
    /// Points whose doors were tried, or cannot be.
    pub(crate) tried: u64,
}

/// Credentials that still need a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Whose.
    pub(crate) holder: String,
    /// Until when.
    pub(crate) until: Timestamp,
}

/// Whether a step may be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Yes.
    Open,
    /// Not yet.
    Waits {
        /// For what, as a sentence.
        why: String,
        /// How much of it has happened.
        done: u64,
        /// Of how much.
        of: u64,
        /// Who is missing, by name.
        missing: Vec<String>,
        /// When it opens by itself, at the latest, if that is known.
        until: Option<Timestamp>,
    },
}

impl Gate {
    /// Whether the step may be taken.
    pub(crate) fn is_open(&self) -> bool {
        *self == Self::Open
    }
}

impl Root {
    /// A root at the beginning of its walk.
    pub(crate) fn prepared(
        certificate: &Certificate,
        cross: Option<&Certificate>,
        at: Timestamp,
    ) -> Self {
        Self {
            key: certificate.key_id(),
            certificate: certificate.to_pem(),
            cross: cross.map(Certificate::to_pem),
            state: RootState::Prepared,
            since: at,
            tainted: None,
            published: None,
            superseded: None,
            dropped: None,
            held: RootKey::Here,
            issuers: Vec::new(),
            told: None,
        }
    }

    /// The certificates of the issuers that came from outside.
    ///
    /// # Errors
    /// When the record does not hold them.
    pub(crate) fn imported(&self) -> Result<Vec<Certificate>, Refused> {
        self.issuers.iter().map(|pem| parse(pem)).collect()
    }

    /// The issuer that a root outside signed last.
    pub(crate) fn issuer(&self) -> Option<KeyId> {
        let newest = self.issuers.last()?;
        parse(newest).ok().map(|certificate| certificate.key_id())
    }

    /// Its certificate.
    ///
    /// # Errors
    /// When the record does not hold one.
    pub(crate) fn certificate(&self) -> Result<Certificate, Refused> {
        parse(&self.certificate)
    }

    /// Its cross-certificate, if it has one.
    ///
    /// # Errors
    /// As for its own.
    pub(crate) fn cross(&self) -> Result<Option<Certificate>, Refused> {
        self.cross.as_deref().map(parse).transpose()
    }

    /// Whether it is in the bundle.
    pub(crate) fn is_trusted(&self) -> bool {
        matches!(self.state, RootState::Published | RootState::Active | RootState::Retiring)
    }

    fn becomes(&mut self, state: RootState, at: Timestamp) {
        (self.state, self.since) = (state, at);
    }
}

fn parse(pem: &str) -> Result<Certificate, Refused> {
    Certificate::from_pem(pem)
        .map_err(|bad| Refused::new(Code::Internal, format!("a root on record: {bad}")))
}

impl Walk {
    /// The walk of a trust domain that begins: its first root is trusted from the first revision on.
    pub(crate) fn first(certificate: &Certificate, at: Timestamp) -> Self {
        let mut root = Root::prepared(certificate, None, at);
        root.state = RootState::Active;
        Self { roots: vec![root], order: None, last: None, paused: None, request: None }
    }

    /// As the state keeps it.
    pub(crate) fn record(&self) -> Record {
        let value = serde_json::to_vec(self).expect("a walk always has a JSON form");
        Record { kind: Kind::Walk, name: NAME.to_owned(), value }
    }

    /// The root that signs issuers now.
    ///
    /// # Errors
    /// When the record holds none, which is a defect.
    pub(crate) fn active(&self) -> Result<&Root, Refused> {
        let mut active = self.roots.iter().filter(|root| root.state == RootState::Active);
        match (active.next(), active.next()) {
            (Some(root), None) => Ok(root),
            _ => Err(Refused::new(Code::Internal, "there is not exactly one active root")),
        }
    }

    /// The root that comes next, if one was prepared.
    pub(crate) fn successor(&self) -> Option<&Root> {
        let next = |root: &&Root| {
            matches!(root.state, RootState::Prepared | RootState::Published)
                && root.tainted.is_none()
        };
        self.roots.iter().find(next)
    }

    /// The root of this key.
    pub(crate) fn root(&self, key: KeyId) -> Option<&Root> {
        self.roots.iter().find(|root| root.key == key)
    }

    /// Roots that are in the bundle and on their way out.
    pub(crate) fn retiring(&self) -> impl Iterator<Item = &Root> {
        self.roots.iter().filter(|root| root.state == RootState::Retiring)
    }

    /// Whether this key is a root's.
    pub(crate) fn is_root(&self, key: KeyId) -> bool {
        self.root(key).is_some()
    }

    /// Takes note of an issuer that a root outside has signed.
    ///
    /// # Errors
    /// When the root is not on record.
    pub(crate) fn take_in(&mut self, imported: &Imported) -> Result<(), Refused> {
        let begins = imported.issuer.certificate().validity().not_before;
        let root = self.root_mut(imported.root.key_id())?;
        root.held = RootKey::External;
        root.issuers.retain(|pem| parse(pem).is_ok_and(|one| begins < one.validity().not_after));
        root.issuers.push(imported.issuer.certificate().to_pem());
        let over = root.issuers.len().saturating_sub(ISSUERS_MAX);
        root.issuers.drain(..over);
        Ok(())
    }

    /// The certificates of active roots whose key is outside: what those sign is taken in at once.
    ///
    /// # Errors
    /// When the record does not hold them.
    pub(crate) fn outside(&self) -> Result<Vec<Certificate>, Refused> {
        let active = self.roots.iter().filter(|root| root.state == RootState::Active);
        active.filter(|root| root.held == RootKey::External).map(Root::certificate).collect()
    }

    /// Takes note of where the key of a root is.
    ///
    /// # Errors
    /// When it is not on record.
    pub(crate) fn hold(&mut self, root: KeyId, held: RootKey) -> Result<(), Refused> {
        self.root_mut(root)?.held = held;
        Ok(())
    }

    /// Takes note that somebody was told of an issuer's end.
    ///
    /// # Errors
    /// When its root is not on record.
    pub(crate) fn tell(&mut self, root: KeyId, issuer: KeyId) -> Result<(), Refused> {
        self.root_mut(root)?.told = Some(issuer);
        Ok(())
    }

    fn root_mut(&mut self, key: KeyId) -> Result<&mut Root, Refused> {
        let found = self.roots.iter_mut().find(|root| root.key == key);
        found.ok_or_else(|| unknown(key))
    }

    /// What an order comes to next; `None` when nothing is left of it.
    pub(crate) fn next(&self) -> Option<Step> {
        let order = self.order.as_ref()?;
        let unless_done = |step| Some(step).filter(|step| !order.has(*step));
        let aftermath = || {
            let steps = [Step::Condemn, Step::Reissue, Step::Confirm, Step::Prove];
            steps.into_iter().find_map(unless_done)
        };
        let Some(from) = self.root(order.from) else {
            return aftermath().filter(|_| order.goal == Goal::Recover);
        };
        match (order.goal, from.state) {
            // The one that has to go signs still: it needs a successor first.
            (Goal::Rotate | Goal::Recover, RootState::Active) => match self.successor() {
                None => Some(Step::Prepare),
                Some(Root { state: RootState::Prepared, .. }) => Some(Step::Publish),
                Some(_) => Some(Step::Activate),
            },
            (Goal::Recover, _) => aftermath(),
            (Goal::Rotate | Goal::Retire, RootState::Retiring) => match from.superseded {
                None => Some(Step::Supersede),
                Some(_) => Some(Step::Retire),
            },
            (Goal::Rotate | Goal::Retire, RootState::Retired) => unless_done(Step::Confirm),
            // Taken back meanwhile.
            (Goal::Rotate | Goal::Retire, _) => None,
        }
    }

    /// The revision whose acknowledgement the next step waits for.
    pub(crate) fn awaited(&self, step: Step) -> Option<Revision> {
        let order = self.order.as_ref();
        let from = order.and_then(|order| self.root(order.from));
        match step {
            Step::Activate => self.successor()?.published,
            Step::Retire => from?.superseded,
            Step::Confirm => self.dropped(),
            Step::Prove => order?.trial(),
            Step::Prepare
            | Step::Publish
            | Step::Supersede
            | Step::Condemn
            | Step::Reissue
            | Step::Rollback
            | Step::Taint => None,
        }
    }

    /// The revision that put the order's authority out of all trust.
    pub(crate) fn dropped(&self) -> Option<Revision> {
        let order = self.order.as_ref()?;
        match self.root(order.from) {
            Some(root) => root.dropped,
            None => order.made(Step::Condemn),
        }
    }

    /// Whether a step may be taken now. What an operator forced is open.
    pub(crate) fn gate(&self, step: Step, facts: &Facts, now: Timestamp) -> Gate {
        let order = self.order.as_ref();
        if step == Step::Activate
            && let waits @ Gate::Waits { .. } = self.approval()
        {
            return waits;
        }
        if order.is_some_and(|order| order.forced.contains_key(&step)) {
            return Gate::Open;
        }
        let recovering = order.is_some_and(|order| order.goal == Goal::Recover);
        match step {
            Step::Prepare => self.can_prepare(),
            Step::Publish | Step::Condemn | Step::Rollback | Step::Taint => Gate::Open,
            Step::Activate if order.is_some_and(|order| order.asks) => Gate::Waits {
                why: "an operator has to say `countersign authority activate`".to_owned(),
                done: 0,
                of: 1,
                missing: Vec::new(),
                until: None,
            },
            Step::Activate => self.published_everywhere(facts, recovering, now),
            Step::Supersede | Step::Reissue => reissued(facts, now),
            Step::Retire => self.drained(facts, now),
            Step::Confirm => acknowledged(facts),
            Step::Prove => tried(facts, order.and_then(|order| order.at(Step::Confirm)), now),
        }
    }

    fn published_everywhere(&self, facts: &Facts, recovering: bool, now: Timestamp) -> Gate {
        let since = self.successor().map_or(now, |root| root.since);
        if recovering && since + REACHABLE <= now {
            return Gate::Open;
        }
        let points = acknowledged(facts);
        if !points.is_open() || recovering {
            return match points {
                Gate::Waits { why, done, of, missing, .. } if recovering => {
                    Gate::Waits { why, done, of, missing, until: Some(since + REACHABLE) }
                }
                points => points,
            };
        }
        // Whoever cannot acknowledge has been told by its next renewal.
        let told = facts.lifetime.map_or(since, |lifetime| since + lifetime.duration() / 2);
        if facts.unaware == 0 || told <= now {
            return Gate::Open;
        }
        let unaware = facts.unaware;
        Gate::Waits {
            why: format!(
                "{unaware} that cannot acknowledge have the new root with their next renewal"
            ),
            done: facts.enforcing,
            of: facts.live + unaware,
            missing: Vec::new(),
            until: Some(told),
        }
    }

    fn drained(&self, facts: &Facts, now: Timestamp) -> Gate {
        let points = acknowledged(facts);
        if !points.is_open() || facts.draining == 0 {
            return points;
        }
        let since = self.order.as_ref().and_then(|order| order.at(Step::Supersede));
        let until = since.unwrap_or(now) + DRAIN;
        if until <= now {
            return Gate::Open;
        }
        Gate::Waits {
            why: format!("{} connections under the old root are being drained", facts.draining),
            done: 0,
            of: facts.draining,
            missing: Vec::new(),
            until: Some(until),
        }
    }

    /// Takes note of a new root.
    ///
    /// # Errors
    /// When there is a successor already, or too many roots are on record.
    pub(crate) fn prepare(&mut self, root: Root, now: Timestamp) -> Result<(), Refused> {
        if let Some(next) = self.successor() {
            let why = format!("root `{}` is {} already: go on with it", next.key, next.state);
            return Err(Refused::new(Code::AlreadyExists, why));
        }
        let ended = |root: &Root| {
            let over = root.certificate().is_ok_and(|it| it.validity().not_after < now);
            root.state == RootState::Retired && over
        };
        self.roots.retain(|root| !ended(root));
        if ROOTS_MAX <= self.roots.len() {
            let oldest = self.roots.iter().position(|root| root.state == RootState::Retired);
            let oldest = oldest.ok_or_else(|| {
                Refused::new(Code::TooLarge, format!("{ROOTS_MAX} roots are on record"))
            })?;
            self.roots.remove(oldest);
        }
        self.roots.push(root);
        Ok(())
    }

    /// The successor is in the bundle from this revision on.
    ///
    /// # Errors
    /// When none is prepared.
    pub(crate) fn publish(&mut self, revision: Revision, at: Timestamp) -> Result<KeyId, Refused> {
        let next = self.in_state(RootState::Prepared, "prepare")?;
        let root = self.root_mut(next)?;
        root.becomes(RootState::Published, at);
        root.published = Some(revision);
        Ok(next)
    }

    /// The successor signs from now on, and the root before it is on its way out.
    ///
    /// # Errors
    /// When none is published.
    pub(crate) fn activate(&mut self, at: Timestamp) -> Result<(KeyId, KeyId), Refused> {
        let next = self.in_state(RootState::Published, "publish")?;
        let before = self.active()?.key;
        self.root_mut(before)?.becomes(RootState::Retiring, at);
        self.root_mut(next)?.becomes(RootState::Active, at);
        Ok((before, next))
    }

    /// What the root vouches for is out of service from this revision on.
    ///
    /// # Errors
    /// When it signs still.
    pub(crate) fn supersede(&mut self, key: KeyId, revision: Revision) -> Result<(), Refused> {
        let root = self.root_mut(key)?;
        if root.state != RootState::Retiring {
            return Err(wrong_state(root, "retire", "retiring"));
        }
        root.superseded = Some(revision);
        Ok(())
    }

    /// The root is not in the bundle any more from this revision on.
    ///
    /// # Errors
    /// When it signs still, or what it vouches for is in service.
    pub(crate) fn retire(
        &mut self,
        key: KeyId,
        revision: Revision,
        at: Timestamp,
    ) -> Result<(), Refused> {
        let root = self.root_mut(key)?;
        if root.state != RootState::Retiring || root.superseded.is_none() {
            return Err(wrong_state(root, "retire", "retiring, with nothing under it in service"));
        }
        root.becomes(RootState::Retired, at);
        root.dropped = Some(revision);
        Ok(())
    }

    /// Nothing under the root counts any more, and it is not in the bundle, from this revision on.
    ///
    /// # Errors
    /// When it signs still.
    pub(crate) fn condemn(
        &mut self,
        key: KeyId,
        revision: Revision,
        at: Timestamp,
    ) -> Result<(), Refused> {
        let root = self.root_mut(key)?;
        if root.state == RootState::Active {
            return Err(wrong_state(root, "condemn", "succeeded"));
        }
        root.becomes(RootState::Retired, at);
        root.tainted = Some(Cause::Compromised);
        (root.superseded, root.dropped) = (Some(revision), Some(revision));
        Ok(())
    }

    /// A root must not be trusted any more, for this cause.
    ///
    /// # Errors
    /// When there is no such root, or it is retired.
    pub(crate) fn taint(&mut self, key: KeyId, cause: Cause) -> Result<(), Refused> {
        let root = self.root_mut(key)?;
        if root.state == RootState::Retired {
            return Err(wrong_state(root, "taint", "in the bundle"));
        }
        root.tainted = Some(cause);
        Ok(())
    }

    /// Goes back by one rotation, as long as the older root is not retired: gives the root that signs after it, and the one
    /// that leaves.
    ///
    /// # Errors
    /// When nothing can be taken back.
    pub(crate) fn rollback(
        &mut self,
        at: Timestamp,
    ) -> Result<(Option<KeyId>, KeyId, RootState), Refused> {
        if let Some(next) = self.successor() {
            let (key, was) = (next.key, next.state);
            // Never in use: nothing depends on it.
            self.roots.retain(|root| root.key != key);
            self.call_off()?;
            return Ok((None, key, was));
        }
        if self.is_recovering() {
            let why = "a recovery is beyond recall once its new root signs: going back would leave a leaked key trusted";
            return Err(Refused::new(Code::Forbidden, why));
        }
        let back = self.retiring().filter(|root| root.tainted.is_none()).last();
        let Some(back) = back else {
            let why = "there is nothing to take back: no root is prepared, published or retiring";
            return Err(Refused::new(Code::NotFound, why));
        };
        if back.superseded.is_some() {
            let why = format!(
                "root `{}` is beyond recall: what it vouches for is out of service; rotate forward",
                back.key
            );
            return Err(Refused::new(Code::Forbidden, why));
        }
        let (back, leaving) = (back.key, self.active()?.key);
        self.root_mut(leaving)?.becomes(RootState::Retiring, at);
        self.root_mut(back)?.becomes(RootState::Active, at);
        self.call_off()?;
        Ok((Some(back), leaving, RootState::Active))
    }

    /// Whether a root goes because its key leaked.
    pub(crate) fn is_recovering(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.goal == Goal::Recover)
    }

    /// Nothing is ordered any more. Who takes a recovery back takes back that the key leaked.
    fn call_off(&mut self) -> Result<(), Refused> {
        let of_issuer = self.order.as_ref().is_some_and(|order| !self.is_root(order.from));
        if of_issuer {
            // The recovery goes on; what waits for it does not.
            self.last = self.paused.take().or(self.last.take());
            return Ok(());
        }
        let Some(order) = self.order.take() else { return Ok(()) };
        if order.goal == Goal::Recover {
            self.root_mut(order.from)?.tainted = None;
        }
        self.last = Some(order);
        Ok(())
    }

    /// Begins an order.
    ///
    /// # Errors
    /// When another is under way.
    pub(crate) fn begin(&mut self, order: Order) -> Result<(), Refused> {
        // What leaked does not wait for what is merely due.
        let urgent = order.goal == Goal::Recover;
        let of_root = self.is_root(order.from);
        if let Some(under_way) = &self.order
            && (!urgent
                || under_way.goal == Goal::Recover && (!of_root || self.is_root(under_way.from)))
        {
            let why = format!(
                "a walk to {} ordered by {} at {} is under way: let it end, or roll it back",
                under_way.goal, under_way.actor, under_way.begun
            );
            return Err(Refused::new(Code::AlreadyExists, why));
        }
        if !urgent {
            let root = self.root(order.from).ok_or_else(|| unknown(order.from))?;
            if root.state == RootState::Retired {
                return Err(wrong_state(root, "rotate", "in the bundle"));
            }
        }
        match self.order.replace(order) {
            // A root's leaked key ends what else is under way; an issuer's comes in between.
            Some(before) if of_root || before.goal == Goal::Recover => self.last = Some(before),
            Some(before) => self.paused = Some(before),
            None => {}
        }
        if of_root
            && urgent
            && let Some(paused) = self.paused.take()
        {
            self.last = Some(paused);
        }
        Ok(())
    }

    /// Takes note of a step of the order.
    pub(crate) fn did(&mut self, step: Step, revision: Revision, at: Timestamp) {
        if let Some(order) = &mut self.order {
            order.done.push(Done { step, at, revision });
        }
    }

    /// The order has come to its end.
    pub(crate) fn end(&mut self, proof: Option<Proof>, at: Timestamp) {
        if let Some(order) = self.order.take() {
            self.last = Some(Order { ended: Some(at), proof, ..order });
        }
        self.order = self.paused.take();
    }

    /// The bundle that follows from where the roots are.
    ///
    /// # Errors
    /// When the record does not hold the certificates.
    pub(crate) fn bundle(&self, before: &Bundle, within: Duration) -> Result<Bundle, Refused> {
        let authorities = self
            .roots
            .iter()
            .filter(|root| root.is_trusted())
            .map(Root::certificate)
            .collect::<Result<_, _>>()?;
        let retiring: Vec<_> = self.retiring().map(|root| root.key).collect();
        Ok(Bundle {
            authorities,
            sequence: before.sequence + 1,
            reissue_within: if retiring.is_empty() { Duration::ZERO } else { within },
            retiring,
            ..before.clone()
        })
    }

    fn in_state(&self, state: RootState, before: &str) -> Result<KeyId, Refused> {
        match self.successor() {
            Some(root) if root.state == state => Ok(root.key),
            Some(root) => Err(wrong_state(root, "go on", state.as_str())),
            None => {
                let why =
                    format!("no root is {state}: `countersign authority {before}` comes first");
                Err(Refused::new(Code::NotFound, why))
            }
        }
    }
}

impl Order {
    /// An order of which nothing is done yet.
    pub(crate) fn new(
        goal: Goal,
        from: KeyId,
        actor: &str,
        reason: Option<String>,
        begun: Timestamp,
    ) -> Self {
        Self {
            goal,
            from,
            actor: actor.to_owned(),
            reason,
            begun,
            ended: None,
            forced: BTreeMap::new(),
            asks: false,
            approvals: None,
            root_key: None,
            done: Vec::new(),
            proof: None,
        }
    }

    fn has(&self, step: Step) -> bool {
        self.done.iter().any(|done| done.step == step)
    }

    fn at(&self, step: Step) -> Option<Timestamp> {
        self.done.iter().rfind(|done| done.step == step).map(|done| done.at)
    }

    fn made(&self, step: Step) -> Option<Revision> {
        self.done.iter().rfind(|done| done.step == step).map(|done| done.revision)
    }

    /// The trial that a recovery ends with. Its rule is of the revision that takes note of everybody's acknowledgement.
    pub(crate) fn trial(&self) -> Option<Revision> {
        self.made(Step::Confirm).filter(|_| self.goal == Goal::Recover)
    }

    /// All steps from the first to the last, for people; `of_root`: when a root has to go.
    pub(crate) fn steps(&self, of_root: bool) -> &'static [Step] {
        match self.goal {
            Goal::Recover if !of_root => {
                &[Step::Condemn, Step::Reissue, Step::Confirm, Step::Prove]
            }
            Goal::Rotate => &[
                Step::Prepare,
                Step::Publish,
                Step::Activate,
                Step::Supersede,
                Step::Retire,
                Step::Confirm,
            ],
            Goal::Retire => &[Step::Supersede, Step::Retire, Step::Confirm],
            Goal::Recover => &[
                Step::Prepare,
                Step::Publish,
                Step::Activate,
                Step::Condemn,
                Step::Reissue,
                Step::Confirm,
                Step::Prove,
            ],
        }
    }
}

fn acknowledged(facts: &Facts) -> Gate {
    if facts.enforcing == facts.live {
        return Gate::Open;
    }
    Gate::Waits {
        why: format!(
            "{} of {} enforcement points have it{}",
            facts.enforcing,
            facts.live,
            named(&facts.missing)
        ),
        done: facts.enforcing,
        of: facts.live,
        missing: facts.missing.clone(),
        until: None,
    }
}

/// Every door was tried, as far as it can be, or the time for it is over.
fn tried(facts: &Facts, since: Option<Timestamp>, now: Timestamp) -> Gate {
    let until = since.unwrap_or(now) + Trial::TIME;
    if facts.untried.is_empty() || until <= now {
        return Gate::Open;
    }
    let of = facts.tried + facts.untried.len() as u64;
    Gate::Waits {
        why: format!(
            "{} of {of} enforcement points were tried with canaries{}",
            facts.tried,
            named(&facts.untried)
        ),
        done: facts.tried,
        of,
        missing: facts.untried.clone(),
        until: Some(until),
    }
}

/// The first of those who are missing.
fn named(missing: &[String]) -> String {
    let Some(first) = missing.first() else { return String::new() };
    match missing.len() {
        1 => format!("; missing: {first}"),
        several => format!("; missing: {first} and {} more", several - 1),
    }
}

fn reissued(facts: &Facts, now: Timestamp) -> Gate {
    let left: Vec<_> = facts.left.iter().filter(|left| now <= left.until + SKEW_ALLOWED).collect();
    if let Some(last) = left.iter().map(|left| left.until).max() {
        let mut missing: Vec<_> = left.iter().map(|left| left.holder.clone()).collect();
        missing.dedup();
        return Gate::Waits {
            why: format!(
                "{} credentials under the old root have no successor yet{}",
                left.len(),
                named(&missing)
            ),
            done: 0,
            of: left.len() as u64,
            missing,
            until: Some(last + SKEW_ALLOWED),
        };
    }
    match facts.settled_from.map(|latest| latest + SETTLE) {
        Some(settled) if now < settled => Gate::Waits {
            why: "the latest successors are on their way to who shows them".to_owned(),
            done: 0,
            of: 1,
            missing: Vec::new(),
            until: Some(settled),
        },
        Some(_) | None => Gate::Open,
    }
}

fn unknown(key: KeyId) -> Refused {
    let why =
        format!("no root with key `{key}` is on record; `countersign authority list` shows them");
    Refused::new(Code::NotFound, why)
}

fn wrong_state(root: &Root, what: &str, expected: &str) -> Refused {
    let why =
        format!("cannot {what} root `{}`: it is {}, expected {expected}", root.key, root.state);
    Refused::new(Code::Forbidden, why)
}
