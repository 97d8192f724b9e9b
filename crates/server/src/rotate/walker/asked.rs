//! What operators ask of the walk: an order, one step of it, or not to wait.

use std::sync::Arc;

use countersign_api::admin::{Cause, Goal, RootState, Step, StepRequest};
use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, KeyId, Revision};
use countersign_store::Batch;

use super::{Draft, Walker, asking};
use crate::authority::internal;
use crate::refusal::Refused;
use crate::rotate::gate::Gate;
use crate::rotate::next_key::NextKey;
use crate::rotate::order::{Order, REASON_BYTES_MAX};
use crate::rotate::walk::Walk;
use crate::state::State;

impl Walker {
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
        let now = self.control.desk.now().await?;
        let state = self.control.feed.current();
        state.walk()?.needs_key(goal, from, root_key.as_ref())?;
        let order = Order { root_key, ..Order::new(goal, from, actor, reason, now) };
        self.begin(by_hand(&state, order)).await
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
        let now = self.control.desk.now().await?;
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
        let now = self.control.desk.now().await?;
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
        let now = self.control.desk.now().await?;
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
}

/// The same order, by hand. Where nobody is named, whoever orders a rotation is the operator who was to be asked; and a recovery
/// asks nobody.
fn by_hand(state: &State, order: Order) -> Order {
    let strict = order.goal == Goal::Rotate && !state.authority().approvers.is_empty();
    if strict { asking(state, order) } else { order }
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
