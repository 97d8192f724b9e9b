//! What a server writes down beside its store, again and again.

use std::mem::{replace, take};

use crate::config::StartError;

/// Who writes one thing down. That it cannot be written is told once, and that it is written again, however often it is tried.
#[derive(Debug)]
pub(crate) struct Notes {
    what: &'static str,
    fails: bool,
}

impl Notes {
    /// Of this, in words.
    pub(crate) fn of(what: &'static str) -> Self {
        Self { what, fails: false }
    }

    /// Writes it, off the async workers. Whether it is written.
    pub(crate) async fn write(
        &mut self,
        write: impl FnOnce() -> Result<(), StartError> + Send + 'static,
    ) -> bool {
        let what = self.what;
        let error = match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {
                if take(&mut self.fails) {
                    tracing::info!("{what} is written down again");
                }
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(broken) => broken.to_string(),
        };
        if !replace(&mut self.fails, true) {
            tracing::warn!(error, "could not write down {what}; it is tried again and again");
        }
        false
    }
}
