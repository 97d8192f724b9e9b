//! What was ordered, what is done of it, and what comes next.

use std::collections::BTreeMap;

use countersign_api::admin::{Goal, RootState, Step, TrialSummary};
use countersign_identity::{Code, KeyId, Revision, Timestamp};
use serde::{Deserialize, Serialize};

use crate::refusal::Refused;
use crate::rotate::approval::Approvals;
use crate::rotate::next_key::NextKey;
use crate::rotate::root::Root;
use crate::rotate::walk::{Walk, unknown, wrong_state};

/// The longest reason on record.
pub(crate) const REASON_BYTES_MAX: usize = 512;

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

    pub(super) fn at(&self, step: Step) -> Option<Timestamp> {
        self.done.iter().rfind(|done| done.step == step).map(|done| done.at)
    }

    pub(super) fn made(&self, step: Step) -> Option<Revision> {
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

impl Walk {
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

    /// Whether a root goes because its key leaked.
    pub(crate) fn is_recovering(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.goal == Goal::Recover)
    }

    /// Nothing is ordered any more. Who takes a recovery back takes back that the key leaked.
    pub(super) fn call_off(&mut self) -> Result<(), Refused> {
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
}
