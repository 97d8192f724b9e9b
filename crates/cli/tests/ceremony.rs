//! Roots that an authority outside holds: openssl is that authority, and everything else is real processes.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Up, folder, text, until};

/// An authority that has never heard of Countersign, in a folder of its own.
struct Offline(PathBuf);

impl Offline {
    fn new(at: &Path, name: &str) -> Self {
        let root = Self(at.join(name));
        std::fs::create_dir_all(&root.0).unwrap();
        std::fs::write(root.0.join("index.txt"), "").unwrap();
        std::fs::write(
            root.0.join("ca.cnf"),
            "[ca]\ndefault_ca = one\n[one]\ndatabase = index.txt\nnew_certs_dir = .\ncertificate = root.pem\n\
             private_key = root.key\nrand_serial = yes\ndefault_md = sha256\npolicy = any\ncopy_extensions = copyall\n\
             unique_subject = no\n[any]\norganizationName = optional\ncommonName = optional\n",
        )
        .unwrap();
        root.run(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -noenc -keyout root.key -out root.pem -days 3650 -addext keyUsage=critical,keyCertSign,cRLSign -subj /O=Acme/CN={name}"
        ));
        root
    }

    #[track_caller]
    fn run(&self, line: &str) -> String {
        let mut command = Command::new("openssl");
        let done = command.args(line.split(' ')).current_dir(&self.0).output().unwrap();
        assert!(done.status.success(), "openssl {line}: {}", text(&done.stderr));
        text(&done.stdout)
    }

    /// Signs a request from so many days ago to so many days from now, and gives the chain.
    fn sign(&self, request: &Path, from_days: i64, to_days: i64) -> PathBuf {
        let time = |days: i64| {
            let done = Command::new("date")
                .args(["-u", "-d", &format!("{days} days"), "+%Y%m%d%H%M%SZ"])
                .output()
                .unwrap();
            text(&done.stdout).trim().to_owned()
        };
        std::fs::copy(request, self.0.join("request.pem")).unwrap();
        self.run(&format!(
            "ca -config ca.cnf -batch -notext -in request.pem -out issuer.pem -startdate {} -enddate {}",
            time(from_days),
            time(to_days)
        ));
        let read = |name: &str| std::fs::read_to_string(self.0.join(name)).unwrap();
        let chain = self.0.join("chain.pem");
        std::fs::write(&chain, read("issuer.pem") + &read("root.pem")).unwrap();
        chain
    }

    fn root(&self) -> PathBuf {
        self.0.join("root.pem")
    }
}

/// The root in this state.
fn root(up: &Up, state: &str) -> Option<Value> {
    let roots = up.json(&["authority", "list"])["roots"].as_array().unwrap().clone();
    roots.into_iter().find(|root| root["state"] == state)
}

fn events(up: &Up, kind: &str) -> Vec<Value> {
    let events = up.json(&["events", "--limit", "1000"])["events"].as_array().unwrap().clone();
    events.into_iter().filter(|event| event["kind"] == kind).collect()
}

#[track_caller]
fn refused(up: &Up, arguments: &[&str], status: i32, says: &str) {
    let done = up.run(arguments);
    let said = text(&done.stderr);
    assert_eq!(done.status.code(), Some(status), "{arguments:?}: {said}");
    assert!(said.contains(says), "{arguments:?}: {said}");
}

