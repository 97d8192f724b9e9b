//! A herd against the server that ships: every CSR is made, verified, recorded, signed and verified again. A hundred times fewer
//! agents than in `fleet.rs`, where the server is played; `COUNTERSIGN_HERD=1000 cargo test --release --workspace --test herd
//! -- --nocapture` has a thousand, with so many workloads that the promise can be looked at by the second.

use std::time::Duration;

use countersign_sim::{Settings, World};

/// The herd of every day's test, and how many workloads each agent of it has.
const AGENTS: usize = 200;
const WORKLOADS: usize = 5;
/// So many has each agent of a herd that was asked for.
const WORKLOADS_ASKED: usize = 25;
const HOUR: Duration = Duration::from_secs(3600);
const OUTAGE: Duration = Duration::from_secs(600);
/// Where fewer are signed in a span of calm weather, chance alone brings three times as many now and then.
const ENOUGH: f64 = 15.0;

fn herd() -> World {
    let asked = std::env::var("COUNTERSIGN_HERD").ok();
    let asked = asked.map(|text| text.parse().expect("COUNTERSIGN_HERD is a number"));
    World::begin(Settings {
        seed: 1,
        servers: 1,
        machines: asked.unwrap_or(AGENTS),
        workloads: asked.map_or(WORKLOADS, |_agents: usize| WORKLOADS_ASKED),
        lifetime: "1h",
        agent_lifetime: "24h",
        delay_max: 50,
        lost: 0,
        doubled: 0,
        services: false,
        instances: 0,
        server_skew: Duration::ZERO,
        switched_on_within: HOUR / 2,
        pause_max: 12_000,
    })
}

/// How many SVIDs were signed in each span of so many seconds, of whole ones between two moments.
fn spans(world: &World, (from, until): (Duration, Duration), secs: u64) -> Vec<u32> {
    let count = until.saturating_sub(from).as_secs() / secs;
    let mut spans = vec![0; usize::try_from(count).expect("a run is short")];
    for at in world.signed().iter().filter(|at| from <= **at) {
        let span = usize::try_from((*at - from).as_secs() / secs).expect("a run is short");
        if let Some(span) = spans.get_mut(span) {
            *span += 1;
        }
    }
    spans
}

#[test]
fn herd_of_the_real_server_asks_for_less_than_three_times_the_steady_rate_after_ten_minutes_away() {
    let mut world = herd();
    // All are switched on within half an hour, and from then on renew at moments of half an hour.
    world.run(HOUR);
    let all = world.held();
    let steady = spans(&world, (HOUR / 2, HOUR), 1);
    let rate = f64::from(steady.iter().sum::<u32>()) / steady.len() as f64;
    let secs = Duration::from_secs_f64((ENOUGH / rate).ceil()).as_secs();
    world.outage(OUTAGE);
    assert_eq!(world.held(), all, "nothing expired meanwhile");
    let back = world.elapsed();
    for _minute in 0..40 {
        world.run(Duration::from_secs(60));
        assert_eq!(world.held(), all, "everyone is renewed before the end");
    }
    let after = spans(&world, (back, world.elapsed()), secs);
    let (most, calm) = (after.iter().copied().max().unwrap_or(0), rate * secs as f64);
    println!(
        "{all} SVIDs: {calm:.1} in {secs} s of calm weather, {most} in the busiest after the outage, {} steps",
        world.steps()
    );
    let renewed = after.iter().sum::<u32>();
    assert!(u32::try_from(all).unwrap() <= renewed, "each is renewed since");
    assert!(f64::from(most) <= 3.0 * calm, "{most} in {secs} s, {calm:.1} in calm ones");
    world.check_converged();
    world.verify_everything();
}
