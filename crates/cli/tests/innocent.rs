//! Innocent commands in surroundings in which they could do harm: the shell of a production, devices, links, a part of the manifests.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::process::Command;

use support::{Up, folder, shop, text, until};

/// As in the shell in which somebody has just set up a server on PostgreSQL.
#[test]
fn an_up_in_the_shell_of_a_production_takes_nothing_from_it_and_hands_no_secret_to_a_program() {
    let state = folder();
    let data = state.path().join("data");
    let production = [
        ("COUNTERSIGN_STORE", "postgres://nobody@127.0.0.1:1/prod?sslmode=disable"),
        ("COUNTERSIGN_SEAL", "passphrase"),
        ("COUNTERSIGN_PASSPHRASE", "never to be seen"),
        ("COUNTERSIGN_ALLOW", "spiffe://prod.example/web"),
        ("COUNTERSIGN_CONFIG", "/no/such/file"),
        ("PGPASSWORD", "never to be seen either"),
        ("SPIFFE_ENDPOINT_SOCKET", "unix:///never to be seen.sock"),
        ("COUNTERSIGN_LOG", "json"),
    ];
    let up = Up::start_in(&shop(), &data, &[], &production);
    assert_eq!(up.get("web", "/").0, 200);
    assert!(data.join("server/state.db").exists(), "the state is its own");
    let (mut programs, mut parts) = (0, 0);
    for child in children(up.pid()) {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{child}/{name}"));
        // Without root nobody looks into a server.
        let (Ok(command), Ok(told)) = (read("cmdline"), read("environ")) else { continue };
        assert!(!told.contains("never to be seen"), "{command}: {told}");
        assert!(!told.contains("COUNTERSIGN_STORE"), "{command}: {told}");
        if command.contains("\0example\0") {
            programs += 1;
            assert!(!told.contains("COUNTERSIGN_"), "{command}: {told}");
        } else {
            parts += 1;
            assert!(told.contains("COUNTERSIGN_LOG=json"), "{command}: {told}");
        }
    }
    assert!(programs == 3 && 4 <= parts, "{programs} programs and {parts} parts were looked at");
    drop(up);

    let mut again = Command::new(support::binary());
    again.arg("up").arg(shop()).arg("--data").arg(&data).args(["--for", "1s"]);
    let said = again.env("XDG_STATE_HOME", &data).envs(production).output().unwrap();
    let said = text(&said.stderr);
    let named = "takes nothing from COUNTERSIGN_ALLOW, COUNTERSIGN_CONFIG, COUNTERSIGN_PASSPHRASE, \
                 COUNTERSIGN_SEAL, COUNTERSIGN_STORE, PGPASSWORD, SPIFFE_ENDPOINT_SOCKET:";
    assert_eq!(said.matches(named).count(), 1, "{said}");
    assert!(!said.contains("never to be seen"), "{said}");
}

/// The processes that this one has started.
fn children(of: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parent = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<i32>().ok())
    };
    pids.filter(|pid| parent(*pid) == Some(of)).collect()
}

#[test]
fn what_is_to_be_removed_beside_manifests_needs_all_of_them() {
    let place = folder();
    let up = Up::shop();
    // Right in itself, also when all else is gone.
    let part = place.path().join("part");
    let one = part.join("me.yaml");
    std::fs::create_dir(&part).unwrap();
    std::fs::write(&one, support::manifest_of_me("5m")).unwrap();
    let before = up.json(&["resource", "list"]);
    for path in [&one, &part] {
        for command in ["apply", "plan"] {
            let refused = up.run(&[command, path.to_str().unwrap(), "--prune"]);
            let said = text(&refused.stderr);
            assert_eq!(refused.status.code(), Some(2), "{command} {}: {said}", path.display());
            assert!(said.contains("the manifest of kind `TrustDomain`"), "{said}");
            assert!(said.contains("countersign export DIR"), "{said}");
        }
        let path = path.to_str().unwrap();
        assert!(up.run(&["plan", path]).status.success(), "without it, a part may be applied");
        let offline = up.run(&["plan", path, "--prune", "--offline", "--against", &shop_path()]);
        assert_eq!(offline.status.code(), Some(2), "{}", text(&offline.stderr));
    }
    // The trust domain's own, and nothing of what runs in it: the folder beside those of the teams.
    let base = place.path().join("base.yaml");
    let named = "apiVersion: countersign.dev/v1alpha1\nkind: TrustDomain\nmetadata: { name: shop }\n\
                 spec: { trustDomain: shop.example }\n";
    std::fs::write(&base, named).unwrap();
    for command in ["apply", "plan"] {
        let refused = up.run(&[command, base.to_str().unwrap(), "--prune"]);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{command}: {said}");
        assert!(said.contains("does not hold any `Workload` or `Service`"), "{said}");
    }
    assert_eq!(up.json(&["resource", "list"]), before);
    let whole = up.run(&["apply", &shop_path(), "--prune"]);
    assert!(whole.status.success(), "{}", text(&whole.stderr));
}

fn shop_path() -> String {
    shop().to_str().unwrap().to_owned()
}

