//! Every message that comes from outside has a fuzz target that really reads it, with seeds that are understood.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod descriptors;
mod seeds;
mod table;
mod understood;

#[path = "../../../../fuzz/support/parts.rs"]
mod parts;
#[expect(dead_code, reason = "each of its users has its own part of this")]
#[path = "../../../../fuzz/support/server.rs"]
mod server;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use descriptors::Descriptors;
use table::{NOT_FROM_OUTSIDE, Row, rows};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").canonicalize().unwrap()
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = fuzz().join("corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|why| panic!("{target}: {why}"));
    entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

fn seed(target: &str, name: &str) -> Vec<u8> {
    std::fs::read(fuzz().join("corpus").join(target).join(name)).unwrap()
}

/// What is missing in a table for messages of these descriptors, and what is in it for nothing.
fn gaps(descriptors: &Descriptors, told: &BTreeSet<&str>) -> Vec<String> {
    let asked = descriptors.outside();
    let missing = asked.iter().filter(|name| !told.contains(name.as_str()));
    let stale = told.iter().filter(|name| !asked.contains(**name));
    let missing = missing.map(|name| format!("`{name}` has neither a fuzz target nor a reason"));
    missing
        .chain(stale.map(|name| format!("`{name}` is no message of the wire any more")))
        .collect()
}

fn told(rows: &[Row]) -> BTreeSet<&'static str> {
    let reasons = NOT_FROM_OUTSIDE.iter().map(|(name, _)| *name);
    rows.iter().map(|row| row.message).chain(reasons).collect()
}

#[test]
fn every_message_of_the_wire_has_a_fuzz_target_or_a_reason() {
    let rows = rows();
    assert_eq!(gaps(&Descriptors::ours(), &told(&rows)), [""; 0]);
    assert_eq!(rows.len() + NOT_FROM_OUTSIDE.len(), told(&rows).len(), "each is told once");
    assert!(NOT_FROM_OUTSIDE.iter().all(|(_, why)| 20 < why.len()), "a reason is a sentence");
}

/// The test above, tested: what somebody adds is missed.
#[test]
fn a_new_call_without_an_entry_is_missed() {
    let mut descriptors = Descriptors::ours();
    descriptors.add_call("countersign.v1.Node", "Rename", ("Name", "Name"));
    let gaps = gaps(&descriptors, &told(&rows()));
    assert_eq!(gaps, ["`countersign.v1.Name` has neither a fuzz target nor a reason"]);
}

#[test]
fn every_target_that_is_named_reads_its_message_and_has_seeds_of_it() {
    for row in rows() {
        let path = fuzz().join("fuzz_targets").join(format!("{}.rs", row.target));
        let source = std::fs::read_to_string(&path)
            .unwrap_or_else(|why| panic!("`{}`: {}: {why}", row.message, path.display()));
        let reads = row.readings().iter().any(|reading| source.contains(reading));
        assert!(reads, "`{}` does not read `{}`", row.target, row.message);
        let seeds = corpus(row.target);
        let holds =
            seeds.iter().any(|seed| row.pieces(seed).iter().any(|piece| (row.holds)(piece)));
        assert!(holds, "`{}` has no seed that is a `{}`", row.target, row.message);
    }
}

/// What no seed begins with is long in being found.
#[test]
fn every_branch_of_a_message_is_in_a_seed() {
    let descriptors = Descriptors::ours();
    let (mut wanted, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for row in rows() {
        descriptors.branches(row.message, &mut wanted);
        for seed in corpus(row.target) {
            for piece in row.pieces(&seed) {
                descriptors.walk(row.message, piece, &mut seen);
            }
        }
    }
    let missing: Vec<_> = wanted.difference(&seen).collect();
    assert!(missing.is_empty(), "no seed has {missing:#?}");
}

/// `INSTA_UPDATE=always` makes them anew, of real messages.
#[test]
fn every_seed_that_is_made_is_there() {
    let update = std::env::var_os("INSTA_UPDATE").is_some_and(|update| update == "always");
    for (target, name, bytes) in seeds::made() {
        let folder = fuzz().join("corpus").join(target);
        if update {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(name), bytes).unwrap();
        }
        assert!(folder.join(name).is_file(), "{target}/{name} is missing");
    }
}
