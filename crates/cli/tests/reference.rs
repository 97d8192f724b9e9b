//! The reference pages are what the program prints, and the README's commands exist.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::process::Command;

use support::{binary, root, text};

#[track_caller]
fn printed(page: &str) -> String {
    let output = Command::new(binary()).args(["reference", page]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn the_reference_pages_are_what_the_program_prints() {
    let pages = [
        ("config", "configuration"),
        ("codes", "codes"),
        ("commands", "commands"),
        ("manifests", "manifests"),
        ("metrics", "metrics"),
    ];
    for (page, file) in pages {
        let path = root().join(format!("docs/reference/{file}.md"));
        let kept = std::fs::read_to_string(&path).unwrap();
        assert!(kept == printed(page), "{} is out of date: run `cargo xtask gen`", path.display());
    }
}

#[test]
fn every_link_between_the_docs_leads_somewhere() {
    let mut folders = vec![root(), root().join("docs"), root().join("docs/decisions")];
    let mut checked = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let page = std::fs::read_to_string(&path).unwrap();
            for target in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let file = target.split('#').next().unwrap();
                if !file.is_empty() && !target.contains("://") {
                    assert!(folder.join(file).exists(), "{} links to {target}", path.display());
                    checked += 1;
                }
            }
        }
    }
    assert!(20 <= checked, "only {checked} links were found");
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(binary()).args(["completions", shell]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("handshakes"), "{shell}");
    }
}
