//! A primary and a standby under two servers, and callers that go on while the primary is lost.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;

use crate::ending::Ending;
use crate::postgres::{Cluster, Listen};
use crate::servers::{Domain, Part, run};
use crate::support::{text, until};

/// A trust domain in a database with a standby, and both of their places in the URL of its servers.
pub(crate) struct Pair {
    pub(crate) domain: Domain,
    pub(crate) standby: Cluster,
    pub(crate) database: String,
}

impl Pair {
    /// Transactions are isolated like this. The servers are told that the database must take writes.
    pub(crate) fn make(isolation: &str) -> Self {
        Self::found_by(isolation, "&target_session_attrs=read-write")
    }

    /// The same, with these parameters behind the places in the URL.
    pub(crate) fn found_by(isolation: &str, parameters: &str) -> Self {
        let primary = Cluster::start(Listen::Nowhere, &[]);
        let database = primary.database(isolation);
        let standby = Cluster::standby_of(&primary, "spare");
        let (one, two) = (primary.folder().display(), standby.folder().display());
        let url = format!("postgres://cs@/{database}?host={one},{two}{parameters}");
        Self { domain: Domain::make_in(primary, url), standby, database }
    }

    /// Has every commit wait for the standby.
    pub(crate) fn synchronous(&self) {
        let primary = &self.domain.cluster;
        primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'spare'");
        primary.sql("postgres", "SELECT pg_reload_conf()");
        until("the standby is synchronous", || {
            let state = primary.sql("postgres", "SELECT sync_state FROM pg_stat_replication");
            (state == "sync").then_some(())
        });
    }

    /// Lets no more of the primary's writes reach the standby. Whatever was written before this is called is there.
    pub(crate) fn cut_off(&self) {
        let written = self.domain.cluster.sql("postgres", "SELECT pg_current_wal_lsn()");
        let has = format!("SELECT '{written}' <= pg_last_wal_replay_lsn()");
        until("the standby has what is known", || {
            (self.standby.sql("postgres", &has) == "t").then_some(())
        });
        self.standby.sql("postgres", "ALTER SYSTEM SET primary_conninfo = 'host=/nowhere'");
        self.standby.sql("postgres", "SELECT pg_reload_conf()");
        until("the standby is cut off", || {
            let of = "SELECT count(*) FROM pg_stat_replication";
            (self.domain.cluster.sql("postgres", of) == "0").then_some(())
        });
    }

    pub(crate) fn promote(&self) {
        // Without waiting: what it is like in between is looked at, too.
        self.standby.sql("postgres", "SELECT pg_promote(false)");
    }

    /// What the standby answers.
    pub(crate) fn sql(&self, text: &str) -> String {
        self.standby.sql(&self.database, text)
    }

    pub(crate) fn count(&self, text: &str) -> usize {
        self.sql(text).parse().unwrap()
    }

    pub(crate) fn names(&self, kind: &str) -> BTreeSet<String> {
        let sql = format!("SELECT name FROM records WHERE kind = '{kind}'");
        self.sql(&sql).lines().map(str::to_owned).collect()
    }

    pub(crate) fn verify(&self) {
        let output = run(&["store", "verify", &self.domain.url, "--output", "json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}

/// The second half of a revision's text, which is `INCARNATION.NUMBER`.
pub(crate) fn number(revision: &Value) -> u64 {
    revision.as_str().unwrap().split_once('.').unwrap().1.parse().unwrap()
}

/// Waits until both are ready, or none.
pub(crate) fn ready(servers: [&Part; 2], is: bool) {
    until(if is { "both are ready" } else { "none is ready" }, || {
        let all = servers.map(|server| server.readiness().0 == "200");
        (all == [is; 2]).then_some(())
    });
}

/// What one caller was told is done, in the order in which it was told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) applied: Vec<(String, Value)>,
    pub(crate) revoked: Vec<(String, Value)>,
}

/// Callers that declare and revoke, each through its server, until it is over.
#[derive(Default)]
pub(crate) struct Traffic {
    acknowledged: AtomicUsize,
    refused: [AtomicUsize; 2],
    over: AtomicBool,
}

impl Traffic {
    /// One of the two callers, with manifests that somebody writes; whatever does not come to be known is gone on from.
    pub(crate) fn call(
        &self,
        which: usize,
        server: &Part,
        declare: impl Fn(&str) -> String,
    ) -> Told {
        let mut told = Told::default();
        for turn in 0.. {
            if self.is_over() {
                break;
            }
            let name = format!("{}{turn}", ["a", "b"][which]);
            let manifest = declare(&name);
            let id = format!("spiffe://prod.example/{name}");
            let applying = ["apply", &manifest];
            let revoking = ["revoke", &id, "--reason", "key-compromise"];
            for (arguments, done) in
                [(&applying[..], &mut told.applied), (&revoking[..], &mut told.revoked)]
            {
                let more = ["--admin", server.admin(), "--output", "json"];
                let output = run(&[arguments, &more].concat());
                if !output.status.success() {
                    self.refused[which].fetch_add(1, Ordering::Relaxed);
                    break;
                }
                let said: Value = serde_json::from_slice(&output.stdout).unwrap();
                done.push((name.clone(), said["revision"].clone()));
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        }
        told
    }

    /// Waits until so many more were acknowledged.
    pub(crate) fn flows(&self, more: usize) {
        let enough = self.acknowledged() + more;
        until("writing goes on", || (enough <= self.acknowledged()).then_some(()));
    }

    /// Waits until both callers were told that it cannot be done.
    pub(crate) fn halts(&self) {
        until("each is told that the database is away", || {
            self.refused.iter().all(|count| 0 < count.load(Ordering::Relaxed)).then_some(())
        });
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// How often somebody asked for something, whatever came of it.
    pub(crate) fn asked(&self) -> usize {
        let refused = self.refused.iter().map(|count| count.load(Ordering::Relaxed));
        self.acknowledged() + refused.sum::<usize>()
    }

    /// Dropped, it is over.
    pub(crate) const fn ending(&self) -> Ending<'_> {
        Ending(&self.over)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}
