//! What a process says of how it stands.

use countersign::Topic;
use countersign_api::v1::enforcement_request::Step as Said;

use crate::agent::{Heard, Offer};
use crate::world::{World, source};

#[tokio::test]
async fn a_door_that_cannot_be_opened_is_told_until_it_is_open() {
    let mut world = World::new(Offer::Enforcement);
    world.agent.give(world.wire(&world.svid("/orders")));
    world.agent.enforce(world.slice(5, "orders"));
    let source = source(&world.agent).await;
    source.ready().await.unwrap();
    let taken = Err("the port 443 is taken".to_owned());
    for (open, why) in [(taken, "the port 443 is taken"), (Ok(()), "")] {
        source.doors_open(open);
        assert_eq!(source.status().troubles.get(&Topic::Door).map_or("", String::as_str), why);
        loop {
            let Heard::Said(Said::Status(status)) = world.agent.next().await else { continue };
            // What was said before may be on its way still.
            let Some(door) = status.parts.iter().find(|part| part.part == "door") else { continue };
            if (door.good_micros < door.failed_micros) != why.is_empty() {
                assert!(door.why.contains(why), "{door:?}");
                break;
            }
        }
    }
}
