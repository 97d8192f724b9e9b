//! Rules that somebody remembers and the store does not are taken back: they were made here, and nothing lifts them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1;
use countersign_api::wire::clip;
use countersign_audit::{Event, EventKind};
use countersign_identity::{
    Code, Reason, Revocation, Revoked, SpiffeId, Suspended, Suspension, Timestamp,
};
use countersign_store::{Batch, Change, KeysOf, Kind, Op, Record};

use super::life::Life;
use crate::attest::Caller;
use crate::control::Control;
use crate::digest::sha256;
use crate::refusal::Refused;
use crate::revoke::{shown, suspension_change, suspension_name};
use crate::state::{Key, State};
use crate::watch::Moment;

/// Rules in one request.
const RECORDS_MAX: usize = 1024;
/// How often it is planned again because the state moved on.
const ATTEMPTS_MAX: usize = 50;

/// A rule that was made here once.
#[derive(Clone, Debug)]
pub(crate) struct Handed {
    name: String,
    value: Vec<u8>,
    rule: Rule,
}

#[derive(Clone, Debug)]
enum Rule {
    Revocation(Revocation),
    Suspension(Suspension),
}

impl Handed {
    /// Reads a record whose signature was verified.
    ///
    /// # Errors
    /// When it is no rule that this version understands.
    pub(crate) fn read(record: &v1::SignedRecord) -> Result<Self, Refused> {
        let bad = |why: String| Refused::new(Code::NotUnderstood, why);
        let value = record.value.to_vec();
        let rule = match record.kind.parse::<Kind>() {
            Ok(Kind::Revocation) => serde_json::from_slice(&value).map(Rule::Revocation),
            Ok(Kind::Suspension) => serde_json::from_slice(&value).map(Rule::Suspension),
            Ok(_) | Err(_) => return Err(bad(format!("`{}` is not a kind of rule", record.kind))),
        };
        let rule = rule.map_err(|why| bad(why.to_string()))?;
        Ok(Self { name: record.name.clone(), value, rule })
    }
}

/// How long a suspension is kept in a journal that the state does not speak of.
const SUSPENSION_KEPT: Duration = Duration::from_secs(30 * 86_400);

impl Handed {
    /// When it was made.
    pub(crate) fn at(&self) -> Timestamp {
        match &self.rule {
            Rule::Revocation(rule) => rule.at,
            Rule::Suspension(suspension) => suspension.at,
        }
    }

    /// Whether a state that lost it could still need it.
    pub(super) fn could_matter(&self, steady: Timestamp) -> bool {
        match &self.rule {
            Rule::Revocation(rule) => !rule.is_moot(steady),
            Rule::Suspension(suspension) => steady < suspension.at + SUSPENSION_KEPT,
        }
    }
}

/// Takes rules back from an agent. Says how many were new.
///
/// Not to be torn: callers run it in a task of its own.
///
/// # Errors
/// `forbidden` when one of them was not made here, and nothing of them is taken then.
pub(crate) async fn hand_back(
    control: Arc<Control>,
    caller: Caller,
    request: v1::HandBackRequest,
) -> Result<v1::HandBackResponse, Refused> {
    let found = request.records.len();
    if RECORDS_MAX < found {
        let why = format!("{found} rules are over the limit of {RECORDS_MAX} a request");
        return Err(Refused::new(Code::TooLarge, why));
    }
    let state = control.feed.current();
    // What is known already costs a look-up, not a signature's verification.
    let unknown = request.records.iter().filter(|record| !is_known(&state, record));
    let mut handed = Vec::new();
    for (index, record) in unknown.enumerate() {
        if index % 16 == 15 {
            tokio::task::yield_now().await;
        }
        if !control.log_key.as_ref().is_some_and(|key| key.made(record)) {
            tracing::warn!(node = %caller.id(), name = clip(&record.name, 256), "an agent handed back a rule that was not made here");
            let why = "a rule was handed back that this trust domain has not made";
            return Err(Refused::new(Code::Forbidden, why));
        }
        handed.push(Handed::read(record)?);
    }
    let actor = caller.row.spiffe_id.to_string();
    for _attempt in 0..ATTEMPTS_MAX {
        let state = control.feed.current();
        let at = control.desk.time.recorded_moment(&*control.clock);
        let batch = taken_back(&state, state.life().as_deref(), &handed, &actor, at);
        let taken = batch.changes.len() as u64;
        if taken == 0 {
            return Ok(v1::HandBackResponse { taken });
        }
        match control.store.commit(Batch { expected: Some(state.revision), ..batch }).await {
            Ok(committed) => {
                control.desk.time.recorded(at.now);
                shown(&control, committed.revision).await;
                tracing::warn!(node = %caller.id(), taken, revision = %committed.revision, "rules were taken back that the store had lost");
                return Ok(v1::HandBackResponse { taken });
            }
            Err(error) => {
                let refused = Refused::from(error);
                if refused.code != Code::StaleBase {
                    return Err(refused);
                }
                shown(&control, control.store.head().await?.revision).await;
            }
        }
    }
    Err(Refused::new(Code::StaleBase, "the state moved on again and again meanwhile"))
}

