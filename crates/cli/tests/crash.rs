//! Crash safety: real processes under load are killed, their disk fills up, their system calls fail, their clock steps, and
//! yesterday's backup is restored; after each, the whole is checked, by an outside program too.
//!
//! Each run is made of seeded rounds, and a failure names its seed. `COUNTERSIGN_ROUNDS` says how many rounds there are,
//! `COUNTERSIGN_SEED` with which seed they begin.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/load.rs"]
#[expect(dead_code, reason = "the load tests use the rest of it")]
mod load;
mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use load::Load;
use serde_json::Value;
use support::{Up, binary, folder, python, root, signal, text, until};

/// Rounds of the short run: every kind of fault, in about a minute.
const ROUNDS: u64 = 27;
/// With which seed it begins.
const SEED: u64 = 1000;
/// Requests a second while a round lasts.
const LOAD_PER_SECOND: u32 = 40;

/// The chance of one run (SplitMix64), so that its seed tells it whole.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// What is done to the trust domain in one round.
#[derive(Debug)]
enum Fault {
    /// These processes are cut off, one after the other.
    Kill(Vec<&'static str>),
    /// All of it is cut off at once, as by a power failure of the processes.
    KillAll,
    /// The disk is full for a while.
    Full(Duration),
    /// Of a thousand system calls so many fail, for a while.
    Failing { writes: u32, syncs: u32, renames: u32, lasts: Duration },
    /// Each system call is late, for a while.
    Slow { each: Duration, lasts: Duration },
    /// Yesterday's backup takes the place of the state, with the journal of rules or without.
    Restore { journal: bool },
    /// The clock of every process steps by so many seconds, for good.
    Clock(i64),
}

impl Fault {
    fn draw(dice: &mut Dice) -> Self {
        let part = |dice: &mut Dice| *dice.one_of(&["server", "agent", "proxy"]);
        match dice.below(12) {
            0..=3 => Self::Kill((0..=dice.below(2)).map(|_| part(dice)).collect()),
            4 => Self::KillAll,
            5 => Self::Full(dice.millis(300, 1500)),
            6 | 7 => {
                let mut some = || u32::try_from(dice.below(400)).unwrap();
                let (writes, syncs, renames) = (some(), some(), some());
                Self::Failing { writes, syncs, renames, lasts: dice.millis(300, 1500) }
            }
            8 => Self::Slow { each: dice.millis(2, 60), lasts: dice.millis(500, 1500) },
            9 | 10 => Self::Restore { journal: dice.below(2) == 0 },
            _ => Self::Clock(*dice.one_of(&[5, 40, -10, 20])),
        }
    }
}

/// The page by which `faults.c` is told what fails.
struct Faults {
    file: std::fs::File,
    page: PathBuf,
    library: PathBuf,
}

impl Faults {
    fn new(folder: &Path) -> Self {
        let (page, library) = (folder.join("faults"), folder.join("faults.so"));
        let source = root().join("crates/cli/tests/support/faults.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", text(&compiled.stderr));
        let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&page).unwrap();
        file.set_len(4096).unwrap();
        Self { file, page, library }
    }

    fn set(&self, numbers: [u32; 7]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        // The rest before the word that makes it hold.
        self.file.write_all_at(&bytes[4..], 4).unwrap();
        self.file.write_all_at(&bytes[..4], 0).unwrap();
    }

    fn lift(&self) {
        self.set([0; 7]);
    }
}

/// A file system in memory, small enough to be filled.
struct Disk(PathBuf);

