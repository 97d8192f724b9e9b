//! The README's commands, run exactly as they are written there.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::path::Path;
use std::process::Command;

use support::{Up, folder, root, shop, text, until};

/// The shell blocks under a heading, or before the first one.
fn blocks(readme: &str, heading: Option<&str>) -> Vec<String> {
    let section = match heading {
        None => readme.split("\n## ").next().unwrap(),
        Some(heading) => readme.split("\n## ").find(|part| part.starts_with(heading)).unwrap(),
    };
    let fenced = section.split("```sh\n").skip(1);
    fenced.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// The commands of a block: a comment begins a step, and a here-document belongs to its command.
fn commands(block: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut inside = false;
    for line in block.lines() {
        let ends = inside && line == "YAML";
        if inside {
            commands.last_mut().unwrap().push_str(&format!("{line}\n"));
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            commands.push(format!("{line}\n"));
            inside = line.contains("<<YAML");
        }
        inside &= !ends;
    }
    commands
}

struct Reader<'a> {
    up: &'a Up,
    place: &'a Path,
}

impl Reader<'_> {
    /// Types a command into a shell; its exit status and everything that it printed.
    fn types(&self, command: &str) -> (i32, String) {
        let output = Command::new("bash")
            .args(["-c", command])
            .current_dir(self.place)
            .env("XDG_STATE_HOME", self.up.data.join("xdg"))
            .output()
            .unwrap();
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    }
}

#[test]
fn the_two_commands_are_the_first_two_blocks() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = blocks(&readme, None);
    assert_eq!(blocks, ["cargo run --release -- up\n", "cargo xtask test\n"]);
}

#[test]
fn the_next_five_minutes_go_as_they_are_written() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let place = folder();
    // What a reader who has just run the first command has in front of them.
    std::fs::create_dir_all(place.path().join("target/release")).unwrap();
    std::os::unix::fs::symlink(support::binary(), place.path().join("target/release/countersign"))
        .unwrap();
    let up = Up::start(&shop(), &place.path().join("data"), &[]);
    let reader = Reader { up: &up, place: place.path() };

    let mut fetched = 0;
    for command in commands(&blocks(&readme, Some("The next five minutes"))[0]) {
        println!("$ {command}");
        // News travel for a moment: of a new workload to the agent, of a refused handshake to the server.
        let awaited = match command.trim() {
            c if c.contains("fetch x509 --write") => "spiffe://shop.example/me",
            c if c.ends_with("status --handshakes") => "no-certificate",
            _ => "",
        };
        let (status, said) = until(&command, || {
            let (status, said) = reader.types(&command);
            said.contains(awaited).then_some((status, said))
        });
        println!("{said}");
        let (expected, contains) = match command.trim() {
            c if c.ends_with("status --handshakes") => (0, "no-certificate"),
            c if c.contains("countersign console") => (0, "https://localhost:"),
            c if c.ends_with("countersign status") => (0, "spiffe://shop.example/web"),
            c if c.starts_with("curl") => (0, "payments"),
            c if c.starts_with("openssl") => (1, "certificate required"),
            c if c.contains("fetch x509 --write") => (0, "spiffe://shop.example/me"),
            c if c.ends_with("fetch x509") => {
                fetched += 1;
                (1, "matches no workload")
            }
            c if c.starts_with("cat > me.yaml") => (0, ""),
            c if c.contains("apply me.yaml") => (0, "me"),
            c if c.contains("revoke spiffe://shop.example/orders") => (0, "3 of 3 enforcing"),
            c if c.contains("rotate root") => (0, "3 of 3 enforcing"),
            c if c.contains("verify me/svid.pem") => (0, "\"accepted\""),
            other => panic!("the README has a command that this test does not know: {other}"),
        };
        assert!(said.contains(contains), "{command} said:\n{said}");
        // openssl's own status differs between its versions; what it said does not.
        assert!(
            status == expected || command.starts_with("openssl"),
            "{command} ended with {status}:\n{said}"
        );
    }
    assert_eq!(fetched, 1);
    until("the shop goes on", || (up.get("web", "/").0 == 200).then_some(()));
}
