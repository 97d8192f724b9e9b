//! What whoever started the server is told of its life, systemd among them.

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::config::Ready;

/// Tells systemd that the server lives, as often as it asks for.
pub(super) async fn watchdog(stop: CancellationToken) {
    let Some(every) = sd_notify::watchdog_enabled() else {
        stop.cancelled().await;
        return;
    };
    loop {
        notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every / 3) => {}
        }
    }
}

pub(super) fn tell(ready: Option<oneshot::Sender<Ready>>, to_say: Ready, status: &str) {
    notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(status)]);
    // Whoever started the server was told already, or may not care to know.
    let _unheard = ready.is_some_and(|ready| ready.send(to_say).is_err());
}

pub(super) fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "could not notify the service manager");
    }
}
