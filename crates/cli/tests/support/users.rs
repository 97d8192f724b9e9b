//! A server at whose socket everybody is let in, and users of this machine who ask it.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Barrier;

use serde_json::Value;

use crate::support::{binary, folder, put_program, text, until};

/// How many ask for the same at once. Each makes two connections, and one user has eight: with more, the oldest is cut.
const MANY: usize = 4;

/// A folder that every user reaches, with the program in it.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    program: PathBuf,
    server: Option<Child>,
}

impl Place {
    pub(crate) fn begin() -> Self {
        let mut place = Self::without_server();
        let (data, socket) = (place.at("d"), place.at("admin.sock"));
        let mut server = Command::new(&place.program);
        server.args(["server", "--data", &data, "--listen", "127.0.0.1:0", "--metrics", "off"]);
        server.args(["--admin-socket", &socket]).stdout(Stdio::null()).stderr(Stdio::null());
        place.server = Some(server.spawn().unwrap());
        until("the server answers", || (place.ask(0, &["history"]).0 == 0).then_some(()));
        open_up(Path::new(&socket), 0o666);
        place
    }

    /// The same with a trust domain that nobody serves.
    pub(crate) fn without_server() -> Self {
        let folder = folder();
        let program = folder.path().join("countersign");
        put_program(&binary(), &program);
        open_up(folder.path(), 0o755);
        let place = Self { folder, program, server: None };
        let init = ["init", "--data", &place.at("d"), "--trust-domain", "shop.example"];
        let made = place.run_as(0, &init);
        assert!(made.status.success(), "{}", text(&made.stderr));
        place
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.at(name), text).unwrap();
        self.at(name)
    }

    pub(crate) fn run_as(&self, uid: u32, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir("/").env("XDG_STATE_HOME", self.at("none"));
        if uid != 0 {
            command.uid(uid).gid(uid);
        }
        command.stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn ask(&self, uid: u32, arguments: &[&str]) -> (i32, Value, String) {
        let admin = format!("unix://{}", self.at("admin.sock"));
        let more = ["--admin", admin.as_str(), "--output", "json"];
        let done = self.run_as(uid, &[arguments, &more].concat());
        let value = serde_json::from_slice(&done.stdout).unwrap_or(Value::Null);
        (done.status.code().unwrap(), value, text(&done.stderr))
    }

    #[track_caller]
    pub(crate) fn done(&self, uid: u32, arguments: &[&str]) -> Value {
        let (status, value, said) = self.ask(uid, arguments);
        assert_eq!(status, 0, "{uid} {arguments:?}: {said}");
        value
    }

    #[track_caller]
    pub(crate) fn refused(&self, uid: u32, arguments: &[&str], status: i32, says: &str) {
        let (found, _, said) = self.ask(uid, arguments);
        assert_eq!(found, status, "{uid} {arguments:?}: {said}");
        assert!(said.contains(says), "{uid} {arguments:?}: {said}");
    }

    /// Asks for the same from many processes at once: how many were answered, and what was said to the others.
    pub(crate) fn at_once(&self, uid: u32, arguments: &[&str]) -> (usize, Vec<(i32, String)>) {
        let together = Barrier::new(MANY);
        let ask = || {
            together.wait();
            let (status, _, said) = self.ask(uid, arguments);
            (status, said)
        };
        let all: Vec<_> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..MANY).map(|_| scope.spawn(ask)).collect();
            asked.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (done, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|said| said.0 == 0);
        (done.len(), others)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ended = server.kill();
            let _reaped = server.wait();
        }
    }
}

pub(crate) fn open_up(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
