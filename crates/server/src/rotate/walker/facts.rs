//! What a gate is judged by: who has acknowledged, what was tried, and what is out.

use std::collections::BTreeSet;

use countersign_api::admin::{Convergence, Step};
use countersign_identity::{KeyId, Revision, Timestamp};

use super::{MISSING_MAX, Walker};
use crate::refusal::Refused;
use crate::revoke::look;
use crate::rotate::gate::{Facts, Gate};
use crate::rotate::ledger::Ledger;
use crate::rotate::order::Order;
use crate::rotate::walk::Walk;
use crate::state::State;
use crate::watch::Moment;

impl Walker {
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
        let at = self.rotation.time.moment(&*self.control.clock);
        let facts = self.facts(state, walk, step, at).await?;
        Ok(walk.gate(step, &facts, at))
    }

    async fn facts(
        &self,
        state: &State,
        walk: &Walk,
        step: Step,
        at: Moment,
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
            let ledger = Ledger::read(&*self.control.store, walk, at.steady).await?;
            self.memory().effort = self.control.clock.now().since(at.now);
            let issuers = match walk.is_root(from) {
                true => ledger.issuers_of(from).map(|row| row.key).collect(),
                false => BTreeSet::from([from]),
            };
            facts.left = ledger.left(&issuers, state);
            facts.settled_from = self.settled(from, facts.left.is_empty(), at.steady);
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
    fn settled(&self, from: KeyId, is_settled: bool, steady: Timestamp) -> Option<Timestamp> {
        let mut memory = self.memory();
        memory.settled = match memory.settled {
            Some((root, since)) if is_settled && root == from => Some((root, since)),
            _ if is_settled => Some((from, steady)),
            _ => None,
        };
        memory.settled.map(|(_, since)| since)
    }
}
