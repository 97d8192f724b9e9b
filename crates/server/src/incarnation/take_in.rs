//! What a journal remembers and one batch does not hold: taken in piece by piece, and nothing is issued before the last.

use std::path::Path;
use std::time::Duration;

use countersign_identity::Code;
use countersign_store::{Batch, Store, StoreError};

use super::hand_back::{Handed, taken_back};
use super::journal::read_rules;
use super::life::{Life, cover_at};
use super::log_key::LogKey;
use crate::authority::internal;
use crate::config::StartError;
use crate::refusal::Refused;
use crate::state::State;
use crate::watch::Moment;

/// Rules in one batch: each makes up to two changes with an event, so that there is room for them all.
pub(super) const RULES_MAX: usize = 20_000;
/// How often a change is planned again because the state moved on.
const ATTEMPTS_MAX: usize = 100;

/// Takes in the rules of a journal; says what the life is then, in which issuing is not held off for them any more.
///
/// # Errors
/// When the store does not answer, or others go on writing to it. What is missing is missing until it is called again.
pub(super) async fn take_in(
    store: &dyn Store,
    rules: &[Handed],
    at: Moment,
) -> Result<Life, Refused> {
    for some in rules.chunks(RULES_MAX) {
        let batch = |state: &State| {
            let batch = taken_back(state, state.life().as_deref(), some, "journal", at);
            (!batch.changes.is_empty()).then_some(batch)
        };
        amend(store, batch).await?;
    }
    amend(store, |state| {
        let life = state.life().filter(|life| life.taking_in.is_some())?;
        // Whoever waited for this has a lifetime's time to have everything issued anew.
        let cover = cover_at(at.now, Duration::ZERO, state.longest_svid().duration());
        let life =
            Life { taking_in: None, cover_at: life.cover_at.max(cover), ..Life::clone(&life) };
        Some(Batch { changes: vec![life.change()], ..Batch::default() })
    })
    .await?;
    let state = State::from_snapshot(store.snapshot().await?)?;
    let life = state.life().ok_or_else(|| internal("the incarnation has no record"))?;
    Ok(Life::clone(&life))
}

/// Goes on where this server began to take in the rules of its journal and was cut off.
///
/// # Errors
/// When the store does not answer, or the journal does not read.
pub(crate) async fn take_in_the_rest(
    store: &dyn Store,
    server: &str,
    journal: Option<&Path>,
    key: &LogKey,
    at: Moment,
) -> Result<(), StartError> {
    let state = State::from_snapshot(store.snapshot().await?).map_err(internal)?;
    let Some(life) = state.life() else { return Ok(()) };
    if life.taking_in.as_deref() != Some(server) {
        return Ok(());
    }
    let Some(folder) = journal else {
        tracing::error!(
            "the rules of the journal were not taken in to the end, and there is no `--journal`"
        );
        return Ok(());
    };
    let (rules, _refused) = read_rules(folder, key)?;
    take_in(store, &rules, at).await?;
    tracing::warn!("the rules of the journal are taken in");
    Ok(())
}

/// Commits what is planned on the state as it is then; nothing when there is nothing to do.
async fn amend(store: &dyn Store, plan: impl Fn(&State) -> Option<Batch>) -> Result<(), Refused> {
    for _attempt in 0..ATTEMPTS_MAX {
        let state = State::from_snapshot(store.snapshot().await?)?;
        let Some(batch) = plan(&state) else { return Ok(()) };
        match store.commit(Batch { expected: Some(state.revision), ..batch }).await {
            Ok(_committed) => return Ok(()),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Refused::new(Code::StaleBase, "others write to the store meanwhile"))
}
