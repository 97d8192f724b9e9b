//! No bytes make the reader of a plan's file panic, what it reads is written and read again as the same, and of a plan that the server
//! refuses nothing is in force.
#![no_main]

use std::cell::RefCell;

use countersign_cli::steps::Plan;
use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "each target uses its own part of this")]
#[path = "../support/server.rs"]
mod server;

thread_local! {
    static WORLD: RefCell<Option<server::World>> = const { RefCell::new(None) };
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(plan) = Plan::parse(bytes) else { return };
    let written = plan.bytes().expect("it was read");
    let again = Plan::parse(&written).expect("what we wrote");
    assert_eq!(again.bytes().expect("it was read"), written);
    WORLD.with_borrow_mut(|slot| {
        let world = slot.get_or_insert_with(server::World::begin);
        let before = world.records();
        let applied = world.runtime.block_on(world.steps.apply(plan.resources()));
        let _moved = world.runtime.block_on(world.steps.advance()).expect("our own records");
        match applied {
            Ok(revision) => assert_eq!(world.steps.revision(), revision),
            Err(_refused) => assert_eq!(world.records(), before, "nothing of it"),
        }
        // Each input meets the same server, so that what fails fails again.
        if world.records() != before || applied_something(world, before.0) {
            *slot = None;
        }
    });
});

/// Whether the state has moved.
fn applied_something(world: &server::World, before: countersign_api::v1::Revision) -> bool {
    countersign_api::v1::Revision::from(world.steps.revision()) != before
}
