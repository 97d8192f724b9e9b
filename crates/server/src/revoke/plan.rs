//! What a revocation changes. Pure decisions on one snapshot and what is out.

use std::sync::Arc;

use countersign_api::admin::{Leaked, Reissue, RuleView, SuspensionView, Target};
use countersign_audit::{Event, EventKind};
use countersign_identity::{
    Code, KeyId, NodeId, Reason, Revision, Revocation, Revocations, Revoked, SpiffeId, Suspended,
    Suspension, Timestamp,
};
use countersign_store::{Batch, Change, IssuedRow, KeysOf, Kind, Op, Record};

use crate::attest::agent_id;
use crate::digest::{node_tag, sha256};
use crate::refusal::Refused;
use crate::revoke::stops::{names_somebody, stops};
use crate::state::State;

/// Names of records that one revision makes.
struct Names {
    revision: Revision,
    next: usize,
}

impl Names {
    /// Of the revision after this state's.
    fn after(state: &State) -> Self {
        Self { revision: next(state), next: 0 }
    }

    fn draw(&mut self) -> String {
        let name = format!("{}.{}", self.revision, self.next);
        self.next += 1;
        name
    }
}

/// The revision that the next commit makes: what a rule of that commit does not cover.
fn next(state: &State) -> Revision {
    Revision { number: state.revision.number + 1, ..state.revision }
}

/// A target with what is known of it.
pub(super) enum Found {
    Serial(IssuedRow),
    /// An authority, and when its own certificate ends: until then who has its key can make more.
    Authority(KeyId, Timestamp),
    Other(Target),
}

/// What is asked for, once everything that had to be looked up is known.
pub(super) struct Wish {
    pub(super) targets: Vec<Found>,
    pub(super) reason: Reason,
    pub(super) reissue: Reissue,
    /// The cut-off of rules that have one; none: the revision that is made.
    pub(super) before: Option<Revision>,
    /// The last end of anything that is out.
    pub(super) last_end: Option<Timestamp>,
    pub(super) now: Timestamp,
}

/// What is going to be committed.
pub(super) struct Plan {
    pub(super) rules: Vec<(String, Arc<Revocation>)>,
    pub(super) suspensions: Vec<Suspension>,
    ops: Vec<Op>,
}

/// What the reason says has leaked.
pub(super) fn leaked(reason: Reason) -> Leaked {
    match reason {
        Reason::KeyCompromise | Reason::Unspecified => Leaked::Key,
        Reason::ProcessCompromise => Leaked::Process,
        Reason::NodeCompromise => Leaked::Node,
        Reason::AuthorityCompromise => Leaked::Authority,
        Reason::Superseded | Reason::CessationOfOperation | Reason::PrivilegeWithdrawn => {
            Leaked::Nothing
        }
    }
}

/// Decides what a wish comes to.
///
/// # Errors
/// When the reason does not fit the target, as when it would suspend what no suspension stops, or the target is not of this
/// trust domain.
pub(super) fn plan(state: &State, wish: &Wish) -> Result<Plan, Refused> {
    let mut plan = Plan { rules: Vec::new(), suspensions: Vec::new(), ops: Vec::new() };
    let mut names = Names::after(state);
    let before = wish.before.unwrap_or_else(|| next(state));
    let until = kept_until(state, wish.last_end, wish.now);
    for target in &wish.targets {
        fits(target, wish.reason)?;
        let mut rule = |target: Revoked, about: Option<SpiffeId>, until: Timestamp| {
            let rule = Revocation { target, about, reason: wish.reason, at: wish.now, until };
            plan.rules.push((names.draw(), Arc::new(rule)));
        };
        match target {
            Found::Serial(row) => {
                let (about, end) = (Some(row.spiffe_id.clone()), row.validity.not_after);
                rule(Revoked::Serial(row.serial), about.clone(), end);
                if leaked(wish.reason) != Leaked::Nothing {
                    rule(Revoked::Key(row.key), about, until);
                }
            }
            Found::Other(Target::Identity(id)) => {
                let domain = &state.domain().trust_domain;
                if id.trust_domain() != domain {
                    let why = format!(
                        "`{id}` is outside trust domain `{domain}`: its own operators revoke it"
                    );
                    return Err(Refused::new(Code::ForeignDomain, why));
                }
                names_somebody(id)?;
                rule(Revoked::Identity { id: id.clone(), before }, Some(id.clone()), until);
            }
            Found::Other(Target::Key(key)) => rule(Revoked::Key(*key), None, until),
            Found::Other(Target::Node(node)) => {
                let agent = agent_id(&state.domain().trust_domain, *node);
                rule(Revoked::Node { id: *node, tag: node_tag(*node), before }, None, until);
                rule(Revoked::Identity { id: agent.clone(), before }, Some(agent), until);
            }
            Found::Authority(key, ends) => {
                rule(Revoked::Authority(*key), None, until.max(*ends));
            }
            Found::Other(Target::Serial(_) | Target::Authority(_)) => {
                unreachable!("serials and authorities were looked up")
            }
        }
        if let Some(target) = suspended(target, wish) {
            stops(&target, &state.domain().trust_domain)?;
            plan.suspensions.push(Suspension { target, reason: wish.reason, at: wish.now });
        }
        plan.ops.extend(keys(target, wish));
    }
    Ok(plan)
}

