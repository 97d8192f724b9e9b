//! The making of a list by itself.

use std::sync::Arc;

use bytes::Bytes;
use countersign_api::resource::RevocationViews;
use countersign_identity::{Revision, Revocations, Timestamp};
use countersign_pki::{CrlOf, Issuer, Signer};
use countersign_store::Store;

use crate::authority::Signing;
use crate::refusal::Refused;
use crate::views::list::{History, Lists, Making};
use crate::views::sets;

/// Makes the whole list of one issuer from what a store has issued, as a serving server does when a revocation comes: for
/// measurements.
///
/// # Errors
/// When the store does not answer, or the signer fails.
pub async fn revocation_list(
    store: &dyn Store,
    rules: &Revocations,
    issuer: &Issuer,
    signer: Arc<dyn Signer>,
    now: Timestamp,
) -> Result<Bytes, Refused> {
    let mut sets = sets::read(store, rules, now).await?;
    let set = sets.remove(&issuer.key_id()).unwrap_or_default();
    let signing = Signing { issuer: issuer.clone(), above: Vec::new(), signer };
    let (views, history) = (RevocationViews::default(), History::default());
    let making = Making {
        signing: &signing,
        of: CrlOf::Users,
        revision: Revision { incarnation: 1, number: 1 },
        now,
        views: &views,
    };
    let lists = Lists::make(&making, history.listed(set.revoked(), None), &history).await?;
    Ok(lists.whole.der)
}
