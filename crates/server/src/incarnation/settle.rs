//! The end of the hold-off, and the rule that covers what an earlier incarnation has issued.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::admin::RevisionResponse;
use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, Reason, Revision, Revocation, Revoked, Timestamp};
use countersign_store::{Batch, Change, Duty, Kind, Record};
use tokio_util::sync::CancellationToken;

use super::life::Life;
use crate::control::Control;
use crate::refusal::Refused;
use crate::revoke::shown;
use crate::state::State;

/// How often it is looked at, at the latest.
const LOOK: Duration = Duration::from_secs(60);
/// How soon it is tried again after it failed or another replica was about to do it.
const AGAIN: Duration = Duration::from_secs(5);
/// The duty of one replica to do it.
const DUTY: Duty = Duty { name: "incarnation/cover", ttl: Duration::from_secs(30) };
/// How often a change is planned again because the state moved on.
const ATTEMPTS_MAX: usize = 50;

/// Covers what is of an earlier incarnation when its time has come; waits for it until stopped.
pub(crate) async fn settle(control: Arc<Control>, stop: CancellationToken) {
    let mut states = control.feed.watch();
    loop {
        let now = control.clock.now();
        // While rules are taken in, nobody can have anything issued anew.
        let waits = |life: &Life| life.taking_in.is_some() && life.holds(now).is_some();
        let life = states.borrow_and_update().life();
        let life = life.filter(|life| !life.covered && !waits(life));
        let wake = match life {
            None => now + LOOK,
            Some(life) if now < life.cover_at => life.cover_at,
            Some(life) => {
                if let Err(refused) = cover(&control, &life).await {
                    tracing::warn!(code = %refused.code, why = %refused.why, "could not cover what is of an earlier incarnation");
                }
                now + AGAIN
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = control.clock.sleep_until(wake) => {}
            Ok(()) = states.changed() => {}
        }
    }
}

async fn cover(control: &Control, life: &Life) -> Result<(), Refused> {
    // A clock that may not be believed covers nothing: what was not re-issued yet would be refused.
    let now = control.desk.now().await?;
    if !control.duties.is_ours(DUTY, now).await? {
        return Ok(());
    }
    let state = control.feed.current();
    let committed = control.store.commit(covering(&state, life, now)).await?;
    control.desk.time.recorded(now);
    shown(control, committed.revision).await;
    tracing::warn!(revision = %committed.revision, "what is of an earlier incarnation is covered");
    Ok(())
}

/// The rule, and the record that says that it was made.
fn covering(state: &State, life: &Life, now: Timestamp) -> Batch {
    // The first revision of this incarnation: whatever carries it or a later one was issued anew.
    let before = Revision { number: 0, ..state.revision };
    let domain = state.domain().trust_domain.clone();
    let rule = Revocation {
        target: Revoked::Earlier { domain, before },
        about: None,
        reason: Reason::Superseded,
        at: now,
        until: life.until,
    };
    let next = Revision { number: state.revision.number + 1, ..state.revision };
    let name = format!("{next}.0");
    let details = serde_json::json!({
        "rule": name, "target": rule.target, "reason": rule.reason, "until": rule.until,
    });
    let event = Event::new(EventKind::Revoked, now, "server", rule.target.to_string());
    let value = serde_json::to_vec(&rule).expect("a rule always has a JSON form");
    let changes = vec![
        Change::Put(Record { kind: Kind::Revocation, name, value }),
        Life { covered: true, ..life.clone() }.change(),
    ];
    Batch {
        expected: Some(state.revision),
        narrows: true,
        changes,
        events: vec![event.with_details(details)],
        ..Batch::default()
    }
}

/// Ends the hold-off by an operator's word.
///
/// # Errors
/// When there is none.
pub(crate) async fn resume_issuing(
    control: Arc<Control>,
    actor: String,
) -> Result<RevisionResponse, Refused> {
    for _attempt in 0..ATTEMPTS_MAX {
        let state = control.feed.current();
        let now = control.clock.now();
        let life = state.life().filter(|life| life.holds(now).is_some());
        let Some(life) = life else {
            return Err(Refused::new(Code::NotFound, "issuing is not held off"));
        };
        let life = Life { resumed: Some(now), ..Life::clone(&life) };
        let domain = state.domain().trust_domain.id().to_string();
        let event = Event::new(EventKind::Resumed, now, actor.as_str(), domain);
        let event = event.with_details(serde_json::json!({ "issuing": true }));
        let (expected, changes) = (Some(state.revision), vec![life.change()]);
        let batch = Batch { expected, changes, events: vec![event], ..Batch::default() };
        match control.store.commit(batch).await {
            Ok(committed) => {
                shown(&control, committed.revision).await;
                return Ok(RevisionResponse::at(committed.revision));
            }
            Err(error) => {
                let refused = Refused::from(error);
                if refused.code != Code::StaleBase {
                    return Err(refused);
                }
                shown(&control, control.store.head().await?.revision).await;
            }
        }
    }
    Err(Refused::new(Code::StaleBase, "the state moved on again and again meanwhile"))
}
