//! The audit log: proofs that need no server, tampering with real files, and a witness that remembers.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/domain.rs"]
mod domain;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use rusqlite::Connection;
use serde_json::Value;
use tempfile::TempDir;

use crate::domain::{Domain, Part, run};
use crate::support::{binary, folder, text, until};

/// Runs a command, and gives its status and the JSON lines that it printed.
fn told(arguments: &[&str]) -> (i32, Vec<Value>) {
    let output = run(&[arguments, &["--output", "json"]].concat());
    let lines = text(&output.stdout);
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code().unwrap(), lines)
}

#[track_caller]
fn done(output: &Output) -> String {
    let all = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{all}");
    text(&output.stdout)
}

fn at(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A trust domain whose server runs.
struct World {
    domain: Domain,
    key: String,
}

impl World {
    fn make(server: &[&str]) -> Self {
        let manifests = |_ready: &Value| support::manifest_of_me("1h");
        let domain = Domain::make_of(&[], server, manifests);
        let key = done(&run(&["log", "key", "--admin", &domain.admin()])).trim().to_owned();
        Self { domain, key }
    }

    fn data(&self) -> PathBuf {
        self.domain.folder.path().join("server")
    }

    fn log(&self, arguments: &[&str]) -> Output {
        run(&[&["log"], arguments, &["--admin", &self.domain.admin()]].concat())
    }

    /// Events that a trust domain has in plenty: join tokens, one after the other.
    fn grow(&self, events: usize) {
        for _ in 0..events {
            done(&run(&["token", "create", "--admin", &self.domain.admin()]));
        }
    }

    /// Waits until all that happened is signed.
    fn signed(&self) -> String {
        until("a checkpoint of the whole log", || {
            let (_, status) = told(&["status", "--admin", &self.domain.admin()]);
            let note = text(&self.log(&["checkpoint"]).stdout);
            let size = status[0]["server"]["log"]["size"].to_string();
            (note.lines().nth(1) == Some(size.as_str())).then_some(note)
        })
    }

    /// Starts the server again, on what is in its directory now.
    fn restart(&mut self) {
        let data = self.data();
        let arguments =
            ["server", "--data", at(&data), "--listen", "127.0.0.1:0", "--metrics", "off"];
        self.domain.server =
            Part::start(&[&arguments[..], &["--views", "127.0.0.1:0"]].concat(), &[]);
    }

    /// A copy of what a server that was ended leaves behind.
    fn copy(&self) -> TempDir {
        let copy = folder();
        copy_to(&self.data(), &copy.path().join("server"));
        copy
    }
}

fn copy_to(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-a", at(from), at(to)]).status().unwrap();
    assert!(copied.success());
}

fn serial(certificate: &Path) -> String {
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-serial", "-in", at(certificate)])
        .output()
        .unwrap();
    let shown = text(&output.stdout).trim().to_lowercase();
    shown.strip_prefix("serial=").unwrap().to_owned()
}

#[test]
fn certificate_is_proven_to_be_in_the_log_by_a_file_and_a_public_key() {
    let mut world = World::make(&[]);
    let folder = world.domain.credentials();
    let (svid, bundle) = (folder.join("svid.pem"), folder.join("bundle.pem"));
    let proof = folder.join("svid.tlog-proof");
    until("the certificate's event is signed", || {
        let proven = world.log(&["prove", &serial(&svid), "--out", at(&proof)]);
        proven.status.success().then_some(())
    });
    let key = world.key.clone();
    // Nobody is left to be asked.
    world.domain.server.kill();
    world.domain.agent.kill();
    let check = |proof: &Path, key: &str, more: &[&str]| {
        let base = ["log", "verify", "--proof", at(proof), "--key", key];
        told(&[&base[..], more].concat())
    };
    let (status, said) = check(&proof, &key, &["--certificate", at(&svid)]);
    assert_eq!((status, &said[0]["proven"]), (0, &Value::Bool(true)), "{said:?}");
    assert_eq!(said[0]["kind"], "svid-issued");
    assert_eq!(said[0]["subject"], "spiffe://prod.example/me");
    assert_eq!(said[0]["serial"], serial(&svid));
    // Another certificate, another key, another leaf: each is a no.
    let (status, said) = check(&proof, &key, &["--certificate", at(&bundle)]);
    assert_eq!((status, &said[0]["proven"]), (1, &Value::Bool(false)), "{said:?}");
    let other = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    assert_eq!(check(&proof, other, &[]).0, 1);
    let (status, said) = told(&["log", "verify", "--proof", at(&proof)]);
    let detail = said[0]["error"]["message"].as_str().unwrap();
    assert!(status == 2 && detail.contains("countersign log key"), "{said:?}");
    let changed = folder.join("changed");
    let text = std::fs::read_to_string(&proof).unwrap();
    let leaf = text.lines().nth(1).unwrap();
    let forged = text.replace(leaf, &leaf.replace("eyJhY3Rvc", "eyJhY3Ruc"));
    assert_ne!(forged, text);
    std::fs::write(&changed, forged).unwrap();
    assert_eq!(check(&changed, &key, &[]).0, 1);
    std::fs::write(&changed, "nonsense").unwrap();
    assert_eq!(check(&changed, &key, &[]).0, 1);
}

#[test]
fn events_are_found_by_what_they_say_and_shown_whole() {
    let world = World::make(&[]);
    let folder = world.domain.credentials();
    let admin = world.domain.admin();
    let search = |more: &[&str]| told(&[&["log", "search", "--admin", &admin], more].concat());
    let serial = serial(&folder.join("svid.pem"));
    let (status, found) = search(&["--serial", &serial]);
    assert_eq!((status, found.len()), (0, 1), "{found:?}");
    let index = found[0]["index"].to_string();
    let (_, by_kind) = search(&["--kind", "svid-issued", "--subject", "spiffe://prod.example/me"]);
    assert!(by_kind.contains(&found[0]), "{by_kind:?}");
    let (_, by_time) = search(&["--since", "1h", "--subject", "spiffe://prod.example/*"]);
    assert!(by_time.contains(&found[0]), "{by_time:?}");
    assert_eq!(search(&["--until", "2020-01-01T00:00:00Z"]).0, 1);
    assert_eq!(search(&["--kind", "no-such"]).0, 2);
    let shown = done(&world.log(&["show", &serial]));
    assert!(shown.contains("spiffe://prod.example/me") && shown.contains("notAfter"), "{shown}");
    let (_, tail) = told(&["log", "tail", "-n", "3", "--admin", &admin]);
    assert_eq!(tail.len(), 3);
    let (_, shown) = told(&["log", "show", &index, "--admin", &admin]);
    assert_eq!(shown[0], found[0]);
    assert_eq!(told(&["log", "show", "999999", "--admin", &admin]).0, 1);
}

/// ATTACKS 26: what a join token or a key consists of is in no event.
#[test]
fn no_secret_is_in_the_log() {
    let mut world = World::make(&[]);
    let (_, created) = told(&["token", "create", "--admin", &world.domain.admin()]);
    let token = created[0]["token"].as_str().unwrap().to_owned();
    let folder = world.domain.credentials();
    let key = std::fs::read_to_string(folder.join("svid-key.pem")).unwrap();
    let kek = std::fs::read(world.data().join("kek")).unwrap();
    let exported = folder.join("log.jsonl");
    done(&world.log(&["export", "--out", at(&exported)]));
    world.domain.server.kill();
    let log = std::fs::read_to_string(&exported).unwrap();
    assert!(log.contains("token-created"), "{log}");
    let secret = &token[token.len() / 2..];
    for canary in [token.as_str(), secret, key.lines().nth(1).unwrap()] {
        assert!(16 <= canary.len() && !log.contains(canary), "{canary}");
    }
    let hex: String = kek.iter().map(|byte| format!("{byte:02x}")).collect();
    // The last letters depend on what follows.
    let base64 = [STANDARD.encode(&kek), URL_SAFE.encode(&kek)].map(|text| text[..40].to_owned());
    for canary in [&hex, &hex.to_uppercase(), &base64[0], &base64[1]] {
        assert!(!log.contains(canary), "{canary}");
    }
    // And the file is enough to verify all of it.
    let verify = |path: &Path| told(&["log", "verify", "--export", at(path), "--key", &world.key]);
    assert_eq!(verify(&exported).0, 0, "{:?}", verify(&exported));
    let mut lines: Vec<&str> = log.lines().collect();
    lines.swap(3, 4);
    std::fs::write(&exported, lines.join("\n")).unwrap();
    let (status, said) = verify(&exported);
    assert_eq!((status, &said[0]["findings"][0]["kind"]), (1, &Value::from("missing")), "{said:?}");
}

/// What is done to a database, and what is found.
struct Tampering {
    sql: &'static str,
    kind: &'static str,
    index: Option<u64>,
}

const fn tampering(sql: &'static str, kind: &'static str, index: Option<u64>) -> Tampering {
    Tampering { sql, kind, index }
}

const TAMPERINGS: &[Tampering] = &[
    tampering(
        "UPDATE log SET leaf = CAST(replace(CAST(leaf AS TEXT), 'operator', 'nobody_x') AS BLOB) WHERE log_index = 20",
        "changed",
        Some(20),
    ),
    tampering("UPDATE log SET details = X'7b7d' WHERE log_index = 21", "details-changed", Some(21)),
    tampering("DELETE FROM log WHERE log_index = 22", "missing", Some(22)),
    tampering(
        "UPDATE log SET log_index = -1 WHERE log_index = 23; \
        UPDATE log SET log_index = 23 WHERE log_index = 24; \
        UPDATE log SET log_index = 24 WHERE log_index = -1",
        "swapped",
        Some(23),
    ),
    tampering("DELETE FROM log WHERE log_index >= 25", "truncated", Some(25)),
    tampering(
        "DELETE FROM log WHERE log_index >= 25; UPDATE head SET log_size = 25",
        "truncated",
        Some(25),
    ),
    tampering("UPDATE tile_hashes SET hash = randomblob(32)", "tile-changed", None),
    tampering("DELETE FROM tile_hashes", "tile-changed", None),
    tampering("UPDATE checkpoints SET note = replace(note, '/log/1', '/log/2')", "other", None),
    tampering("DELETE FROM checkpoints", "other", None),
];

#[test]
fn every_tampering_with_the_database_is_found_and_named() {
    let mut world = World::make(&[]);
    world.grow(270);
    let kept = world.domain.folder.path().join("kept.checkpoint");
    std::fs::write(&kept, world.signed()).unwrap();
    let (status, said) =
        told(&["log", "verify", "--admin", &world.domain.admin(), "--from", at(&kept)]);
    assert_eq!(status, 0, "{said:?}");
    world.domain.server.kill();
    for Tampering { sql, kind, index } in TAMPERINGS {
        let copy = world.copy();
        let place = copy.path().join("server");
        Connection::open(place.join("state.db")).unwrap().execute_batch(sql).unwrap();
        let (status, said) = told(&["log", "verify", "--store", at(&place)]);
        let found = said[0]["findings"].as_array().unwrap();
        assert_eq!(status, 1, "{sql}: {said:?}");
        assert_eq!(found[0]["kind"], *kind, "{sql}: {said:?}");
        assert_eq!(found[0]["index"].as_u64(), *index, "{sql}: {said:?}");
    }
    // As it is, it is in order, with and without what was kept.
    let place = world.data();
    for more in [&[][..], &["--from", at(&kept)]] {
        let (status, said) = told(&[&["log", "verify", "--store", at(&place)], more].concat());
        assert_eq!((status, said[0]["findings"].as_array().unwrap().len()), (0, 0), "{said:?}");
    }
}

/// A witness that looks once.
fn witness(world: &World, state: &Path) -> (i32, Vec<Value>) {
    let url = format!("http://{}", world.domain.server.ready["views"].as_str().unwrap());
    told(&["log", "witness", "--once", "--log", &url, "--key", &world.key, "--state", at(state)])
}

#[test]
fn witness_notices_a_database_that_was_replaced_as_a_whole() {
    let mut world = World::make(&["--views", "127.0.0.1:0"]);
    // An agent would tell the server that its store lost something. Here nobody does.
    world.domain.agent.kill();
    let state = folder();
    let state = state.path().join("witness");
    world.signed();
    let (status, said) = witness(&world, &state);
    assert_eq!((status, &said[0]["event"]), (0, &Value::from("cosigned")), "{said:?}");
    world.grow(3);
    world.signed();
    let (status, said) = witness(&world, &state);
    assert_eq!((status, &said[0]["event"]), (0, &Value::from("cosigned")), "{said:?}");
    // What the witness has seen is enough to notice it without the witness, too.
    let seen = state.join("last.checkpoint");
    world.domain.server.kill();
    let old = world.copy();
    world.restart();
    world.grow(4);
    world.signed();
    assert_eq!(witness(&world, &state).0, 0);
    // Now the copy takes the place of what there is, with all that would tell of it.
    world.domain.server.kill();
    std::fs::remove_dir_all(world.data()).unwrap();
    copy_to(&old.path().join("server"), &world.data());
    world.restart();
    world.signed();
    let (status, said) = witness(&world, &state);
    assert_eq!((status, &said[0]["event"]), (1, &Value::from("conflict")), "{said:?}");
    let from = ["log", "verify", "--admin", &world.domain.admin(), "--from", at(&seen)];
    let (status, said) = told(&from);
    assert_eq!(
        (status, &said[0]["findings"][0]["kind"]),
        (1, &Value::from("truncated")),
        "{said:?}"
    );
    // It grows beyond what was seen: a fork now, no matter how large.
    world.grow(9);
    world.signed();
    let (status, said) = witness(&world, &state);
    assert_eq!(status, 1, "{said:?}");
    assert!(said[0]["why"].as_str().unwrap().contains("rewritten"), "{said:?}");
    let (status, said) = told(&from);
    let found = said[0]["findings"][0]["kind"].as_str().unwrap();
    assert_eq!(status, 1, "{said:?}");
    assert!(["forked", "rewritten"].contains(&found), "{said:?}");
    assert!(
        state
            .read_dir()
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with("conflict-") })
    );
}

#[test]
fn log_of_which_nothing_is_signed_and_a_stranger_prove_nothing() {
    let world = World::make(&[]);
    let (status, said) = told(&["log", "prove", "999999", "--admin", &world.domain.admin()]);
    assert_eq!((status, &said[0]["error"]["code"]), (1, &Value::from("not-found")), "{said:?}");
    assert_eq!(told(&["log", "prove", "x", "--admin", &world.domain.admin()]).0, 2);
    let nowhere = folder();
    let store = ["log", "verify", "--store", at(nowhere.path())];
    assert_ne!(told(&store).0, 0);
    assert!(binary().exists());
}
