//! The log on its way to where an organisation keeps its logs: real receivers, broken lines, restarts.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/collector.rs"]
mod collector;
#[path = "support/demanding.rs"]
mod demanding;
#[path = "support/domain.rs"]
mod domain;
mod support;
#[path = "support/syslog.rs"]
mod syslog;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use collector::Collector;
use demanding::Demanding;
use domain::{Domain, run};
use serde_json::Value;
use support::{binary, text, until};
use syslog::{Credentials, SyslogReceiver};

fn at(path: &Path) -> &str {
    path.to_str().unwrap()
}

struct World {
    domain: Domain,
    credentials: Credentials,
}

impl World {
    fn make() -> Self {
        let manifests = |_ready: &Value| support::manifest_of_me("1h");
        let domain = Domain::make_of(&[], &[], manifests);
        let credentials = Credentials::make(domain.folder.path(), "receiver");
        Self { domain, credentials }
    }

    fn export(&self, arguments: &[&str]) -> Output {
        run(&[&["log", "export"], arguments, &["--admin", &self.domain.admin()]].concat())
    }

    /// An exporter that goes on until it is ended.
    fn follow(&self, arguments: &[&str]) -> Exporter {
        let child = Command::new(binary())
            .args(["log", "export", "--follow"])
            .args(arguments)
            .args(["--admin", &self.domain.admin()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Exporter(child)
    }

    /// One that says where its metrics are.
    fn follow_with_metrics(&self, arguments: &[&str]) -> (Exporter, Metrics) {
        let mut child = Command::new(binary())
            .args(["log", "export", "--follow", "--metrics", "127.0.0.1:0", "--output", "json"])
            .args(arguments)
            .args(["--admin", &self.domain.admin()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let started: Value = serde_json::from_str(&line).unwrap();
        (Exporter(child), Metrics(started["metrics"].as_str().unwrap().to_owned()))
    }

    /// The join tokens that are made are so many events more.
    fn grow(&self, events: usize) -> Vec<String> {
        let made = (0..events).map(|_| {
            let made =
                run(&["token", "create", "--admin", &self.domain.admin(), "--output", "json"]);
            let made: Value = serde_json::from_slice(&made.stdout).unwrap();
            made["token"].as_str().unwrap().to_owned()
        });
        made.collect()
    }

    fn size(&self) -> u64 {
        self.domain.status()["server"]["log"]["size"].as_u64().unwrap()
    }
}

/// The metrics of an exporter that was told to serve them.
struct Metrics(String);

impl Metrics {
    fn page(&self) -> String {
        let (status, page) = support::get(&self.0, "/metrics").unwrap();
        assert_eq!(status, 200, "{page}");
        page
    }

    /// The value of a sample, by its name with its labels; nothing when it is not there.
    fn value(&self, sample: &str) -> Option<u64> {
        let page = self.page();
        let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
        Some(line.parse().unwrap())
    }
}

struct Exporter(Child);

impl Exporter {
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ended = self.0.kill();
            let _reaped = self.0.wait();
        }
    }
}

/// The indexes of the events in messages of syslog.
fn indexes(messages: &[String]) -> BTreeSet<u64> {
    let index = |message: &String| {
        let (_, body) = message.split_once('\u{feff}').unwrap();
        serde_json::from_str::<Value>(body).unwrap()["index"].as_u64().unwrap()
    };
    messages.iter().map(index).collect()
}

fn all(size: u64) -> BTreeSet<u64> {
    (0..size).collect()
}

#[test]
fn every_event_comes_as_syslog_over_tls_and_no_secret_with_them() {
    let world = World::make();
    let tokens = world.grow(3);
    let receiver = SyslogReceiver::start(&world.credentials, None);
    let to = format!("syslog+tls://{}", receiver.address);
    let sent = world.export(&["--to", &to, "--ca", at(&world.credentials.ca), "--output", "json"]);
    assert!(sent.status.success(), "{}", text(&sent.stderr));
    let told: Value = serde_json::from_slice(&sent.stdout).unwrap();
    let next = told["next"].as_u64().unwrap();
    let messages = receiver.messages();
    assert_eq!(indexes(&messages), all(next), "{told}");
    assert!(6 <= next, "{told}");
    for message in &messages {
        let head: Vec<&str> = message.splitn(8, ' ').collect();
        assert_eq!(
            (head[0], head[2], head[3]),
            ("<109>1", "prod.example", "countersign"),
            "{message}"
        );
        assert!(head[1].ends_with('Z') && head[6] == "[event@32473", "{message}");
        for token in &tokens {
            let secret = &token[token.len() / 2..];
            assert!(16 <= secret.len() && !message.contains(secret), "{message}");
        }
    }
    let made = messages.iter().filter(|message| message.contains(" token-created ")).count();
    assert_eq!(made, 4, "one of them joined the agent");
}

#[test]
fn an_organisation_names_the_data_by_its_own_number() {
    let world = World::make();
    let receiver = SyslogReceiver::start(&world.credentials, None);
    let to = format!("syslog+tls://{}", receiver.address);
    let number = ["--enterprise-number", "65500"];
    let syslog = ["--to", &to, "--ca", at(&world.credentials.ca)];
    let sent = world.export(&[&syslog[..], &number].concat());
    assert!(sent.status.success(), "{}", text(&sent.stderr));
    let messages = receiver.messages();
    assert!(!messages.is_empty());
    for message in &messages {
        assert!(message.contains(" [event@65500 incarnation="), "{message}");
        assert!(!message.contains("@32473"), "{message}");
    }
    // A collector knows no such number, and 0 is none.
    let otlp = ["--to", "otlp+http://127.0.0.1:9"];
    for refused in
        [[&otlp[..], &number].concat(), [&syslog[..], &["--enterprise-number", "0"]].concat()]
    {
        let refused = world.export(&refused);
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    }
}

#[test]
fn a_receiver_that_another_authority_vouches_for_gets_nothing() {
    let world = World::make();
    let other = Credentials::make(world.domain.folder.path(), "other");
    let receiver = SyslogReceiver::start(&other, None);
    let to = format!("syslog+tls://{}", receiver.address);
    let refused = world.export(&["--to", &to, "--ca", at(&world.credentials.ca)]);
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stderr));
    assert_eq!(receiver.messages(), Vec::<String>::new());
    let unnamed = world.export(&["--to", &to]);
    assert_eq!(unnamed.status.code(), Some(2));
    assert!(text(&unnamed.stderr).contains("--ca"), "{}", text(&unnamed.stderr));
}

