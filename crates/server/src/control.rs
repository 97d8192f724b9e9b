//! What the parts of a serving server share.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Clock, Code, Entropy, Revision};
use countersign_program::trace::{Scope, Tracer};
use countersign_store::{Duties, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attest::{NodeAuthorities, Returned};
use crate::authority::Rotation;
use crate::incarnation::{Journal, LogKey};
use crate::issue::{Cause, Desk, Order, Svid, Wanted};
use crate::log::Signing;
use crate::publish::{Roster, Slices};
use crate::refusal::Refused;
use crate::revoke::{Converging, Remembered, Replicas};
use crate::state::{State, StateFeed};
use crate::views::Views;
use crate::watch::{Pulse, Watch};

/// The control plane at work. Each capability has a folder of its own and takes what it needs from here.
pub(crate) struct Control {
    pub(crate) store: Arc<dyn Store>,
    /// What only one server does at a time, and whether it is this one.
    pub(crate) duties: Arc<Duties>,
    pub(crate) feed: StateFeed,
    pub(crate) desk: Desk,
    /// The keys that sign, the former ones among them; none in a simulation.
    pub(crate) rotation: Option<Arc<Rotation>>,
    pub(crate) roster: Roster,
    pub(crate) converging: Converging,
    pub(crate) remembered: Remembered,
    /// The other servers, where the store is one that several share.
    pub(crate) replicas: Option<Replicas>,
    pub(crate) slices: Slices,
    pub(crate) watch: Arc<Watch>,
    pub(crate) tracer: Tracer,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) views: Views,
    pub(crate) signing: Signing,
    /// What vouches for rules and revisions; none in a simulation that has none.
    pub(crate) log_key: Option<Arc<LogKey>>,
    /// A revision that was reached and that the store does not know.
    pub(crate) lost: watch::Sender<Option<Revision>>,
    /// Who has come back since the incarnation began.
    pub(crate) returned: Returned,
    /// A second place for rules, if one is kept.
    pub(crate) journal: Option<Arc<Journal>>,
    /// Whose certificates make machines nodes; nobody's when absent.
    pub(crate) node_authorities: Option<NodeAuthorities>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) stop: CancellationToken,
    /// What must not be torn when a caller goes away runs here, and is waited for at the end.
    pub(crate) tasks: TaskTracker,
}

/// How often something is decided again because rights were taken away meanwhile.
const ATTEMPTS_MAX: usize = 3;
/// How long to wait for the snapshot to show what was taken away.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(2);

impl Control {
    /// Decides on the current snapshot which certificates to make, and makes them; decides anew on a newer snapshot
    /// when rights were taken away meanwhile. Says on which snapshot it was done.
    ///
    /// # Errors
    /// That of the decision, whenever it is made; when nothing was recorded; `fenced` when rights are taken away again and
    /// again.
    pub(crate) async fn issue(
        &self,
        decide: impl Fn(&State) -> Result<Order, Refused>,
    ) -> Result<(Vec<Result<Svid, Refused>>, Arc<State>), Refused> {
        for _attempt in 0..ATTEMPTS_MAX {
            let state = self.feed.current();
            let order = decide(&state)?;
            // A server's own credential is not held off: agents hand back over a connection that shows it.
            if let Some(life) = state.life()
                && order.cause.node.is_some()
            {
                life.issues(self.clock.now())?;
            }
            let issued = self.desk.issue(&state, order).await;
            self.watch.wrote(issued.as_ref().err().map(|refused| refused.code));
            match issued {
                Ok(svids) => return Ok((svids, state)),
                Err(refused) if refused.code == Code::Fenced => self.catch_up().await?,
                Err(refused) => return Err(refused),
            }
        }
        Err(Refused::new(
            Code::Fenced,
            format!("rights were taken away {ATTEMPTS_MAX} times while the request was under way"),
        ))
    }

    /// The same for one certificate.
    ///
    /// # Errors
    /// When it was not made.
    pub(crate) async fn issue_one(
        &self,
        decide: impl Fn(&State) -> Result<(Wanted, Cause), Refused>,
    ) -> Result<(Svid, Arc<State>), Refused> {
        let order = |state: &State| {
            let (wanted, cause) = decide(state)?;
            Ok(Order { wanted: vec![Ok(wanted)], cause, scope: Scope::default() })
        };
        let (svids, state) = self.issue(order).await?;
        let svid = svids.into_iter().next();
        let missing =
            || Err(Refused::new(Code::Internal, "a certificate was asked for, and none was made"));
        Ok((svid.unwrap_or_else(missing)?, state))
    }

    /// Waits until the snapshot shows the latest removal of rights.
    async fn catch_up(&self) -> Result<(), Refused> {
        let fence = self.store.head().await?.fence;
        match tokio::time::timeout(CATCH_UP_TIMEOUT, self.feed.reached(fence)).await {
            Ok(Some(_state)) => Ok(()),
            Ok(None) | Err(_) => {
                Err(Refused::new(Code::Fenced, "the server's snapshot is behind its store"))
            }
        }
    }

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
