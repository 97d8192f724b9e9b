//! Certificates that live for seconds, renewed again and again under load, without one failed request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::world::{Caller, Shop, get, patient_clock, read};
use crate::config::Protocol;

const LIFETIME_SECS: u64 = 6;
const HALF: Duration = Duration::from_secs(LIFETIME_SECS / 2);
const OUT_OF_STEP: Duration = Duration::from_millis(740);
const RUN: Duration = Duration::from_secs(14);

/// Renews both ends at half of their life, as agents do, and out of step.
async fn rotate(shop: &Shop, until: &AtomicBool) -> usize {
    let mut rotations = 0;
    while !until.load(Ordering::Relaxed) {
        shop.web.renew(LIFETIME_SECS).await;
        shop.pass(OUT_OF_STEP).await;
        shop.orders.renew(LIFETIME_SECS).await;
        shop.pass(HALF - OUT_OF_STEP).await;
        rotations += 1;
    }
    rotations
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_both_ends_rotate() {
    let shop = Shop::open_on(patient_clock(), Protocol::Http).await;
    shop.web.renew(LIFETIME_SECS).await;
    shop.orders.renew(LIFETIME_SECS).await;
    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut load = tokio::task::JoinSet::new();
    for caller in 0..12 {
        let (local, over, answered) = (shop.local.clone(), over.clone(), answered.clone());
        load.spawn(async move {
            let mut kept = Caller::connect(&local).await;
            while !over.load(Ordering::Relaxed) {
                // A third of the callers make a fresh connection for each request.
                if caller % 3 == 0 {
                    kept = Caller::connect(&local).await;
                }
                let answer = kept.send(get("/")).await.unwrap();
                let (status, body) = read(answer).await;
                assert_eq!(status, 200, "{body}");
                answered.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    let timer = async {
        shop.pass(RUN).await;
        over.store(true, Ordering::Relaxed);
    };
    let (rotations, ()) = tokio::join!(rotate(&shop, &over), timer);
    while let Some(caller) = load.join_next().await {
        caller.unwrap();
    }
    let (answered, handshakes) = (answered.load(Ordering::Relaxed), shop.orders.handshakes());
    assert!(4 <= rotations && 1000 < answered, "{rotations} rotations, {answered} answers");
    assert!((4..60).contains(&handshakes), "{handshakes} handshakes for {answered} answers");
}
