//! Rotation and outage under load, with real processes: nothing fails.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/load.rs"]
mod load;
mod support;

use std::time::Duration;

use countersign_identity::{Clock, SystemClock, Timestamp};
use load::{Load, Outcome};
use serde_json::Value;
use support::{Up, folder, shop_with_lifetimes, signal};

/// How many requests are asked for each second: what also a program without optimisation answers beside other work.
const PER_SECOND: u32 = 100;

/// At least a quarter of those that were due must have been answered. How fast they are is for benchmarks to say: what is
/// shown here is that nothing fails while the load goes on.
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
fn certificates_of_forty_seconds_are_renewed_again_and_again_without_one_failed_request() {
    let state = folder();
    let up = Up::start(
        &shop_with_lifetimes(state.path(), "40s", "24h"),
        &state.path().join("data"),
        &[],
    );
    let load = Load::start(&up.address("web"), PER_SECOND);
    let serial = |up: &Up| {
        let told = |status: &Value| status["nodes"][0]["credentials"][0]["serial"].is_string();
        let status = up.status_until("a certificate is told", told);
        status["nodes"][0]["credentials"][0]["serial"].as_str().unwrap().to_owned()
    };
    let mut serials = vec![serial(&up)];
    // Renewed at half of their lives, twice; connections are replaced near the ends of what they were opened with.
    for _ in 0..45 {
        for_a_while(Duration::from_secs(1));
        serials.push(serial(&up));
    }
    serials.sort();
    serials.dedup();
    let outcome = load.stop();
    println!("{} answered, p99 {:?}", outcome.answered, outcome.quantile(990));
    assert_no_failure(&outcome, 1_125);
    assert!(3 <= serials.len(), "renewed only {} times", serials.len() - 1);
}

fn moment(value: &Value) -> Timestamp {
    value.as_str().unwrap_or_else(|| panic!("no moment: {value}")).parse().unwrap()
}

/// One member of every credential that a status lists.
fn of_credentials(status: &Value, member: &str) -> Vec<Timestamp> {
    let credentials = status["nodes"][0]["credentials"].as_array().unwrap();
    credentials.iter().map(|credential| moment(&credential[member])).collect()
}

/// The outage budget as an agent tells it while the server is away: right by itself, and never more than before.
#[track_caller]
fn told_rightly(status: &Value, gone: Timestamp, before: Option<Timestamp>) -> Timestamp {
    assert_eq!(status["source"], "agent", "{status}");
    assert_eq!(status["outageBudget"]["guaranteedSeconds"], 27, "45 % of 60 s: {status}");
    let ends = moment(&status["outageBudget"]["endsAt"]);
    let first = of_credentials(status, "expiresAt").into_iter().min().unwrap();
    assert_eq!(ends, first, "it is when the first of the credentials shown expires: {status}");
    assert!(gone + Duration::from_secs(27) <= ends, "45 % of 60 s from {gone} on: {status}");
    assert!(before.is_none_or(|before| ends <= before), "{before:?} has grown to {ends}");
    ends
}

#[test]
fn a_server_away_for_25_of_60_seconds_fails_no_request_and_the_budget_is_told_rightly_throughout() {
    let clock = SystemClock::new();
    let state = folder();
    let manifests = shop_with_lifetimes(state.path(), "60s", "24h");
    let up = Up::start(&manifests, &state.path().join("data"), &[]);
    let server = up.server();
    let load = Load::start(&up.address("web"), PER_SECOND);
    // At the worst moment: what is held is as old as it may become.
    let before = up.status_until("the first renewal is near", |status| {
        let due = of_credentials(status, "renewalAt").into_iter().min();
        let near = due.is_some_and(|due| due < clock.now() + Duration::from_secs(3));
        near && status["source"] == "server"
    });
    // Stopped, not killed: `up` would start it again at once.
    signal(server, "STOP");
    let gone = clock.now();
    let mut told = Vec::new();
    while clock.now().since(gone) < Duration::from_secs(22) {
        told.push(told_rightly(&up.json(&["status"]), gone, told.last().copied()));
        for_a_while(Duration::from_secs(1));
    }
    for_a_while(Duration::from_secs(25).saturating_sub(clock.now().since(gone)));
    assert!(5 <= told.len(), "asked only {} times in the outage", told.len());
    assert!(gone + Duration::from_secs(25) <= clock.now(), "the whole outage was seen");
    signal(server, "CONT");

    let after = up.status_until("everything is renewed", |status| {
        let renewed = of_credentials(status, "issuedAt").into_iter().all(|issued| gone < issued);
        status["source"] == "server" && status["nodes"][0]["connected"] == true && renewed
    });
    let log = |status: &Value| status["server"]["log"]["size"].as_u64().unwrap();
    let (held, events) = (of_credentials(&after, "issuedAt"), log(&after) - log(&before));
    println!("budget ended {told:?}; back, renewed at {held:?}, {events} events");
    assert!(events <= 2 * held.len() as u64, "a herd: {events} events for {} SVIDs", held.len());
    for_a_while(Duration::from_secs(10));
    let outcome = load.stop();
    println!("{} answered, p99 {:?}", outcome.answered, outcome.quantile(990));
    assert_no_failure(&outcome, 1_000);
}

#[test]
fn an_agent_whose_own_svid_expired_while_the_server_was_away_comes_back_by_itself() {
    let state = folder();
    let up = Up::start(
        &shop_with_lifetimes(state.path(), "60s", "10s"),
        &state.path().join("data"),
        &[],
    );
    let before = up.status_until("a certificate is told", |status| {
        let told = status["nodes"][0]["credentials"][0]["serial"].is_string();
        told && status["source"] == "server"
    });
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
