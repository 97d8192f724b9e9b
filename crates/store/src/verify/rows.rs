//! The rows beside the map and the log, each read as what it has to be.

use countersign_identity::Timestamp;

use super::broken;
use crate::{PAGE_MAX, Result, Store, StoreError, TallyOf, TallyPlace, TallyRow};

/// Reads all of them, page by page.
pub(super) async fn check_rows(store: &dyn Store) -> Result<()> {
    let nodes = all(async |after| store.nodes(after, PAGE_MAX).await, |row| row.id);
    nodes.await.map_err(of("nodes"))?;
    let points = all(async |after| store.points(after, PAGE_MAX).await, |row| row.key.clone());
    points.await.map_err(of("points"))?;
    let tokens = all(async |after| store.tokens(after, PAGE_MAX).await, |row| row.hash);
    tokens.await.map_err(of("tokens"))?;
    let keys = all(async |after| store.revoked_keys(after, PAGE_MAX).await, |(key, _)| *key);
    keys.await.map_err(of("revoked_keys"))?;
    let secrets = all(async |after| store.secrets(after, PAGE_MAX).await, |(name, _)| name.clone());
    secrets.await.map_err(of("secrets"))?;
    let flows = all(async |after| store.flows(after, PAGE_MAX).await, |row| row.flow.clone());
    flows.await.map_err(of("flows"))?;
    let papers = all(async |after| store.papers(after, PAGE_MAX).await, |row| row.name.clone());
    papers.await.map_err(of("papers"))?;
    for tallies in [TallyOf::Handshakes, TallyOf::Requests] {
        let from = Timestamp::from_micros(i64::MIN);
        let newest = || TallyPlace { at: Timestamp::from_micros(i64::MAX), what: String::new() };
        let page = async |before: Option<TallyPlace>| {
            let before = before.unwrap_or_else(newest);
            store.tallies(tallies, from, before, PAGE_MAX).await
        };
        let place = |row: &TallyRow| TallyPlace { at: row.at, what: row.what.clone() };
        all(page, place).await.map_err(of("tallies"))?;
    }
    for (replica, _) in store.report_versions().await.map_err(of("reports"))? {
        store.report_of(&replica).await.map_err(of("reports"))?;
    }
    Ok(())
}

/// Says in which table the row is that does not read.
fn of(table: &'static str) -> impl Fn(StoreError) -> StoreError {
    move |error| match error {
        StoreError::Broken { what } => broken(format!("a row of `{table}`: {what}")),
        other => other,
    }
}

async fn all<K, R>(
    page: impl AsyncFn(Option<K>) -> Result<Vec<R>>,
    place: impl Fn(&R) -> K,
) -> Result<()> {
    let mut after = None;
    loop {
        let rows = page(after).await?;
        let Some(last) = rows.last() else { return Ok(()) };
        after = Some(place(last));
    }
}
