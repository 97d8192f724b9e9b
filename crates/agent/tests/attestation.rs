//! Attestation of real processes: each test starts this very binary again as the caller.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/callers.rs"]
mod callers;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use callers::{Door, WAYS, be_caller, facts, start_caller};
use countersign_agent::attest::{
    AttestRefused, Attestor, Caller, LinuxAttestor, PinRefused, Pinning,
};
use countersign_agent::launcher::{Launcher, Launches, receive};
use countersign_identity::{Selector, SelectorKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Not a test: what the started processes do beside connecting and staying.
#[test]
fn caller_process() {
    be_caller(|stream, then| match then {
        "exit" => std::process::exit(0),
        // When it is told to, runs another program in its place, which keeps the socket.
        "exec" => {
            std::io::Read::read_exact(&mut &stream, &mut [0]).unwrap();
            let file: OwnedFd = stream.into();
            rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
            let why = Command::new("/bin/sleep").arg("600").stdin(Stdio::from(file)).exec();
            panic!("{why}");
        }
        // Hands the socket to a child, and ends.
        "leave" => {
            Command::new("/bin/cat").stdin(Stdio::from(OwnedFd::from(stream))).spawn().unwrap();
            std::process::exit(0);
        }
        other => panic!("{other}"),
    });
}

fn selector(text: &str) -> Selector {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_process_is_known_by_user_group_program_and_digest_in_both_ways() {
    for way in WAYS {
        let door = Door::new();
        let child = start_caller(&door.path(), "stay");
        let socket = door.accept().await;
        let caller = LinuxAttestor::new(way, Launches::none()).pin(&socket).unwrap();
        assert_eq!(caller.peer().pid, child.number());
        let all = [
            SelectorKind::UnixUid,
            SelectorKind::UnixGid,
            SelectorKind::UnixUser,
            SelectorKind::UnixPath,
            SelectorKind::UnixSha256,
            SelectorKind::SystemdUnit,
        ];
        let facts = facts(&caller, &all).await.unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let path = std::env::current_exe().unwrap();
        assert!(facts.holds(&selector(&format!("unix:uid:{uid}"))), "{way:?}");
        assert!(facts.holds(&selector(&format!("unix:path:{}", path.display()))), "{way:?}");
        assert!(facts.iter().any(|fact| fact.kind() == SelectorKind::UnixSha256), "{way:?}");
        assert!(!facts.holds(&selector(&format!("unix:uid:{}", uid + 1))), "{way:?}");
    }
}

#[tokio::test]
async fn only_the_facts_that_are_asked_for_are_read() {
    let door = Door::new();
    let _child = start_caller(&door.path(), "stay");
    let socket = door.accept().await;
    let caller = LinuxAttestor::new(Pinning::Auto, Launches::none()).pin(&socket).unwrap();
    let facts = facts(&caller, &[SelectorKind::UnixUid]).await.unwrap();
    assert_eq!(facts.iter().count(), 1);
}

/// Waits until the kernel says that the caller ended.
async fn until_gone(caller: &Arc<dyn Caller>) {
    while caller.alive().is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_caller_that_ended_is_never_taken_for_another() {
    for way in WAYS {
        let door = Door::new();
        let mut child = start_caller(&door.path(), "stay");
        let socket = door.accept().await;
        let caller = LinuxAttestor::new(way, Launches::none()).pin(&socket).unwrap();
        child.kill();
        // Ended, and not yet reaped: the pid cannot be in use by another.
        until_gone(&caller).await;
        let refused = facts(&caller, &[SelectorKind::UnixUid]).await.unwrap_err();
        assert!(matches!(refused, AttestRefused::Gone { .. }), "{way:?}: {refused}");
        child.reap();
        let refused = facts(&caller, &[SelectorKind::UnixUid]).await.unwrap_err();
        assert!(matches!(refused, AttestRefused::Gone { .. }), "{way:?}: {refused}");
    }
}

#[tokio::test]
async fn a_caller_that_ended_before_it_was_looked_at_is_refused() {
    for way in WAYS {
        let door = Door::new();
        let mut child = start_caller(&door.path(), "exit");
        child.reap();
        let socket = door.accept().await;
        let refused = LinuxAttestor::new(way, Launches::none()).pin(&socket).err();
        assert!(matches!(refused, Some(PinRefused::Gone { .. })), "{way:?}: {refused:?}");
    }
}

#[tokio::test]
async fn a_socket_that_was_handed_on_keeps_its_first_owner_who_is_gone() {
    for way in WAYS {
        let door = Door::new();
        let mut child = start_caller(&door.path(), "leave");
        let socket = door.accept().await;
        child.reap();
        let refused = LinuxAttestor::new(way, Launches::none()).pin(&socket).err();
        assert!(matches!(refused, Some(PinRefused::Gone { .. })), "{way:?}: {refused:?}");
        // The heir reads the end of the stream, and ends.
        drop(socket);
    }
}

#[tokio::test]
async fn another_program_in_the_callers_place_is_seen_at_the_next_look() {
    for way in WAYS {
        let door = Door::new();
        let _child = start_caller(&door.path(), "exec");
        let socket = door.accept().await;
        let caller = LinuxAttestor::new(way, Launches::none()).pin(&socket).unwrap();
        let sleep = std::fs::canonicalize("/bin/sleep").unwrap();
        let sleep = selector(&format!("unix:path:{}", sleep.display()));
        assert!(!facts(&caller, &[SelectorKind::UnixPath]).await.unwrap().holds(&sleep));
        socket.try_write(b"!").unwrap();
        // The same process, so the connection lives; what it runs is asked anew each time.
        loop {
            match facts(&caller, &[SelectorKind::UnixPath]).await {
                Ok(facts) if facts.holds(&sleep) => break,
                // A thread that is not the first one begins another program here: for a moment there is neither.
                Ok(_) | Err(_) => tokio::task::yield_now().await,
            }
        }
    }
}

#[tokio::test]
async fn the_launchers_child_is_known_and_an_impostor_of_the_same_uid_is_not() {
    for way in WAYS {
        let door = Door::new();
        let mut launcher = Launcher::new();
        let (launches, listening) = receive(launcher.agent_end().unwrap()).unwrap();
        let listening = tokio::spawn(listening);
        let attestor = LinuxAttestor::new(way, launches.clone());
        let web = selector("launch:web");

        let launched = start_caller(&door.path(), "stay");
        launcher.vouch(launched.number(), &"web".parse().unwrap()).unwrap();
        let socket = door.accept().await;
        let mut told = launches.clone();
        while launches.all().is_empty() {
            told.changed().await;
        }
        let caller = attestor.pin(&socket).unwrap();
        assert!(facts(&caller, &[SelectorKind::Launch]).await.unwrap().holds(&web), "{way:?}");

        let _impostor = start_caller(&door.path(), "stay");
        let socket = door.accept().await;
        let caller = attestor.pin(&socket).unwrap();
        let facts = facts(&caller, &[SelectorKind::Launch]).await.unwrap();
        assert_eq!(facts.iter().count(), 0, "{way:?}");
        listening.abort();
    }
}

#[tokio::test]
async fn an_agent_that_starts_again_is_told_of_all_that_live() {
    let door = Door::new();
    let mut launcher = Launcher::new();
    let first = launcher.agent_end().unwrap();
    let web = start_caller(&door.path(), "stay");
    let gone = start_caller(&door.path(), "stay");
    launcher.vouch(web.number(), &"web".parse().unwrap()).unwrap();
    launcher.vouch(gone.number(), &"gone".parse().unwrap()).unwrap();
    // The first agent ends without having read anything.
    drop(first);
    launcher.forget(gone.number());
    let (launches, listening) = receive(launcher.agent_end().unwrap()).unwrap();
    let listening = tokio::spawn(listening);
    let mut told = launches.clone();
    while launches.all().is_empty() {
        told.changed().await;
    }
    let labels: BTreeSet<String> =
        launches.all().iter().map(|launched| launched.label().to_string()).collect();
    assert_eq!(labels, BTreeSet::from(["web".to_owned()]));
    listening.abort();
}

#[tokio::test]
async fn messages_that_carry_no_process_are_ignored() {
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let send =
        |text: &[u8]| rustix::net::send(&ours, text, rustix::net::SendFlags::empty()).unwrap();
    send(br#"{"label":"web"}"#);
    send(b"not json");
    send(&[b'x'; 2000]);
    send_with_file(&ours);
    let (launches, listening) = receive(theirs).unwrap();
    let listening = tokio::spawn(listening);
    // A good one after them shows that all were read.
    let door = Door::new();
    let child = start_caller(&door.path(), "stay");
    send_pidfd(&ours, child.number());
    let mut told = launches.clone();
    while launches.all().is_empty() {
        told.changed().await;
    }
    assert_eq!(launches.all().len(), 1);
    assert_eq!(launches.all()[0].label().as_str(), "good");
    listening.abort();
}

fn send_with_file(socket: &OwnedFd) {
    let file = std::fs::File::open("/dev/null").unwrap();
    send_descriptor(socket, br#"{"label":"web"}"#, &file.into());
}

fn send_pidfd(socket: &OwnedFd, pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    send_descriptor(socket, br#"{"label":"good"}"#, &pidfd);
}

fn send_descriptor(socket: &OwnedFd, text: &[u8], descriptor: &OwnedFd) {
    use std::os::fd::AsFd;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
    let parts = [std::io::IoSlice::new(text)];
    rustix::net::sendmsg(socket, &parts, &mut control, rustix::net::SendFlags::empty()).unwrap();
}

#[tokio::test]
async fn streams_pass_the_filter_both_ways() {
    use countersign_agent::authority_filter::FilteredStream;
    let (mut client, server) = UnixStream::pair().unwrap();
    let mut server = FilteredStream::new(server, ());
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut preface = [0; 24];
    server.read_exact(&mut preface).await.unwrap();
    server.write_all(b"back").await.unwrap();
    let mut back = [0; 4];
    client.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"back");
    client.write_all(&[0, 0, 0, 9, 4, 0, 0, 0, 1]).await.unwrap();
    let refused = server.read_u8().await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidData);
}

/// Groups of this test in the machine's control groups of version 2, removed with it.
struct Groups {
    top: std::path::PathBuf,
    made: Vec<std::path::PathBuf>,
    mounted: Option<tempfile::TempDir>,
}

impl Groups {
    /// Why not, where nobody but others may make groups: for who is not root, and in closed containers.
    fn new() -> Result<Self, String> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let version_2 = |line: &&str| line.split(' ').nth(2) == Some("cgroup2");
        let at = |line: &str| line.split(' ').nth(1).map(std::path::PathBuf::from);
        let found = mounts.lines().find(version_2).and_then(at);
        let (top, mounted) = match found {
            Some(top) => (top, None),
            None => {
                let place = tempfile::tempdir().unwrap();
                let mut mount = Command::new("mount");
                let mount = mount.args(["-t", "cgroup2", "none"]).arg(place.path()).output();
                let mount = mount.map_err(|why| format!("`mount` does not start: {why}"))?;
                if !mount.status.success() {
                    let said = String::from_utf8_lossy(&mount.stderr).trim().to_owned();
                    return Err(format!("none are mounted, and mounting them was refused: {said}"));
                }
                (place.path().to_owned(), Some(place))
            }
        };
        let slice = format!("countersign-test-{}.slice", std::process::id());
        let mut groups = Self { top, made: Vec::new(), mounted };
        match groups.make(&slice) {
            Ok(_made) => Ok(groups),
            Err(why) => Err(format!("none can be made below `{}`: {why}", groups.top.display())),
        }
    }

    fn make(&mut self, path: &str) -> std::io::Result<std::path::PathBuf> {
        let mut group = self.top.clone();
        for part in path.split('/') {
            group.push(part);
            if !group.exists() {
                std::fs::create_dir(&group)?;
                self.made.push(group.clone());
            }
        }
        Ok(group)
    }

    fn slice(&self) -> String {
        self.made[0].file_name().unwrap().to_str().unwrap().to_owned()
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for group in self.made.iter().rev() {
            std::fs::remove_dir(group).ok();
        }
        if let Some(place) = &self.mounted {
            Command::new("umount").arg(place.path()).status().ok();
        }
    }
}

/// Says that this machine cannot show it. Where every test has to show something it is a failure, unless somebody said that they know.
fn skipped(why: &str) {
    use std::io::Write as _;
    let is = |name: &str| {
        std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "false")
    };
    assert!(
        !is("CI") || is("COUNTERSIGN_NO_CGROUPS"),
        "control groups of version 2 cannot be made here: {why}; set COUNTERSIGN_NO_CGROUPS where that is known"
    );
    let said = format!(
        "SKIPPED: control groups of version 2 cannot be made here, so what the kernel says of a process's unit and container is not \
         tested: {why}. As root on a machine that allows to mount them it is.\n"
    );
    // Past the harness, which shows only what tests print that fail.
    std::io::stderr().write_all(said.as_bytes()).unwrap();
}

#[tokio::test]
async fn unit_and_container_are_those_of_the_real_control_group_at_each_look() {
    let mut groups = match Groups::new() {
        Ok(groups) => groups,
        Err(why) => return skipped(&why),
    };
    let slice = groups.slice();
    let guest = format!("countersign-test-{}.guest", std::process::id());
    let id = "0123456789abcdef".repeat(4);
    let (unit, container) =
        (selector("systemd:unit:payments.service"), selector(&format!("container:id:{id}")));
    let kinds = [SelectorKind::SystemdUnit, SelectorKind::ContainerId];
    let cases = [
        (format!("{slice}/payments.service"), true, false),
        (format!("{slice}/payments.service/inner"), true, false),
        (format!("{slice}/docker-{id}.scope"), false, true),
        (format!("{slice}/docker-{id}.scope/payments.service"), false, true),
        (format!("{slice}/user.slice/payments.service"), false, false),
        (format!("{slice}/user.slice/docker-{id}.scope"), false, false),
        (format!("{slice}/other.service/payments.service"), false, false),
        (format!("{slice}/x payments.service/payments.service"), false, false),
        // Of whoever has a group of its own outside of systemd's, such as the whole system in a container.
        (format!("{guest}/docker-{id}.scope"), false, false),
        (format!("{guest}/{id}"), false, false),
        (format!("{guest}/docker/{id}"), false, false),
        (format!("{guest}/{slice}/docker-{id}.scope"), false, false),
        (format!("{guest}/{slice}/payments.service"), false, false),
    ];
    for way in WAYS {
        let door = Door::new();
        let child = start_caller(&door.path(), "stay");
        let socket = door.accept().await;
        let caller = LinuxAttestor::new(way, Launches::none()).pin(&socket).unwrap();
        for (path, in_unit, in_container) in &cases {
            let group = groups.make(path).unwrap();
            std::fs::write(group.join("cgroup.procs"), child.number().to_string()).unwrap();
            let found = facts(&caller, &kinds).await.unwrap();
            assert_eq!(found.holds(&unit), *in_unit, "{way:?} {path}: {found:?}");
            assert_eq!(found.holds(&container), *in_container, "{way:?} {path}: {found:?}");
        }
        drop(child);
    }
}