#[test]
fn what_is_written_out_follows_a_link_keeps_a_mode_and_reaches_standard_output() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = folder();
    let up = Up::shop();
    let at = |name: &str| place.path().join(name);
    std::fs::write(at("kept"), "old").unwrap();
    std::fs::set_permissions(at("kept"), std::fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(at("kept"), at("link")).unwrap();
    let link = at("link");
    let link = link.to_str().unwrap();
    let index = ["log", "prove", "0"];
    until("the log is signed", || up.run(&index).status.success().then_some(()));
    let shop = shop_path();
    for command in [&["crl"][..], &["log", "export"], &index, &["plan", &shop]] {
        std::fs::write(at("kept"), "old").unwrap();
        let done = up.run(&[command, &["--out", link]].concat());
        assert!(done.status.success(), "{command:?}: {}", text(&done.stderr));
        assert!(std::fs::symlink_metadata(link).unwrap().is_symlink(), "{command:?}");
        let kept = std::fs::metadata(at("kept")).unwrap();
        assert_eq!(kept.permissions().mode() & 0o777, 0o640, "{command:?}");
        assert_ne!(std::fs::read(at("kept")).unwrap(), b"old", "{command:?}");
    }
    let done = up.run(&["log", "export", "--out", "/proc/self/fd/1"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let said = text(&done.stdout);
    assert!(said.lines().next().unwrap().contains("checkpoint"), "{said}");
    assert!(said.contains(" events in `/proc/self/fd/1`"), "{said}");
    // A file, which could be replaced where it is, and is written to after what is in it.
    let mut file = std::fs::File::create(at("said")).unwrap();
    std::io::Write::write_all(&mut file, b"said before\n").unwrap();
    let mut export = up.command(&["log", "export", "--out", "/dev/stdout"]);
    assert!(export.stdout(file).status().unwrap().success());
    let said = std::fs::read_to_string(at("said")).unwrap();
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("said before"), "{said}");
    assert!(lines.next().unwrap().contains("checkpoint"), "{said}");
    assert!(lines.next_back().unwrap().contains(" events in `/dev/stdout`"), "{said}");
    assert!(std::fs::symlink_metadata("/dev/stdout").unwrap().is_symlink());
}

#[test]
fn the_data_directory_in_the_environment_is_the_one_that_is_meant() {
    let up = Up::shop();
    let elsewhere = folder();
    let status = |data: &std::path::Path, home: &std::path::Path, more: &[&str]| {
        let mut command = Command::new(support::binary());
        command.arg("status").args(more).env("XDG_STATE_HOME", home);
        let ended = command.env("COUNTERSIGN_DATA", data).output().unwrap();
        (ended.status.code(), text(&ended.stdout) + &text(&ended.stderr))
    };
    // Where no `up` is known otherwise.
    let (code, said) = status(&up.data, elsewhere.path(), &[]);
    assert!(code == Some(0) && said.contains("shop.example"), "{said}");
    // And where one is, which is not meant.
    let last = up.data.join("xdg");
    let (code, said) = status(elsewhere.path(), &last, &[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains(elsewhere.path().to_str().unwrap()), "{said}");
    // A flag is about it all.
    let admin = up.ready["admin"].as_str().unwrap();
    let (code, said) = status(elsewhere.path(), elsewhere.path(), &["--admin", admin]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_hangup_ends_no_part_and_each_says_that_it_read_nothing_again() {
    let up = Up::shop();
    let is_part = |pid: &i32| {
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        !command.contains("\0example\0")
    };
    let parts: Vec<i32> = children(up.pid()).into_iter().filter(is_part).collect();
    assert_eq!(parts.len(), 5, "a server, an agent, three proxies");
    for part in &parts {
        support::signal(*part, "HUP");
    }
    for log in ["server", "agent", "web-proxy", "orders-proxy", "payments-proxy"] {
        let log = up.data.join(format!("logs/{log}.log"));
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        until("it says so", || said().contains("SIGHUP reads no settings again").then_some(()));
    }
    assert_eq!(up.get("web", "/").0, 200);
    let still: Vec<i32> = children(up.pid()).into_iter().filter(is_part).collect();
    assert!(parts.iter().all(|part| still.contains(part)), "{parts:?} {still:?}");
}

#[test]
fn a_server_tells_others_who_stand_elsewhere_where_it_is() {
    let place = folder();
    let in_place = |arguments: &[&str]| {
        let mut command = Command::new(support::binary());
        command.args(arguments).current_dir(place.path());
        command
    };
    let made =
        in_place(&["init", "--data", "d", "--trust-domain", "prod.example"]).output().unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    for advertised in [&["--advertise", "one.example:8443"][..], &[]] {
        let mut server = in_place(&["server", "--data", "d", "--listen", "127.0.0.1:0"]);
        server.args(["--metrics", "off", "--output", "json"]).args(advertised);
        let mut server = server.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        let mut said = std::io::BufReader::new(server.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut said, &mut ready).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
        // From here, and not from where the server was started.
        let mut token = Command::new(support::binary());
        token.args(["token", "create", "--admin", ready["admin"].as_str().unwrap()]);
        let token = token.output().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(token.status.success(), "{}", text(&token.stderr));
        let said = text(&token.stdout);
        let at = advertised.last().unwrap_or(&"127.0.0.1:");
        assert!(said.contains(&format!("--server {at}")), "{said}");
        assert!(said.contains(" --trust sha256:"), "{said}");
        // What is dialled elsewhere is another machine.
        assert_eq!(said.contains("is this machine for whoever dials it"), advertised.is_empty());
    }
}

#[test]
fn what_an_up_cannot_make_it_says_with_the_exit_status_of_why() {
    let place = folder();
    let mut up = Command::new(support::binary());
    up.arg("up").arg(shop()).arg("--data").arg(place.path().join("data"));
    up.args(["--pass", "COUNTERSIGN_STORE"]).env("COUNTERSIGN_STORE", "nonsense");
    let refused = up.env("XDG_STATE_HOME", place.path()).output().unwrap();
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("cannot make the trust domain: COUNTERSIGN_STORE"), "{said}");
    assert!(!said.contains("takes nothing from"), "it was passed: {said}");
}
