//! A proxy that is told which identity it is: that one and no other, whoever declares what, and nothing until it is given it.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/domain.rs"]
mod domain;
mod support;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use domain::{Domain, Part, run};
use serde_json::Value;
use support::{binary, text, until};

const ME: &str = "spiffe://prod.example/me";

/// A workload whose processes are those of this user, with a service that has a door.
fn workload(name: &str, uid: u32) -> String {
    format!(
        "---\napiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\n\
         spec: {{selectors: [\"unix:uid:{uid}\"], lifetime: 5m}}\n\
         ---\napiVersion: countersign.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{workload: {name}, protocol: http, listen: \"127.0.0.1:0\", forward: \"127.0.0.1:9\"}}\n"
    )
}

fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Makes it so, and waits until every enforcement point enforces it.
#[track_caller]
fn apply(domain: &Domain, manifests: &str) {
    let file = domain.folder.path().join("more.yaml");
    std::fs::write(&file, manifests).unwrap();
    let admin = domain.admin();
    let applied = run(&["apply", file.to_str().unwrap(), "--admin", &admin, "--wait"]);
    assert!(applied.status.success(), "{}", text(&applied.stderr));
}

/// A proxy of its own name that follows the manifests, with more arguments.
fn following(domain: &Domain, name: &str, more: &[&str]) -> Part {
    let (socket, place) = (domain.socket(), domain.folder.path().join(name));
    let place = place.to_str().unwrap();
    let arguments = ["proxy", "--name", name, "--agent", &socket, "--run-dir", place];
    Part::start(&[&arguments[..], more].concat(), &[])
}

/// Who a proxy said that it is when it was ready, and of which services it opened the doors.
fn began_as(proxy: &Part) -> (&str, Vec<&str>) {
    let doors = proxy.ready["inbound"].as_array().unwrap();
    let services = doors.iter().map(|door| door["service"].as_str().unwrap()).collect();
    (proxy.ready["id"].as_str().unwrap(), services)
}

fn door(proxy: &Part) -> String {
    proxy.ready["inbound"][0]["listen"].as_str().unwrap().to_owned()
}

