//! Secrets neither leave by a core dump nor by the time that a comparison takes.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{Up, root, text};

/// What the kernel says of a process.
#[track_caller]
fn of_process(pid: i32, file: &str) -> String {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The processes that `up` has started, each with its command.
fn children(of: i32) -> Vec<(i32, String)> {
    let listed = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent: i32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let line = text(&fs::read(format!("/proc/{pid}/cmdline")).ok()?);
        let command = line.split('\0').nth(1)?.to_owned();
        (parent == of).then_some((pid, command))
    });
    listed.collect()
}

#[test]
fn no_process_that_holds_keys_leaves_its_memory_in_a_core_dump() {
    let up = Up::shop();
    let mut seen = Vec::new();
    for (pid, command) in children(up.pid()) {
        if !["server", "agent", "proxy"].contains(&&*command) {
            continue;
        }
        // 1. None is written.
        let limits = of_process(pid, "limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let limit: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
        assert_eq!(limit, ["0", "0"], "{command}: {core}");
        // 2. One that a program takes, for which the limit does not hold, has no memory in it.
        let filter = of_process(pid, "coredump_filter");
        assert_eq!(u32::from_str_radix(filter.trim(), 16), Ok(0), "{command}: {filter}");
        seen.push(command);
    }
    for command in ["server", "agent", "proxy"] {
        assert!(seen.iter().any(|one| one == command), "{command} was not found among {seen:?}");
    }
}

/// All sources of what is built for users.
fn sources() -> Vec<PathBuf> {
    let mut folders = vec![root().join("crates")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir()
                && !["tests", "testdata", "target", "examples", "oracles"].contains(&&*name)
            {
                folders.push(path);
            } else if name.ends_with(".rs") && name != "tests.rs" {
                files.push(path);
            }
        }
    }
    files
}

/// The types of a file that hold secrets, each with all that is derived for it.
fn secret_types(source: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut attributes = String::new();
    let lines: Vec<&str> = source.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let declared =
            line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        let declared = declared.trim_start_matches("pub(super) ");
        let Some(rest) = declared.strip_prefix("struct ") else {
            match line.trim_start() {
                one if one.starts_with("#[") || one.starts_with("//") => attributes.push_str(line),
                _ => attributes.clear(),
            }
            continue;
        };
        let name: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
        let is_end = |line: &&&str| line.ends_with(';') || **line == "}" || line.contains("; //");
        let end = lines[at..].iter().position(|line| is_end(&line)).unwrap_or(0);
        let body = lines[at..=at + end].join("\n");
        let wiped = body.contains("Zeroizing<") || attributes.contains("ZeroizeOnDrop");
        if wiped || SECRETS.contains(&&*name) {
            found.push((name, std::mem::take(&mut attributes)));
        }
        attributes.clear();
    }
    found
}

/// Types that hold secrets without being wiped by a type of their field's, so that their names have to say it.
const SECRETS: [&str; 2] = ["PrivateKey", "Secret"];

/// What cannot be compared at all cannot be compared in variable time; what has to be looked up is looked up by its digest.
#[test]
fn no_type_that_holds_a_secret_can_be_compared() {
    let mut seen = Vec::new();
    for path in sources() {
        let source = fs::read_to_string(&path).unwrap();
        for (name, attributes) in secret_types(&source) {
            let shown = format!("`{name}` of {}", path.display());
            for compared in ["PartialEq", "PartialOrd", "Hash"] {
                let derived = attributes.split(['(', ',', ')', ' ']).any(|word| word == compared);
                let written = source.contains(&format!("{compared} for {name} "));
                assert!(!derived && !written, "{shown} has {compared}");
            }
            seen.push(name);
        }
    }
    for known in ["JoinToken", "Kek", "Passphrase", "PinFrom", "PrivateKey", "Secret"] {
        assert!(seen.iter().any(|name| name == known), "{known} was not found among {seen:?}");
    }
}

/// Whoever writes `==` beside one of these names compares secrets byte by byte, and stops at the first that differs.
#[test]
fn nothing_that_is_called_a_secret_is_compared_byte_by_byte() {
    let words = ["pin", "passphrase", "password", "secret", "mac", "hmac"];
    let compares = |line: &str, path: &Path| {
        let operands: Vec<&str> = line.split("==").flat_map(|part| part.split("!=")).collect();
        let is_one = |side: &str| {
            let name = side.trim_matches(['*', '&', '(', ')', ';', ',']).rsplit('.').next();
            name.is_some_and(|name| words.contains(&name))
        };
        // What stands right before an operator, and what stands right after one.
        let before = |side: &str| side.split_whitespace().next_back().is_some_and(is_one);
        let after = |side: &str| side.split_whitespace().next().is_some_and(is_one);
        let found = operands.windows(2).any(|sides| before(sides[0]) || after(sides[1]));
        found && !ALLOWED.iter().any(|(file, part)| path.ends_with(file) && line.contains(part))
    };
    let mut wrong = Vec::new();
    for path in sources() {
        let source = fs::read_to_string(&path).unwrap();
        let code = source.split("#[cfg(test)]").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        wrong.extend(
            lines
                .filter(|line| compares(line, &path))
                .map(|line| format!("{}: {line}", path.display())),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Names that mean something else.
const ALLOWED: [(&str, &str); 2] = [
    // The digest of a public key, by which an authority is pinned.
    ("agent/src/server_link/tls.rs", "key_id() == ask.pin"),
    ("pki/src/verify.rs", "key_id() == pin"),
];
