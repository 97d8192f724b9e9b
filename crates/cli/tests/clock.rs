//! Clocks that step, and machines that sleep: real processes go on, or come back by themselves.
//!
//! The clock of one process is stepped by libfaketime, which reads how far from a file. Only the wall clock is moved.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/domain.rs"]
mod domain;
mod support;

use std::path::PathBuf;
use std::time::Duration;

use domain::{Domain, run};
use serde_json::Value;
use support::{Up, folder, shop_with_lifetimes, signal, text, until};

/// A clock that the test sets, for the processes that get this environment.
struct SteppedClock {
    file: PathBuf,
    library: String,
    _folder: tempfile::TempDir,
}

impl SteppedClock {
    fn new() -> Self {
        let library = std::fs::read_dir("/usr/lib")
            .unwrap()
            .map(|entry| entry.unwrap().path().join("faketime/libfaketimeMT.so.1"))
            .find(|path| path.exists())
            .expect("the Debian package `libfaketime` is installed by `cargo xtask test`");
        let folder = folder();
        let clock = Self {
            file: folder.path().join("clock"),
            library: library.to_str().unwrap().to_owned(),
            _folder: folder,
        };
        clock.set("+0");
        clock
    }

    /// How far it is from the true time, `+3600` or `-600`.
    fn set(&self, apart: &str) {
        // A reader sees the old text or the new.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{apart}\n")).unwrap();
        std::fs::rename(new, &self.file).unwrap();
    }

    fn environment(&self) -> [(&str, &str); 4] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }
}

/// How far the agent's clock is ahead, as the server's status tells it.
fn skew(status: &Value) -> i64 {
    status["nodes"][0]["clockSkewMillis"].as_i64().unwrap_or(0)
}

fn warned(status: &Value) -> bool {
    let warnings = status["warnings"].as_array().unwrap();
    warnings.iter().any(|warning| warning.as_str().unwrap().contains("the clock of node"))
}

#[test]
fn an_agent_whose_clock_is_set_back_ten_minutes_goes_on_and_status_says_that_it_is_off() {
    let clock = SteppedClock::new();
    let domain = Domain::make_with("20s", &clock.environment());
    domain.credentials();
    let before = domain.status();
    assert!(skew(&before).abs() < 5_000 && !warned(&before), "{before}");

    clock.set("-600");
    let status = until("the clock is told to be off", || Some(domain.status()).filter(warned));
    assert!((-605_000..=-595_000).contains(&skew(&status)), "{status}");
    let fetched = domain.fetch();
    assert!(fetched.status.success(), "it goes on: {}", text(&fetched.stderr));
    // What changes meanwhile is in force there, and the server hears of it, long before the clock is where it was.
    let nobody = ["revoke", "spiffe://prod.example/nobody", "--reason", "key-compromise"];
    let revoked = run(&[&nobody[..], &["--admin", &domain.admin(), "--output", "json"]].concat());
    let revision = serde_json::from_slice::<Value>(&revoked.stdout).unwrap()["revision"].clone();
    until("the agent acknowledges", || {
        (domain.status()["nodes"][0]["revision"] == revision).then_some(())
    });

    clock.set("+0");
    recovers(&domain, &before);
}

#[test]
fn an_agent_whose_clock_is_set_an_hour_ahead_recovers_by_itself_once_it_is_right_again() {
    let clock = SteppedClock::new();
    let domain = Domain::make_with("20s", &clock.environment());
    domain.credentials();
    let before = domain.status();

    clock.set("+3600");
    // All that it holds is expired to it. That is no refusal: it cannot know.
    until("it serves nothing", || (domain.fetch().status.code() == Some(3)).then_some(()));
    let status = until("the clock is told to be off", || Some(domain.status()).filter(warned));
    assert!((3_595_000..=3_605_000).contains(&skew(&status)), "{status}");

    clock.set("+0");
    recovers(&domain, &before);
}

/// The same node, without a new token, serves again, and what it serves is renewed again.
#[track_caller]
fn recovers(domain: &Domain, before: &Value) {
    let issued = |status: &Value| status["nodes"][0]["credentials"][0]["issuedAt"].to_string();
    until("it serves again", || domain.fetch().status.success().then_some(()));
    let mut renewals = std::collections::BTreeSet::new();
    let after = until("it renews again", || {
        let status = domain.status();
        renewals.insert(issued(&status));
        let well = status["nodes"][0]["connected"] == true && !warned(&status);
        (well && 3 <= renewals.len()).then_some(status)
    });
    assert_eq!(before["nodes"][0]["id"], after["nodes"][0]["id"], "the same node");
    assert_eq!(after["nodes"].as_array().unwrap().len(), 1, "no second one joined");
}

#[test]
fn a_machine_whose_clock_jumps_an_hour_ahead_serves_again_with_new_certificates() {
    let clock = SteppedClock::new();
    let state = folder();
    let manifests = shop_with_lifetimes(state.path(), "5m", "30m");
    let up = Up::start_in(&manifests, &state.path().join("data"), &[], &clock.environment());
    until("it serves", || (up.get("web", "/").0 == 200).then_some(()));
    let before = up.json(&["status"]);
    // Everybody's certificates, the agent's own too, are expired at once.
    clock.set("+3600");
    serves_again(&up, &before);
}

#[test]
fn a_machine_that_slept_through_its_certificates_serves_again_by_itself() {
    let state = folder();
    let manifests = shop_with_lifetimes(state.path(), "10s", "24h");
    let up = Up::start(&manifests, &state.path().join("data"), &[]);
    let before = up.status_until("agent and proxies report", |status| {
        status["nodes"][0]["processes"].as_array().is_some_and(|all| 4 <= all.len())
    });
    let pids: Vec<i32> = before["nodes"][0]["processes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|process| process["pid"].as_i64().unwrap().try_into().unwrap())
        .collect();
    pids.iter().for_each(|pid| signal(*pid, "STOP"));
    std::thread::park_timeout(Duration::from_secs(15));
    pids.iter().for_each(|pid| signal(*pid, "CONT"));
    serves_again(&up, &before);
}

/// A request goes through again, with credentials that are all new, and the same node.
#[track_caller]
fn serves_again(up: &Up, before: &Value) {
    until("a request goes through", || {
        let answer = support::get(&up.address("web"), "/");
        answer.is_ok_and(|(status, _)| status == 200).then_some(())
    });
    let serials = |status: &Value| -> Vec<String> {
        let credentials = status["nodes"][0]["credentials"].as_array().unwrap();
        credentials.iter().map(|one| one["serial"].to_string()).collect()
    };
    let old = serials(before);
    let after = up.status_until("all credentials are new", |status| {
        let new = serials(status);
        new.len() == old.len() && new.iter().all(|serial| !old.contains(serial))
    });
    assert_eq!(before["nodes"][0]["id"], after["nodes"][0]["id"], "without a new token");
    assert_eq!(after["nodes"].as_array().unwrap().len(), 1, "no second one joined");
    assert_eq!(up.get("web", "/").0, 200);
}