fn is_known(state: &State, record: &v1::SignedRecord) -> bool {
    let kind = record.kind.parse::<Kind>();
    let entry = kind.ok().and_then(|kind| state.records.get(&Key::new(kind, &record.name)));
    entry.is_some_and(|entry| entry.wire.value == record.value)
}

/// What takes these rules into a state that lacks them: the rules, what goes with each, and what the log says of it. Those
/// that are known are left out, and those that are moot at the time as it has certainly come: a clock that is ahead makes none so.
pub(crate) fn taken_back(
    state: &State,
    life: Option<&Life>,
    handed: &[Handed],
    actor: &str,
    at: Moment,
) -> Batch {
    let Moment { now, steady } = at;
    let mut batch = Batch { narrows: true, ..Batch::default() };
    let mut put: HashSet<(Kind, String)> = HashSet::new();
    let known = state.revocations();
    let known: HashSet<&Revocation> = known.iter().map(|(_, rule)| &**rule).collect();
    let mut taken = HashSet::new();
    for one in handed {
        match &one.rule {
            Rule::Revocation(rule) => {
                if rule.is_moot(steady) || known.contains(rule) || !taken.insert(rule.clone()) {
                    continue;
                }
                let name = free_name(state, &put, one);
                if put.insert((Kind::Revocation, name.clone())) {
                    revoke(&mut batch, state, &mut put, (name, one), rule, (actor, now));
                }
            }
            Rule::Suspension(suspension) => {
                if life.is_some_and(|life| life.may_have_lost(suspension.at)) {
                    suspend(&mut batch, state, &mut put, suspension, (actor, now));
                }
            }
        }
    }
    batch
}

/// The name of the rule, unless it has come to mean another one.
fn free_name(state: &State, put: &HashSet<(Kind, String)>, handed: &Handed) -> String {
    let is_put = put.contains(&(Kind::Revocation, handed.name.clone()));
    if !is_put && !state.records.contains_key(&Key::new(Kind::Revocation, &handed.name)) {
        return handed.name.clone();
    }
    let digest = sha256(&handed.value).to_string();
    format!("{}~{}", handed.name, &digest[..16])
}

fn revoke(
    batch: &mut Batch,
    state: &State,
    put: &mut HashSet<(Kind, String)>,
    (name, handed): (String, &Handed),
    rule: &Revocation,
    (actor, now): (&str, Timestamp),
) {
    let details = serde_json::json!({
        "rule": name, "target": rule.target, "reason": rule.reason, "until": rule.until,
        "handedBack": true,
    });
    let subject = rule.target.to_string();
    batch.events.push(Event::new(EventKind::Revoked, now, actor, subject).with_details(details));
    let value = handed.value.clone();
    batch.changes.push(Change::Put(Record { kind: Kind::Revocation, name, value }));
    batch.ops.extend(keys(rule, now));
    // The node may be on record again under the key that leaked or was removed: it comes back by attesting anew.
    if let Revoked::Node { id, .. } = &rule.target
        && rule.reason != Reason::Superseded
    {
        let target = Suspended::Node(*id);
        let suspension = Suspension { target, reason: rule.reason, at: rule.at };
        suspend(batch, state, put, &suspension, (actor, now));
    }
}

/// Which keys are refused for ever, as when the rule was made.
fn keys(rule: &Revocation, at: Timestamp) -> Option<Op> {
    let leaked = match rule.reason {
        Reason::KeyCompromise
        | Reason::Unspecified
        | Reason::ProcessCompromise
        | Reason::NodeCompromise
        | Reason::AuthorityCompromise => true,
        Reason::Superseded | Reason::CessationOfOperation | Reason::PrivilegeWithdrawn => false,
    };
    let of = match &rule.target {
        Revoked::Key(key) => KeysOf::Key(*key),
        Revoked::Serial(serial) => KeysOf::Serial(*serial),
        Revoked::Identity { id, .. } => KeysOf::Identity(id.clone()),
        Revoked::Node { id, .. } => KeysOf::Node(*id),
        Revoked::Authority(_) | Revoked::Earlier { .. } => return None,
    };
    leaked.then_some(Op::RevokeKeys { of, at })
}

fn suspend(
    batch: &mut Batch,
    state: &State,
    put: &mut HashSet<(Kind, String)>,
    suspension: &Suspension,
    (actor, now): (&str, Timestamp),
) {
    let name = suspension_name(&suspension.target);
    let known = state.records.contains_key(&Key::new(Kind::Suspension, &name));
    if known || !put.insert((Kind::Suspension, name)) {
        return;
    }
    let subject = match &suspension.target {
        Suspended::Identity(id) => SpiffeId::to_string(id),
        Suspended::Node(node) => node.to_string(),
    };
    let details = serde_json::json!({ "reason": suspension.reason, "handedBack": true });
    batch.events.push(Event::new(EventKind::Suspended, now, actor, subject).with_details(details));
    batch.changes.push(suspension_change(suspension));
}
