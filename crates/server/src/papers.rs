//! What operators keep beside the state: papers, by names in which what belongs together begins alike.

use countersign_store::{PAGE_MAX, PaperRow, Store, StoreError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::authority::internal;
use crate::refusal::Refused;

/// All papers whose names begin so.
pub(crate) async fn beginning(store: &dyn Store, with: &str) -> Result<Vec<PaperRow>, StoreError> {
    let mut rows: Vec<PaperRow> = Vec::new();
    let mut after = Some(with.to_owned());
    loop {
        let page = store.papers(after, PAGE_MAX).await?;
        let full = PAGE_MAX <= page.len();
        after = page.last().map(|last| last.name.clone());
        let found = page.len();
        rows.extend(page.into_iter().take_while(|row| row.name.starts_with(with)));
        let all_begin_so = after.as_ref().is_some_and(|last| last.starts_with(with));
        if found == 0 || !full || !all_begin_so {
            return Ok(rows);
        }
    }
}

/// A paper of this name.
pub(crate) fn paper(name: String, says: &impl Serialize) -> Result<PaperRow, Refused> {
    Ok(PaperRow { name, value: serde_json::to_vec(says).map_err(internal)? })
}

/// What a paper says.
pub(crate) fn says<T: DeserializeOwned>(row: &PaperRow) -> Result<T, Refused> {
    serde_json::from_slice(&row.value).map_err(internal)
}
