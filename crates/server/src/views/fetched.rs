//! One list, found by its authority and kind.

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
