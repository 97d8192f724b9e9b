//! What a server says, and what that means for the credentials that are held.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Code, Entropy, Lifetime, Timestamp};

use super::State;
use super::link::Link;
use super::signing::{asked_of, asks_for_another};
use crate::core::duty::Duty;
use crate::core::event::{Action, Knowledge, SyncMessage};
use crate::core::replica::{Behind, Replica};
use crate::core::suspensions::Suspensions;

impl State {
    pub(super) fn said(
        &mut self,
        message: SyncMessage,
        now: Timestamp,
        entropy: &dyn Entropy,
        actions: &mut Vec<Action>,
    ) {
        if !matches!(self.link, Link::Open { .. }) || matches!(message, SyncMessage::Signed(_)) {
            return;
        }
        self.times.told(match &message {
            SyncMessage::Snapshot { clock, .. } | SyncMessage::Mark { clock, .. } => *clock,
            SyncMessage::Changes { .. } | SyncMessage::Signed(_) => None,
        });
        let rules_until = self.times.for_rules(now);
        let before = Arc::clone(&self.replica);
        let is_mark = matches!(message, SyncMessage::Mark { .. });
        let applied = match message {
            SyncMessage::Snapshot { revision, .. } if revision < before.revision() => {
                Err(Behind { offered: revision, have: before.revision() })
            }
            SyncMessage::Snapshot { revision, records, .. } => {
                // A snapshot that lacks a rule does not lift it: the server may have been restored.
                let snapshot = Replica::of(revision, records);
                self.replica = Arc::new(snapshot.keeping(before.rules(), rules_until));
                Ok(())
            }
            SyncMessage::Changes { revision, put, gone } => {
                Arc::make_mut(&mut self.replica).change(revision, put, &gone, rules_until)
            }
            SyncMessage::Mark { revision, .. } => {
                let replica = Arc::make_mut(&mut self.replica);
                replica.mark(revision).inspect(|()| {
                    replica.forget_moot(rules_until);
                })
            }
            SyncMessage::Signed(_) => Ok(()),
        };
        if let Err(behind) = applied {
            actions.push(Action::Close);
            self.closed(Code::StaleBase, behind.to_string(), now, entropy);
            return;
        }
        self.shut_out.let_in();
        self.link = Link::Open { synced: true };
        self.disconnected = None;
        self.tried = 0;
        self.backoff.reset();
        let moved = !is_mark || !Arc::ptr_eq(before.rules(), self.replica.rules());
        if moved {
            self.take_duties(&before);
            self.suspend();
            self.revoke();
            let same_rules = Arc::ptr_eq(before.rules(), self.replica.rules());
            if !same_rules || before.own_bundle() != self.replica.own_bundle() {
                // What is covered by all that the server signs may be signed by another authority now.
                self.duties.values_mut().for_each(Duty::try_again_if_covered);
            }
            self.leave_roots(now, entropy);
            self.renew_earlier(now, entropy);
            actions.push(Action::Remember);
        }
        let news = moved
            || self.knowledge != Knowledge::Synced
            || before.revision() != self.replica.revision();
        self.knowledge = Knowledge::Synced;
        if news {
            actions.push(Action::Publish);
        }
    }

    /// Asks anew for what an earlier incarnation of the server's store has issued: it may know nothing of it.
    fn renew_earlier(&mut self, now: Timestamp, entropy: &dyn Entropy) {
        let current = self.replica.revision().incarnation;
        // What is of an earlier incarnation is covered one such lifetime after issuing goes on.
        let lifetime = self.replica.usual_lifetime().map_or(Duration::ZERO, Lifetime::duration);
        for duty in self.duties.values_mut().chain([&mut self.node]) {
            duty.outdate_earlier(current, lifetime / 4, now, entropy);
        }
    }

    /// Drops the credentials of workloads that are gone or somebody else now, and takes on new ones.
    pub(super) fn take_duties(&mut self, before: &Replica) {
        let replica = Arc::clone(&self.replica);
        self.duties.retain(|name, _| replica.workloads().contains_key(name));
        for (name, workload) in replica.workloads() {
            let duty = self.duties.entry(name.clone()).or_insert_with(Duty::new);
            let Some(old) = before.workloads().get(name) else { continue };
            if old.id != workload.id {
                *duty = Duty::new();
            } else if duty.says_more_than(asked_of(workload)) {
                duty.lose();
            } else if asks_for_another(old, workload) {
                duty.outdate();
            }
        }
    }

    /// Withdraws what the server says is not issued any more, and asks again for what it issues again.
    pub(super) fn suspend(&mut self) {
        let suspensions = Suspensions::of(&self.replica, self.settings.node);
        for (name, workload) in self.replica.workloads() {
            let Some(duty) = self.duties.get_mut(name) else { continue };
            match suspensions.why(&workload.id) {
                Some(_) if duty.is_suspended() => {}
                Some(why) => duty.suspend(why),
                None if duty.is_suspended() => duty.resume(),
                None => {}
            }
        }
    }

    /// Serves nothing any more that a revocation covers: its successor is due at once.
    pub(super) fn revoke(&mut self) {
        let rules = Arc::clone(self.replica.rules());
        for duty in self.duties.values_mut() {
            if let Some(rule) = duty.covering(&rules) {
                duty.revoke(&rule);
            }
        }
        if let Some(rule) = self.node.covering(&rules).filter(|_| !self.node.is_covered()) {
            self.node.cover(&rule);
        }
    }

    /// Asks anew for what a root vouches for that is on its way out.
    pub(super) fn leave_roots(&mut self, now: Timestamp, entropy: &dyn Entropy) {
        let replica = Arc::clone(&self.replica);
        let Some(bundle) = replica.own_bundle().filter(|bundle| !bundle.retiring.is_empty()) else {
            return;
        };
        for duty in self.duties.values_mut().chain([&mut self.node]) {
            duty.leave_roots(&bundle.retiring, bundle.reissue_within, now, entropy);
        }
    }
}
