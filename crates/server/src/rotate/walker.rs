//! The hands of the walk: each step is one commit for the revision that it was decided on.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_api::admin::{
    Cause, Convergence, Goal, RootState, Step, StepRequest, TrialSummary, TrialView, VerifiedPoint,
};
use countersign_api::resource::{Approval, AuthoritySpec};
use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, KeyId, Lifetime, Reason, Revision, Timestamp, backdate};
use countersign_pki::{Certificate, Issuer, KeyKind, PrivateKey, Signer, SoftwareSigner};
use countersign_store::{Batch, Change, Kind, Record};
use tokio_util::sync::CancellationToken;

use crate::authority::{
    Authorities, Ceremony, ISSUER, Kept, KeptKey, ROOT, Rotation, Signing, copy, destroy, internal,
    issuer_name, keep, open_authority, root_name,
};
use crate::control::Control;
use crate::refusal::Refused;
use crate::revoke::{Watched, condemned, look, shown, trial_batch};
use crate::rotate::approval::Approvals;
use crate::rotate::gate::{Facts, Gate};
use crate::rotate::ledger::Ledger;
use crate::rotate::next_key::NextKey;
use crate::rotate::order::{Order, Proof, REASON_BYTES_MAX};
use crate::rotate::root::Root;
use crate::rotate::walk::Walk;
use crate::state::State;

/// How often a walk that is under way is looked at.
const TICK: Duration = Duration::from_millis(200);
/// A look that took long, or during which the clock was set, delays the next by no more.
const EFFORT_MAX: Duration = Duration::from_secs(5);
/// How soon a step is tried again that did not happen because something is away.
const AGAIN: Duration = Duration::from_secs(2);
/// How often the schedule is looked at.
const LOOK: Duration = Duration::from_secs(30);
/// The lease under which one replica walks.
const LEASE: &str = "authority/walk";
const LEASE_TIME: Duration = Duration::from_secs(10);
/// Certificates that one core issues in a second, with much to spare: a mass re-issue is spread accordingly.
const ISSUES_PER_CORE: u64 = 1000;
/// Who walks by the schedule.
const SCHEDULE: &str = "schedule";
/// Names of who is missing that an answer holds.
pub(super) const MISSING_MAX: usize = 100;

/// Who takes the steps.
pub(crate) struct Walker {
    pub(crate) control: Arc<Control>,
    pub(crate) rotation: Arc<Rotation>,
    memory: Mutex<Memory>,
}

/// What is known only here, and found out again after a restart.
#[derive(Debug, Default)]
struct Memory {
    /// How long the last look at everything that is out took.
    effort: Duration,
    leased_until: Option<Timestamp>,
    /// Since when nothing is left under the root that has to go.
    settled: Option<(KeyId, Timestamp)>,
    /// What was said last, so that it is said once.
    said: Option<String>,
    /// Why a step whose gate is open did not happen.
    kept: Option<(Step, String)>,
}

/// A step that is about to be committed.
pub(super) struct Draft {
    pub(super) walk: Walk,
    pub(super) batch: Batch,
    /// What signs after it.
    pub(super) authorities: Option<Authorities>,
}

impl Walker {
    pub(crate) fn new(control: Arc<Control>, rotation: Arc<Rotation>) -> Self {
        Self { control, rotation, memory: Mutex::default() }
    }

