//! Where keys are kept: a key file that a passphrase or a key in a token (SoftHSM2) seals, and a root whose key never leaves one.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "keys/hints.rs"]
mod hints;
#[path = "keys/place.rs"]
mod place;
mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use place::{PIN, Place, Server, WORDS, WRONG_PIN, holds};
use serde_json::Value;
use support::{text, until};

#[test]
fn key_file_sealed_by_a_passphrase_opens_with_it_and_says_what_is_wrong_without_it() {
    let place = Place::new();
    let (words, other) = (place.secret("words", WORDS), place.secret("other", "another"));
    let data = place.at("d");
    let init = ["init", "--data", &data, "--trust-domain", "shop.example", "--seal", "passphrase"];
    place.refused(&init, 2, "COUNTERSIGN_PASSPHRASE");
    let open = place.at("open");
    std::fs::write(&open, WORDS).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    place.refused(&[&init[..], &["--passphrase-file", &open]].concat(), 2, "chmod 600");
    std::fs::remove_file(&open).unwrap();
    place.json(&[&init[..], &["--passphrase-file", &words]].concat());

    // Without it, or with another, the server starts sealed and says which of the two it is.
    for (more, says) in [
        (vec![], "is sealed by a passphrase, and none was given"),
        (vec!["--passphrase-file", other.as_str()], "the passphrase does not open it"),
    ] {
        let (server, status) = place.server(&data, &more);
        assert_eq!(status["server"]["sealed"], true, "{status}");
        assert!(status["warnings"].to_string().contains(says), "{status}");
        server.end();
    }

    // With it, it serves, and the memory that opening took is given back.
    let (server, status) = place.server(&data, &["--passphrase-file", &words]);
    assert_eq!(status["server"]["sealed"], false, "{status}");
    assert!(status["server"]["residentBytes"].as_u64().unwrap() < 60 << 20, "{status}");
    let backup = place.at("b");
    place.refused(&["backup", &backup, "--data", &data], 2, "sealed by a passphrase");
    place.json(&["backup", &backup, "--data", &data, "--passphrase-file", &words]);
    server.end();

    // A restored directory is sealed by the same passphrase; here it comes from the environment.
    let (kek, restored) = (place.at("d/kek"), place.at("e"));
    let restore = ["restore", &backup, "--data", &restored, "--kek", &kek];
    place.refused(&[&restore[..], &["--passphrase-file", &other]].concat(), 2, "does not open it");
    let mut place = place;
    place.environment.push(("COUNTERSIGN_PASSPHRASE", WORDS.to_owned()));
    place.json(&restore);
    let (server, status) = place.server(&restored, &[]);
    assert_eq!(status["server"]["sealed"], false, "{status}");
    server.end();

    // It is written nowhere.
    std::fs::remove_file(&words).unwrap();
    assert!(!holds(place.folder.path(), WORDS.as_bytes()));
}

