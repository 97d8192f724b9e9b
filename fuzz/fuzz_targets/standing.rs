//! No bytes make the reader of standing connections panic or hold more than one message, whoever sends them; and an agent
//! takes whatever a server says through its own types or not at all.
#![no_main]

use std::time::Duration;

use countersign_agent::server_link::wire::{sign_answer, sync_message};
use countersign_api::standing::Reader;
use countersign_api::v1;
use countersign_api::v1::answer::Outcome;
use countersign_api::v1::from_server::Step;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(async {
        let (mut io, mut reader) = (bytes, Reader::new(4096, Duration::from_secs(30)));
        while let Ok(Some(_message)) = reader.next::<v1::FromAgent>(&mut io).await {}
        let (mut io, mut reader) = (bytes, Reader::new(4096, Duration::from_secs(30)));
        while let Ok(Some(message)) = reader.next::<v1::FromServer>(&mut io).await {
            match message.step {
                Some(Step::Sync(response)) => drop(sync_message(response)),
                Some(Step::Answer(v1::Answer { outcome: Some(Outcome::Sign(signed)), .. })) => {
                    signed.results.into_iter().map(sign_answer).for_each(drop);
                }
                Some(Step::Answer(_) | Step::Ended(_)) | None => {}
            }
        }
    });
});
