//! Wrong input: a sentence and the right exit status, never a panic.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;
#[path = "support/users.rs"]
#[expect(dead_code, reason = "nobody is asked for anything here")]
mod users;

use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{Up, binary, folder, shop, text};
use users::Place;

/// Exit statuses of the design, section 16.
const NOT_UNDERSTOOD: i32 = 2;
const NOT_READY: i32 = 3;
const CONFLICT: i32 = 4;

#[track_caller]
fn says(output: &Output, status: i32, words: &[&str]) {
    let said = text(&output.stderr) + &text(&output.stdout);
    assert_eq!(output.status.code(), Some(status), "{said}");
    for word in words {
        assert!(said.contains(word), "expected `{word}` in: {said}");
    }
    for ugly in ["panicked", "RUST_BACKTRACE", "unwrap()", "Os {"] {
        assert!(!said.contains(ugly), "{said}");
    }
}

fn run(arguments: &[&str]) -> Output {
    let state = folder();
    Command::new(binary()).args(arguments).env("XDG_STATE_HOME", state.path()).output().unwrap()
}

#[test]
fn a_folder_without_manifests_is_told_as_such() {
    let empty = folder();
    let data = folder();
    let output =
        run(&["up", empty.path().to_str().unwrap(), "--data", data.path().to_str().unwrap()]);
    says(&output, NOT_UNDERSTOOD, &[empty.path().to_str().unwrap()]);
    says(&run(&["up", "/no/such/folder"]), NOT_UNDERSTOOD, &["/no/such/folder"]);
}

/// As an agent does with those that have too many: some are gone before they have said a word, some after.
#[test]
fn connections_that_the_agent_closes_unheard_are_told_with_what_to_do() {
    let folder = folder();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let (listens, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for connection in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                if listens.load(Ordering::SeqCst) {
                    // The first of two only looks whether somebody is there.
                    connection.unwrap().read_exact(&mut [0; 24]).ok();
                }
            }
        });
        let address = format!("unix://{}", path.display());
        let said: Vec<Output> = (0..6)
            .flat_map(|round| {
                listens.store(round % 2 == 1, Ordering::SeqCst);
                [
                    run(&["fetch", "x509", "--socket", &address]),
                    run(&["status", "--agent", &address]),
                ]
            })
            .collect();
        ended.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&path).unwrap());
        for output in &said {
            says(output, NOT_READY, &[&address, "without an answer", "have too many", "try again"]);
            assert!(!text(&output.stderr).contains("transport error"), "{}", text(&output.stderr));
        }
    });
}

#[test]
fn every_problem_of_every_manifest_is_told_with_its_place_and_nothing_starts() {
    let manifests = folder();
    std::fs::write(
        manifests.path().join("a.yaml"),
        "apiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {name: Web}\nspec:\n  selectors: [\"unix:uid:*\"]\n  lifetme: 5m\n",
    )
    .unwrap();
    std::fs::write(
        manifests.path().join("b.yaml"),
        "apiVersion: countersign.dev/v1\nkind: Wrkload\nmetadata: {name: x}\nspec: {}\n",
    )
    .unwrap();
    let data = folder();
    let state = data.path().join("state");
    let output =
        run(&["up", manifests.path().to_str().unwrap(), "--data", state.to_str().unwrap()]);
    says(
        &output,
        NOT_UNDERSTOOD,
        &[
            "a.yaml:3", "`Web`", "a.yaml:5", "unix:uid", "a.yaml:6", "lifetme", "b.yaml:1",
            "b.yaml:2", "Wrkload",
        ],
    );
    assert!(!state.exists(), "nothing was made");
}

#[test]
fn a_second_up_on_the_same_data_is_a_conflict() {
    let up = Up::shop();
    let output = run(&["up", shop().to_str().unwrap(), "--data", up.data.to_str().unwrap()]);
    says(&output, CONFLICT, &["another `up` runs"]);
    assert_eq!(up.get("web", "/").0, 200, "the first one goes on");
}

#[test]
fn a_second_server_on_the_same_directory_is_a_conflict() {
    let up = Up::shop();
    let server = up.data.join("server");
    let sockets = folder();
    let socket = sockets.path().join("a.sock");
    let output = run(&[
        "server",
        "--data",
        server.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--admin-socket",
        socket.to_str().unwrap(),
    ]);
    says(&output, CONFLICT, &[server.to_str().unwrap()]);
}

