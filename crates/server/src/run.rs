//! A server's life: open, unseal, serve, stop.
//!
//! `start` opens and unseals, `serving` is what an unsealed server works with, `parts` what runs until it stops, `told` what whoever
//! started it hears.

mod parts;
mod serving;
mod start;
mod told;

use std::sync::Arc;
use std::time::Duration;

use countersign_audit::Entry;
use countersign_identity::{Clock, Code, Entropy, SystemClock, SystemEntropy, Timestamp};
use countersign_store::Store;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::start::{Opened, Start};
use crate::authority::internal;
use crate::config::{Config, ConsoleConfig, Ready, StartError};

/// How long a server waits between two lives.
const LIFE_PAUSE: Duration = Duration::from_secs(1);

/// Runs a server until it is stopped; tells `ready` once it serves.
///
/// A server that cannot open its keys runs sealed: its admin socket tells so, and nothing else is served.
///
/// # Errors
/// [`StartError`], when it cannot start; any other when a part of it broke while it ran.
pub async fn run(
    config: Config,
    stop: CancellationToken,
    ready: oneshot::Sender<Ready>,
) -> anyhow::Result<()> {
    let around =
        Surroundings { clock: Arc::new(SystemClock::new()), entropy: Arc::new(SystemEntropy) };
    Ok(run_in(config, around, stop, ready).await?)
}

/// Runs a server under this time and chance.
pub(crate) async fn run_in(
    config: Config,
    around: Surroundings,
    stop: CancellationToken,
    ready: oneshot::Sender<Ready>,
) -> Result<(), StartError> {
    let mut ready = Some(ready);
    let Ended::WentBack(mut at) = live(config.clone(), &around, &stop, &mut ready).await? else {
        return Ok(());
    };
    // A later life serves where the first one did, and waits for a store that is away.
    loop {
        let config = Config {
            listen: at.listen.unwrap_or(config.listen),
            metrics: at.metrics.or(config.metrics),
            views: at.views.or(config.views),
            console: config.console.clone().map(|console| ConsoleConfig {
                listen: at.console.unwrap_or(console.listen),
                ..console
            }),
            ..config.clone()
        };
        tracing::warn!("the server begins anew on a store that went back");
        match live(config, &around, &stop, &mut ready).await {
            Ok(Ended::Stopped) => return Ok(()),
            Ok(Ended::WentBack(again)) => at = again,
            Err(error) if !may_pass(error.code()) => return Err(error),
            Err(error) => tracing::warn!(%error, "the server cannot begin anew yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = around.clock.sleep_until(around.clock.now() + LIFE_PAUSE) => {}
        }
    }
}

/// One life of a server: from the opening of its store until it is stopped, or until the store lost its tail. Then nothing
/// that it holds in memory may be believed any more, so everything is opened and read again.
async fn live(
    config: Config,
    around: &Surroundings,
    stop: &CancellationToken,
    ready: &mut Option<oneshot::Sender<Ready>>,
) -> Result<Ended, StartError> {
    if let Some(authorities) = &config.node_authorities {
        authorities.read().map_err(StartError::NodeAuthorities)?;
    }
    let start = Start::open(config, around.clone()).await?;
    let stop = stop.child_token();
    match start.unseal().await? {
        Opened::Sealed(why) => start.run_sealed(&why, stop, ready.take()).await,
        Opened::Open(kek, authorities) => start.run_open(kek, authorities, stop, ready).await,
    }
}

/// Whether a start that was refused for this may go well a moment later: the database is away, or another server begins the
/// incarnation at the same time.
fn may_pass(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Fenced | Code::StaleBase | Code::NotReady)
}

/// Why a life of a server ended.
enum Ended {
    Stopped,
    /// The store lost its tail; here it was served.
    WentBack(Ready),
}

/// Time and chance, passed in.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
}

/// The time of the log's last entry.
pub(crate) async fn latest(store: &dyn Store) -> Result<Timestamp, StartError> {
    let mut head = store.head().await?;
    loop {
        let Some(last) = head.log_size.checked_sub(1) else { return Ok(Timestamp::EPOCH) };
        let events = store.events(last, 1).await?;
        match events.first().map(|event| Entry::parse(&event.leaf)) {
            Some(Ok(entry)) => return Ok(entry.at),
            Some(Err(bad)) => return Err(internal(bad).into()),
            None => {}
        }
        // Another server may have begun an incarnation between the two, whose log is shorter.
        let now = store.head().await?;
        if now.revision.incarnation == head.revision.incarnation {
            return Err(internal("the log's last entry is missing").into());
        }
        head = now;
    }
}
