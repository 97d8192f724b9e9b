//! The kill rounds in their long form: a range of seeds, in pieces, each in a trust domain of its own. What passed is kept,
//! so that it can be stopped at any moment and goes on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::shell::{cargo, output, root, step};
use crate::test::python;

/// Which rounds.
#[derive(Args)]
pub(crate) struct Rounds {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// The last seed
    #[arg(long, default_value_t = 1000)]
    to: u64,
    /// How many rounds one trust domain lives through
    #[arg(long, default_value_t = 50)]
    piece: u64,
    /// With the state in a PostgreSQL, which is killed too
    #[arg(long)]
    postgres: bool,
    /// The compiled test program [default: what `cargo test` makes]
    #[arg(long)]
    program: Option<PathBuf>,
}

/// What can befall a trust domain in a round, and its system calls; `crates/cli/tests/crash/faults.rs` has the same names.
const KINDS: [&str; 19] = [
    "kill-server",
    "kill-agent",
    "kill-proxy",
    "kill-all",
    "full",
    "failing",
    "slow",
    "restore-agents",
    "restore-journal",
    "clock-forward",
    "clock-back",
    "clock-server",
    "clock-server-kill-agent",
    "clock-server-ahead",
    "clock-machine-ahead",
    "write-failed",
    "sync-failed",
    "rename-failed",
    "late",
];
/// Where the state is in a file.
const LIVE: &str = "restore-live-agents";
/// In so many rounds drawn by chance each kind comes all but certainly.
const TELLING: u64 = 500;

/// One round that passed.
struct Passed {
    seed: u64,
    /// What befell, with `+` between.
    faults: String,
    secs: f64,
}

impl Passed {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (seed, faults, secs) = (words.next()?, words.next()?, words.next()?);
        Some(Self { seed: seed.parse().ok()?, faults: faults.to_owned(), secs: secs.parse().ok()? })
    }
}

fn read(path: &Path) -> Vec<Passed> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(Passed::read).collect()
}

/// The next piece of those that are to be run: it begins with the first of them and has no gap.
fn next_piece(wanted: RangeInclusive<u64>, done: &BTreeSet<u64>, most: u64) -> Option<(u64, u64)> {
    let mut rest = wanted.filter(|seed| !done.contains(seed));
    let first = rest.next()?;
    let more = rest.zip(first + 1..).take_while(|(seed, expected)| seed == expected);
    let count = 1 + more.take(usize::try_from(most.max(1) - 1).ok()?).count() as u64;
    Some((first, count))
}

/// Where the rounds of this very state of the sources are kept: what passed before a change says nothing after it.
fn kept(postgres: bool) -> Result<PathBuf> {
    let commit = output(cargo_less("git").args(["rev-parse", "--short", "HEAD"]))?;
    let folder = root().join("target/crash");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let store = if postgres { "-postgres" } else { "" };
    Ok(folder.join(format!("{}{store}", commit.trim())))
}

fn cargo_less(program: &str) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.current_dir(root());
    command
}

/// Runs what has not passed yet, goes on after a failure, and says at the end what came of all.
///
/// # Errors
/// When a round failed, with its seed.
pub(crate) fn run(rounds: &Rounds) -> Result<()> {
    let Rounds { from, to, piece, postgres, .. } = *rounds;
    ensure!(from <= to, "`--from {from}` is after `--to {to}`");
    let path = kept(postgres)?;
    if std::env::var_os("COUNTERSIGN_BIN").is_none() {
        step("release build", &mut cargo(&["build", "--release", "--bin", "countersign"]))?;
    }
    if std::env::var_os("COUNTERSIGN_PYTHON").is_none() {
        python()?;
    }
    let begin = Instant::now();
    let mut failed = BTreeSet::new();
    loop {
        let passed: BTreeSet<u64> = read(&path).iter().map(|round| round.seed).collect();
        let done: BTreeSet<u64> = passed.union(&failed).copied().collect();
        let Some((seed, count)) = next_piece(from..=to, &done, piece) else { break };
        let title = format!(
            "{} of {} rounds done, {} failed; {count} from seed {seed}",
            done.range(from..=to).count(),
            to - from + 1,
            failed.len()
        );
        if step(&title, &mut rounds_of(rounds, (seed, count), &path)).is_err() {
            let passed: BTreeSet<u64> = read(&path).iter().map(|round| round.seed).collect();
            let culprit = (seed..seed + count).find(|seed| !passed.contains(seed));
            failed.insert(culprit.context("all rounds of the piece passed, and its end failed")?);
        }
    }
    let passed = read(&path);
    println!("{}", summary(&passed, from..=to, &failed));
    println!("({:.0} s of them now; {} has each)", begin.elapsed().as_secs_f64(), path.display());
    ensure!(failed.is_empty(), "rounds failed: COUNTERSIGN_SEED={failed:?}");
    let unmet = unmet(&passed, from..=to, postgres);
    ensure!(to - from < TELLING || unmet.is_empty(), "no round met {}", unmet.join(", "));
    Ok(())
}

