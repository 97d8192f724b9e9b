//! Who asked whom for what: as enforcement points report it, and as the store remembers it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_api::admin::{Answer, FlowView};
use countersign_api::{v1, wire};
use countersign_identity::{Mode, Name, SpiffeId, Timestamp};
use countersign_store::{Batch, FlowRow, Op, PAGE_MAX, Store, StoreError};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::control::Control;
use crate::judge::Judge;
use crate::refusal::Refused;

/// How many different flows wait to be written. What comes on top is a number.
const WAITING_MAX: usize = 10_000;
/// How many different flows that were denied lately are at hand.
const DENIED_MAX: usize = 64;
/// How often what was reported is written.
const WRITE_EVERY: Duration = Duration::from_secs(2);
/// How many are written at once.
const WRITTEN_MAX: usize = 500;
/// The most that one report says of one flow. A node that claims more would spoil the sums that others are in.
const REPORTED_MAX: u64 = u32::MAX as u64;
/// How often it is looked for what is too old, or too much.
const TRIM_EVERY: Duration = Duration::from_secs(600);
/// How often it is looked for reviews that another server was told of.
const READ_EVERY: Duration = Duration::from_secs(60);
/// How many different flows are remembered. Beyond that, nothing new is, until room was made.
const REMEMBERED_MAX: usize = 50_000;
/// How long a flow may be remembered at the shortest, lest one that was just seen is forgotten.
const RETENTION_MIN: Duration = Duration::from_secs(3600);

/// What makes one flow another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Said {
    source: String,
    service: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    operation: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    method: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    path: String,
    allowed: bool,
    mode: Mode,
    policies: Vec<String>,
}

/// Flows on their way to the store.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    rows: HashMap<String, FlowRow>, // INVARIANT: at most WAITING_MAX
    /// Those that were denied last, since this server started.
    denied: Vec<FlowRow>, // INVARIANT: at most DENIED_MAX
    dropped: u64,
    full: bool,
}

impl Flows {
    /// Takes what a node reports; never waits.
    pub(crate) fn observe(&self, flows: Vec<v1::Flow>, lost: u64, now: Timestamp) {
        let mut waiting = self.lock();
        waiting.dropped = waiting.dropped.saturating_add(lost);
        for flow in flows {
            let flow = wire::bounded_flow(flow);
            let (count, allowed) = (flow.count, flow.allowed);
            let row = row(flow, now);
            if let Some(row) = row.as_ref().filter(|_row| !allowed) {
                waiting.deny(row);
            }
            let taken = row.is_some_and(|row| waiting.add(row));
            if !taken {
                waiting.dropped = waiting.dropped.saturating_add(count);
            }
        }
    }

    /// What was denied last, the latest first, by SPIFFE IDs.
    pub(crate) fn denied(&self) -> Vec<FlowView> {
        let mut denied = self.lock().denied.clone();
        denied.sort_by_key(|row| std::cmp::Reverse(row.last));
        denied.iter().filter_map(|row| view(row, ToString::to_string)).collect()
    }