/// A receiver that lets in whom one authority vouches for, and who that is, and who is a stranger to it.
fn demanding(world: &World) -> (Demanding, Credentials, Credentials) {
    let folder = world.domain.folder.path();
    let (sender, stranger) =
        (Credentials::make(folder, "sender"), Credentials::make(folder, "stranger"));
    (Demanding::start(&world.credentials, &sender.ca), sender, stranger)
}

/// Exports as this one; as nobody when it is nobody.
fn export_as(world: &World, to: &str, who: Option<&Credentials>) -> Output {
    let mut arguments = vec!["--to", to, "--ca", at(&world.credentials.ca), "--output", "json"];
    if let Some(who) = who {
        arguments.extend(["--certificate", at(&who.chain), "--key", at(&who.key)]);
    }
    world.export(&arguments)
}

#[test]
fn a_receiver_of_syslog_that_demands_a_certificate_is_shown_it_and_takes_nothing_without() {
    let world = World::make();
    let (receiver, sender, stranger) = demanding(&world);
    let to = format!("syslog+tls://{}", receiver.address);
    for who in [None, Some(&stranger)] {
        let refused = export_as(&world, &to, who);
        assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stderr));
    }
    assert!(!receiver.said().contains("<109>1 "), "{}", receiver.said());
    let sent = export_as(&world, &to, Some(&sender));
    assert!(sent.status.success(), "{}", text(&sent.stderr));
    let told: Value = serde_json::from_slice(&sent.stdout).unwrap();
    let next = usize::try_from(told["next"].as_u64().unwrap()).unwrap();
    until("every event has come", || {
        (receiver.said().matches("<109>1 ").count() == next).then_some(())
    });
    assert!(receiver.said().contains("Client certificate"), "{}", receiver.said());
}

