//! Two servers on one PostgreSQL, as processes: agents of both, the death of one, and an outage of the database.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "../../store/tests/support/postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use the rest of it")]
mod postgres;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use servers::{Domain, Part, done, run};
use support::{binary, folder, text, until};

#[test]
fn a_change_through_one_server_reaches_the_agent_of_the_other_and_the_agent_survives_its_server() {
    let domain = Domain::make();
    let (one, two) = (domain.server("one"), domain.server("two"));
    let far = domain.agent("far", &[&two]);
    let near = domain.agent("near", &[&one, &two]);
    // Through each server to the agent of the other.
    for (round, (by, at)) in [(&one, &two), (&two, &one), (&one, &two)].into_iter().enumerate() {
        let revision = domain.apply(by, &format!("w{round}"));
        println!("round {round} took {:?}", at.node_has(&revision));
    }
    until("both agents serve", || (domain.fetch("near") && domain.fetch("far")).then_some(()));

    // The server of the near agent dies without a word. The agent goes on at the other, from its revision.
    one.kill();
    let revision = domain.apply(&two, "after");
    until("the agent has moved over", || {
        let status = two.status();
        let nodes = status["nodes"].as_array()?;
        let up_to_date = |node: &&Value| node["connected"] == true && node["revision"] == revision;
        (nodes.iter().filter(up_to_date).count() == 2).then_some(())
    });
    assert!(domain.fetch("near"));
    // And the one that comes back serves again.
    let one = domain.server("one");
    let revision = domain.apply(&one, "again");
    two.node_has(&revision);
    drop((near, far));
}

