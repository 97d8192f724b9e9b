//! What is declared changes once several operators have approved the plan, each from a user of their own.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;

use serde_json::Value;
use support::{binary, folder, text, until};

const FIRST: u32 = 64_011;
const SECOND: u32 = 64_012;
const STRANGER: u32 = 64_013;
/// How many ask for the same at once. Each makes two connections, and one user has eight: with more, the oldest is cut.
const MANY: usize = 4;

struct Place {
    folder: tempfile::TempDir,
    program: PathBuf,
    server: Option<Child>,
}

impl Place {
    fn begin() -> Self {
        let folder = folder();
        let program = folder.path().join("countersign");
        if std::fs::hard_link(binary(), &program).is_err() {
            std::fs::copy(binary(), &program).unwrap();
        }
        open_up(folder.path(), 0o755);
        let mut place = Self { folder, program, server: None };
        let (data, socket) = (place.at("d"), place.at("admin.sock"));
        let mut init = Command::new(&place.program);
        let made = init.args(["init", "--data", &data, "--trust-domain", "shop.example"]).output();
        assert!(made.unwrap().status.success());
        let mut server = Command::new(&place.program);
        server.args(["server", "--data", &data, "--listen", "127.0.0.1:0", "--metrics", "off"]);
        server.args(["--admin-socket", &socket]).stdout(Stdio::null()).stderr(Stdio::null());
        place.server = Some(server.spawn().unwrap());
        until("the server answers", || (place.ask(0, &["history"]).0 == 0).then_some(()));
        open_up(Path::new(&socket), 0o666);
        place
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.at(name), text).unwrap();
        self.at(name)
    }

    fn ask(&self, uid: u32, arguments: &[&str]) -> (i32, Value, String) {
        let admin = format!("unix://{}", self.at("admin.sock"));
        let mut command = Command::new(&self.program);
        command.args(arguments).args(["--admin", &admin, "--output", "json"]);
        command.current_dir("/").env("XDG_STATE_HOME", self.at("none")).stdin(Stdio::null());
        if uid != 0 {
            command.uid(uid).gid(uid);
        }
        let done = command.output().unwrap();
        let value = serde_json::from_slice(&done.stdout).unwrap_or(Value::Null);
        (done.status.code().unwrap(), value, text(&done.stderr))
    }

    #[track_caller]
    fn done(&self, uid: u32, arguments: &[&str]) -> Value {
        let (status, value, said) = self.ask(uid, arguments);
        assert_eq!(status, 0, "{uid} {arguments:?}: {said}");
        value
    }

    #[track_caller]
    fn refused(&self, uid: u32, arguments: &[&str], status: i32, says: &str) {
        let (found, _, said) = self.ask(uid, arguments);
        assert_eq!(found, status, "{uid} {arguments:?}: {said}");
        assert!(said.contains(says), "{uid} {arguments:?}: {said}");
    }

    /// Asks for the same from many processes at once: how many were answered, and what was said to the others.
    fn at_once(&self, uid: u32, arguments: &[&str]) -> (usize, Vec<(i32, String)>) {
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

    /// A plan of these manifests, in a file that everybody may read.
    #[track_caller]
    fn plan(&self, manifest: &str, name: &str) -> String {
        let file = self.at(name);
        let plan = self.done(0, &["plan", manifest, "--out", &file]);
        assert_eq!(plan["approval"]["needed"], 2, "{plan}");
        open_up(Path::new(&file), 0o644);
        file
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

fn open_up(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn domain(changes: &str) -> String {
    format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: TrustDomain\nmetadata: {{name: shop}}\nspec:\n  \
         trustDomain: shop.example\n{changes}"
    )
}

fn workload(name: &str) -> String {
    format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  selectors: [\"unix:uid:1\"]\n"
    )
}

#[test]
fn of_many_words_and_applications_at_once_one_counts() {
    // Only root can start processes of other users (CI is root).
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Place::begin();
    let named = format!("[\"uid:{FIRST}\", \"uid:{SECOND}\"]");
    let changes = format!("  changes: {{approvals: 2, approvers: {named}}}\n");
    place.done(0, &["apply", &place.write("domain.yaml", &domain(&changes))]);
    let file = place.plan(&place.write("a.yaml", &workload("a")), "a.json");

    let approve = ["plan", "approve", &file];
    let (given, others) = place.at_once(FIRST, &approve);
    assert_eq!(given, 1, "{others:?}");
    for said in others {
        assert!(said.0 == 4 && said.1.contains("approved it already"), "{said:?}");
    }
    let apply = ["apply", "--plan", &file];
    let (applied, refused) = place.at_once(0, &apply);
    assert!(applied == 0 && refused.iter().all(|said| said.1.contains("1 of 2 operators")));
    place.done(SECOND, &approve);
    let (applied, others) = place.at_once(0, &apply);
    assert_eq!(applied, 1, "{others:?}");
    for said in others {
        assert!(said.0 == 4 && said.1.contains("the change was made for revision"), "{said:?}");
    }
    let events = place.done(0, &["events", "--limit", "1000"]);
    let events = events["events"].as_array().unwrap().clone();
    let approved = events.iter().filter(|event| event["kind"] == "change-approved");
    let put = events.iter().filter(|event| event["subject"] == "Workload/a");
    assert_eq!((approved.count(), put.count()), (2, 1), "{events:?}");
}

#[test]
fn nothing_changes_without_the_word_of_those_who_are_named() {
    // Only root can start processes of other users (CI is root).
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Place::begin();
    let named = format!("[\"uid:{FIRST}\", \"uid:{SECOND}\", \"uid:0\"]");
    let changes = format!("  changes: {{approvals: 2, approvers: {named}}}\n");
    let required = place.write("domain.yaml", &domain(&changes));
    place.refused(FIRST, &["plan", &required], 1, "may not administer");
    let begun = place.done(0, &["apply", &required]);

    // No way past it: not bare, not back, not by removal, and not by lifting the requirement itself.
    let (a, b) = (place.write("a.yaml", &workload("a")), place.write("b.yaml", &workload("b")));
    let lifted = place.write("lifted.yaml", &domain(""));
    let says = "`countersign plan approve FILE`";
    for refused in [&["apply", &a][..], &["apply", &lifted], &["rollback", "1"]] {
        place.refused(0, refused, 1, says);
    }
    place.refused(0, &["resource", "remove", "TrustDomain", "shop"], 2, "cannot be removed");
    let base = begun["revision"].as_str().unwrap();
    place.refused(0, &["apply", &a, "--base", base], 1, "0 of 2 operators have approved");

    // Those who are named see what there is to approve, and nothing else.
    let file = place.plan(&a, "a.json");
    let shown = place.done(FIRST, &["plan", "show", &file]);
    assert_eq!(shown["changes"][0]["name"], "a", "{shown}");
    place.refused(STRANGER, &["plan", "show", &file], 1, "may not administer");
    place.refused(STRANGER, &["plan", "approve", &file], 1, "may not administer");
    for refused in [&["status"][..], &["apply", "--plan", &file], &["rollback", "1"]] {
        place.refused(FIRST, refused, 1, "may not administer");
    }

    // Nobody counts twice, and who applies it does not count.
    place.done(0, &["plan", "approve", &file]);
    place.done(FIRST, &["plan", "approve", &file]);
    place.refused(FIRST, &["plan", "approve", &file], 4, "counts once");
    place.refused(0, &["apply", "--plan", &file], 1, "1 of 2 operators have approved");

    // What was approved is these manifests, and no others that are put in their place.
    let changed = std::fs::read_to_string(&file).unwrap().replace("unix:uid:1", "unix:uid:2");
    let changed = place.write("changed.json", &changed);
    place.done(SECOND, &["plan", "approve", &file]);
    place.refused(0, &["apply", "--plan", &changed], 1, "0 of 2 operators have approved");
    let applied = place.done(0, &["apply", "--plan", &file]);
    assert_eq!(applied["changes"][0]["name"], "a", "{applied}");
    place.refused(0, &["apply", "--plan", &file], 4, "the change was made for revision");
    place.refused(FIRST, &["plan", "approve", &file], 4, "the change was made for revision");

    // A word is for one revision: what moves meanwhile has it asked for anew.
    let (first, second) = (place.plan(&b, "b.json"), place.plan(&lifted, "lifted.json"));
    for uid in [FIRST, SECOND] {
        place.done(uid, &["plan", "approve", &first]);
        place.done(uid, &["plan", "approve", &second]);
    }
    place.done(0, &["apply", "--plan", &second]);
    place.refused(0, &["apply", "--plan", &first], 4, "the change was made for revision");
    // Nobody has to be asked any more, and nobody who was named has a say.
    place.done(0, &["apply", &b]);
    place.refused(FIRST, &["plan", "show", &first], 1, "may not administer");

    let events = place.done(0, &["events", "--limit", "1000"]);
    let events = events["events"].as_array().unwrap().clone();
    let approved = events.iter().filter(|event| event["kind"] == "change-approved");
    let approved: Vec<_> = approved.map(|event| event["actor"].as_str().unwrap()).collect();
    assert_eq!(approved.len(), 7, "{approved:?}");
    assert_eq!(approved[1], format!("operator:uid:{FIRST}"));
}