#[test]
fn a_collector_over_tls_that_demands_a_certificate_is_shown_it_and_takes_nothing_without() {
    let world = World::make();
    let (collector, sender, stranger) = demanding(&world);
    let to = format!("otlp+https://{}", collector.address);
    for who in [None, Some(&stranger)] {
        let refused = export_as(&world, &to, who);
        assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stderr));
    }
    assert!(!collector.said().contains("POST "), "{}", collector.said());
    let sent = std::thread::scope(|scope| {
        let sending = scope.spawn(|| export_as(&world, &to, Some(&sender)));
        until("the whole message has come", || {
            let said = collector.said();
            let (head, body) = said.split_once("POST ")?.1.split_once("\r\n\r\n")?;
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
            (length.trim().parse::<usize>().unwrap() <= body.len()).then_some(())
        });
        collector.answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
        sending.join().unwrap()
    });
    assert!(sent.status.success(), "{}", text(&sent.stderr));
    let said = collector.said();
    assert!(said.contains("POST /v1/logs ") && said.contains("svid-issued"), "{said}");
    assert!(said.contains("Client certificate"), "{said}");
}

#[test]
fn no_event_is_lost_when_the_receiver_or_the_exporter_is_cut_off() {
    let world = World::make();
    let cursor = world.domain.folder.path().join("cursor");
    let receiver = SyslogReceiver::start(&world.credentials, None);
    let address = receiver.address;
    let to = format!("syslog+tls://{address}");
    let arguments = ["--to", &to, "--ca", at(&world.credentials.ca), "--cursor", at(&cursor)];
    let exporter = world.follow(&arguments);
    let first = world.size();
    until("the log so far has come", || {
        all(first).is_subset(&indexes(&receiver.messages())).then_some(())
    });
    // The receiver is cut off with events under way, which nobody tells it of again.
    world.grow(2);
    let mut seen = receiver.stop();
    world.grow(2);
    let receiver = SyslogReceiver::start(&world.credentials, Some(address));
    let second = world.size();
    until("what came meanwhile has come", || {
        let both: Vec<String> = seen.iter().cloned().chain(receiver.messages()).collect();
        all(second).is_subset(&indexes(&both)).then_some(())
    });
    // And so is the exporter.
    exporter.kill();
    world.grow(2);
    let exporter = world.follow(&arguments);
    let third = world.size();
    until("what came after has come", || {
        let both: Vec<String> = seen.iter().cloned().chain(receiver.messages()).collect();
        all(third).is_subset(&indexes(&both)).then_some(())
    });
    seen.extend(receiver.messages());
    until("the cursor has come so far", || {
        let kept: Value = serde_json::from_slice(&std::fs::read(&cursor).ok()?).ok()?;
        (third <= kept["next"].as_u64()?).then_some(())
    });
    exporter.kill();
    // With all of it told, nothing is told again.
    let receiver = {
        drop(receiver);
        SyslogReceiver::start(&world.credentials, Some(address))
    };
    let again = world.export(&arguments);
    assert!(again.status.success(), "{}", text(&again.stderr));
    let later = indexes(&receiver.messages());
    assert!(later.iter().all(|index| third <= *index), "{later:?}");
}

#[test]
fn a_receiver_that_is_away_holds_up_nobody() {
    let world = World::make();
    // Nobody answers there, and nobody else can take the port meanwhile.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = format!("syslog+tls://{}", silent.local_addr().unwrap());
    let _exporter = world.follow(&["--to", &to, "--ca", at(&world.credentials.ca)]);
    let before = world.size();
    world.grow(5);
    assert_eq!(world.domain.fetch().status.code(), Some(0));
    assert!(before + 5 <= world.size());
}

