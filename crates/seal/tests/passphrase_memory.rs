//! The memory that a passphrase costs is given back. A program of its own: it measures the whole process.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

use countersign_identity::SystemEntropy;
use countersign_seal::{KekFile, Passphrase};
use zeroize::Zeroizing;

/// Resident memory now, and the most that it was, in KiB.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (of("VmRSS:"), of("VmHWM:"))
}

#[test]
fn passphrase_gives_its_memory_back() {
    let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap();
    let path = folder.path().join("kek");
    let words = "correct horse battery staple".to_owned();
    let by = Passphrase::new(Zeroizing::new(words)).unwrap();
    let (before, _) = memory();
    KekFile::create_by(&path, Some(&by), &SystemEntropy).unwrap();
    KekFile::open_by(&path, Some(&by)).unwrap();
    let (after, most) = memory();
    assert!(before + 60 * 1024 < most, "it took its 64 MiB: {before} to {most} KiB");
    assert!(after < before + 16 * 1024, "and gave them back: {before} to {after} KiB");
}
