//! The enforcement points of a machine: what a proxy beside each service is told, and what it makes of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use countersign::steps::{Step, Steps};
use countersign_agent::core::{Knowledge, State};
use countersign_agent::enforcement::{cut, withdrawn};
use countersign_api::v1;
use countersign_identity::{Clock, Name, Revision, Sha256, SimClock};
use countersign_pki::Bundle;
use countersign_tls::{Identity, Slice, Trust};
use tokio_util::sync::CancellationToken;

use crate::machine::Svid;

/// One enforcement point. It outlives the agent that tells it.
pub(crate) struct Point {
    pub(crate) name: Name,
    pub(crate) steps: Steps,
    /// Ends the task that ends connections.
    stop: CancellationToken,
    sent: Option<(v1::Slice, Revision)>,
    pub(crate) shown: Option<Sha256>,
    pub(crate) enforced: Option<Revision>,
    /// The policies of the last slice that it took.
    pub(crate) policies: Vec<String>,
    /// The rules that it has had.
    pub(crate) had: BTreeSet<String>,
    /// At which of its revisions, and of how many rules, it was looked at last.
    pub(crate) checked: (Option<Revision>, usize),
}

impl Point {
    /// A proxy that was told nothing. Its sweeper runs on the runtime.
    pub(crate) fn begin(name: Name, clock: &Arc<SimClock>, on: &tokio::runtime::Runtime) -> Self {
        let trust = Trust::new(Arc::clone(clock) as Arc<dyn Clock>, Slice::nothing());
        let stop = CancellationToken::new();
        on.spawn(Arc::clone(&trust).run(stop.clone()));
        let steps = Steps::new(trust);
        let (sent, shown, enforced) = (None, None, None);
        let (policies, had) = (Vec::new(), BTreeSet::new());
        let checked = (None, 0);
        Self { name, steps, stop, sent, shown, enforced, policies, had, checked }
    }

    /// The agent's process is gone; the next one tells everything anew.
    pub(crate) fn lost_agent(&mut self) {
        self.sent = None;
    }

    /// Looks at what the agent serves now, as the two streams would. True when what is enforced has changed.
    pub(crate) fn look(&mut self, state: &State, svid: Option<&Arc<Svid>>) -> bool {
        if state.knowledge() == Knowledge::Nothing {
            return false;
        }
        let replica = state.replica();
        let Some(workload) = replica.workloads().get(&self.name) else {
            if self.shown.take().is_some() {
                self.steps.withdraw("the workload is not there any more");
            }
            return false;
        };
        if let Some((_code, why)) = state.refusal(&self.name) {
            if self.shown.take().is_some() {
                self.steps.withdraw(why);
            }
            return self.tell(withdrawn(replica, workload), replica.revision());
        }
        let changed = self.tell(cut(replica, std::slice::from_ref(workload)), replica.revision());
        let bundle = replica.own_bundle();
        if let (Some(svid), Some(bundle)) = (svid, bundle)
            && self.shown != Some(svid.term.digest)
        {
            let identity = Identity::new(svid.chain.clone(), svid.key.pkcs8());
            self.steps.identity(identity.expect("its key is its own"), vec![Bundle::clone(bundle)]);
            self.shown = Some(svid.term.digest);
        }
        changed
    }

    fn tell(&mut self, whole: v1::Slice, revision: Revision) -> bool {
        let slice = v1::Slice { revision: None, ..whole.clone() };
        let known = self.sent.as_ref().is_some_and(|(sent, _)| *sent == slice);
        if known && self.sent.as_ref().is_some_and(|(_, sent)| revision <= *sent) {
            return false;
        }
        let policies = whole.policies.iter().map(|policy| policy.name.clone()).collect();
        let step = if known { self.steps.mark(revision) } else { self.steps.slice(whole) };
        self.sent = Some((slice, revision));
        match step {
            Step::Acknowledged { revision: reached, cut: _ } => {
                assert!(self.enforced <= Some(reached), "point `{}` went back", self.name);
                assert_eq!(reached, revision, "what is acknowledged is what was sent");
                self.enforced = Some(reached);
                if !known {
                    self.policies = policies;
                }
                !known
            }
            // An agent that restarted on an old snapshot; what is newer stays in force.
            Step::Refused(_) => {
                assert!(Some(revision) < self.enforced, "point `{}` refuses news", self.name);
                self.sent = None;
                false
            }
        }
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