/// Whose certificate is shown at a door: what follows `URI:` in it. None where nobody listens or nothing is shown.
fn shown_at(door: &str) -> Option<String> {
    let shaken = Command::new("openssl")
        .args(["s_client", "-connect", door])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let mut reader = Command::new("openssl")
        .args(["x509", "-noout", "-ext", "subjectAltName"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It may have ended already when there is nothing to be read.
    let _ = reader.stdin.take().unwrap().write_all(&shaken.stdout);
    let told = text(&reader.wait_with_output().unwrap().stdout);
    let (_, uri) = told.split_once("URI:")?;
    Some(uri.split([',', '\n']).next().unwrap().trim().to_owned())
}

#[test]
fn a_proxy_that_is_told_which_identity_it_is_stays_that_one_whatever_comes_first_and_after_a_restart()
 {
    let domain = Domain::make_of(&[], &[], |_ready| workload("me", own_uid()));
    domain.credentials();
    let told = following(&domain, "told", &["--id", ME]);
    assert_eq!(began_as(&told), (ME, vec!["me"]));
    let untold = following(&domain, "untold", &[]);
    assert_eq!(began_as(&untold), (ME, vec!["me"]));
    let socket = domain.socket();
    let inbound = "service=me,listen=127.0.0.1:0,forward=127.0.0.1:9";
    let fixed =
        Part::start(&["proxy", "--name", "fixed", "--agent", &socket, "--inbound", inbound], &[]);

    // One that comes first by its name, for the very processes that these are.
    apply(&domain, &workload("also", own_uid()));
    let other = "spiffe://prod.example/also";
    until("whoever takes the first is another one", || {
        (shown_at(&door(&fixed))? == other).then_some(())
    });
    until("whoever takes the first closes its door", || {
        TcpStream::connect(door(&untold)).is_err().then_some(())
    });
    assert_eq!(shown_at(&door(&told)).as_deref(), Some(ME));

    // One that starts now is given both, and the other one first.
    let later = following(&domain, "later", &["--id", ME]);
    assert_eq!(began_as(&later), (ME, vec!["me"]));
    assert_eq!(shown_at(&door(&later)).as_deref(), Some(ME));
    drop(told);
    let told = following(&domain, "told", &["--id", ME]);
    assert_eq!(began_as(&told), (ME, vec!["me"]));
}

#[test]
fn fetch_of_one_identity_shows_that_one_alone() {
    let domain = Domain::make_of(&[], &[], |_ready| {
        workload("also", own_uid()) + &workload("me", own_uid())
    });
    domain.credentials();
    let (socket, written) = (domain.socket(), domain.folder.path().join("one"));
    let fetch = |more: &[&str]| {
        let output = run(&[&["fetch", "x509", "--socket", &socket], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let shown = |more: &[&str]| -> Vec<String> {
        let said: Value =
            serde_json::from_str(&fetch(&[more, &["--output", "json"]].concat())).unwrap();
        let svids = said["svids"].as_array().unwrap();
        svids.iter().map(|svid| svid["spiffeId"].as_str().unwrap().to_owned()).collect()
    };
    let other = "spiffe://prod.example/also";
    until("the process is both", || (shown(&[]) == [other, ME]).then_some(()));
    assert_eq!(shown(&["--id", ME]), [ME]);
    assert_eq!(shown(&["--id", other]), [other]);
    assert_eq!(shown(&["--id", ME, "--write", written.to_str().unwrap()]), [ME]);
    let said = fetch(&["--id", ME, "--write", written.to_str().unwrap()]);
    assert!(said.contains(ME) && !said.contains(other), "{said}");
    let nobody = "spiffe://prod.example/nobody";
    let refused = run(&["fetch", "x509", "--socket", &socket, "--id", nobody]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("it is `{other}` and `{ME}`")), "{said}");
}

/// A proxy that is not ready yet.
struct Waiting {
    child: Child,
    log: std::path::PathBuf,
    printed: std::path::PathBuf,
}

impl Waiting {
    fn begin(domain: &Domain, arguments: &[&str]) -> Self {
        let at = |name: &str| domain.folder.path().join(name);
        let (log, printed) = (at("waiting.log"), at("waiting.out"));
        let child = Command::new(binary())
            .args(["proxy", "--output", "json", "--log-level", "warn"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&printed).unwrap())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log, printed }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// What it said when it was ready, once it is.
    fn ready(&self) -> Option<Value> {
        serde_json::from_str(&std::fs::read_to_string(&self.printed).unwrap()).ok()
    }

    /// At how many addresses of its own peers could connect to it: one with a socket for each core is one.
    fn listens(&self) -> usize {
        let pid = self.child.id();
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
        // The fourth column is the state, of which 0A is LISTEN, and the tenth the socket's number.
        let listening: Vec<(String, &str)> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|columns| columns.get(3) == Some(&"0A"))
            .map(|columns| (format!("socket:[{}]", columns[9]), columns[1]))
            .collect();
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let links = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        let address = |link: PathBuf| {
            let mut all = listening.iter();
            all.find(|(socket, _)| link.as_os_str() == &**socket).map(|(_, address)| *address)
        };
        links.filter_map(address).collect::<BTreeSet<_>>().len()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        support::signal(i32::try_from(self.child.id()).unwrap(), "TERM");
        let _reaped = self.child.wait();
    }
}

#[test]
fn a_proxy_that_is_not_given_the_identity_it_is_told_opens_no_door_says_why_and_begins_once_it_is()
{
    let foreign = workload("absent", own_uid() + 1);
    let domain =
        Domain::make_of(&[], &[], |_ready| format!("{}{foreign}", workload("me", own_uid())));
    domain.credentials();
    let (socket, place) = (domain.socket(), domain.folder.path().join("door"));
    let absent = "spiffe://prod.example/absent";
    let arguments = ["--agent", &socket, "--run-dir", place.to_str().unwrap(), "--id", absent];
    let proxy = Waiting::begin(&domain, &arguments);
    let waits =
        || proxy.log().lines().find(|line| line.contains("opens no door")).map(str::to_owned);
    let said = until("it says why it waits", waits);
    for part in ["not `spiffe://prod.example/absent`", "`spiffe://prod.example/me`", "selectors"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!((proxy.ready(), proxy.listens()), (None, 0), "{}", proxy.log());

    apply(&domain, &workload("absent", own_uid()));
    let ready = until("it is ready", || proxy.ready());
    assert_eq!(ready["id"], absent, "{ready}");
    let doors = ready["inbound"].as_array().unwrap();
    assert_eq!((doors.len(), &doors[0]["service"]), (1, &Value::from("absent")), "{ready}");
    assert_eq!(proxy.listens(), 1);
    assert_eq!(shown_at(doors[0]["listen"].as_str().unwrap()).as_deref(), Some(absent));
}

#[test]
fn files_hold_one_identity_so_that_there_is_nothing_to_choose() {
    let inbound = "service=me,listen=127.0.0.1:0,forward=127.0.0.1:9";
    let files = ["proxy", "--chain", "a.pem", "--key", "b.pem", "--bundle", "c.pem"];
    let refused = run(&[&files[..], &["--inbound", inbound, "--id", ME]].concat());
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    let said = text(&refused.stderr);
    assert!(
        said.contains("`--id` stands beside `--chain`") && said.contains("one identity"),
        "{said}"
    );
    let refused = run(&["proxy", "--inbound", inbound, "--agent", "unix:///x", "--id", "me"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("`me`"), "{}", text(&refused.stderr));
}
