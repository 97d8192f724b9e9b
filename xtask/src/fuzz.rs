//! Coverage-guided fuzzing on the stable compiler: libFuzzer with the compiler's own coverage pass.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::shell::{cargo, root, step};

/// What `cargo fuzz --sanitizer none` passes, spelled out so that nothing has to be installed.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// With a target named, build scripts are not instrumented.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What became of one target.
struct Outcome {
    target: String,
    figures: Figures,
    failed: bool,
}

/// What libFuzzer tells of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    executed: u64,
    /// Places of the program that were reached.
    covered: u64,
    rss_mib: u64,
}

impl Figures {
    /// Takes what a line tells, if it tells something.
    fn hear(&mut self, line: &str) {
        let after = |what: &str| {
            let rest = line.split_once(what)?.1.trim_start();
            rest.split(' ').next()?.parse::<u64>().ok()
        };
        if let Some(covered) = after(" cov: ") {
            self.covered = self.covered.max(covered);
        }
        if let Some(executed) = after("stat::number_of_executed_units:") {
            self.executed = executed;
        }
        if let Some(rss) = after("stat::peak_rss_mb:") {
            self.rss_mib = rss;
        }
    }
}

pub(crate) fn run(seconds: u32, only: Option<&str>) -> Result<()> {
    let folder = root().join("fuzz");
    let targets = targets(&folder)?;
    if let Some(only) = only {
        let known = targets.join(", ");
        ensure!(targets.iter().any(|target| target == only), "`{only}` is none of {known}");
    }
    let mut build = cargo(&["build", "--release", "--locked", "--target", TARGET]);
    if let Some(only) = only {
        build.args(["--bin", only]);
    }
    build.current_dir(&folder).env("RUSTFLAGS", FLAGS);
    step("fuzz targets", &mut build)?;
    let mut outcomes = Vec::new();
    // All of them, so that one run names every failure.
    for target in targets.into_iter().filter(|target| only.is_none_or(|only| only == target)) {
        outcomes.push(fuzz(&folder, target, seconds)?);
    }
    println!("── {seconds} s each");
    println!("{:<20} {:>12} {:>9} {:>9}", "target", "executions", "coverage", "memory");
    for Outcome { target, figures: Figures { executed, covered, rss_mib }, failed } in &outcomes {
        let word = if *failed { "  FAILED" } else { "" };
        println!("{target:<20} {executed:>12} {covered:>9} {rss_mib:>5} MiB{word}");
    }
    let failed: Vec<&str> = outcomes
        .iter()
        .filter(|outcome| outcome.failed)
        .map(|outcome| outcome.target.as_str())
        .collect();
    ensure!(failed.is_empty(), "{} failed: see fuzz/artifacts", failed.join(", "));
    println!("{} targets, nothing found", outcomes.len());
    Ok(())
}

/// Runs one target for so long.
fn fuzz(folder: &Path, target: String, seconds: u32) -> Result<Outcome> {
    let made = |path: std::path::PathBuf| {
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        anyhow::Ok(path)
    };
    let corpus = made(folder.join("corpus").join(&target))?;
    // What is found goes to the first folder; the committed corpus is only read.
    let found = made(folder.join("target/corpus").join(&target))?;
    // What fails is kept where no commit takes it by accident.
    let artifacts = made(folder.join("artifacts").join(&target))?;
    let program = folder.join("target").join(TARGET).join("release").join(&target);
    let mut fuzz = Command::new(program);
    fuzz.arg(format!("-max_total_time={seconds}"));
    fuzz.arg(format!("-artifact_prefix={}/", artifacts.display()));
    fuzz.args([
        "-use_value_profile=1",
        "-rss_limit_mb=2048",
        "-timeout=10",
        "-print_final_stats=1",
    ]);
    fuzz.arg(&found).arg(&corpus).current_dir(folder).stderr(Stdio::piped());
    println!("── fuzz {target}");
    let mut child = fuzz.spawn().with_context(|| format!("cannot start {fuzz:?}"))?;
    let mut figures = Figures::default();
    if let Some(told) = child.stderr.take() {
        for line in BufReader::new(told).split(b'\n') {
            let line = line.with_context(|| format!("what {target} says"))?;
            let line = String::from_utf8_lossy(&line);
            figures.hear(&line);
            eprintln!("{line}");
        }
    }
    let failed = !child.wait().with_context(|| format!("{target} does not end"))?.success();
    Ok(Outcome { target, figures, failed })
}

fn targets(folder: &Path) -> Result<Vec<String>> {
    let sources = folder.join("fuzz_targets");
    let entries = std::fs::read_dir(&sources)
        .with_context(|| format!("cannot read {}", sources.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fuzzer_tells_is_heard() {
        let mut figures = Figures::default();
        for line in [
            "#2097152\tpulse  cov: 312 ft: 1482 corp: 230/11Kb lim: 4096 exec/s: 1048576 rss: 431Mb",
            "#2100000\tDONE   cov: 313 ft: 1482 corp: 230/11Kb lim: 4096 exec/s: 1048576 rss: 431Mb",
            "stat::number_of_executed_units: 2100000",
            "stat::peak_rss_mb:              431",
            "something else",
        ] {
            figures.hear(line);
        }
        assert_eq!(figures, Figures { executed: 2_100_000, covered: 313, rss_mib: 431 });
    }

    /// What is not there would not be fuzzed: every target is built, has seeds, and is tried by each test run.
    #[test]
    fn every_target_is_built_has_seeds_and_is_part_of_the_tests() {
        let folder = root().join("fuzz");
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let tests = root().join("crates/cli/tests/fuzz_seeds.rs");
        let tests = std::fs::read_to_string(tests).unwrap();
        for target in targets(&folder).unwrap() {
            let path = format!("path = \"fuzz_targets/{target}.rs\"");
            assert!(manifest.contains(&path), "{target} is not built");
            let seeds = std::fs::read_dir(folder.join("corpus").join(&target)).unwrap().count();
            assert!(3 <= seeds, "{target} has {seeds} seeds");
            assert!(tests.contains(&format!("holds(\"{target}\"")), "{target} is not tried");
        }
    }

    /// Otherwise the long run begins with what is on some machine, or does not begin.
    #[test]
    fn the_lock_file_of_the_targets_is_current() {
        // Not offline: a new machine has never built a target, and knows nothing of what they need.
        let mut asked = cargo(&["metadata", "--locked", "--format-version", "1"]);
        asked.current_dir(root().join("fuzz"));
        crate::shell::output(&mut asked).unwrap();
    }
}