    /// Takes the steps of what was ordered, each when its gate opens, until stopped. What fails is told and tried again.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut states = self.control.feed.watch();
        loop {
            let (walking, least) = match self.tick().await {
                Ok(walking) => (walking, TICK),
                Err(refused) if refused.code == Code::StaleBase => (true, TICK),
                Err(refused) => {
                    self.say(&format!("a walk of the authorities waits: {}", refused.why));
                    // What is away is not pressed.
                    let away = refused.code == Code::Unavailable;
                    (true, if away { AGAIN } else { TICK })
                }
            };
            states.mark_unchanged();
            // Where a look is work, the work is a tenth of the time at most.
            let effort = (self.memory().effort * 10).min(EFFORT_MAX);
            let pause = if walking { least.max(effort) } else { LOOK };
            let again = self.control.clock.now() + pause;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.control.clock.sleep_until(again) => {}
                Ok(()) = states.changed(), if !walking => {}
            }
        }
    }

    /// Looks once; says whether something is under way.
    ///
    /// # Errors
    /// When a step that was due did not happen.
    pub(crate) async fn tick(&self) -> Result<bool, Refused> {
        let state = self.control.feed.current();
        let walk = Arc::clone(state.walk()?);
        if walk.order.is_none() {
            if self.rotation.authorities.load().is_outside() && self.leads().await? {
                self.tell_of_ceremony(&state, &walk).await?;
            }
            return self.schedule(&walk).await;
        }
        if !self.leads().await? {
            return Ok(true);
        }
        let Some(step) = walk.next() else {
            self.finish(&state, &walk).await?;
            return Ok(true);
        };
        match self.gate(&state, &walk, step).await? {
            Gate::Open => {
                let actor = walk.order.as_ref().map_or(SCHEDULE, |order| &order.actor).to_owned();
                let taken = self.take(step, &actor, None).await;
                let kept = taken.as_ref().err().filter(|why| why.code == Code::Unavailable);
                self.memory().kept = kept.map(|refused| (step, refused.why.clone()));
                taken?;
            }
            Gate::Waits { why, .. } => self.say(&format!("waiting to {step}: {why}")),
        }
        Ok(true)
    }

    /// Begins the rotation that the age of the root asks for.
    async fn schedule(&self, walk: &Walk) -> Result<bool, Refused> {
        let now = self.control.clock.now();
        let active = walk.active()?;
        let validity = active.certificate()?.validity();
        let spec = self.control.feed.current().authority();
        // A root that lives shorter than the usual notice is succeeded in the last quarter of its life.
        let life = validity.not_after.since(validity.not_before);
        let notice = spec.prepare_before.duration();
        let notice = if life <= notice { life / 4 } else { notice };
        if now + notice < validity.not_after || !self.leads().await? {
            return Ok(false);
        }
        let reason = Some(format!("the root ends at {}", validity.not_after));
        let order = Order::new(Goal::Rotate, active.key, SCHEDULE, reason, now);
        self.begin(asking(&self.control.feed.current(), order)).await?;
        Ok(true)
    }

    /// The revision that the next commit makes.
    pub(super) fn next(&self, state: &State) -> Revision {
        next(state)
    }

    /// Whether this replica is the one that walks.
    async fn leads(&self) -> Result<bool, Refused> {
        let now = self.rotation.time.trusted(self.control.clock.now())?;
        let until = self.memory().leased_until;
        if until.is_some_and(|until| now + LEASE_TIME / 2 < until) {
            return Ok(true);
        }
        let holder = &self.rotation.holder;
        let led = self.control.store.lease(LEASE, holder, LEASE_TIME, now).await?;
        self.memory().leased_until = led.then(|| now + LEASE_TIME);
        Ok(led)
    }

    /// What a step waits for: its gate, or what kept it from happening when it was tried last.
    pub(super) fn kept_by(&self, step: Step, gate: Gate) -> Gate {
        let memory = self.memory();
        match memory.kept.as_ref().filter(|(of, _)| *of == step && gate.is_open()) {
            Some((_, why)) => {
                let why = why.clone();
                Gate::Waits { why, done: 0, of: 1, missing: Vec::new(), until: None }
            }
            None => gate,
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, what: &str) {
        let mut memory = self.memory();
        if memory.said.as_deref() != Some(what) {
            tracing::info!("{what}");
            memory.said = Some(what.to_owned());
        }
    }

    /// Whether a step may be taken now, and what it waits for.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn gate(
        &self,
        state: &State,
        walk: &Walk,
        step: Step,
    ) -> Result<Gate, Refused> {
        let now = self.control.clock.now();
        let facts = self.facts(state, walk, step, now).await?;
        Ok(walk.gate(step, &facts, now))
    }

    async fn facts(
        &self,
        state: &State,
        walk: &Walk,
        step: Step,
        now: Timestamp,
    ) -> Result<Facts, Refused> {
        let usual = state.domain().svid_lifetime;
        let lifetimes = state.workloads().map(|(_, spec)| spec.lifetime.unwrap_or(usual));
        let mut facts = Facts { lifetime: lifetimes.max(), ..Facts::default() };
        if let Some(revision) = walk.awaited(step) {
            let Convergence { live, enforcing, missing, unaware, draining, .. } =
                look(&self.control, revision, None).await?;
            let missing = missing.into_iter().take(MISSING_MAX);
            facts.missing =
                missing.map(|point| format!("{} of {}", point.point, point.spiffe_id)).collect();
            (facts.live, facts.enforcing) = (live, enforcing);
            (facts.unaware, facts.draining) = (unaware, draining);
        }
        if step == Step::Prove
            && let Some(trial) = walk.order.as_ref().and_then(Order::trial)
        {
            (facts.tried, facts.untried) = self.tried(trial).await?;
        }
        if matches!(step, Step::Supersede | Step::Reissue)
            && let Some(from) = walk.order.as_ref().map(|order| order.from)
        {
            let ledger = Ledger::read(&*self.control.store, walk, now).await?;
            self.memory().effort = self.control.clock.now().since(now);
            let issuers = match walk.is_root(from) {
                true => ledger.issuers_of(from).map(|row| row.key).collect(),
                false => BTreeSet::from([from]),
            };
            facts.left = ledger.left(&issuers, state);
            facts.settled_from = self.settled(from, facts.left.is_empty(), now);
        }
        Ok(facts)
    }

    /// How many points a trial is done with, and which are still to be tried.
    async fn tried(&self, trial: Revision) -> Result<(u64, Vec<String>), Refused> {
        let Some(view) = look(&self.control, trial, Some(trial)).await?.trial else {
            return Ok((0, Vec::new()));
        };
        let (pending, given_up): (Vec<_>, Vec<_>) =
            view.unverified.into_iter().partition(|point| point.pending);
        let pending = pending.iter().take(MISSING_MAX);
        let untried = pending.map(|point| format!("{} of {}", point.point, point.spiffe_id));
        Ok(((view.verified.len() + given_up.len()) as u64, untried.collect()))
    }

    /// Since when nothing is left under a root.
    fn settled(&self, from: KeyId, is_settled: bool, now: Timestamp) -> Option<Timestamp> {
        let mut memory = self.memory();
        memory.settled = match memory.settled {
            Some((root, since)) if is_settled && root == from => Some((root, since)),
            _ if is_settled => Some((from, now)),
            _ => None,
        };
        memory.settled.map(|(_, since)| since)
    }

    /// Orders a walk.
    ///
    /// # Errors
    /// When another is under way, or the root is none that could go.
    pub(crate) async fn order(
        &self,
        goal: Goal,
        from: KeyId,
        actor: &str,
        reason: Option<String>,
        root_key: Option<NextKey>,
    ) -> Result<Revision, Refused> {
        check_words(reason.as_deref())?;
        let now = self.rotation.time.trusted(self.control.clock.now())?;
        let state = self.control.feed.current();
        state.walk()?.needs_key(goal, from, root_key.as_ref())?;
        let order = Order { root_key, ..Order::new(goal, from, actor, reason, now) };
        self.begin(by_hand(&state, order)).await
    }

    async fn begin(&self, order: Order) -> Result<Revision, Refused> {
        let now = order.begun;
        let state = self.control.feed.current();
        let mut walk = Walk::clone(state.walk()?);
        let mut details = serde_json::json!({ "goal": order.goal, "reason": order.reason });
        if let Some(Approvals { needed, among, .. }) = &order.approvals {
            (details["needed"], details["among"]) = ((*needed).into(), among.clone().into());
        }
        let (actor, from) = (order.actor.clone(), order.from);
        walk.begin(order)?;
        let event = Event::new(EventKind::WalkOrdered, now, actor, from.to_string());
        let batch = Batch { events: vec![event.with_details(details)], ..Batch::default() };
        self.commit(&state, Draft { walk, batch, authorities: None }, now).await
    }

    /// The order has come to its end.
    async fn finish(&self, state: &State, walk: &Walk) -> Result<(), Refused> {
        let now = self.control.clock.now();
        let mut walk = walk.clone();
        let (actor, from, goal) = match &walk.order {
            Some(order) => (order.actor.clone(), order.from, order.goal),
            None => return Ok(()),
        };
        let trial = walk.order.as_ref().and_then(Order::trial);
        let proof = match walk.dropped() {
            Some(revision) => {
                let Convergence { live, enforcing, unaware, trial, .. } =
                    look(&self.control, revision, trial).await?;
                let trial = trial.map(summary);
                Some(Proof { revision, live, enforcing, unaware, trial })
            }
            None => None,
        };
        walk.end(proof.clone(), now);
        let details = serde_json::json!({ "goal": goal, "ended": now, "proof": proof });
        let event = Event::new(EventKind::WalkOrdered, now, actor, from.to_string());
        let batch = Batch { events: vec![event.with_details(details)], ..Batch::default() };
        self.commit(state, Draft { walk, batch, authorities: None }, now).await?;
        tracing::info!(root = %from, %goal, "a walk of the authorities has come to its end");
        Ok(())
    }

    /// Takes one step, whatever its gate says; `force` are the words of who wanted that.
    ///
    /// # Errors
    /// When the roots are not where the step begins; nothing is half-done.
    pub(crate) async fn take(
        &self,
        step: Step,
        actor: &str,
        force: Option<&str>,
    ) -> Result<Revision, Refused> {
        self.take_with(step, actor, force, None).await
    }

    /// The same; a root that is prepared gets this key, or the one that its order names.
    async fn take_with(
        &self,
        step: Step,
        actor: &str,
        force: Option<&str>,
        root_key: Option<NextKey>,
    ) -> Result<Revision, Refused> {
        let now = self.rotation.time.trusted(self.control.clock.now())?;
        let state = self.control.feed.current();
        let walk = Walk::clone(state.walk()?);
        let from = walk.order.as_ref().map(|order| order.from);
        let mut draft = match step {
            Step::Prepare => self.prepare(walk, root_key, force.is_some(), now).await?,
            Step::Publish => self.publish(&state, walk, now)?,
            Step::Activate => self.activate(&state, walk, now).await?,
            Step::Supersede => self.supersede(&state, walk, actor, now).await?,
            Step::Retire => self.retire(&state, walk, now)?,
            Step::Condemn => self.condemn(&state, walk, actor, now).await?,
            Step::Rollback => self.rollback(&state, walk, now).await?,
            // A recovery is tried out, by a rule of its own.
            Step::Confirm if walk.is_recovering() => {
                Draft { walk, batch: trial_batch(&state, actor, now), authorities: None }
            }
            Step::Reissue | Step::Confirm | Step::Prove => {
                Draft { walk, batch: Batch::default(), authorities: None }
            }
            Step::Taint => return Err(internal("a taint names its root")),
        };
        draft.walk.did(step, next(&state), now);
        let subject = subject(step, &draft.walk, from);
        let details = serde_json::json!({ "step": step, "force": force });
        let event = Event::new(EventKind::AuthorityWalked, now, actor, subject.clone());
        draft.batch.events.push(event.with_details(details));
        let narrows = draft.batch.narrows;
        let revision = next(&state);
        if narrows {
            self.control.converging.begin(revision, now);
        }
        match self.commit(&state, draft, now).await {
            Ok(revision) => {
                if narrows {
                    let at = self.control.clock.now();
                    self.control.converging.committed(revision, at, Watched::default());
                }
                tracing::info!(%step, root = %subject, %revision, "an authority walked");
                Ok(revision)
            }
            Err(refused) => {
                self.control.converging.give_up(revision);
                Err(refused)
            }
        }
    }

    /// What an operator asks: one step, when its gate is open or with words for why it is forced.
    ///
    /// # Errors
    /// `not-converged` when the gate is not open; others when the step does not fit.
    pub(crate) async fn asked(
        &self,
        step: Step,
        request: StepRequest,
        actor: &str,
    ) -> Result<Revision, Refused> {
        let StepRequest { authority, cause, force, root_key } = request;
        let root_key = NextKey::read(root_key.as_deref(), &*self.rotation.vault)?;
        check_words(force.as_deref())?;
        let state = self.control.feed.current();
        let walk = Arc::clone(state.walk()?);
        match step {
            Step::Retire => {
                let oldest = walk.retiring().next().map(|root| root.key);
                let from = authority.or(oldest).ok_or_else(|| {
                    Refused::new(Code::NotFound, "no root is retiring: activate another first")
                })?;
                if walk.order.is_none() {
                    let revision =
                        self.order(Goal::Retire, from, actor, force.clone(), None).await?;
                    if force.is_none() {
                        return Ok(revision);
                    }
                }
                let state = self.control.feed.current();
                let walk = Arc::clone(state.walk()?);
                self.forced(&state, &walk, force, actor).await
            }
            Step::Taint => {
                let (key, cause) = authority.zip(cause).ok_or_else(|| {
                    let why = "a taint names a root and its cause, `superseded` or `compromised`";
                    Refused::new(Code::NotUnderstood, why)
                })?;
                self.taint((key, cause), actor, force, root_key).await
            }
            Step::Rollback => self.take(step, actor, force.as_deref()).await,
            Step::Activate if walk.order.as_ref().is_some_and(|order| order.asks) => {
                self.approve(&state, &walk, actor, force).await
            }
            // Whoever asks for it by name wants it made here, unless that made less of it.
            Step::Prepare => {
                let named = root_key.or_else(|| walk.order.as_ref()?.root_key.clone());
                let from = walk.active()?.key;
                walk.needs_key(Goal::Rotate, from, named.as_ref())?;
                self.take_with(step, actor, force.as_deref(), named).await
            }
            Step::Activate if !walk.approval().is_open() => {
                walk.may_activate(true)?;
                Err(internal("a gate that waits let somebody through"))
            }
            Step::Publish | Step::Activate => {
                if force.is_none()
                    && let Gate::Waits { why, until, .. } = self.gate(&state, &walk, step).await?
                {
                    let until = until.map(|at| format!("; it opens by itself at {at}"));
                    let until = until.unwrap_or_default();
                    let why = format!(
                        "cannot {step} yet: {why}{until}; `--force WORDS` goes on all the same"
                    );
                    return Err(Refused::new(Code::NotConverged, why));
                }
                self.take(step, actor, force.as_deref()).await
            }
            Step::Supersede | Step::Condemn | Step::Reissue | Step::Confirm | Step::Prove => {
                let why =
                    format!("`{step}` is a step of a rotation or a recovery, not one by itself");
                Err(Refused::new(Code::NotUnderstood, why))
            }
        }
    }

    /// An operator's word lets the walk that the schedule ordered go on; its gate is waited for all the same.
    async fn approve(
        &self,
        state: &State,
        walk: &Walk,
        actor: &str,
        force: Option<String>,
    ) -> Result<Revision, Refused> {
        let now = self.rotation.time.trusted(self.control.clock.now())?;
        let mut walk = walk.clone();
        let Some(order) = &mut walk.order else {
            return Err(internal("no walk is ordered"));
        };
        order.asks = false;
        let details =
            serde_json::json!({ "step": Step::Activate, "approved": true, "force": force });
        if let Some(words) = force {
            order.forced.insert(Step::Activate, words);
        }
        let event = Event::new(EventKind::AuthorityWalked, now, actor, order.from.to_string());
        let batch = Batch { events: vec![event.with_details(details)], ..Batch::default() };
        self.commit(state, Draft { walk, batch, authorities: None }, now).await
    }

    /// Does not wait for the gate of the next step of the order.
    async fn forced(
        &self,
        state: &State,
        walk: &Walk,
        force: Option<String>,
        actor: &str,
    ) -> Result<Revision, Refused> {
        let now = self.rotation.time.trusted(self.control.clock.now())?;
        let mut walk = walk.clone();
        let step = walk.next();
        let (Some(order), Some(step), Some(words)) = (&mut walk.order, step, force) else {
            let why = "a walk is under way, and goes on by itself; `--force WORDS` does not wait for its next gate";
            return Err(Refused::new(Code::AlreadyExists, why));
        };
        let details = serde_json::json!({ "step": step, "force": words });
        let event = Event::new(EventKind::AuthorityWalked, now, actor, order.from.to_string());
        order.forced.insert(step, words);
        let batch = Batch { events: vec![event.with_details(details)], ..Batch::default() };
        self.commit(state, Draft { walk, batch, authorities: None }, now).await
    }

    async fn taint(
        &self,
        (key, cause): (KeyId, Cause),
        actor: &str,
        force: Option<String>,
        root_key: Option<NextKey>,
    ) -> Result<Revision, Refused> {
        let state = self.control.feed.current();
        let walk = state.walk()?;
        let root = walk.root(key).ok_or_else(|| {
            Refused::new(Code::NotFound, format!("no root with key `{key}` is on record"))
        })?;
        if walk.is_recovering() && cause == Cause::Superseded {
            let why = "a recovery is under way: let it end, or take it back with `countersign authority rollback`";
            return Err(Refused::new(Code::AlreadyExists, why));
        }
        let goal = match (cause, root.state) {
            // Nothing depends on it yet.
            (Cause::Superseded, RootState::Prepared | RootState::Published) => {
                return self.take(Step::Rollback, actor, force.as_deref()).await;
            }
            (Cause::Compromised, _) => Goal::Recover,
            (Cause::Superseded, RootState::Retiring) => Goal::Retire,
            (Cause::Superseded, _) => Goal::Rotate,
        };
        let reason = force.or_else(|| Some(format!("tainted: {cause}")));
        check_words(reason.as_deref())?;
        let now = self.rotation.time.trusted(self.control.clock.now())?;
        let mut walk = Walk::clone(walk);
        walk.needs_key(goal, key, root_key.as_ref())?;
        walk.taint(key, cause)?;
        let order = Order { root_key, ..Order::new(goal, key, actor, reason.clone(), now) };
        walk.begin(by_hand(&state, order))?;
        let details = serde_json::json!({ "step": Step::Taint, "cause": cause, "reason": reason });
        let event = Event::new(EventKind::AuthorityWalked, now, actor, key.to_string());
        let batch = Batch { events: vec![event.with_details(details)], ..Batch::default() };
        self.commit(&state, Draft { walk, batch, authorities: None }, now).await
    }

    pub(super) async fn commit(
        &self,
        state: &State,
        draft: Draft,
        now: Timestamp,
    ) -> Result<Revision, Refused> {
        let Draft { walk, mut batch, authorities } = draft;
        batch.expected = Some(state.revision);
        batch.changes.push(Change::Put(walk.record()));
        let store = Arc::clone(&self.control.store);
        let committed = self.control.whole(async move { Ok(store.commit(batch).await?) }).await;
        let revision = match committed {
            Ok(committed) => committed.revision,
            Err(refused) => {
                // Whoever was faster is seen before the next try.
                let head = self.control.store.head().await?.revision;
                shown(&self.control, head).await;
                return Err(refused);
            }
        };
        self.control.desk.time.recorded(now);
        if let Some(authorities) = authorities {
            self.rotation.authorities.store(Arc::new(authorities));
        }
        shown(&self.control, revision).await;
        Ok(revision)
    }

    async fn prepare(
        &self,
        mut walk: Walk,
        named: Option<NextKey>,
        forced: bool,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        if let Some(next) = walk.successor() {
            let why = format!("root `{}` is {} already: go on with it", next.key, next.state);
            return Err(Refused::new(Code::AlreadyExists, why));
        }
        let spec = self.control.feed.current().declared_authority();
        let key_type = spec.as_ref().map_or(KeyKind::P256, |spec| spec.key_type);
        let ceremony = self.ceremony(now);
        let authorities = self.rotation.authorities.load_full();
        // Nothing declared: as long as the one before.
        let lifetime = match spec {
            Some(spec) => spec.root_lifetime,
            // What others think right for their roots is no measure for ours.
            None if authorities.is_outside() => AuthoritySpec::default().root_lifetime,
            None => lifetime_of(&walk.active()?.certificate()?)?,
        };
        let domain = authorities.issuer.domain().clone();
        // Whoever vouches for it has to be there before anything is made.
        let older = self.voucher(&walk, forced).await?;
        let named = named.or_else(|| walk.order.as_ref()?.root_key.clone());
        let key = named.unwrap_or(NextKey::Here);
        let key = key.make(&walk, key_type, &self.rotation.vault).await?;
        let new = key.of();
        let root = ceremony.root(&domain, &*new.signer()?, lifetime).await?;
        let newer = Issuer::from_certificate(root.clone()).map_err(internal)?;
        let cross = match older {
            Some(Signing { issuer: older, signer, .. }) => {
                Some(ceremony.cross(&older, &*signer, &newer, lifetime).await?)
            }
            None => None,
        };
        let name = root_name(newer.key_id());
        let (kek, entropy) = (&self.rotation.kek, &*self.control.entropy);
        let ops = vec![keep(&name, &[&root], new.to_keep(), kek, entropy)?];
        walk.prepare(Root::prepared(&root, cross.as_ref(), now), now)?;
        walk.hold(root.key_id(), new.held())?;
        Ok(Draft { walk, batch: Batch { ops, ..Batch::default() }, authorities: None })
    }

    /// Who vouches for the next root: the active one, unless it is held outside, or does not answer where that must not matter.
    async fn voucher(&self, walk: &Walk, forced: bool) -> Result<Option<Signing>, Refused> {
        let Ok(signing) = self.rotation.authorities.load().root_signing() else { return Ok(None) };
        match signing.signer.ready().await {
            Ok(()) => Ok(Some(signing)),
            // A token that is lost, or stolen, must not keep anybody from another root.
            Err(away) if forced || walk.is_recovering() => {
                tracing::warn!(why = %away, "the active root does not vouch for the next");
                Ok(None)
            }
            Err(away) => Err(away.into()),
        }
    }

    fn publish(&self, state: &State, mut walk: Walk, now: Timestamp) -> Result<Draft, Refused> {
        walk.publish(next(state), now)?;
        let changes = vec![self.bundle(state, &walk, Duration::ZERO)?];
        Ok(Draft { walk, batch: Batch { changes, ..Batch::default() }, authorities: None })
    }

    async fn activate(
        &self,
        state: &State,
        mut walk: Walk,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        walk.may_activate(!state.authority().approvers.is_empty())?;
        let (before, active) = walk.activate(now)?;
        self.enthrone(state, walk, before, active, now).await
    }

    async fn rollback(
        &self,
        state: &State,
        mut walk: Walk,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        let imported = walk.successor().and_then(Root::issuer);
        let (back, leaving, was) = walk.rollback(now)?;
        if let Some(back) = back {
            return self.enthrone(state, walk, leaving, back, now).await;
        }
        let changes = match was {
            RootState::Published => vec![self.bundle(state, &walk, Duration::ZERO)?],
            RootState::Prepared | RootState::Active | RootState::Retiring | RootState::Retired => {
                Vec::new()
            }
        };
        // It is trusted nowhere any more: a bundle that shrinks takes rights away.
        let narrows = was == RootState::Published;
        let keys = [root_name(leaving)].into_iter().chain(imported.map(issuer_name));
        let ops = keys.map(destroy).collect();
        let batch = Batch { changes, narrows, ops, ..Batch::default() };
        Ok(Draft { walk, batch, authorities: None })
    }

    /// Puts a root in the place of the one that signs now, with an issuer of its own.
    async fn enthrone(
        &self,
        state: &State,
        walk: Walk,
        before: KeyId,
        active: KeyId,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        let (store, kek) = (&*self.control.store, &self.rotation.kek);
        let entropy = &*self.control.entropy;
        // 1. Both roots; the one before stays at hand, for a rollback.
        let old = open_authority(store, ROOT, kek).await?;
        let root = open_authority(store, &root_name(active), kek).await?;
        if old.certificate.key_id() != before || root.certificate.key_id() != active {
            return Err(internal("a kept root is not the one on record"));
        }
        // 2. An issuer under the new one.
        let issuer = self.issuer_under(&walk, &root, now).await?;
        // 3. All of it at once.
        let named = issuer_name(issuer.certificate.key_id());
        let ops = vec![
            old.keep_as(&root_name(before), kek, entropy)?,
            root.keep_as(ROOT, kek, entropy)?,
            issuer.keep_as(ISSUER, kek, entropy)?,
            issuer.keep_as(&named, kek, entropy)?,
        ];
        let within = self.spread(&walk, before, now).await?;
        let changes = vec![self.bundle(state, &walk, within)?];
        let authorities = Authorities::of(root, issuer, &*self.rotation.vault)?;
        let batch = Batch { changes, ops, ..Batch::default() };
        Ok(Draft { walk, batch, authorities: Some(authorities) })
    }

    /// An issuer under a root: a new one, or the one that the root outside has signed for us.
    async fn issuer_under(
        &self,
        walk: &Walk,
        root: &Kept,
        now: Timestamp,
    ) -> Result<Kept, Refused> {
        let certificate = root.certificate.clone();
        let signer: Arc<dyn Signer> = match &root.key {
            KeptKey::Here(root_key) => Arc::new(SoftwareSigner::from(copy(root_key)?)),
            KeptKey::Token(uri) => {
                let public = certificate.public_key().map_err(internal)?;
                self.rotation.vault.signer(uri, public)?
            }
            KeptKey::Outside => return self.imported_issuer(walk, &certificate, now).await,
        };
        let parent = Issuer::from_certificate(certificate).map_err(internal)?;
        let (key_type, lifetime) = self.rotation.next_issuer();
        let key = PrivateKey::generate(key_type).map_err(internal)?;
        let certificate = self.ceremony(now).issuer(&parent, &*signer, &key, lifetime).await?;
        Ok(Kept { certificate, above: Vec::new(), key: KeptKey::Here(key) })
    }

    /// The issuer that a root outside has signed for us.
    async fn imported_issuer(
        &self,
        walk: &Walk,
        root: &Certificate,
        now: Timestamp,
    ) -> Result<Kept, Refused> {
        let imported = walk.root(root.key_id()).and_then(Root::issuer);
        let imported = imported.ok_or_else(|| internal("a root outside has signed nothing"))?;
        let (store, kek) = (&*self.control.store, &self.rotation.kek);
        let issuer = open_authority(store, &issuer_name(imported), kek).await?;
        let validity = issuer.certificate.validity();
        if !validity.contains(now) {
            let why = format!(
                "the issuer that the root outside has signed ended at {}: roll back, and have another signed",
                validity.not_after
            );
            return Err(Refused::new(Code::Expired, why));
        }
        Ok(issuer)
    }

    /// The span over which everything under a root is issued anew: as long as this machine needs for it.
    async fn spread(&self, walk: &Walk, root: KeyId, now: Timestamp) -> Result<Duration, Refused> {
        let ledger = Ledger::read(&*self.control.store, walk, now).await?;
        let issuers: BTreeSet<_> = ledger.issuers_of(root).map(|row| row.key).collect();
        let count = ledger.signed_by(&issuers, &self.control.feed.current().revocations()).len();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let rate = ISSUES_PER_CORE * cores as u64;
        Ok(Duration::from_millis(count as u64 * 1000 / rate))
    }

    async fn supersede(
        &self,
        state: &State,
        mut walk: Walk,
        actor: &str,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        let from = ordered(&walk)?;
        walk.supersede(from, next(state))?;
        let ledger = Ledger::read(&*self.control.store, &walk, now).await?;
        let issuers: Vec<_> =
            ledger.issuers_of(from).map(|row| (row.key, row.validity.not_after)).collect();
        let batch = condemned(state, &issuers, Reason::Superseded, ledger.last_end(), actor, now)?;
        Ok(Draft { walk, batch, authorities: None })
    }

    fn retire(&self, state: &State, mut walk: Walk, now: Timestamp) -> Result<Draft, Refused> {
        let from = ordered(&walk)?;
        walk.retire(from, next(state), now)?;
        let changes = vec![self.bundle(state, &walk, Duration::ZERO)?];
        // Nobody can use it again, we included.
        let ops = vec![destroy(root_name(from))];
        let batch = Batch { changes, ops, narrows: true, ..Batch::default() };
        Ok(Draft { walk, batch, authorities: None })
    }

    async fn condemn(
        &self,
        state: &State,
        mut walk: Walk,
        actor: &str,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        let from = ordered(&walk)?;
        if !walk.is_root(from) {
            return self.condemn_issuer(state, walk, from, actor, now).await;
        }
        let ends = walk.root(from).map(Root::certificate).transpose()?;
        let ends = ends.map_or(now, |certificate| certificate.validity().not_after);
        walk.condemn(from, next(state), now)?;
        let ledger = Ledger::read(&*self.control.store, &walk, now).await?;
        let issuers = ledger.issuers_of(from).map(|row| (row.key, row.validity.not_after));
        // Who has the root's key makes issuers that no log holds.
        let keys: Vec<_> = issuers.chain([(from, ends)]).collect();
        let reason = Reason::AuthorityCompromise;
        let mut batch = condemned(state, &keys, reason, ledger.last_end(), actor, now)?;
        batch.changes.push(self.bundle(state, &walk, Duration::ZERO)?);
        batch.ops.push(destroy(root_name(from)));
        Ok(Draft { walk, batch, authorities: None })
    }

    /// An issuer has a successor first, so that everybody is issued anew at once.
    async fn condemn_issuer(
        &self,
        state: &State,
        walk: Walk,
        issuer: KeyId,
        actor: &str,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        self.rotation.replace(issuer).await?;
        let ledger = Ledger::read(&*self.control.store, &walk, now).await?;
        let ends = ledger.issuer(issuer).map_or(now, |row| row.validity.not_after);
        let (keys, reason) = ([(issuer, ends)], Reason::AuthorityCompromise);
        let batch = condemned(state, &keys, reason, ledger.last_end(), actor, now)?;
        Ok(Draft { walk, batch, authorities: None })
    }

    fn bundle(&self, state: &State, walk: &Walk, within: Duration) -> Result<Change, Refused> {
        let domain = &state.domain().trust_domain;
        let before = state.bundle(domain).ok_or_else(|| internal("the state holds no bundle"))?;
        let bundle = walk.bundle(before, within)?;
        let (name, value) = (domain.to_string(), bundle.to_json().into());
        Ok(Change::Put(Record { kind: Kind::Bundle, name, value }))
    }

    fn ceremony(&self, now: Timestamp) -> Ceremony<'_> {
        Ceremony { store: &*self.control.store, entropy: &*self.control.entropy, now }
    }
}