fn fits(target: &Found, reason: Reason) -> Result<(), Refused> {
    let wrong = match (reason, target) {
        (Reason::NodeCompromise, Found::Other(Target::Node(_)))
        | (Reason::AuthorityCompromise, Found::Authority(..)) => return Ok(()),
        (Reason::NodeCompromise, _) => "a node: name it with `--node`",
        (Reason::AuthorityCompromise, _) => "an authority: name it with `--authority`",
        _ => return Ok(()),
    };
    Err(Refused::new(Code::NotUnderstood, format!("`{reason}` is a reason to revoke {wrong}")))
}

/// What gets nothing new until an operator resumes it.
fn suspended(target: &Found, wish: &Wish) -> Option<Suspended> {
    let stays = match (wish.reissue, wish.reason) {
        (Reissue::No, _)
        | (
            Reissue::ByReason,
            Reason::ProcessCompromise
            | Reason::NodeCompromise
            | Reason::CessationOfOperation
            | Reason::PrivilegeWithdrawn,
        ) => false,
        (
            Reissue::ByReason,
            Reason::KeyCompromise
            | Reason::AuthorityCompromise
            | Reason::Superseded
            | Reason::Unspecified,
        ) => true,
    };
    match target {
        // Of what is no workload's, the one certificate is out of service, beside all else that was named; who it is goes on.
        Found::Serial(row) if !stays && !row.spiffe_id.is_reserved() => {
            Some(Suspended::Identity(row.spiffe_id.clone()))
        }
        Found::Other(Target::Identity(id)) if !stays => Some(Suspended::Identity(id.clone())),
        // Whose node's key leaked cannot be told from whoever has it: it comes back by attesting anew.
        Found::Other(Target::Node(node)) if !stays || leaked(wish.reason) != Leaked::Nothing => {
            Some(Suspended::Node(*node))
        }
        Found::Serial(_) | Found::Authority(..) | Found::Other(_) => None,
    }
}

/// Which keys are refused for ever.
fn keys(target: &Found, wish: &Wish) -> Option<Op> {
    if leaked(wish.reason) == Leaked::Nothing {
        return None;
    }
    let of = match target {
        Found::Serial(row) => KeysOf::Serial(row.serial),
        Found::Other(Target::Identity(id)) => KeysOf::Identity(id.clone()),
        Found::Other(Target::Key(key)) => KeysOf::Key(*key),
        Found::Other(Target::Node(node)) => KeysOf::Node(*node),
        Found::Authority(..) | Found::Other(Target::Authority(_) | Target::Serial(_)) => {
            return None;
        }
    };
    Some(Op::RevokeKeys { of, at: wish.now })
}

/// The last moment at which anything could be valid that a rule of now covers: what is out, which may have been issued
/// under a longer limit than today's, and what is being recorded right now.
fn kept_until(state: &State, last_end: Option<Timestamp>, now: Timestamp) -> Timestamp {
    let longest = now + state.profile().lifetime_max.duration();
    last_end.map_or(longest, |end| end.max(longest))
}

/// The rules that take out of service what an identity holds whose manifest is removed.
pub(crate) fn retired(
    state: &State,
    ids: &[SpiffeId],
    last_end: Option<Timestamp>,
    now: Timestamp,
) -> Vec<Change> {
    let mut names = Names::after(state);
    let until = kept_until(state, last_end, now);
    let rule = |id: &SpiffeId| {
        let target = Revoked::Identity { id: id.clone(), before: next(state) };
        let reason = Reason::CessationOfOperation;
        let rule = Revocation { target, about: Some(id.clone()), reason, at: now, until };
        Change::Put(record(names.draw(), &rule))
    };
    ids.iter().map(rule).collect()
}

