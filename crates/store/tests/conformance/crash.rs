//! What is true after a process died, or its disk was full. The process is this program itself, run once more.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use countersign_identity::{Code, Serial};
use countersign_store::{PAGE_MAX, Store, verify_everything};
use tokio::task::JoinSet;

use crate::fixture::{at, create, folder, issuing, open, putting, row};

/// Tells the process which directory to work in.
const DIRECTORY: &str = "COUNTERSIGN_TEST_DIRECTORY";

/// Starts this program again for one of the ignored tests below, under a limit of file size (in KiB) if asked for.
fn start(test: &str, directory: &Path, limit: Option<u32>) -> Child {
    let limits = limit.map_or(String::new(), |kib| format!("trap '' XFSZ; ulimit -f {kib}; "));
    Command::new("bash")
        .args(["-c", &format!("{limits}exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(directory.join("stderr")).unwrap())
        .spawn()
        .unwrap()
}

/// The words of lines that begin with this one.
fn told(line: &str, word: &str) -> Option<String> {
    line.split_once(word).map(|(_, rest)| rest.trim().to_owned())
}

fn tell(word: &str, value: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{word} {value}").and_then(|()| out.flush()).unwrap();
}

#[tokio::test]
async fn what_was_acknowledged_before_a_kill_is_there_and_nothing_is_torn() {
    let folder = folder();
    drop(create(folder.path()));
    let mut acknowledged = BTreeSet::new();
    // Killed in three different places; each life goes on with what the one before it left.
    for life in 1..=3_usize {
        let mut child = start("crash::child_that_issues_for_ever", folder.path(), None);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let enough = acknowledged.len() + 40 * life;
        while acknowledged.len() < enough {
            let Some(line) = lines.next() else {
                let said = std::fs::read_to_string(folder.path().join("stderr")).unwrap();
                panic!("the child ended: {said}");
            };
            acknowledged.extend(told(&line.unwrap(), "issued"));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts, and its last line may be cut.
        let rest = lines.map_while(Result::ok);
        let whole = rest.filter_map(|line| told(&line, "issued")).filter(|text| text.len() == 32);
        acknowledged.extend(whole);
    }
    let store = open(folder.path());
    verify_everything(&store).await.unwrap();
    for text in acknowledged {
        let serial: Serial = text.parse().unwrap();
        assert!(store.issued(serial).await.unwrap().is_some(), "{serial} was acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by what_was_acknowledged_before_a_kill_is_there_and_nothing_is_torn"]
async fn child_that_issues_for_ever() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let store = Arc::new(open(Path::new(&directory)));
    // Serials of one life are none of another's.
    let first = u64::from(std::process::id()) << 32;
    let mut issuers = JoinSet::new();
    for issuer in 0..8_u64 {
        let store = Arc::clone(&store);
        issuers.spawn(async move {
            for turn in 0.. {
                let row = row(first + issuer + turn * 8, 0, at(0));
                let serial = row.serial;
                store.commit(issuing([row])).await.unwrap();
                tell("issued", serial);
            }
        });
    }
    issuers.join_all().await;
}

#[tokio::test]
async fn a_full_disk_is_an_outage_and_nothing_is_half_applied() {
    let folder = folder();
    drop(create(folder.path()));
    let child = start("crash::child_that_fills_its_disk", folder.path(), Some(600));
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let committed: u64 = text
        .lines()
        .find_map(|line| told(line, "committed"))
        .unwrap_or_else(|| panic!("the child tells how far it came: {text}"))
        .parse()
        .unwrap();
    // With room again, all that was acknowledged is there, and it goes on.
    let store = open(folder.path());
    let found = verify_everything(&store).await.unwrap();
    assert!(0 < committed && found.head.revision.number == committed, "{committed}: {found:?}");
    assert_eq!(found.head.log_size, committed);
    assert_eq!(store.events(0, PAGE_MAX).await.unwrap().len() as u64, committed);
    store.commit(putting("web", "more")).await.unwrap();
    verify_everything(&store).await.unwrap();
}

#[tokio::test]
#[ignore = "run by a_full_disk_is_an_outage_and_nothing_is_half_applied"]
async fn child_that_fills_its_disk() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let store = open(Path::new(&directory));
    let mut committed = 0_u64;
    loop {
        let batch = putting(&format!("w{committed}"), &"x".repeat(20_000));
        match store.commit(batch).await {
            Ok(_) => committed += 1,
            Err(error) => {
                assert_eq!(error.code(), Code::Unavailable, "{error}");
                break;
            }
        }
    }
    // It is still of use for reading, and what is whole is whole.
    verify_everything(&store).await.unwrap();
    tell("committed", committed);
}
