//! What is written down, in which order, and what may be acknowledged once it is.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Revocations, Timestamp};
use countersign_pki::Bundle;
use tokio::sync::mpsc;

use super::{Driver, Happened};
use crate::core::{Knowledge, Replica};
use crate::disk::{Disk, DiskFault};
use crate::keepsakes::Keepsakes;

/// How long to wait after the disk refused something.
const DISK_RETRY: Duration = Duration::from_secs(2);

/// Whether records are being written, and what is to come next.
pub(super) struct Remembering {
    pub(super) busy: bool,
    pub(super) again: bool,
    /// After a failure.
    pub(super) retry: Option<Timestamp>,
    /// The revocations that are on the disk.
    pub(super) rules: Arc<Revocations>,
    /// Their signatures that are there.
    pub(super) keepsakes: Arc<Keepsakes>,
    /// The trust domain's own bundle that is there.
    pub(super) bundle: Option<Arc<Bundle>>,
}

impl Driver {
    /// Whether this agent may say that it enforces its revision: a server has said it in this life, all of it was understood,
    /// and no crash can take a revocation of it away, nor a root that others may count on it to trust.
    pub(super) fn is_enforced(&self) -> bool {
        let replica = self.state.replica();
        self.state.knowledge() == Knowledge::Synced
            && replica.is_understood()
            && Arc::ptr_eq(replica.rules(), &self.remembering.rules)
            && Arc::ptr_eq(&self.keepsakes, &self.remembering.keepsakes)
            && replica.own_bundle() == self.remembering.bundle.as_ref()
    }

    pub(super) fn remember(&mut self) {
        if self.remembering.busy {
            self.remembering.again = true;
            return;
        }
        self.remembering.busy = true;
        let (replica, seen) = (Arc::clone(self.state.replica()), self.state.seen());
        let rules = (Arc::clone(replica.rules()), Arc::clone(&self.keepsakes));
        let on_disk = Arc::ptr_eq(&rules.0, &self.remembering.rules)
            && Arc::ptr_eq(&rules.1, &self.remembering.keepsakes);
        let rules = (!on_disk).then_some(rules);
        let (disk, tell) = (Arc::clone(&self.around.disk), self.tell.clone());
        self.tasks.spawn(async move {
            let kept = keep(disk, rules, replica, seen, &tell).await;
            tell.send(Happened::Remembered(kept)).await.ok();
        });
    }

    pub(super) fn remembered(&mut self, kept: Result<Option<Arc<Bundle>>, DiskFault>) {
        self.remembering.busy = false;
        match kept {
            Ok(bundle) => {
                let news = bundle != self.remembering.bundle;
                self.remembering.bundle = bundle;
                if news {
                    self.publish();
                }
            }
            Err(why) => {
                tracing::error!(%why, "the records were not written down");
                self.remembering.again = false;
                self.remembering.retry = Some(self.around.clock.now() + DISK_RETRY);
            }
        }
        if std::mem::take(&mut self.remembering.again) {
            self.remember();
        }
    }
}

/// Writes records down, the revocations first, and gives the bundle that is there then: the revision is acknowledged only
/// when both are.
pub(super) async fn keep(
    disk: Arc<Disk>,
    rules: Option<(Arc<Revocations>, Arc<Keepsakes>)>,
    replica: Arc<Replica>,
    seen: Timestamp,
    tell: &mpsc::Sender<Happened>,
) -> Result<Option<Arc<Bundle>>, DiskFault> {
    if let Some((rules, keepsakes)) = rules {
        let (disk, written, signed) =
            (Arc::clone(&disk), Arc::clone(&rules), Arc::clone(&keepsakes));
        on_disk(move || disk.keep_rules(&written, &signed, seen)).await?;
        // Nobody hears it when the agent stops meanwhile.
        tell.send(Happened::RulesKept(rules, keepsakes)).await.ok();
    }
    let bundle = replica.own_bundle().cloned();
    on_disk(move || disk.keep_snapshot(&replica)).await?;
    Ok(bundle)
}

async fn on_disk(
    write: impl FnOnce() -> Result<(), DiskFault> + Send + 'static,
) -> Result<(), DiskFault> {
    // A write that panicked is a defect, and the runtime's end cancels none that has begun.
    tokio::task::spawn_blocking(write)
        .await
        .unwrap_or_else(|broken| Err(DiskFault::Unfinished(broken.to_string())))
}
