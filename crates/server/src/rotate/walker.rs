//! The hands of the walk: each step is one commit for the revision that it was decided on.
//!
//! `asked` is what operators order, `facts` what a gate is judged by, `step` what each step puts into its commit, `enthrone` what it
//! takes to put one root in the place of another.

mod asked;
mod enthrone;
mod facts;
mod step;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_api::admin::{Convergence, Goal, Step, TrialSummary, TrialView, VerifiedPoint};
use countersign_api::resource::Approval;
use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, KeyId, Revision, Timestamp};
use countersign_store::{Batch, Change, Duty};
use tokio_util::sync::CancellationToken;

use crate::authority::{Authorities, Rotation};
use crate::control::Control;
use crate::refusal::Refused;
use crate::revoke::{look, shown};
use crate::rotate::approval::Approvals;
use crate::rotate::gate::Gate;
use crate::rotate::ledger::Ledger;
use crate::rotate::order::{Order, Proof};
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
/// The duty of one replica to walk.
const DUTY: Duty = Duty { name: "authority/walk", ttl: Duration::from_secs(10) };
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
        // By the clock as it is: a root must not end before it has a successor, and every step has a gate of its own.
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

    /// How far time has certainly come.
    pub(super) fn steady(&self) -> Timestamp {
        self.rotation.time.certain(&*self.control.clock)
    }

    /// What is out. A clock that is ahead ends nothing of it: who was left out would be left in service.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(super) async fn ledger(&self, walk: &Walk) -> Result<Ledger, Refused> {
        Ledger::read(&*self.control.store, walk, self.steady()).await
    }

    /// The revision that the next commit makes.
    pub(super) fn next(&self, state: &State) -> Revision {
        next(state)
    }

    /// Whether this replica is the one that walks.
    async fn leads(&self) -> Result<bool, Refused> {
        let now = self.control.desk.now().await?;
        Ok(self.control.duties.is_ours(DUTY, now).await?)
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

/// The revision that the next commit makes.
fn next(state: &State) -> Revision {
    Revision { number: state.revision.number + 1, ..state.revision }
}
