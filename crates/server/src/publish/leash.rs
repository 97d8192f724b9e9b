//! How a stream that is served is ended from elsewhere, with the reason for it.

use tokio::sync::watch;

use crate::refusal::Refused;

/// Ends one stream. Whoever holds it decides about the stream's life.
#[derive(Clone, Debug)]
pub(crate) struct Leash(watch::Sender<Option<Refused>>);

/// The stream's end of a leash.
#[derive(Debug)]
pub(crate) struct Leashed(watch::Receiver<Option<Refused>>);

/// A leash and the end that the stream holds.
pub(crate) fn leash() -> (Leash, Leashed) {
    let (sender, receiver) = watch::channel(None);
    (Leash(sender), Leashed(receiver))
}

impl Leash {
    /// Ends the stream. The first reason stays.
    pub(crate) fn end(&self, why: Refused) {
        self.0.send_if_modified(|reason| {
            let first = reason.is_none();
            if first {
                *reason = Some(why);
            }
            first
        });
    }
}

impl Leashed {
    /// Whether the stream was ended, which may not have been heard yet.
    pub(crate) fn is_over(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// The reason, once there is one.
    pub(crate) async fn ended(&mut self) -> Refused {
        let ended = self.0.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match ended {
            Some(reason) => reason,
            // Nobody is left who could end it.
            None => std::future::pending().await,
        }
    }
}
