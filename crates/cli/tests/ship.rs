//! The log on its way to where an organisation keeps its logs: real receivers, broken lines, restarts.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/collector.rs"]
mod collector;
#[path = "support/domain.rs"]
mod domain;
mod support;
#[path = "support/syslog.rs"]
mod syslog;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use collector::Collector;
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
