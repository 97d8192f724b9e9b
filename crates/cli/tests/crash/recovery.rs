//! Yesterday's backup, what must come back after it, and what must be of no use any more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use countersign_identity::Timestamp;
use serde_json::Value;

use crate::faults::{Dice, Memory};
use crate::support::{self, python, root, text, until};
use crate::witness::{self, Place, Seen, Shown};
use crate::world::{Database, World};

/// What operators were told is done. None of it is moot while this runs.
#[derive(Default)]
pub(crate) struct Promised {
    /// Whose rule was acknowledged at which revision.
    pub(crate) rules: BTreeMap<String, String>,
    /// Who was suspended with it.
    pub(crate) suspended: BTreeSet<String>,
    /// Those of them that the latest backup lacks and the agent is told of.
    pub(crate) decoys: BTreeSet<String>,
    /// How many of them were said to be in force and not in the journal.
    pub(crate) unjournaled: usize,
    /// When the storage refused an operator last.
    pub(crate) refused: Option<Instant>,
    /// Those that the latest backup lacks.
    newer: BTreeSet<String>,
}

/// Whom an agent remembers rules and suspensions of, as its disk has them.
#[derive(Debug, Default)]
struct Kept {
    rules: BTreeSet<String>,
    suspended: BTreeSet<String>,
}

/// What was issued and is in no log any more, since a backup took the place of the state.
#[derive(Default)]
pub(crate) struct Lost {
    /// Digests, and in which incarnation they were recorded.
    digests: BTreeMap<String, u64>,
    serials: BTreeMap<String, u64>,
    /// A certificate of the last life that is good for ten minutes. `None` once it was seen to be of no use.
    thief: Option<Shown>,
    thefts: u64,
}

/// What an outside program says of a state.
struct Examined {
    told: Value,
    /// In which incarnation each certificate is recorded.
    of: BTreeMap<Vec<u8>, Option<u64>>,
}

/// How long one that is to be covered is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settle {
    /// Only when its time has come.
    WhenDue,
    Now,
}

/// How late the rule about earlier incarnations may be.
const COVER_LATE: Duration = Duration::from_secs(5);
/// How a door tells that what was shown is revoked.
const REVOKED: &str = "CertificateRevoked";

impl Promised {
    pub(crate) fn extend(&mut self, told: Self) {
        self.newer.extend(told.rules.keys().cloned());
        self.rules.extend(told.rules);
        self.suspended.extend(told.suspended);
        self.decoys.extend(told.decoys);
    }

    /// What a live agent or the journal holds must come back; of the rest nobody can tell.
    fn lose_what_nobody_has(&mut self, kept: &Kept) {
        let newer = &self.newer;
        self.rules.retain(|of, _| !newer.contains(of) || kept.rules.contains(of));
        self.suspended.retain(|of| !newer.contains(of) || kept.suspended.contains(of));
        self.newer.retain(|of| self.rules.contains_key(of));
    }
}

impl Kept {
    fn read(agent: &Path) -> Self {
        let text = std::fs::read(agent.join("revocations.json")).unwrap_or_default();
        let file: Value = serde_json::from_slice(&text).unwrap_or_default();
        let rules = file["rules"].as_object().into_iter().flatten();
        let rules = rules.filter_map(|(_, rule)| whose(&rule["target"]["identity"]["id"]));
        let signed = file["signed"].as_array().into_iter().flatten();
        let suspended =
            signed.filter(|record| record["kind"] == "Suspension").filter_map(|record| {
                let value: Value = serde_json::from_str(record["value"].as_str()?).ok()?;
                whose(&value["target"]["identity"])
            });
        Self { rules: rules.collect(), suspended: suspended.collect() }
    }
}

fn whose(id: &Value) -> Option<String> {
    id.as_str().map(str::to_owned)
}

impl World {
    pub(crate) fn back_up(&mut self) -> Option<()> {
        let server = self.data().join("server");
        let file = self.folder.path().join(format!("backup-{}", self.backups + 1));
        let made =
            self.run(&["backup", file.to_str().unwrap(), "--data", server.to_str().unwrap()]);
        if !made.status.success() {
            return None;
        }
        if 0 < self.backups {
            std::fs::remove_file(self.folder.path().join(format!("backup-{}", self.backups)))
                .unwrap();
        }
        self.backups += 1;
        self.promised.newer.clear();
        self.promised.decoys.clear();
        Some(())
    }

