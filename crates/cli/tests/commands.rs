//! Commands that need no trust domain, as processes: what they print, and how they end.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use support::{binary, text};

fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(binary())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[track_caller]
fn ends(arguments: &[&str], input: &[u8], status: i32, stdout: &str) {
    let output = run(arguments, input);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
    assert_eq!(text(&output.stdout), stdout, "{arguments:?}");
}

#[test]
fn id_check_answers_each_line() {
    ends(&["id", "check"], b"spiffe://a/b\n", 0, "ok spiffe://a/b\n");
    ends(
        &["id", "check"],
        b"spiffe://A/b\n\xff\n",
        1,
        "bad trust domain `A` may hold only a-z, 0-9, `.`, `-` and `_`\nbad it is not UTF-8\n",
    );
    ends(&["id", "check"], b"", 0, "");
    ends(
        &["id", "check", "--output", "json"],
        b"spiffe://a/b\nspiffe://A/\x1b\n",
        1,
        "{\"verdict\":\"ok\",\"id\":\"spiffe://a/b\"}\n\
         {\"verdict\":\"bad\",\"why\":\"trust domain `A` may hold only a-z, 0-9, `.`, `-` and `_`\"}\n",
    );
}

#[test]
fn verify_tells_no_from_not_understood() {
    let refused =
        "{\"verdict\":\"refused\",\"rule\":\"no-certificate\",\"why\":\"the chain is empty\"}\n";
    ends(&["verify"], b"{\"chain\":[],\"roots\":[],\"role\":\"client\"}", 1, refused);
    ends(&["verify", "-"], b"{\"chain\":[],\"roots\":[],\"role\":\"server\"}", 1, refused);
    ends(&["verify"], b"{", 2, "");
    ends(&["verify", "/no/such.pem", "--bundle", "/no/such.pem", "--as", "client"], b"", 2, "");
    ends(&["verify", "/dev/null", "--profile", "leaf"], b"", 2, "");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = Command::new(binary())
        .args(["id", "check"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut input = child.stdin.take().unwrap();
    for _ in 0..100_000 {
        if input.write_all(b"spiffe://a/b\n").is_err() {
            break;
        }
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

#[test]
fn schemas_completions_and_references_are_printed() {
    for kind in ["TrustDomain", "Workload", "Service", "Policy"] {
        let output = run(&["schema", kind], b"");
        let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(schema["properties"]["kind"]["const"], kind);
        assert!(
            !text(&output.stdout).contains("null"),
            "a field that may be absent may not be null"
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell], b"");
        assert!(text(&output.stdout).contains("handshakes"), "{shell}");
    }
    for (page, part) in [
        ("config", "| `--listen ADDRESS` | `COUNTERSIGN_LISTEN` | `listen` |"),
        ("codes", "| `no-match` |"),
        ("commands", "## countersign fetch x509"),
        ("manifests", "| `selectors` | yes |"),
        ("metrics", "countersign_proxy_handshakes"),
    ] {
        let output = run(&["reference", page], b"");
        assert!(output.status.success() && text(&output.stdout).contains(part), "{page}");
    }
}

#[test]
fn an_address_that_nobody_knows_is_no_defect() {
    let folder = support::folder();
    let data = folder.path().to_str().unwrap();
    ends(&["address", "web", "--data", data], b"", 3, "");
    std::fs::write(
        folder.path().join("up.json"),
        "{\"data\":\"/d\",\"admin\":\"unix:///a\",\"agent\":\"unix:///b\",\"server\":\"127.0.0.1:1\",\"services\":{\"orders\":\"https://127.0.0.1:2\"}}",
    )
    .unwrap();
    ends(&["address", "orders", "--data", data], b"", 0, "127.0.0.1:2\n");
    ends(
        &["address", "orders", "--data", data, "--output", "json"],
        b"",
        0,
        "{\"service\":\"orders\",\"address\":\"127.0.0.1:2\"}\n",
    );
    ends(&["address", "web", "--data", data], b"", 1, "");
}

#[test]
fn a_failure_is_an_object_for_scripts() {
    let output = run(&["status", "--admin", "unix:///no/such.sock", "--output", "json"], b"");
    assert_eq!(output.status.code(), Some(3));
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["error"]["code"], "unavailable");
    assert!(object["error"]["message"].as_str().unwrap().contains("/no/such.sock"));
}

/// What a script gets of arguments that are not understood: the message of the one object on standard output. People read as
/// much on standard error.
#[track_caller]
fn not_understood(arguments: &[&str]) -> String {
    let output = run(arguments, b"");
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    assert!(!output.stderr.is_empty(), "{arguments:?}");
    let said = text(&output.stdout);
    let object: serde_json::Value =
        serde_json::from_str(&said).unwrap_or_else(|bad| panic!("{arguments:?}: {bad}: {said:?}"));
    assert_eq!(object["error"]["code"], "not-understood", "{arguments:?}: {object}");
    assert_eq!(object["error"]["problems"], serde_json::json!([]), "{arguments:?}: {object}");
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    object["error"]["message"].as_str().unwrap().to_owned()
}

#[test]
fn arguments_that_are_not_understood_are_an_object_for_scripts() {
    for (arguments, words) in [
        (&["revoke", "xyz"][..], "`spiffe://shop.example/web`"),
        (&["revoke", "--serial", "zz"], "32 lower-case"),
        (&["revoke", "--reason", "because"], "because"),
        (&["suspend"], "required arguments were not provided: <SPIFFE-ID>"),
        (&["converged", "abc"], "`countersign history`"),
        (&["diff", "1.1", "x"], "`countersign history`"),
        (&["show"], "required arguments were not provided"),
        (&["status", "--handshakes", "--limit", "x"], "a whole number"),
        (&["token", "create", "--ttl", "soon"], "soon"),
        (&["resource", "list", "--kind", "Wrkload"], "Wrkload"),
        (&["log", "show", "x"], "`countersign log tail`"),
        (&["store", "copy", "--from", "a"], "--to <PLACE>"),
        (&["backup", "b"], "--data <DIR>"),
        (&["verify", "--as", "peer"], "possible values: client, server"),
        (&["fetch", "x509", "--id", "x"], "`spiffe://TRUST-DOMAIN/PATH`"),
        (&["stauts"], "a similar subcommand exists: 'status'"),
        (&["fetch"], "no command is named"),
        (&[], "no command is named"),
    ] {
        let said = not_understood(&[arguments, &["--output", "json"]].concat());
        assert!(said.contains(words), "{arguments:?}: expected `{words}` in: {said}");
        assert!(!said.contains("Usage:") && !said.contains("error:"), "{arguments:?}: {said}");
    }
    ends(&["stauts"], b"", 2, "");
    ends(&["stauts", "--output", "human"], b"", 2, "");
    let help = run(&["status", "--help", "--output", "json"], b"");
    assert!(help.status.success() && text(&help.stdout).contains("Usage: "), "help stays help");
    let version = run(&["--version", "--output", "json"], b"");
    assert!(version.status.success() && text(&version.stdout).starts_with("countersign "));
}

#[test]
fn no_command_leaves_scripts_without_an_object_for_a_flag_that_it_does_not_know() {
    let page = text(&run(&["reference", "commands"], b"").stdout);
    let names = page.lines().filter_map(|line| line.strip_prefix("## countersign"));
    let commands: Vec<Vec<&str>> = names.map(|name| name.split_whitespace().collect()).collect();
    assert!(50 <= commands.len(), "only {} commands were found", commands.len());
    for command in commands {
        for form in [&["--output", "json"][..], &["--output=json"]] {
            let said = not_understood(&[&command[..], &["--nosuch"], form].concat());
            assert!(said.contains("unexpected argument '--nosuch' found"), "{command:?}: {said}");
        }
    }
}

#[test]
fn settings_are_judged_all_at_once() {
    let output = Command::new(binary())
        .args(["server", "--drain", "soon"])
        .env("COUNTERSIGN_LISTEN", "here")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    for part in [
        "3 settings are wrong",
        "`--data` is missing",
        "COUNTERSIGN_LISTEN: `here`",
        "`--drain`: `soon`",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_join_token_is_never_repeated() {
    let output = Command::new(binary())
        .args(["agent", "--data", "/tmp/never-made", "--server", "127.0.0.1:1"])
        .env("COUNTERSIGN_JOIN", "s3cr3t token")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr) + &text(&output.stdout);
    assert!(said.contains("--trust") && !said.contains("s3cr3t"), "{said}");
    // Nor where none is expected.
    let token = "q7RZx0Jt-yQ2m_8sV1nKpW3eUaYbGdLhTzCfXo5iE4M";
    for command in [&[][..], &["agent"], &["agent", "--"], &["log"], &["status"]] {
        let arguments = [command, &[token]].concat();
        let output = Command::new(binary()).args(["--output", "json"]).args(&arguments).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = text(&output.stderr) + &text(&output.stdout);
        assert!(said.contains("'…'") && !said.contains(token), "{arguments:?}: {said}");
    }
}
