//! Requests that doors answered, as they are stored: those of one service, one class and one bound of time together.

use std::collections::BTreeMap;
use std::time::Duration;

use countersign_api::v1;
use countersign_api::wire::SERVED_WITHIN_MICROS;
use countersign_identity::{Name, NodeId, Timestamp};
use countersign_store::{PAGE_MAX, Store, StoreError, TallyOf, TallyPlace, TallyRow};
use serde::{Deserialize, Serialize};

use crate::watch::tallies::{SPAN, Tallies, believable, span_of};

/// The first digits of a status, and none of them.
const CLASSES: u32 = 6;
/// The bounds, and beyond all of them.
const BOUNDS: usize = SERVED_WITHIN_MICROS.len() + 1;

/// What makes answers alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Alike {
    service: Name,
    class: u32,
    within: usize,
}

/// Counts what a node reports, for the store.
pub(crate) fn count(tallies: &Tallies, by: NodeId, served: &[v1::Served], now: Timestamp) {
    let (mut rows, mut strange) = (Vec::with_capacity(served.len()), 0_u64);
    for one in served {
        match row(one, now) {
            Some(row) => rows.push(row),
            None => strange = strange.saturating_add(one.count),
        }
    }
    tallies.add(TallyOf::Requests, Some(by), rows.into_iter(), now);
    if 0 < strange {
        tallies.lost(TallyOf::Requests, strange);
    }
}

/// A report as a row; `None` when it is none that this version understands.
fn row(served: &v1::Served, now: Timestamp) -> Option<TallyRow> {
    let within = usize::try_from(served.within).ok().filter(|within| *within < BOUNDS)?;
    let class = Some(served.class).filter(|class| *class < CLASSES)?;
    let at = believable(served.at_micros, now);
    let alike = Alike { service: served.service.parse().ok()?, class, within };
    Some(TallyRow {
        at: span_of(at),
        what: serde_json::to_string(&alike).ok()?,
        first: at,
        last: at,
        count: served.count,
        micros: served.micros,
        sample: String::new(),
    })
}

/// How some services answered in one minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// By the first digit of the status.
    pub(crate) classes: [u64; CLASSES as usize],
    within: [u64; BOUNDS],
}

impl Answers {
    /// All of them.
    pub(crate) fn all(&self) -> u64 {
        self.classes.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Adds others.
    pub(crate) fn add(&mut self, other: &Self) {
        for (to, from) in self.classes.iter_mut().zip(other.classes) {
            *to = to.saturating_add(from);
        }
        for (to, from) in self.within.iter_mut().zip(other.within) {
            *to = to.saturating_add(from);
        }
    }

    /// Within what time so many of a hundred were answered; nothing when there were none, or it was beyond all bounds.
    pub(crate) fn within(&self, percent: u64) -> Option<Duration> {
        let all = self.within.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
        let wanted = u64::try_from((u128::from(all) * u128::from(percent)).div_ceil(100)).ok()?;
        let mut so_far = 0_u64;
        let place = self.within.iter().position(|count| {
            so_far = so_far.saturating_add(*count);
            0 < all && wanted <= so_far
        });
        place.and_then(|place| SERVED_WITHIN_MICROS.get(place)).copied().map(Duration::from_micros)
    }
}

/// How these services answered, minute by minute, from this moment on; at most so many stored entries are looked at, from
/// the newest on. Also, from when on that is all.
pub(crate) async fn answers(
    store: &dyn Store,
    services: &[Name],
    since: Timestamp,
    (now, looked_at_max): (Timestamp, usize),
) -> Result<(BTreeMap<Timestamp, Answers>, Timestamp), StoreError> {
    let mut minutes: BTreeMap<Timestamp, Answers> = BTreeMap::new();
    let (mut place, mut looked_at) = (TallyPlace { at: now + SPAN, what: String::new() }, 0);
    loop {
        let of = TallyOf::Requests;
        let page = store.tallies(of, span_of(since), place.clone(), PAGE_MAX).await?;
        for row in &page {
            let Ok(alike) = serde_json::from_str::<Alike>(&row.what) else { continue };
            let class = usize::try_from(alike.class).unwrap_or(usize::MAX);
            let bounded = alike.within < BOUNDS && alike.class < CLASSES;
            if bounded && services.contains(&alike.service) {
                let minute = minutes.entry(row.at).or_default();
                minute.classes[class] = minute.classes[class].saturating_add(row.count);
                minute.within[alike.within] = minute.within[alike.within].saturating_add(row.count);
            }
        }
        looked_at += page.len();
        match page.last() {
            Some(last) if page.len() == PAGE_MAX && looked_at < looked_at_max => {
                place = TallyPlace { at: last.at, what: last.what.clone() };
            }
            // Of the minute in which it ends, there may be more.
            Some(last) if page.len() == PAGE_MAX => return Ok((minutes, last.at + SPAN)),
            _ => return Ok((minutes, since)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_within_which_most_were_answered_is_a_bound_that_holds() {
        let mut answers = Answers::default();
        assert_eq!(answers.within(50), None);
        answers.within = [0; BOUNDS];
        (answers.within[0], answers.within[3], answers.within[13]) = (98, 1, 1);
        assert_eq!(answers.within(50), Some(Duration::from_millis(1)));
        assert_eq!(answers.within(99), Some(Duration::from_millis(10)));
        assert_eq!(answers.within(100), None, "one was beyond all bounds");
    }

    #[test]
    fn what_is_not_understood_is_no_row() {
        let now = Timestamp::from_secs(1000);
        let fine =
            v1::Served { service: "orders".into(), class: 2, count: 1, ..Default::default() };
        assert!(row(&fine, now).is_some());
        assert!(row(&v1::Served { class: 6, ..fine.clone() }, now).is_none());
        assert!(row(&v1::Served { within: 14, ..fine.clone() }, now).is_none());
        assert!(row(&v1::Served { service: "No Name".into(), ..fine }, now).is_none());
    }
}