#[test]
fn root_outside_takes_the_place_of_ours_by_ceremony_and_its_issuers_follow_each_other() {
    let place = folder();
    let (acme, other) = (Offline::new(place.path(), "acme"), Offline::new(place.path(), "other"));
    let up = Up::shop();
    let ours = root(&up, "active").unwrap();
    assert_eq!(ours["held"], "here");

    // 1. A request goes out; it stays the same until its certificate comes.
    let request = place.path().join("request.pem");
    let file = request.to_str().unwrap();
    refused(&up, &["authority", "import", acme.root().to_str().unwrap()], 1, "no request waits");
    let asked = up.json(&["authority", "prepare", "--root-key", "external", "--out", file]);
    let again = up.json(&["authority", "prepare", "--root-key", "external"]);
    assert_eq!(asked["key"], again["key"]);
    acme.run(&format!("req -in {file} -verify -noout"));

    // 2. What does not fit is refused, and says why.
    refused(
        &up,
        &["authority", "import", acme.root().to_str().unwrap()],
        2,
        "the key of the request",
    );
    let short = acme.sign(&request, 0, 0);
    refused(&up, &["authority", "import", short.to_str().unwrap()], 1, "expired");
    let long = acme.sign(&request, 0, 300);
    refused(&up, &["authority", "import", long.to_str().unwrap()], 1, "more than 90d");
    let alone = acme.sign(&request, 0, 80).with_file_name("issuer.pem");
    refused(&up, &["authority", "import", alone.to_str().unwrap()], 2, "holds no root");

    // 3. The chain comes in, and the whole walk follows.
    let chain = acme.sign(&request, 0, 80);
    let file = chain.to_str().unwrap();
    let done = up.json(&["authority", "import", file, "--wait", "--timeout", "2m"]);
    assert!(done["steps"].as_array().unwrap().iter().all(|step| step["at"].is_string()), "{done}");
    let outside = root(&up, "active").unwrap();
    assert_eq!((&outside["held"], &outside["trusted"]), (&"external".into(), &true.into()));
    assert_eq!(root(&up, "retired").unwrap()["key"], ours["key"]);
    assert_eq!(up.get("web", "/").0, 200);
    assert_eq!(up.json(&["authority", "list"])["ceremony"]["due"], Value::Null);

    // 4. openssl agrees about what a workload shows, and about the report, which the issuer signs now.
    let svid = place.path().join("svid");
    up.make_me("1h");
    until("the process has an identity", || {
        let fetched = up.run(&["fetch", "x509", "--write", svid.to_str().unwrap()]);
        fetched.status.success().then_some(())
    });
    let at = |name: &str| svid.join(name).to_str().unwrap().to_owned();
    let roots = acme.root().to_str().unwrap().to_owned();
    let said = acme.run(&format!(
        "verify -CAfile {roots} -untrusted {} {}",
        at("svid.pem"),
        at("svid.pem")
    ));
    assert!(said.contains("OK"), "{said}");
    let report = place.path().join("report.json");
    let file = report.to_str().unwrap();
    assert!(up.run(&["authority", "report", "--out", file]).status.success());
    let (_, checked, _) = run(&["authority", "check-report", file, "--bundle", &roots]);
    assert_eq!(checked["activeRoot"], outside["key"]);
    let foreign = other.root().to_str().unwrap().to_owned();
    let (status, _, said) = run(&["authority", "check-report", file, "--bundle", &foreign]);
    assert_eq!(status, 1, "{said}");

    // 5. Its issuer is succeeded by another ceremony, at once, under the same root.
    refused(&up, &["rotate", "issuer"], 1, "--root-key external");
    let request = place.path().join("second.pem");
    let file = request.to_str().unwrap();
    up.json(&["authority", "prepare", "--root-key", "external", "--out", file]);
    let foreign = other.sign(&request, 0, 80);
    let almost = acme.sign(&request, -30, 20);
    let brought = up.json(&["authority", "import", almost.to_str().unwrap()]);
    assert_eq!((&brought["walks"], &brought["root"]), (&false.into(), &outside["key"]));
    refused(&up, &["authority", "import", foreign.to_str().unwrap()], 1, "no request waits");

    // 6. That one is past half of its life: the server says so, in four ways.
    let told = until("the ceremony is told to be due", || events(&up, "ceremony-due").pop());
    assert_eq!(told["subject"], brought["issuer"]);
    let listed = up.json(&["authority", "list"]);
    assert!(listed["ceremony"]["due"].is_string(), "{listed}");
    let status = up.server_status();
    let warned = status["warnings"].to_string();
    assert!(warned.contains("have a successor signed"), "{warned}");
    let human = text(&up.command(&["authority", "list"]).output().unwrap().stdout);
    assert!(human.contains("a ceremony is due"), "{human}");

    // 7. A walk away from it waits at its first gate for people, who may also take the key back here.
    up.json(&["rotate", "root"]);
    let waits = until("the gate of `prepare` waits", || {
        let step = up.json(&["authority", "list"])["order"]["steps"][0].clone();
        step["gate"]["why"].as_str().map(str::to_owned)
    });
    assert!(waits.contains("held outside"), "{waits}");
    assert!(up.run(&["authority", "prepare"]).status.success());
    // Whoever reads the files that were written above does not know of the new root yet.
    until("the gate of `activate` waits for who reads files", || {
        let order = up.json(&["authority", "list"])["order"].to_string();
        order.contains("that cannot acknowledge").then_some(())
    });
    assert!(up.run(&["authority", "activate", "--force", "nobody reads them"]).status.success());
    until("the root is ours again", || {
        root(&up, "active").filter(|root| root["held"] == "here").map(drop)
    });
    until("nothing is under way", || {
        up.json(&["authority", "list"])["order"].is_null().then_some(())
    });
    assert_eq!(up.get("web", "/").0, 200);
    let imports = events(&up, "authority-imported");
    assert_eq!(imports.len(), 2, "{imports:?}");
}

