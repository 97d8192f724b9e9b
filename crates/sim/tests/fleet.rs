//! Herds: what a whole fleet asks of its server, second by second, in calm weather, after an outage, and when everything is
//! revoked at once. Every agent is the real machine; `COUNTERSIGN_AGENTS=2000` makes the fleet smaller.

use std::time::Duration;

use countersign_sim::{Fleet, FleetSettings};

const HOUR: Duration = Duration::from_secs(3600);

fn settings(seed: u64, signs: u32) -> FleetSettings {
    let agents = std::env::var("COUNTERSIGN_AGENTS").ok();
    FleetSettings {
        seed,
        agents: agents.map_or(10_000, |text| text.parse().expect("COUNTERSIGN_AGENTS is a number")),
        workloads: 5,
        lifetime: HOUR,
        agent_lifetime: 24 * HOUR,
        delay_max: 50,
        signs,
    }
}

fn busiest(seconds: &[u32]) -> u32 {
    seconds.iter().copied().max().unwrap_or(0)
}

/// The mean of these seconds.
fn mean(seconds: &[u32]) -> f64 {
    let all: u64 = seconds.iter().map(|count| u64::from(*count)).sum();
    all as f64 / seconds.len() as f64
}

fn second(fleet: &Fleet) -> usize {
    usize::try_from(fleet.elapsed().as_secs()).expect("a run is short")
}

#[test]
fn after_ten_minutes_away_no_second_sees_three_times_the_steady_rate_and_nothing_expires() {
    let mut fleet = Fleet::begin(settings(1, 5000));
    let all = settings(1, 0).agents * 5;
    fleet.run(HOUR);
    assert_eq!(fleet.held(), all);
    // By then all of them were issued once, at moments of half an hour, and renew at moments of half an hour.
    let steady = mean(&fleet.signed()[1800..3600]);
    fleet.outage(Duration::from_secs(600));
    assert_eq!(fleet.held(), all, "nothing expired meanwhile");
    let back = second(&fleet);
    fleet.run(HOUR);
    let after = &fleet.signed()[back..];
    let (most, streams) = (busiest(after), busiest(&fleet.opened()[back..]));
    println!(
        "{steady:.1} a second in calm weather, {most} in the busiest after the outage, {streams} streams opened in one second, \
         {} steps of machines",
        fleet.steps()
    );
    assert_eq!((fleet.held(), fleet.lapses()), (all, 0), "everyone is renewed before the end");
    assert!(f64::from(most) <= 3.0 * steady, "{most} in one second, {steady:.1} in a calm one");
}

/// Everything is revoked at once: how long it takes until all have something new, and how many SVIDs are signed for it.
fn storm(fleet: &mut Fleet) -> (u32, usize) {
    let all = fleet.held();
    let before = fleet.signed().iter().sum::<u32>();
    fleet.revoke_everything();
    let mut took = 0;
    loop {
        fleet.run(Duration::from_secs(1));
        took += 1;
        if fleet.held() == all {
            break;
        }
        assert!(took < 300, "{} of {all} after {took} s", fleet.held());
    }
    let signed = (fleet.signed().iter().sum::<u32>() - before) as usize;
    println!("{all} were replaced in {took} s, with {signed} signatures");
    assert!(0 < all && all <= signed, "{signed} signatures for {all} workloads");
    (took, signed)
}

#[test]
fn server_that_needs_longer_than_agents_wait_comes_through_a_storm_all_the_same() {
    // 25 s of work, and everybody gives up after 10 s and asks again.
    let mut fleet = Fleet::begin(settings(2, 2000));
    fleet.run(HOUR);
    let all = fleet.held();
    let (took, signed) = storm(&mut fleet);
    assert!(took <= 100, "{took} s");
    assert!(signed <= 3 * all, "{signed} signatures for {all} workloads");
}

/// All have to have all new, and programs wait for it, so that the rate is what the server can give. What follows from it is bounded:
/// nothing is signed twice for want of patience, and it is not one second that renews everybody half a lifetime later.
#[test]
fn fleet_that_starts_anew_after_a_deploy_is_served_at_the_servers_pace_and_renews_spread_out() {
    for within in [Duration::ZERO, Duration::from_secs(60)] {
        let mut fleet = Fleet::begin(settings(4, 2000));
        fleet.run(HOUR);
        let all = fleet.held();
        let steady = mean(&fleet.signed()[1800..3600]);
        let begun = second(&fleet);
        fleet.restart_everybody(within);
        assert_eq!(fleet.held(), 0, "their keys are gone");
        while fleet.held() < all {
            fleet.run(Duration::from_secs(1));
            assert!(second(&fleet) < begun + 300, "{} of {all}", fleet.held());
        }
        let served = second(&fleet);
        let signed = fleet.signed()[begun..].iter().sum::<u32>() as usize;
        fleet.run(HOUR);
        let echo = busiest(&fleet.signed()[served + 1..]);
        println!(
            "restarted within {within:?}: {all} were served in {} s with {signed} signatures; {steady:.1} a second before, {echo} in \
             the busiest second of the next hour",
            served - begun
        );
        let took = Duration::from_secs((served - begun) as u64);
        assert!(took <= Duration::from_secs(100) + within, "{took:?}");
        assert!(signed <= 3 * all, "{signed} signatures for {all} workloads");
        assert_eq!((fleet.held(), fleet.lapses()), (all, 0), "and nothing expires");
    }
}

#[test]
fn a_seed_gives_the_same_fleet() {
    let run = || {
        let mut fleet = Fleet::begin(FleetSettings { agents: 200, ..settings(3, 500) });
        fleet.run(HOUR);
        fleet.outage(Duration::from_secs(300));
        fleet.run(HOUR / 2);
        fleet.revoke_everything();
        fleet.run(HOUR / 2);
        (fleet.signed().to_vec(), fleet.opened().to_vec(), fleet.renewed().to_vec(), fleet.steps())
    };
    assert_eq!(run(), run());
}
