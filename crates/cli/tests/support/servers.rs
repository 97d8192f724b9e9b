//! Servers of one trust domain on one PostgreSQL, with agents and points, as processes.

#![expect(dead_code, reason = "each test binary uses its own part of this")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::postgres::{Cluster, Listen};
use crate::support::{self, binary, folder, text, until};

/// A part that says when it is ready, and is ended with the test.
pub(crate) struct Part {
    child: Child,
    pub(crate) ready: Value,
}

impl Part {
    pub(crate) fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::of(&binary(), arguments, environment)
    }

    /// One of this program.
    pub(crate) fn of(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .args(["--output", "json", "--log-level", "warn"])
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{arguments:?} said `{line}`: {error}"));
        assert_eq!(ready["event"], "ready", "{ready}");
        Self { child, ready }
    }

    pub(crate) fn admin(&self) -> &str {
        self.ready["admin"].as_str().unwrap()
    }

    pub(crate) fn listen(&self) -> &str {
        self.ready["listen"].as_str().unwrap()
    }

    /// What `/ready` answers.
    pub(crate) fn readiness(&self) -> (String, String) {
        let socket = self.admin().strip_prefix("unix://").unwrap();
        let asked = Command::new("curl")
            .args(["-sS", "--max-time", "10", "-w", "\n%{http_code}", "--unix-socket", socket])
            .arg("http://server/ready")
            .output()
            .unwrap();
        let answer = text(&asked.stdout);
        let (body, status) = answer.rsplit_once('\n').unwrap();
        (status.to_owned(), body.to_owned())
    }

    pub(crate) fn status(&self) -> Value {
        let output = run(&["status", "--admin", self.admin(), "--output", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Waits until a node that it serves has a revision, and says how long that took.
    pub(crate) fn node_has(&self, revision: &Value) -> Duration {
        let begin = Instant::now();
        until("the agent has the revision", || (0 < self.nodes_at(revision)).then_some(()));
        begin.elapsed()
    }

    /// How many of the nodes that it serves have a revision.
    pub(crate) fn nodes_at(&self, revision: &Value) -> usize {
        let status = self.status();
        let has = |node: &&Value| node["connected"] == true && node["revision"] == *revision;
        status["nodes"].as_array().into_iter().flatten().filter(has).count()
    }

    /// How many of the nodes that it serves have a revision, or one after it.
    pub(crate) fn nodes_since(&self, revision: &Value) -> usize {
        let parts = |revision: &Value| -> Option<[u64; 2]> {
            let (incarnation, number) = revision.as_str()?.split_once('.')?;
            Some([incarnation.parse().ok()?, number.parse().ok()?])
        };
        let (status, least) = (self.status(), parts(revision));
        let has = |node: &&Value| node["connected"] == true && least <= parts(&node["revision"]);
        status["nodes"].as_array().into_iter().flatten().filter(has).count()
    }

    /// Whether the process that was started still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn signal(&self, name: &str) {
        support::signal(i32::try_from(self.child.id()).unwrap(), name);
    }

    pub(crate) fn kill(mut self) {
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

#[track_caller]
pub(crate) fn done(arguments: &[&str]) -> Value {
    done_by(&binary(), arguments)
}

/// What this program says of what it did.
#[track_caller]
pub(crate) fn done_by(program: &Path, arguments: &[&str]) -> Value {
    let mut command = Command::new(program);
    let output = command.args(arguments).args(["--output", "json"]).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A trust domain in a database, with data directories for two servers.
pub(crate) struct Domain {
    folder: tempfile::TempDir,
    pub(crate) cluster: Cluster,
    pub(crate) url: String,
    /// Whose parts are started.
    pub(crate) program: PathBuf,
}

impl Domain {
    pub(crate) fn make() -> Self {
        Self::isolated("read committed")
    }

    /// The same with transactions that are isolated like this.
    pub(crate) fn isolated(isolation: &str) -> Self {
        let cluster = Cluster::start(Listen::Nowhere, &[]);
        let url = cluster.url(&cluster.database(isolation));
        Self::make_in(cluster, url)
    }

    /// Nothing yet, but a place and a database.
    pub(crate) fn plan(cluster: Cluster, url: String) -> Self {
        Self { folder: folder(), cluster, url, program: binary() }
    }

    /// The same in a database of this cluster.
    pub(crate) fn make_in(cluster: Cluster, url: String) -> Self {
        let domain = Self::plan(cluster, url);
        domain.init("one", &[]);
        let kek = domain.place("one/kek");
        domain.init("two", &["--kek", &kek]);
        domain
    }

    pub(crate) fn place(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// What the database answers.
    #[track_caller]
    pub(crate) fn sql(&self, text: &str) -> String {
        let database = self.url.split(['/', '?']).nth(3).unwrap();
        self.cluster.sql(database, text)
    }

    pub(crate) fn init(&self, name: &str, more: &[&str]) -> Value {
        let data = self.place(name);
        let fixed = ["init", "--data", &data, "--store", &self.url];
        let all = [&fixed[..], &["--trust-domain", "prod.example"], more].concat();
        done_by(&self.program, &all)
    }

    pub(crate) fn server(&self, name: &str) -> Part {
        self.server_with(name, &[])
    }

    pub(crate) fn server_with(&self, name: &str, more: &[&str]) -> Part {
        self.server_at(name, &self.url, more)
    }

    /// One that finds the database under another URL.
    pub(crate) fn server_at(&self, name: &str, url: &str, more: &[&str]) -> Part {
        let data = self.place(name);
        let fixed = ["server", "--data", &data, "--store", url, "--metrics", "off"];
        let listen = ["--listen", "127.0.0.1:0"];
        let listen = if more.contains(&"--listen") { &[][..] } else { &listen };
        Part::of(&self.program, &[&fixed[..], listen, more].concat(), &[])
    }

    /// A new agent that knows these servers and joins at the first.
    pub(crate) fn agent(&self, name: &str, servers: &[&Part]) -> Part {
        let addresses: Vec<&str> = servers.iter().map(|server| server.listen()).collect();
        self.agent_at(name, servers[0], &addresses)
    }

    /// A new agent that has its token from a server, and finds servers at these addresses.
    pub(crate) fn agent_at(&self, name: &str, server: &Part, addresses: &[&str]) -> Part {
        let token = done(&["token", "create", "--admin", server.admin()]);
        let environment = [
            ("COUNTERSIGN_JOIN", token["token"].as_str().unwrap()),
            ("COUNTERSIGN_TRUST", token["trust"].as_str().unwrap()),
        ];
        self.agent_again(name, addresses, &environment)
    }

    /// An agent by what it has in its data directory, or by this environment.
    pub(crate) fn agent_again(
        &self,
        name: &str,
        addresses: &[&str],
        environment: &[(&str, &str)],
    ) -> Part {
        let (data, socket) = (self.place(name), self.place(&format!("{name}-run/agent.sock")));
        let mut arguments = vec!["agent", "--data", &data, "--socket", &socket];
        for address in addresses {
            arguments.extend(["--server", address]);
        }
        Part::of(&self.program, &arguments, environment)
    }

    /// Declares a workload for every process of this user; gives the revision.
    pub(crate) fn apply(&self, server: &Part, name: &str) -> Value {
        self.apply_for(server, name, "5m")
    }

    /// The same with SVIDs of another lifetime.
    pub(crate) fn apply_for(&self, server: &Part, name: &str, lifetime: &str) -> Value {
        let manifest = self.manifest(name, lifetime);
        done(&["apply", &manifest, "--admin", server.admin()])["revision"].clone()
    }

    /// Writes that declaration; gives its file.
    pub(crate) fn manifest(&self, name: &str, lifetime: &str) -> String {
        let uid = text(&Command::new("id").arg("-u").output().unwrap().stdout);
        self.manifest_for(uid.trim(), name, lifetime)
    }

    /// The same for every process of another user.
    pub(crate) fn manifest_for(&self, uid: &str, name: &str, lifetime: &str) -> String {
        let manifest = self.place(&format!("{name}.yaml"));
        let declared = format!(
            "apiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\n\
             spec: {{selectors: [\"unix:uid:{uid}\"], lifetime: {lifetime}}}\n"
        );
        std::fs::write(&manifest, declared).unwrap();
        manifest
    }

    /// A proxy beside an agent: an enforcement point.
    pub(crate) fn proxy(&self, agent: &str) -> Part {
        let socket = format!("unix://{}", self.place(&format!("{agent}-run/agent.sock")));
        let run = self.place(&format!("{agent}-proxy"));
        let arguments = ["proxy", "--name", agent, "--agent", &socket, "--run-dir", &run];
        Part::of(&self.program, &arguments, &[])
    }

    pub(crate) fn fetch(&self, agent: &str) -> bool {
        self.serials(agent).is_some()
    }

    /// The serials of the SVIDs that an agent hands to this process.
    pub(crate) fn serials(&self, agent: &str) -> Option<Vec<String>> {
        let socket = format!("unix://{}", self.place(&format!("{agent}-run/agent.sock")));
        let output = run(&["fetch", "x509", "--socket", &socket, "--output", "json"]);
        let fetched: Value = serde_json::from_slice(&output.stdout).ok()?;
        let serial = |svid: &Value| svid["serial"].as_str().unwrap().to_owned();
        Some(fetched["svids"].as_array()?.iter().map(serial).collect())
    }
}
