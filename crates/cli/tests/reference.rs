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
        ("events", "events"),
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
fn every_test_that_the_table_of_attacks_names_exists() {
    let page = std::fs::read_to_string(root().join("docs/attacks.md")).unwrap();
    let named: Vec<(&str, &str)> =
        page.split('`').skip(1).step_by(2).filter_map(|word| word.split_once(".rs::")).collect();
    for (file, test) in &named {
        let source = std::fs::read_to_string(root().join(format!("crates/{file}.rs"))).unwrap();
        assert!(source.contains(&format!("fn {test}(")), "{file}.rs has no test `{test}`");
    }
    assert!(80 <= named.len(), "only {} tests were found", named.len());
    let untried = page.lines().find(|line| is_class(line) && !line.contains(".rs::"));
    assert_eq!(untried, None, "a class without a test");
}

/// The classes that have to be tried, whatever else is; those that are left out are of what is not built.
const CLASSES: [std::ops::RangeInclusive<u32>; 6] =
    [1..=8, 11..=15, 17..=20, 22..=24, 27..=27, 29..=29];

#[test]
fn every_class_that_has_to_be_tried_has_one_row_and_a_test() {
    let page = std::fs::read_to_string(root().join("docs/attacks.md")).unwrap();
    for class in CLASSES.into_iter().flatten() {
        let mut rows = page.lines().filter(|line| line.starts_with(&format!("| {class} | ")));
        let row = rows.next().unwrap_or_else(|| panic!("class {class} has no row"));
        assert_eq!(rows.next(), None, "class {class} has two rows");
        let tests = row.split('`').filter(|word| word.contains(".rs::")).count();
        assert!(1 <= tests, "class {class} names no test");
        // Two names without a blank between them read as one.
        assert!(class != 2 || !row.contains("``"), "class {class}: {row}");
    }
}

/// A row of the table that begins with a number.
fn is_class(line: &str) -> bool {
    line.strip_prefix("| ").is_some_and(|row| row.starts_with(|first: char| first.is_ascii_digit()))
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(binary()).args(["completions", shell]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("handshakes"), "{shell}");
    }
}
