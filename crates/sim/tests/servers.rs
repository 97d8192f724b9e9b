//! Several servers on one store: what one of them does the agents of the others are told, and one that is lost is done without.

mod support;

use std::time::Duration;

use countersign_sim::{Leaked, Settings, World};
use support::CALM;

const MACHINES: usize = CALM.machines;
const WORKLOADS: usize = CALM.workloads;

fn world(seed: u64) -> World {
    World::begin(Settings { servers: 2, seed, ..CALM })
}

#[test]
fn agents_of_a_lost_server_go_on_with_the_other_from_their_revision_and_lose_nothing() {
    let mut world = world(1);
    world.run(Duration::from_secs(20));
    let held = world.held();
    assert_eq!(held, MACHINES * WORKLOADS);
    world.lose_server(0);
    for _second in 0..180 {
        world.run(Duration::from_secs(1));
        assert_eq!(world.held(), held);
    }
    world.start_server(0);
    world.run(Duration::from_secs(2));
    world.check_converged();
    world.verify_everything();
}

#[test]
fn revocation_reaches_every_point_while_one_server_after_the_other_is_lost() {
    let mut world = world(2);
    world.run(Duration::from_secs(20));
    world.revoke(1, 0, Leaked::Identity);
    world.lose_server(0);
    // An agent tries the next server at once when it loses one.
    world.run(Duration::from_secs(2));
    assert_eq!(world.rules_at_points(), [1; MACHINES]);
    world.start_server(0);
    world.lose_server(1);
    world.revoke(2, 0, Leaked::Key);
    world.run(Duration::from_secs(2));
    assert_eq!(world.rules_at_points(), [2; MACHINES]);
    world.start_server(1);
    world.run(Duration::from_secs(2));
    world.check_converged();
    world.verify_everything();
}
