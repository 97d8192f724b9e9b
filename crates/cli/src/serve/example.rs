//! The example services.

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, Failure};

/// Runs one of the example services, as its environment says.
pub(crate) fn example(role: &str) -> Result<Exit> {
    let role = role
        .parse::<countersign_shop::Role>()
        .map_err(|error| Failure::not_understood(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = CancellationToken::new();
        let ending = stop.clone();
        let waiting = tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            ending.cancel();
        });
        let ended = countersign_shop::run(role, |name| std::env::var(name).ok(), stop).await;
        waiting.abort();
        ended.map(|()| Exit::Done)
    })
}
