//! A place with keys and servers in it, whose secrets nobody is to be shown.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::{self, binary, folder, text, until};

pub(crate) const WORDS: &str = "correct horse battery staple";
/// Long enough never to stand in a file or a line by chance, as four digits would.
pub(crate) const PIN: &str = "linden-7291-quill";
pub(crate) const WRONG_PIN: &str = "maple-1111-heron";

/// Environment, and whatever else holds for each command of a test.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// A server that ends with the test.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) at: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: folder(), environment: Vec::new() }
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (*name, value)));
        command.env("XDG_STATE_HOME", self.at("xdg")).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--output", "json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[track_caller]
    pub(crate) fn refused(&self, arguments: &[&str], status: i32, says: &str) {
        let done = self.run(arguments);
        let said = text(&done.stderr);
        assert_eq!(done.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
        assert!(!said.contains(WORDS) && !said.contains(PIN), "a secret: {said}");
    }

    /// Runs a server on a directory, and waits until it says what it is.
    pub(crate) fn server(&self, data: &str, more: &[&str]) -> (Server, Value) {
        let fixed = ["server", "--data", data, "--listen", "127.0.0.1:0", "--metrics", "off"];
        let log = std::fs::File::options().create(true).append(true).open(self.at("log")).unwrap();
        let child = self
            .command(&[&fixed, more].concat())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Server { child, at: data.to_owned() };
        let status = until("the server answers", || {
            let done = self.run(&["status", "--data", data, "--output", "json"]);
            serde_json::from_slice::<Value>(&done.stdout).ok().filter(|it| it["server"].is_object())
        });
        (server, status)
    }

    pub(crate) fn secret(&self, name: &str, contents: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, contents).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Server {
    pub(crate) fn end(mut self) {
        support::signal(i32::try_from(self.child.id()).unwrap(), "TERM");
        self.child.wait().unwrap();
        self.at.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.at.is_empty() {
            let _ended = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

/// Whether any file below holds these bytes.
pub(crate) fn holds(folder: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, bytes);
        }
        let read = std::fs::read(&path).unwrap_or_default();
        read.windows(bytes.len()).any(|part| part == bytes)
    })
}