    /// A certificate with its key, good for longer than anything else, of which the backup knows nothing.
    fn steal(&mut self) -> Shown {
        self.lost.thefts += 1;
        let name = format!("thief-{}", self.lost.thefts);
        let manifest = self.folder.path().join("thief.yaml");
        let text = support::manifest_of_me("10m").replace("name: me", &format!("name: {name}"));
        std::fs::write(&manifest, text).unwrap();
        self.up().json(&["apply", manifest.to_str().unwrap()]);
        let (folder, id) =
            (self.folder.path().join(&name), format!("spiffe://shop.example/{name}"));
        until("the identity that is to be stolen is served", || {
            let write = ["fetch", "x509", "--id", &id, "--write", folder.to_str().unwrap()];
            self.up().run(&write).status.success().then_some(())
        });
        Shown { chain: folder.join("svid.pem"), key: folder.join("svid-key.pem") }
    }

    /// Puts yesterday's backup in the place of the state.
    pub(crate) fn restore(&mut self, memory: Memory, dice: &mut Dice) {
        let journal = memory == Memory::Journal;
        let thief = self.steal();
        let agent = self.data().join("agent");
        if dice.below(4) != 0 {
            until("the agent keeps all that is newer than the backup", || {
                let kept = Kept::read(&agent);
                let Promised { newer, decoys, .. } = &self.promised;
                let all = newer.is_subset(&kept.rules) && decoys.is_subset(&kept.suspended);
                all.then_some(())
            });
        }
        if memory == Memory::LiveAgents {
            self.stop_server();
        } else {
            drop(self.up.take());
        }
        self.promised.decoys.clear();
        self.lose(thief);
        let Promised { newer, suspended, .. } = &self.promised;
        let lacked = newer.len() + newer.intersection(suspended).count();
        if journal {
            // What it alone remembers is what it is for.
            std::fs::remove_file(agent.join("revocations.json")).unwrap();
        } else {
            self.promised.lose_what_nobody_has(&Kept::read(&agent));
            let Promised { newer, suspended, .. } = &self.promised;
            self.looked.handed_back += newer.len();
            self.looked.suspended_again += newer.intersection(suspended).count();
        }
        let (server, kek) = (self.data().join("server"), self.folder.path().join("kek"));
        if !kek.exists() {
            std::fs::copy(server.join("kek"), &kek).unwrap();
        }
        let lost = self.data().join("lost");
        std::fs::rename(&server, &lost).unwrap();
        let file = self.folder.path().join(format!("backup-{}", self.backups));
        let (file, server, kek) =
            (file.to_str().unwrap(), server.to_str().unwrap(), kek.to_str().unwrap());
        self.database.iter_mut().for_each(Database::begin_anew);
        let fixed = ["restore", file, "--data", server, "--kek", kek];
        let more = ["--hold-off", "1s", "--output", "json"];
        let folder = self.journal();
        let from = ["--journal", folder.to_str().unwrap()];
        let from = if journal { &from[..] } else { &[] };
        let arguments = [&fixed[..], &more[..], from].concat();
        // By a clock that is behind, suspensions would be lost.
        let refused = self.run_behind(&arguments);
        let why = text(&refused.stderr);
        assert!(!refused.status.success() && why.contains("set the clock right"), "{why}");
        assert!(!Path::new(server).exists(), "{why}");
        // What was written under a clock that was ahead is of a time to come.
        let right = ["--clock-is-right"];
        let word = if self.was_ahead { &right[..] } else { &[] };
        let restored = self.run(&[&arguments[..], word].concat());
        assert!(restored.status.success(), "{}", text(&restored.stderr));
        let told: Value = serde_json::from_slice(&restored.stdout).unwrap();
        assert!(told["lostFrom"].is_string() && told["lostUntil"].is_string(), "{told}");
        if journal {
            let from_journal = told["fromJournal"].as_u64().unwrap();
            assert!(lacked as u64 <= from_journal, "the backup lacked {lacked}: {told}");
            assert_eq!(told["refusedLines"], 0, "{told}");
            self.looked.from_journal += lacked;
        }
        std::fs::remove_dir_all(lost).unwrap();
        if memory == Memory::LiveAgents {
            self.go_on();
        } else {
            self.start();
        }
    }

    /// Looks at a state for the last time: what it has recorded is excused from then on, and nothing else.
    fn lose(&mut self, thief: Shown) {
        let checked = self.examine("0");
        let all = |field: &str| {
            let of = |(name, of): (&String, &Value)| (name.clone(), of.as_u64().unwrap());
            checked[field].as_object().unwrap().iter().map(of).collect::<Vec<_>>()
        };
        self.lost.digests.extend(all("digests"));
        self.lost.serials.extend(all("serials"));
        self.lost.thief = Some(thief);
    }

