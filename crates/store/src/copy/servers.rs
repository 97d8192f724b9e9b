//! Servers that work on a database, and whether there are any.
//!
//! A data directory is locked by the server that works on it. A database has many, and each renews a lease there. When a lease
//! ends is said by its server's clock, which may be wrong by any amount, so it is watched: whoever renews it is there,
//! whatever the clocks say, and whoever does not for as long as the lease is taken for is not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Place;
use crate::postgres::Presence;
use crate::{Result, StoreError};

/// What the names of those leases begin with; the server's name follows.
pub const PRESENCE: &str = "replica/";
/// For how long a server takes its lease. It renews it about every second.
pub const PRESENCE_TTL: Duration = Duration::from_secs(10);

/// How long a lease is watched at least: three times what passes between two renewals.
const WATCH_MIN: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Each server that has had a lease, and that lease as it was found last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen(BTreeMap<String, i64>);

/// A server's lease as a database has it.
#[derive(Clone, Debug)]
pub(crate) struct Present {
    pub(crate) server: String,
    /// In microseconds, by its server's clock.
    pub(crate) ends: i64,
    /// When it was read, by the database's clock.
    pub(crate) now: i64,
}

/// Watches a place until it is certain that no server works there, for [`PRESENCE_TTL`] at most.
///
/// # Errors
/// `Served` with those that do; when the database does not answer.
pub(super) async fn watch(place: &Place) -> Result<Seen> {
    let Place::Database(url, password) = place else { return Ok(Seen::default()) };
    let presence = Presence::open(url.clone(), password.clone()).await?;
    let (found, began) = (presence.all().await?, Instant::now());
    let seen = Seen::of(&found);
    let Some(watched) = found.iter().map(Present::watched).max() else { return Ok(seen) };
    while began.elapsed() < watched {
        tokio::time::sleep(LOOK_EVERY).await;
        // All who are there are named, so it is looked for so long as each of them takes to show it.
        if WATCH_MIN <= began.elapsed() {
            seen.check_same(&presence).await?;
        }
    }
    seen.check_same(&presence).await?;
    Ok(seen)
}

impl Seen {
    fn of(found: &[Present]) -> Self {
        Self(found.iter().map(|present| (present.server.clone(), present.ends)).collect())
    }

    /// Checks that none has begun to work at the place since it was watched.
    pub(super) async fn check_still(&self, place: &Place) -> Result<()> {
        let Place::Database(url, password) = place else { return Ok(()) };
        self.check_same(&Presence::open(url.clone(), password.clone()).await?).await
    }

    async fn check_same(&self, presence: &Presence) -> Result<()> {
        let renewed = |present: &Present| self.0.get(&present.server) != Some(&present.ends);
        let found = presence.all().await?.into_iter();
        let servers: Vec<_> = found.filter(renewed).map(|present| present.server).collect();
        if servers.is_empty() {
            return Ok(());
        }
        Err(StoreError::Served { path: presence.place(), servers })
    }
}

impl Present {
    /// How long it has to stay the same until its server is known to be gone. Its end only says that less will do.
    fn watched(&self) -> Duration {
        let left = u64::try_from(self.ends.saturating_sub(self.now)).unwrap_or_default();
        Duration::from_micros(left).clamp(WATCH_MIN, PRESENCE_TTL)
    }
}
