//! What a review finds: who could, who did, since when that could be seen, and what would be enough.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use countersign_api::admin::{
    Answer, FlowView, Observed, PermitView, Proposal, ReviewReport, ReviewSubject, Touched,
};
use countersign_api::resource::{CedarText, PolicySpec, Resource, Spec};
use countersign_identity::{Name, Timestamp};
use countersign_policy::{Grounds, Narrowed, Outcome, Permit, TopicAct, Use, narrow};

use super::{Kept, find};
use crate::admin::change::off_thread;
use crate::admin::history::last_touched;
use crate::admin::policy::judge;
use crate::authority::internal;
use crate::control::Control;
use crate::judge::Judge;
use crate::refusal::Refused;
use crate::state::{Key, State};
use crate::watch;

/// Flows that are shown of one permit.
const FLOWS_SHOWN_MAX: usize = 200;
/// Names of what nobody used that are shown of one permit.
const IDLE_SHOWN_MAX: usize = 100;

/// What a review finds now.
///
/// # Errors
/// When there is no such review, or the store is away.
pub(crate) async fn report(control: &Arc<Control>, id: &Name) -> Result<ReviewReport, Refused> {
    let now = control.clock.now();
    let kept = find(&*control.store, id).await?;
    let state = control.feed.current();
    let on = Arc::clone(&state);
    let judge = off_thread(move || judge(&on, now)).await??;
    let flows = watch::flows(&*control.store, &judge, None).await?;
    let policies: Vec<Resource> = about(&state, &kept.review.subject);
    let keys = policies
        .iter()
        .map(|one| Key::new(countersign_store::Kind::Policy, one.name.as_str()))
        .collect();
    let touched = last_touched(&*control.store, &keys).await?;
    let dropped = control.watch.flows.dropped();
    let seen = Seen::of(&flows, &kept, now, dropped);
    let case = Case { state, kept, policies, touched, judge, seen, now };
    off_thread(move || case.report()).await?
}

/// All that a report is made of.
struct Case {
    state: Arc<State>,
    kept: Kept,
    policies: Vec<Resource>,
    touched: BTreeMap<Key, Touched>,
    judge: Judge,
    seen: Seen,
    now: Timestamp,
}

/// The policies that may be concerned.
fn about(state: &State, subject: &ReviewSubject) -> Vec<Resource> {
    let concerned = |one: &Resource| match (&one.spec, subject) {
        (Spec::Policy(_), ReviewSubject::All | ReviewSubject::Service(_)) => true,
        (Spec::Policy(_), ReviewSubject::Policy(name)) => one.name == *name,
        (_, _) => false,
    };
    state.resources().filter(concerned).collect()
}

/// What was seen within the window, and since when that could be.
struct Seen {
    flows: Vec<FlowView>,
    observed: Observed,
}

impl Seen {
    fn of(flows: &[FlowView], kept: &Kept, now: Timestamp, dropped: u64) -> Self {
        let window = kept.review.window.duration();
        let begin = now - window;
        // Before the first flow that is remembered, nobody may have looked.
        let first = flows.iter().map(|flow| flow.first_seen).min().unwrap_or(now);
        let since = begin.max(first).min(now);
        let seconds = now.since(since).as_secs();
        let short = (begin < since).then(|| {
            format!(
                "seen for {} only, and {} were asked for: what is rarer looks unused",
                rough(seconds),
                kept.review.window
            )
        });
        let lost = (0 < dropped).then(|| {
            format!("{dropped} requests and connections were counted in no flow: what looks unused may be used")
        });
        let caution: Vec<String> = short.into_iter().chain(lost).collect();
        let observed = Observed {
            since,
            seconds,
            asked_seconds: window.as_secs(),
            dropped,
            caution: (!caution.is_empty()).then(|| caution.join("; ")),
        };
        Self { flows: within(flows, begin), observed }
    }
}

/// The flows of the window, with the connections that their requests came over, however long ago those were opened.
fn within(flows: &[FlowView], begin: Timestamp) -> Vec<FlowView> {
    let recent = |flow: &&FlowView| begin <= flow.last_seen;
    let asking: BTreeSet<_> = flows
        .iter()
        .filter(recent)
        .filter(|flow| flow.method.is_some())
        .map(|flow| (&flow.source_id, &flow.service))
        .collect();
    let carries = |flow: &FlowView| {
        flow.method.is_none() && asking.contains(&(&flow.source_id, &flow.service))
    };
    flows.iter().filter(|flow| recent(flow) || carries(flow)).cloned().collect()
}

