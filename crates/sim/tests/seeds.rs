//! Runs in which everything goes wrong at random, and all must be well in the end. A failure names its seed;
//! `COUNTERSIGN_SEED=7 cargo test -p countersign-sim` repeats that run alone; `COUNTERSIGN_SEEDS=500` tries so many,
//! and `COUNTERSIGN_LINES=1000` prints so much of the trace.

use std::time::Duration;

use countersign_sim::{Settings, World};

/// How many seeds are tried when none is named.
const SEEDS: u64 = 20;
/// How long it takes until all is well again.
const SETTLES: Duration = Duration::from_secs(60);

fn settings(seed: u64) -> Settings {
    Settings {
        seed,
        machines: 3,
        workloads: 3,
        lifetime: "60s",
        agent_lifetime: "4m",
        delay_max: 400,
        lost: 10,
        doubled: 30,
        services: true,
    }
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
    told.0.run(SETTLES);
    told.0.check_converged();
    told.0.verify_everything();
    drop(told);
    world
}

fn seeds() -> Vec<u64> {
    match std::env::var("COUNTERSIGN_SEED") {
        Ok(seed) => vec![seed.parse().expect("COUNTERSIGN_SEED is a number")],
        Err(_) => {
            let seeds = std::env::var("COUNTERSIGN_SEEDS").ok();
            let seeds = seeds.map(|count| count.parse().expect("COUNTERSIGN_SEEDS is a number"));
            (1..=seeds.unwrap_or(SEEDS)).collect()
        }
    }
}

#[test]
fn whatever_goes_wrong_all_agents_end_with_what_the_server_says() {
    let mut made = 0;
    let mut cut = 0;
    let mut rules = 0;
    let mut reissued = 0;
    let mut thwarted = 0;
    for seed in seeds() {
        let world = run(seed);
        made += world.links().made;
        cut += world.links().cut;
        rules += world.rules_made();
        reissued += world.reissued();
        thwarted += world.thwarted();
    }
    println!("{made} connections were made, {cut} cut by policy");
    println!(
        "{rules} rules were made, {reissued} SVIDs took the place of revoked ones, {thwarted} thieves were refused"
    );
    // One seed alone may have no use for all of it.
    assert!(seeds().len() == 1 || (0 < made && 0 < rules && 0 < thwarted));
}

#[test]
fn a_seed_gives_the_same_run_byte_for_byte() {
    let seed = seeds()[0];
    let (first, second) = (run(seed), run(seed));
    assert!(first.trace().text().lines().count() > 200);
    assert_eq!(first.trace().text(), second.trace().text());
}
