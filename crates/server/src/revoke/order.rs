//! An operator's order, from what it names to what is committed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::admin::{
    RevisionResponse, RevocationsResponse, RevokeRequest, RevokeResponse, TARGETS_MAX, Target,
};
use countersign_audit::{Entry, Event, EventKind};
use countersign_identity::{
    Canary, Code, KeyId, NodeId, Revision, SKEW_ALLOWED, Serial, SpiffeId, Suspended, Suspension,
    Timestamp, Trial,
};
use countersign_store::{Batch, Change, Committed, Kind, PAGE_MAX, Store};

use crate::attest::node_of;
use crate::authority::internal;
use crate::control::Control;
use crate::refusal::Refused;
use crate::revoke::exposure::{exposure_ends, lost_until};
use crate::revoke::holdings::{Holdings, ended_by, held};
use crate::revoke::plan::{
    Found, Plan, Wish, leaked, plan, record, rule_view, suspension_change, suspension_name,
    suspension_subject, suspension_view,
};
use crate::revoke::stops::stops;
use crate::revoke::watched::{Begun, Watched};
use crate::rotate::Walk;
use crate::state::State;
use crate::watch::highest;

/// How often an order is planned again because the state moved on. Every other writer makes way within as many commits.
const ATTEMPTS_MAX: usize = 50;
/// How long to wait for the snapshot to show what is committed.
const SHOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes credentials out of service.
///
/// Not to be torn: callers run it in a task of its own.
///
/// # Errors
/// When a target is unknown or does not fit the reason; nothing is half-done.
pub(crate) async fn revoke(
    control: Arc<Control>,
    request: RevokeRequest,
    actor: String,
) -> Result<RevokeResponse, Refused> {
    check(&request)?;
    for _attempt in 0..ATTEMPTS_MAX {
        let state = control.feed.current();
        let now = highest(&control.desk.time, &*control.clock, &*control.store).await;
        let plan = plan(&state, &wish(&control, &request, now).await?)?;
        if request.dry_run {
            let effect = effect(&control, &plan, state.revision).await?;
            return Ok(answer(state.revision, &request, &plan, &effect));
        }
        let revision = Revision { number: state.revision.number + 1, ..state.revision };
        let begun = control.converging.begin(revision, control.clock.now());
        match control.store.commit(plan.batch(&state, &actor, now)).await {
            Ok(committed) => return finish(&control, &request, &plan, (begun, &committed)).await,
            Err(error) => {
                drop(begun);
                let refused = Refused::from(error);
                if refused.code != Code::StaleBase {
                    return Err(refused);
                }
                catch_up(&control).await?;
            }
        }
    }
    Err(Refused::new(Code::StaleBase, "the state moved on again and again meanwhile"))
}

fn check(request: &RevokeRequest) -> Result<(), Refused> {
    if request.targets.is_empty() {
        return Err(Refused::new(Code::NotUnderstood, "nothing is named that is to be revoked"));
    }
    if TARGETS_MAX < request.targets.len() {
        let found = request.targets.len();
        let why = format!("{found} targets are over the limit of {TARGETS_MAX} a request");
        return Err(Refused::new(Code::TooLarge, why));
    }
    Ok(())
}