    /// What an outside program says of a state. Every certificate that anybody ever held must be recorded in it, or must
    /// have been, in an earlier incarnation, before that log was lost. Nothing of this is tried twice.
    pub(crate) fn examine(&self, log_size: &str) -> Value {
        // Before the state is read: what is held was recorded.
        let seen = self.witness.as_ref().unwrap().seen();
        let Examined { told, .. } = self.examine_for(log_size, &seen.certificates);
        for serial in &seen.serials {
            let recorded = told["serials"].get(serial).is_some();
            let recorded = recorded || self.excused(&told, &self.lost.serials, serial);
            assert!(recorded, "an agent holds {serial}, which is not in the log");
        }
        told
    }

    /// Whether it was recorded in an earlier incarnation, in a log that is lost.
    fn excused(&self, told: &Value, lost: &BTreeMap<String, u64>, name: &str) -> bool {
        lost.get(name).is_some_and(|of| *of < told["incarnation"].as_u64().unwrap())
    }

    fn examine_for(&self, log_size: &str, seen: &BTreeMap<Vec<u8>, Place>) -> Examined {
        let list = self.folder.path().join("held.txt");
        let hex = |der: &Vec<u8>| der.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let lines: Vec<String> = seen.keys().map(hex).collect();
        std::fs::write(&list, lines.join("\n")).unwrap();
        let output = Command::new(python())
            .arg(root().join("crates/cli/tests/support/check_state.py"))
            .arg(self.state())
            .arg(log_size)
            .arg(&list)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["problems"], serde_json::json!([]));
        let held = told["held"].as_array().unwrap();
        assert_eq!(held.len(), seen.len());
        let mut of = BTreeMap::new();
        for ((leaf, place), one) in seen.iter().zip(held) {
            let digest = one["tbs"].as_str().unwrap();
            let excused = self.excused(&told, &self.lost.digests, digest);
            let recorded = one["of"].is_u64() || excused;
            assert!(recorded, "seen at {place:?} and not in the log: {digest}");
            of.insert(leaf.clone(), one["of"].as_u64());
        }
        Examined { told, of }
    }

    /// What the state has recorded: digests.
    pub(crate) fn recorded(&self) -> BTreeSet<String> {
        let checked = self.examine("0");
        checked["digests"].as_object().unwrap().keys().cloned().collect()
    }

    /// One lifetime after a restore a rule covers what the lost log held; from then on nobody shows it, and no door takes it.
    pub(crate) fn settle(&mut self, settle: Settle) {
        let Some(thief) = self.lost.thief.clone() else { return };
        let life = |world: &Self| Some(world.status()?["incarnation"].clone());
        let now = until("the server tells of its incarnation", || life(self));
        let covered_at: Timestamp = now["coveredAt"].as_str().unwrap().parse().unwrap();
        let due = covered_at + COVER_LATE < self.now();
        if settle == Settle::WhenDue && now["covered"] == false && !due {
            let answers = self.answers(&thief);
            let still = life(self).is_some_and(|life| life["covered"] == false);
            // Whatever else they say: the rule is not there yet.
            let revoked = answers.iter().any(|end| end.contains(REVOKED));
            assert!(!still || !revoked, "{answers:?}");
            return;
        }
        until("what is of an earlier incarnation is covered", || {
            (life(self)?["covered"] == true).then_some(())
        });
        let rules = self.up().json(&["revocations"]);
        let before = |rule: &Value| rule["target"]["earlier"]["before"].clone();
        let before: Vec<Value> = rules["rules"].as_array().unwrap().iter().map(before).collect();
        // It covers every earlier incarnation, and so all that is excused.
        let expected = Value::from(format!("{}.0", self.incarnation));
        assert!(before.contains(&expected), "no rule before {expected}: {before:?}");
        until("every door refuses what is covered", || {
            self.answers(&thief).iter().all(|end| end.contains(REVOKED)).then_some(())
        });
        let witness = self.witness.as_ref().unwrap();
        let sighted = until("everybody shows what it has", || witness.sight());
        let Seen { certificates, .. } = witness.seen();
        let held = self.examine_for("0", &certificates);
        for (leaf, of) in sighted.iter().map(|leaf| (leaf, held.of[leaf])) {
            let place = certificates[leaf];
            assert_eq!(of, Some(self.incarnation), "shown at {place:?} after it was covered");
        }
        self.looked.thieves += 1;
        self.lost.thief = None;
    }

    /// How the doors of the proxies answer one who shows this.
    fn answers(&self, thief: &Shown) -> Vec<String> {
        let doors = ["orders", "payments"].map(|service| self.up().address(service));
        let answer =
            |door: &String| until("the door answers", || witness::answer(door, thief).ok()).end;
        doors.iter().map(answer).collect()
    }
}
