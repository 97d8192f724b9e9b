//! Crash safety: real processes under load are killed, their disk fills up, their system calls fail, their clock steps, and
//! yesterday's backup is restored; after each, the whole is checked, by an outside program too.
//!
//! Each run is made of seeded rounds, and a failure names its seed. `COUNTERSIGN_ROUNDS` says how many rounds there are,
//! `COUNTERSIGN_SEED` with which seed they begin, and to the file COUNTERSIGN_PASSED each round that passed is added, by
//! which `cargo xtask crash` goes on where it was stopped.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod checks;
mod faults;
#[path = "../support/load.rs"]
#[expect(dead_code, reason = "the load tests use the rest of it")]
mod load;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use faults::{Dice, Fault};
use load::Load;
use serde_json::Value;
use support::{binary, until};
use world::{Looked, World};

/// Rounds of the short run: every kind of fault, in about a minute.
const ROUNDS: u64 = 27;
/// With which seed it begins.
const SEED: u64 = 1000;
/// Requests a second while a round lasts.
const LOAD_PER_SECOND: u32 = 40;

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
        let revoked = run(&["revoke", &target, "--reason", "key-compromise"]);
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

/// A line for a round that passed, where it is kept.
fn passed_round(seed: u64, name: &str, lasted: Duration) {
    let Some(path) = std::env::var_os("COUNTERSIGN_PASSED") else { return };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{seed} {name} {:.1}", lasted.as_secs_f32()).unwrap();
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
        let began = Instant::now();
        let load = Load::start(&world.up().address("web"), LOAD_PER_SECOND);
        until("the load is served", || (0 < load.answered.load(Ordering::Relaxed)).then_some(()));
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
        let _served = load.stop();
        if let Fault::Restore { journal } = fault {
            world.restore(journal);
        } else {
            world.revive();
        }
        world.check();
        if dice.below(4) == 0 {
            until("the state is backed up", || world.back_up());
        }
        let name = format!("{fault:?}");
        let name = name.split([' ', '(']).next().unwrap();
        // A run of some length has met everything, or its checks said nothing.
        let Looked { killed, rules, pairs } = world.looked;
        let met = 0 < killed && 0 < world.faults.suffered() && 0 < rules && 0 < pairs;
        assert!(met || round + 1 < ROUNDS, "{:?}", world.looked);
        passed_round(seed + round, name, began.elapsed());
        *passed.entry(name.to_owned()).or_default() += 1;
    }
    let Looked { killed, rules, pairs } = world.looked;
    let suffered = world.faults.suffered();
    println!(
        "{rounds} rounds in {:.0} s, {killed} processes killed, {suffered} system calls failed or late, {rules} rules and \
         {pairs} pairs found, incarnation {}, `up` started again {} times: {passed:?}",
        begin.elapsed().as_secs_f32(),
        world.incarnation,
        world.restarts
    );
}