impl Disk {
    /// Makes one at this place, if this user may.
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir(at).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=96m,mode=700", "tmpfs"]).arg(at);
        command.output().is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }

    /// Leaves no room on it for a while.
    fn fill_for(&self, lasts: Duration) {
        use std::io::Write as _;
        let path = self.0.join("filler");
        let mut filler = std::fs::File::create(&path).unwrap();
        let begin = Instant::now();
        let block = vec![0xa5; 1 << 20];
        let mut size = block.len();
        // What is freed meanwhile is taken, too.
        while begin.elapsed() < lasts {
            if filler.write_all(&block[..size]).is_err() {
                size = (size / 2).max(1);
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
        std::fs::remove_file(path).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It ends with whoever still has a file on it.
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// A trust domain, what was done to it, and what must therefore hold.
struct World {
    up: Option<Up>,
    manifests: PathBuf,
    faults: Faults,
    clock: PathBuf,
    ahead: i64,
    furthest: i64,
    /// A small disk of the trust domain's own, where this user may make one.
    disk: Option<Disk>,
    faketime: Option<String>,
    /// Rules that were acknowledged, and are not moot while this runs: target and revision.
    rules: BTreeMap<String, String>,
    /// Pairs of workloads of which both were put in one change.
    pairs: u64,
    backups: u64,
    incarnation: u64,
    revision: (u64, u64),
    restarts: u64,
    // Last: it goes away after all that lies in it.
    folder: tempfile::TempDir,
}

impl World {
    fn begin() -> Self {
        let folder = folder();
        let manifests = support::shop_with_lifetimes(folder.path(), "30s", "5m");
        let faults = Faults::new(folder.path());
        let clock = folder.path().join("clock");
        let faketime = std::fs::read_dir("/usr/lib").unwrap().find_map(|entry| {
            let path = entry.unwrap().path().join("faketime/libfaketimeMT.so.1");
            path.exists().then(|| path.to_str().unwrap().to_owned())
        });
        let mut world = Self {
            folder,
            manifests,
            faults,
            clock,
            ahead: 0,
            furthest: 0,
            disk: None,
            faketime,
            up: None,
            rules: BTreeMap::new(),
            pairs: 0,
            backups: 0,
            incarnation: 0,
            revision: (0, 0),
            restarts: 0,
        };
        world.set_clock(0);
        world.disk = Disk::mount(&world.data());
        std::fs::create_dir(world.journal()).unwrap();
        world.start();
        world.up().make_me("30s");
        until("the state is backed up", || world.back_up());
        world
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    fn up(&self) -> &Up {
        self.up.as_ref().unwrap()
    }

    fn set_clock(&mut self, step: i64) {
        self.ahead += step;
        self.furthest = self.furthest.max(self.ahead);
        let new = self.clock.with_extension("new");
        std::fs::write(&new, format!("{:+}\n", self.ahead)).unwrap();
        std::fs::rename(new, &self.clock).unwrap();
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let mut preload = self.faults.library.to_str().unwrap().to_owned();
        if let Some(faketime) = &self.faketime {
            preload = format!("{faketime}:{preload}");
        }
        vec![
            ("LD_PRELOAD", preload),
            ("FAULTS_PAGE", self.faults.page.to_str().unwrap().to_owned()),
            ("FAULTS_PATH", self.data().to_str().unwrap().to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.clock.to_str().unwrap().to_owned()),
            ("COUNTERSIGN_JOURNAL", self.journal().to_str().unwrap().to_owned()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    fn start(&mut self) {
        let environment = self.environment();
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.up = Some(Up::start_in(&self.manifests, &self.data(), &[], &environment));
    }

    /// A command of an operator, by the clock of the trust domain.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(arguments).env("XDG_STATE_HOME", self.data().join("xdg"));
        command
            .envs(self.environment().into_iter().filter(|(name, _)| !name.starts_with("FAULTS")));
        command.output().unwrap()
    }

    fn back_up(&mut self) -> Option<()> {
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
        Some(())
    }

    /// The processes of a kind that `up` has started.
    fn processes(&self, kind: &str) -> Vec<i32> {
        let parent = self.up().pid().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name();
            let Ok(pid) = name.to_string_lossy().parse::<i32>() else { continue };
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let after = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let mut words = command.split(|byte| *byte == 0);
            if after.split(' ').nth(1) == Some(parent.as_str())
                && words.nth(1) == Some(kind.as_bytes())
            {
                found.push(pid);
            }
        }
        found.sort_unstable();
        found
    }

    fn kill(&self, kind: &str, dice: &mut Dice) {
        let pids = self.processes(kind);
        if pids.is_empty() {
            return;
        }
        let pid = pids[usize::try_from(dice.below(pids.len() as u64)).unwrap()];
        // It may have ended by itself in this moment.
        let _sent = Command::new("kill").args(["-KILL", &pid.to_string()]).output();
    }

    /// Does it, while operators go on working.
    fn suffer(&mut self, fault: &Fault, dice: &mut Dice) {
        let seed = u32::try_from(dice.below(1 << 31)).unwrap();
        let wait = |duration: Duration| std::thread::park_timeout(duration);
        match fault {
            Fault::Kill(parts) => {
                for part in parts {
                    wait(dice.millis(0, 300));
                    self.kill(part, dice);
                }
            }
            Fault::KillAll => {
                wait(dice.millis(0, 500));
                signal(self.up().pid(), "KILL");
            }
            Fault::Full(lasts) => match &self.disk {
                Some(disk) => disk.fill_for(*lasts),
                None => {
                    self.faults.set([1, 1000, 0, 0, 28, 0, seed]);
                    wait(*lasts);
                }
            },
            Fault::Failing { writes, syncs, renames, lasts } => {
                self.faults.set([1, *writes, *syncs, *renames, 5, 0, seed]);
                wait(*lasts);
            }
            Fault::Slow { each, lasts } => {
                let micros = u32::try_from(each.as_micros()).unwrap();
                self.faults.set([1, 0, 0, 0, 5, micros, seed]);
                wait(*lasts);
            }
            Fault::Restore { .. } => {}
            Fault::Clock(step) => {
                // No further back than what counts as skew: beyond that nothing is issued until the time has come.
                let too_far = self.ahead + step < self.furthest - 12;
                self.set_clock(if too_far { 20 } else { *step });
                wait(Duration::from_millis(300));
            }
        }
        self.faults.lift();
    }

    /// Puts yesterday's backup in the place of the state.
    fn restore(&mut self, journal: bool) {
        drop(self.up.take());
        // What a live agent or the journal holds must come back; of the rest nobody can tell.
        let held = std::fs::read_to_string(self.data().join("agent/revocations.json"));
        let held = held.unwrap_or_default();
        self.rules.retain(|target, _| journal || held.contains(&format!("{target}\\\"")));
        let server = self.data().join("server");
        let kek = self.folder.path().join("kek");
        if !kek.exists() {
            std::fs::copy(server.join("kek"), &kek).unwrap();
        }
        let lost = self.data().join("lost");
        std::fs::rename(&server, &lost).unwrap();
        let file = self.folder.path().join(format!("backup-{}", self.backups));
        let (file, server, kek) =
            (file.to_str().unwrap(), server.to_str().unwrap(), kek.to_str().unwrap());
        let fixed = ["restore", file, "--data", server, "--kek", kek];
        let more = ["--hold-off", "1s", "--output", "json"];
        let folder = self.journal();
        let from = ["--journal", folder.to_str().unwrap()];
        let from = if journal { &from[..] } else { &[] };
        let restored = self.run(&[&fixed[..], &more[..], from].concat());
        assert!(restored.status.success(), "{}", text(&restored.stderr));
        let told: Value = serde_json::from_slice(&restored.stdout).unwrap();
        assert!(told["lostFrom"].is_string() && told["lostUntil"].is_string(), "{told}");
        std::fs::remove_dir_all(lost).unwrap();
        self.start();
    }

    /// `up` may have been cut off, or have given up: whoever supervises it starts it again.
    fn revive(&mut self) {
        let pid = self.up().pid();
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let dead = state.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'));
        if dead {
            self.restarts += 1;
            drop(self.up.take());
            self.start();
        }
    }

    fn status(&self) -> Option<Value> {
        let output = self.up().run(&["status", "--output", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["source"] == "server").then_some(status)
    }

    /// All that must hold once the fault is over.
    fn check(&mut self) {
        let up = self.up();
        until("requests go through", || {
            let answer = support::get(&up.address("web"), "/");
            answer.is_ok_and(|(status, _)| status == 200).then_some(())
        });
        let status = until("the agent serves what the server says, and holds all of it", || {
            let status = self.status()?;
            let node = status["nodes"].as_array()?.iter().find(|node| node["connected"] == true)?;
            let held = node["credentials"].as_array()?.len();
            (node["revision"] == status["revision"] && 4 <= held).then_some(status)
        });
        // 1. Revisions only go on.
        let revision = numbers(&status["revision"]);
        assert!(self.revision <= revision, "{:?} after {revision:?}", self.revision);
        self.revision = revision;
        self.incarnation = revision.0;
        // 2. The store agrees with itself, in our own words and in those of an outsider.
        let server = self.data().join("server");
        let verified = self.run(&["store", "verify", server.to_str().unwrap(), "--output", "json"]);
        assert!(verified.status.success(), "{}", text(&verified.stderr));
        self.check_from_outside(&status);
        // 3. No rule that was acknowledged is missing.
        let up = self.up();
        let mut missing = Vec::new();
        let begin = Instant::now();
        // What an agent hands back takes a moment.
        while begin.elapsed() < Duration::from_secs(10) {
            let targets = up.json(&["revocations"])["rules"].to_string();
            let absent = |target: &&String| !targets.contains(&format!("{target}\""));
            missing = self.rules.keys().filter(absent).cloned().collect();
            if missing.is_empty() {
                break;
            }
        }
        let of = |target: &String| format!("{target} of revision {}", self.rules[target]);
        let missing: Vec<String> = missing.iter().map(of).collect();
        assert!(missing.is_empty(), "rules are missing: {missing:?}");
        // 4. No change is half there.
        let resources = up.json(&["resource", "list"]).to_string();
        for pair in 0..self.pairs {
            let has = |half: &str| resources.contains(&format!("\"pair-{pair}-{half}\""));
            assert_eq!(has("one"), has("two"), "pair {pair} is half there");
        }
    }

    fn check_from_outside(&self, status: &Value) {
        let out = self.folder.path().join("held");
        until("the identity of this process is served", || {
            let write = ["fetch", "x509", "--write", out.to_str().unwrap()];
            self.up().run(&write).status.success().then_some(())
        });
        let der = self.folder.path().join("held.der");
        let converted = Command::new("openssl")
            .args(["x509", "-outform", "DER", "-in"])
            .arg(out.join("svid.pem"))
            .arg("-out")
            .arg(&der)
            .output()
            .unwrap();
        assert!(converted.status.success(), "{}", text(&converted.stderr));
        let log = &status["server"]["log"];
        let checked = until("all that is held is in the log", || {
            let output = Command::new(python())
                .arg(root().join("crates/cli/tests/support/check_state.py"))
                .arg(self.data().join("server/state.db"))
                .arg(log["size"].to_string())
                .arg(&der)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", text(&output.stderr));
            let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(checked["problems"], serde_json::json!([]), "{checked}");
            let now = self.status()?;
            let held = now["nodes"][0]["credentials"].as_array()?.clone();
            // What is of an earlier incarnation is issued anew before the rule that ends it.
            let began = now["incarnation"]["beganAt"].as_str().unwrap_or("").to_owned();
            let missing = |credential: &&Value| {
                checked["serials"].get(credential["serial"].as_str().unwrap()).is_none()
                    && began.as_str() <= credential["issuedAt"].as_str().unwrap()
            };
            held.iter().find(missing).is_none().then_some(checked)
        });
        assert_eq!(checked["rootAt"], log["root"], "the root of {} leaves", log["size"]);
        assert!(!checked["certificates"][der.to_str().unwrap()].is_null(), "{checked}");
    }
}

fn numbers(revision: &Value) -> (u64, u64) {
    let (incarnation, number) = revision.as_str().unwrap().split_once('.').unwrap();
    (incarnation.parse().unwrap(), number.parse().unwrap())
}

/// Goes on administering until told to stop. Says which rules were acknowledged, and how many pairs were tried.
fn operate(
    data: &Path,
    folder: &Path,
    round: u64,
    pairs: u64,
    stop: &AtomicBool,
) -> (BTreeMap<String, String>, u64) {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--data").arg(data).args(["--output", "json"]);
        command.env("XDG_STATE_HOME", data.join("xdg")).output().unwrap()
    };
    let (mut rules, mut pair) = (BTreeMap::new(), pairs);
    for turn in 0.. {
        let target = format!("spiffe://shop.example/nobody-{round}-{turn}");
        let revoked = run(&["revoke", "--identity", &target, "--reason", "key-compromise"]);
        if revoked.status.success() {
            let answer: Value = serde_json::from_slice(&revoked.stdout).unwrap_or_default();
            rules.insert(target, answer["revision"].to_string());
        }
        let file = folder.join(format!("pair-{round}.yaml"));
        let half = |half: &str| {
            format!(
                "apiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {{name: pair-{pair}-{half}}}\n\
                 spec: {{selectors: [\"launch:pair\"], nodes: [nowhere]}}\n"
            )
        };
        std::fs::write(&file, format!("{}---\n{}", half("one"), half("two"))).unwrap();
        pair += 1;
        // Whether it was done or not is not asked: what counts is that it is not half done.
        let _applied = run(&["apply", file.to_str().unwrap()]);
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    (rules, pair)
}

fn number_of(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn what_was_promised_holds_after_every_crash() {
    let rounds = number_of("COUNTERSIGN_ROUNDS", ROUNDS);
    let begin = Instant::now();
    let seed = number_of("COUNTERSIGN_SEED", SEED);
    println!("{rounds} rounds, COUNTERSIGN_SEED={seed}");
    let mut world = World::begin();
    let mut passed: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..rounds {
        let mut dice = Dice(seed.wrapping_add(round));
        let fault = Fault::draw(&mut dice);
        println!(
            "{:>7.1} s  round {round}, seed {}: {fault:?}",
            begin.elapsed().as_secs_f32(),
            seed + round
        );
        let load = Load::start(&world.up().address("web"), LOAD_PER_SECOND);
        let stop = AtomicBool::new(false);
        let (data, folder, pairs) = (world.data(), world.folder.path().to_owned(), world.pairs);
        let (rules, pairs) = std::thread::scope(|scope| {
            let operator = scope.spawn(|| operate(&data, &folder, round, pairs, &stop));
            std::thread::park_timeout(dice.millis(50, 400));
            world.suffer(&fault, &mut dice);
            stop.store(true, Ordering::Relaxed);
            operator.join().unwrap()
        });
        world.rules.extend(rules);
        world.pairs = pairs;
        let outcome = load.stop();
        if let Fault::Restore { journal } = fault {
            world.restore(journal);
        } else {
            world.revive();
        }
        world.check();
        assert!(0 < outcome.answered, "the load was served before: {:?}", outcome.failures);
        if dice.below(4) == 0 {
            until("the state is backed up", || world.back_up());
        }
        let name = format!("{fault:?}");
        *passed.entry(name.split([' ', '(']).next().unwrap().to_owned()).or_default() += 1;
    }
    println!(
        "{rounds} rounds in {:.0} s, incarnation {}, `up` started again {} times: {passed:?}",
        begin.elapsed().as_secs_f32(),
        world.incarnation,
        world.restarts
    );
}