/// The same order, by hand. Where nobody is named, whoever orders a rotation is the operator who was to be asked; and a recovery
/// asks nobody.
fn by_hand(state: &State, order: Order) -> Order {
    let strict = order.goal == Goal::Rotate && !state.authority().approvers.is_empty();
    if strict { asking(state, order) } else { order }
}

/// The same order, with those on it who have to approve it by what is declared now.
pub(super) fn asking(state: &State, order: Order) -> Order {
    let spec = state.authority();
    if spec.approvers.is_empty() {
        return Order { asks: spec.approve == Approval::Operator, ..order };
    }
    let among = spec.approvers.iter().map(|approver| format!("operator:{approver}")).collect();
    let needed = spec.approvals_needed();
    Order { approvals: Some(Approvals { needed, among, given: Vec::new() }), ..order }
}

fn check_words(words: Option<&str>) -> Result<(), Refused> {
    match words.map(str::trim) {
        Some("") => Err(Refused::new(Code::NotUnderstood, "the reason is empty: say it in words")),
        Some(words) if REASON_BYTES_MAX < words.len() => {
            let why = format!(
                "a reason of {} bytes is over the limit of {REASON_BYTES_MAX}",
                words.len()
            );
            Err(Refused::new(Code::TooLarge, why))
        }
        Some(_) | None => Ok(()),
    }
}

