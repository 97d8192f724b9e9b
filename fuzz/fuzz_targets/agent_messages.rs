//! No bytes of a server make the agent's reader of gRPC messages panic. The first byte says which message it is.
#![no_main]

use countersign_agent::server_link::wire::{attested, renewed, sign_answer, sync_message};
use countersign_api::{Message, v1};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 4 {
        0 => drop(v1::SyncResponse::decode(bytes).ok().map(sync_message)),
        1 => drop(v1::AttestResponse::decode(bytes).ok().map(attested)),
        2 => drop(v1::Renewed::decode(bytes).ok().map(renewed)),
        _ => drop(v1::SignResult::decode(bytes).ok().map(sign_answer)),
    }
});
