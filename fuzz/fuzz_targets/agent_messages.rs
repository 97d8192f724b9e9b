//! No bytes of a server make the agent's reader of gRPC messages panic. The first byte says which message it is.
#![no_main]

use countersign_agent::server_link::wire::{
    attested, nonce, renewed, server_clock, sign_answer, sync_message, witness,
};
use countersign_agent::steps::lists;
use countersign_api::v1::attest_x509_response::Step as X509;
use countersign_api::v1::renew_response::Step as Renewing;
use countersign_api::{Message, v1};
use countersign_pki::Crl;
use libfuzzer_sys::fuzz_target;

fn sync(response: v1::SyncResponse) {
    let _vouched = (witness(&response), server_clock(&response));
    drop(sync_message(response));
}

fn x509(response: v1::AttestX509Response) {
    match response.step {
        Some(X509::Nonce(told)) => assert_eq!(nonce(&told).is_ok(), told.len() == 32),
        Some(X509::Attested(answer)) => drop(attested(answer)),
        None => {}
    }
}

fn renewal(response: v1::RenewResponse) {
    match response.step {
        Some(Renewing::Nonce(told)) => assert_eq!(nonce(&told).is_ok(), told.len() == 32),
        Some(Renewing::Renewed(answer)) => drop(renewed(answer)),
        None => {}
    }
}

fn revocation_lists(answer: v1::ListsResponse) {
    if let Ok(lists) = lists(answer) {
        assert!(!lists.is_empty() && lists.iter().all(|list| Crl::parse(list).is_ok()));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 7 {
        0 => drop(v1::SyncResponse::decode(bytes).ok().map(sync)),
        1 => drop(v1::AttestResponse::decode(bytes).ok().map(attested)),
        2 => drop(v1::Renewed::decode(bytes).ok().map(renewed)),
        3 => drop(v1::SignResult::decode(bytes).ok().map(sign_answer)),
        4 => drop(v1::AttestX509Response::decode(bytes).ok().map(x509)),
        5 => drop(v1::RenewResponse::decode(bytes).ok().map(renewal)),
        _ => drop(v1::ListsResponse::decode(bytes).ok().map(revocation_lists)),
    }
});
