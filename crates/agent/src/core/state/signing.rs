//! Which SVIDs are asked for and when, and what comes of it.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Attested, Entropy, Name, Timestamp};

use super::State;
use crate::core::duty::Duty;
use crate::core::event::{Action, Outcome};
use crate::core::replica::Workload;

/// How soon to ask again a server that issued under a root which is on its way out.
const STRAGGLER_RETRY: Duration = Duration::from_secs(5);

impl State {
    pub(super) fn signed(
        &mut self,
        outcomes: Vec<(Name, Outcome)>,
        now: Timestamp,
        entropy: &dyn Entropy,
        actions: &mut Vec<Action>,
    ) {
        actions.push(Action::Publish);
        let rules = Arc::clone(self.replica.rules());
        for (name, outcome) in outcomes {
            let asked = self.signing.remove(&name);
            // Withdrawn meanwhile, or asked under a stream that was lost since: nobody waits for it.
            let (Some(duty), Some(asked)) = (self.duties.get_mut(&name), asked) else { continue };
            let Some(workload) = self.replica.workloads().get(&name) else { continue };
            match outcome {
                // Authorised before the suspension, and withdrawn by it.
                Outcome::Issued(_) if duty.is_suspended() => {}
                Outcome::Issued(credential) if credential.shown.id != workload.id => {
                    let why = format!("the server issued `{}`", credential.shown.id);
                    duty.failed(why, now, entropy);
                }
                Outcome::Issued(credential)
                    if !credential.shown.attested.is_within(asked_of(workload)) =>
                {
                    // One of the two does not know yet what the manifest asks for.
                    let kinds = credential.shown.attested.kinds().collect::<Vec<_>>().join("`, `");
                    let why =
                        format!("the server issued what says `{kinds}`, and that is not asked for");
                    duty.failed(why, now, entropy);
                }
                Outcome::Issued(credential) => {
                    if let Some(rule) = rules.covering(&credential.shown.presented()) {
                        duty.came_covered(rule, now, entropy);
                        continue;
                    }
                    self.reissued += u64::from(duty.is_covered());
                    duty.obtained(credential, now);
                    if let Some(bundle) = self.replica.own_bundle() {
                        // From a server that does not know yet: not asked again at once.
                        duty.leave_roots(&bundle.retiring, STRAGGLER_RETRY, now, entropy);
                    }
                    if asks_for_another(&asked, workload) {
                        duty.outdate();
                    }
                }
                Outcome::Refused(code, why) => duty.refused(code, why, now, entropy),
                Outcome::Failed(why) => duty.failed(why, now, entropy),
            }
        }
    }

    /// The workloads of this pace, with what each needs. None while some of them are being asked for.
    fn waiting(&self, pace: Pace) -> impl Iterator<Item = (&Duty, &Arc<Workload>)> {
        let busy = self.signing.values().any(|asked| Pace::of(asked) == pace);
        let workloads = (!busy).then(|| self.replica.workloads().values()).into_iter().flatten();
        workloads
            .filter(move |workload| Pace::of(workload) == pace)
            // Its key type was changed while it is asked for under the old one.
            .filter(|workload| !self.signing.contains_key(&workload.name))
            .filter_map(|workload| Some((self.duties.get(&workload.name)?, workload)))
    }

    pub(super) fn first_due(&self, pace: Pace, now: Timestamp) -> Option<Timestamp> {
        self.waiting(pace).map(|(duty, _)| duty.due(now)).min()
    }

    pub(super) fn sign(&mut self, pace: Pace, now: Timestamp, actions: &mut Vec<Action>) {
        let mut due: Vec<_> = self
            .waiting(pace)
            .filter(|(duty, _)| duty.due(now) <= now)
            .map(|(duty, workload)| (duty.turn(), &workload.name, workload))
            .collect();
        due.sort_by_key(|(turn, name, _)| (*turn, *name));
        let most = match pace {
            Pace::Quick => self.settings.batch_max,
            // One after the other, so that the first need not wait for the last, and no core is lost to others.
            Pace::Slow => 1,
        };
        let batch: Vec<Arc<Workload>> =
            due.into_iter().take(most).map(|(_, _, workload)| Arc::clone(workload)).collect();
        if batch.is_empty() {
            return;
        }
        self.signing.extend(batch.iter().map(|one| (one.name.clone(), Arc::clone(one))));
        actions.push(Action::Sign(batch));
    }
}

/// Whether a workload's key is made in a moment. Those that take long are asked for beside the others, which never wait
/// for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    Quick,
    Slow,
}

impl Pace {
    pub(super) const ALL: [Self; 2] = [Self::Quick, Self::Slow];

    fn of(workload: &Workload) -> Self {
        if workload.spec.key_type.is_slow_to_make() { Self::Slow } else { Self::Quick }
    }
}

/// Whether a certificate made for the one manifest would differ from one made for the other.
pub(super) fn asks_for_another(old: &Workload, new: &Workload) -> bool {
    old.id != new.id
        || old.spec.lifetime != new.spec.lifetime
        || old.spec.key_type != new.spec.key_type
        || old.spec.dns_names != new.spec.dns_names
        || asked_of(old) != asked_of(new)
}

/// By which kinds of facts a process must be attested to be this workload.
pub(super) fn asked_of(workload: &Workload) -> Attested {
    Attested::by(&workload.spec.selectors)
}
