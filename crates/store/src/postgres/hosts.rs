//! Which of several hosts is the primary: all are asked at once, and compared before anything is written to one.
//!
//! More than one takes writes when a primary that was thought dead is back beside the standby that took its place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Revision, Sha256};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::Row;

use super::rows::{column, head, maybe_sha256, signed};
use super::schema::UNDEFINED_TABLE;
use super::session::{CONNECT_TIMEOUT, Fault, Session, Target, command, name};
use super::target::Host;
use super::text;
use crate::{Result, StoreError};

/// How long the other hosts are waited for once one has answered that has all that was seen. A machine that is gone says
/// nothing, and a server that waits longer for it would not be ready.
const COMPARE_TIMEOUT: Duration = Duration::from_millis(500);

/// There is no such function, the role may not call it, or it is not supported.
const UNTOLD: [&str; 3] = ["42883", "42501", "0A000"];

/// A primary, as PostgreSQL tells one from the next: each promotion of a standby begins a timeline with a greater number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Primary {
    /// Which family of primaries and standbys it is of.
    pub system: i64,
    /// The number of promotions, counted from one.
    pub timeline: u32,
}

impl Primary {
    /// Whether another was promoted after this one.
    pub(super) fn is_before(self, other: Self) -> bool {
        self.system == other.system && self.timeline < other.timeline
    }
}

/// How far a database was seen to be, by which it is told from an old primary that is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Its revision.
    pub revision: Revision,
    /// The size of its log.
    pub log_size: u64,
    /// A leaf of that log, its index and its hash.
    pub leaf: Option<(u64, Sha256)>,
    /// The primary that was used last.
    pub primary: Option<Primary>,
}

/// A running server; two hosts with the same are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) primary: Primary,
    /// In microseconds.
    started: i64,
}

/// What a host that takes writes says of itself.
#[derive(Clone, Debug)]
struct Standing {
    host: String,
    /// None where the database does not tell.
    server: Option<Server>,
    /// None where there is no store.
    state: Option<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    revision: Revision,
    log_size: u64,
    has: Has,
}

/// How a state stands to what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Has {
    /// It lacks something of it.
    Not,
    All,
    /// It is of a later incarnation.
    Later,
}

/// Connects to the primary.
///
/// # Errors
/// When no host takes writes, or it is not known which of them is the primary.
pub(super) async fn connect(
    target: &Target,
    reached: Option<&Reached>,
    notified: &Arc<Notify>,
) -> Result<Session> {
    let asked = target.url.hosts.iter().enumerate().map(|(place, host)| async move {
        let asking = ask(target, host, reached, Arc::clone(notified));
        (place, timeout(CONNECT_TIMEOUT, asking).await)
    });
    let mut asked: FuturesUnordered<_> = asked.collect();
    let (mut found, mut refused) = (BTreeMap::new(), BTreeMap::new());
    let (mut broken, mut until) = (None, None);
    loop {
        let next = match until {
            None => asked.next().await,
            Some(until) => timeout_at(until, asked.next()).await.unwrap_or(None),
        };
        let Some((place, answer)) = next else { break };
        match answer {
            Ok(Ok(one)) => _ = found.insert(place, one),
            Ok(Err(error @ StoreError::Exposed { .. })) => return Err(error),
            Ok(Err(error @ StoreError::Broken { .. })) => broken = Some(error),
            Ok(Err(StoreError::Unavailable { why })) => _ = refused.insert(place, why),
            Ok(Err(other)) => _ = refused.insert(place, other.to_string()),
            Err(_late) => {
                let host = target.url.hosts.get(place).map(name).unwrap_or_default();
                refused.insert(place, format!("{host} did not answer in {CONNECT_TIMEOUT:?}"));
            }
        }
        let usable = |standing: &Standing| standing.state.is_some_and(|it| it.has != Has::Not);
        if until.is_none() && choose(reached, &standings(&found)).is_ok_and(usable) {
            until = Some(Instant::now() + COMPARE_TIMEOUT);
        }
    }
    if found.is_empty() {
        let why = refused.into_values().collect::<Vec<_>>().join("; ");
        let why = format!(
            "{why}; check that the database runs there, and that its URL names the right host, port and user"
        );
        return Err(broken.unwrap_or(StoreError::Unavailable { why }));
    }
    let chosen = choose(reached, &standings(&found)).map(|one| one.host.clone());
    let chosen = chosen.map_err(|why| {
        let all: Vec<String> = std::iter::once(why).chain(refused.into_values()).collect();
        StoreError::Unavailable { why: all.join("; ") }
    })?;
    let mut sessions = found.into_values().filter(|(_, standing)| standing.host == chosen);
    Ok(sessions.next().expect("the chosen is one of them").0)
}

