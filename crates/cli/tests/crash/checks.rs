//! What must hold after every fault, in our own words and in those of an outside program.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::faults::StoreKind;
use crate::recovery::Settle;
use crate::support::{self, text, until};
use crate::world::World;

impl World {
    pub(crate) fn status(&self) -> Option<Value> {
        let output = self.up().run(&["status", "--output", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["source"] == "server").then_some(status)
    }

    /// What `/ready` answers.
    fn is_ready(&self) -> Option<bool> {
        let admin = self.up().ready["admin"].as_str().unwrap();
        let asked = Command::new("curl")
            .args(["-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}"])
            .args(["--unix-socket", admin.trim_start_matches("unix://"), "http://server/ready"])
            .output()
            .unwrap();
        match text(&asked.stdout).as_str() {
            "200" => Some(true),
            "503" => Some(false),
            _ => None,
        }
    }

    /// Whoever was refused by the storage a moment ago finds that the server says so of itself.
    pub(crate) fn check_readiness(&mut self, refused: Option<Instant>) {
        // A shared store is asked once a second, and may be back before that.
        let Some(refused) = refused.filter(|_| self.store_kind() == StoreKind::Sqlite) else {
            return;
        };
        // The server tries again a few times, a second between each, before it takes that back.
        if refused.elapsed() < Duration::from_secs(1)
            && let Some(ready) = self.is_ready()
            && refused.elapsed() < Duration::from_secs(3)
        {
            assert!(
                !ready,
                "the storage refused an operator, and the server says that it is ready"
            );
            self.looked.not_ready += 1;
        }
    }

    /// All that must hold once the fault is over.
    pub(crate) fn check(&mut self) {
        let up = self.up();
        until("requests go through", || {
            assert!(!self.up_has_ended(), "`up` has ended by itself");
            let answer = support::get(&up.address("web"), "/");
            answer.is_ok_and(|(status, _)| status == 200).then_some(())
        });
        let status = until("the agent serves what the server says, and holds all of it", || {
            let status = self.status()?;
            let node = status["nodes"].as_array()?.iter().find(|node| node["connected"] == true)?;
            let held = node["credentials"].as_array()?.len();
            (node["revision"] == status["revision"] && 4 <= held).then_some(status)
        });
        until("the server is ready, and its journal holds every rule", || {
            let warnings = self.status()?["warnings"].to_string();
            (self.is_ready()? && !warnings.contains("the journal does not hold")).then_some(())
        });
        until("the identity of this process is served", || {
            up.run(&["fetch", "x509"]).status.success().then_some(())
        });
        // 1. Revisions only go on.
        let revision = numbers(&status["revision"]);
        assert!(self.revision <= revision, "{:?} after {revision:?}", self.revision);
        self.revision = revision;
        self.incarnation = revision.0;
        // 2. The store agrees with itself, in our own words and in those of an outsider, and has recorded what is held.
        let server = self.data().join("server").to_str().unwrap().to_owned();
        let store = self.database.as_ref().map_or(server, |_| self.state());
        let verified = self.run(&["store", "verify", &store, "--output", "json"]);
        assert!(verified.status.success(), "{}", text(&verified.stderr));
        let log = &status["server"]["log"];
        let checked = self.examine(&log["size"].to_string());
        assert_eq!(checked["rootAt"], log["root"], "the root of {} leaves", log["size"]);
        // 3. No rule that was acknowledged is missing, and nobody is let back in.
        self.check_promises();
        // 4. No change is half there.
        let resources = self.up().json(&["resource", "list"]).to_string();
        for pair in 0..self.pairs {
            let has = |half: &str| resources.contains(&format!("\"pair-{pair}-{half}\""));
            assert_eq!(has("one"), has("two"), "pair {pair} is half there");
            self.looked.pairs += u64::from(has("one"));
        }
        assert!(!self.up_has_ended(), "`up` has ended by itself");
        // 5. What is in no log any more ends.
        self.settle(Settle::WhenDue);
    }

    pub(crate) fn check_promises(&mut self) {
        let begin = Instant::now();
        loop {
            let told = self.up().json(&["revocations"]);
            let of = |list: &str, id: fn(&Value) -> &Value| -> BTreeSet<String> {
                let all = told[list].as_array().unwrap().iter();
                all.filter_map(|one| id(&one["target"]["identity"]).as_str())
                    .map(str::to_owned)
                    .collect()
            };
            let (rules, suspended) =
                (of("rules", |target| &target["id"]), of("suspensions", |id| id));
            let promised = &self.promised;
            let missing = promised.rules.iter().filter(|(target, _)| !rules.contains(*target));
            let missing: Vec<_> = missing.collect();
            let resumed: Vec<_> = promised.suspended.difference(&suspended).collect();
            if missing.is_empty() && resumed.is_empty() {
                break;
            }
            // What an agent hands back takes a moment.
            let late = Duration::from_secs(30) < begin.elapsed();
            assert!(!late, "rules are missing: {missing:?}; suspensions: {resumed:?}");
            std::thread::park_timeout(Duration::from_millis(50));
        }
        self.looked.rules += self.promised.rules.len();
    }
}

fn numbers(revision: &Value) -> (u64, u64) {
    let (incarnation, number) = revision.as_str().unwrap().split_once('.').unwrap();
    (incarnation.parse().unwrap(), number.parse().unwrap())
}
