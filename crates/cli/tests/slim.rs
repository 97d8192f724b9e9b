//! The programs of each machine by themselves: they do what `countersign agent` and `countersign proxy` do, with nothing of the
//! control plane in them.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/domain.rs"]
mod domain;
mod support;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use domain::{Part, run};
use serde_json::Value;
use support::{folder, text, until};

/// A program of the same build. `cargo test --workspace` and `cargo build --workspace` make it.
fn program(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_countersign")).with_file_name(name);
    assert!(path.is_file(), "{} is not there: build the workspace", path.display());
    path
}

fn holds(program: &PathBuf, text: &[u8]) -> bool {
    let bytes = std::fs::read(program).unwrap();
    bytes.windows(text.len()).any(|window| window == text)
}

#[test]
fn agent_by_itself_joins_and_proxy_by_itself_opens_a_door() {
    let folder = folder();
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let data = place("server");
    let made = run(&["init", "--data", &data, "--trust-domain", "prod.example"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let arguments = ["server", "--data", &data, "--listen", "127.0.0.1:0", "--metrics", "off"];
    let server = Part::start(&arguments, &[]);
    let admin = server.ready["admin"].as_str().unwrap();
    std::fs::write(place("me.yaml"), support::manifest_of_me("5m")).unwrap();
    assert!(run(&["apply", &place("me.yaml"), "--admin", admin]).status.success());
    let token = run(&["token", "create", "--admin", admin, "--output", "json"]);
    let token: Value = serde_json::from_slice(&token.stdout).unwrap();

    let listen = server.ready["listen"].as_str().unwrap();
    let agent = Part::start_of(
        &program("countersign-agent"),
        &["--data", &place("agent"), "--server", listen],
        &[
            ("COUNTERSIGN_JOIN", token["token"].as_str().unwrap()),
            ("COUNTERSIGN_TRUST", token["trust"].as_str().unwrap()),
        ],
    );
    let socket = agent.ready["socket"].as_str().unwrap();
    let me = place("me");
    until("the identity is served", || {
        run(&["fetch", "x509", "--socket", socket, "--write", &me]).status.success().then_some(())
    });

    let (chain, key, bundle) =
        (place("me/svid.pem"), place("me/svid-key.pem"), place("me/bundle.pem"));
    let files = ["--chain", &chain, "--key", &key, "--bundle", &bundle];
    let door = ["--inbound", "service=me,listen=127.0.0.1:0,forward=127.0.0.1:1"];
    let allow = ["--allow", "spiffe://prod.example/me"];
    let proxy =
        Part::start_of(&program("countersign-proxy"), &[&files[..], &door, &allow].concat(), &[]);
    let door = proxy.ready["inbound"][0]["listen"].as_str().unwrap();
    let shaken = Command::new("openssl")
        .args(["s_client", "-connect", door, "-ign_eof"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = text(&shaken.stdout) + &text(&shaken.stderr);
    assert!(said.contains("certificate required"), "{said}");
}

#[test]
fn programs_by_themselves_hold_no_database_and_say_what_they_do_not_understand() {
    // It stands in the code of SQLite, and in nothing of ours.
    let mark = b"SQLite format 3";
    assert!(holds(&program("countersign"), mark), "the mark is a mark");
    for name in ["countersign-agent", "countersign-proxy"] {
        let program = program(name);
        assert!(!holds(&program, mark), "{name} holds a database");
        let help = Command::new(&program).arg("--help").output().unwrap();
        assert!(text(&help.stdout).contains(&format!("Usage: {name}")), "{}", text(&help.stdout));
        let refused = Command::new(&program).args(["--log", "xml"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
        let said = text(&refused.stderr);
        assert!(said.starts_with(&format!("{name}: ")) && said.contains("`xml`"), "{said}");
        let nosuch = ["--nosuch", "--output", "json"];
        let refused = Command::new(&program).args(nosuch).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
        let object: Value = serde_json::from_slice(&refused.stdout).unwrap();
        assert_eq!(object["error"]["code"], "not-understood", "{name}: {object}");
    }
}