/// What takes authorities out of service that end at these moments, and with them all that they signed.
///
/// # Errors
/// When the reason does not fit.
pub(crate) fn condemned(
    state: &State,
    authorities: &[(KeyId, Timestamp)],
    reason: Reason,
    last_end: Option<Timestamp>,
    actor: &str,
    now: Timestamp,
) -> Result<Batch, Refused> {
    let targets = authorities.iter().map(|(key, ends)| Found::Authority(*key, *ends)).collect();
    let wish = Wish { targets, reason, reissue: Reissue::ByReason, before: None, last_end, now };
    Ok(plan(state, &wish)?.batch(state, actor, now))
}

/// The rules that take out of service what was issued through a node that is removed, and its agent's own.
pub(crate) fn removed(
    state: &State,
    node: NodeId,
    last_end: Option<Timestamp>,
    now: Timestamp,
) -> Vec<Change> {
    let before = next(state);
    let id = agent_id(&state.domain().trust_domain, node);
    let own = Revoked::Identity { id: id.clone(), before };
    let through = Revoked::Node { id: node, tag: node_tag(node), before };
    let reason = Reason::CessationOfOperation;
    let until = kept_until(state, last_end, now);
    let mut names = Names::after(state);
    let mut rule = |target, about| {
        let rule = Revocation { target, about, reason, at: now, until };
        Change::Put(record(names.draw(), &rule))
    };
    vec![rule(through, None), rule(own, Some(id))]
}

/// The record of a rule.
pub(super) fn record(name: String, rule: &Revocation) -> Record {
    let value = serde_json::to_vec(rule).expect("a rule always has a JSON form");
    Record { kind: Kind::Revocation, name, value }
}

/// The name of the one suspension that a target can have.
pub(crate) fn suspension_name(target: &Suspended) -> String {
    match target {
        Suspended::Identity(id) => format!("identity-{}", sha256(id.as_str().as_bytes())),
        Suspended::Node(node) => format!("node-{node}"),
    }
}

/// What makes a suspension.
pub(crate) fn suspension_change(suspension: &Suspension) -> Change {
    let value = serde_json::to_vec(suspension).expect("a suspension always has a JSON form");
    let name = suspension_name(&suspension.target);
    Change::Put(Record { kind: Kind::Suspension, name, value })
}

/// Whom it is about, as the log says it.
pub(super) fn suspension_subject(target: &Suspended) -> String {
    match target {
        Suspended::Identity(id) => id.to_string(),
        Suspended::Node(node) => node.to_string(),
    }
}

impl Plan {
    /// The rules as a set, to ask what they cover.
    pub(super) fn set(&self) -> Revocations {
        Revocations::new(
            self.rules.iter().map(|(name, rule)| (Arc::from(name.as_str()), Arc::clone(rule))),
        )
    }

    /// What commits exactly this plan, if the state is still the one that it was made on.
    pub(super) fn batch(&self, state: &State, actor: &str, now: Timestamp) -> Batch {
        let mut changes: Vec<Change> =
            self.rules.iter().map(|(name, rule)| Change::Put(record(name.clone(), rule))).collect();
        changes.extend(self.suspensions.iter().map(suspension_change));
        let revoked = |(name, rule): &(String, Arc<Revocation>)| {
            let details = serde_json::json!({ "rule": name, "target": rule.target, "reason": rule.reason, "until": rule.until });
            Event::new(EventKind::Revoked, now, actor, subject(rule)).with_details(details)
        };
        let suspended = |suspension: &Suspension| {
            let subject = suspension_subject(&suspension.target);
            let details = serde_json::json!({ "reason": suspension.reason });
            Event::new(EventKind::Suspended, now, actor, subject).with_details(details)
        };
        let events = self.rules.iter().map(revoked);
        let events = events.chain(self.suspensions.iter().map(suspended)).collect();
        Batch {
            expected: Some(state.revision),
            narrows: true,
            changes,
            events,
            ops: self.ops.clone(),
            ..Batch::default()
        }
    }
}

fn subject(rule: &Revocation) -> String {
    match &rule.target {
        Revoked::Serial(serial) => serial.to_string(),
        Revoked::Identity { id, .. } => id.to_string(),
        Revoked::Key(key) | Revoked::Authority(key) => key.to_string(),
        Revoked::Node { id, .. } => id.to_string(),
        Revoked::Earlier { domain, .. } => domain.to_string(),
    }
}

/// A rule, for people.
pub(super) fn rule_view(name: &str, rule: &Revocation) -> RuleView {
    let Revocation { target, about, reason, at, until } = rule.clone();
    RuleView { name: name.to_owned(), target, about, reason, at, until }
}

/// A suspension, for people.
pub(super) fn suspension_view(suspension: &Suspension) -> SuspensionView {
    let Suspension { target, reason, at } = suspension.clone();
    SuspensionView { target, reason, at }
}
