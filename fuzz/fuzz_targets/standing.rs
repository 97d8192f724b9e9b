//! No bytes make the reader of standing connections panic or hold more than one message, whoever sends them; and an agent
//! takes whatever a server says through its own types or not at all.
#![no_main]

use std::time::Duration;

use countersign_agent::server_link::wire::{server_clock, sign_answer, sync_message, witness};
use countersign_agent::steps::lists;
use countersign_api::standing::Reader;
use countersign_api::v1::answer::Outcome;
use countersign_api::v1::from_server::Step;
use countersign_api::{v1, wire};
use libfuzzer_sys::fuzz_target;

fn answer(outcome: Outcome) {
    match outcome {
        Outcome::Sign(signed) => signed.results.into_iter().map(sign_answer).for_each(drop),
        Outcome::Lists(answer) => drop(lists(answer)),
        Outcome::Refused(refusal) => drop(wire::Refused::try_from(refusal)),
        // A number that is told, and nothing.
        Outcome::HandBack(_) | Outcome::Report(_) => {}
    }
}

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(async {
        let (mut io, mut reader) = (bytes, Reader::new(4096, Duration::from_secs(30)));
        while let Ok(Some(_message)) = reader.next::<v1::FromAgent>(&mut io).await {}
        let (mut io, mut reader) = (bytes, Reader::new(4096, Duration::from_secs(30)));
        while let Ok(Some(message)) = reader.next::<v1::FromServer>(&mut io).await {
            match message.step {
                Some(Step::Sync(response)) => {
                    let _vouched = (witness(&response), server_clock(&response));
                    drop(sync_message(response));
                }
                Some(Step::Answer(v1::Answer { outcome: Some(outcome), .. })) => answer(outcome),
                Some(Step::Ended(refusal)) => drop(wire::Refused::try_from(refusal)),
                Some(Step::Answer(v1::Answer { outcome: None, .. })) | None => {}
            }
        }
    });
});