fn ordered(walk: &Walk) -> Result<KeyId, Refused> {
    let order = walk.order.as_ref().ok_or_else(|| internal("no walk is ordered"))?;
    Ok(order.from)
}

/// What a trial has shown, in numbers and names.
fn summary(view: TrialView) -> TrialSummary {
    let (as_said, otherwise): (Vec<_>, Vec<_>) =
        view.verified.into_iter().partition(VerifiedPoint::holds);
    let refused = as_said.iter().filter(|point| point.former.is_some()).count();
    let contradicted = otherwise.iter().take(MISSING_MAX);
    let only_said = view.unverified.iter().take(MISSING_MAX);
    TrialSummary {
        revision: view.revision,
        as_said: as_said.len() as u64,
        former_refused: refused as u64,
        contradicted: contradicted
            .map(|point| {
                let why = point.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                format!("{} of {} at {}{why}", point.point, point.spiffe_id, point.door)
            })
            .collect(),
        only_said: only_said
            .map(|point| format!("{} of {}: {}", point.point, point.spiffe_id, point.why))
            .collect(),
    }
}

/// The root that a step is about, as the log says it.
fn subject(step: Step, walk: &Walk, from: Option<KeyId>) -> String {
    let root = match step {
        Step::Prepare | Step::Publish => walk.successor().map(|root| root.key),
        Step::Activate | Step::Rollback => walk.active().ok().map(|root| root.key),
        Step::Supersede
        | Step::Retire
        | Step::Condemn
        | Step::Reissue
        | Step::Confirm
        | Step::Prove
        | Step::Taint => from,
    };
    root.map_or_else(|| "roots".to_owned(), |root| root.to_string())
}

/// The revision that the next commit makes.
fn next(state: &State) -> Revision {
    Revision { number: state.revision.number + 1, ..state.revision }
}

/// How long a root was made to live.
fn lifetime_of(root: &Certificate) -> Result<Lifetime, Refused> {
    let validity = root.validity();
    let whole = validity.not_after.since(validity.not_before).as_secs();
    let backdated = backdate(Lifetime::from_secs(whole).map_err(internal)?);
    Lifetime::from_secs(whole.saturating_sub(backdated.as_secs())).map_err(internal)
}
