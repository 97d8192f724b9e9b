//! A disk that takes no writes: what is done all the same, what is not, and who says so.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/domain.rs"]
mod domain;
#[path = "crash/faults.rs"]
#[expect(dead_code, reason = "the crash tests use the rest of it")]
mod faults;
mod support;

use std::process::{Command, Output};

use domain::{Part, run};
use faults::Faults;
use serde_json::Value;
use support::{folder, text, until};
use tempfile::TempDir;

/// `ENOSPC`
const NO_SPACE: u32 = 28;

/// A server whose disk is full when the test says so.
struct Filled {
    folder: TempDir,
    faults: Faults,
    server: Part,
}

impl Filled {
    /// Only what lies below `part` is on that disk.
    fn start(part: &str) -> Self {
        let folder = folder();
        let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (data, journal, part) = (place("server"), place("journal"), place(part));
        let made = run(&["init", "--data", &data, "--trust-domain", "prod.example"]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        std::fs::create_dir(&journal).unwrap();
        let faults = Faults::new(folder.path());
        let text_of = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let (library, page) = (text_of(&faults.library), text_of(&faults.page));
        let environment = [
            ("LD_PRELOAD", library.as_str()),
            ("FAULTS_PAGE", page.as_str()),
            ("FAULTS_PATH", part.as_str()),
        ];
        let arguments = [
            "server",
            "--data",
            &data,
            "--listen",
            "127.0.0.1:0",
            "--journal",
            &journal,
            "--metrics",
            "127.0.0.1:0",
        ];
        let server = Part::start(&arguments, &environment);
        Self { folder, faults, server }
    }

    fn fill(&self) {
        self.faults.set([1, 1000, 0, 0, NO_SPACE, 0, 7]);
    }

    /// No write comes back.
    fn hang(&self) {
        self.faults.set([1, 0, 0, 0, NO_SPACE, u32::MAX, 7]);
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        let admin = self.server.ready["admin"].as_str().unwrap();
        run(&[arguments, &["--admin", admin]].concat())
    }

    fn apply(&self, name: &str) -> Output {
        let file = self.folder.path().join("me.yaml");
        let manifest = support::manifest_of_me("5m").replace("name: me", &format!("name: {name}"));
        std::fs::write(&file, manifest).unwrap();
        self.ask(&["apply", file.to_str().unwrap()])
    }

    /// The status and the text of `/ready`.
    fn readiness(&self) -> (String, String) {
        let socket = self.server.ready["admin"].as_str().unwrap();
        let asked = Command::new("curl")
            .args(["-sS", "--max-time", "10", "-w", "\n%{http_code}", "--unix-socket"])
            .args([socket.strip_prefix("unix://").unwrap(), "http://server/ready"])
            .output()
            .unwrap();
        let answer = text(&asked.stdout);
        let (body, status) = answer.rsplit_once('\n').unwrap();
        (status.to_owned(), body.to_owned())
    }

    fn warnings(&self) -> String {
        let status = self.ask(&["status", "--output", "json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        status["warnings"].to_string()
    }
}

const LACKS: &str = "the journal does not hold every rule that is in force";

#[test]
fn whoever_takes_rights_away_is_told_when_the_journal_does_not_have_it() {
    let filled = Filled::start("journal/");
    let (one, two) = ("spiffe://prod.example/one", "spiffe://prod.example/two");
    let revoke = |target: &str, more: &[&str]| {
        let fixed = ["revoke", target, "--reason", "key-compromise"];
        filled.ask(&[&fixed, more].concat())
    };
    assert!(revoke(one, &[]).status.success());
    assert_eq!(filled.readiness(), ("200".to_owned(), "ready\n".to_owned()));
    filled.fill();
    let full = "no space left on device";
    let said = revoke(two, &[]);
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let words = text(&said.stdout);
    assert!(words.contains("it is in force, but not in the journal: "), "{words}");
    assert!(words.contains(full), "{words}");
    let said = revoke("spiffe://prod.example/three", &["--output", "json"]);
    assert_eq!(said.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert!(answer["not_in_journal"].as_str().unwrap().contains(full), "{answer}");
    let suspend = ["suspend", two, "--reason", "key-compromise", "--output", "json"];
    let said = filled.ask(&suspend);
    assert_eq!(said.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert!(answer["notInJournal"].as_str().unwrap().contains(full), "{answer}");
    // Whatever the journal has, it is in force.
    let listed = text(&filled.ask(&["revocations"]).stdout);
    assert!([one, two, "three"].iter().all(|target| listed.contains(target)), "{listed}");
    assert!(filled.warnings().contains(LACKS));
    let (status, body) = filled.readiness();
    assert!(status == "200" && body.contains(LACKS), "{status}: {body}");
    filled.faults.lift();
    until("the journal has everything", || (!filled.warnings().contains(LACKS)).then_some(()));
    assert_eq!(filled.readiness(), ("200".to_owned(), "ready\n".to_owned()));
    let journal = std::fs::read_dir(filled.folder.path().join("journal")).unwrap();
    let journal: String =
        journal.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    assert_eq!(journal.lines().count(), 4, "three rules and a suspension: {journal}");
    assert!(revoke(one, &[]).status.success());
}

/// Without agents nobody else writes, so it is what the operator was refused that is told.
#[test]
fn a_store_that_takes_no_writes_is_told_of_and_told_of_no_more_once_it_takes_them() {
    const TAKES_NONE: &str = "the store takes no writes: ";
    let filled = Filled::start("server/state.db");
    assert!(filled.apply("one").status.success());
    assert_eq!(filled.readiness().0, "200");
    filled.fill();
    let refused = filled.apply("two");
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    until("it is not ready", || (filled.readiness().0 == "503").then_some(()));
    let (status, body) = filled.readiness();
    assert!(status == "503" && body.contains("nothing can be recorded"), "{status}: {body}");
    assert!(filled.warnings().contains(TAKES_NONE));
    filled.faults.lift();
    // Nobody asks for anything, and it is ready again.
    until("it is ready again", || (filled.readiness().0 == "200").then_some(()));
    assert!(!filled.warnings().contains(TAKES_NONE));
    assert!(filled.apply("two").status.success());
}

struct Lifted<'a>(&'a Faults);

impl Drop for Lifted<'_> {
    fn drop(&mut self) {
        self.0.lift();
    }
}

/// A disk that does not answer fails at nothing.
#[test]
fn a_store_whose_writes_hang_is_told_of_and_told_of_no_more_once_they_come_back() {
    let filled = Filled::start("server/state.db");
    assert!(filled.apply("one").status.success());
    assert_eq!(filled.readiness().0, "200");
    filled.hang();
    std::thread::scope(|scope| {
        // However this ends, nobody waits for a write any more.
        let _lifted = Lifted(&filled.faults);
        let waiting = scope.spawn(|| filled.apply("two"));
        until("it is not ready", || (filled.readiness().0 == "503").then_some(()));
        let (_, body) = filled.readiness();
        assert!(body.contains("state.db` has not come back for 5s; look at its disk"), "{body}");
        assert!(filled.warnings().contains("the store takes no writes: a write to"));
        assert!(!waiting.is_finished(), "it hangs");
        filled.faults.lift();
        // Nobody asks for anything more, and it is ready again.
        until("it is ready again", || (filled.readiness().0 == "200").then_some(()));
        let applied = waiting.join().unwrap();
        assert!(applied.status.success(), "{}", text(&applied.stderr));
    });
    assert!(filled.apply("three").status.success());
}