#[test]
fn key_that_nobody_named_stops_no_check_of_the_state() {
    let place = Place::new();
    let (words, other) = (place.secret("words", WORDS), place.secret("other", "another"));
    let (data, kek, open) = (place.at("d"), place.at("d/kek"), place.at("open"));
    let init = ["init", "--data", &data, "--trust-domain", "shop.example", "--seal", "passphrase"];
    place.json(&[&init[..], &["--passphrase-file", &words]].concat());
    std::fs::write(&open, WORDS).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let verify = ["store", "verify", &*data];
    let untried = |variable: Option<(&str, &str)>, why: &str| {
        let mut command = place.command(&[&verify[..], &["--output", "json"]].concat());
        let done = command.envs(variable).output().unwrap();
        assert!(done.status.success(), "{variable:?}: {}", text(&done.stderr));
        let told: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert!(told["notOpened"].to_string().contains(why), "{variable:?}: {told}");
    };
    // 1. Sealed: what the environment says does not open it, or nothing does.
    untried(None, "is sealed by a passphrase, and none was given");
    for (file, why) in [
        (&*other, "the passphrase does not open it"),
        (&open, "chmod 600"),
        (&*place.at("none"), "cannot be read"),
    ] {
        untried(Some(("COUNTERSIGN_PASSPHRASE_FILE", file)), why);
        // Whoever names a way to open it means this key.
        place.refused(&[&verify[..], &["--passphrase-file", file]].concat(), 2, why);
    }
    untried(Some(("COUNTERSIGN_SEAL", "pkcs11:nothing")), "none was given");
    place.refused(&[&verify[..], &["--seal", "wax"]].concat(), 2, "is no way to keep the key file");
    place.refused(&[&verify[..], &["--kek", &kek]].concat(), 2, "none was given");
    let opened = place.json(&[&verify[..], &["--passphrase-file", &words]].concat());
    assert!(2 <= opened["opened"].as_u64().unwrap(), "{opened}");

    // 2. At a terminal nobody is asked for what is not needed.
    let line = format!("{} store verify {data}", support::binary().display());
    let mut terminal = Command::new("timeout");
    terminal.args(["60", "script", "-qec", &line, "/dev/null"]).stdin(std::process::Stdio::null());
    let done = terminal.env_remove("COUNTERSIGN_PASSPHRASE").output().unwrap();
    let said = text(&done.stdout);
    assert!(done.status.success() && said.contains("was not tried"), "{said}");

    // 3. An old one, or one of another server.
    let foreign = place.at("e");
    place.json(&["init", "--data", &foreign, "--trust-domain", "shop.example"]);
    std::fs::rename(place.at("e/kek"), &kek).unwrap();
    untried(None, "d/kek` is another key");
    place.refused(&[&verify[..], &["--kek", &kek]].concat(), 2, "does not open the keys");
}

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// A token of its own, in a folder.
fn token(place: &mut Place) -> PathBuf {
    let tokens = place.folder.path().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let conf = place.at("softhsm2.conf");
    std::fs::write(
        &conf,
        format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display()),
    )
    .unwrap();
    place.environment.push(("SOFTHSM2_CONF", conf));
    one_more_token(place);
    tokens
}

/// Another one of the same label.
fn one_more_token(place: &Place) {
    let line = ["--init-token", "--free", "--label", "ROOTS", "--so-pin", "0000", "--pin", PIN];
    let conf = place.at("softhsm2.conf");
    let made = Command::new("softhsm2-util").args(line).env("SOFTHSM2_CONF", conf).output();
    let made = made.expect("SoftHSM2 is installed (`apt-get install softhsm2`)");
    assert!(made.status.success(), "{}", text(&made.stderr));
}

#[test]
fn pin_is_shown_to_no_token_that_only_has_the_others_label() {
    let mut place = Place::new();
    token(&mut place);
    one_more_token(&place);
    let (data, pin) = (place.at("d"), place.secret("pin", PIN));
    let uri = format!("pkcs11:token=ROOTS;object=root?module-path={MODULE}");
    let init = ["init", "--data", &data, "--trust-domain", "shop.example", "--root-key", &uri];
    place.refused(&[&init[..], &["--pin-file", &pin]].concat(), 3, "by `serial` as well");
}

