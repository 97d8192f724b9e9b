//! Whatever a machine or an agent asks, the server answers or refuses: nobody becomes a node, renews or is given a certificate
//! without what proves that they may. The first byte says which message it is. What nobody can guess stands in the place of an empty
//! text: the join token, and the signatures of the node.
#![no_main]

use std::cell::RefCell;

use bytes::Bytes;
use countersign_api::attestation::machine_statement;
use countersign_api::v1::attest_request::Evidence;
use countersign_api::v1::attest_x509_request::Step as X509;
use countersign_api::v1::call::Asked;
use countersign_api::v1::from_agent::Step as Said;
use countersign_api::v1::renew_request::Step as Renewing;
use countersign_api::v1::sync_request::Step as Syncing;
use countersign_api::{Message, v1, wire};
use countersign_identity::Revision;
use countersign_pki::Certificate;
use countersign_server::steps::{Line, Told};
use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "each target uses its own part of this")]
#[path = "../support/server.rs"]
mod server;

use server::{EXPORTER, World, sha256};

const NONCE: [u8; 32] = [7; 32];
/// So many refused guesses are answered at once.
const RUNS_MAX: u32 = 16;

thread_local! {
    static WORLD: RefCell<Option<(World, u32)>> = const { RefCell::new(None) };
}

/// Says whether the state has changed by it.
fn attest(world: &World, mut asked: v1::AttestRequest) -> bool {
    if let Some(Evidence::JoinToken(token)) = &mut asked.evidence
        && token.is_empty()
    {
        token.clone_from(&world.token);
    }
    let holds = asked.evidence == Some(Evidence::JoinToken(world.token.clone()));
    let joined = world.runtime.block_on(world.steps.attest(asked));
    assert!(holds || joined.is_err(), "it joined without the token");
    joined.is_ok()
}

fn attest_x509(world: &World, asked: v1::AttestX509Request) -> bool {
    let Some(X509::Proof(mut proof)) = asked.step else { return false };
    let signs = proof.signature.is_empty();
    let leaf = proof.chain.first().and_then(|leaf| Certificate::parse(leaf).ok());
    if let Some(leaf) = leaf.filter(|_| signs) {
        let csr = sha256(&proof.csr);
        let statement = machine_statement(&NONCE, &EXPORTER, leaf.fingerprint(), csr);
        proof.signature = world.key.sign(&statement).expect("Ed25519 signs").into();
    }
    let authorities = world.authorities();
    let joined = world.steps.attest_x509(&authorities, (&NONCE, &EXPORTER), &proof);
    let joined = world.runtime.block_on(joined);
    assert!(signs || joined.is_err(), "it joined without the key of its certificate");
    joined.is_ok()
}

fn renew(world: &World, asked: v1::RenewRequest) -> bool {
    let own = |generation| v1::RenewHello {
        node_id: Bytes::copy_from_slice(world.node.as_bytes()),
        generation,
        chain: world.shown(),
    };
    let (hello, mut proof) = match asked.step {
        Some(Renewing::Hello(hello)) => (hello, v1::RenewProof::default()),
        Some(Renewing::Proof(proof)) => (own(1), proof),
        None => return false,
    };
    let signs = proof.signature.is_empty();
    let renewed = world.steps.renew(&hello, &EXPORTER, |nonce| {
        if signs {
            proof.signature = world.renewal(nonce, hello.generation, &proof.successor_csr).into();
        }
        proof
    });
    let renewed = world.runtime.block_on(renewed);
    if let Ok(renewed) = &renewed {
        assert!(signs, "it renewed without its key");
        assert_eq!(
            hello.node_id,
            world.node.as_bytes().as_slice(),
            "another node's key is of no use"
        );
        assert!(renewed.generation <= 2);
    }
    renewed.is_ok()
}