#[test]
fn a_taken_port_is_named() {
    let state = folder();
    let data = state.path().join("d");
    let init = run(&["init", "--data", data.to_str().unwrap(), "--trust-domain", "a.example"]);
    assert!(init.status.success(), "{}", text(&init.stderr));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["server", "--data", data.to_str().unwrap(), "--listen", &address]);
    says(&output, CONFLICT, &[&address]);
}

#[test]
fn init_does_not_touch_what_is_there() {
    let state = folder();
    let data = state.path().join("d");
    let init = || run(&["init", "--data", data.to_str().unwrap(), "--trust-domain", "a.example"]);
    assert!(init().status.success());
    says(&init(), CONFLICT, &[data.to_str().unwrap()]);
    says(
        &run(&[
            "init",
            "--data",
            state.path().join("e").to_str().unwrap(),
            "--trust-domain",
            "A.example",
        ]),
        NOT_UNDERSTOOD,
        &["`A.example`", "a-z"],
    );
}

#[test]
fn commands_without_a_server_say_how_to_name_one() {
    let state = folder();
    let nowhere = state.path().join("no.sock");
    let admin = format!("unix://{}", nowhere.display());
    says(
        &run(&["status", "--admin", &admin]),
        NOT_READY,
        &["no server answers", nowhere.to_str().unwrap()],
    );
    says(&run(&["status"]), NOT_READY, &["--data", "--admin"]);
    let socket = format!("unix://{}", nowhere.display());
    says(&run(&["fetch", "x509", "--socket", &socket]), NOT_READY, &[nowhere.to_str().unwrap()]);
}

#[test]
fn bad_flags_are_not_understood() {
    for arguments in [
        &["stauts"][..],
        &["status", "--outptu", "json"],
        &["up", "--for", "soon"],
        &["agent", "--trust", "md5:00"],
        &["proxy", "--allow", "http://x"],
        &["verify", "--as", "peer", "x.pem"],
    ] {
        says(&run(arguments), NOT_UNDERSTOOD, &[]);
    }
}

#[test]
fn a_socket_path_that_is_too_long_is_told_with_its_limit() {
    let state = folder();
    let data = state.path().join("d");
    assert!(
        run(&["init", "--data", data.to_str().unwrap(), "--trust-domain", "a.example"])
            .status
            .success()
    );
    let long = state.path().join("s".repeat(120));
    let output = run(&[
        "server",
        "--data",
        data.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--admin-socket",
        long.to_str().unwrap(),
    ]);
    says(&output, NOT_UNDERSTOOD, &["107"]);
}

#[test]
fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let state = folder();
    let first = Up::start(&shop(), state.path(), &[]);
    let agent = first.ready["agent"].as_str().unwrap().trim_start_matches("unix://").to_owned();
    support::signal(first.pid(), "KILL");
    drop(first);
    support::until("its processes are gone", || {
        std::os::unix::net::UnixStream::connect(&agent).is_err().then_some(())
    });
    // What its server has to write takes that a while yet.
    let lock = std::fs::File::open(state.path().join("server/state.lock")).unwrap();
    support::until("its server has ended", || lock.try_lock().ok());
    std::thread::spawn(move || {
        std::thread::park_timeout(Duration::from_secs(2));
        drop(lock);
    });
    let second = Up::start(&shop(), state.path(), &[]);
    assert_eq!(second.get("web", "/").0, 200);
}