fn rounds_of(rounds: &Rounds, (seed, count): (u64, u64), passed: &Path) -> std::process::Command {
    let mut command = match &rounds.program {
        None => {
            let mut test = cargo(&["test", "--workspace", "--test", "crash"]);
            test.arg("--");
            test
        }
        Some(program) => std::process::Command::new(program),
    };
    let store = if rounds.postgres { "on_postgresql_too" } else { "after_every_crash" };
    command.args(["--nocapture", store]);
    command.env("COUNTERSIGN_SEED", seed.to_string()).env("COUNTERSIGN_ROUNDS", count.to_string());
    command.env("COUNTERSIGN_PASSED", passed);
    for (name, path) in [
        ("COUNTERSIGN_BIN", "target/release/countersign"),
        ("COUNTERSIGN_PYTHON", "target/venv/bin/python"),
    ] {
        if std::env::var_os(name).is_none() {
            command.env(name, root().join(path));
        }
    }
    command
}

/// What never befell in the rounds of a range that passed.
fn unmet(passed: &[Passed], wanted: RangeInclusive<u64>, postgres: bool) -> Vec<&'static str> {
    let rounds = passed.iter().filter(|round| wanted.contains(&round.seed));
    let met: BTreeSet<&str> = rounds.flat_map(|round| round.faults.split('+')).collect();
    let kinds = KINDS.into_iter().chain([if postgres { "kill-database" } else { LIVE }]);
    kinds.filter(|kind| !met.contains(kind)).collect()
}

/// One line of all that is known of a range.
fn summary(passed: &[Passed], wanted: RangeInclusive<u64>, failed: &BTreeSet<u64>) -> String {
    // One that was run twice counts once.
    let rounds: BTreeMap<u64, &Passed> = passed
        .iter()
        .filter(|round| wanted.contains(&round.seed))
        .map(|round| (round.seed, round))
        .collect();
    let secs: f64 = rounds.values().map(|round| round.secs).sum();
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    for round in rounds.values() {
        for fault in round.faults.split('+') {
            *faults.entry(fault).or_default() += 1;
        }
    }
    let faults: Vec<String> =
        faults.iter().map(|(fault, count)| format!("{fault} {count}")).collect();
    format!(
        "seeds {} to {}: {} rounds passed, {} failed, {secs:.0} s; {}",
        wanted.start(),
        wanted.end(),
        rounds.len(),
        failed.len(),
        faults.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_no_gap_and_nothing_is_run_twice() {
        let done = |seeds: &[u64]| seeds.iter().copied().collect::<BTreeSet<u64>>();
        let next = |seeds: &[u64], most| next_piece(1..=10, &done(seeds), most);
        assert_eq!(next(&[], 4), Some((1, 4)));
        assert_eq!(next(&[1, 2, 3, 4], 4), Some((5, 4)));
        assert_eq!(next(&[1, 2, 5], 4), Some((3, 2)), "it ends before one that is done");
        assert_eq!(next(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 4), Some((10, 1)));
        assert_eq!(next(&(1..=10).collect::<Vec<_>>(), 4), None);
        assert_eq!(next(&[], 0), Some((1, 1)));
    }

    #[test]
    fn the_summary_counts_each_round_once() {
        let lines = "1 kill-agent+kill-proxy 2.5\n2 full 4.0\n2 full 5.0\nhalf a\n99 slow 1.0\n";
        let passed: Vec<Passed> = lines.lines().filter_map(Passed::read).collect();
        let told = summary(&passed, 1..=3, &BTreeSet::from([3]));
        assert_eq!(
            told,
            "seeds 1 to 3: 2 rounds passed, 1 failed, 8 s; full 1, kill-agent 1, kill-proxy 1"
        );
        let missed = unmet(&passed, 1..=3, false);
        assert!(missed.contains(&"slow") && !missed.contains(&"kill-proxy"), "{missed:?}");
    }
}
