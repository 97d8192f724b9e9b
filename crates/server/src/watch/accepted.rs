//! An operator's word that the present time is right, although the log has entries of a later one: a clock was ahead when
//! they were written.

use countersign_api::admin::RevisionResponse;
use countersign_audit::{Entry, Event, EventKind};
use countersign_identity::{Clock, Code, Incarnation, Timestamp};
use countersign_store::{Batch, Op, PAGE_MAX, Store};
use serde::{Deserialize, Serialize};

use crate::authority::internal;
use crate::config::StartError;
use crate::control::Control;
use crate::papers::{beginning, paper, says};
use crate::refusal::Refused;
use crate::run::latest;
use crate::watch::TimeGuard;

/// With what the names of the papers begin that say so. The last word counts.
const CLOCK: &str = "clock/";

/// From where on the times of a log are in order again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Accepted {
    /// Of which log.
    incarnation: Incarnation,
    /// Its event is at this place or after it.
    from: u64,
    at: Timestamp,
}

/// Takes the present time for right, on the record.
///
/// # Errors
/// When the clock is not behind the log, or the store refuses.
pub(crate) async fn accept_clock(
    control: std::sync::Arc<Control>,
    actor: String,
) -> Result<RevisionResponse, Refused> {
    let now = control.clock.now();
    if control.desk.time.trusted(now).is_ok() {
        let why = format!(
            "the clock says {now}, and the log has nothing later: there is nothing to accept"
        );
        return Err(Refused::new(Code::NotFound, why));
    }
    let before = control.desk.time.highest(now);
    let head = control.store.head().await?;
    let word = Accepted { incarnation: head.revision.incarnation, from: head.log_size, at: now };
    let domain = control.feed.current().domain().trust_domain.id().to_string();
    let event = Event::new(EventKind::Resumed, now, actor.as_str(), domain);
    let event = event.with_details(serde_json::json!({ "clock": true, "before": before }));
    let name = format!("{CLOCK}{:020}.{:020}", word.incarnation, word.from);
    let ops = vec![Op::CreatePaper(paper(name, &word)?)];
    let committed =
        control.store.commit(Batch { events: vec![event], ops, ..Batch::default() }).await?;
    control.desk.time.hear(word);
    control.desk.time.accept(now, &*control.clock);
    tracing::warn!(%now, %before, actor, "the present time is taken for right, by an operator's word");
    Ok(RevisionResponse::at(committed.revision))
}

async fn accepted(store: &dyn Store) -> Result<Option<Accepted>, Refused> {
    let words = beginning(store, CLOCK).await?;
    let Some(word) = words.last().map(says::<Accepted>).transpose()? else { return Ok(None) };
    let incarnation = store.head().await?.revision.incarnation;
    Ok(Some(word).filter(|word| word.incarnation == incarnation))
}

/// The present time, if it may be believed, be it by a word that was given to another server meanwhile.
///
/// # Errors
/// `not-ready` while the clock is behind.
pub(crate) async fn believed(
    time: &TimeGuard,
    clock: &dyn Clock,
    store: &dyn Store,
) -> Result<Timestamp, Refused> {
    let Err(refused) = time.trusted(clock.now()) else { return Ok(clock.now()) };
    // It costs a look into the store only who would be refused.
    if let Err(away) = learn(time, clock, store).await {
        tracing::debug!(why = %away.why, "whether the present time was accepted is not known");
        return Err(refused);
    }
    time.trusted(clock.now())
}

/// The time that the log says it was last. A word that was given before is none on what was recorded since.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn begin(
    written: Option<Timestamp>,
    clock: &dyn Clock,
    store: &dyn Store,
) -> Result<TimeGuard, StartError> {
    // First: one that is given meanwhile is news.
    let word = accepted(store).await?;
    let time = TimeGuard::new(latest(store).await?, written, clock);
    if let Some(word) = word {
        time.hear(word);
    }
    Ok(time)
}

/// Goes on by a word that was given to another server.
async fn learn(time: &TimeGuard, clock: &dyn Clock, store: &dyn Store) -> Result<(), Refused> {
    let word = accepted(store).await?;
    if let Some(word) = word.filter(|word| !time.has_heard(*word)) {
        time.accept(latest(store).await.map_err(internal)?, clock);
        // What was dated ahead before this server heard of it is not what the last entry is for long.
        if time.trusted(clock.now()).is_ok() {
            time.hear(word);
        }
    }
    Ok(())
}

/// Notes a word that another server was given while this one's clock is right: it excuses nothing that this clock does after it.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn note_word(
    time: &TimeGuard,
    clock: &dyn Clock,
    store: &dyn Store,
) -> Result<(), Refused> {
    let word = accepted(store).await?;
    if let Some(word) = word.filter(|_word| time.trusted(clock.now()).is_ok()) {
        time.hear(word);
    }
    Ok(())
}

/// The highest time that was seen, for what must happen whatever the clock says. A word that another server was given is heard of
/// before, so that nothing is dated by a clock that was ahead when everybody knows better.
pub(crate) async fn highest(time: &TimeGuard, clock: &dyn Clock, store: &dyn Store) -> Timestamp {
    if let Err(behind) = believed(time, clock, store).await {
        tracing::warn!(why = %behind.why, "what is recorded now is dated by the highest time that was seen");
    }
    time.highest(clock.now())
}

/// From which place on the times of the log are in order, and the time there; none where they are from its beginning.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn in_order_from(store: &dyn Store) -> Result<Option<(u64, Timestamp)>, Refused> {
    let Some(word) = accepted(store).await? else { return Ok(None) };
    let mut from = word.from;
    loop {
        let events = store.events(from, PAGE_MAX).await?;
        for (event, index) in events.iter().zip(from..) {
            let entry = Entry::parse(&event.leaf).map_err(internal)?;
            if entry.kind == EventKind::Resumed && entry.at == word.at {
                return Ok(Some((index, word.at)));
            }
        }
        if events.is_empty() {
            return Err(internal("the log lacks the event by which a time was accepted"));
        }
        from += events.len() as u64;
    }
}
