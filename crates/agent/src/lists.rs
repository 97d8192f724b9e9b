//! Revocation lists for programs that read them in the Workload API: fetched when a workload of this node asks for them, and
//! again when a revocation comes and before they end.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use countersign_identity::{Clock, Code, Revision, Revocations, Sha256, Timestamp};
use countersign_pki::Crl;
use tokio::sync::{mpsc, watch};

use crate::server_link::{Calls, LinkFault};
use crate::view::View;

/// Authorities whose lists are taken.
const LISTS_MAX: usize = 64;
/// All lists together: some 400,000 revoked certificates.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long to wait after the server did not give them.
const RETRY: Duration = Duration::from_secs(5);
/// Lists that have nearly ended are not asked for more often than this.
const APART_MIN: Duration = Duration::from_secs(5);

/// The lists that programs are given.
#[derive(Debug)]
pub(crate) struct RevocationLists {
    pub(crate) ders: Vec<Bytes>,
    /// By which they are told from others.
    pub(crate) digest: Sha256,
    /// When the first of them ends.
    ends: Timestamp,
}

impl RevocationLists {
    /// Reads what a server gave. Who signed it, the programs check that get it.
    ///
    /// # Errors
    /// When it is nothing, too much, or not what lists look like.
    pub(crate) fn read(ders: Vec<Bytes>) -> Result<Self, LinkFault> {
        let bytes = ders.iter().map(Bytes::len).fold(0, usize::saturating_add);
        if ders.is_empty() || LISTS_MAX < ders.len() || BYTES_MAX < bytes {
            let why = format!("{} lists of {bytes} bytes are nothing, or too much", ders.len());
            return Err(LinkFault::new(Code::TooLarge, why));
        }
        let (mut context, mut ends) = (Context::new(&SHA256), Timestamp::LAST);
        for der in &ders {
            let list =
                Crl::parse(der).map_err(|bad| LinkFault::new(Code::Malformed, bad.to_string()))?;
            ends = ends.min(list.next_update);
            context.update(&der.len().to_be_bytes());
            context.update(der);
        }
        let digest = context.finish();
        let digest = digest.as_ref().try_into().expect("a SHA-256 digest has 32 bytes");
        Ok(Self { ders, digest: Sha256::from_bytes(digest), ends })
    }

    /// When to ask again: half-way to their end.
    fn again(&self, now: Timestamp) -> Timestamp {
        now + (self.ends.since(now) / 2).max(APART_MIN)
    }
}

/// Keeps lists fresh on one session, while a workload of this node asks for them.
pub(crate) async fn follow<T: Send>(
    calls: Arc<dyn Calls>,
    mut views: watch::Receiver<Option<Arc<View>>>,
    clock: Arc<dyn Clock>,
    tell: mpsc::Sender<T>,
    told: fn(Arc<RevocationLists>) -> T,
) {
    let mut have: Option<(Arc<Revocations>, Timestamp)> = None;
    let mut not_before = clock.now();
    loop {
        let wanted = views.borrow_and_update().clone().filter(|view| view.wants_lists());
        let mut wake = Timestamp::LAST;
        if let Some(view) = wanted {
            let rules = view.replica.rules();
            let due = match &have {
                Some((told, again)) if Arc::ptr_eq(told, rules) => *again,
                Some(_) | None => clock.now(),
            };
            wake = due.max(not_before);
            if wake <= clock.now() {
                match fetch(&*calls, view.replica.revision()).await {
                    Ok(lists) => {
                        let again = lists.again(clock.now());
                        have = Some((Arc::clone(rules), again));
                        if tell.send(told(Arc::new(lists))).await.is_err() {
                            return;
                        }
                    }
                    Err(fault) => {
                        tracing::warn!(code = %fault.code, why = %fault.why, "no revocation lists");
                        not_before = clock.now() + RETRY;
                    }
                }
                continue;
            }
        }
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            () = clock.sleep_until(wake) => {}
        }
    }
}

async fn fetch(calls: &dyn Calls, revision: Revision) -> Result<RevocationLists, LinkFault> {
    RevocationLists::read(calls.lists(revision).await?)
}
