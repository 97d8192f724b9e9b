//! SVIDs for the workloads of a node, many in one request, with one durable commit.

use std::sync::Arc;

use countersign_api::v1::sign_result::Outcome;
use countersign_api::{v1, wire};
use countersign_identity::{
    Attested, Canary, Code, Lifetime, Revocation, Revoked, SpiffeId, Timestamp, Trial,
};
use countersign_pki::{ProvenKey, Reserved};
use countersign_program::trace::{Kind, Scope};
use countersign_store::Op;

use crate::attest::{Caller, chain};
use crate::control::Control;
use crate::issue::{Cause, Order, Svid, Wanted, authorise};
use crate::refusal::Refused;
use crate::state::State;

/// Certificates in one request.
const ITEMS_MAX: usize = 256;
/// Authorities out of service whose keys are looked for.
const CONDEMNED_MAX: usize = 16;
/// Signatures that are verified before others get their turn on the thread.
const TURN: usize = 16;

/// One item of a request, its key proven.
struct Item {
    workload: String,
    canary: String,
    key: Result<ProvenKey, Refused>,
}

impl Item {
    /// Whether it is a canary that an authority out of service has to sign.
    fn is_former_canary(&self) -> bool {
        let id = self.canary.parse().ok();
        id.and_then(|id| Trial::of(&id)).is_some_and(|(_, canary)| canary == Canary::Former)
    }
}

/// Makes the certificates that the caller may have, and says of each other one why not.
///
/// # Errors
/// When nothing was issued: the request is over its bound, or the store refused the whole.
pub(crate) async fn sign(
    control: Arc<Control>,
    caller: Caller,
    request: v1::SignRequest,
) -> Result<v1::SignResponse, Refused> {
    if ITEMS_MAX < request.items.len() {
        return Err(Refused::new(
            Code::TooLarge,
            format!("{} items are over the limit of {ITEMS_MAX} a request", request.items.len()),
        ));
    }
    // Whoever asks says where it stands in a trace. That decides what is told, and nothing else.
    let parent = request.traceparent.parse().ok();
    let mut span = control.tracer.begin(|| "Sign".into(), Kind::Server, parent);
    span.text("countersign.node", &caller.row.spiffe_id);
    span.number("countersign.svids", i64::try_from(request.items.len()).unwrap_or(i64::MAX));
    let scope = span.scope();
    let opening = scope.begin("verify requests");
    let items = open(request.items).await;
    drop(opening);
    let issued = control.issue(|state| {
        let _authorising = scope.begin("authorise");
        Ok(order(&control, &caller, state, (&items[..], scope.clone())))
    });
    let issued = issued.await;
    if let Err(refused) = &issued {
        span.fail(refused.code.as_str());
    }
    let (mut svids, state) = issued?;
    for (item, svid) in items.iter().zip(&mut svids) {
        if item.is_former_canary() {
            *svid = former_canary(&control, &caller, &state, item).await;
        }
    }
    let now = control.clock.now();
    for svid in svids.iter().flatten() {
        scope.issued(&svid.serial).text("countersign.subject", &svid.id);
        control.converging.issued(&svid.id, caller.id(), state.revision, now);
    }
    let results = svids.into_iter().map(|svid| result(&control, svid)).collect();
    Ok(v1::SignResponse { results })
}

/// Takes the key out of each signing request.
async fn open(items: Vec<v1::SignItem>) -> Vec<Item> {
    let mut opened = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        if index % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
        let key = countersign_pki::open_csr(&item.csr)
            .map_err(|refused| Refused::new(refused.code(), refused.to_string()));
        opened.push(Item { workload: item.workload, canary: item.canary, key });
    }
    opened
}

/// Authorises each item on one snapshot.
fn order(
    control: &Control,
    caller: &Caller,
    state: &State,
    (items, scope): (&[Item], Scope),
) -> Order {
    let now = control.clock.now();
    let wanted = items.iter().map(|item| decide(state, caller, item, now)).collect();
    Order { scope, ..ordered(caller, control, wanted) }
}

fn ordered(caller: &Caller, control: &Control, wanted: Vec<Result<Wanted, Refused>>) -> Order {
    let id = caller.id();
    let ops = vec![
        Op::ExpectNode { id, generation: caller.row.generation },
        Op::TouchNode { id, at: control.clock.now() },
    ];
    let actor = caller.row.spiffe_id.to_string();
    let cause = Cause { actor, node: Some(id), ops, events: Vec::new() };
    Order { wanted, cause, scope: Scope::default() }
}

