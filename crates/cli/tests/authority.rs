//! Authorities as an operator succeeds them: real processes, traffic that goes on, openssl as an outsider.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;
use support::{Up, folder, shop, signal, text, until};

/// The key of the root in this state.
fn root(up: &Up, state: &str) -> Option<String> {
    let listed = up.json(&["authority", "list"]);
    let roots = listed["roots"].as_array().unwrap().clone();
    let of = roots.into_iter().find(|root| root["state"] == state)?;
    Some(of["key"].as_str().unwrap().to_owned())
}

/// Requests through the shop, one after the other, for as long as it lives.
struct Traffic {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Traffic {
    fn through(up: &Up) -> Self {
        let (stop, failed, sent) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let address = up.address("web");
        let (stopped, fails, sends) = (Arc::clone(&stop), Arc::clone(&failed), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let status = support::get(&address, "/").ok().map(|(status, _)| status);
                sends.fetch_add(1, Ordering::Relaxed);
                if status != Some(200) {
                    fails.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { stop, failed, sent, thread: Some(thread) }
    }

    /// How many were sent, and how many failed.
    fn end(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        (self.sent.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

#[test]
fn root_is_rotated_under_traffic_with_proof_at_each_gate_and_without_one_failed_request() {
    let up = Up::shop();
    assert_eq!(up.get("web", "/").0, 200);
    let old = root(&up, "active").unwrap();
    let traffic = Traffic::through(&up);
    let done = up.json(&["rotate", "root", "--reason", "yearly", "--wait", "--timeout", "2m"]);
    let (sent, failed) = traffic.end();
    assert_eq!(failed, 0, "of {sent} requests; {done}");
    assert!(20 < sent, "{sent}");
    let steps: Vec<_> =
        done["steps"].as_array().unwrap().iter().map(|step| step["step"].clone()).collect();
    assert_eq!(
        steps,
        ["prepare", "publish", "activate", "supersede", "retire", "confirm"],
        "{done}"
    );
    assert!(done["steps"].as_array().unwrap().iter().all(|step| step["at"].is_string()), "{done}");
    let new = root(&up, "active").unwrap();
    assert_ne!(old, new);
    assert_eq!(root(&up, "retired").as_deref(), Some(old.as_str()));
    println!("{sent} requests; from {} to {}", done["begun"], done["ended"]);

    // The bundle holds the new root alone, and the shop goes on.
    let bundle: Value = up.json(&["status"]);
    assert!(bundle["nodes"][0]["connected"].as_bool().unwrap(), "{bundle}");
    assert_eq!(up.get("web", "/").0, 200);
    let converged = up.json(&["converged", "--wait"]);
    assert_eq!(converged["live"], converged["enforcing"], "{converged}");
}

/// The process of this name, as `status` tells.
fn process(up: &Up, name: &str) -> i32 {
    let status = up.json(&["status"]);
    let processes = status["nodes"][0]["processes"].as_array().unwrap().clone();
    let found = processes.into_iter().find(|process| process["name"] == name).unwrap();
    i32::try_from(found["pid"].as_u64().unwrap()).unwrap()
}

#[test]
fn steps_by_hand_wait_for_who_is_missing_by_name_can_be_forced_in_words_and_taken_back() {
    let up = Up::shop();
    let old = root(&up, "active").unwrap();
    let too_early = up.run(&["authority", "publish"]);
    assert_eq!(too_early.status.code(), Some(1), "{}", text(&too_early.stderr));
    assert!(text(&too_early.stderr).contains("prepare"), "{}", text(&too_early.stderr));

    // 1. A point that does not answer holds the walk up, and is named.
    up.json(&["authority", "prepare"]);
    let proxy = process(&up, "payments-proxy");
    signal(proxy, "STOP");
    up.json(&["authority", "publish"]);
    let said = until("the others have acknowledged", || {
        let waits = up.run(&["authority", "activate"]);
        let said = text(&waits.stderr);
        assert_eq!(waits.status.code(), Some(4), "{said}");
        said.contains("2 of 3 enforcement points").then_some(said)
    });
    assert!(said.contains("spiffe://shop.example/payments"), "{said}");
    assert_eq!(root(&up, "active").as_ref(), Some(&old), "nothing has changed");

    // 2. Words force it, and are on record.
    up.json(&["authority", "activate", "--force", "payments is being rebuilt"]);
    signal(proxy, "CONT");
    let new = root(&up, "active").unwrap();
    assert_ne!(new, old);
    let events = up.json(&["events", "--limit", "1000"]);
    let forced = events["events"].to_string();
    assert!(forced.contains("payments is being rebuilt"), "{forced}");
    until("the shop goes on under the new root", || (up.get("web", "/").0 == 200).then_some(()));

    // 3. It is taken back, and the root that leaves is retired with proof.
    up.json(&["authority", "rollback"]);
    assert_eq!(root(&up, "active").as_ref(), Some(&old));
    assert_eq!(root(&up, "retiring").as_ref(), Some(&new));
    let done = up.json(&["authority", "retire", "--wait", "--timeout", "2m"]);
    assert!(done["ended"].is_string(), "{done}");
    assert_eq!(root(&up, "retired").as_ref(), Some(&new));
    assert_eq!(up.get("web", "/").0, 200);
    let beyond = up.run(&["authority", "rollback"]);
    assert_eq!(beyond.status.code(), Some(1), "{}", text(&beyond.stderr));
}

#[test]
fn recovery_from_a_leaked_root_goes_on_after_the_server_is_killed_and_nothing_old_is_let_in() {
    let state = folder();
    let up = Up::start(&shop(), &state.path().join("data"), &[]);
    let old = root(&up, "active").unwrap();
    let bundle = state.path().join("old.pem");
    std::fs::write(&bundle, up.bundle_pem()).unwrap();

    // 1. The plan changes nothing.
    let named = format!("authority:{}", &old[..16]);
    let plan = up.json(&["recover", "--compromised", &named, "--dry-run"]);
    assert_eq!(plan["isRoot"], true, "{plan}");
    assert_eq!(plan["plan"].as_array().unwrap().len(), 7, "{plan}");
    assert!(3 <= plan["credentials"].as_u64().unwrap(), "{plan}");
    assert_eq!(root(&up, "active").as_ref(), Some(&old));
    let asked = up.run(&["recover", "--compromised", &named]);
    assert_eq!(asked.status.code(), Some(2), "nobody can be asked: {}", text(&asked.stderr));

    // 2. Killed as soon as it has begun.
    let server = up.server();
    up.json(&["recover", "--compromised", &named, "--yes", "--reason", "a drill", "--begin-only"]);
    signal(server, "KILL");
    until("it goes on to its end by itself", || {
        let listed = up.run(&["authority", "list", "--output", "json"]);
        let listed: Value = serde_json::from_slice(&listed.stdout).ok()?;
        let ended = listed["order"].is_null() && listed["last"]["goal"] == "recover";
        (ended && listed["last"]["ended"].is_string()).then_some(())
    });
    let new = root(&up, "active").unwrap();
    assert_ne!(new, old);

    // 3. Everybody is under the new root, and the old one vouches for nobody.
    until("the shop goes on", || (up.get("web", "/").0 == 200).then_some(()));
    let fresh = state.path().join("new.pem");
    std::fs::write(&fresh, up.bundle_pem()).unwrap();
    assert_eq!(verified(&up.address("orders"), &bundle), Some(false), "under the old root");
    assert_eq!(verified(&up.address("orders"), &fresh), Some(true), "under the new root");
    let listed = up.json(&["revocations"]);
    assert!(listed["rules"].to_string().contains(&old), "{listed}");

    // 4. The report says so, signed by the new root, and by nobody else.
    let report = state.path().join("report.json");
    let (report, fresh) = (report.to_str().unwrap(), fresh.to_str().unwrap());
    up.run(&["authority", "report", "--out", report]);
    let check = |trusted: &str| {
        let arguments =
            ["authority", "check-report", report, "--bundle", trusted, "--output", "json"];
        Command::new(support::binary()).args(arguments).output().unwrap()
    };
    let said: Value = serde_json::from_slice(&check(fresh).stdout).unwrap();
    assert_eq!(said["walk"]["goal"], "recover", "{said}");
    assert_eq!(said["activeRoot"], Value::from(new), "{said}");
    let proof = &said["walk"]["proof"];
    assert_eq!((&proof["live"], &proof["enforcing"]), (&Value::from(3), &Value::from(3)), "{said}");
    tried(proof, &said);
    assert_eq!(check(bundle.to_str().unwrap()).status.code(), Some(1), "the old root did not");
    let again = up.run(&["recover", "--compromised", &named, "--yes"]);
    assert_eq!(again.status.code(), Some(1), "{}", text(&again.stderr));
}

/// Every door was tried, and refused what the authority that had leaked has signed since.
#[track_caller]
fn tried(proof: &Value, said: &Value) {
    let trial = &proof["trial"];
    assert_eq!(trial["contradicted"].as_array().map(Vec::len), Some(0), "{said}");
    assert!(2 <= trial["asSaid"].as_u64().unwrap(), "{said}");
    assert_eq!(trial["asSaid"], trial["formerRefused"], "{said}");
}

#[test]
fn recovery_from_a_leaked_issuer_ends_with_a_trial_of_what_the_leaked_key_signs_now() {
    let up = Up::shop();
    let issuers = |up: &Up| up.json(&["authority", "list"])["issuers"].as_array().unwrap().clone();
    let old = issuers(&up).into_iter().find(|issuer| issuer["active"] == true).unwrap();
    let old = old["key"].as_str().unwrap().to_owned();
    let done = up.json(&["recover", "--compromised", &format!("authority:{old}"), "--yes"]);
    let steps: Vec<_> =
        done["steps"].as_array().unwrap().iter().map(|step| step["step"].clone()).collect();
    assert_eq!(steps, ["condemn", "reissue", "confirm", "prove"], "{done}");
    assert_eq!(done["proof"]["live"], done["proof"]["enforcing"], "{done}");
    tried(&done["proof"], &done);
    let after = issuers(&up).into_iter().find(|issuer| issuer["key"] == old.as_str()).unwrap();
    assert_eq!((&after["active"], &after["revoked"]), (&false.into(), &true.into()), "{after}");
    until("the shop goes on", || (up.get("web", "/").0 == 200).then_some(()));
    // What was tried is on the log, as what it is.
    let events = up.json(&["events", "--limit", "1000"]).to_string();
    assert!(events.contains("/former"), "{events}");
    let verified = up.json(&["converged", "--verify", "--wait"]);
    let points = verified["verified"].as_array().unwrap();
    assert!(points.iter().any(|point| point["former"] == "refused"), "{verified}");
}

/// Whether a door's certificate leads to a root of this bundle, by openssl's word.
fn verified(door: &str, bundle: &Path) -> Option<bool> {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", door, "-CAfile"])
        .arg(bundle)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = text(&output.stdout);
    let code = said.lines().find(|line| line.contains("Verif") && line.contains("return code"))?;
    Some(code.contains(": 0 (ok)"))
}
