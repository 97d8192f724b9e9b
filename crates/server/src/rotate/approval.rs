//! Operators who approve that a new root signs: who has to, who has, and what for.

use countersign_api::admin::{Goal, RootState, Step};
use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, KeyId, Revision, Timestamp};
use countersign_store::Batch;
use serde::{Deserialize, Serialize};

use crate::refusal::Refused;
use crate::rotate::gate::Gate;
use crate::rotate::order::Order;
use crate::rotate::walk::Walk;
use crate::rotate::walker::{Draft, Walker};

/// Who has to approve that a new root signs, and who has. Fixed when the walk is ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Approvals {
    /// How many have to.
    pub(crate) needed: usize,
    /// Who may, as the log names them.
    pub(crate) among: Vec<String>,
    /// Who has, each of them once for each root.
    pub(crate) given: Vec<Given>,
}

/// One operator's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Given {
    /// Whose.
    pub(crate) actor: String,
    /// The root that it is for: it counts for no other.
    pub(crate) root: KeyId,
    /// When.
    pub(crate) at: Timestamp,
}

impl Approvals {
    /// Those that count for this root. A root that took the place of the one that was approved has none.
    pub(crate) fn counted(&self, root: Option<KeyId>) -> impl Iterator<Item = &Given> {
        self.given.iter().filter(move |given| Some(given.root) == root)
    }

    /// Who has not approved this root, of those who may; nobody once enough have.
    pub(crate) fn missing(&self, root: Option<KeyId>) -> Vec<String> {
        if self.needed <= self.counted(root).count() {
            return Vec::new();
        }
        let has = |actor: &String| self.counted(root).any(|given| given.actor == *actor);
        self.among.iter().filter(|actor| !has(actor)).cloned().collect()
    }

    fn gate(&self, root: Option<KeyId>) -> Gate {
        let given = self.counted(root).count();
        if self.needed <= given {
            return Gate::Open;
        }
        let (needed, missing) = (self.needed, self.missing(root));
        Gate::Waits {
            why: format!(
                "{given} of {needed} operators have approved; who may is `{}`, by `countersign authority approve`",
                missing.join("`, `")
            ),
            done: given as u64,
            of: needed as u64,
            missing,
            until: None,
        }
    }
}

impl Walk {
    /// The order whose new root has to be approved. A rotation that waits for an issuer's recovery is one still.
    fn approved_order(&self) -> Option<&Order> {
        let of_issuer = |order: &Order| order.goal == Goal::Recover && !self.is_root(order.from);
        match &self.order {
            Some(order) if of_issuer(order) => self.paused.as_ref(),
            order => order.as_ref(),
        }
    }

    /// Whether enough operators have approved that the successor signs. What is forced is the wait for machines, never the wait
    /// for people.
    pub(crate) fn approval(&self) -> Gate {
        let approvals = self.approved_order().and_then(|order| order.approvals.as_ref());
        approvals.map_or(Gate::Open, |approvals| approvals.gate(self.successor().map(|it| it.key)))
    }

    /// The last barrier before a new root signs, whichever way it came there; `declared`: whether somebody is named who has
    /// to approve.
    ///
    /// # Errors
    /// When people have to approve it and have not, or it is on no order that they could approve.
    pub(crate) fn may_activate(&self, declared: bool) -> Result<(), Refused> {
        if let Gate::Waits { why, .. } = self.approval() {
            return Err(Refused::new(Code::Forbidden, format!("others have to approve: {why}")));
        }
        let ordered = self
            .approved_order()
            .is_some_and(|order| matches!(order.goal, Goal::Rotate | Goal::Recover));
        if declared && !ordered {
            let why = "others have to approve that a new root signs: order it with `countersign rotate root`";
            return Err(Refused::new(Code::Forbidden, why));
        }
        Ok(())
    }

    /// Takes note of an operator's word for this root.
    ///
    /// # Errors
    /// When it is not theirs to give (who ordered the walk does not approve it, and nobody counts twice), or when it is for
    /// another root than the one that would sign.
    pub(crate) fn approve(
        &mut self,
        root: KeyId,
        actor: &str,
        at: Timestamp,
    ) -> Result<(), Refused> {
        let next = self.successor().map(|root| (root.key, root.state));
        let Some(Order { actor: requester, approvals: Some(approvals), .. }) = &mut self.order
        else {
            return Err(Refused::new(Code::NotFound, "nothing that is ordered waits for approval"));
        };
        match next {
            Some((key, RootState::Published)) if key == root => {}
            Some((key, RootState::Published)) => {
                let why = format!(
                    "the root that would sign is `{key}`, not `{root}`: look at `countersign authority list`"
                );
                return Err(Refused::new(Code::NotFound, why));
            }
            Some(_) | None => {
                let why = "there is no published root yet that could be approved";
                return Err(Refused::new(Code::NotReady, why));
            }
        }
        if *requester == actor {
            let why = format!("`{actor}` ordered this rotation: others have to approve it");
            return Err(Refused::new(Code::Forbidden, why));
        }
        if !approvals.among.iter().any(|named| named == actor) {
            let why = format!("`{actor}` is not among those who were named to approve");
            return Err(Refused::new(Code::Forbidden, why));
        }
        if approvals.counted(Some(root)).any(|given| given.actor == actor) {
            let why = format!("`{actor}` has approved already, and counts once");
            return Err(Refused::new(Code::AlreadyExists, why));
        }
        approvals.given.push(Given { actor: actor.to_owned(), root, at });
        Ok(())
    }
}

impl Walker {
    /// An operator approves that a root signs. The gate of the step is waited for all the same.
    ///
    /// # Errors
    /// When the word is not theirs to give, or names another root.
    pub(crate) async fn approved(&self, root: KeyId, actor: &str) -> Result<Revision, Refused> {
        let now = self.control.desk.now().await?;
        let state = self.control.feed.current();
        let mut walk = Walk::clone(state.walk()?);
        walk.approve(root, actor, now)?;
        let details = serde_json::json!({ "step": Step::Activate });
        let event = Event::new(EventKind::AuthorityApproved, now, actor, root.to_string());
        let batch = Batch { events: vec![event.with_details(details)], ..Batch::default() };
        self.commit(&state, Draft { walk, batch, authorities: None }, now).await
    }
}
