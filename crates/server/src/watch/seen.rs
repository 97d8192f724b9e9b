//! Handshakes as they are stored: those alike of one minute together; and what is found among them.

use std::collections::HashMap;

use countersign_api::admin::{
    HandshakeBy, HandshakeCount, HandshakeDirection, HandshakeFilter, HandshakeGroup, Outcome,
    OutcomeCounts,
};
use countersign_api::v1;
use countersign_identity::{Code, NodeId, SpiffeId, Timestamp};
use countersign_store::{PAGE_MAX, Store, StoreError, TallyOf, TallyPlace, TallyRow};
use serde::{Deserialize, Serialize};

use crate::state::State;
use crate::watch::tallies::{SPAN, Tallies, believable, span_of};

/// Groups of one answer.
const GROUPS_MAX: usize = 1000;
/// Pairs and the like that are told apart while it is counted.
const TOLD_APART_MAX: usize = 20_000;

/// What makes handshakes alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Alike {
    point: String,
    direction: HandshakeDirection,
    service: String,
    local: String,
    peer: String,
    version: String,
    group: String,
    suite: String,
    resumed: bool,
    code: String,
}

/// One of them, told more closely.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Sample {
    address: String,
    serial: String,
    detail: String,
}

/// Counts facts, which are within their bounds, for the store.
pub(crate) fn count(
    tallies: &Tallies,
    by: Option<NodeId>,
    facts: &[v1::HandshakeFact],
    now: Timestamp,
) {
    let (mut rows, mut strange) = (Vec::with_capacity(facts.len()), 0_u64);
    for fact in facts {
        match row(fact, now) {
            Some(row) => rows.push(row),
            None => strange = fact.count.max(1).saturating_add(strange),
        }
    }
    tallies.add(TallyOf::Handshakes, by, rows.into_iter(), now);
    if 0 < strange {
        tallies.lost(TallyOf::Handshakes, strange);
    }
}

/// A fact as a row; `None` when it is none that this version understands.
fn row(fact: &v1::HandshakeFact, now: Timestamp) -> Option<TallyRow> {
    let direction = match v1::Direction::try_from(fact.direction).ok()? {
        v1::Direction::Inbound => HandshakeDirection::Inbound,
        v1::Direction::Outbound => HandshakeDirection::Outbound,
        v1::Direction::Unspecified => return None,
    };
    if !fact.code.is_empty() && fact.code.parse::<Code>().is_err() {
        return None;
    }
    let alike = Alike {
        point: fact.point.clone(),
        direction,
        service: fact.service.clone(),
        local: fact.local_id.clone(),
        peer: fact.peer_id.clone(),
        version: fact.version.clone(),
        group: fact.group.clone(),
        suite: fact.suite.clone(),
        resumed: fact.resumed,
        code: fact.code.clone(),
    };
    let sample = Sample {
        address: fact.peer_address.clone(),
        serial: fact.peer_serial.iter().map(|byte| format!("{byte:02x}")).collect(),
        detail: fact.detail.clone(),
    };
    let (at, count) = (believable(fact.at_micros, now), fact.count.max(1));
    Some(TallyRow {
        at: span_of(at),
        what: serde_json::to_string(&alike).ok()?,
        first: at,
        last: at,
        count,
        micros: fact.micros.saturating_mul(count),
        sample: serde_json::to_string(&sample).ok()?,
    })
}

fn view(row: &TallyRow) -> Option<HandshakeCount> {
    let Alike { point, direction, service, local, peer, version, group, suite, resumed, code } =
        serde_json::from_str(&row.what).ok()?;
    let sample: Sample = serde_json::from_str(&row.sample).unwrap_or_default();
    let (from, to) = match direction {
        HandshakeDirection::Inbound => (peer, local),
        HandshakeDirection::Outbound => (local, peer),
    };
    Some(HandshakeCount {
        first: row.first,
        last: row.last,
        count: row.count,
        micros: row.micros / row.count.max(1),
        point,
        direction,
        service,
        from,
        to,
        version,
        group,
        suite,
        resumed,
        code: if code.is_empty() { None } else { Some(code.parse().ok()?) },
        peer_address: sample.address,
        peer_serial: sample.serial,
        detail: sample.detail,
    })
}

/// What is looked for, in the words of the store.
pub(crate) struct Sought {
    from: Option<Who>,
    to: Option<Who>,
    at: Option<String>,
    outcome: Option<Outcome>,
    reason: Option<Code>,
    version: Option<String>,
    group: Option<String>,
    suite: Option<String>,
    since: Timestamp,
    until: Timestamp,
    by: Option<HandshakeBy>,
}

