//! Lists, found by their authority and kind, or all at once.

use countersign_api::v1;
use countersign_api::wire::MESSAGE_SIZE_MAX;
use countersign_identity::{Code, KeyId};
use countersign_pki::Shard;

use crate::control::Control;
use crate::refusal::Refused;
use crate::views::list::Published;

/// Which list of an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// All that is out of service.
    Whole,
    /// What changed.
    Delta,
    /// One part.
    Part(Shard),
}

/// Finds a list that tells of every revocation which this server knows.
///
/// # Errors
/// `not-found` when the authority has none; others when a part cannot be signed.
pub(crate) async fn fetch(
    control: &Control,
    authority: KeyId,
    which: Which,
) -> Result<Published, Refused> {
    let shown = control.views.at(control.feed.current().revision).await;
    let view = shown.of(authority).ok_or_else(|| {
        let why = format!("there is no revocation list of authority `{authority}`: none of ours has that key and certificates that are valid");
        Refused::new(Code::NotFound, why)
    })?;
    match which {
        Which::Whole => Ok(view.lists.whole.clone()),
        Which::Delta => Ok(view.lists.delta.clone()),
        Which::Part(shard) => view.lists.part(shard).await,
    }
}

/// The whole list of every authority, as agents pass them on.
///
/// # Errors
/// `not-ready` while this server's lists do not tell what the agent has heard of already; `too-large` when they are more
/// than one message holds.
pub(crate) async fn lists_for_agents(
    control: &Control,
    request: &v1::ListsRequest,
) -> Result<v1::ListsResponse, Refused> {
    let asked = request.revision.map(Into::into).unwrap_or_default();
    let shown = control.views.at(control.feed.current().revision.max(asked)).await;
    if shown.revision() < asked || shown.all().next().is_none() {
        return Err(Refused::new(Code::NotReady, "the lists of that revision are not there yet"));
    }
    let lists: Vec<_> = shown.all().map(|view| view.lists.whole.der.clone()).collect();
    let bytes: usize = lists.iter().map(bytes::Bytes::len).sum();
    if MESSAGE_SIZE_MAX / 2 < bytes {
        let why = format!("revocation lists of {bytes} bytes do not fit in one message");
        return Err(Refused::new(Code::TooLarge, why));
    }
    Ok(v1::ListsResponse { lists })
}