#[test]
fn root_in_a_token_signs_there_and_its_loss_takes_nothing_away_that_stands() {
    let mut place = Place::new();
    let tokens = token(&mut place);
    let pin = place.secret("pin", &format!("{PIN}\n"));
    let uri = |object: &str| format!("pkcs11:token=ROOTS;object={object}?module-path={MODULE}");
    let (first, data) = (uri("first"), place.at("d"));
    let init = ["init", "--data", &data, "--trust-domain", "shop.example", "--root-key"];

    // 1. Names and PINs that do not fit.
    let with_pin = format!("{first}&pin-value={PIN}");
    place.refused(&[&init[..], &[&with_pin]].concat(), 2, "holds a PIN");
    place.refused(&[&init[..], &["pkcs11:token=ROOTS"]].concat(), 2, "object");
    place.refused(&[&init[..], &[&first]].concat(), 3, "PIN is not known");
    let _left = std::fs::remove_dir_all(&data);
    let wrong = place.secret("wrong", WRONG_PIN);
    place.refused(&[&init[..], &[&first, "--pin-file", &wrong]].concat(), 3, "refuses the PIN");
    let _left = std::fs::remove_dir_all(&data);
    let absent = first.replace("ROOTS", "OTHER");
    place.refused(&[&init[..], &[&absent, "--pin-file", &pin]].concat(), 3, "is not there");
    let _left = std::fs::remove_dir_all(&data);

    // 2. A root whose key was made in the token, and an issuer that it signed.
    place.json(&[&init[..], &[&first, "--pin-file", &pin]].concat());
    let (server, _) = place.server(&data, &["--pin-file", &pin]);
    let listed = place.json(&["authority", "list", "--data", &data]);
    assert_eq!(listed["roots"][0]["held"], "token", "{listed}");
    let issuer = |listed: &Value| {
        let issuers = listed["issuers"].as_array().unwrap();
        issuers.iter().find(|issuer| issuer["active"] == true).unwrap()["key"].clone()
    };
    let before = issuer(&listed);
    place.json(&["rotate", "issuer", "--data", &data]);
    let after = issuer(&place.json(&["authority", "list", "--data", &data]));
    assert_ne!(before, after, "the token signed another");

    // 3. The next root gets another key of the same token, and walks. Nobody is given less than they had without a word.
    place.refused(&["authority", "prepare", "--root-key", &first, "--data", &data], 4, "already");
    place.refused(&["authority", "prepare", "--data", &data], 2, "say where the next one");
    place.refused(&["rotate", "root", "--data", &data], 2, "say where the next one");
    place.refused(&["rotate", "root", "--root-key", "elsewhere", "--data", &data], 2, "pkcs11:");
    let second = uri("second");
    let line = ["rotate", "root", "--root-key", &second, "--wait", "--timeout", "1m"];
    let rotated = place.run(&[&line[..], &["--data", &data]].concat());
    assert!(rotated.status.success(), "{}", text(&rotated.stderr));
    let active = |listed: &Value| {
        let roots = listed["roots"].as_array().unwrap();
        roots.iter().find(|it| it["state"] == "active").unwrap().clone()
    };
    let listed = place.json(&["authority", "list", "--data", &data]);
    assert_eq!(active(&listed)["held"], "token", "{listed}");

    // 4. The token goes away while the server runs: the issuer signs on, what the root would have to sign does not, and says
    //    why; nothing that cannot be signed is recorded.
    let away = place.folder.path().join("away");
    std::fs::rename(&tokens, &away).unwrap();
    place.refused(&["rotate", "issuer", "--data", &data], 3, "token `ROOTS`");
    let told = place.json(&["status", "--data", &data]);
    assert!(told["warnings"].to_string().contains("the root could not sign"), "{told}");
    server.end();
    std::fs::create_dir(&tokens).unwrap();
    let (server, status) = place.server(&data, &["--pin-file", &pin]);
    assert_eq!(status["server"]["sealed"], false, "{status}");
    place.refused(&["rotate", "issuer", "--data", &data], 3, "token `ROOTS` is not there");
    let size = place.json(&["status", "--data", &data])["server"]["log"]["size"].clone();
    place.refused(&["rotate", "issuer", "--data", &data], 3, "token `ROOTS` is not there");
    let still = place.json(&["status", "--data", &data]);
    assert_eq!(still["server"]["log"]["size"], size, "what cannot be signed is not recorded");
    let list = place.run(&["crl", "--pem", "--data", &data]);
    assert!(list.status.success(), "{}", text(&list.stderr));

    // 5. A rotation that needs it waits, and says what for; once it is back, the same server goes on by itself.
    place.json(&["rotate", "root", "--root-key", &uri("third"), "--data", &data]);
    let waits = until("the walk says what it waits for", || {
        let listed = place.json(&["authority", "list", "--data", &data]);
        let steps = listed["order"]["steps"].as_array()?.clone();
        steps.iter().find_map(|step| step["gate"]["why"].as_str().map(str::to_owned))
    });
    assert!(waits.contains("token `ROOTS` is not there"), "{waits}");
    std::fs::remove_dir(&tokens).unwrap();
    std::fs::rename(&away, &tokens).unwrap();
    let third = until("the walk goes on", || {
        let listed = place.json(&["authority", "list", "--data", &data]);
        listed["order"].is_null().then(|| active(&listed)["key"].as_str().unwrap().to_owned())
    });
    let told = place.json(&["status", "--data", &data]);
    assert!(!told["warnings"].to_string().contains("could not sign"), "{told}");

    // 6. Its key is said to have leaked: another takes its place, also while the token is away.
    std::fs::rename(&tokens, &away).unwrap();
    let compromised = format!("authority:{third}");
    let line = ["recover", "--compromised", &compromised, "--yes", "--data", &data];
    place.refused(&line, 2, "say where the next one");
    let recovered = place.run(&[&line[..], &["--root-key", "here"]].concat());
    assert!(recovered.status.success(), "{}", text(&recovered.stderr));
    let listed = place.json(&["authority", "list", "--data", &data]);
    assert_eq!(active(&listed)["held"], "here", "{listed}");
    server.end();

    // The PIN is kept nowhere, and the key was never anywhere else.
    assert!(!holds(&place.folder.path().join("d"), PIN.as_bytes()), "the PIN is not kept");
    let log = std::fs::read_to_string(place.at("log")).unwrap();
    assert!(!log.contains(PIN), "{log}");
}