#[test]
fn an_exporter_tells_when_the_receiver_had_all_when_it_was_away_and_what_it_lacks() {
    const FAILED: &str = "countersign_export_failures_total{end=\"receiver\"}";
    const LAG: &str = "countersign_export_lag_events";
    let world = World::make();
    let collector = Collector::start();
    let to = format!("otlp+{}", collector.url());
    let (_exporter, metrics) = world.follow_with_metrics(&["--to", &to]);
    until("the receiver has all", || (metrics.value(LAG)? == 0).then_some(()));
    let good = until("it was good", || metrics.value("countersign_export_last_good_seconds"));
    until("all were delivered", || {
        (world.size() <= metrics.value("countersign_export_delivered_total")?).then_some(())
    });
    assert_eq!(metrics.value(FAILED), Some(0));
    assert_eq!(metrics.value("countersign_export_last_failure_seconds{end=\"receiver\"}"), None);
    // A receiver that takes nothing: what it lacks grows, and since when is told.
    collector.refuse(usize::MAX);
    world.grow(4);
    let lag = until("the lag is told", || metrics.value(LAG).filter(|lag| 4 <= *lag));
    let failed = until("the failure is told", || {
        metrics.value("countersign_export_last_failure_seconds{end=\"receiver\"}")
    });
    assert!(good <= failed && 4 <= lag, "{good} {failed}");
    assert!(metrics.value(FAILED) > Some(0));
    assert_eq!(metrics.value("countersign_export_failures_total{end=\"server\"}"), Some(0));
    collector.refuse(0);
    until("the receiver has all again", || (metrics.value(LAG)? == 0).then_some(()));
    assert!(failed <= metrics.value("countersign_export_last_good_seconds").unwrap());
    // Every metric of the reference is there, and no other.
    let reference = run(&["reference", "metrics"]);
    let reference = text(&reference.stdout);
    let named = reference.lines().filter_map(|line| line.strip_prefix("| `countersign_export_"));
    let named: BTreeSet<&str> = named.map(|line| line.split('`').next().unwrap()).collect();
    let page = metrics.page();
    let told = page.lines().filter_map(|line| line.strip_prefix("# TYPE countersign_export_"));
    assert_eq!(told.map(|line| line.split(' ').next().unwrap()).collect::<BTreeSet<_>>(), named);
}

#[test]
fn events_come_as_records_of_otlp_and_are_offered_again_until_they_are_taken() {
    let world = World::make();
    let tokens = world.grow(2);
    let collector = Collector::start();
    collector.refuse(2);
    let cursor = world.domain.folder.path().join("cursor");
    let to = format!("otlp+{}", collector.url());
    let exporter = world.follow(&["--to", &to, "--cursor", at(&cursor)]);
    let size = world.size();
    let records = until("every event has come", || {
        let bodies = collector.of("/v1/logs");
        let records: Vec<Value> = bodies
            .iter()
            .flat_map(|body| {
                body["resourceLogs"][0]["scopeLogs"][0]["logRecords"].as_array().unwrap()
            })
            .cloned()
            .collect();
        let index = |record: &Value| {
            let attributes = record["attributes"].as_array().unwrap();
            let index = attributes.iter().find(|one| one["key"] == "countersign.index").unwrap();
            index["value"]["intValue"].as_str().unwrap().parse::<u64>().unwrap()
        };
        all(size).is_subset(&records.iter().map(index).collect()).then_some(records)
    });
    let kept = until("the cursor has come so far", || {
        let kept: Value = serde_json::from_slice(&std::fs::read(&cursor).ok()?).ok()?;
        (size <= kept["next"].as_u64()?).then_some(kept)
    });
    exporter.kill();
    assert!(records.iter().any(|record| record["eventName"] == "svid-issued"), "{records:?}");
    let whole = Value::from(records).to_string();
    for token in &tokens {
        assert!(!whole.contains(&token[token.len() / 2..]));
    }
    // A cursor of another log is not gone on from.
    let mut other = kept;
    other["key"] = "other.example/log+0".into();
    std::fs::write(&cursor, other.to_string()).unwrap();
    let refused = world.export(&["--to", &to, "--cursor", at(&cursor)]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
}
