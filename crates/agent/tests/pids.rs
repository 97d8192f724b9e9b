//! A number of a process that another program gets: that one is not taken for the process that had it.
//!
//! Which number the next process gets can be said in a pid namespace of one's own. Making one takes root, or a kernel that lets
//! everybody make user namespaces; where neither is so, the test says so on standard error and passes, and fails with `CI=true`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/callers.rs"]
mod callers;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use callers::{Door, Process, WAYS, be_caller, facts, start_caller};
use countersign_agent::attest::{AttestRefused, Attestor, LinuxAttestor, PinRefused, Pinning};
use countersign_agent::launcher::{Launcher, Launches, receive};
use countersign_identity::{Selector, SelectorKind};

/// Set for the process that is in such a namespace.
const INSIDE: &str = "COUNTERSIGN_TEST_PIDS_INSIDE";
const LAST: &str = "/proc/sys/kernel/ns_last_pid";
/// A namespace of its own, for root and for others.
const NAMESPACES: [&[&str]; 2] = [&[], &["--user", "--map-root-user"]];
/// Facts that are asked for. The other program has the same user and group.
const KINDS: [SelectorKind; 4] = [
    SelectorKind::UnixUid,
    SelectorKind::UnixGid,
    SelectorKind::UnixPath,
    SelectorKind::UnixSha256,
];

fn unshare(more: &[&str]) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).args(more);
    unshare
}

/// How a namespace is made in which numbers can be chosen; or why none can.
fn namespace() -> Result<&'static [&'static str], String> {
    let mut said = String::new();
    for more in NAMESPACES {
        let probe = unshare(more).args(["sh", "-c", &format!("echo 300 > {LAST}")]).output();
        match probe {
            Ok(done) if done.status.success() => return Ok(more),
            Ok(done) => said += String::from_utf8_lossy(&done.stderr).trim(),
            Err(why) => said += &format!("`unshare` does not start: {why}"),
        }
        said += "; ";
    }
    Err(said)
}

#[test]
fn another_program_that_gets_the_number_of_a_caller_is_not_taken_for_it() {
    use std::io::Write as _;
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let more = match namespace() {
        Ok(more) => more,
        Err(why) => {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
            let said = format!("SKIPPED: no process can be given a certain number here: {why}\n");
            // Past the harness, which shows only what tests print that fail.
            return std::io::stderr().write_all(said.as_bytes()).unwrap();
        }
    };
    let name = "another_program_that_gets_the_number_of_a_caller_is_not_taken_for_it";
    let mut command = unshare(more);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    let done = command.env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    assert!(said.contains("all of it was tried"), "{said}");
}

/// Not a test: what a caller does.
#[test]
fn caller_process() {
    be_caller(|_stream, then| panic!("{then}"));
}

fn call(socket: &Path) -> Process {
    start_caller(socket, "stay")
}

fn end(process: &mut Process) {
    process.kill();
    process.reap();
}

fn other_program() -> Process {
    Process::start(Command::new("/bin/sleep").arg("600"))
}

/// A process that this makes, with this number, which nobody has any more.
fn with_number(number: u32, make: impl Fn() -> Process) -> Process {
    for _ in 0..100 {
        std::fs::write(LAST, (number - 1).to_string()).unwrap();
        let made = make();
        if made.number() == number {
            return made;
        }
    }
    panic!("nobody gets the number {number}");
}

fn inside() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for way in WAYS {
            who_was_pinned_is_gone(way).await;
            nobody_is_launched_by_a_number(way).await;
        }
        // The older way cannot tell: it looks at the number only once the connection is accepted.
        if gives_pidfds() {
            who_connected_and_was_not_pinned_yet_is_gone().await;
        }
    });
    println!("all of it was tried");
}

/// Whether the kernel gives the pidfd of the other end of a socket.
fn gives_pidfds() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (6, 5) <= (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

async fn who_was_pinned_is_gone(way: Pinning) {
    let door = Door::new();
    let mut child = call(&door.path());
    let socket = door.accept().await;
    let caller = LinuxAttestor::new(way, Launches::none()).pin(&socket).unwrap();
    let own = std::env::current_exe().unwrap();
    let own: Selector = format!("unix:path:{}", own.display()).parse().unwrap();
    assert!(facts(&caller, &KINDS).await.unwrap().holds(&own), "{way:?}");
    let number = child.number();
    end(&mut child);
    let other = with_number(number, other_program);
    assert_eq!(other.number(), caller.peer().pid);
    // Its name is set a moment after it has begun.
    let named = || std::fs::read_to_string(format!("/proc/{number}/comm")).unwrap();
    let begun = std::time::Instant::now();
    while named().trim() != "sleep" {
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{}", named());
    }
    assert!(caller.alive().is_err(), "{way:?}");
    for kinds in KINDS.iter().map(std::slice::from_ref).chain([&KINDS[..], &[]]) {
        // By what way it was held on to decides whether it is seen before the reading or by it.
        let refused = facts(&caller, kinds).await.map(|found| format!("{found:?}"));
        assert!(
            matches!(refused, Err(AttestRefused::Gone { .. } | AttestRefused::Unreadable { .. })),
            "{way:?}, {kinds:?}: {refused:?}"
        );
    }
}

async fn who_connected_and_was_not_pinned_yet_is_gone() {
    let door = Door::new();
    let mut child = call(&door.path());
    let socket = door.accept().await;
    let number = child.number();
    end(&mut child);
    let _other = with_number(number, other_program);
    let refused = LinuxAttestor::new(Pinning::Auto, Launches::none()).pin(&socket).err();
    assert!(matches!(refused, Some(PinRefused::Gone { .. })), "{refused:?}");
}

/// The launcher vouched for a process, which has ended, and of which it has not heard yet.
async fn nobody_is_launched_by_a_number(way: Pinning) {
    let door = Door::new();
    let mut launcher = Launcher::new();
    let (launches, listening) = receive(launcher.agent_end().unwrap()).unwrap();
    let listening = tokio::spawn(listening);
    let mut launched = other_program();
    launcher.vouch(launched.number(), &"web".parse().unwrap()).unwrap();
    let mut told = launches.clone();
    let is_told = async {
        while launches.all().is_empty() {
            told.changed().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), is_told).await.expect("the launcher is heard");
    let number = launched.number();
    end(&mut launched);
    let caller = with_number(number, || call(&door.path()));
    let socket = door.accept().await;
    let pinned = LinuxAttestor::new(way, launches).pin(&socket).unwrap();
    assert_eq!(pinned.peer().pid, caller.number());
    let web: Selector = "launch:web".parse().unwrap();
    let found = facts(&pinned, &[SelectorKind::Launch]).await;
    assert!(!found.is_ok_and(|found| found.holds(&web)), "{way:?}");
    listening.abort();
}
