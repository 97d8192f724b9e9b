//! Callers of another user, really: processes of uid 65534 at sockets whose path lets them in.
//!
//! Only root can start such processes (CI is root). Without it the test looks at what keeps others out before they could be
//! refused: the folder of the sockets.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use support::{Up, binary, folder, put_program, shop, text, until};

/// `nobody` of every Debian.
const FOREIGN: u32 = 65534;
/// Another one, whom nothing has to know.
const OTHER: u32 = 65533;
/// Where a crowd of another user finds the socket that it is to fill.
const CROWDED: &str = "COUNTERSIGN_TEST_CROWDED";

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn open_up(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A shop whose sockets lie in a folder of this test, so that nothing else is opened with them.
struct Opened {
    up: Up,
    run: PathBuf,
    /// A copy of the program where everybody may run it.
    program: PathBuf,
    folder: tempfile::TempDir,
}

impl Opened {
    fn start() -> Self {
        let folder = folder();
        let runtime = folder.path().join("rt");
        std::fs::create_dir(&runtime).unwrap();
        let environment = [("XDG_RUNTIME_DIR", runtime.to_str().unwrap())];
        let up = Up::start_in(&shop(), &folder.path().join("data"), &[], &environment);
        let run = socket(&up, "admin").parent().unwrap().to_owned();
        assert!(run.starts_with(&runtime), "the sockets are in {}", run.display());
        let program = folder.path().join("countersign");
        put_program(&binary(), &program);
        Self { up, run, program, folder }
    }

    /// Opens every folder above the sockets, and the sockets themselves.
    fn open(&self) {
        let top = self.folder.path();
        for folder in self.run.ancestors().take_while(|folder| folder.starts_with(top)) {
            open_up(folder, 0o755);
        }
        for entry in std::fs::read_dir(&self.run).unwrap() {
            open_up(&entry.unwrap().path(), 0o666);
        }
    }

    /// Another user's process that holds far more connections to this socket than there are places.
    fn crowd_at(&self, socket: &Path) -> Child {
        let program = self.folder.path().join("crowd");
        put_program(&std::env::current_exe().unwrap(), &program);
        let mut command = Command::new(&program);
        command.args(["--exact", "crowd_of_another_user", "--ignored", "--nocapture"]);
        command.env(CROWDED, socket).current_dir("/").uid(FOREIGN).gid(FOREIGN);
        let mut crowd = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(crowd.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("all here") {
            line.clear();
            assert_ne!(told.read_line(&mut line).unwrap(), 0, "it is gone");
        }
        crowd.stdout = Some(told.into_inner());
        crowd
    }

    fn as_foreigner(&self, arguments: &[&str]) -> Output {
        let state = self.folder.path().join("none");
        let mut command = Command::new(&self.program);
        command.args(arguments).env("XDG_STATE_HOME", state).current_dir("/");
        command.uid(FOREIGN).gid(FOREIGN).output().unwrap()
    }
}

fn socket(up: &Up, name: &str) -> PathBuf {
    up.ready[name].as_str().unwrap().strip_prefix("unix://").unwrap().into()
}

/// One request on a Unix socket: curl's exit status, and the status of the answer.
fn curl(socket: &Path, path: &str, uid: u32) -> (Option<i32>, String) {
    let mut command = Command::new("curl");
    command.args(["-s", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}"]);
    command.arg("--unix-socket").arg(socket).arg(format!("http://localhost{path}"));
    command.current_dir("/");
    if uid != 0 {
        command.uid(uid).gid(uid);
    }
    let output = command.output().unwrap();
    (output.status.code(), text(&output.stdout))
}

/// What curl says of a connection that was closed without an answer: after its request (52), during it (56), or even before
/// curl first looked whether it is connected (7).
const CLOSED: [Option<i32>; 3] = [Some(7), Some(52), Some(56)];

#[test]
fn a_process_of_another_user_reaches_the_sockets_and_is_refused_at_each() {
    let shop = Opened::start();
    assert_eq!(mode(&shop.run), 0o700, "nobody else gets to the sockets by their path");
    if !nix::unistd::geteuid().is_root() {
        println!("not root: only the mode of the sockets' folder was looked at, no foreign caller");
        return;
    }
    shop.open();
    let (admin, agent) = (socket(&shop.up, "admin"), socket(&shop.up, "agent"));
    let outbound = shop.run.join("web.orders.sock");

    // The way to orders: whoever may use it *is* web.
    let path = "/orders/1";
    until("our own user is let in", || (curl(&outbound, path, 0).1 == "200").then_some(()));
    let (ended, answer) = curl(&outbound, path, FOREIGN);
    assert!(CLOSED.contains(&ended) && answer == "000", "curl ended with {ended:?}, got {answer}");
    let told = until("the refusal is a fact", || {
        let told = shop.up.json(&["status", "--handshakes"]).to_string();
        told.contains("the caller runs as uid 65534").then_some(told)
    });
    assert!(told.contains("\"forbidden\""), "{told}");

    // The operators' socket.
    assert_eq!(curl(&admin, "/v1/status", 0).1, "200");
    assert_eq!(curl(&admin, "/v1/status", FOREIGN), (Some(0), "403".to_owned()));
    let address = |path: &Path| format!("unix://{}", path.display());
    let refused = shop.as_foreigner(&["status", "--admin", &address(&admin)]);
    says(&refused, "uid 65534");

    // The agent's status; and it gives an identity to nobody that matches no workload.
    let refused = shop.as_foreigner(&["status", "--agent", &address(&agent)]);
    says(&refused, "not for uid 65534");
    let refused = shop.as_foreigner(&["fetch", "x509", "--socket", &address(&agent)]);
    says(&refused, "matches no workload");
}

/// What the crowd does: every other caller asks once, the others say nothing, and all stay until they are told to go.
#[test]
#[ignore = "another test runs it, as another user"]
fn crowd_of_another_user() {
    let Some(socket) = std::env::var_os(CROWDED) else { return };
    let mut crowd = Vec::new();
    for number in 0..300 {
        let mut caller = UnixStream::connect(&socket).unwrap();
        if number % 2 == 0 {
            // It may have had to go already.
            caller.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n").ok();
        }
        crowd.push(caller);
    }
    println!("\nall here");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn crowd_of_another_user_keeps_no_operator_and_nobody_else_from_the_admin_socket() {
    let shop = Opened::start();
    if !nix::unistd::geteuid().is_root() {
        println!("not root: there is no other user to be a crowd");
        return;
    }
    shop.open();
    let admin = socket(&shop.up, "admin");
    let mut crowd = shop.crowd_at(&admin);
    for _ in 0..10 {
        assert_eq!(curl(&admin, "/v1/status", 0), (Some(0), "200".to_owned()));
        assert_eq!(curl(&admin, "/v1/status", OTHER), (Some(0), "403".to_owned()));
        assert_eq!(curl(&admin, "/v1/status", FOREIGN), (Some(0), "403".to_owned()));
    }
    assert!(crowd.try_wait().unwrap().is_none(), "it is still there");
    drop(crowd.stdin.take());
    crowd.wait().unwrap();
}

#[track_caller]
fn says(refused: &Output, words: &str) {
    let told = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{told}{}", text(&refused.stdout));
    assert!(told.contains(words), "expected `{words}` in: {told}");
}