/// A span as people say it: in its largest unit.
fn rough(seconds: u64) -> String {
    match seconds {
        0..=7199 => format!("{} minutes", seconds / 60),
        7200..=172_799 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

impl Case {
    fn report(self) -> Result<ReviewReport, Refused> {
        let uses = uses(&self.seen.flows, &self.judge);
        let (mut permits, mut proposals, mut withheld) = (Vec::new(), Vec::new(), Vec::new());
        for resource in &self.policies {
            let Spec::Policy(spec) = &resource.spec else { continue };
            let grounds = Grounds {
                used: &uses,
                members: self.judge.members(),
                about: &|_, resources| concerns(&self.kept.review.subject, resources, &self.judge),
                of_topics: &|actions, resources| permits_topics(actions, resources, &self.judge),
            };
            let narrowed = narrow(&resource.name, spec.cedar.as_str(), &grounds);
            let narrowed = narrowed.map_err(|problems| {
                internal(problems.first().map(ToString::to_string).unwrap_or_default())
            })?;
            withheld.extend(narrowed.uncounted.iter().map(|permit| {
                format!("`{permit}` permits what is done with topics, which nobody counts: it stays as it is")
            }));
            if narrowed.permits.is_empty() {
                continue;
            }
            withheld.extend(self.changed_meanwhile(resource));
            permits.extend(narrowed.permits.iter().map(|permit| self.view(permit, spec)));
            match self.propose(resource, spec, &narrowed) {
                Some(Ok(proposal)) => proposals.push(proposal),
                Some(Err(why)) => withheld.push(why),
                None => {}
            }
        }
        Ok(ReviewReport {
            review: self.kept.view(self.now),
            revision: self.state.revision,
            observed: self.seen.observed,
            permits,
            proposals,
            withheld,
        })
    }

    /// What was seen of a text before it changed says less of what it grants now.
    fn changed_meanwhile(&self, resource: &Resource) -> Option<String> {
        let key = Key::new(countersign_store::Kind::Policy, resource.name.as_str());
        let changed = self.touched.get(&key)?.at?;
        (self.seen.observed.since < changed).then(|| {
            format!(
                "{} was changed at {changed}: what it permits now could be seen since then only",
                resource.label()
            )
        })
    }

    fn view(&self, permit: &Permit, spec: &PolicySpec) -> PermitView {
        let rests = |flow: &&FlowView| {
            flow.policies.contains(&permit.policy)
                && used(flow, &self.judge).is_some_and(|one| permit.used.contains(&one))
        };
        let flows = self.seen.flows.iter().filter(rests);
        PermitView {
            policy: permit.policy.clone(),
            mode: spec.mode,
            sources: permit.principals.clone(),
            role: permit.role.clone(),
            actions: permit.actions.clone(),
            resources: permit.resources.clone(),
            used: flows.take(FLOWS_SHOWN_MAX).cloned().collect(),
            idle: idle(permit, &self.judge),
            outcome: match permit.outcome {
                Outcome::Exact => "exact",
                Outcome::Unused => "unused",
                Outcome::Narrower => "narrower",
                Outcome::Wide => "wide",
            }
            .to_owned(),
        }
    }

    /// The narrower manifest, if there is one that lets pass all that was seen and is let pass now; or why there is none.
    fn propose(
        &self,
        resource: &Resource,
        spec: &PolicySpec,
        narrowed: &Narrowed,
    ) -> Option<Result<Proposal, String>> {
        let changes = |permit: &Permit| match permit.outcome {
            Outcome::Unused | Outcome::Narrower => true,
            Outcome::Exact | Outcome::Wide => false,
        };
        if !narrowed.permits.iter().any(changes) {
            return None;
        }
        let label = resource.label();
        let after = match &narrowed.text {
            None => None,
            Some(text) => {
                let Ok(cedar) = text.parse::<CedarText>() else {
                    return Some(Err(format!("{label}: written out, its text would be too long")));
                };
                let spec = Spec::Policy(PolicySpec { cedar, ..spec.clone() });
                Some(Resource { spec, ..resource.clone() })
            }
        };
        let others = self.state.resources().filter(|one| one.label() != label);
        let would_be: Vec<Resource> = others.chain(after.clone()).collect();
        let then = match Judge::of(&would_be, &self.state.domain().trust_domain, self.now) {
            Ok(then) => then,
            Err(problems) => {
                let why = problems.first().map(ToString::to_string).unwrap_or_default();
                return Some(Err(format!("{label}: its narrower text does not compile: {why}")));
            }
        };
        let lost = |flow: &&FlowView| self.judge.lets_pass(flow) && !then.lets_pass(flow);
        if let Some(flow) = self.seen.flows.iter().find(lost) {
            let (source, service, what) = (&flow.source, &flow.service, flow.what());
            return Some(Err(format!(
                "{label}: no narrower text, since it would deny what was seen: {source} → {service}, {what}"
            )));
        }
        let after = after.map(|resource| resource.manifest());
        let (policy, before) = (resource.name.clone(), resource.manifest());
        Some(Ok(Proposal { policy, before, after }))
    }
}

fn concerns(subject: &ReviewSubject, resources: &[String], judge: &Judge) -> bool {
    let ReviewSubject::Service(service) = subject else { return true };
    let of = |resource: &String| match data_set(resource) {
        Some(name) => judge.holders(name).any(|holder| holder == service),
        None => resource.split('/').next() == Some(service.as_str()),
    };
    resources.is_empty() || resources.iter().any(of)
}

/// The name in `Dataset::"charges"`.
fn data_set(resource: &str) -> Option<&str> {
    resource.strip_prefix("Dataset::\"")?.strip_suffix('"')
}

/// Whether a permit may be one to publish or subscribe as well.
fn permits_topics(actions: &[String], resources: &[String], judge: &Judge) -> bool {
    let acts = actions.iter().any(|action| action.parse::<TopicAct>().is_ok());
    let carries = |resource: &String| match data_set(resource) {
        Some(name) => judge.holders(name).any(|holder| judge.has_topics(Some(holder.as_str()))),
        None => judge.has_topics(Some(resource)),
    };
    let on = match resources {
        [] => judge.has_topics(None),
        named => named.iter().any(carries),
    };
    (actions.is_empty() || acts) && on
}

/// What was used of each policy.
fn uses(flows: &[FlowView], judge: &Judge) -> BTreeMap<String, BTreeSet<Use>> {
    let mut uses: BTreeMap<String, BTreeSet<Use>> = BTreeMap::new();
    for flow in flows.iter().filter(|flow| flow.decision == Answer::Allow) {
        let Some(one) = used(flow, judge) else { continue };
        for policy in &flow.policies {
            uses.entry(policy.clone()).or_default().insert(one.clone());
        }
    }
    uses
}

/// A flow as something that was used; `None` when its method is none that could be permitted.
fn used(flow: &FlowView, judge: &Judge) -> Option<Use> {
    let verb = match &flow.method {
        Some(method) => Some(method.parse().ok()?),
        None => None,
    };
    let principal = judge.principal(&flow.source_id);
    Some(Use { principal, service: flow.service.clone(), verb, operation: flow.operation.clone() })
}

/// Who could and did not, what could be done and was not: by name, where the scope leaves it open as well.
fn idle(permit: &Permit, judge: &Judge) -> Vec<String> {
    let asked = |name: &str| permit.used.iter().any(|one| one.principal.as_str() == name);
    let sources = match permit.principals.as_slice() {
        [] if permit.role.is_some() => Vec::new(),
        [] => judge.workloads().map(ToString::to_string).collect(),
        named => named.to_vec(),
    };
    let done = |action: &str| {
        permit.used.iter().any(|one| one.verb.map_or("connect", |verb| verb.as_str()) == action)
    };
    let operations = permit.resources.iter().filter(|resource| !resource.contains('/'));
    let operations = operations.flat_map(|service| match data_set(service) {
        Some(name) => judge.touching(name),
        None => judge.operations(service),
    });
    // A permit to connect alone speaks of no operation.
    let connects = matches!(permit.actions.as_slice(), [only] if only == "connect");
    let touched = |operation: &str| {
        permit.used.iter().any(|one| {
            let name = one.operation.as_ref().map(|name| format!("{}/{name}", one.service));
            name.as_deref() == Some(operation)
        })
    };
    let sources = sources.into_iter().filter(|name| !asked(name));
    let actions = permit.actions.iter().filter(|action| !done(action)).cloned();
    let operations = operations.filter(|name| !connects && !touched(name));
    sources.chain(actions).chain(operations).take(IDLE_SHOWN_MAX).collect()
}