fn call(world: &World, asked: Asked) -> bool {
    if let Asked::Lists(v1::ListsRequest { revision }) = asked {
        // It is compared with that of the lists, and waited for.
        let _revision = revision.map(Revision::from);
        return false;
    }
    if let Asked::HandBack(v1::HandBackRequest { records }) = &asked {
        let taken = world.steps.would_take_back(records);
        // A rule, and with some of them a suspension of the node.
        assert!(taken.is_ok_and(|taken| taken <= 2 * records.len()) || !records.is_empty());
    }
    let items = if let Asked::Sign(request) = &asked { request.items.len() } else { 0 };
    let unsigned = matches!(&asked, Asked::HandBack(back) if !back.records.is_empty());
    let answer = world.runtime.block_on(world.steps.answer(&world.shown(), asked));
    match answer {
        Ok(v1::answer::Outcome::Sign(signed)) => {
            assert_eq!(signed.results.len(), items, "each item has its answer");
            let mut any = false;
            for result in signed.results {
                let Some(v1::sign_result::Outcome::Issued(issued)) = result.outcome else {
                    continue;
                };
                let leaf = Certificate::parse(&issued.chain[0]).expect("one of ours");
                let id = leaf.spiffe_id().expect("ours have one");
                assert!(
                    ["/web", "/books"].contains(&id.path()),
                    "`{id}` is no workload of the node"
                );
                any = true;
            }
            any
        }
        Ok(v1::answer::Outcome::HandBack(_)) => {
            assert!(!unsigned, "a rule was taken back that nobody has signed");
            false
        }
        Ok(_) | Err(_) => false,
    }
}

fn acknowledge(world: &World, line: &mut Line, ack: v1::SyncAck) {
    let told = match world.steps.next(line) {
        Ok(Told::Message(_)) => Some(world.steps.revision()),
        Ok(Told::Nothing(_)) | Err(_) => None,
    };
    let taken = world.runtime.block_on(world.steps.acknowledge(line, ack));
    assert!(taken.is_ok(), "the node is who it was");
    assert!(world.steps.acknowledged(world.node) <= told, "it acknowledged what it was not told");
}

fn said(world: &World, bytes: &[u8]) -> bool {
    let Ok(message) = world.steps.read(&Bytes::copy_from_slice(bytes)) else { return false };
    let open = |hello: &v1::SyncHello| {
        world.runtime.block_on(world.steps.open(&world.shown(), hello)).expect("the node may")
    };
    match message.step {
        Some(Said::Call(v1::Call { asked: Some(asked), .. })) => call(world, asked),
        Some(Said::Sync(v1::SyncRequest { step: Some(Syncing::Hello(hello)) })) => {
            let mut line = open(&hello);
            let _told = world.steps.next(&mut line).is_ok();
            world.steps.leave(&line);
            false
        }
        Some(Said::Sync(v1::SyncRequest { step: Some(Syncing::Ack(ack)) })) => {
            let mut line = open(&v1::SyncHello::default());
            acknowledge(world, &mut line, ack);
            world.steps.leave(&line);
            // Points are on record now.
            true
        }
        Some(Said::Call(_) | Said::Sync(_)) | None => false,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    WORLD.with_borrow_mut(|slot| {
        let (world, runs) = slot.get_or_insert_with(|| (World::begin(), 0));
        *runs += 1;
        let changed = match which % 4 {
            0 => v1::AttestRequest::decode(bytes).is_ok_and(|asked| attest(world, asked)),
            1 => v1::AttestX509Request::decode(bytes).is_ok_and(|asked| attest_x509(world, asked)),
            2 => v1::RenewRequest::decode(bytes).is_ok_and(|asked| {
                if let Some(Renewing::Hello(hello)) = &asked.step {
                    let _node = wire::node_id(&hello.node_id).is_ok();
                }
                renew(world, asked)
            }),
            _ => said(world, bytes),
        };
        // Each input meets the same server, so that what fails fails again.
        if changed || RUNS_MAX <= *runs {
            *slot = None;
        }
    });
});
