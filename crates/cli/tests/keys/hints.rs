//! What a command says is next is a command that works: pasted into a shell, it gives a server whose keys are open.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{binary, text, until};
use crate::{MODULE, PIN, Place, Server, WORDS, token};

/// What a command, which must succeed, says is next.
#[track_caller]
fn hint(place: &Place, arguments: &[&str]) -> String {
    let done = place.run(arguments);
    assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
    let said = text(&done.stdout);
    assert!(!said.contains(WORDS) && !said.contains(PIN), "a secret: {said}");
    let (_, next) = said.split_once("\nnext: countersign ").expect("it says what is next");
    next.to_owned()
}

/// Pastes the hint into a shell in the folder where the command ran, with what it needs to be one of many servers of this machine.
#[track_caller]
fn starts(place: &Place, hint: &str, data: &str) {
    let line = hint.lines().next().unwrap();
    let line =
        format!("exec {} {line} --listen 127.0.0.1:0 --metrics off", binary().to_str().unwrap());
    let environment = place.environment.iter().map(|(name, value)| (*name, value));
    let child = Command::new("sh")
        .args(["-c", &line])
        .envs(environment)
        .env("XDG_STATE_HOME", place.at("xdg"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut server = Server { child, at: data.to_owned() };
    let status = until("the server answers", || {
        assert_eq!(server.child.try_wait().unwrap(), None, "{line}");
        let done = place.run(&["status", "--data", data, "--output", "json"]);
        serde_json::from_slice::<Value>(&done.stdout).ok().filter(|it| it["server"].is_object())
    });
    assert_eq!(status["server"]["sealed"], false, "{line}: {status}");
    server.end();
}

#[test]
fn next_command_opens_a_key_file_that_a_passphrase_seals() {
    let mut place = Place::new();
    let (words, data) = (place.secret("it's words", WORDS), place.at("two words"));
    let with = ["--passphrase-file", words.as_str()];
    let init = ["init", "--data", &data, "--trust-domain", "shop.example", "--seal", "passphrase"];
    let said = hint(&place, &[&init[..], &with].concat());
    starts(&place, &said, &data);

    let (backup, restored) = (place.at("b"), place.at("e"));
    place.json(&[&["backup", &backup, "--data", &data], &with[..]].concat());
    let kek = format!("{data}/kek");
    let restore = ["restore", &backup, "--data", &restored, "--kek", &kek];
    starts(&place, &hint(&place, &[&restore[..], &with].concat()), &restored);

    // What comes from the environment is named, and not told.
    place.environment.push(("COUNTERSIGN_PASSPHRASE", WORDS.to_owned()));
    let other = place.at("f");
    let init = ["init", "--data", &other, "--trust-domain", "shop.example", "--seal", "passphrase"];
    let said = hint(&place, &init);
    assert!(said.ends_with("\n  with COUNTERSIGN_PASSPHRASE set as it is here\n"), "{said}");
    starts(&place, &said, &other);
    let open = place.at("g");
    let said = hint(&place, &["init", "--data", &open, "--trust-domain", "shop.example"]);
    assert_eq!(said, format!("server --data {open}\n"), "no passphrase opens that one");
}

#[test]
fn next_command_opens_a_key_file_that_a_token_seals() {
    let mut place = Place::new();
    token(&mut place);
    let (pin, data) = (place.secret("pin", PIN), place.at("d"));
    let seal = format!("pkcs11:token=ROOTS;object=kek?module-path={MODULE}");
    let root = format!("pkcs11:token=ROOTS;object=root?module-path={MODULE}");
    let with = ["--seal", &seal, "--pin-file", &pin];
    let init = ["init", "--data", &data, "--trust-domain", "shop.example", "--root-key", &root];
    starts(&place, &hint(&place, &[&init[..], &with].concat()), &data);

    let (backup, restored, kek) = (place.at("b"), place.at("e"), place.at("d/kek"));
    place.json(&[&["backup", &backup, "--data", &data], &with[..]].concat());
    let restore = ["restore", &backup, "--data", &restored, "--kek", &kek];
    starts(&place, &hint(&place, &[&restore[..], &with].concat()), &restored);

    // A directory that waits for its issuer's certificate is opened in the same way.
    let waits = place.at("w");
    let init = ["init", "--data", &waits, "--trust-domain", "shop.example"];
    let external = ["--root-key", "external"];
    let said = hint(&place, &[&init[..], &external, &with].concat());
    let expected =
        format!("init --data {waits} --seal '{seal}' --pin-file {pin} --import CHAIN.pem\n");
    assert_eq!(said, expected);

    place.environment.push(("COUNTERSIGN_PIN", PIN.to_owned()));
    let last = place.at("h");
    let init = ["init", "--data", &last, "--trust-domain", "shop.example"];
    let said = hint(&place, &[&init[..], &["--seal", &seal]].concat());
    assert!(said.ends_with("\n  with COUNTERSIGN_PIN set as it is here\n"), "{said}");
    starts(&place, &said, &last);
}

#[test]
fn what_init_reads_in_the_environment_keeps_nobody_from_the_key_file() {
    let mut place = Place::new();
    let [seal, words] = ["COUNTERSIGN_SEAL", "COUNTERSIGN_PASSPHRASE"];
    place.environment.extend([(seal, "passphrase".to_owned()), (words, WORDS.to_owned())]);
    let (data, backup) = (place.at("d"), place.at("b"));
    let said = hint(&place, &["init", "--data", &data, "--trust-domain", "shop.example"]);
    starts(&place, &said, &data);
    place.json(&["backup", &backup, "--data", &data]);
    place.environment.push((seal, "paper".to_owned()));
    let says = "`paper` is no way to keep the key file";
    place.refused(&["server", "--data", &data], 2, says);
    place.refused(&["backup", &backup, "--data", &data], 2, says);
}
