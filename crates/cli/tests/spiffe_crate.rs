//! An independent client of the Workload API, unmodified: the crate `spiffe`, in this very process, at a real agent.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::collections::HashSet;
use std::time::Duration;

use spiffe::{WorkloadApiClient, WorkloadApiError, X509Source};
use support::{PATIENCE, Up};

async fn client(up: &Up) -> WorkloadApiClient {
    WorkloadApiClient::connect_to(up.ready["agent"].as_str().unwrap()).await.unwrap()
}

fn is_refusal(error: &WorkloadApiError) -> bool {
    matches!(error, WorkloadApiError::PermissionDenied(_) | WorkloadApiError::NoIdentityIssued)
}

/// A source that has its first identity: as a program would, it waits until there is one.
async fn source(up: &Up) -> X509Source {
    let endpoint = up.ready["agent"].as_str().unwrap();
    let building = async {
        loop {
            match X509Source::builder().endpoint(endpoint).build().await {
                Ok(source) => return source,
                Err(_not_served_yet) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, building).await.expect("the identity is served")
}

fn serial_of(source: &X509Source) -> Vec<u8> {
    source.svid().unwrap().cert_chain()[0].as_bytes().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_crate_is_refused_until_a_workload_matches_this_process_then_has_its_identity() {
    let up = Up::shop();
    let client = client(&up).await;
    let refused = client.fetch_x509_context().await.unwrap_err();
    assert!(is_refusal(&refused), "{refused:?}");

    up.make_me("5m");
    let source = source(&up).await;
    let svid = source.svid().unwrap();
    assert_eq!(svid.spiffe_id().to_string(), "spiffe://shop.example/me");
    assert_eq!(svid.cert_chain().len(), 2, "leaf and issuer");
    let domain = "shop.example".parse().unwrap();
    let bundles = client.fetch_x509_bundles().await.unwrap();
    assert_eq!(bundles.get(&domain).unwrap().authorities().len(), 1);
    source.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_crate_follows_three_rotations_on_one_stream_then_loses_its_identity_with_the_manifest()
{
    let up = Up::shop();
    up.make_me("10s");
    let source = source(&up).await;
    let mut updates = source.updated();
    let mut seen = HashSet::from([serial_of(&source)]);
    let rotating = async {
        while seen.len() < 4 {
            updates.changed().await.unwrap();
            seen.insert(serial_of(&source));
        }
    };
    tokio::time::timeout(PATIENCE, rotating).await.expect("three rotations");

    up.json(&["resource", "remove", "Workload", "me"]);
    let withdrawn = async {
        while source.svid().is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, withdrawn).await.expect("the identity is withdrawn");
    let refused = client(&up).await.fetch_x509_context().await.unwrap_err();
    assert!(is_refusal(&refused), "{refused:?}");
    source.shutdown().await;
}
