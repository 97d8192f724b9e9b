//! What was declared at which revision, by whom and when; and going back.
//!
//! The values come from the feed, which keeps the last ten thousand commits of this incarnation; who and when come from
//! the log, which is in the order of revisions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Extension, Query, State as Shared};
use countersign_api::admin::{
    ApplyResponse, HistoryEntry, HistoryResponse, LIST_MAX, ProblemDetails, RollbackRequest,
    Touched,
};
use countersign_api::resource::Resource;
use countersign_audit::Entry;
use countersign_identity::{Code, Revision};
use countersign_store::{Change, Commit, FEED_COMMITS_MAX, Feed, Kind, PAGE_MAX, Store};
use serde::Deserialize;

use crate::admin::Admin;
use crate::admin::apply::{self, Unnamed};
use crate::admin::ask::query;
use crate::admin::change::{self, Operator, parse};
use crate::admin::problem::Problem;
use crate::refusal::Refused;
use crate::state::{Key, State};

/// How many revisions are shown when nothing else is asked.
const LIMIT: usize = 20;

/// A page of the history.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// At most so many.
    limit: Option<usize>,
    /// Only revisions before this one.
    #[param(value_type = Option<String>)]
    before: Option<Revision>,
    /// Also those that changed nothing which manifests declare.
    all: Option<bool>,
}

