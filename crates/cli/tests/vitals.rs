//! Each component tells of leaf, issuer, bundle and policy when it last had them, when it last wanted them in vain and why, and
//! when they end: in its metrics and in `status`, before and while something fails.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/domain.rs"]
mod domain;
mod support;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use countersign::{Authorization, Parts, Point, PointKind, Source, WorkloadApiOptions};
use domain::{Domain, Part, run};
use serde_json::Value;
use support::{get, until};

const PARTS: [&str; 4] = ["leaf", "issuer", "bundle", "policy"];

/// A workload for this user with a service of its own, a policy on it that ends, and lives that are short enough to be waited for.
fn manifests() -> String {
    let me = support::manifest_of_me("20s");
    let until = countersign_identity::Clock::now(&countersign_identity::SystemClock::new())
        + std::time::Duration::from_secs(3600);
    format!(
        "{me}---\napiVersion: countersign.dev/v1alpha1\nkind: TrustDomain\nmetadata: {{name: prod}}\n\
         spec: {{trustDomain: prod.example, svidLifetime: 20s, agentLifetime: 40s, lifetimeMax: 40s}}\n\
         ---\napiVersion: countersign.dev/v1alpha1\nkind: Service\nmetadata: {{name: me}}\nspec: {{workload: me, protocol: http}}\n\
         ---\napiVersion: countersign.dev/v1alpha1\nkind: Policy\nmetadata: {{name: me}}\nspec:\n  until: {until}\n  cedar: |\n    \
         permit (principal == Workload::\"me\", action == Action::\"connect\", resource == Service::\"me\");\n"
    )
}

/// A program with the library, in this very process.
struct Program {
    runtime: tokio::runtime::Runtime,
    source: Option<Source>,
    parts: Parts,
}

impl Program {
    fn start(socket: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut options = WorkloadApiOptions::at(socket.parse().unwrap());
        options.authorization = Authorization::FromAgent;
        options.point = Point { name: "program".parse().unwrap(), kind: PointKind::Library };
        let source = runtime.block_on(async {
            let source = Source::from_workload_api(options).await.unwrap();
            source.ready().await.unwrap();
            source
        });
        let parts = source.parts();
        Self { runtime, source: Some(source), parts }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let source = self.source.take();
        self.runtime.block_on(async {
            if let Some(source) = source {
                source.shutdown().await;
            }
        });
    }
}

/// What one component tells of one part: when it was good, when it failed, when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    good: Option<i64>,
    failed: Option<i64>,
    ends: Option<i64>,
}

type Four = BTreeMap<String, Told>;

/// The same of every part, as a page of metrics has it.
fn exposed(program: &str, page: &str) -> Four {
    let value = |what: &str, part: &str| {
        let name = format!("countersign_{program}_{what}_seconds{{part=\"{part}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
    };
    let told = |part: &str| Told {
        good: value("last_good", part),
        failed: value("last_failure", part),
        ends: value("ends", part),
    };
    PARTS.into_iter().map(|part| (part.to_owned(), told(part))).collect()
}

/// The same, as `status` has it, with the reasons.
fn shown(parts: &Value) -> (Four, Vec<String>) {
    let moment = |value: &Value| {
        let moment: countersign_identity::Timestamp = value.as_str()?.parse().unwrap();
        Some(moment.secs())
    };
    let (mut four, mut why) = (Four::new(), Vec::new());
    let all = parts.as_array().into_iter().flatten();
    // A process with doors tells of those as well.
    for part in all.filter(|part| PARTS.contains(&part["part"].as_str().unwrap())) {
        let told = Told {
            good: moment(&part["lastGoodAt"]),
            failed: moment(&part["lastFailureAt"]),
            ends: moment(&part["endsAt"]),
        };
        why.extend(part["lastFailure"].as_str().map(str::to_owned));
        four.insert(part["part"].as_str().unwrap().to_owned(), told);
    }
    (four, why)
}

fn page(part: &Part) -> String {
    let address = part.ready["metrics"].as_str().unwrap_or_else(|| panic!("{}", part.ready));
    let (status, body) = get(address, "/metrics").unwrap();
    assert_eq!(status, 200, "{body}");
    body
}

/// The parts of one process in what `status` says.
fn of_process(status: &Value, name: &str) -> Value {
    let mut processes = status["nodes"][0]["processes"].as_array().into_iter().flatten();
    let found = processes.find(|process| process["name"] == name);
    found.map_or(Value::Null, |process| process["parts"].clone())
}

/// Whether all four are known to have been good, and to end.
fn is_whole(four: &Four) -> bool {
    four.len() == 4 && four.values().all(|told| told.good.is_some() && told.ends.is_some())
}

/// Whether all four were wanted after they were had last.
fn is_wanting(four: &Four) -> bool {
    four.len() == 4 && four.values().all(|told| told.good < told.failed)
}

/// Whether all four have been had again since they failed, and that they failed is known still.
fn is_mended(four: &Four) -> bool {
    four.len() == 4 && four.values().all(|told| told.failed.is_some() && told.failed < told.good)
}

/// Waits until a component tells so of all four, and gives what it tells.
#[track_caller]
fn comes(what: &str, tells: impl Fn() -> Four, holds: impl Fn(&Four) -> bool) -> Four {
    let told = std::cell::RefCell::new(Four::new());
    let come = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until(what, || {
            told.replace(tells());
            let told = told.borrow().clone();
            holds(&told).then_some(told)
        })
    }));
    come.unwrap_or_else(|_| panic!("{what}: {:#?}", told.borrow()))
}

