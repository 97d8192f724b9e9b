//! What the parts of a serving server share.

use std::sync::{Arc, Mutex};

use countersign_identity::{Clock, Entropy};
use countersign_store::Store;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attest::Throttle;
use crate::issue::Desk;
use crate::publish::{Roster, Slices};
use crate::refusal::Refused;
use crate::state::StateFeed;
use crate::watch::Watch;

/// The control plane at work. Each capability has a folder of its own and takes what it needs from here.
pub(crate) struct Control {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) feed: StateFeed,
    pub(crate) desk: Desk,
    pub(crate) roster: Roster,
    pub(crate) slices: Slices,
    pub(crate) throttle: Mutex<Throttle>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) stop: CancellationToken,
    /// What must not be torn when a caller goes away runs here, and is waited for at the end.
    pub(crate) tasks: TaskTracker,
}

impl Control {
    /// Runs something to its end, even when whoever asked for it goes away.
    ///
    /// # Errors
    /// Those of the work, or `internal` when it panicked.
    pub(crate) async fn whole<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Refused>> + Send + 'static,
    ) -> Result<T, Refused> {
        self.tasks.spawn(work).await.map_err(crate::authority::internal)?
    }
}
