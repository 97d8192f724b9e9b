//! Details of old events are dropped when the operator asks for that. Their leaves go on to bind them, and proofs hold.

use std::sync::Arc;
use std::time::Duration;

use countersign_store::{Batch, Duty, Op, TRIM_ROWS_MAX};
use tokio_util::sync::CancellationToken;

use super::reader::LogReader;
use crate::control::Control;
use crate::refusal::Refused;

/// How often it is looked for old details.
const PAUSE: Duration = Duration::from_secs(600);
/// The duty of one server to drop them.
const DUTY: Duty = Duty { name: "log/trim", ttl: PAUSE };

/// Keeps details for so long.
pub(crate) struct Retention {
    pub(crate) control: Arc<Control>,
    pub(crate) kept: Duration,
}

impl Retention {
    /// Looks now and then until stopped. What fails is told and tried again.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look() => if let Err(refused) = looked {
                    tracing::warn!(code = %refused.code, why = %refused.why, "could not drop old details of events");
                },
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn look(&self) -> Result<(), Refused> {
        let store = &*self.control.store;
        // A clock that may not be believed takes nothing away, nor one that was set ahead.
        let steady = self.control.desk.time.steady(&*self.control.clock)?;
        if !self.control.duties.is_ours(DUTY, self.control.clock.now()).await? {
            return Ok(());
        }
        let (present, _head) = LogReader::of(store, None).await?;
        let mut logs = vec![present.incarnation()];
        let mut past = 0;
        while let Some(next) = store.past_incarnation(past).await? {
            logs.push(next);
            past = next;
        }
        for incarnation in logs {
            let (log, head) = LogReader::of(store, Some(incarnation)).await?;
            let end = log.first_since(log.size(&head).await?, steady - self.kept).await?;
            let mut from = first_kept(log, end).await?;
            while from < end {
                let to = end.min(from + TRIM_ROWS_MAX as u64);
                let ops = vec![Op::TrimDetails { incarnation, from, to }];
                store.commit(Batch { ops, ..Batch::default() }).await?;
                from = to;
            }
        }
        Ok(())
    }
}

/// The first event after the beginning that has its details: they are dropped in order. Those of the first event stay,
/// since they bind the log before.
async fn first_kept(log: LogReader<'_>, end: u64) -> Result<u64, Refused> {
    let (mut low, mut high) = (1, end.max(1));
    while low < high {
        let middle = low + (high - low) / 2;
        let kept =
            log.events(middle, 1).await?.first().is_some_and(|event| event.details.is_some());
        if kept { high = middle } else { low = middle + 1 }
    }
    Ok(low)
}