/// What was good stays known, and nothing is good that fails.
#[track_caller]
fn stays(before: &Four, after: &Four) {
    for (part, told) in before {
        assert_eq!(
            after[part].good, told.good,
            "{part} was good when it failed: {before:?} {after:?}"
        );
        assert!(told.failed <= after[part].failed, "{part}: {before:?} {after:?}");
    }
}

/// Holds the locks of a database, as a process that hangs in the midst of it does: nobody can read or write.
struct Locks(Child);

impl Locks {
    fn hold(data: &Path) -> Self {
        let script = "import fcntl, sys\n\
            file = open(sys.argv[1], 'r+b')\n\
            fcntl.lockf(file, fcntl.LOCK_EX, 8, 120)\n\
            print('held', flush=True)\n\
            sys.stdin.read()\n";
        let mut child = Command::new(support::python())
            .args(["-c", script])
            .arg(data.join("state.db-shm"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut held = [0; 4];
        child.stdout.as_mut().unwrap().read_exact(&mut held).unwrap();
        Self(child)
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn status_of_server(domain: &Domain) -> Value {
    let asked = run(&["status", "--admin", &domain.admin(), "--output", "json"]);
    serde_json::from_slice(&asked.stdout).unwrap_or(Value::Null)
}

fn status_of_agent(domain: &Domain) -> Value {
    let asked = run(&["status", "--agent", &domain.socket(), "--output", "json"]);
    serde_json::from_slice(&asked.stdout).unwrap_or(Value::Null)
}

#[test]
fn every_component_tells_of_every_part_what_was_good_what_failed_and_what_is_left() {
    let mut domain = Domain::make_by(
        &["--issuer-lifetime", "60s"],
        &[("COUNTERSIGN_METRICS", "127.0.0.1:0")],
        &["--issuer-lifetime", "60s"],
        |_ready| manifests(),
    );
    domain.credentials();
    let socket = domain.socket();
    let arguments = ["proxy", "--name", "door", "--agent", &socket, "--metrics", "127.0.0.1:0"];
    let inbound = ["--inbound", "service=me,listen=127.0.0.1:0,forward=127.0.0.1:9"];
    let proxy = Part::start(&[&arguments[..], &inbound].concat(), &[]);
    let program = Program::start(&socket);

    // 1. All is well, and each tells so of all four.
    comes("the server is whole", || exposed("server", &page(&domain.server)), is_whole);
    comes("the agent is whole", || exposed("agent", &page(&domain.agent)), is_whole);
    comes("the proxy is whole", || exposed("proxy", &page(&proxy)), is_whole);
    comes("the program is whole", || exposed("library", &program.parts.page()), is_whole);
    let shows = |status: &Value, name: &str| shown(&of_process(status, name)).0;
    let server_shows = || shown(&status_of_server(&domain)["server"]["parts"]).0;
    comes("status shows the server's", server_shows, is_whole);
    for name in ["agent", "door", "program"] {
        comes(name, || shows(&status_of_server(&domain), name), is_whole);
        comes(name, || shows(&status_of_agent(&domain), name), is_whole);
    }

    // 2. The store hangs: the server cannot renew itself nor its issuer, nor look at what it serves.
    let locks = Locks::hold(&domain.folder.path().join("server"));
    let failed = comes("the server wants", || exposed("server", &page(&domain.server)), is_wanting);
    stays(&failed, &exposed("server", &page(&domain.server)));
    drop(locks);
    comes("the server is mended", || exposed("server", &page(&domain.server)), is_mended);
    comes("status shows that it is", server_shows, is_mended);
    // That it failed stays known, and why.
    let status = status_of_server(&domain);
    let (_, why) = shown(&status["server"]["parts"]);
    assert_eq!(why.len(), 4, "{status}");
    // An issuer that ended meanwhile is a reason for the leaf, too.
    let locked = why.iter().filter(|why| why.contains("lock")).count();
    assert!(3 <= locked && why.iter().all(|why| why.len() > 5), "{why:?}");

    // 3. The server is away: the agent tells that, and why, by itself.
    domain.server.kill();
    let failed = comes("the agent wants", || exposed("agent", &page(&domain.agent)), is_wanting);
    let (told, why) = shown(&of_process(&status_of_agent(&domain), "agent"));
    assert!(is_wanting(&told) && why.len() == 4, "{told:?} {why:?}");
    assert!(why.iter().all(|why| why.len() > 5), "{why:?}");
    stays(&failed, &exposed("agent", &page(&domain.agent)));

    // 4. The agent is away too: the proxy and the program tell that.
    domain.agent.kill();
    let failed = comes("the proxy wants", || exposed("proxy", &page(&proxy)), is_wanting);
    stays(&failed, &exposed("proxy", &page(&proxy)));
    let of_program = || exposed("library", &program.parts.page());
    let failed = comes("the program wants", of_program, is_wanting);
    stays(&failed, &of_program());
    let vitals = program.parts.vitals();
    for (part, condition) in vitals.all().filter(|(part, _)| PARTS.contains(&part.as_str())) {
        let failed = condition.failed.as_ref().unwrap();
        assert!(!failed.why.is_empty(), "{part:?}: {condition:?}");
    }
}
