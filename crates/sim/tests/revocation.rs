//! What is revoked is refused at every point that says so, replaced where it was held, and nothing else is touched.

mod support;

use std::time::Duration;

use countersign_sim::{Leaked, Settings, World};
use support::CALM;

const MACHINES: usize = CALM.machines;
const WORKLOADS: usize = CALM.workloads;

fn world(seed: u64) -> World {
    let mut world = World::begin(Settings { seed, ..CALM });
    // Before any of them is renewed: what is held is what connections were made with.
    world.run(Duration::from_secs(20));
    world
}

/// One workload's credential leaks this way: so many SVIDs are replaced within a second, and nobody else notices.
#[track_caller]
fn replaced(seed: u64, leaked: Leaked, count: u64) {
    let mut world = world(seed);
    world.revoke(1, 0, leaked);
    // Up to 500 ms until the snapshot follows, and a few messages of up to 20 ms each.
    world.run(Duration::from_secs(1));
    assert_eq!(world.reissued(), count, "{leaked:?}");
    assert_eq!(world.held(), MACHINES * WORKLOADS, "{leaked:?}: the honest are served again");
    assert_eq!(world.rules_at_points(), [1; MACHINES], "{leaked:?}");
    let ended = usize::from(leaked != Leaked::OtherAuthority);
    assert_eq!(world.thwarted(), ended, "{leaked:?}: who stole it tries it");
    // One that it made, and one that was made to it.
    assert_eq!(world.links().revoked, 2 * ended, "{leaked:?}: {:?}", world.links());
    world.run(Duration::from_secs(5));
    world.check_converged();
    world.verify_everything();
}

#[test]
fn what_leaked_is_replaced_within_a_second_and_nothing_else() {
    replaced(1, Leaked::Serial, 1);
    replaced(2, Leaked::Key, 1);
    replaced(3, Leaked::Identity, 1);
    replaced(4, Leaked::Node, WORKLOADS as u64);
    replaced(5, Leaked::OtherAuthority, 0);
}

#[test]
fn nothing_that_a_revoked_authority_signed_is_served_and_its_server_is_not_hammered() {
    let mut world = world(6);
    world.revoke(0, 0, Leaked::Authority);
    world.run(Duration::from_secs(2));
    assert_eq!(world.held(), 0);
    let signed = world.signed().len();
    world.run(Duration::from_secs(60));
    assert_eq!(world.held(), 0);
    let tries = world.signed().len() - signed;
    assert!(tries < 12 * 20, "{tries} certificates for twelve workloads in a minute");
}

#[test]
fn rule_that_the_store_lost_goes_on_to_hold_through_restarts_and_clock_steps_until_it_is_moot() {
    let mut world = world(7);
    world.revoke(1, 0, Leaked::Identity);
    world.run(Duration::from_secs(1));
    world.lose_a_rule();
    world.run(Duration::from_secs(2));
    assert_eq!(world.rules_at_points(), [1; MACHINES]);
    world.restart_agents();
    world.set_clock(2, 80_000_000);
    world.set_clock(3, -80_000_000);
    world.run(Duration::from_secs(60));
    assert_eq!(world.rules_at_points(), [1; MACHINES]);
    world.set_clock(2, 0);
    world.set_clock(3, 0);
    // It covers what may be valid for 90 s, and is kept for 60 s more.
    world.run(Duration::from_secs(80));
    assert_eq!(world.rules_at_points(), [1; MACHINES], "not before its last moment");
    // By the server's clock, which the next sign of life tells: within a silence.
    world.run(Duration::from_secs(27));
    world.check_converged();
    assert_eq!(world.rules_at_points(), [0; MACHINES]);
}

#[test]
fn trimmed_rule_is_forgotten_by_everybody() {
    let mut world = world(8);
    world.revoke(1, 0, Leaked::Serial);
    world.run(Duration::from_secs(140));
    world.trim_rules(0);
    world.run(Duration::from_secs(5));
    assert_eq!(world.rules_at_points(), [1; MACHINES], "it is not moot yet");
    world.run(Duration::from_secs(15));
    world.trim_rules(0);
    // By the server's clock, too, which the next sign of life tells: within a silence.
    world.run(Duration::from_secs(20));
    assert_eq!(world.rules_at_points(), [0; MACHINES]);
    world.check_converged();
}

#[test]
fn suspended_workload_loses_its_svid_and_its_connections_and_gets_them_back() {
    let mut world = world(9);
    world.suspend(1, 0);
    world.run(Duration::from_secs(2));
    assert_eq!(world.held(), MACHINES * WORKLOADS - 1);
    let cut = world.links().cut;
    assert!(1 <= cut, "{:?}", world.links());
    world.check_converged();
    world.run(Duration::from_secs(120));
    assert_eq!(world.held(), MACHINES * WORKLOADS - 1);
    world.resume(1, 0);
    world.run(Duration::from_secs(1));
    assert_eq!(world.held(), MACHINES * WORKLOADS);
    world.run(Duration::from_secs(5));
    world.check_converged();
}

#[test]
fn superseded_workload_is_issued_anew_and_its_connections_are_drained_within_their_time() {
    let mut world = world(10);
    world.supersede(1, 0, Leaked::Identity);
    world.run(Duration::from_secs(1));
    assert_eq!(world.reissued(), 1);
    assert_eq!(world.held(), MACHINES * WORKLOADS);
    let links = world.links();
    // One that it made, and one that was made to it.
    assert_eq!((links.revoked, links.drained), (0, 2), "{links:?}");
    assert_eq!(world.thwarted(), 1, "nothing new begins on what is superseded");
    // Every machine does something within that time, and looks at its connections then.
    world.run(Duration::from_secs(16));
    assert_eq!(world.connections() - world.draining(), MACHINES, "each has a successor");
    // Each step of the world checks that none is cut before its time, and none drains beyond it.
    world.run(Duration::from_secs(15));
    assert_eq!(world.links().revoked, 0);
    assert_eq!(world.draining(), 0, "{:?}", world.links());
    world.check_converged();
    world.verify_everything();
}

#[test]
fn what_drains_is_cut_when_it_leaks_as_well() {
    let mut world = world(11);
    world.supersede(1, 0, Leaked::Identity);
    world.run(Duration::from_secs(1));
    assert!(0 < world.draining(), "{:?}", world.links());
    world.revoke(1, 0, Leaked::Node);
    world.run(Duration::from_secs(1));
    assert_eq!(world.draining(), 0, "{:?}", world.links());
    world.run(Duration::from_secs(5));
    world.check_converged();
}
