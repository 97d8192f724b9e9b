//! The agent's own SVID and its workloads': renewed, signed, and looked at again under another bundle.

use std::sync::Arc;

use countersign_identity::{Code, Name};
use countersign_pki::{Bundle, Bundles};

use super::{Driver, Happened};
use crate::core::{Event, Outcome, Workload};
use crate::renewal::{self, Registered, Signed};
use crate::view::Svid;

impl Driver {
    pub(super) fn renew_node(&mut self, server: usize) {
        let (link, disk) = (Arc::clone(&self.around.link), Arc::clone(&self.around.disk));
        let (server, tell) = (self.server(server), self.tell.clone());
        let registered = Registered::of(&self.node);
        self.tasks.spawn(async move {
            let renewed = renewal::renew_node(&*link, &disk, &server, registered).await;
            tell.send(Happened::NodeRenewed(renewed)).await.ok();
        });
    }

    pub(super) fn sign(&mut self, workloads: Vec<Arc<Workload>>) {
        let Some(session) = &self.session else { return };
        let (calls, tell) = (Arc::clone(&session.calls), self.tell.clone());
        let (ended, keys) = (session.ended.clone(), self.keys.clone());
        let (clock, tracer) = (Arc::clone(&self.around.clock), self.around.tracer.clone());
        let bundle = self.state.replica().own_bundle().cloned();
        self.tasks.spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                signed = renewal::sign(&*calls, &keys, workloads, bundle, (&*clock, &tracer)) => {
                    tell.send(Happened::Signed(signed)).await.ok();
                }
            }
        });
    }

    pub(super) fn signed(&mut self, signed: Vec<Signed>) {
        let mut fresh = Vec::new();
        let mut outcomes = Vec::new();
        for Signed { name, outcome, svid } in signed {
            match &outcome {
                Outcome::Issued(credential) => {
                    let (id, expires) = (&credential.shown.id, credential.term.expires);
                    tracing::info!(%id, %expires, "an SVID was issued");
                }
                Outcome::Refused(Code::UnknownWorkload, why) => {
                    tracing::debug!(workload = %name, %why, "a workload of other nodes");
                }
                Outcome::Refused(code, why) => {
                    tracing::warn!(workload = %name, %code, %why, "the server refuses an SVID");
                }
                Outcome::Failed(why) => tracing::warn!(workload = %name, %why, "no SVID"),
            }
            fresh.extend(svid.map(|svid| (name.clone(), Arc::new(svid))));
            outcomes.push((name, outcome));
        }
        // Held only if the machine takes them: the workload may be gone or somebody else by now.
        let now = self.around.clock.now();
        let actions = self.state.step(Event::Signed(outcomes), now, &*self.around.entropy);
        for (name, svid) in fresh {
            if self.state.holds(&name, &svid.term.digest) {
                self.svids.insert(name, svid);
            }
        }
        for action in actions {
            self.act(action);
        }
    }

    /// After a change of our own bundle: what does not verify under it any more is not served any more.
    pub(super) fn check_bundle(&mut self) {
        let bundle = self.state.replica().own_bundle().cloned();
        if bundle == self.verified_under {
            return;
        }
        self.verified_under.clone_from(&bundle);
        let Some(bundle) = bundle else { return };
        let bundles = Bundles::of(Bundle::clone(&bundle));
        self.node.bundle = Bundle::clone(&bundle);
        if let Err(fault) = renewal::present(&*self.around.link, &self.node) {
            tracing::warn!(why = %fault.why, "the agent's own certificate is not accepted under the new bundle");
        }
        let clock = &*self.around.clock;
        let bad = |(_, svid): &(&Name, &Arc<Svid>)| !renewal::still_good(svid, &bundles, clock);
        let bad: Vec<Name> = self.svids.iter().filter(bad).map(|(name, _)| name.clone()).collect();
        if !bad.is_empty() {
            self.step(Event::Unusable(bad));
        }
    }
}