#[test]
fn key_files_backups_reports_and_folders_that_do_not_fit_are_told_once_in_words_with_status_2() {
    let place = folder();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let data = at("d");
    let made = run(&["init", "--data", &data, "--trust-domain", "shop.example"]);
    assert!(made.status.success(), "{}", text(&made.stderr));

    // A key file that others may read.
    let kek = std::path::Path::new(&data).join("kek");
    std::fs::set_permissions(&kek, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    says(&run(&["backup", &at("b"), "--data", &data]), NOT_UNDERSTOOD, &["chmod 600"]);
    std::fs::set_permissions(&kek, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();

    // A backup that is not there, told once.
    let output = run(&["restore", &at("none"), "--data", &at("e"), "--kek", kek.to_str().unwrap()]);
    says(&output, NOT_UNDERSTOOD, &["there is no file"]);
    let said = text(&output.stderr).to_lowercase();
    assert_eq!(said.matches("no such file").count() + said.matches("there is no file").count(), 1);

    // A folder for a backup that is not there, and a copy of a state onto itself.
    let nowhere = at("nowhere/b");
    let told = [&*format!("there is no folder `{}`", at("nowhere")), "make it"];
    says(&run(&["backup", &nowhere, "--data", &data]), NOT_UNDERSTOOD, &told);
    let (same, told) = (format!("{data}/../d"), ["the same directory", "with `--to`"]);
    says(&run(&["store", "copy", "--from", &data, "--to", &same]), NOT_UNDERSTOOD, &told);

    // Junk for a report.
    for junk in ["nonsense", "{}", "[1]", "{\"payload\": 1}"] {
        std::fs::write(at("junk"), junk).unwrap();
        std::fs::write(at("roots"), "").unwrap();
        let output = run(&["authority", "check-report", &at("junk"), "--bundle", &at("roots")]);
        says(&output, NOT_UNDERSTOOD, &["this is not a signed document", "junk"]);
        assert!(!text(&output.stderr).contains("line 1"), "{}", text(&output.stderr));
    }

    // The folder of an `up`, which has the server's in it.
    let outer = at("up");
    std::fs::create_dir(&outer).unwrap();
    std::fs::rename(&data, std::path::Path::new(&outer).join("server")).unwrap();
    let saved = run(&["backup", &at("b"), "--data", &outer]);
    assert!(saved.status.success(), "{}", text(&saved.stderr));
}

#[test]
fn what_is_no_name_is_told_with_what_one_looks_like_and_where_they_are_shown() {
    for (arguments, words) in [
        (&["revoke", "web"][..], &["`spiffe://shop.example/web`", "`--serial`"][..]),
        (&["suspend", "web"], &["`spiffe://shop.example/web`", "`--node`"]),
        (&["resume", "web"], &["`spiffe://shop.example/web`", "`--node`"]),
        (&["fetch", "x509", "--id", "web"], &["`spiffe://shop.example/web`"]),
        (&["revoke", "--serial", "web"], &["32 lower-case", "log search --kind svid-issued"]),
        (&["revoke", "--key", "web"], &["64 lower-case", "openssl x509"]),
        (&["revoke", "--node", "web"], &["`countersign node list`"]),
        (&["revoke", "--authority", "web"], &["`countersign authority list`"]),
        (&["suspend", "--node", "web"], &["`countersign node list`"]),
        (&["node", "remove", "web"], &["`countersign node list`"]),
        (&["crl", "--issuer", "web"], &["`countersign authority list`"]),
        (&["show", "web"], &["`1.412`, or `412`", "`countersign history`"]),
        (&["diff", "web", "2"], &["`countersign history`"]),
        (&["rollback", "web"], &["`countersign history`"]),
        (&["rollback", "1", "--base", "web"], &["`countersign history`"]),
        (&["apply", ".", "--base", "web"], &["`countersign history`"]),
        (&["converged", "web"], &["`countersign history`"]),
        (&["log", "search", "--kind", "web"], &["`countersign reference events`"]),
        (&["log", "search", "--serial", "web"], &["log search --kind svid-issued"]),
        (&["log", "show", "web"], &["`countersign log tail`"]),
        (&["log", "tail", "-n", "web"], &["a whole number, such as `20`"]),
        (&["log", "search", "--limit", "web"], &["a whole number, such as `20`"]),
        (&["events", "--limit", "web"], &["a whole number, such as `20`"]),
        (&["events", "--after", "web"], &["not the index of an event", "`countersign log tail`"]),
        (&["history", "--limit", "-1"], &[]),
        (&["history", "--limit", "1.5"], &["a whole number, such as `20`"]),
        (&["handshakes", "--skip", "web"], &["a whole number, such as `20`"]),
        (&["status", "--handshakes", "--limit", "web"], &["a whole number, such as `20`"]),
        (&["verify", "-"], &["write `{\"chain\":[PEM…]", "`--bundle FILE`"]),
        (&["proxy", "--inbound", "web"], &["`KEY=VALUE`", "service, listen, forward, protocol"]),
    ] {
        says(&run(arguments), NOT_UNDERSTOOD, words);
    }
    let place = folder();
    let list = place.path().join("list");
    std::fs::write(&list, "web\n").unwrap();
    let output = run(&["revoke", "--from", list.to_str().unwrap(), "--reason", "superseded"]);
    says(&output, NOT_UNDERSTOOD, &["line 1 of", "`spiffe://TRUST-DOMAIN/PATH`"]);
}

#[test]
fn what_is_not_there_is_told_with_what_shows_what_is() {
    let up = Up::shop();
    let node = "0".repeat(32);
    for (arguments, words) in [
        (&["node", "remove", &node][..], "`countersign node list`"),
        (&["resource", "remove", "Workload", "nobody"], "`countersign resource list`"),
        (&["show", "999"], "`countersign history`"),
        (&["converged", "1.999"], "revision 1.999 is not there yet: the current one is 1."),
        (&["converged", "1.999", "--wait", "--timeout", "10m"], "revision 1.999 is not there yet"),
        (&["converged", "1.999", "--verify"], "revision 1.999 is not there yet"),
        (&["log", "show", "99999"], "`countersign log tail`"),
        (&["log", "prove", "99999"], "`countersign log tail`"),
    ] {
        says(&up.run(arguments), 1, &[words]);
    }
    // No trial of what is not there has begun, by a rule of its own.
    says(&up.run(&["log", "search", "--kind", "revoked"]), 1, &[]);
}

#[test]
fn a_database_that_cannot_be_had_is_told_with_its_place_and_what_to_look_at() {
    let place = folder();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let made = run(&["init", "--data", &at("d"), "--trust-domain", "shop.example"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    // Nobody listens at a port that was somebody's a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let away = format!("postgres://u@127.0.0.1:{port}/x?sslmode=disable");
    let told = [&*format!("`127.0.0.1:{port}`"), "check that the database runs there", "user"];
    let (data, other) = (at("d"), at("e"));
    for arguments in [
        &["server", "--data", &data, "--store", &away][..],
        &["init", "--data", &other, "--trust-domain", "shop.example", "--store", &away],
        &["store", "verify", &away],
        &["store", "copy", "--from", &data, "--to", &away],
        &["backup", &at("b"), "--data", &data, "--store", &away],
    ] {
        says(&run(arguments), NOT_READY, &told);
    }
    let without = format!("postgres://u@127.0.0.1:{port}/x?sslrootcert={}", at("none"));
    let told = [&*at("none"), "which the database's URL names"];
    says(&run(&["store", "verify", &without]), NOT_READY, &told);
    std::fs::write(at("file"), "").unwrap();
    let told = [&*at("file"), "`countersign init` makes one"];
    says(&run(&["store", "verify", &at("file")]), NOT_READY, &told);
    let output = run(&["restore", &at("file"), "--data", &other, "--kek", &at("d/kek")]);
    says(&output, NOT_UNDERSTOOD, &["not a backup: `countersign backup` writes them"]);
}

#[test]
fn a_folder_that_is_not_the_one_that_was_meant_is_told_with_what_to_do() {
    let place = folder();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let done = |output: Output| assert!(output.status.success(), "{}", text(&output.stderr));
    done(run(&["init", "--data", &at("d"), "--trust-domain", "shop.example"]));
    done(run(&["backup", &at("b"), "--data", &at("d")]));
    let (file, data, kek) = (at("b"), at("e"), at("d/kek"));
    let restore = ["restore", &file, "--data", &data, "--kek", &kek, "--journal"];
    let (none, empty) = (at("none"), at("empty"));
    std::fs::create_dir(&empty).unwrap();
    for folder in [&none, &empty] {
        let refused = run(&[&restore[..], &[folder]].concat());
        says(&refused, NOT_UNDERSTOOD, &[folder, "name the folder", "leave `--journal` out"]);
    }
    let copied = run(&["store", "copy", "--from", &at("d"), "--to", &at("none/e")]);
    says(&copied, NOT_UNDERSTOOD, &[&at("none/e"), "make it first", "mkdir"]);
    // What is in order is said to be so, with the key that lies beside it, or without one.
    let verify = ["store", "verify", &*at("d")];
    let verified = run(&verify);
    says(&verified, 0, &["in order: revision", "the key opens all"]);
    std::fs::rename(at("d/kek"), at("kek")).unwrap();
    let verified = run(&verify);
    says(&verified, 0, &["in order: revision", "was not tried: there is no key file"]);
    says(&run(&[&verify[..], &["--kek", &at("kek")]].concat()), 0, &["the key opens all"]);
    says(&run(&[&verify[..], &["--kek", &none]].concat()), NOT_UNDERSTOOD, &["no key file"]);
}

#[test]
fn a_restore_that_was_killed_is_in_nobodys_way() {
    let place = folder();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let done = |output: Output| assert!(output.status.success(), "{}", text(&output.stderr));
    done(run(&["init", "--data", &at("d"), "--trust-domain", "shop.example"]));
    done(run(&["backup", &at("b"), "--data", &at("d")]));
    let (file, data, kek, journal) = (at("b"), at("e"), at("d/kek"), at("journal"));
    let restore = ["restore", &file, "--data", &data, "--kek", &kek];
    // It waits for somebody to write the journal, when all of the backup is in its place.
    std::fs::create_dir(&journal).unwrap();
    let lines = place.path().join("journal/rules-one.jsonl");
    nix::unistd::mkfifo(&lines, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let arguments = [&restore[..], &["--journal", &journal]].concat();
    let mut killed = Command::new(binary()).args(&arguments).spawn().unwrap();
    let _writer = support::until("it reads the journal", || {
        // Only who finds a reader opens it.
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nix::libc::O_NONBLOCK);
        options.write(true).open(&lines).ok()
    });
    let makes = place.path().join("e.restoring/state.db");
    assert!(makes.exists());
    says(&run(&restore), CONFLICT, &["another restore makes", "e.restoring` at this moment"]);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(makes.exists(), "it was killed");
    done(run(&restore));
    assert!(!place.path().join("e.restoring").exists());
    done(run(&["store", "verify", &data]));
}

#[test]
fn a_place_that_cannot_be_listened_at_is_told_with_another() {
    let place = folder();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let data = at("d");
    let made = run(&["init", "--data", &data, "--trust-domain", "shop.example"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let serve = |more: &[&str]| run(&[&["server", "--data", &data], more].concat());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    says(&serve(&["--listen", &address]), CONFLICT, &[&address, "choose another port"]);
    // An address for documentation (RFC 5737), which nobody has.
    let foreign = serve(&["--listen", "192.0.2.1:0"]);
    says(&foreign, NOT_READY, &["192.0.2.1:0", "`0.0.0.0` and `[::]`"]);
    let free = ["--listen", "127.0.0.1:0", "--metrics", "off", "--admin-socket"];
    std::fs::write(at("file"), "").unwrap();
    let in_the_way = serve(&[&free[..], &[&at("file")]].concat());
    says(&in_the_way, CONFLICT, &["choose another path with `--admin-socket`"]);
    let _answers = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let answered = serve(&[&free[..], &[&at("socket")]].concat());
    says(&answered, CONFLICT, &["choose another path with `--admin-socket`"]);
}

#[test]
fn what_another_user_may_not_reach_is_told_with_what_lets_it() {
    // Only root can start processes of other users (CI is root).
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Place::without_server();
    let (at, run) =
        (|name: &str| place.at(name), |arguments: &[&str]| place.run_as(64_021, arguments));
    let socket = format!("unix://{}", at("d/agent.sock"));
    let fetched = run(&["fetch", "x509", "--socket", &socket]);
    says(&fetched, NOT_READY, &[&socket, "this user may not reach", "chmod o+x"]);
    let asked = run(&["status", "--admin", &socket]);
    says(&asked, 1, &[&socket, "run as its owner or as root"]);
    for arguments in [&["server", "--data", &at("d")][..], &["backup", "/x", "--data", &at("d")]] {
        says(&run(arguments), 5, &[&at("d"), "run as the user whose it is, or as root"]);
    }
}