/// Whom somebody means.
struct Who {
    text: String,
    /// The identity of the workload that is called so.
    id: Option<SpiffeId>,
}

impl Who {
    fn of(text: &str, state: &State) -> Self {
        let domain = &state.domain().trust_domain;
        let id = state.workload(text).map(|(name, spec)| spec.spiffe_id_in(name, domain));
        Self { text: text.to_owned(), id }
    }

    fn is(&self, id: &str) -> bool {
        match self.text.strip_suffix('*') {
            Some(beginning) => id.starts_with(beginning),
            None => self.text == id || self.id.as_ref().is_some_and(|known| known.as_str() == id),
        }
    }
}

impl Sought {
    /// Reads what is asked for; without a time, of the last hour.
    pub(crate) fn of(filter: &HandshakeFilter, state: &State, now: Timestamp) -> Self {
        let until = filter.until.unwrap_or(now + SPAN);
        Self {
            from: filter.from.as_deref().map(|text| Who::of(text, state)),
            to: filter.to.as_deref().map(|text| Who::of(text, state)),
            at: filter.at.clone(),
            outcome: filter.outcome,
            reason: filter.reason,
            version: filter.version.clone(),
            group: filter.group.clone(),
            suite: filter.suite.clone(),
            since: filter.since.unwrap_or(now.min(until) - SPAN * 60),
            until,
            by: filter.by,
        }
    }

    fn fits(&self, seen: &HandshakeCount) -> bool {
        let outcome = match self.outcome {
            None => true,
            Some(Outcome::Admitted) => seen.code.is_none(),
            Some(Outcome::Refused) => seen.code.is_some(),
        };
        let is = |sought: &Option<String>, found: &str| {
            sought.as_ref().is_none_or(|sought| sought.eq_ignore_ascii_case(found))
        };
        outcome
            && is(&self.version, &seen.version)
            && is(&self.group, &seen.group)
            && is(&self.suite, &seen.suite)
            && self.reason.is_none_or(|reason| seen.code == Some(reason))
            && self.from.as_ref().is_none_or(|who| who.is(&seen.from))
            && self.to.as_ref().is_none_or(|who| who.is(&seen.to))
            && self.at.as_ref().is_none_or(|at| *at == seen.service || *at == seen.point)
            && self.since <= seen.last
            && seen.first < self.until
    }
}

/// How much of what is found is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Entries that are left out, from the newest on.
    pub(crate) skip: usize,
    /// Entries after those.
    pub(crate) limit: usize,
    /// Stored entries that are looked at.
    pub(crate) looked_at_max: usize,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) entries: Vec<HandshakeCount>,
    pub(crate) total: usize,
    pub(crate) groups: Vec<HandshakeGroup>,
    /// All of them together.
    pub(crate) counts: OutcomeCounts,
    /// How far back it was looked.
    pub(crate) since: Timestamp,
    pub(crate) until: Timestamp,
    pub(crate) whole: bool,
}

/// Looks through what is stored, from the newest on.
pub(crate) async fn search(
    store: &dyn Store,
    sought: &Sought,
    wanted: Wanted,
) -> Result<Found, StoreError> {
    let (since, until) = (sought.since, sought.until);
    let mut found = Found {
        entries: Vec::new(),
        total: 0,
        groups: Vec::new(),
        counts: OutcomeCounts::default(),
        since,
        until,
        whole: true,
    };
    let mut groups = Groups::default();
    let (mut place, mut looked_at) = (TallyPlace { at: until, what: String::new() }, 0);
    loop {
        let of = TallyOf::Handshakes;
        let page = store.tallies(of, span_of(since), place.clone(), PAGE_MAX).await?;
        for row in page.iter().filter_map(view).filter(|seen| sought.fits(seen)) {
            add(&mut found.counts, &row);
            if let Some(by) = sought.by {
                groups.add(by, &row);
            }
            if wanted.skip <= found.total && found.entries.len() < wanted.limit {
                found.entries.push(row);
            }
            found.total += 1;
        }
        looked_at += page.len();
        match page.last() {
            Some(last) if page.len() == PAGE_MAX => {
                if wanted.looked_at_max <= looked_at {
                    (found.whole, found.since) = (false, last.at);
                    break;
                }
                place = TallyPlace { at: last.at, what: last.what.clone() };
            }
            _ => break,
        }
    }
    found.whole &= !groups.full;
    found.groups = groups.sorted();
    Ok(found)
}