fn standings(found: &BTreeMap<usize, (Session, Standing)>) -> Vec<&Standing> {
    found.values().map(|(_, standing)| standing).collect()
}

async fn ask(
    target: &Target,
    host: &Host,
    reached: Option<&Reached>,
    notified: Arc<Notify>,
) -> Result<(Session, Standing)> {
    let mut session = Session::connect_to(target, host, notified).await?;
    session.server = match session.rows_of(text::SERVER, &[]).await {
        Ok(rows) => rows.first().map(server).transpose()?,
        // Not every database that speaks the protocol has timelines. What failed for another reason says nothing about that.
        Err(Fault::Refused { code, .. }) if UNTOLD.contains(&code.as_str()) => None,
        Err(fault) => return Err(fault.error()),
    };
    let leaf = reached.and_then(|reached| reached.leaf);
    let index = signed(leaf.map_or(0, |(index, _)| index))?;
    let state = match session.rows(&command!(text::TIP_AND_LEAF, index)).await {
        Ok(rows) => rows.first().map(|row| state(row, reached)).transpose()?,
        Err(Fault::Refused { code, .. }) if code == UNDEFINED_TABLE => None,
        Err(fault) => return Err(fault.error()),
    };
    let standing = Standing { host: name(host), server: session.server, state };
    Ok((session, standing))
}

fn server(row: &Row) -> Result<Server> {
    let timeline = u32::try_from(column::<i64>(row, 1)?).unwrap_or(u32::MAX);
    let primary = Primary { system: column(row, 0)?, timeline };
    Ok(Server { primary, started: column(row, 2)? })
}

fn state(row: &Row, reached: Option<&Reached>) -> Result<State> {
    let head = head(row)?;
    let (revision, log_size) = (head.revision, head.log_size);
    let leaf = maybe_sha256(row, 6)?;
    let has = match reached {
        None => Has::All,
        Some(then) if then.revision.incarnation < revision.incarnation => Has::Later,
        Some(then) if revision < then.revision || log_size < then.log_size => Has::Not,
        Some(then) if then.leaf.is_some_and(|(_, hash)| leaf != Some(hash)) => Has::Not,
        Some(_) => Has::All,
    };
    Ok(State { revision, log_size, has })
}

