//! A server whose clock is far off true time, and what it may not do all the same. Seeds of `seeds.rs` and `hours.rs` have more of it.

mod support;

use std::time::Duration;

use countersign_sim::{Leaked, Settings, World};
use support::CALM;

const MACHINES: usize = CALM.machines;

fn world(seed: u64) -> World {
    let mut world = World::begin(Settings { seed, ..CALM });
    // Before any of them is renewed.
    world.run(Duration::from_secs(20));
    world
}

#[test]
fn rule_that_is_lost_under_a_server_whose_clock_is_far_ahead_goes_on_to_hold_at_every_point() {
    let mut world = world(1);
    world.revoke(1, 0, Leaked::Identity);
    world.run(Duration::from_secs(1));
    // By this clock nothing that the rule covers can be valid any more.
    world.set_server_clock(0, 300_000_000);
    world.trim_rules(0);
    assert_eq!(world.rules_in_store(), 1, "it is not dropped");
    world.lose_a_rule();
    world.run(Duration::from_secs(2));
    assert_eq!(world.rules_at_points(), [1; MACHINES]);
    // A stream whose server's clock is set back goes on to tell it, and by that and their own clocks the agents let go in time.
    world.set_server_clock(0, 0);
    // It covers what may be valid for 90 s, and is kept for 60 s more; the server's clock is told within a silence.
    world.run(Duration::from_secs(145));
    assert_eq!(world.rules_at_points(), [1; MACHINES], "not before its last moment");
    world.run(Duration::from_secs(25));
    assert_eq!(world.rules_at_points(), [0; MACHINES]);
    world.check_converged();
    world.verify_everything();
}

#[test]
fn server_whose_clock_jumps_ahead_drops_no_rule_until_it_has_gone_on_so_for_an_hour() {
    const DAYS: i64 = 5 * 86_400_000_000;
    let mut world = world(2);
    world.revoke(1, 0, Leaked::Identity);
    world.run(Duration::from_secs(2));
    world.set_server_clock(0, DAYS);
    for _ in 0..2 {
        world.trim_rules(0);
        assert_eq!(world.rules_in_store(), 1);
        // Nor does a new life believe it.
        world.lose_server(0);
        world.start_server(0);
    }
    world.set_server_clock(0, 0);
    world.run(Duration::from_secs(2));
    world.trim_rules(0);
    assert_eq!(world.rules_in_store(), 1, "what it covers may be valid still");
}

#[test]
fn what_a_server_recorded_under_a_clock_that_was_ahead_makes_no_new_life_believe_that_clock() {
    const DAYS: i64 = 5 * 86_400_000_000;
    let mut world = world(3);
    world.revoke(1, 0, Leaked::Identity);
    world.run(Duration::from_secs(2));
    world.set_server_clock(0, DAYS);
    // This one is of the time that the clock shows, and so is what its agents renew.
    world.revoke(2, 0, Leaked::Identity);
    world.run(Duration::from_secs(2));
    for _ in 0..3 {
        world.lose_server(0);
        world.start_server(0);
        world.trim_rules(0);
        assert_eq!(world.rules_in_store(), 2, "what the first covers may be valid still");
        world.run(Duration::from_secs(1));
    }
}
