//! Rules that cannot cover anything any more are dropped, and points that are gone, so that both stay few.

use std::sync::Arc;
use std::time::Duration;

use countersign_audit::{Event, EventKind};
use countersign_identity::Timestamp;
use countersign_store::{Batch, Change, Duty, Kind};
use tokio_util::sync::CancellationToken;

use crate::control::Control;
use crate::refusal::Refused;
use crate::revoke::living::drop_gone;
use crate::state::State;
use crate::watch::note_word;

/// How often it is looked for them.
const LOOK: Duration = Duration::from_secs(60);
/// Rules that one commit drops.
const RULES_MAX: usize = 1000;
/// The duty of one replica to drop rules. Each drops the points that it has heard of.
const DUTY: Duty = Duty { name: "revoke/prune", ttl: Duration::from_secs(120) };

/// Looks now and then until stopped. What fails is told and tried again.
pub(crate) async fn prune(control: Arc<Control>, stop: CancellationToken) {
    loop {
        if let Err(refused) = drop_moot(&control).await {
            tracing::warn!(code = %refused.code, why = %refused.why, "could not drop rules that are moot");
        }
        if let Err(refused) = drop_gone(&control).await {
            tracing::warn!(code = %refused.code, why = %refused.why, "could not look for points that are gone");
        }
        let again = control.clock.about(LOOK);
        tokio::select! {
            () = stop.cancelled() => return,
            () = control.clock.sleep_until(again) => {}
        }
    }
}

/// Drops such rules once, and tells the names of their records.
///
/// # Errors
/// When the clock is not to be trusted, or the store refuses.
pub(crate) async fn drop_moot(control: &Control) -> Result<Vec<String>, Refused> {
    control.desk.now().await?;
    note_word(&control.desk.time, &*control.clock, &*control.store).await?;
    // A clock that may not be believed takes nothing away, nor one that was set ahead.
    let steady = control.desk.time.steady(&*control.clock)?;
    let now = control.clock.now();
    let state = control.feed.current();
    let moot = moot(&state, steady);
    if moot.is_empty() || !control.duties.is_ours(DUTY, now).await? {
        return Ok(Vec::new());
    }
    let event = |name: &String| {
        let subject = format!("{}/{name}", Kind::Revocation);
        Event::new(EventKind::RecordRemoved, now, "server", subject)
    };
    let events = moot.iter().map(event).collect();
    let remove = |name: &String| Change::Remove { kind: Kind::Revocation, name: name.clone() };
    let changes = moot.iter().map(remove).collect();
    let batch = Batch { expected: Some(state.revision), changes, events, ..Batch::default() };
    control.store.commit(batch).await?;
    Ok(moot)
}

fn moot(state: &State, now: Timestamp) -> Vec<String> {
    let rules = state.revocations();
    let moot = rules.iter().filter(|(_, rule)| rule.is_moot(now));
    moot.map(|(name, _)| name.to_string()).take(RULES_MAX).collect()
}
