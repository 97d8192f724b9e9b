//! Runs in which everything goes wrong at random, and all must be well in the end. A failure names its seed;
//! `COUNTERSIGN_SEED=7 cargo test --workspace --test seeds` repeats that run alone; `COUNTERSIGN_SEEDS=500` tries so many,
//! from `COUNTERSIGN_FROM=501` on where that is given, and `COUNTERSIGN_LINES=1000` prints so much of the trace.

use std::collections::BTreeMap;
use std::time::Duration;

use countersign_sim::{MeshReport, Settings, World};

/// How many seeds are tried when none is named.
const SEEDS: u64 = 20;
/// How long it takes until all is well again.
const SETTLES: Duration = Duration::from_secs(60);
/// Beside that, nothing is issued before the right time comes near what was written under a clock that was ahead.
const CATCHES_UP: Duration = Duration::from_secs(120);

fn settings(seed: u64) -> Settings {
    Settings {
        seed,
        servers: 2,
        machines: 3,
        workloads: 3,
        lifetime: "60s",
        agent_lifetime: "4m",
        delay_max: 400,
        lost: 10,
        doubled: 30,
        services: true,
        instances: 2,
        server_skew: server_skew(seed),
        switched_on_within: Duration::ZERO,
        pause_max: 12_000,
    }
}

/// Of four seeds three have servers whose clocks are as far off as honest ones are; of the others every second more than twice as
/// far as what is allowed.
fn server_skew(seed: u64) -> Duration {
    Duration::from_secs(match seed % 8 {
        0 => 150,
        4 => 60,
        _ => 5,
    })
}

/// Prints the seed and the end of the trace when its run fails.
struct Told<'a>(&'a mut World, u64);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = std::env::var("COUNTERSIGN_LINES").ok().and_then(|text| text.parse().ok());
            let tail = self.0.trace().tail(lines.unwrap_or(60));
            eprintln!("{tail}\nCOUNTERSIGN_SEED={}", self.1);
        }
    }
}

fn run(seed: u64) -> World {
    let mut world = World::begin(settings(seed));
    let told = Told(&mut world, seed);
    told.0.run(Duration::from_secs(20));
    told.0.check_converged();
    let plague = Duration::from_secs(120);
    told.0.plague(plague);
    told.0.run(plague);
    told.0.heal();
    told.0.run(if seed.is_multiple_of(4) { SETTLES + CATCHES_UP } else { SETTLES });
    told.0.check_converged();
    told.0.verify_everything();
    told.0.check_log_times();
    drop(told);
    world
}

fn asked(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

fn seeds() -> Vec<u64> {
    if let Some(seed) = asked("COUNTERSIGN_SEED") {
        return vec![seed];
    }
    let from = asked("COUNTERSIGN_FROM").unwrap_or(1);
    (from..from + asked("COUNTERSIGN_SEEDS").unwrap_or(SEEDS)).collect()
}

/// What came about in some runs together.
#[derive(Debug, Default)]
struct Seen {
    connections: usize,
    cut: usize,
    revoked: usize,
    drained: usize,
    rules: usize,
    reissued: u64,
    thwarted: usize,
    /// How often each thing came about that befalls programs or is checked of them.
    programs: BTreeMap<&'static str, usize>,
}

impl Seen {
    fn add(&mut self, world: &World) {
        let links = world.links();
        self.connections += links.made;
        self.cut += links.cut;
        self.revoked += links.revoked;
        self.drained += links.drained;
        self.rules += world.rules_made();
        self.reissued += world.reissued();
        self.thwarted += world.thwarted();
        for (what, count) in met_by_programs(&world.mesh()) {
            *self.programs.entry(what).or_default() += count;
        }
    }
}

/// Written out, so that nothing which a report gains is left out.
fn met_by_programs(report: &MeshReport) -> [(&'static str, usize); 21] {
    let MeshReport {
        answered,
        elsewhere,
        again,
        lost,
        failed,
        returned,
        streams,
        proven,
        unheard,
        outlived,
        expired,
        cut,
        reused,
        succeeded,
        unread,
        owed,
        refused,
        parted,
        stopped,
        turned_over,
        forbidden,
    } = *report;
    [
        ("answered", answered),
        ("elsewhere", elsewhere),
        ("again", again),
        ("lost", lost),
        ("failed", failed),
        ("returned", returned),
        ("streams", streams),
        ("proven", proven),
        ("unheard", unheard),
        ("outlived", outlived),
        ("expired", expired),
        ("cut", cut),
        ("reused", reused),
        ("succeeded", succeeded),
        ("unread", unread),
        ("owed", owed),
        ("refused", refused),
        ("parted", parted),
        ("stopped", stopped),
        ("turned_over", turned_over),
        ("forbidden", forbidden),
    ]
}

#[test]
fn whatever_goes_wrong_all_agents_end_with_what_the_server_says() {
    let mut seen = Seen::default();
    for seed in seeds() {
        seen.add(&run(seed));
    }
    println!("{} seeds from {} on: {seen:?}", seeds().len(), seeds()[0]);
    // One seed alone may have no use for all of it.
    let Seen { connections, revoked, drained, rules, thwarted, .. } = seen;
    let all = 0 < connections && 0 < revoked && 0 < drained && 0 < rules && 0 < thwarted;
    let all = all && seen.programs.values().all(|count| 0 < *count);
    assert!(seeds().len() < 20 || all, "{seen:?}");
}

#[test]
fn a_seed_gives_the_same_run_byte_for_byte() {
    let seed = seeds()[0];
    let (first, second) = (run(seed), run(seed));
    assert!(first.trace().text().lines().count() > 200);
    assert_eq!(first.trace().text(), second.trace().text());
}