/// Of the hosts that take writes, the one that was promoted last. None where that is not known, or where an operator has
/// to say what may be lost: to be away for a while is better than to go on with an old primary.
fn choose<'a>(
    reached: Option<&Reached>,
    found: &[&'a Standing],
) -> std::result::Result<&'a Standing, String> {
    // 1. Where nothing is, nothing can be lost.
    let a_store = found.iter().any(|one| one.state.is_some());
    let mut hosts: Vec<&Standing> = Vec::new();
    for one in found.iter().filter(|one| one.state.is_some() == a_store) {
        // 2. Two names of one server are no two.
        if one.server.is_none() || hosts.iter().all(|other| other.server != one.server) {
            hosts.push(one);
        }
    }
    // 3. Who was followed by another, and who was not.
    let primary = |one: &Standing| one.server.map(|server| server.primary);
    let mut known: Vec<Primary> = hosts.iter().filter_map(|one| primary(one)).collect();
    known.extend(reached.and_then(|reached| reached.primary));
    let is_old = |one: &Standing| {
        primary(one).is_some_and(|its| known.iter().any(|other| its.is_before(*other)))
    };
    let (old, new): (Vec<&Standing>, Vec<&Standing>) =
        hosts.iter().copied().partition(|one| is_old(one));
    match new[..] {
        [] => Err(format!(
            "{} takes writes, but another server was promoted since: it is an old primary, and nothing is written to it",
            names(&old)
        )),
        [one] if is_unknown(reached, one) => Err(format!(
            "{} lacks what was seen, and does not show that it is of the primaries that were used: it may be an old one, and nothing is written to it",
            one.host
        )),
        [one] => match old.iter().copied().find(|old| has_more(old, one)) {
            None => Ok(one),
            Some(old) => Err(format!(
                "{} was promoted last, but {}, which takes writes too, has what it lacks: stop the one that is not to be used",
                one.host, old.host
            )),
        },
        _ if new.iter().all(|one| one.server.is_none()) => match furthest(&new) {
            one if is_unknown(reached, one) => Err(format!(
                "{} take writes, lack what was seen, and do not say which of them was promoted last",
                names(&new)
            )),
            one => Ok(one),
        },
        _ => Err(format!(
            "{} take writes, and it is not known which of them was promoted last: stop all but one",
            names(&new)
        )),
    }
}

/// Whether a host lacks something that was seen at another of which it does not show that it came before: one of another family, or
/// one that does not tell. To go on with it may be to go back.
fn is_unknown(reached: Option<&Reached>, one: &Standing) -> bool {
    let last = reached.and_then(|reached| reached.primary);
    let of_it = |last: Primary| one.server.is_some_and(|it| it.primary.system == last.system);
    last.is_some_and(|last| !of_it(last)) && one.state.is_some_and(|state| state.has == Has::Not)
}

/// Whether an old primary has something that was seen, or an incarnation, which the new one lacks.
fn has_more(old: &Standing, new: &Standing) -> bool {
    let (Some(old), Some(new)) = (old.state, new.state) else { return false };
    (new.has == Has::Not && old.has != Has::Not)
        || new.revision.incarnation < old.revision.incarnation
}

/// The first of those that are furthest, where the database does not tell who was promoted.
fn furthest<'a>(hosts: &[&'a Standing]) -> &'a Standing {
    let far = |one: &Standing| {
        one.state.map(|state| (state.has != Has::Not, state.revision, state.log_size))
    };
    let first = hosts.iter().copied().rev().max_by_key(|one| far(one));
    first.expect("there are several")
}