/// Runs the program by itself.
fn run(arguments: &[&str]) -> (i32, Value, String) {
    let mut command = Command::new(support::binary());
    let done = command.args(arguments).args(["--output", "json"]).output().unwrap();
    let value = serde_json::from_slice(&done.stdout).unwrap_or(Value::Null);
    (done.status.code().unwrap(), value, text(&done.stderr))
}

#[test]
fn trust_domain_is_born_under_a_root_outside_and_no_server_runs_before() {
    let place = folder();
    let acme = Offline::new(place.path(), "acme");
    let data = place.path().join("d");
    let at = data.to_str().unwrap();
    let (status, asked, said) =
        run(&["init", "--data", at, "--trust-domain", "shop.example", "--root-key", "external"]);
    assert_eq!(status, 0, "{said}");
    let request = PathBuf::from(asked["request"].as_str().unwrap());

    let (status, _, said) = run(&["server", "--data", at, "--listen", "127.0.0.1:0"]);
    assert_eq!(status, 3, "{said}");
    assert!(said.contains("--import"), "{said}");
    let (status, _, said) = run(&["init", "--data", at, "--trust-domain", "shop.example"]);
    assert_eq!(status, 3, "what waits is not thrown away: {said}");
    let (status, _, said) = run(&["init", "--data", at, "--import", acme.root().to_str().unwrap()]);
    assert_eq!(status, 2, "{said}");
    let none = place.path().join("none.pem");
    let (status, _, said) = run(&["init", "--data", at, "--import", none.to_str().unwrap()]);
    assert_eq!(status, 2, "{said}");

    let chain = acme.sign(&request, 0, 80);
    let (status, made, said) = run(&["init", "--data", at, "--import", chain.to_str().unwrap()]);
    assert_eq!(status, 0, "{said}");
    assert_eq!(made["trustDomain"], "shop.example");
    assert!(!request.exists());
    let (status, _, said) = run(&["init", "--data", at, "--import", chain.to_str().unwrap()]);
    assert_eq!(status, 4, "{said}");

    let mut server = Command::new(support::binary())
        .args([
            "server",
            "--data",
            at,
            "--listen",
            "127.0.0.1:0",
            "--metrics",
            "off",
            "--output",
            "json",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let listed = until("the server answers", || {
        let (status, listed, _) = run(&["authority", "list", "--data", at]);
        (status == 0).then_some(listed)
    });
    let key = made["trust"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    assert_eq!(listed["roots"][0]["key"], key);
    assert_eq!(
        (&listed["roots"][0]["held"], listed["issuers"].as_array().unwrap().len()),
        (&"external".into(), 1)
    );
    support::signal(i32::try_from(server.id()).unwrap(), "TERM");
    assert!(server.wait().unwrap().success());
}