/// Changes one byte of a file, counted from its end.
fn change(path: &Path, from_end: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() - from_end;
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn key_file_sealed_by_a_key_in_a_token_opens_by_it_alone_and_says_what_keeps_it_shut() {
    let mut place = Place::new();
    let tokens = token(&mut place);
    let (pin, wrong) = (place.secret("pin", PIN), place.secret("wrong", WRONG_PIN));
    let uri = |object: &str| format!("pkcs11:token=ROOTS;object={object}?module-path={MODULE}");
    let (seal, other, data) = (uri("kek"), uri("other"), place.at("d"));

    // 1. Made with it, or not at all.
    let init = ["init", "--data", &data, "--trust-domain", "shop.example", "--seal"];
    place.refused(&[&init[..], &["pkcs11:token=ROOTS"]].concat(), 2, "object");
    for (more, says) in
        [(vec![], "PIN is not known"), (vec!["--pin-file", &wrong], "refuses the PIN")]
    {
        place.refused(&[&init[..], &[&seal], &more[..]].concat(), 3, says);
        assert!(!Path::new(&data).join("kek").exists(), "no key file is left of it");
        let _left = std::fs::remove_dir_all(&data);
    }
    place.json(&[&init[..], &[&seal, "--pin-file", &pin]].concat());
    let kek = place.folder.path().join("d/kek");
    assert_eq!(std::fs::read(&kek).unwrap()[8], 2, "the method is a key in a token");
    assert!(
        !holds(Path::new(&data), MODULE.as_bytes()),
        "no file names a module that would be loaded"
    );

    // 2. Without it, with another key, a wrong PIN, or the token away: sealed, and in a sentence.
    let away = place.folder.path().join("away");
    let sealed = |more: &[&str], says: &str| {
        let (server, status) = place.server(&data, more);
        assert_eq!(status["server"]["sealed"], true, "{status}");
        assert!(status["warnings"].to_string().contains(says), "{says}: {status}");
        server.end();
    };
    sealed(&["--pin-file", &pin], "is sealed by a key in a token, and none was given");
    sealed(&["--seal", &other, "--pin-file", &pin], "holds no key `other` of AES");
    sealed(&["--seal", &seal, "--pin-file", &wrong], "refuses the PIN");
    std::fs::rename(&tokens, &away).unwrap();
    sealed(&["--seal", &seal, "--pin-file", &pin], "token `ROOTS` is not there");
    std::fs::rename(&away, &tokens).unwrap();

    // 3. With it, it serves; a backup needs it as well.
    let with = ["--seal", &seal, "--pin-file", &pin];
    let (server, status) = place.server(&data, &with);
    assert_eq!(status["server"]["sealed"], false, "{status}");
    let backup = place.at("b");
    place.refused(&["backup", &backup, "--data", &data], 2, "sealed by a key in a token");
    let line = ["backup", &backup, "--data", &data, "--seal", &seal, "--pin-file"];
    place.refused(&[&line[..], &[&wrong]].concat(), 3, "refuses the PIN");
    place.json(&[&line[..], &[&pin]].concat());
    server.end();

    // 4. A restored directory is sealed by the same key; a changed key file opens nothing, whichever part of it was changed.
    let restored = place.at("e");
    let line = ["restore", &backup, "--data", &restored, "--kek", kek.to_str().unwrap()];
    place.refused(&line, 2, "sealed by a key in a token");
    for from_end in [1, 40, 61, 64] {
        change(&kek, from_end);
        place.refused(&[&line[..], &with].concat(), 3, "does not open it");
        change(&kek, from_end);
    }
    std::fs::rename(&tokens, &away).unwrap();
    place.refused(&[&line[..], &with].concat(), 3, "token `ROOTS` is not there");
    assert!(!Path::new(&restored).exists(), "nothing is left of it");
    std::fs::rename(&away, &tokens).unwrap();
    place.json(&[&line[..], &with].concat());
    let (server, status) = place.server(&restored, &with);
    assert_eq!(status["server"]["sealed"], false, "{status}");
    server.end();
    let log = std::fs::read_to_string(place.at("log")).unwrap();
    assert!(!log.contains(PIN) && !holds(Path::new(&data), PIN.as_bytes()), "{log}");
}

/// A PIN that the token refuses is tried once: a server that looks again and again must not lock it.
#[test]
fn pin_that_a_token_refuses_is_not_tried_again_until_it_is_another() {
    let mut place = Place::new();
    token(&mut place);
    let pin = place.secret("pin", PIN);
    let uri = format!("pkcs11:token=ROOTS;object=root?module-path={MODULE}");
    let data = place.at("d");
    let init = ["init", "--data", &data, "--trust-domain", "shop.example", "--root-key", &uri];
    place.json(&[&init[..], &["--pin-file", &pin]].concat());
    place.secret("pin", WRONG_PIN);
    let (server, status) = place.server(&data, &["--pin-file", &pin]);
    assert_eq!(status["server"]["sealed"], false, "{status}");
    for _again in 0..5 {
        place.refused(&["rotate", "issuer", "--data", &data], 3, "the PIN");
    }
    place.refused(&["rotate", "issuer", "--data", &data], 3, "is not asked again with the same");
    // Neither who reads arguments nor who reads the process's memory map is told the PIN: it is in no argument, and there is
    // no core.
    let process = format!("/proc/{}", server.child.id());
    let arguments = std::fs::read(format!("{process}/cmdline")).unwrap();
    assert!(!arguments.windows(WRONG_PIN.len()).any(|part| part == WRONG_PIN.as_bytes()));
    let limits = std::fs::read_to_string(format!("{process}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    place.secret("pin", PIN);
    place.json(&["rotate", "issuer", "--data", &data]);
    // A file that others can read is none.
    std::fs::set_permissions(&pin, std::fs::Permissions::from_mode(0o644)).unwrap();
    place.refused(&["rotate", "issuer", "--data", &data], 3, "chmod 600");
    server.end();
}

/// A module that passes everything on to SoftHSM2, and whose signatures and decryptions hang while a file is there.
fn hanging_module(place: &mut Place) -> (String, PathBuf) {
    let library = place.at("hanging_module.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/hanging_module.c");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o", &library, source, "-ldl"])
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", text(&compiled.stderr));
    let while_there = place.at("hang");
    place.environment.push(("HANG_WHILE", while_there.clone()));
    place.environment.push(("HANG_MODULE", MODULE.to_owned()));
    (library, while_there.into())
}

#[test]
fn module_that_hangs_is_given_up_in_time_and_used_again_once_it_answers() {
    let mut place = Place::new();
    token(&mut place);
    let (module, hang) = hanging_module(&mut place);
    let pin = place.secret("pin", PIN);
    let uri = format!("pkcs11:token=ROOTS;object=root?module-path={module}");
    let data = place.at("d");
    let init = ["init", "--data", &data, "--trust-domain", "shop.example", "--root-key", &uri];
    place.json(&[&init[..], &["--pin-file", &pin]].concat());
    let (mut server, _) = place.server(&data, &["--pin-file", &pin]);
    let rotate = ["rotate", "issuer", "--data", &data];
    place.json(&rotate);

    std::fs::write(&hang, "").unwrap();
    place.refused(&rotate, 3, "token `ROOTS` d");
    // It is not asked again while it hangs, and nobody waits for it.
    until("whoever comes is refused at once", || {
        let refused = place.run(&rotate);
        text(&refused.stderr).contains("is asked again only when that ends").then_some(())
    });
    let told = place.json(&["status", "--data", &data]);
    assert!(told["warnings"].to_string().contains("the root could not sign"), "{told}");
    // What does not need it goes on.
    place.json(&["token", "create", "--data", &data]);
    std::fs::remove_file(&hang).unwrap();
    until("it is used again", || place.run(&rotate).status.success().then_some(()));

    // A call that never returns does not keep the server from ending.
    std::fs::write(&hang, "").unwrap();
    place.refused(&rotate, 3, "token `ROOTS` d");
    support::signal(i32::try_from(server.child.id()).unwrap(), "TERM");
    until("the server ends", || server.child.try_wait().unwrap());
}

#[test]
fn key_file_whose_token_hangs_stays_shut_and_keeps_no_program() {
    let mut place = Place::new();
    token(&mut place);
    let (module, hang) = hanging_module(&mut place);
    let (pin, data) = (place.secret("pin", PIN), place.at("d"));
    let seal = format!("pkcs11:token=ROOTS;object=kek?module-path={module}");
    let with = ["--seal", &seal, "--pin-file", &pin];
    place.json(&[&["init", "--data", &data, "--trust-domain", "shop.example"], &with[..]].concat());
    std::fs::write(&hang, "").unwrap();
    let line = ["backup", &place.at("b"), "--data", &data];
    place.refused(&[&line[..], &with].concat(), 3, "did not answer within");
    std::fs::remove_file(&hang).unwrap();
    place.json(&[&line[..], &with].concat());
}

#[test]
fn module_that_is_none_is_a_sentence() {
    let place = Place::new();
    let (data, junk) = (place.at("d"), place.secret("junk.so", "this is no library"));
    let init = ["init", "--data", &data, "--trust-domain", "shop.example", "--root-key"];
    let pin = place.secret("pin", PIN);
    for (module, says) in [
        ("/nowhere/p11.so", "cannot be loaded as a PKCS#11 module"),
        (junk.as_str(), "cannot be loaded as a PKCS#11 module"),
        ("/lib/x86_64-linux-gnu/libc.so.6", "cannot be loaded as a PKCS#11 module"),
    ] {
        let uri = format!("pkcs11:token=ROOTS;object=root?module-path={module}");
        place.refused(&[&init[..], &[&uri, "--pin-file", &pin]].concat(), 3, says);
        let _left = std::fs::remove_dir_all(&data);
    }
}