fn names(hosts: &[&Standing]) -> String {
    let all: Vec<&str> = hosts.iter().map(|one| one.host.as_str()).collect();
    all.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAS: Reached = Reached {
        revision: Revision { incarnation: 1, number: 5 },
        log_size: 9,
        leaf: None,
        primary: Some(Primary { system: 7, timeline: 1 }),
    };

    fn on(timeline: u32) -> Option<Server> {
        let primary = Primary { system: 7, timeline };
        Some(Server { primary, started: i64::from(timeline) })
    }

    fn host(name: &str, server: Option<Server>, incarnation: u64, number: u64) -> Standing {
        let revision = Revision { incarnation, number };
        let has = match (incarnation, number) {
            (2.., _) => Has::Later,
            (_, 5..) => Has::All,
            _ => Has::Not,
        };
        let state = Some(State { revision, log_size: 9, has });
        Standing { host: name.to_owned(), server, state }
    }

    /// In whichever order they are named.
    #[track_caller]
    fn chosen(reached: Option<&Reached>, found: &[Standing], name: &str) {
        let mut found: Vec<&Standing> = found.iter().collect();
        for _order in 0..2 {
            assert_eq!(choose(reached, &found).map(|one| one.host.as_str()), Ok(name));
            found.reverse();
        }
    }

    #[track_caller]
    fn none(reached: Option<&Reached>, found: &[Standing], why: &str) {
        let mut found: Vec<&Standing> = found.iter().collect();
        for _order in 0..2 {
            let said = choose(reached, &found).map(|one| &one.host).unwrap_err();
            assert!(said.contains(why), "{said}");
            found.reverse();
        }
    }

    #[test]
    fn the_host_that_was_promoted_last_is_used_however_far_another_has_come() {
        for numbers in [(5, 5), (6, 5), (5, 6)] {
            let both = [host("a", on(1), 1, numbers.0), host("b", on(2), 1, numbers.1)];
            chosen(Some(&WAS), &both, "b");
            chosen(None, &both, "b");
        }
        // It has begun an incarnation since; or it lacks the tail, and so does the other.
        chosen(Some(&WAS), &[host("a", on(1), 1, 9), host("b", on(2), 2, 1)], "b");
        chosen(Some(&WAS), &[host("a", on(1), 1, 3), host("b", on(2), 1, 4)], "b");
        // An operator's to go on with: it alone is there.
        chosen(Some(&WAS), &[host("b", on(2), 1, 4)], "b");
        chosen(Some(&WAS), &[host("a", on(1), 1, 4)], "a");
    }

    #[test]
    fn an_old_primary_is_not_used_even_when_it_alone_is_there() {
        let was = Reached { primary: on(2).map(|server| server.primary), ..WAS };
        for number in [3, 5, 7] {
            none(Some(&was), &[host("a", on(1), 1, number)], "a takes writes, but another");
        }
    }

    #[test]
    fn a_host_of_which_nothing_is_known_is_used_only_with_all_that_was_seen() {
        // A cluster that was moved, or one from before the move; one whose role may not ask.
        let other = Server { primary: Primary { system: 8, timeline: 1 }, started: 1 };
        for server in [Some(other), None] {
            chosen(Some(&WAS), &[host("a", server, 1, 5)], "a");
            none(Some(&WAS), &[host("a", server, 1, 4)], "a lacks what was seen");
            chosen(Some(&Reached { primary: None, ..WAS }), &[host("a", server, 1, 4)], "a");
        }
        let both = [host("a", None, 1, 4), host("b", None, 1, 3)];
        none(Some(&WAS), &both, "lack what was seen");
    }

    #[test]
    fn none_is_used_when_each_has_something_that_the_other_lacks() {
        let lacks = [host("a", on(1), 1, 5), host("b", on(2), 1, 4)];
        none(Some(&WAS), &lacks, "b was promoted last, but a, which");
        none(None, &[host("a", on(1), 3, 1), host("b", on(2), 1, 5)], "b was promoted last, but a");
    }

    #[test]
    fn none_is_used_when_two_claim_to_be_the_last() {
        let twin = on(1).map(|server| Server { started: 99, ..server });
        let other = Server { primary: Primary { system: 8, timeline: 1 }, started: 1 };
        for second in [twin, Some(other), None] {
            let both = [host("a", on(1), 1, 5), host("b", second, 1, 5)];
            none(Some(&WAS), &both, "not known which");
        }
        // The same server by two names.
        let both = [host("a", on(1), 1, 5), host("a", on(1), 1, 5)];
        chosen(Some(&WAS), &both, "a");
    }

    #[test]
    fn where_a_database_does_not_tell_the_furthest_is_used_that_has_what_was_seen() {
        chosen(Some(&WAS), &[host("a", None, 1, 5), host("b", None, 1, 6)], "b");
        chosen(Some(&WAS), &[host("a", None, 1, 4), host("b", None, 2, 1)], "b");
        let found = [host("a", None, 1, 5), host("b", None, 1, 5)];
        let first = choose(Some(&WAS), &found.iter().collect::<Vec<_>>());
        assert_eq!(first.map(|one| one.host.as_str()), Ok("a"));
    }

    #[test]
    fn a_host_without_a_store_is_none_beside_one_that_has_it() {
        let empty = Standing { state: None, ..host("b", on(2), 1, 5) };
        // Promoted before there was anything.
        let twin = Standing { state: None, ..host("c", on(1), 1, 5) };
        chosen(None, &[host("a", on(1), 1, 5), empty.clone()], "a");
        chosen(None, std::slice::from_ref(&empty), "b");
        chosen(None, &[empty, twin], "b");
    }
}
