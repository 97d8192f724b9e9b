//! The program by itself, which other tests also expect to be built.

use std::process::Command;

#[test]
fn program_says_its_version_and_what_it_does_not_understand() {
    let program = || Command::new(env!("CARGO_BIN_EXE_countersign-proxy"));
    let version = program().arg("--version").output().unwrap();
    let said = String::from_utf8(version.stdout).unwrap();
    assert_eq!(said.trim(), format!("countersign-proxy {}", env!("CARGO_PKG_VERSION")));
    let refused = program().arg("--chian").output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("--chian"), "{said}");
}
