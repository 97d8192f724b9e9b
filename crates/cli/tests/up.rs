//! `countersign up` as a user runs it: real processes, curl, openssl.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use support::{Up, folder, shop, text, until};

#[test]
fn a_request_travels_from_web_to_payments_and_a_door_refuses_who_shows_no_certificate() {
    let up = Up::shop();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20"]).arg(up.ready["web"].as_str().unwrap());
    let answer = curl.output().unwrap();
    assert!(answer.status.success(), "{}", text(&answer.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(answer["orders"]["payments"]["service"], "payments", "{answer}");

    for door in ["orders", "payments"] {
        let address = up.address(door);
        let output = Command::new("openssl")
            .args(["s_client", "-connect", &address, "-ign_eof"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains("certificate required"), "{door}: {said}");
    }
    let seen = until("the refused handshakes are seen", || {
        let seen = up.json(&["status", "--handshakes"]).to_string();
        (2 <= seen.matches("no-certificate").count()).then_some(seen)
    });
    assert!(seen.contains("spiffe://shop.example/web"), "the admitted ones are seen too: {seen}");
}

#[test]
fn a_refused_handshake_is_found_by_its_reason_and_the_admitted_ones_are_counted() {
    let up = Up::shop();
    assert_eq!(up.get("web", "/").0, 200);
    let door = up.address("orders");
    Command::new("openssl")
        .args(["s_client", "-connect", &door, "-ign_eof"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let refused = ["handshakes", "--reason", "no-certificate", "--at", "orders"];
    let found = until("the refused handshake is stored", || {
        let found = up.json(&refused);
        (0 < found["entries"].as_u64()?).then_some(found)
    });
    let seen = &found["handshakes"][0];
    assert_eq!((&seen["direction"], &seen["from"]), (&"inbound".into(), &"".into()), "{found}");
    assert_ne!(seen["peerAddress"], "", "{found}");
    let shown = up.run(&refused);
    assert!(text(&shown.stdout).contains("refused: no-certificate"), "{}", text(&shown.stdout));
    let counted = until("the admitted ones are stored", || {
        let pair = ["handshakes", "--from", "web", "--to", "orders", "--outcome", "admitted"];
        let counted = up.json(&[&pair[..], &["--by", "version"]].concat());
        (0 < counted["groups"][0]["accepting"]["admitted"].as_u64()?).then_some(counted)
    });
    assert_eq!(counted["groups"][0]["value"], "1.3", "{counted}");
    let group = up.json(&["handshakes", "--from", "web", "--group", "x25519mlkem768"]);
    assert_ne!(group["entries"], 0, "{group}");
    let none = up.json(&["handshakes", "--reason", "revoked"]);
    assert_eq!(none["entries"], 0, "{none}");
}

#[test]
fn a_process_that_nobody_launched_gets_no_identity_until_a_manifest_names_it() {
    let up = Up::shop();
    let refused = up.run(&["fetch", "x509"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("matches no workload"), "{}", text(&refused.stderr));

    let state = folder();
    let manifest = state.path().join("me.yaml");
    let uid = Command::new("id").arg("-u").output().unwrap();
    let uid = text(&uid.stdout).trim().to_owned();
    std::fs::write(
        &manifest,
        format!(
            "apiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {{name: me}}\n\
             spec: {{selectors: [\"unix:uid:{uid}\"], lifetime: 5m}}\n"
        ),
    )
    .unwrap();
    up.json(&["apply", manifest.to_str().unwrap()]);
    let out = state.path().join("me");
    let fetched = until("the new workload is served", || {
        let fetched =
            up.run(&["fetch", "x509", "--write", out.to_str().unwrap(), "--output", "json"]);
        fetched.status.success().then_some(fetched)
    });
    assert!(
        text(&fetched.stdout).contains("spiffe://shop.example/me"),
        "{}",
        text(&fetched.stdout)
    );
    let verify = |role| {
        let output = Command::new(support::binary())
            .arg("verify")
            .arg(out.join("svid.pem"))
            .arg("--bundle")
            .arg(out.join("bundle.pem"))
            .args(["--as", role])
            .output()
            .unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    for role in ["client", "server"] {
        let verdict = verify(role);
        assert_eq!(verdict["verdict"], "accepted", "{verdict}");
        assert_eq!(verdict["id"], "spiffe://shop.example/me");
    }

    up.json(&["resource", "remove", "Workload", "me"]);
    until("the removed workload is withdrawn", || {
        (up.run(&["fetch", "x509"]).status.code() == Some(1)).then_some(())
    });
}

#[test]
fn a_second_up_goes_on_with_the_same_data() {
    let state = folder();
    let first = Up::start(&shop(), state.path(), &[]);
    let told = |up: &Up| {
        up.status_until("the node is told", |status| {
            status["source"] == "server" && status["nodes"][0]["id"].is_string()
        })
    };
    let before = told(&first);
    let status = first.interrupt();
    assert!(status.success(), "{status}");

    let second = Up::start(&shop(), state.path(), &[]);
    let after = told(&second);
    assert_eq!(
        before["nodes"][0]["id"], after["nodes"][0]["id"],
        "the same node, without a new token"
    );
    assert_eq!(second.get("web", "/").0, 200);
    let log = |status: &serde_json::Value| status["server"]["log"]["size"].as_u64().unwrap();
    assert!(log(&before) < log(&after), "the log goes on");
}

#[test]
fn two_ups_run_side_by_side() {
    let (one, two) = (Up::shop(), Up::shop());
    assert_ne!(one.ready["orders"], two.ready["orders"]);
    assert_eq!((one.get("web", "/").0, two.get("web", "/").0), (200, 200));
}

#[test]
fn up_ends_by_itself_and_leaves_no_process_behind() {
    let state = folder();
    let up = Up::start(&shop(), state.path(), &["--for", "30s"]);
    let pids = until("an agent and three proxies report", || {
        let status = up.json(&["status"]);
        let processes = status["nodes"][0]["processes"].as_array()?.iter();
        let pids: Vec<u32> =
            processes.filter_map(|process| process["pid"].as_u64()?.try_into().ok()).collect();
        (4 <= pids.len()).then_some(pids)
    });
    let status = up.wait();
    assert!(status.success(), "{status}");
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid} lives on");
    }
}

#[test]
fn a_killed_up_takes_its_processes_with_it() {
    let up = Up::shop();
    let address = up.address("orders");
    support::signal(up.pid(), "KILL");
    until("the door is gone", || std::net::TcpStream::connect(&address).is_err().then_some(()));
}

#[test]
fn a_killed_proxy_comes_back() {
    let up = Up::shop();
    let pid = pid_of_proxy(&up, "orders");
    support::signal(i32::try_from(pid).unwrap(), "KILL");
    until("the request goes through again", || {
        std::thread::park_timeout(Duration::from_millis(100));
        (!std::path::Path::new(&format!("/proc/{pid}")).exists() && up.get("web", "/").0 == 200)
            .then_some(())
    });
}

/// As where somebody else's manifest describes the same processes.
#[test]
fn a_proxy_of_up_stays_who_it_was_started_for_whatever_else_its_processes_come_to_match() {
    let up = Up::shop();
    let pid = pid_of_proxy(&up, "orders");
    let folder = folder();
    let file = folder.path().join("also.yaml");
    // It comes first by its name.
    let manifest = "apiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {name: also}\n\
                    spec: {selectors: [\"launch:orders\"]}\n";
    std::fs::write(&file, manifest).unwrap();
    up.json(&["apply", file.to_str().unwrap()]);
    up.status_until("the agent holds it", |status| {
        status["nodes"].to_string().contains("spiffe://shop.example/also")
    });
    support::signal(i32::try_from(pid).unwrap(), "KILL");
    until("another proxy has its place, and serves", || {
        let gone = !std::path::Path::new(&format!("/proc/{pid}")).exists();
        (gone && up.get("web", "/").0 == 200).then_some(())
    });
}

fn pid_of_proxy(up: &Up, name: &str) -> u64 {
    let found = |status: &serde_json::Value| {
        let processes = status["nodes"][0]["processes"].as_array()?;
        let is_it = |process: &&serde_json::Value| {
            process["kind"] == "proxy" && process["name"].as_str().unwrap().contains(name)
        };
        processes.iter().find(is_it)?["pid"].as_u64()
    };
    let status = up.status_until("the proxy reports", |status| found(status).is_some());
    found(&status).unwrap()
}

#[test]
fn the_first_request_is_served_within_two_seconds_and_idle_memory_is_small() {
    let up = Up::shop();
    // What a user feels; measured with the release build, on a machine that does other things too.
    println!("ready after {:?}", up.took);
    // The budget is that of the release build; an unoptimised one, under plain `cargo test`, has thrice the code.
    let slack = if std::env::var_os("COUNTERSIGN_BIN").is_some() { 1 } else { 3 };
    let over =
        |value: &serde_json::Value, mib: u64| mib * slack * 1024 * 1024 <= value.as_u64().unwrap();
    // Idle: what only the start needed is given back two seconds after it.
    let status = up.status_until("every process idles within its budget of memory", |status| {
        let processes = status["nodes"][0]["processes"].as_array().cloned().unwrap_or_default();
        let limit = |process: &serde_json::Value| if process["kind"] == "agent" { 30 } else { 20 };
        let large = |process: &serde_json::Value| over(&process["residentBytes"], limit(process));
        status["source"] == "server"
            && 4 <= processes.len()
            && !over(&status["server"]["residentBytes"], 60)
            && !processes.iter().any(large)
    });
    println!("{}: {}", status["server"]["residentBytes"], status["nodes"][0]["processes"]);
}