/// What the revocation comes to, once it is durable.
async fn finish(
    control: &Control,
    request: &RevokeRequest,
    plan: &Plan,
    (begun, committed): (Begun<'_>, &Committed),
) -> Result<RevokeResponse, Refused> {
    let (at, revision) = (control.clock.now(), committed.revision);
    control.desk.time.recorded(at);
    // Looked at now: nothing that it covers is recorded any more, so this is all.
    let effect = effect(control, plan, revision).await;
    let watched = effect.as_ref().map_or_else(
        |_unknown| Watched::default(),
        |effect| Watched {
            reissue: reissued(&control.feed.current(), plan, effect.holders.clone()),
            exposure_ends: effect.exposure_ends,
        },
    );
    // It is committed in any case, and its acknowledgements count.
    begun.committed(at, watched);
    let effect = effect?;
    shown(control, revision).await;
    tracing::warn!(%revision, rules = plan.rules.len(), "credentials were revoked");
    let not_in_journal = unjournaled(control, revision).await;
    Ok(RevokeResponse { not_in_journal, ..answer(revision, request, plan, &effect) })
}

/// What a plan comes to, by what is out.
struct Effect {
    covered: Holdings,
    exposure_ends: Option<Timestamp>,
    /// Who holds what is covered, and has no successor.
    holders: BTreeSet<(SpiffeId, NodeId)>,
}

async fn effect(control: &Control, plan: &Plan, revision: Revision) -> Result<Effect, Refused> {
    let now = ended_by(control);
    let held = held(&*control.store, now).await?;
    let rules = plan.set();
    let covered = held.covered(&rules);
    let lost = lost_until(&control.feed.current(), now);
    let exposure_ends = exposure_ends(&rules, &covered, lost);
    Ok(Effect { covered, exposure_ends, holders: held.waiting(&rules, revision) })
}

/// Who is to be issued anew: whoever has nothing else, unless that is stopped.
fn reissued(
    state: &State,
    plan: &Plan,
    mut holders: BTreeSet<(SpiffeId, NodeId)>,
) -> BTreeSet<(SpiffeId, NodeId)> {
    let domain = &state.domain().trust_domain;
    let stopped = |target: &Suspended| {
        state.is_suspended(target)
            || plan.suspensions.iter().any(|suspension| suspension.target == *target)
    };
    holders.retain(|(id, node)| {
        let workload = node_of(id, domain).is_none();
        let declared = state.workloads().any(|(name, spec)| spec.spiffe_id_in(name, domain) == *id);
        workload
            && declared
            && !stopped(&Suspended::Identity(id.clone()))
            && !stopped(&Suspended::Node(*node))
    });
    holders
}

fn answer(
    revision: Revision,
    request: &RevokeRequest,
    plan: &Plan,
    Effect { covered, exposure_ends, .. }: &Effect,
) -> RevokeResponse {
    let leaked = leaked(request.reason);
    RevokeResponse {
        revision,
        leaked,
        not_ruled_out: leaked.not_ruled_out().to_owned(),
        rules: plan.rules.iter().map(|(name, rule)| rule_view(name, rule)).collect(),
        suspended: plan.suspensions.iter().map(suspension_view).collect(),
        covered: covered.count(),
        identities: covered.identities().into_iter().collect(),
        exposure_ends: *exposure_ends,
        not_in_journal: None,
    }
}

/// Looks up what the order names.
async fn wish(control: &Control, request: &RevokeRequest, now: Timestamp) -> Result<Wish, Refused> {
    let mut targets = Vec::with_capacity(request.targets.len());
    for target in &request.targets {
        targets.push(found(control, target, request.dry_run).await?);
    }
    let serials_only = targets.iter().all(|target| matches!(target, Found::Serial(_)));
    let last_end = if serials_only { None } else { held(&*control.store, now).await?.last_end() };
    let before = match request.issued_before {
        Some(moment) => Some(first_after(control, moment + SKEW_ALLOWED).await?),
        None => None,
    };
    let (reason, reissue) = (request.reason, request.reissue);
    Ok(Wish { targets, reason, reissue, before: before.flatten(), last_end, now })
}

async fn found(control: &Control, target: &Target, dry_run: bool) -> Result<Found, Refused> {
    let unknown = |what: String| Err(Refused::new(Code::NotFound, what));
    match target {
        Target::Serial(serial) => match control.store.issued(*serial).await? {
            Some(issued) => Ok(Found::Serial(issued.row)),
            None => unknown(format!(
                "no certificate with serial `{serial}` is on record: it was never issued here, or has expired"
            )),
        },
        Target::Node(node) => match control.store.node(*node).await? {
            Some(_row) => Ok(Found::Other(target.clone())),
            None => unknown(format!(
                "node `{node}` is not registered; `countersign node list` shows them"
            )),
        },
        Target::Authority(key) => {
            let authorities = control.desk.authorities.load();
            if authorities.root.key_id() == *key {
                let why = "the root signs everything that is in service: `countersign recover --compromised` puts another in its place first";
                return Err(Refused::new(Code::Forbidden, why));
            }
            if authorities.issuer.key_id() == *key && !dry_run {
                let why = "this issuer signs now, and has no successor yet";
                return Err(Refused::new(Code::Forbidden, why));
            }
            drop(authorities);
            let walk = Arc::clone(control.feed.current().walk()?);
            match authority_ends(&*control.store, &walk, *key).await? {
                Some(ends) => Ok(Found::Authority(*key, ends)),
                None => unknown(format!(
                    "no authority of this trust domain with key `{key}` is on record: none was made here, or it has expired"
                )),
            }
        }
        Target::Identity(_) | Target::Key(_) => Ok(Found::Other(target.clone())),
    }
}

/// When the certificate of an authority ends, by the rows that are kept, or by the walk when it came from outside.
async fn authority_ends(
    store: &dyn Store,
    walk: &Walk,
    key: KeyId,
) -> Result<Option<Timestamp>, Refused> {
    let mut after: Option<Serial> = None;
    let mut ends: Option<Timestamp> = None;
    for root in &walk.roots {
        let imported = root.imported()?;
        let of_it = imported.iter().filter(|one| one.key_id() == key);
        ends = of_it.map(|one| one.validity().not_after).max().max(ends);
    }
    loop {
        let page = store.issued_after(after, PAGE_MAX).await?;
        after = page.last().map(|issued| issued.row.serial);
        let rows = page.iter().map(|issued| &issued.row);
        let of_it = rows.filter(|row| row.key == key && row.spiffe_id.is_root());
        ends = of_it.map(|row| row.validity.not_after).max().max(ends);
        if page.len() < PAGE_MAX {
            return Ok(ends);
        }
    }
}

/// The first revision that was committed after this moment, by the log; none when there is none yet.
async fn first_after(control: &Control, moment: Timestamp) -> Result<Option<Revision>, Refused> {
    let size = control.store.head().await?.log_size;
    let (mut low, mut high) = (0, size);
    // Before an operator set it right they may be any.
    if let Some((from, since)) = crate::watch::in_order_from(&*control.store).await? {
        low = from;
        high = if moment < since { from } else { size };
    }
    // The log's times do not go back by more than the allowed skew, which was added.
    while low < high {
        let middle = low + (high - low) / 2;
        let events = control.store.events(middle, 1).await?;
        let Some(event) = events.first() else { break };
        let entry = Entry::parse(&event.leaf).map_err(internal)?;
        if entry.at <= moment {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let events = control.store.events(low, 1).await?;
    let Some(event) = events.first() else { return Ok(None) };
    let revision = Entry::parse(&event.leaf).map_err(internal)?.revision;
    // What was authorised at that event's own revision may have been issued before it.
    Ok(Some(Revision { number: revision.number + 1, ..revision }))
}

/// Suspends something, or lifts it.
///
/// # Errors
/// When there is nothing to lift, or no suspension stops it.
pub(crate) async fn suspend(
    control: Arc<Control>,
    change: Suspending,
    actor: String,
) -> Result<RevisionResponse, Refused> {
    for _attempt in 0..ATTEMPTS_MAX {
        let state = control.feed.current();
        let now = highest(&control.desk.time, &*control.clock, &*control.store).await;
        let batch = change.batch(&state, &actor, now)?;
        match control.store.commit(batch).await {
            Ok(committed) => {
                return Ok(done(&control, committed.revision).await);
            }
            Err(error) => {
                let refused = Refused::from(error);
                if refused.code != Code::StaleBase {
                    return Err(refused);
                }
                catch_up(&control).await?;
            }
        }
    }
    Err(Refused::new(Code::StaleBase, "the state moved on again and again meanwhile"))
}

/// Begins a trial: a rule of its own revision, which covers one of the canaries that agents get for it. The operator who
/// asks for it is on the log, as for any other rule.
///
/// # Errors
/// When nothing can be recorded.
pub(crate) async fn try_out(
    control: Arc<Control>,
    actor: String,
) -> Result<RevisionResponse, Refused> {
    for _attempt in 0..ATTEMPTS_MAX {
        let state = control.feed.current();
        let now = control.desk.now().await?;
        match control.store.commit(trial_batch(&state, &actor, now)).await {
            Ok(committed) => {
                control.desk.time.recorded(now);
                return Ok(done(&control, committed.revision).await);
            }
            Err(error) => {
                let refused = Refused::from(error);
                if refused.code != Code::StaleBase {
                    return Err(refused);
                }
                catch_up(&control).await?;
            }
        }
    }
    Err(Refused::new(Code::StaleBase, "the state moved on again and again meanwhile"))
}

/// What begins a trial: the rule of the revision that comes next.
pub(crate) fn trial_batch(state: &State, actor: &str, now: Timestamp) -> Batch {
    let revision = Revision { number: state.revision.number + 1, ..state.revision };
    let domain = &state.domain().trust_domain;
    let rule = Trial(revision).rule(domain, now);
    let subject = Trial(revision).id(domain, Canary::Covered);
    let details = serde_json::json!({ "trial": revision });
    let event = Event::new(EventKind::Revoked, now, actor, subject.as_str()).with_details(details);
    Batch {
        expected: Some(state.revision),
        narrows: true,
        changes: vec![Change::Put(record(format!("{revision}.0"), &rule))],
        events: vec![event],
        ..Batch::default()
    }
}

/// A change of what is suspended.
pub(crate) enum Suspending {
    /// Nothing more is issued.
    Begin(Suspended, countersign_identity::Reason),
    /// It is issued again.
    End(Suspended),
}

impl Suspending {
    fn batch(&self, state: &State, actor: &str, now: Timestamp) -> Result<Batch, Refused> {
        let (changes, event, narrows) = match self {
            Self::Begin(target, reason) => {
                stops(target, &state.domain().trust_domain)?;
                let suspension = Suspension { target: target.clone(), reason: *reason, at: now };
                let details = serde_json::json!({ "reason": reason });
                let event =
                    Event::new(EventKind::Suspended, now, actor, suspension_subject(target));
                (vec![suspension_change(&suspension)], event.with_details(details), true)
            }
            Self::End(target) => {
                if !state.is_suspended(target) {
                    let subject = suspension_subject(target);
                    let why = format!("`{subject}` is not suspended");
                    return Err(Refused::new(Code::NotFound, why));
                }
                let name = suspension_name(target);
                let remove = Change::Remove { kind: Kind::Suspension, name };
                let event = Event::new(EventKind::Resumed, now, actor, suspension_subject(target));
                (vec![remove], event, false)
            }
        };
        let events = vec![event];
        Ok(Batch { expected: Some(state.revision), narrows, changes, events, ..Batch::default() })
    }
}

/// What is out of service.
pub(crate) fn in_force(state: &State) -> RevocationsResponse {
    let rules = state.revocations();
    let mut rules: Vec<_> = rules.iter().map(|(name, rule)| rule_view(name, rule)).collect();
    rules.sort_by(|one, next| (next.at, &next.name).cmp(&(one.at, &one.name)));
    let suspensions = state.suspensions().map(suspension_view).collect();
    RevocationsResponse { revision: state.revision, rules, suspensions }
}

async fn catch_up(control: &Control) -> Result<(), Refused> {
    let head = control.store.head().await?.revision;
    shown(control, head).await;
    Ok(())
}

/// What an operator hears of a rule that is durable.
async fn done(control: &Control, revision: Revision) -> RevisionResponse {
    shown(control, revision).await;
    RevisionResponse { revision, not_in_journal: unjournaled(control, revision).await }
}

/// Waits a little until the journal has the rules of a revision that is shown, where one is kept; says why not when it has
/// not. They are in force in any case.
pub(crate) async fn unjournaled(control: &Control, revision: Revision) -> Option<String> {
    control.journal.as_ref()?.lacks(revision).await
}

/// Waits until this server's own snapshot shows a revision. It is durable in any case.
pub(crate) async fn shown(control: &Control, revision: Revision) {
    let reached = tokio::time::timeout(SHOWN_TIMEOUT, control.feed.reached(revision)).await;
    if reached.is_err() {
        tracing::warn!(%revision, "the snapshot is slow to show a committed revision");
    }
}
