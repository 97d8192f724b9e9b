//! A trust domain of parts, as in production: a server, an agent that joined it, and a workload for this user.

#![expect(dead_code, reason = "each test binary uses its own part of this")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{self, binary, folder, text, until};

/// A part that says when it is ready, and is ended with the test.
pub(crate) struct Part {
    child: Child,
    pub(crate) ready: Value,
}

impl Part {
    pub(crate) fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_of(&binary(), arguments, environment)
    }

    /// The same of this program.
    pub(crate) fn start_of(
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).args(["--output", "json", "--log-level", "warn"]);
        Self::spawn(command.envs(environment.iter().copied()))
    }

    /// The same with a log that cannot be written: each line meets a full disk.
    pub(crate) fn start_without_log(arguments: &[&str]) -> Self {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(binary());
        command.args(arguments).args(["--output", "json", "--log-level", "debug"]);
        Self::spawn(command.stderr(full))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{command:?} said `{line}`: {error}"));
        assert_eq!(ready["event"], "ready", "{ready}");
        Self { child, ready }
    }

    /// Cuts it off, as a crash does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            support::signal(i32::try_from(self.child.id()).unwrap(), "TERM");
            let _reaped = self.child.wait();
        }
    }
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).output().unwrap()
}

/// The trust domain `prod.example`.
pub(crate) struct Domain {
    pub(crate) folder: TempDir,
    pub(crate) server: Part,
    pub(crate) agent: Part,
}

impl Domain {
    pub(crate) fn make() -> Self {
        Self::make_with("5m", &[])
    }

    /// With this lifetime for the workload, and this environment for the agent.
    pub(crate) fn make_with(lifetime: &str, agents: &[(&str, &str)]) -> Self {
        Self::make_of(agents, &[], |_ready| support::manifest_of_me(lifetime))
    }

    /// With this environment for the agent, more arguments for the server, and these manifests once it is ready.
    pub(crate) fn make_of(
        agents: &[(&str, &str)],
        server_arguments: &[&str],
        manifests: impl FnOnce(&Value) -> String,
    ) -> Self {
        Self::make_by(&[], agents, server_arguments, manifests)
    }

    /// The same, begun with more arguments.
    pub(crate) fn make_by(
        begun_with: &[&str],
        agents: &[(&str, &str)],
        server_arguments: &[&str],
        manifests: impl FnOnce(&Value) -> String,
    ) -> Self {
        let folder = folder();
        let place = |name: &str| text_of(&folder.path().join(name));
        let server_data = place("server");
        let init = ["init", "--data", &server_data, "--trust-domain", "prod.example"];
        let made = run(&[&init[..], begun_with].concat());
        assert!(made.status.success(), "{}", text(&made.stderr));
        let arguments = [
            "server",
            "--data",
            &server_data,
            "--listen",
            "127.0.0.1:0",
            "--metrics",
            "127.0.0.1:0",
        ];
        let server = Part::start(&[&arguments, server_arguments].concat(), &[]);
        let manifest = place("me.yaml");
        std::fs::write(&manifest, manifests(&server.ready)).unwrap();
        let admin = server.ready["admin"].as_str().unwrap().to_owned();
        let applied = run(&["apply", &manifest, "--admin", &admin]);
        assert!(applied.status.success(), "{}", text(&applied.stderr));

        let token = run(&["token", "create", "--admin", &admin, "--output", "json"]);
        let token: Value = serde_json::from_slice(&token.stdout).unwrap();
        let listen = server.ready["listen"].as_str().unwrap();
        let arguments = |data: &str, socket: &str| {
            ["agent", "--data", data, "--server", listen, "--socket", socket]
                .map(str::to_owned)
                .to_vec()
        };
        let joined = arguments(&place("agent"), &place("run/agent.sock"));
        let joined: Vec<&str> = joined.iter().map(String::as_str).collect();
        let environment = [
            ("COUNTERSIGN_JOIN", token["token"].as_str().unwrap()),
            ("COUNTERSIGN_TRUST", token["trust"].as_str().unwrap()),
        ];
        let agent = Part::start(&joined, &[&environment, agents].concat());

        let second = arguments(&place("thief"), &place("run2/agent.sock"));
        let refused = Command::new(binary()).args(second).envs(environment).output().unwrap();
        assert!(!refused.status.success(), "a token is good for one node");
        assert!(text(&refused.stderr).contains("token"), "{}", text(&refused.stderr));
        Self { folder, server, agent }
    }

    pub(crate) fn socket(&self) -> String {
        format!("unix://{}", self.folder.path().join("run/agent.sock").display())
    }

    pub(crate) fn admin(&self) -> String {
        self.server.ready["admin"].as_str().unwrap().to_owned()
    }

    /// What this very process gets of the agent.
    pub(crate) fn fetch(&self) -> Output {
        run(&["fetch", "x509", "--socket", &self.socket(), "--output", "json"])
    }

    pub(crate) fn status(&self) -> Value {
        let output = run(&["status", "--admin", &self.admin(), "--output", "json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The identity of this very process, in files.
    pub(crate) fn credentials(&self) -> PathBuf {
        let out = self.folder.path().join("me");
        until("the identity is served", || {
            let fetched =
                run(&["fetch", "x509", "--socket", &self.socket(), "--write", &text_of(&out)]);
            fetched.status.success().then_some(())
        });
        out
    }
}

fn text_of(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
