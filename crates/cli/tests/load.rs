//! Rotation and outage under load, with real processes: nothing fails.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/load.rs"]
mod load;
mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use load::{Load, Outcome};
use support::{Up, folder, shop, signal};

/// The shop with another lifetime for its SVIDs, and for agents.
fn manifests(to: &Path, svid: &str, agent: &str) -> PathBuf {
    let folder = to.join("shop");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(shop()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::write(
        folder.join("trust-domain.yaml"),
        format!(
            "apiVersion: countersign.dev/v1alpha1\nkind: TrustDomain\nmetadata: {{name: shop}}\n\
             spec: {{trustDomain: shop.example, svidLifetime: {svid}, agentLifetime: {agent}}}\n"
        ),
    )
    .unwrap();
    folder
}

#[track_caller]
fn assert_no_failure(outcome: &Outcome, at_least: u64) {
    let (failures, answered) = (&outcome.failures, outcome.answered);
    let shown = &failures[..failures.len().min(5)];
    assert!(failures.is_empty(), "{} of {answered} requests failed: {shown:?}", failures.len());
    assert!(at_least <= answered, "only {answered} requests were answered");
}

fn for_a_while(span: Duration) {
    std::thread::park_timeout(span);
}

#[test]
fn certificates_of_ten_seconds_are_renewed_again_and_again_without_one_failed_request() {
    let state = folder();
    let up = Up::start(&manifests(state.path(), "10s", "24h"), &state.path().join("data"), &[]);
    let load = Load::start(&up.address("web"), 500);
    let serial = |up: &Up| {
        up.json(&["status"])["nodes"][0]["credentials"][0]["serial"].as_str().unwrap().to_owned()
    };
    let mut serials = vec![serial(&up)];
    for _ in 0..30 {
        for_a_while(Duration::from_secs(1));
        serials.push(serial(&up));
    }
    serials.dedup();
    let outcome = load.stop();
    println!("{} answered, p99 {:?}", outcome.answered, outcome.quantile(990));
    assert_no_failure(&outcome, 10_000);
    assert!(4 <= serials.len(), "renewed only {} times", serials.len() - 1);
}

#[test]
fn a_server_away_for_25_of_60_seconds_fails_no_request_and_the_budget_is_right_after_it() {
    let state = folder();
    let up = Up::start(&manifests(state.path(), "60s", "24h"), &state.path().join("data"), &[]);
    let load = Load::start(&up.address("web"), 200);
    let server = i32::try_from(up.json(&["status"])["server"]["pid"].as_u64().unwrap()).unwrap();
    // Stopped, not killed: `up` would start it again at once.
    signal(server, "STOP");
    for_a_while(Duration::from_secs(25));
    signal(server, "CONT");
    let status =
        up.status_until("the agent is back", |status| status["nodes"][0]["connected"] == true);
    assert_eq!(status["outageBudget"]["guaranteedSeconds"], 27, "45 % of 60 s: {status}");
    for_a_while(Duration::from_secs(10));
    assert_no_failure(&load.stop(), 5_000);
}

#[test]
fn an_agent_whose_own_svid_expired_while_the_server_was_away_comes_back_by_itself() {
    let state = folder();
    let up = Up::start(&manifests(state.path(), "60s", "10s"), &state.path().join("data"), &[]);
    let before = up.json(&["status"]);
    let server = i32::try_from(before["server"]["pid"].as_u64().unwrap()).unwrap();
    signal(server, "STOP");
    for_a_while(Duration::from_secs(15));
    signal(server, "CONT");
    let after = up.status_until("the agent is back", |status| {
        let renewed = status["nodes"][0]["credentials"][0]["serial"]
            != before["nodes"][0]["credentials"][0]["serial"];
        status["nodes"][0]["connected"] == true && renewed
    });
    assert_eq!(before["nodes"][0]["id"], after["nodes"][0]["id"], "without a new token");
    assert_eq!(up.get("web", "/").0, 200);
}