    /// How many were counted in no flow.
    pub(crate) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn take(&self) -> Vec<FlowRow> {
        let mut waiting = self.lock();
        let keys: Vec<String> = waiting.rows.keys().take(WRITTEN_MAX).cloned().collect();
        keys.iter().filter_map(|key| waiting.rows.remove(key)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn deny(&mut self, row: &FlowRow) {
        if let Some(before) = self.denied.iter_mut().find(|before| before.flow == row.flow) {
            before.last = before.last.max(row.last);
            before.count = before.count.saturating_add(row.count);
            return;
        }
        if DENIED_MAX <= self.denied.len() {
            let oldest = self.denied.iter().enumerate().min_by_key(|(_, row)| row.last);
            let oldest = oldest.map(|(place, _)| place);
            oldest.iter().for_each(|place| _ = self.denied.swap_remove(*place));
        }
        self.denied.push(row.clone());
    }

    fn add(&mut self, row: FlowRow) -> bool {
        if let Some(before) = self.rows.get_mut(&row.flow) {
            before.first = before.first.min(row.first);
            before.last = before.last.max(row.last);
            before.count = before.count.saturating_add(row.count);
            return true;
        }
        let room = self.rows.len() < WAITING_MAX && !self.full;
        if room {
            self.rows.insert(row.flow.clone(), row);
        }
        room
    }
}

/// A report as a row; `None` when it is none that this version understands.
fn row(flow: v1::Flow, now: Timestamp) -> Option<FlowRow> {
    let said = Said {
        source: flow.source.parse::<SpiffeId>().ok()?.to_string(),
        service: flow.service.parse::<Name>().ok()?.to_string(),
        operation: flow.operation,
        method: flow.method,
        path: flow.path,
        allowed: flow.allowed,
        mode: flow.mode.parse().ok()?,
        policies: flow.policies,
    };
    let value = serde_json::to_value(&said).ok()?;
    let flow_text = String::from_utf8(countersign_api::resource::canonical(&value)).ok()?;
    // A point's clock may be wrong; what it says of the future is of now.
    let at = |micros: i64| Timestamp::from_micros(micros).min(now);
    let (first, last) = (at(flow.first_micros), at(flow.last_micros));
    (flow_text.len() <= countersign_store::FLOW_BYTES_MAX && first <= last).then_some(FlowRow {
        flow: flow_text,
        first,
        last,
        count: flow.count.min(REPORTED_MAX),
    })
}

/// Writes what was reported, and forgets what is old, until stopped.
pub(crate) async fn keep_flows(control: Arc<Control>, stop: CancellationToken) {
    let mut trim_at = control.clock.now();
    let mut read_at = trim_at;
    loop {
        let now = control.clock.now();
        if let Err(error) = write(&control).await {
            tracing::warn!(%error, "flows could not be written");
        }
        if trim_at <= now {
            trim_at = now + TRIM_EVERY;
            // A clock that is ahead makes nothing old.
            let steady = control.desk.time.certain(&*control.clock);
            if let Err(error) = trim(&control, steady).await {
                tracing::warn!(%error, "old flows could not be dropped");
            }
        }
        if read_at <= now {
            read_at = now + READ_EVERY;
            if let Err(refused) = crate::review::reviews(&control).await {
                tracing::warn!(%refused, "reviews could not be read");
            }
            // Right after the start nobody has come yet who serves anything.
            if control.watch.started + READ_EVERY <= now
                && let Err(refused) = crate::inventory::look(&control).await
            {
                tracing::warn!(%refused, "the inventory could not be compared");
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = control.clock.sleep_until(control.clock.about(WRITE_EVERY)) => {}
        }
    }
    if let Err(error) = write(&control).await {
        tracing::debug!(%error, "the last flows could not be written");
    }
}

async fn write(control: &Control) -> Result<(), StoreError> {
    loop {
        let rows = control.watch.flows.take();
        if rows.is_empty() {
            return Ok(());
        }
        let counts: u64 = rows.iter().map(|row| row.count).sum();
        let ops = rows.into_iter().map(Op::AddFlow).collect();
        if let Err(error) = control.store.commit(Batch { ops, ..Batch::default() }).await {
            // Nobody may know whether it was written, and what is written twice is counted twice.
            control.watch.flows.observe(Vec::new(), counts, Timestamp::EPOCH);
            return Err(error);
        }
    }
}

async fn trim(control: &Control, steady: Timestamp) -> Result<(), StoreError> {
    let retention = control.feed.current().domain().flow_retention.duration().max(RETENTION_MIN);
    let ops = vec![Op::TrimFlows { before: steady - retention }];
    control.store.commit(Batch { ops, ..Batch::default() }).await?;
    let remembered = all(&*control.store).await?.len();
    control.watch.flows.lock().full = REMEMBERED_MAX <= remembered;
    if REMEMBERED_MAX <= remembered {
        tracing::warn!(remembered, "too many different flows: new ones are only counted");
    }
    Ok(())
}

/// Every flow that is remembered.
async fn all(store: &dyn Store) -> Result<Vec<FlowRow>, StoreError> {
    let mut rows = Vec::new();
    loop {
        let after = rows.last().map(|row: &FlowRow| row.flow.clone());
        let page = store.flows(after, PAGE_MAX).await?;
        let last = page.len() < PAGE_MAX;
        rows.extend(page);
        if last || 2 * REMEMBERED_MAX < rows.len() {
            return Ok(rows);
        }
    }
}

/// The flows that were seen since, with the names that manifests give their sources now.
pub(crate) async fn flows(
    store: &dyn Store,
    judge: &Judge,
    since: Option<Timestamp>,
) -> Result<Vec<FlowView>, Refused> {
    let rows = all(store).await?;
    let recent = rows.into_iter().filter(|row| since.is_none_or(|since| since <= row.last));
    let mut views: Vec<FlowView> =
        recent.filter_map(|row| view(&row, |id| judge.principal(id).to_string())).collect();
    views.sort_by(|a, b| {
        let key = |view: &FlowView| (view.source.clone(), view.service.clone(), view.what());
        key(a).cmp(&key(b))
    });
    Ok(views)
}

fn view(row: &FlowRow, name: impl Fn(&SpiffeId) -> String) -> Option<FlowView> {
    let said: Said = serde_json::from_str(&row.flow).ok()?;
    let source_id: SpiffeId = said.source.parse().ok()?;
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    Some(FlowView {
        source: name(&source_id),
        source_id,
        service: said.service.parse().ok()?,
        operation: text(said.operation).and_then(|name| name.parse().ok()),
        method: text(said.method),
        path: text(said.path),
        decision: if said.allowed { Answer::Allow } else { Answer::Deny },
        mode: said.mode,
        policies: said.policies,
        first_seen: row.first,
        last_seen: row.last,
        count: row.count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(service: &str, count: u64, seconds: i64) -> v1::Flow {
        v1::Flow {
            source: "spiffe://shop.example/web".to_owned(),
            service: service.to_owned(),
            mode: "enforce".to_owned(),
            first_micros: seconds * 1_000_000,
            last_micros: seconds * 1_000_000,
            count,
            ..v1::Flow::default()
        }
    }

    #[test]
    fn a_count_without_measure_keeps_no_other_flow_from_being_written() {
        let flows = Flows::default();
        let now = Timestamp::from_secs(100);
        flows.observe(vec![flow("web", u64::MAX, 50), flow("web", u64::MAX, 51)], 0, now);
        let rows = flows.take();
        assert_eq!(rows.iter().map(|row| row.count).collect::<Vec<_>>(), [2 * REPORTED_MAX]);
        assert!(rows.iter().all(|row| i64::try_from(row.count).is_ok()), "as stores count");
    }

    #[test]
    fn reports_of_one_flow_become_one_row() {
        let flows = Flows::default();
        let now = Timestamp::from_secs(100);
        flows.observe(vec![flow("a", 2, 10), flow("b", 1, 500)], 7, now);
        flows.observe(vec![flow("a", 3, 20)], 0, now);
        let mut rows = flows.take();
        rows.sort_by(|one, other| one.flow.cmp(&other.flow));
        assert_eq!(rows.iter().map(|row| row.count).collect::<Vec<_>>(), [5, 1]);
        assert_eq!(
            (rows[0].first, rows[0].last),
            (Timestamp::from_secs(10), Timestamp::from_secs(20))
        );
        assert_eq!(rows[1].last, now, "nothing is of the future");
        assert_eq!(flows.dropped(), 7);
        assert!(flows.take().is_empty());
    }

    #[test]
    fn what_is_not_understood_and_what_there_is_no_room_for_is_a_number() {
        let flows = Flows::default();
        let now = Timestamp::from_secs(100);
        let unknown = v1::Flow { mode: "shadow".to_owned(), ..flow("a", 4, 1) };
        flows.observe(
            vec![unknown, v1::Flow { source: "web".to_owned(), ..flow("a", 5, 1) }],
            0,
            now,
        );
        assert_eq!(flows.dropped(), 9);
        let many = (0..WAITING_MAX + 3).map(|number| flow(&format!("s{number}"), 1, 1)).collect();
        flows.observe(many, 0, now);
        assert_eq!(flows.dropped(), 12);
    }

    #[test]
    fn what_was_denied_last_is_at_hand_and_bounded() {
        let flows = Flows::default();
        let now = Timestamp::from_secs(100_000);
        for number in 0..1000 {
            flows.observe(vec![flow(&format!("s{number}"), 1, number)], 0, now);
        }
        let allowed = v1::Flow { allowed: true, ..flow("fine", 1, 5000) };
        flows.observe(vec![allowed, flow("s999", 2, 1001)], 0, now);
        let waiting = flows.lock();
        assert_eq!(waiting.denied.len(), DENIED_MAX);
        let last = waiting.denied.iter().max_by_key(|row| row.last).unwrap();
        assert_eq!((last.count, last.last), (3, Timestamp::from_secs(1001)));
        assert!(waiting.denied.iter().all(|row| Timestamp::from_secs(900) < row.last));
    }
}