fn add(counts: &mut OutcomeCounts, seen: &HandshakeCount) {
    let count = match seen.code {
        None => &mut counts.admitted,
        Some(_) => &mut counts.refused,
    };
    *count = count.saturating_add(seen.count);
}

#[derive(Default)]
struct Groups {
    of: HashMap<(String, String), HandshakeGroup>, // INVARIANT: at most TOLD_APART_MAX
    full: bool,
}

impl Groups {
    fn add(&mut self, by: HandshakeBy, seen: &HandshakeCount) {
        let one = |text: &str| (text.to_owned(), String::new());
        let key = match by {
            HandshakeBy::Pair => (seen.from.clone(), seen.to.clone()),
            HandshakeBy::Outcome => one(seen.code.map_or("admitted", Code::as_str)),
            HandshakeBy::Version => one(&seen.version),
            HandshakeBy::Group => one(&seen.group),
            HandshakeBy::Suite => one(&seen.suite),
        };
        if TOLD_APART_MAX <= self.of.len() && !self.of.contains_key(&key) {
            self.full = true;
            return;
        }
        let group = self.of.entry(key.clone()).or_insert_with(|| group(by, key, seen.last));
        let counts = match seen.direction {
            HandshakeDirection::Inbound => &mut group.accepting,
            HandshakeDirection::Outbound => &mut group.dialling,
        };
        add(counts, seen);
        group.last = group.last.max(seen.last);
    }

    fn sorted(self) -> Vec<HandshakeGroup> {
        let mut groups: Vec<_> = self.of.into_values().collect();
        let many = |group: &HandshakeGroup| {
            let of = |counts: &OutcomeCounts| counts.admitted.saturating_add(counts.refused);
            of(&group.accepting).saturating_add(of(&group.dialling))
        };
        groups.sort_by(|a, b| {
            let names = |group: &HandshakeGroup| {
                (group.from.clone(), group.to.clone(), group.value.clone())
            };
            many(b).cmp(&many(a)).then_with(|| names(a).cmp(&names(b)))
        });
        groups.truncate(GROUPS_MAX);
        groups
    }
}

fn group(by: HandshakeBy, (first, second): (String, String), last: Timestamp) -> HandshakeGroup {
    let (from, to, value) = match by {
        HandshakeBy::Pair => (Some(first), Some(second), None),
        HandshakeBy::Outcome | HandshakeBy::Version | HandshakeBy::Group | HandshakeBy::Suite => {
            (None, None, Some(first))
        }
    };
    let none = OutcomeCounts::default();
    HandshakeGroup { from, to, value, accepting: none, dialling: none, last }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(direction: v1::Direction, code: &str, secs: i64) -> v1::HandshakeFact {
        v1::HandshakeFact {
            at_micros: secs * 1_000_000,
            point: "p".into(),
            direction: direction.into(),
            service: "orders".into(),
            local_id: "spiffe://shop.example/orders".into(),
            peer_id: "spiffe://shop.example/web".into(),
            version: "1.3".into(),
            code: code.into(),
            micros: 100,
            count: 2,
            ..v1::HandshakeFact::default()
        }
    }

    #[test]
    fn fact_is_told_from_who_dialled_to_who_was_dialled() {
        let now = Timestamp::from_secs(1000);
        let seen = |direction| view(&row(&fact(direction, "", 999), now).unwrap()).unwrap();
        let inbound = seen(v1::Direction::Inbound);
        assert_eq!(
            (inbound.from.as_str(), inbound.to.as_str()),
            ("spiffe://shop.example/web", "spiffe://shop.example/orders")
        );
        assert_eq!((inbound.count, inbound.micros, inbound.code), (2, 100, None));
        let outbound = seen(v1::Direction::Outbound);
        assert_eq!((outbound.from, outbound.to), (inbound.to, inbound.from));
    }

    #[test]
    fn what_is_not_understood_is_no_row() {
        let now = Timestamp::from_secs(1000);
        assert!(row(&fact(v1::Direction::Unspecified, "", 999), now).is_none());
        assert!(row(&fact(v1::Direction::Inbound, "made-up", 999), now).is_none());
        assert!(row(&fact(v1::Direction::Inbound, "expired", 999), now).is_some());
    }
}
