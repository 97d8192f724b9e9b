//! Revocation as an operator does it: real processes, curl and openssl as outsiders.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use support::{Up, folder, shop, signal, text, until};

const ORDERS: &str = "spiffe://shop.example/orders";

/// A policy that lets `me` use `orders`.
const ME_TO_ORDERS: &str = r#"
apiVersion: countersign.dev/v1alpha1
kind: Policy
metadata: {name: me-to-orders}
spec:
  cedar: |
    permit (principal == Workload::"me", action == Action::"connect", resource == Service::"orders");
"#;

/// A domain in which this user's processes are `me`, with its SVID in files, as a thief has it who took them.
fn stolen(state: &Path) -> Up {
    let up = Up::start(&shop(), &state.join("data"), &[]);
    up.make_me("10m");
    let policy = state.join("policy.yaml");
    std::fs::write(&policy, ME_TO_ORDERS).unwrap();
    up.json(&["apply", policy.to_str().unwrap()]);
    let out = state.join("me");
    until("the SVID of `me` is served", || {
        let fetched = up.run(&["fetch", "x509", "--write", out.to_str().unwrap()]);
        fetched.status.success().then_some(())
    });
    up
}

/// A connection to the door of `orders` that shows the stolen SVID and stays open.
fn dial(up: &Up, state: &Path) -> Child {
    let me = state.join("me");
    Command::new("openssl")
        .args(["s_client", "-connect", &up.address("orders"), "-quiet", "-verify_quiet"])
        .arg("-cert")
        .arg(me.join("svid.pem"))
        .arg("-cert_chain")
        .arg(me.join("svid.pem"))
        .arg("-key")
        .arg(me.join("svid-key.pem"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What became of a connection that is expected to end.
#[track_caller]
fn said_at_end(mut child: Child) -> String {
    until("the connection ends", || child.try_wait().unwrap());
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    out + &err
}

fn serial_of(state: &Path) -> String {
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-serial", "-in"])
        .arg(state.join("me/svid.pem"))
        .output()
        .unwrap();
    text(&output.stdout).trim().trim_start_matches("serial=").to_ascii_lowercase()
}

/// Whether the door of `orders` has seen a handshake of `me`, with this outcome: a code, or null for admitted.
fn seen_of_me(up: &Up, code: &Value) -> Option<()> {
    let seen = up.json(&["status", "--handshakes"]);
    let seen = seen["handshakes"].as_array().unwrap();
    let of_me =
        |seen: &Value| seen["peerId"] == "spiffe://shop.example/me" && seen["service"] == "orders";
    seen.iter().any(|seen| of_me(seen) && seen["code"] == *code).then_some(())
}

/// The process of an enforcement point, once it is told.
#[track_caller]
fn process_of(up: &Up, point: &str) -> i32 {
    until("the process is told", || {
        let status = up.json(&["status"]);
        let mut processes = status["nodes"][0]["processes"].as_array()?.iter();
        let process = processes.find(|process| process["name"] == point)?;
        i32::try_from(process["pid"].as_u64()?).ok()
    })
}

#[test]
fn one_command_refuses_cuts_reissues_and_proves_it() {
    let up = Up::shop();
    assert_eq!(up.get("web", "/").0, 200);
    let serial = |up: &Up| {
        // What an agent holds is told within half a second.
        until("its certificate is told", || {
            let status = up.json(&["status"]);
            let held = status["nodes"][0]["credentials"].as_array()?;
            let orders = held.iter().find(|held| held["spiffeId"] == ORDERS)?;
            orders["serial"].as_str().map(str::to_owned)
        })
    };
    let before = serial(&up);
    let done = up.json(&["revoke", ORDERS, "--reason", "key-compromise", "--wait"]);
    assert_eq!((done["live"].as_u64(), done["enforcing"].as_u64()), (Some(3), Some(3)), "{done}");
    assert!(1 <= done["connections_cut"].as_u64().unwrap(), "{done}");
    assert!(done["slowest_ms"].is_u64() && done["reissued_ms"].is_u64(), "{done}");
    assert_eq!((&done["missing"], &done["exposure_ends"]), (&Value::Array(vec![]), &Value::Null));
    println!("slowest {} ms, re-issued in {} ms", done["slowest_ms"], done["reissued_ms"]);
    until("the new SVID is in use", || (serial(&up) != before).then_some(()));
    until("orders serves again", || (up.get("web", "/").0 == 200).then_some(()));
    let listed = up.json(&["revocations"]);
    assert_eq!(listed["rules"][0]["target"]["identity"]["id"], ORDERS, "{listed}");
}

#[test]
fn stolen_credential_is_refused_by_the_reason_revoked_and_its_live_connection_is_cut() {
    let state = folder();
    let up = stolen(state.path());
    let mut live = dial(&up, state.path());
    until("the stolen SVID is let in", || seen_of_me(&up, &Value::Null));
    assert!(live.try_wait().unwrap().is_none(), "it is open");
    let serial = serial_of(state.path());
    let done = up.json(&["revoke", "--serial", &serial, "--reason", "key-compromise", "--wait"]);
    assert_eq!(done["live"], done["enforcing"], "{done}");
    assert!(
        1 <= done["unaware"].as_u64().unwrap(),
        "whoever reads the files hears nothing: {done}"
    );
    assert!(done["exposure_ends"].is_string(), "{done}");
    assert!(1 <= done["connections_cut"].as_u64().unwrap(), "{done}");
    said_at_end(live);
    let refused = said_at_end(dial(&up, state.path()));
    assert!(refused.contains("certificate revoked"), "{refused}");
    until("the refusal is seen with its reason", || seen_of_me(&up, &Value::from("revoked")));
    assert_eq!(up.get("web", "/").0, 200, "nobody else is concerned");
}

#[test]
fn point_that_cannot_answer_is_missing_by_name_and_exposure_has_an_end() {
    let up = Up::shop();
    let proxy = process_of(&up, "payments-proxy");
    signal(proxy, "STOP");
    let waits = ["--wait", "--timeout", "3s", "--output", "json"];
    let asked = up.run(&[&["revoke", ORDERS, "--reason", "superseded"], &waits[..]].concat());
    assert_eq!(asked.status.code(), Some(1), "not converged: {}", text(&asked.stderr));
    let done: Value = serde_json::from_slice(&asked.stdout).unwrap();
    let revision = done["revision"].as_str().unwrap();
    let done = until("the others enforce it", || {
        let asked = up.run(&["converged", revision, "--output", "json"]);
        let done: Value = serde_json::from_slice(&asked.stdout).ok()?;
        (done["enforcing"] == 2).then_some(done)
    });
    assert_eq!((done["live"].as_u64(), done["enforcing"].as_u64()), (Some(3), Some(2)), "{done}");
    assert_eq!(done["missing"][0]["point"], "payments-proxy", "{done}");
    assert!(done["exposure_ends"].is_string(), "{done}");
    assert_eq!(up.run(&["converged"]).status.code(), Some(1));
    signal(proxy, "CONT");
    let done = up.json(&["converged", "--wait", "--timeout", "90s"]);
    assert_eq!((done["enforcing"].as_u64(), &done["missing"]), (Some(3), &Value::Array(vec![])));
}

#[test]
fn trial_shows_which_points_do_what_they_say_and_which_only_said_so() {
    let up = Up::shop();
    let done = up.json(&["revoke", ORDERS, "--reason", "key-compromise", "--wait", "--verify"]);
    assert_eq!((done["live"].as_u64(), done["enforcing"].as_u64()), (Some(3), Some(3)), "{done}");
    let tried = |done: &Value| {
        let mut names = Vec::new();
        for tried in done["verified"].as_array().unwrap() {
            let outcomes = (tried["covered"].as_str(), tried["uncovered"].as_str());
            assert_eq!(outcomes, (Some("refused"), Some("accepted")), "{tried}");
            names.push(tried["point"].as_str().unwrap().to_owned());
        }
        names.sort();
        let only_said = done["unverified"].as_array().unwrap().clone();
        (names, only_said)
    };
    let (names, only_said) = tried(&done);
    assert_eq!(names, ["orders-proxy", "payments-proxy"], "{done}");
    assert_eq!(only_said.len(), 1, "{done}");
    assert_eq!(
        (&only_said[0]["point"], &only_said[0]["why"]),
        (&"web-proxy".into(), &"no door".into())
    );
    // The doors have seen the canaries for what they are, and the log has their certificates.
    let canaries = until("the canaries are seen", || {
        let mut seen = up.json(&["status", "--handshakes"])["handshakes"].as_array()?.clone();
        seen.retain(|seen| seen["peerId"].as_str().is_some_and(|id| id.contains("/canary/")));
        let of = |code: &str| seen.iter().any(|seen| seen["code"] == code);
        (of("canary") && of("revoked")).then_some(seen)
    });
    assert!(canaries.iter().all(|seen| seen["code"].is_string()), "none was let in: {canaries:?}");
    // Again, of an older revision, by itself.
    let revision = done["revision"].as_str().unwrap();
    let again = up.json(&["converged", revision, "--verify"]);
    assert_eq!(tried(&again).0, names, "{again}");
    // A point that hangs proves nothing, and is not waited for without end.
    let proxy = process_of(&up, "payments-proxy");
    signal(proxy, "STOP");
    let tried = until("the others were tried in time", || {
        let asked = up.run(&["converged", "--verify", "--timeout", "3s", "--output", "json"]);
        assert_eq!(asked.status.code(), Some(1), "{}", text(&asked.stderr));
        let tried: Value = serde_json::from_slice(&asked.stdout).unwrap();
        let count = |of: &str| tried[of].as_array().map(Vec::len);
        ((count("verified"), count("missing")) == (Some(1), Some(1))).then_some(tried)
    });
    signal(proxy, "CONT");
    assert_eq!(tried["verified"][0]["point"], "orders-proxy", "{tried}");
    assert_eq!(tried["missing"][0]["point"], "payments-proxy", "{tried}");
    assert_eq!(tried["unverified"].as_array().unwrap().len(), 2, "{tried}");
    assert_eq!(up.get("web", "/").0, 200);
}

#[test]
fn suspended_identity_gets_nothing_until_it_is_resumed() {
    let up = Up::shop();
    assert_eq!(up.get("web", "/").0, 200);
    let done = up.json(&["revoke", ORDERS, "--reason", "process-compromise", "--wait"]);
    assert_eq!(done["revoked"]["suspended"][0]["target"]["identity"], ORDERS, "{done}");
    until("nothing answers for orders", || (up.get("web", "/").0 != 200).then_some(()));
    up.json(&["resume", ORDERS]);
    until("orders serves again", || (up.get("web", "/").0 == 200).then_some(()));
}

#[test]
fn what_cannot_be_revoked_is_said_in_a_sentence() {
    let up = Up::shop();
    let said = |arguments: &[&str], status: i32, words: &str| {
        let output = up.run(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(words), "{arguments:?}: {}", text(&output.stderr));
    };
    said(&["revoke", ORDERS], 2, "say why with `--reason`");
    said(&["revoke", "--reason", "key-compromise"], 2, "nothing is named");
    said(&["revoke", ORDERS, "--reason", "because"], 2, "expected one of");
    said(&["revoke", "--serial", &"40".repeat(16), "--reason", "superseded"], 1, "on record");
    said(&["revoke", ORDERS, "--reason", "node-compromise"], 2, "`--node`");
    said(&["resume", ORDERS], 1, "is not suspended");
}