/// What has changed, newest first: who, when and what.
#[utoipa::path(get, path = "/v1/history", params(Asked), responses((status = 200, body = HistoryResponse), (status = "default", body = ProblemDetails)))]
pub(crate) async fn history(
    Shared(admin): Shared<Arc<Admin>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<HistoryResponse>, Problem> {
    let control = admin.control()?;
    let Asked { limit, before, all } = query(asked)?;
    let limit = limit.unwrap_or(LIMIT).clamp(1, LIST_MAX);
    let past = Past::read(&*control.store).await?;
    let wanted = |commit: &&Commit| {
        let declares = commit.changes.iter().any(|change| is_declared(of(change).0));
        before.is_none_or(|before| commit.revision < before) && (all == Some(true) || declares)
    };
    let mut entries = Vec::new();
    for commit in past.commits.iter().rev().filter(wanted).take(limit) {
        let name = |change: &Change| format!("{}/{}", of(change).0, of(change).1);
        let removes = |change: &&Change| matches!(change, Change::Remove { .. });
        entries.push(HistoryEntry {
            touched: touched(&*control.store, commit.revision).await?,
            put: commit.changes.iter().filter(|change| !removes(change)).map(name).collect(),
            removed: commit.changes.iter().filter(removes).map(name).collect(),
        });
    }
    let cut = entries.len() < limit && !past.whole;
    Ok(Json(HistoryResponse { entries, cut }))
}

/// Makes what was declared at a revision the desired state again, as a new revision. Revocations and suspensions stay.
#[utoipa::path(
    post, path = "/v1/rollback", request_body = RollbackRequest,
    responses((status = 200, body = ApplyResponse), (status = "default", body = ProblemDetails))
)]
pub(crate) async fn rollback(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ApplyResponse>, Problem> {
    let control = Arc::clone(admin.control()?);
    let RollbackRequest { to, base, dry_run } = parse(body)?;
    let resources = Arc::new(declared_at(&*control.store, &control.feed.current(), to).await?);
    let decide =
        move |state: &State| apply::put(state, resources.to_vec(), Unnamed::Remove).map(Some);
    let asked = change::Asked { operator, base, dry_run, digest: None };
    change::change(&control, asked, decide).await
}

/// What was declared at a revision.
///
/// # Errors
/// When that revision is not to come, of another incarnation, or no longer kept.
pub(crate) async fn declared_at(
    store: &dyn Store,
    state: &State,
    at: Revision,
) -> Result<Vec<Resource>, Refused> {
    let current = state.revision;
    if at == current {
        return Ok(state.resources().collect());
    }
    if current < at {
        let why = format!("revision {at} is not there yet: the current one is {current}");
        return Err(Refused::new(Code::NotFound, why));
    }
    let past = Past::read(store).await?;
    if at.incarnation != current.incarnation || !past.reaches(at) {
        return Err(forgotten(at));
    }
    let mut values: BTreeMap<Key, Vec<u8>> = BTreeMap::new();
    for (key, entry) in &state.records {
        if is_declared(key.kind) {
            values.insert(key.clone(), entry.wire.value.to_vec());
        }
    }
    let (until, since): (Vec<&Commit>, Vec<&Commit>) =
        past.commits.iter().partition(|commit| commit.revision <= at);
    let later: BTreeSet<Key> = since.iter().flat_map(|commit| &commit.changes).map(key).collect();
    for key in later.into_iter().filter(|key| is_declared(key.kind)) {
        values.remove(&key);
        // What it said then is what it was told last until then.
        let mut told = until.iter().rev().flat_map(|commit| commit.changes.iter().rev());
        match told.find(|change| self::key(change) == key) {
            Some(Change::Put(record)) => drop(values.insert(key, record.value.clone())),
            Some(Change::Remove { .. }) => {}
            // Never told of as far back as is kept: it did not exist, unless it was there when that begins.
            None if past.whole => {}
            None => return Err(forgotten(at)),
        }
    }
    let read = |(key, value): (Key, Vec<u8>)| crate::state::declared(&key, &value);
    values.into_iter().map(read).collect()
}

fn forgotten(at: Revision) -> Refused {
    let why = format!(
        "what was declared at revision {at} is no longer kept: the store remembers the last {FEED_COMMITS_MAX} revisions since it was last restored"
    );
    Refused::new(Code::NotFound, why)
}

/// The commits that the store keeps, in order.
struct Past {
    commits: Vec<Commit>,
    /// Whether that is all of them since the very first.
    whole: bool,
}

impl Past {
    async fn read(store: &dyn Store) -> Result<Self, Refused> {
        let head = store.head().await?.revision;
        let kept_from = head.number.saturating_sub(FEED_COMMITS_MAX);
        // The feed is trimmed now and then, so it may reach a little further back.
        for number in [0, kept_from.saturating_sub(256), kept_from] {
            let after = Revision { number, ..head };
            if let Some(commits) = read_after(store, after).await? {
                let first = commits.first().map(|commit| commit.revision);
                let whole = first.is_none_or(|first| first.incarnation == 1 && first.number == 1);
                return Ok(Self { commits, whole });
            }
        }
        Ok(Self { commits: Vec::new(), whole: false })
    }

    /// Whether the state at this revision can be told.
    fn reaches(&self, at: Revision) -> bool {
        self.whole || self.commits.first().is_some_and(|first| first.revision <= at)
    }
}

async fn read_after(store: &dyn Store, after: Revision) -> Result<Option<Vec<Commit>>, Refused> {
    let mut commits: Vec<Commit> = Vec::new();
    loop {
        let from = commits.last().map_or(after, |last| last.revision);
        match store.changes(from, PAGE_MAX).await? {
            Feed::SnapshotNeeded => return Ok(None),
            Feed::Changes(page) if page.is_empty() => return Ok(Some(commits)),
            Feed::Changes(page) => commits.extend(page),
        }
    }
}

/// Who made a revision, and when: the first of its events says.
pub(crate) async fn touched(store: &dyn Store, revision: Revision) -> Result<Touched, Refused> {
    let unknown = Touched { revision, at: None, actor: None };
    let (mut low, mut high) = (0, store.head().await?.log_size);
    while low < high {
        let middle = low + (high - low) / 2;
        match entry(store, middle).await? {
            Some(entry) if entry.revision < revision => low = middle + 1,
            Some(_) => high = middle,
            None => return Ok(unknown),
        }
    }
    Ok(match entry(store, low).await? {
        Some(entry) if entry.revision == revision => {
            Touched { revision, at: Some(entry.at), actor: Some(entry.actor) }
        }
        Some(_) | None => unknown,
    })
}

async fn entry(store: &dyn Store, index: u64) -> Result<Option<Entry>, Refused> {
    let events = store.events(index, 1).await?;
    Ok(events.first().and_then(|event| Entry::parse(&event.leaf).ok()))
}

/// Who changed each of these last, as far as the feed reaches.
pub(crate) async fn last_touched(
    store: &dyn Store,
    keys: &BTreeSet<Key>,
) -> Result<BTreeMap<Key, Touched>, Refused> {
    let past = Past::read(store).await?;
    let mut last: BTreeMap<Key, Revision> = BTreeMap::new();
    for commit in &past.commits {
        for key in commit.changes.iter().map(key).filter(|key| keys.contains(key)) {
            last.insert(key, commit.revision);
        }
    }
    let mut known: BTreeMap<Revision, Touched> = BTreeMap::new();
    for revision in last.values() {
        if !known.contains_key(revision) {
            known.insert(*revision, touched(store, *revision).await?);
        }
    }
    Ok(last.into_iter().filter_map(|(key, at)| Some((key, known.get(&at)?.clone()))).collect())
}

fn of(change: &Change) -> (Kind, &str) {
    match change {
        Change::Put(record) => (record.kind, &record.name),
        Change::Remove { kind, name } => (*kind, name),
    }
}

fn key(change: &Change) -> Key {
    let (kind, name) = of(change);
    Key::new(kind, name)
}

/// Whether manifests declare records of this kind.
pub(crate) fn is_declared(kind: Kind) -> bool {
    match kind {
        Kind::TrustDomain
        | Kind::Authority
        | Kind::Workload
        | Kind::Service
        | Kind::Policy
        | Kind::Role
        | Kind::TlsProfile => true,
        Kind::Bundle | Kind::Incarnation | Kind::Revocation | Kind::Suspension | Kind::Walk => {
            false
        }
    }
}
