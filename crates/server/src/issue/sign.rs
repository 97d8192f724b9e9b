//! SVIDs for the workloads of a node, many in one request, with one durable commit.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1::sign_result::Outcome;
use countersign_api::{v1, wire};
use countersign_identity::Code;
use countersign_pki::{ProvenKey, Reserved};
use countersign_store::Op;

use crate::attest::{Caller, chain};
use crate::control::Control;
use crate::issue::{Cause, Fence, Svid, Wanted, authorise};
use crate::refusal::Refused;
use crate::state::State;

/// Certificates in one request.
const ITEMS_MAX: usize = 256;
/// How often a request is authorised again because rights were taken away meanwhile.
const ATTEMPTS_MAX: usize = 3;
/// How long to wait for the snapshot to show what was taken away.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(2);
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
    for _attempt in 0..ATTEMPTS_MAX {
        let state = control.feed.current();
        match issue(&control, &caller, &state, &items).await {
            Ok(results) => return Ok(v1::SignResponse { results }),
            Err(refused) if refused.code == Code::Fenced => catch_up(&control).await?,
            Err(refused) => return Err(refused),
        }
    }
    Err(Refused::new(
        Code::Fenced,
        format!("rights were taken away {ATTEMPTS_MAX} times while the request was under way"),
    ))
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

/// Waits until the snapshot shows the latest removal of rights.
async fn catch_up(control: &Control) -> Result<(), Refused> {
    let fence = control.store.head().await?.fence;
    let reached = tokio::time::timeout(CATCH_UP_TIMEOUT, control.feed.reached(fence)).await;
    match reached {
        Ok(Some(_state)) => Ok(()),
        Ok(None) | Err(_) => {
            Err(Refused::new(Code::Fenced, "the server's snapshot is behind its store"))
        }
    }
}

/// Authorises each item on one snapshot, and issues what is allowed.
async fn issue(
    control: &Control,
    caller: &Caller,
    state: &State,
    items: &[Item],
) -> Result<Vec<v1::SignResult>, Refused> {
    let decided: Vec<_> = items.iter().map(|item| decide(state, caller, item)).collect();
    let wanted: Vec<Wanted> = decided.iter().filter_map(|one| one.as_ref().ok()).cloned().collect();
    let id = caller.id();
    let cause = Cause {
        actor: caller.row.spiffe_id.to_string(),
        node: Some(id),
        fence: Fence::Checked,
        ops: vec![
            Op::ExpectNode { id, generation: caller.row.generation },
            Op::TouchNode { id, at: control.clock.now() },
        ],
        events: Vec::new(),
    };
    let mut made = control.desk.issue(state, wanted, cause).await?.into_iter();
    let results = decided.into_iter().map(|one| {
        let svid = one.and_then(|_wanted| {
            made.next().unwrap_or_else(|| Err(crate::authority::internal("a result is missing")))
        });
        result(control, svid)
    });
    Ok(results.collect())
}

fn decide(state: &State, caller: &Caller, item: &Item) -> Result<Wanted, Refused> {
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
