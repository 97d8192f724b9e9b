//! SVIDs for the workloads of a node, many in one request, with one durable commit.

use std::sync::Arc;

use countersign_api::v1::sign_result::Outcome;
use countersign_api::{v1, wire};
use countersign_identity::Code;
use countersign_pki::{ProvenKey, Reserved};
use countersign_store::Op;

use crate::attest::{Caller, chain};
use crate::control::Control;
use crate::issue::{Cause, Order, Svid, Wanted, authorise};
use crate::refusal::Refused;
use crate::state::State;

/// Certificates in one request.
const ITEMS_MAX: usize = 256;
/// Signatures that are verified before others get their turn on the thread.
const TURN: usize = 16;

/// One item of a request, its key proven.
struct Item {
    workload: String,
    key: Result<ProvenKey, Refused>,
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
    let items = open(request.items).await;
    let (svids, state) = control.issue(|state| order(&control, &caller, state, &items)).await?;
    let now = control.clock.now();
    for svid in svids.iter().flatten() {
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
        opened.push(Item { workload: item.workload, key });
    }
    opened
}

/// Authorises each item on one snapshot.
fn order(control: &Control, caller: &Caller, state: &State, items: &[Item]) -> Order {
    let wanted = items.iter().map(|item| decide(state, caller, item)).collect();
    let id = caller.id();
    let ops = vec![
        Op::ExpectNode { id, generation: caller.row.generation },
        Op::TouchNode { id, at: control.clock.now() },
    ];
    let actor = caller.row.spiffe_id.to_string();
    Order { wanted, cause: Cause { actor, node: Some(id), ops, events: Vec::new() } }
}

fn decide(state: &State, caller: &Caller, item: &Item) -> Result<Wanted, Refused> {
    caller.not_suspended(state)?;
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
        reserved: Reserved::Refuse,
    })
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