fn decide(state: &State, caller: &Caller, item: &Item, now: Timestamp) -> Result<Wanted, Refused> {
    caller.not_suspended(state)?;
    if item.is_former_canary() {
        return Err(none_condemned());
    }
    if !item.canary.is_empty() {
        return canary(state, item, now);
    }
    let grant = authorise(state, &caller.labels, &item.workload)?;
    let key = item.key.clone()?;
    let kind = key.public().kind();
    if kind != grant.key_kind {
        return Err(Refused::new(
            Code::WeakKey,
            format!("the key is of kind `{kind}`, expected `{}`", grant.key_kind),
        ));
    }
    Ok(Wanted {
        id: grant.id,
        key,
        lifetime: grant.lifetime,
        dns_names: grant.dns_names,
        attested: grant.attested,
        reserved: Reserved::Refuse,
    })
}

/// One of the canaries of a trial that an operator has just begun. It is let in nowhere, whatever it is shown for.
fn canary(state: &State, item: &Item, now: Timestamp) -> Result<Wanted, Refused> {
    let unknown = || Refused::new(Code::NotFound, "no trial that is under way has this canary");
    let id: SpiffeId = item.canary.parse().map_err(|_not_an_id| unknown())?;
    let (trial, _canary) = Trial::of(&id).ok_or_else(unknown)?;
    let domain = &state.domain().trust_domain;
    let begun = |rule: &Revocation| {
        Trial::begun_by(rule) == Some(trial) && rule.at <= now && now < rule.at + Trial::TIME
    };
    let rules = state.revocations();
    let known = rules.named(&format!("{}.0", trial.0)).is_some_and(|rule| begun(rule));
    if !known || id.trust_domain() != domain {
        return Err(unknown());
    }
    let lifetime = Lifetime::from_secs(Trial::CANARY_LIFETIME.as_secs());
    Ok(Wanted {
        id,
        key: item.key.clone()?,
        lifetime: lifetime.map_err(|bad| Refused::new(Code::Internal, bad.to_string()))?,
        dns_names: Vec::new(),
        attested: Attested::default(),
        reserved: Reserved::Allow,
    })
}

/// The canary that the newest authority signs which is out of service and whose key is still at hand. An authority's key is
/// kept for its lists as long as anything that it has signed lives.
async fn former_canary(
    control: &Control,
    caller: &Caller,
    state: &State,
    item: &Item,
) -> Result<Svid, Refused> {
    caller.not_suspended(state)?;
    let wanted = canary(state, item, control.clock.now())?;
    let rotation = control.rotation.as_ref().ok_or_else(none_condemned)?;
    let walk = state.walk()?;
    let rules = state.revocations();
    let mut condemned: Vec<_> = rules
        .iter()
        .filter_map(|(_, rule)| match rule.target {
            Revoked::Authority(key) if !walk.is_root(key) => Some((rule.at, key)),
            _ => None,
        })
        .collect();
    condemned.sort_unstable_by(|one, other| other.cmp(one));
    for (_, key) in condemned.into_iter().take(CONDEMNED_MAX) {
        let Some(by) = rotation.signing(key).await? else { continue };
        if by.issuer.certificate().validity().not_after < control.clock.now() {
            continue;
        }
        let order = ordered(caller, control, vec![Ok(wanted)]);
        let made = control.desk.issue_condemned(by, state, order).await?;
        return made.into_iter().next().unwrap_or_else(|| Err(none_condemned()));
    }
    Err(none_condemned())
}

fn none_condemned() -> Refused {
    Refused::new(Code::NotFound, "no authority that is out of service has its key here")
}

fn result(control: &Control, svid: Result<Svid, Refused>) -> v1::SignResult {
    let outcome = match svid {
        Ok(svid) => {
            control.watch.issued();
            Outcome::Issued(v1::Issued { chain: chain(&svid), issued_micros: svid.issued.micros() })
        }
        Err(refused) => {
            control.watch.issue_refused(refused.code);
            Outcome::Refusal(wire::refusal(refused.code, &refused.why))
        }
    };
    v1::SignResult { outcome: Some(outcome) }
}
