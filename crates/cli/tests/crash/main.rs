//! Crash safety: real processes under load are killed, their disk fills up, their system calls fail, their clock steps, and
//! yesterday's backup is restored; after each, the whole is checked, by an outside program too.
//!
//! Each round has a seed, and a failure names it. The short run takes the first seeds from 1000 on that draw each kind of
//! fault twice; COUNTERSIGN_KINDS, with commas between, and COUNTERSIGN_TIMES choose others. `COUNTERSIGN_SEED` and
//! `COUNTERSIGN_ROUNDS` say with which seed to begin and how many to take; to the file COUNTERSIGN_PASSED each round that
//! passed is added, by which `cargo xtask crash` goes on where it was stopped.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod checks;
mod clocks;
mod faults;
#[path = "../support/load.rs"]
#[expect(dead_code, reason = "the load tests use the rest of it")]
mod load;
#[path = "../../../store/tests/support/postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use the rest of it")]
mod postgres;
mod recovery;
#[path = "../support/mod.rs"]
mod support;
mod witness;
mod world;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use faults::{CALLS, Dice, Fault, KINDS, StoreKind, seeds_of_each_kind};
use load::Load;
use recovery::{Promised, Settle};
use serde_json::Value;
use support::{binary, text, until};
use world::World;

/// How often each kind of fault comes in the short run, which takes about two minutes.
const TIMES: usize = 2;
/// With which seed it begins to choose.
const SEED: u64 = 1000;
/// A run of so many rounds has met something of everything, or its checks said nothing.
const TELLING: usize = TIMES * KINDS.len();
/// Requests a second while a round lasts.
const LOAD_PER_SECOND: u32 = 40;

/// An operator who goes on until told to stop.
struct Operator<'a> {
    data: &'a Path,
    folder: &'a Path,
    seed: u64,
}

impl Operator<'_> {
    /// Does it; says what was answered when it was done, also where the journal does not have it.
    fn run(&self, arguments: &[&str], told: &mut Promised) -> Option<Value> {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--data").arg(self.data).args(["--output", "json"]);
        let output = command.env("XDG_STATE_HOME", self.data.join("xdg")).output().unwrap();
        if text(&output.stderr).contains("the storage is not available") {
            told.refused = Some(Instant::now());
        }
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let lacks = answer["not_in_journal"].is_string();
        told.unjournaled += usize::from(lacks);
        assert!(!lacks || output.status.code() == Some(1), "{output:?}");
        (lacks || output.status.success()).then_some(answer)
    }

    fn apply(&self, name: &str, manifests: &str, told: &mut Promised) -> Option<Value> {
        let file = self.folder.join(format!("{name}-{}.yaml", self.seed));
        std::fs::write(&file, manifests).unwrap();
        self.run(&["apply", file.to_str().unwrap()], told)
    }

    /// Says what was acknowledged, and how many pairs were tried.
    fn work(&self, pairs: u64, stop: &AtomicBool) -> (Promised, u64) {
        let (mut told, mut pair, seed) = (Promised::default(), pairs, self.seed);
        for turn in 0.. {
            // An agent is told of suspensions only where it has what is suspended.
            let decoy = format!("decoy-{seed}");
            let declared =
                turn == 1 && self.apply("decoy", &workload(&decoy, ""), &mut told).is_some();
            let name = if declared { decoy } else { format!("nobody-{seed}-{turn}") };
            let target = format!("spiffe://shop.example/{name}");
            // The one takes out of service what was issued, the other also stops what would be.
            let suspends = turn % 2 == 1;
            let reason = if suspends { "process-compromise" } else { "key-compromise" };
            let order = ["revoke", &target, "--reason", reason];
            if let Some(answer) = self.run(&order, &mut told) {
                told.rules.insert(target.clone(), answer["revision"].to_string());
                told.decoys.extend(declared.then(|| target.clone()));
                told.suspended.extend(suspends.then_some(target));
            }
            let half = |half: &str| workload(&format!("pair-{pair}-{half}"), ", nodes: [nowhere]");
            let both = format!("{}---\n{}", half("one"), half("two"));
            pair += 1;
            // Whether it was done or not is not asked: what counts is that it is not half done.
            let _applied = self.apply("pair", &both, &mut told);
            if stop.load(Ordering::Relaxed) && 1 <= turn {
                break;
            }
        }
        (told, pair)
    }
}

