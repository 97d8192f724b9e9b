//! Hours in which things go wrong, at the lifetimes that are usual. `COUNTERSIGN_SEEDS=10 COUNTERSIGN_HOURS=100 cargo test --release
//! --workspace --test hours -- --nocapture` passes a thousand of them; `COUNTERSIGN_FROM=11` tries other seeds. Each prints
//! how many hours a minute of the processor's time holds, and too few of them are a failure.

use std::time::Duration;

use countersign_sim::{Settings, World};

const HOUR: Duration = Duration::from_secs(3600);
/// In each hour things go wrong, and then all is to be well within the rest.
const PLAGUED: Duration = Duration::from_secs(3300);
/// How many seeds, and how many hours of each, when nothing is said.
const SEEDS: u64 = 2;
const HOURS: u64 = 1;
/// The issuer of a world lives for a week, and is not succeeded here.
const HOURS_MAX: u64 = 160;
/// So many bytes of a trace are kept for the message of a failure.
const TRACE_KEPT: usize = 1 << 20;
/// A minute of the processor's time holds so many hours at least: a fraction of what was measured, since machines differ.
const HOURS_A_MINUTE: f64 = if cfg!(debug_assertions) { 5.0 } else { 50.0 };

fn settings(seed: u64) -> Settings {
    Settings {
        seed,
        servers: 2,
        machines: 3,
        workloads: 3,
        lifetime: "1h",
        agent_lifetime: "24h",
        delay_max: 400,
        lost: 10,
        doubled: 30,
        services: true,
        instances: 2,
        // Of four seeds one has servers whose clocks are further off than is allowed.
        server_skew: Duration::from_secs(if seed.is_multiple_of(4) { 150 } else { 5 }),
        switched_on_within: Duration::ZERO,
        pause_max: 120_000,
    }
}

fn asked(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Prints the seed and the end of the trace when its run fails.
struct Told(World, u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = asked("COUNTERSIGN_LINES").and_then(|lines| lines.try_into().ok());
            let tail = self.0.trace().tail(lines.unwrap_or(60));
            eprintln!("{tail}\nCOUNTERSIGN_FROM={} COUNTERSIGN_SEEDS=1", self.1);
        }
    }
}

/// So many hours of one seed: how many steps they took, and what their trace comes to.
fn pass(seed: u64, hours: u64) -> (u64, (u64, u64)) {
    let mut told = Told(World::begin(settings(seed)), seed);
    let world = &mut told.0;
    world.keep_of_trace(TRACE_KEPT);
    world.run(Duration::from_secs(20));
    for _hour in 0..hours {
        world.plague(PLAGUED);
        world.run(PLAGUED);
        world.heal();
        world.run(HOUR - PLAGUED);
        world.check_converged();
    }
    world.verify_everything();
    world.check_log_times();
    (world.steps(), world.trace().sum())
}

/// What this thread has taken of a processor.
fn cpu_time() -> Duration {
    let path = "/proc/thread-self/schedstat";
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let nanos = text.split_whitespace().next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_else(|| panic!("{path} begins with nanoseconds: {text}")))
}

#[test]
fn hours_of_faults_pass_in_minutes_and_all_is_well_at_the_end_of_each() {
    let (seeds, hours) =
        (asked("COUNTERSIGN_SEEDS").unwrap_or(SEEDS), asked("COUNTERSIGN_HOURS").unwrap_or(HOURS));
    assert!(hours <= HOURS_MAX, "COUNTERSIGN_HOURS is over {HOURS_MAX}: take more seeds");
    let from = asked("COUNTERSIGN_FROM").unwrap_or(3);
    let mut steps = 0;
    let begun = cpu_time();
    for seed in from..from + seeds {
        steps += pass(seed, hours).0;
    }
    let (all, took) = (seeds * hours, cpu_time().saturating_sub(begun));
    let rate = all as f64 / (took.as_secs_f64() / 60.0);
    println!(
        "{all} hours of {seeds} seeds from {from} on, {steps} steps, {rate:.0} hours in a minute of processor time"
    );
    // Unasked, it is part of the tests, which no slow machine fails.
    let asked_for = if asked("COUNTERSIGN_HOURS").is_some() { HOURS_A_MINUTE } else { 0.0 };
    assert!(asked_for <= rate, "{rate:.1} hours in a minute, {asked_for} were asked for");
}

#[test]
fn an_hour_of_a_seed_has_the_same_trace_byte_for_byte() {
    let first = pass(4, 1);
    assert!(1000 < first.0);
    assert_eq!(first, pass(4, 1));
}
