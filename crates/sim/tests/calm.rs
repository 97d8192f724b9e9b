//! Runs in which nothing goes wrong, but for one thing.

mod support;

use std::time::Duration;

use countersign_api::resource::Kind;
use countersign_sim::{Settings, World};
use support::CALM;

fn settings(seed: u64) -> Settings {
    Settings { services: false, seed, ..CALM }
}

#[test]
fn renewals_happen_between_45_and_50_percent_of_the_lifetime_while_the_server_is_there() {
    let mut world = World::begin(settings(1));
    world.run(Duration::from_secs(600));
    world.check_converged();
    world.verify_everything();
    let shares: Vec<u64> = world.renewals().iter().map(|renewal| renewal.share).collect();
    assert!(200 < shares.len(), "{} renewals", shares.len());
    // One request may wait for the answer to another: 60 ms of 60 s are a tenth of a percent.
    let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
    assert!((4500..=5015).contains(least) && (4500..=5015).contains(most), "{least} to {most}");
}

#[test]
fn outage_within_the_budget_costs_nobody_a_certificate() {
    let mut world = World::begin(settings(2));
    world.run(Duration::from_secs(200));
    let held = world.held();
    assert_eq!(held, 4 * 3);
    for _ in 0..3 {
        // 45 % of 60 s.
        world.outage(Duration::from_secs(26));
        assert_eq!(world.held(), held, "at the end of the outage");
        world.run(Duration::from_secs(1));
        assert_eq!(world.held(), held);
        world.run(Duration::from_secs(40));
        assert_eq!(world.held(), held);
        world.check_converged();
    }
    world.verify_everything();
}

#[test]
fn outage_longer_than_the_agents_own_lifetime_ends_by_itself() {
    let mut world = World::begin(settings(3));
    world.run(Duration::from_secs(60));
    world.outage(Duration::from_secs(1200));
    assert_eq!(world.held(), 0, "nothing is served past its end");
    world.run(Duration::from_secs(60));
    world.check_converged();
    assert_eq!(world.held(), 4 * 3);
    world.verify_everything();
}

#[test]
fn removed_workload_is_withdrawn_within_a_second_and_comes_back_when_it_is_declared() {
    let mut world = World::begin(settings(4));
    world.run(Duration::from_secs(30));
    assert_eq!(world.held(), 4 * 3);
    world.remove(Kind::Workload, &"w2-1".parse().unwrap());
    world.run(Duration::from_secs(1));
    assert_eq!(world.held(), 4 * 3 - 1);
    world.run(Duration::from_secs(5));
    world.check_converged();
    assert_eq!(world.held(), 4 * 3 - 1, "it stays away by itself");
    world.declare_workload(2, 1);
    world.run(Duration::from_secs(1));
    assert_eq!(world.held(), 4 * 3);
    world.check_converged();
    world.verify_everything();
}

#[test]
fn removed_policy_ends_exactly_its_connections() {
    let mut world = World::begin(Settings { services: true, ..settings(5) });
    world.run(Duration::from_secs(200));
    let before = world.links();
    assert!(12 < before.made, "{before:?}");
    assert_eq!((before.refused, before.cut), (0, 0), "{before:?}");
    // At a moment when each of the four machines has one connection, and none its successor beside it.
    let live = |world: &World| world.links().made - world.links().expired;
    for _second in 0..60 {
        if live(&world) == 4 {
            break;
        }
        world.run(Duration::from_secs(1));
    }
    assert_eq!(live(&world), 4, "{:?}", world.links());
    world.remove(Kind::Policy, &"p1".parse().unwrap());
    // Each step of the world checks that a connection is up if and only if both its ends still allow it.
    world.run(Duration::from_secs(2));
    let after = world.links();
    assert_eq!(after.cut, 1, "{after:?}");
    world.check_converged();
    world.verify_everything();
}

#[test]
fn after_ten_minutes_away_no_minute_sees_three_times_the_steady_rate_and_nothing_expires() {
    let mut world = World::begin(Settings {
        machines: 200,
        workloads: 1,
        lifetime: "24m",
        agent_lifetime: "24h",
        delay_max: 50,
        ..settings(6)
    });
    world.run(Duration::from_secs(1000));
    // All are due at some moment of these ten minutes.
    world.outage(Duration::from_secs(600));
    let end = world.elapsed();
    assert_eq!(world.held(), 200, "nothing expired meanwhile");
    // Within three quarters of the 684 s that are left at most, and not again before 648 s have passed.
    world.run(Duration::from_secs(600));
    assert_eq!(world.held(), 200);
    let mut minutes = [0_u32; 10];
    for at in world.signed().iter().filter(|at| end <= **at) {
        minutes[usize::try_from((*at - end).as_secs() / 60).unwrap()] += 1;
    }
    assert_eq!(minutes.iter().sum::<u32>(), 200, "each is renewed once: {minutes:?}");
    // In calm weather each of them renews once in 684 s: at 47.5 % of 24 minutes on the average.
    let steady = 200 * 60 / 684;
    let busiest = minutes.iter().max().unwrap();
    assert!(*busiest <= 3 * steady, "{busiest} in one minute, {steady} in a calm one: {minutes:?}");
    world.check_converged();
    world.verify_everything();
}

#[test]
fn days_pass_in_seconds_with_an_outage_now_and_then_and_nothing_is_ever_missing() {
    let hours = std::env::var("COUNTERSIGN_HOURS").ok();
    let hours: u64 = hours.map_or(24, |text| text.parse().expect("COUNTERSIGN_HOURS is a number"));
    let begun = std::time::Instant::now();
    // The issuer of a world lives for a week, and is not succeeded here.
    for (seed, left) in (100..).zip((0..hours).step_by(120)) {
        let mut world =
            World::begin(Settings { lifetime: "1h", agent_lifetime: "24h", ..settings(seed) });
        world.run(Duration::from_secs(60));
        let held = world.held();
        for hour in left..hours.min(left + 120) {
            match hour % 8 {
                5 => world.outage(Duration::from_secs(1200)),
                _ => world.run(Duration::from_secs(1200)),
            }
            world.run(Duration::from_secs(2400));
            assert_eq!(world.held(), held, "in hour {hour}");
        }
        world.check_converged();
        world.verify_everything();
    }
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    println!("{hours} hours in {minutes:.2} minutes: {:.0} in one", hours as f64 / minutes);
}