/// Tells the operator to stop when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The manifest of a workload that no process is.
fn workload(name: &str, more: &str) -> String {
    format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\n\
         spec: {{selectors: [\"launch:{name}\"]{more}}}\n"
    )
}

/// One round: something befalls the trust domain under load, and then all must hold. Says what it was.
fn live_through(world: &mut World, seed: u64, say: impl FnOnce(&Fault)) -> String {
    let mut dice = Dice(seed);
    let fault = world.possible(Fault::draw(&mut dice, world.store_kind()));
    say(&fault);
    let load = Load::start(&world.up().address("web"), LOAD_PER_SECOND);
    until("the load is served", || (0 < load.answered.load(Ordering::Relaxed)).then_some(()));
    let stop = AtomicBool::new(false);
    let stopped = &stop;
    let (data, folder, pairs) = (world.data(), world.folder.path().to_owned(), world.pairs);
    let (told, pairs, calls) = std::thread::scope(|scope| {
        let operator = Operator { data: &data, folder: &folder, seed };
        let operator = scope.spawn(move || operator.work(pairs, stopped));
        std::thread::park_timeout(dice.millis(50, 400));
        // Also where it fails: the operator is waited for.
        let stopping = Stop(stopped);
        let calls = world.suffer(&fault, &mut dice);
        drop(stopping);
        let (told, pairs) = operator.join().unwrap();
        (told, pairs, calls)
    });
    world.check_readiness(told.refused);
    world.looked.unjournaled += told.unjournaled;
    world.promised.extend(told);
    world.pairs = pairs;
    let _served = load.stop();
    if let Fault::Restore(memory) = fault {
        world.restore(memory, &mut dice);
    } else {
        world.revive(&fault);
    }
    world.check();
    // What was suspended under a clock that was ahead does not come back after a restore: operators are told to have it in a backup.
    if dice.below(4) == 0 || matches!(fault, Fault::ClockAhead { .. }) {
        until("the state is backed up", || world.back_up());
    }
    let calls = calls.into_iter().map(str::to_owned);
    fault.kinds().into_iter().chain(calls).collect::<Vec<_>>().join("+")
}

fn number_of(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// A line for a round that passed, where it is kept.
fn passed_round(seed: u64, name: &str, lasted: Duration) {
    let Some(path) = std::env::var_os("COUNTERSIGN_PASSED") else { return };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{seed} {name} {:.1}", lasted.as_secs_f32()).unwrap();
}

/// Whether what befell it was everything, and whether every check had something to look at.
fn assert_telling(world: &World) {
    let looked = &world.looked;
    let unmet: Vec<_> = KINDS.iter().filter(|kind| !looked.met.contains_key(**kind)).collect();
    // A long run draws by chance; `cargo xtask crash` looks at all of its pieces together.
    let short = ["COUNTERSIGN_SEED", "COUNTERSIGN_KINDS"].map(std::env::var_os) == [None, None];
    assert!(!short || unmet.is_empty(), "never met: {unmet:?}");
    // Who chooses the kinds need not have chosen those.
    let chosen = std::env::var_os("COUNTERSIGN_KINDS").is_some();
    let some_failed = chosen || world.faults.suffered() != [0; CALLS.len()];
    assert!(0 < looked.rules && 0 < looked.pairs && some_failed, "{looked:?}");
    let met = |kind| looked.met.contains_key(kind);
    let from_agents = 0 < looked.handed_back && 0 < looked.suspended_again;
    let of_agents = met("restore-agents") || met("restore-live-agents");
    assert!(!of_agents || from_agents, "no agent handed anything back: {looked:?}");
    assert!(!of_agents || 0 < looked.thieves, "{looked:?}");
    assert!(!met("restore-journal") || 0 < looked.from_journal, "{looked:?}");
    let seen = world.witness.as_ref().unwrap().seen();
    let mut places: BTreeMap<_, usize> = BTreeMap::new();
    seen.certificates.values().for_each(|place| *places.entry(*place).or_default() += 1);
    println!("certificates seen: {places:?}, and {} serials", seen.serials.len());
    assert!(places.len() == 4 && !seen.serials.is_empty(), "not everybody was looked at");
}

/// Lives through the seeds that were asked for, or through those of a short run.
fn run(store: StoreKind, short: &[u64]) {
    // One world at a time: what is awaited in one would be late for the other's load.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let begin = Instant::now();
    let seeds = match std::env::var_os("COUNTERSIGN_SEED") {
        None => short.to_vec(),
        Some(_) => {
            let first = number_of("COUNTERSIGN_SEED", SEED);
            (first..first + number_of("COUNTERSIGN_ROUNDS", TELLING as u64)).collect()
        }
    };
    println!("{} rounds on {store:?}, from COUNTERSIGN_SEED={}", seeds.len(), seeds[0]);
    let mut world = World::begin(store);
    for (round, seed) in seeds.iter().enumerate() {
        let began = Instant::now();
        let name = live_through(&mut world, *seed, |fault| {
            let at = begin.elapsed().as_secs_f32();
            println!("{at:>7.1} s  round {round}, COUNTERSIGN_SEED={seed}: {fault:?}");
        });
        // The last one passes only when nothing is owed any more.
        if round + 1 == seeds.len() {
            world.settle(Settle::Now);
        }
        passed_round(*seed, &name, began.elapsed());
    }
    if TELLING <= seeds.len() {
        assert_telling(&world);
    }
    let calls = CALLS.iter().zip(world.faults.suffered());
    let calls: Vec<String> = calls.map(|(call, count)| format!("{call} {count}")).collect();
    println!(
        "{} rounds on {store:?} in {:.0} s, {}, incarnation {}, `up` started again {} times: {:?}",
        seeds.len(),
        begin.elapsed().as_secs_f32(),
        calls.join(", "),
        world.incarnation,
        world.restarts,
        world.looked
    );
}

/// The seeds of a short run, unless others were asked for.
fn short(store: StoreKind, kinds: &[&str], times: usize) -> Vec<u64> {
    let asked = std::env::var("COUNTERSIGN_KINDS").ok();
    let kinds: Vec<&str> =
        asked.as_deref().map_or(kinds.to_vec(), |text| text.split(',').collect());
    let times = number_of("COUNTERSIGN_TIMES", times as u64).try_into().unwrap();
    seeds_of_each_kind(store, SEED, &kinds, times)
}

#[test]
fn what_was_promised_holds_after_every_crash() {
    run(StoreKind::Sqlite, &short(StoreKind::Sqlite, &KINDS, TIMES));
}

#[test]
fn what_was_promised_holds_on_postgresql_too() {
    let kinds = ["kill-database", "kill-server", "kill-agent", "kill-proxy"];
    run(StoreKind::Postgres, &short(StoreKind::Postgres, &kinds, 1));
}
