//! A machine becomes a node by a certificate of its operator's own, as an operator sets it up: openssl, a server, an agent.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/domain.rs"]
mod domain;
mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use domain::{Part, run};
use serde_json::Value;
use support::{binary, folder, text, until};

fn openssl(folder: &Path, arguments: &str) {
    let mut command = Command::new("openssl");
    command.args(arguments.split_whitespace()).current_dir(folder);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", text(&output.stderr));
}

/// An authority, and machines' certificates of it.
fn make_authority(folder: &Path) {
    let usage = "basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\n\
                 extendedKeyUsage=clientAuth\nsubjectAltName=DNS:rack-7.example\n";
    std::fs::write(folder.join("ext"), usage).unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(
        folder,
        &format!("req -x509 {key} -subj /CN=machines -keyout ca.key -out ca.pem -days 2"),
    );
    openssl(
        folder,
        &format!("req -x509 {key} -subj /CN=machines -keyout other.key -out other.pem -days 2"),
    );
    for (name, authority, days) in
        [("good", "ca", "1"), ("foreign", "other", "1"), ("second", "ca", "1")]
    {
        openssl(folder, &format!("req {key} -subj /CN=rack-7 -keyout {name}.key -out csr"));
        openssl(
            folder,
            &format!(
                "x509 -req -in csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial \
                 -days {days} -extfile ext -out {name}.pem"
            ),
        );
    }
}

struct World {
    folder: tempfile::TempDir,
    server: Part,
    trust: String,
}

impl World {
    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// The arguments of an agent that shows this certificate.
    fn agent(&self, data: &str, certificate: &str, key: &str) -> Vec<String> {
        let listen = self.server.ready["listen"].as_str().unwrap();
        [
            "agent",
            "--data",
            &self.path(data),
            "--server",
            listen,
            "--attest",
            "x509",
            "--certificate",
            &self.path(certificate),
            "--key",
            &self.path(key),
            "--trust",
            &self.trust,
            "--socket",
            &self.path(&format!("{data}/run/agent.sock")),
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn refused(&self, data: &str, certificate: &str, key: &str) -> Output {
        let output =
            Command::new(binary()).args(self.agent(data, certificate, key)).output().unwrap();
        assert!(!output.status.success(), "{}", text(&output.stdout));
        output
    }
}

#[test]
fn machine_with_a_certificate_becomes_one_node_and_others_do_not() {
    let folder = folder();
    make_authority(folder.path());
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let data = place("server");
    let made =
        run(&["init", "--data", &data, "--trust-domain", "prod.example", "--output", "json"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let trust = made["trust"].as_str().unwrap().to_owned();
    let server = Part::start(
        &[
            "server",
            "--data",
            &data,
            "--listen",
            "127.0.0.1:0",
            "--metrics",
            "off",
            "--node-ca",
            &place("ca.pem"),
            "--node-label",
            "rack",
        ],
        &[],
    );
    let admin = server.ready["admin"].as_str().unwrap().to_owned();
    let manifest = place("me.yaml");
    let me = support::manifest_of_me("5m").replace("lifetime:", "nodes: [rack], lifetime:");
    std::fs::write(&manifest, me).unwrap();
    let applied = run(&["apply", &manifest, "--admin", &admin]);
    assert!(applied.status.success(), "{}", text(&applied.stderr));
    let world = World { folder, server, trust };

    let refused = world.refused("a0", "foreign.pem", "foreign.key");
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
    let refused = world.refused("a0", "ca.pem", "ca.key");
    assert!(text(&refused.stderr).contains("is an authority's"), "{}", text(&refused.stderr));
    let refused = world.refused("a0", "good.pem", "second.key");
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("is not the key"), "{}", text(&refused.stderr));

    let good = world.path("good.key");
    let mode =
        |mode| std::fs::set_permissions(&good, std::fs::Permissions::from_mode(mode)).unwrap();
    for open in [0o640, 0o604] {
        mode(open);
        let refused = world.refused("a0", "good.pem", "good.key");
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
        assert!(text(&refused.stderr).contains("chmod 600"), "{}", text(&refused.stderr));
    }
    mode(0o600);
    let arguments = world.agent("a1", "good.pem", "good.key");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let agent = Part::start(&arguments, &[]);
    let socket = agent.ready["socket"].as_str().unwrap();
    until("the identity that needs the label is served", || {
        run(&["fetch", "x509", "--socket", socket]).status.success().then_some(())
    });

    // Whoever has copied the files is no second node.
    let refused = world.refused("a2", "good.pem", "good.key");
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("node remove"), "{}", text(&refused.stderr));
    let status = run(&["status", "--admin", &admin, "--output", "json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 1, "{status}");
    // Whoever looks sees by what it became one.
    assert_eq!(status["nodes"][0]["attestedBy"], "x509", "{status}");
    let listed = text(&run(&["node", "list", "--admin", &admin]).stdout);
    assert!(listed.lines().nth(1).is_some_and(|row| row.contains(" x509 ")), "{listed}");
    let events = text(&run(&["events", "--admin", &admin, "--output", "json"]).stdout);
    assert!(events.contains("node-attested"), "{events}");
}

#[test]
fn agent_and_server_say_at_once_what_they_lack_for_it() {
    let folder = folder();
    let data = folder.path().join("d");
    let agent = |more: &[&str]| {
        let data = data.to_str().unwrap();
        run(&[&["agent", "--data", data, "--server", "127.0.0.1:1"], more].concat())
    };
    for (more, said) in [
        (&["--attest", "x509"][..], "`--attest x509` needs `--certificate FILE` and `--key FILE`"),
        (&["--attest", "x509", "--certificate", "c", "--key", "k"], "`--trust` is missing"),
        (&["--certificate", "c", "--key", "k"], "are for `--attest x509`"),
        (&["--attest", "tpm"], "`tpm` is no way to prove a node"),
    ] {
        let refused = agent(more);
        assert_eq!(refused.status.code(), Some(2), "{more:?}");
        assert!(text(&refused.stderr).contains(said), "{more:?}: {}", text(&refused.stderr));
    }
    let made = run(&["init", "--data", data.to_str().unwrap(), "--trust-domain", "prod.example"]);
    assert!(made.status.success());
    let arguments = ["server", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let refused = run(&[&arguments[..], &["--metrics", "off", "--node-ca", "/no/such"]].concat());
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("/no/such"), "{}", text(&refused.stderr));
    let refused = run(&[&arguments[..], &["--node-label", "rack"]].concat());
    assert!(text(&refused.stderr).contains("--node-ca"), "{}", text(&refused.stderr));
}