/// What a server knows of who enforces this, or the newest revision.
fn converging(server: &Part, revision: &[&str]) -> Value {
    let fixed = ["--admin", server.admin(), "--output", "json"];
    let output = run(&[&["converged"], revision, &fixed].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// How many points a server counts.
fn live(server: &Part) -> Option<u64> {
    converging(server, &[])["live"].as_u64()
}

/// Revokes `web` through this server, and waits for all points, or for so long.
fn revoke(through: &Part, reason: &str, timeout: &str) -> (Option<i32>, Value) {
    let id = "spiffe://prod.example/web";
    let fixed = ["revoke", id, "--reason", reason, "--wait", "--timeout", timeout];
    let output = run(&[&fixed[..], &["--admin", through.admin(), "--output", "json"]].concat());
    let outcome = serde_json::from_slice(&output.stdout);
    (output.status.code(), outcome.unwrap_or_else(|_| panic!("{}", text(&output.stderr))))
}

#[track_caller]
fn enforcing(outcome: &Value, live: u64, enforcing: u64) {
    let found = (outcome["live"].as_u64(), outcome["enforcing"].as_u64());
    assert_eq!(found, (Some(live), Some(enforcing)), "{outcome}");
}

#[test]
fn one_report_counts_the_points_of_both_servers_and_the_death_of_one_makes_them_no_fewer() {
    let domain = Domain::make();
    let (one, two) = (domain.server("one"), domain.server("two"));
    let far = domain.agent("far", &[&two]);
    let near = domain.agent("near", &[&one, &two]);
    domain.apply(&one, "web");
    let (near_point, far_point) = (domain.proxy("near"), domain.proxy("far"));
    for server in [&one, &two] {
        until("both points are counted", || (live(server) == Some(2)).then_some(()));
    }
    for through in [&one, &two] {
        let (status, outcome) = revoke(through, "key-compromise", "90s");
        enforcing(&outcome, 2, 2);
        assert_eq!((status, &outcome["missing"]), (Some(0), &Value::Array(vec![])), "{outcome}");
        assert!(outcome["slowest_ms"].is_u64() && outcome["reissued_ms"].is_u64(), "{outcome}");
        assert_eq!(outcome["exposure_ends"], Value::Null, "{outcome}");
        println!("slowest {}, re-issued in {} ms", outcome["slowest_ms"], outcome["reissued_ms"]);
    }
    // Trials reach the points of both, through either. These have no doors.
    for through in [&one, &two] {
        let tried = done(&["converged", "--verify", "--admin", through.admin()]);
        let why: Vec<&Value> =
            tried["unverified"].as_array().unwrap().iter().map(|point| &point["why"]).collect();
        assert_eq!(why, ["no door", "no door"], "{tried}");
    }
    // A server dies, while its agent cannot go over to the other.
    near.signal("STOP");
    one.kill();
    let (status, outcome) = revoke(&two, "superseded", "2s");
    assert_eq!(status, Some(1), "not converged: {outcome}");
    let revision = [outcome["revision"].as_str().unwrap()];
    let outcome = until("the other point enforces it", || {
        let outcome = converging(&two, &revision);
        (outcome["enforcing"] == 1).then_some(outcome)
    });
    enforcing(&outcome, 2, 1);
    assert_eq!(outcome["missing"][0]["point"], "near", "{outcome}");
    assert!(outcome["exposure_ends"].is_string(), "{outcome}");
    near.signal("CONT");
    let outcome = done(&["converged", "--wait", "--timeout", "90s", "--admin", two.admin()]);
    enforcing(&outcome, 2, 2);
    // Who says goodbye is not waited for.
    drop(near_point);
    until("one is left", || (live(&two) == Some(1)).then_some(()));
    drop((far_point, near, far));
}

#[test]
fn readiness_tells_of_a_database_that_is_away_and_of_its_return() {
    let domain = Domain::make();
    let (one, two) = (domain.server("one"), domain.server("two"));
    assert_eq!(one.readiness(), ("200".to_owned(), "ready\n".to_owned()));
    let warnings = one.status()["warnings"].to_string();
    assert!(warnings.contains("synchronous_standby_names"), "{warnings}");
    let ready = |is: bool| {
        until(if is { "both are ready" } else { "none is ready" }, || {
            let all = [&one, &two].map(|server| server.readiness().0 == "200");
            (all == [is; 2]).then_some(())
        });
    };
    for round in 0..2 {
        let before = domain.apply(&one, &format!("steady{round}"));
        domain.cluster.crash();
        ready(false);
        let (_, why) = one.readiness();
        assert!(why.contains("not-ready"), "{why}");
        domain.cluster.resume();
        ready(true);
        assert_eq!(one.status()["revision"], before, "what was acknowledged is there");
    }
    // A database that hangs is away, too.
    domain.cluster.signal_all("STOP");
    ready(false);
    domain.cluster.signal_all("CONT");
    ready(true);
    domain.apply(&two, "after");
}

#[test]
fn a_replica_cut_off_from_the_database_issues_nothing_says_so_and_keeps_its_agents() {
    let domain = Domain::make();
    // Its own way to the database, which can be taken away from it alone.
    let (way, folder) = (domain.place("way"), domain.cluster.folder());
    std::os::unix::fs::symlink(folder, &way).unwrap();
    let url = domain.url.replace(folder.to_str().unwrap(), &way) + "&application_name=cut";
    let (one, two) = (domain.server_at("one", &url, &[]), domain.server("two"));
    let near = domain.agent("near", &[&one]);
    let revision = domain.apply_for(&one, "web", "30s");
    one.node_has(&revision);
    until("the agent serves", || domain.fetch("near").then_some(()));
    let point = domain.proxy("near");
    until("its point is counted", || (live(&one) == Some(1)).then_some(()));
    std::fs::remove_file(&way).unwrap();
    domain.cluster.sql(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cut/%'",
    );
    until("it says that it is cut off", || (one.readiness().0 == "503").then_some(()));
    let (_, why) = one.readiness();
    assert!(why.contains("nothing is issued"), "{why}");
    assert_eq!(two.readiness().0, "200");
    let recorded = || domain.sql("SELECT count(*) FROM issued");
    let before = recorded();
    let manifest = domain.manifest("more", "5m");
    let refused = run(&["apply", &manifest, "--admin", one.admin()]);
    assert!(!refused.status.success(), "{}", text(&refused.stdout));
    // What happens meanwhile it cannot know. Its agent and that one's point go on with what it knew.
    let revision = domain.apply(&two, "later");
    let status = one.status();
    let connected = (&status["nodes"][0]["connected"], &status["points"][0]["live"]);
    assert_eq!(connected, (&Value::from(true), &Value::from(true)), "{status}");
    assert!(status["warnings"].to_string().contains("takes no writes"), "{status}");
    let held = domain.serials("near").expect("it is not half of its life since the last renewal");
    // Within half of a lifetime a renewal is asked for.
    std::thread::park_timeout(Duration::from_secs(16));
    assert!(domain.serials("near").is_none_or(|now| now == held), "nothing was issued");
    assert_eq!(recorded(), before, "nothing was recorded");
    // It has its way back: everything it missed comes by itself, on the stream that stayed.
    std::os::unix::fs::symlink(folder, &way).unwrap();
    one.node_has(&revision);
    until("it is ready again", || (one.readiness().0 == "200").then_some(()));
    until("what was declared meanwhile is issued", || {
        (domain.serials("near")?.len() == 2).then_some(())
    });
    // A replica that stands still is in nobody's way, and catches up.
    one.signal("STOP");
    let begin = std::time::Instant::now();
    let revision = domain.apply(&two, "last");
    let took = begin.elapsed();
    one.signal("CONT");
    // Not even for as long as it takes until it is taken for dead.
    assert!(took < Duration::from_secs(25), "{took:?}");
    one.node_has(&revision);
    drop((point, near));
}

#[test]
fn a_server_is_added_by_the_key_of_its_trust_domain_only() {
    let domain = Domain::make();
    let refuse = |name: &str, more: &[&str], why: &str| {
        let data = domain.place(name);
        let fixed = ["init", "--data", &data, "--store", &domain.url];
        let output = run(&[&fixed[..], more].concat());
        assert!(!output.status.success(), "{name}");
        let said = text(&output.stderr);
        assert!(said.contains(why), "{name}: {said}");
        assert!(!PathBuf::from(data).join("domain.json").exists(), "{name}");
    };
    refuse("three", &["--trust-domain", "prod.example"], "give its key with `--kek`");
    let other = done(&["init", "--data", &domain.place("other"), "--trust-domain", "prod.example"]);
    assert_eq!(other["event"], "initialized");
    let (right, wrong) = (domain.place("one/kek"), domain.place("other/kek"));
    refuse("four", &["--trust-domain", "prod.example", "--kek", &wrong], "does not open");
    refuse("five", &["--trust-domain", "else.example", "--kek", &right], "holds state of");
}

#[test]
fn a_password_is_refused_among_the_arguments_and_not_repeated() {
    let folder = folder();
    let data = folder.path().join("d").to_str().unwrap().to_owned();
    let url = "postgres://cs:hunter2@127.0.0.1/state?sslmode=disable";
    let (init, server) = (["init", "--data", &data], ["server", "--data", &data]);
    let backup = ["backup", "b", "--data", &data];
    let restore = ["restore", "b", "--data", &data, "--kek", "k"];
    let told: [(&[&str], &[&str]); 8] = [
        (&init, &["--store"]),
        (&server, &["--store"]),
        (&backup, &["--store"]),
        (&restore, &["--store"]),
        (&["log", "verify"], &["--store"]),
        (&["store", "verify"], &[]),
        (&["store", "copy", "--from", &data], &["--to"]),
        (&["store", "copy", "--to", &data], &["--from"]),
    ];
    for (command, flag) in told {
        refuses_the_password(&[command, flag, &[url]].concat(), None);
    }
    for command in [&init[..], &server, &backup, &restore] {
        refuses_the_password(command, Some(url));
    }
}

/// It says that a password was given, and in neither output which.
#[track_caller]
fn refuses_the_password(arguments: &[&str], variable: Option<&str>) {
    for form in ["human", "json"] {
        let mut command = Command::new(binary());
        command.args(arguments).args(["--output", form]);
        command.envs(variable.map(|url| ("COUNTERSIGN_STORE", url)));
        let output = command.output().unwrap();
        let said = text(&output.stderr) + &text(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        let why = "a password has no place in `--store`";
        assert!(text(&output.stderr).contains(why), "{arguments:?}: {said}");
        assert_eq!(text(&output.stdout).contains(why), form == "json", "{arguments:?}: {said}");
        assert!(!said.contains("hunter2"), "{arguments:?}: {said}");
    }
}

/// What the next version does when it starts: a step that adds to what every write fills, in a transaction of its own.
const NEXT_STEP: &str = "BEGIN; ALTER TABLE log ADD COLUMN shard BIGINT NOT NULL DEFAULT 0; \
     CREATE TABLE shards (id BIGINT PRIMARY KEY); \
     UPDATE countersign_schema SET version = version + 1; COMMIT";
/// And the one after it, which changes what programs rely on.
const BREAKING_STEP: &str = "BEGIN; ALTER TABLE past_log DROP COLUMN salt; \
     UPDATE countersign_schema SET version = version + 1; \
     UPDATE head SET needs = (SELECT version FROM countersign_schema), writes = writes + 1; COMMIT";

/// Declares workloads through a server until told to end, each of which must succeed.
fn declare_until(domain: &Domain, through: &Part, name: &str, end: &AtomicBool) {
    for turn in 0..20 {
        domain.apply(through, &format!("{name}{turn}"));
        if end.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[test]
fn servers_go_on_serving_agents_while_a_later_version_adds_to_the_schema_and_stop_when_it_changes()
{
    let domain = Domain::make();
    let (one, two) = (domain.server("one"), domain.server("two"));
    let near = domain.agent("near", &[&one]);
    let far = domain.agent("far", &[&two]);
    domain.apply(&one, "web");
    until("both agents serve", || (domain.fetch("near") && domain.fetch("far")).then_some(()));
    // They write, and agents are issued to, before the step, during it and after it.
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers = [(&one, "a"), (&two, "b")].map(|(through, name)| {
            let (domain, end) = (&domain, &end);
            scope.spawn(move || declare_until(domain, through, name, end))
        });
        until("both write", || {
            let written = domain.sql("SELECT count(*) FROM records WHERE name IN ('a0', 'b0')");
            (written == "2").then_some(())
        });
        domain.sql(NEXT_STEP);
        end.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.join().unwrap();
        }
    });
    // Also when one of them starts again.
    drop(two);
    let mut two = domain.server("two");
    let last = domain.apply(&two, "late");
    one.node_has(&last);
    until("what was declared meanwhile is issued", || {
        let declared = domain.sql("SELECT count(*) FROM records WHERE kind = 'Workload'");
        (domain.serials("near")?.len().to_string() == declared).then_some(())
    });
    assert_eq!((one.readiness().0.as_str(), two.readiness().0.as_str()), ("200", "200"));
    // What comes then they cannot know: they say so, record nothing, and their agents go on.
    domain.sql(BREAKING_STEP);
    for server in [&one, &two] {
        let why = until("it is not ready", || {
            let (status, why) = server.readiness();
            (status == "503").then_some(why)
        });
        assert!(why.contains("nothing is issued") && why.contains("use a newer one"), "{why}");
    }
    let before = domain.sql("SELECT number FROM head");
    let manifest = domain.manifest("refused", "5m");
    let refused = run(&["apply", &manifest, "--admin", one.admin()]);
    assert!(!refused.status.success(), "{}", text(&refused.stdout));
    assert_eq!(domain.sql("SELECT number FROM head"), before);
    assert!(domain.fetch("near") && two.runs(), "what was issued is there");
    let data = domain.place("one");
    let again = run(&["server", "--data", &data, "--store", &domain.url, "--metrics", "off"]);
    let said = text(&again.stderr);
    assert!(!again.status.success() && said.contains("use a newer one"), "{said}");
    drop((near, far));
}

/// How many say the same at once at each of two servers.
const SAYING: usize = 4;
/// How many things are said so.
const ROUNDS: usize = 8;

/// Posts the same to both servers from many callers, all of which have sent it but for its last byte when the first one sends
/// that: what they were answered.
fn post_at_once(servers: [&Part; 2], path: &str, body: &Value) -> Vec<(u16, String)> {
    let body = body.to_string();
    let (most, last) = body.split_at(body.len() - 1);
    let together = Barrier::new(2 * SAYING);
    let post = |server: &Part| {
        let mut socket =
            UnixStream::connect(server.admin().strip_prefix("unix://").unwrap()).unwrap();
        write!(
            socket,
            "POST {path} HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{most}",
            body.len()
        )
        .unwrap();
        together.wait();
        socket.write_all(last.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    };
    std::thread::scope(|scope| {
        let callers: Vec<_> =
            (0..2 * SAYING).map(|number| scope.spawn(move || post(servers[number % 2]))).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    })
}

/// One of them was taken, and the others were told that it was.
#[track_caller]
fn one_was_taken(answers: &[(u16, String)], said: &str) {
    let taken = answers.iter().filter(|(status, _)| *status == 200).count();
    assert_eq!(taken, 1, "{answers:?}");
    for (status, answer) in answers.iter().filter(|(status, _)| *status != 200) {
        assert!(*status == 409 && answer.contains(said), "{answer}");
    }
}

#[test]
fn of_many_words_of_one_person_at_two_servers_at_once_one_counts_and_is_logged() {
    let domain = Domain::make();
    let (one, two) = (domain.server("one"), domain.server("two"));
    let me = text(&Command::new("id").arg("-u").output().unwrap().stdout);
    let manifest = domain.place("domain.yaml");
    let declared = format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: TrustDomain\nmetadata: {{name: prod}}\nspec:\n  \
         trustDomain: prod.example\n  changes: {{approvals: 1, approvers: [\"uid:{}\", \"uid:64011\"]}}\n",
        me.trim()
    );
    std::fs::write(&manifest, declared).unwrap();
    let base = done(&["apply", &manifest, "--admin", one.admin()])["revision"].clone();
    until("both have it", || (two.status()["revision"] == base).then_some(()));
    for round in 0..ROUNDS {
        let workload = json!({
            "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload",
            "metadata": { "name": format!("w{round}") }, "spec": { "selectors": ["unix:uid:1"] },
        });
        let plan = json!({ "resources": [workload], "base": base, "prune": false });
        let answers = post_at_once([&one, &two], "/v1/plans/approve", &plan);
        one_was_taken(&answers, "has approved it already, and counts once");

        let review = done(&["review", "start", "--admin", one.admin()]);
        let path = format!("/v1/reviews/{}/signature", review["id"].as_str().unwrap());
        let signature = json!({ "verdict": "keep", "name": "Ada", "reason": "so", "again": "90d" });
        let answers = post_at_once([&one, &two], &path, &signature);
        one_was_taken(&answers, "is signed already, and stays so");
    }
    let events = done(&["events", "--limit", "1000", "--admin", two.admin()]);
    let of = |kind: &str| {
        let events = events["events"].as_array().unwrap().iter();
        events.filter(|event| event["kind"] == kind).count()
    };
    let logged = ["change-approved", "review-signed", "review-started"].map(of);
    assert_eq!(logged, [ROUNDS, ROUNDS, 2 * ROUNDS], "each once, and what it begins");
}
