//! What was done to a log is found, and named.

#![expect(clippy::unwrap_used, reason = "what a test sets up may fail loudly")]

use countersign_audit::{
    Checkpoint, Edge, Event, EventKind, Finding, Leaf, Origin, Review, Reviewed, StoredLeaf,
    TileHash, root_of,
};
use countersign_identity::{Revision, Sha256, Timestamp};
use serde_json::json;

#[derive(Clone)]
struct Stored {
    index: u64,
    leaf: Leaf,
}

/// A log with what is stored beside it.
#[derive(Clone)]
struct Log {
    rows: Vec<Stored>,
    hashes: Vec<TileHash>,
    checkpoints: Vec<Checkpoint>,
    counted: u64,
}

fn at(number: u64) -> Revision {
    Revision { incarnation: 1, number }
}

fn leaf(index: u64, word: &str) -> Leaf {
    let time = Timestamp::from_secs(1_800_000_000);
    let event = Event::new(EventKind::Summary, time, "server", format!("{word}/{index}"));
    // Events of one revision follow each other, ten at a time.
    Leaf::new(&event.with_details(json!({ "n": index })), at(index / 10), [3; 16]).unwrap()
}

impl Log {
    fn of(size: u64) -> Self {
        let rows: Vec<Stored> =
            (0..size).map(|index| Stored { index, leaf: leaf(index, "facts") }).collect();
        let hashes: Vec<Sha256> = rows.iter().map(|row| row.leaf.hash).collect();
        let (mut edge, mut full) = (Edge::default(), Vec::new());
        hashes.iter().for_each(|hash| edge.push(*hash, |tile| full.push(tile)));
        let origin: Origin = "shop.example/log/1".parse().unwrap();
        let checkpoint = |size: u64| {
            let root = root_of(&hashes[..usize::try_from(size).unwrap()]);
            Checkpoint { origin: origin.clone(), size, root }
        };
        let sizes = [size / 256 * 256 + size % 256 / 2, size];
        Self { rows, hashes: full, checkpoints: sizes.map(checkpoint).to_vec(), counted: size }
    }

    fn review(&self) -> Reviewed {
        let mut review = Review::of(at(1_000_000));
        let signed = self.checkpoints.iter().map(|one| one.size).max().unwrap_or(0);
        for checkpoint in &self.checkpoints {
            review.against(checkpoint, &format!("the checkpoint of size {}", checkpoint.size));
        }
        review.expect(self.hashes.iter().copied(), signed);
        for Stored { index, leaf } in &self.rows {
            let details = Some((leaf.details.as_slice(), &leaf.salt));
            review.take(&StoredLeaf { index: *index, leaf: &leaf.bytes, hash: leaf.hash, details });
        }
        review.finish(Some((self.counted, "the head row")))
    }
}

/// Does something to a log of 600 events, and looks at what is found.
#[track_caller]
fn found(change: impl FnOnce(&mut Log), findings: &[Finding]) {
    let mut log = Log::of(600);
    change(&mut log);
    assert_eq!(log.review().findings, findings);
}

#[test]
fn a_log_that_is_as_it_was_has_no_finding() {
    for size in [0, 1, 2, 255, 256, 257, 600] {
        let log = Log::of(size);
        let reviewed = log.review();
        assert_eq!(reviewed.findings, [], "{size}");
        assert_eq!((reviewed.size, reviewed.signed), (size, size));
        assert_eq!(reviewed.root, log.checkpoints[1].root);
    }
}

#[test]
fn events_that_are_not_signed_yet_are_no_finding() {
    let mut log = Log::of(600);
    let signed = Log::of(590);
    (log.checkpoints, log.hashes) = (signed.checkpoints, signed.hashes);
    assert_eq!(log.review().findings, []);
    assert_eq!(log.review().signed, 590);
}

#[test]
fn a_changed_event_is_named() {
    found(
        |log| log.rows[12].leaf.bytes = leaf(12, "fakes").bytes,
        &[Finding::Changed { index: 12 }, Finding::DetailsChanged { index: 12 }][..1],
    );
    found(
        |log| log.rows[12].leaf.bytes.push(b' '),
        &[
            Finding::Changed { index: 12 },
            Finding::Unreadable {
                index: 12,
                why: "a leaf is not in canonical form, or holds what this version does not know"
                    .to_owned(),
            },
        ],
    );
    found(
        |log| log.rows[599].leaf.details = b"{}".to_vec(),
        &[Finding::DetailsChanged { index: 599 }],
    );
}

#[test]
fn an_event_that_was_changed_with_its_hash_is_narrowed_down() {
    let tile = "the tile that they were hashed into".to_owned();
    found(
        |log| log.rows[300].leaf = leaf(300, "fakes"),
        &[Finding::Rewritten { from: 256, to: 511, against: tile }],
    );
    // In what is no full tile yet: between two checkpoints.
    found(
        |log| log.rows[590].leaf = leaf(590, "fakes"),
        &[Finding::Rewritten {
            from: 556,
            to: 599,
            against: "the checkpoint of size 600".to_owned(),
        }],
    );
}

#[test]
fn a_missing_event_is_named() {
    found(|log| drop(log.rows.remove(7)), &[Finding::Missing { from: 7, to: 7 }]);
    found(|log| drop(log.rows.drain(7..300)), &[Finding::Missing { from: 7, to: 299 }]);
}

#[test]
fn events_that_were_exchanged_are_named() {
    // Each has its own hash, and they are of one revision: only the tree tells.
    let exchange = |one: usize, other: usize| {
        move |log: &mut Log| {
            let leaf = log.rows[one].leaf.clone();
            log.rows[one].leaf = std::mem::replace(&mut log.rows[other].leaf, leaf);
        }
    };
    found(exchange(11, 12), &[Finding::Swapped { one: 11, other: 12 }]);
    found(exchange(2, 9), &[Finding::Swapped { one: 2, other: 9 }]);
    found(exchange(593, 597), &[Finding::Swapped { one: 593, other: 597 }]);
    found(
        exchange(19, 20),
        &[
            Finding::OutOfOrder { index: 20, revision: at(1) },
            Finding::Swapped { one: 19, other: 20 },
        ],
    );
    // As rows of a file may be.
    found(
        |log| log.rows.swap(11, 12),
        &[Finding::Missing { from: 11, to: 11 }, Finding::Misplaced { index: 11, expected: 13 }],
    );
}

#[test]
fn a_log_that_was_cut_off_is_noticed_by_whatever_is_left() {
    let cut = |log: &mut Log| log.rows.truncate(500);
    let truncated = |size, against: &str| {
        [Finding::Truncated { leaves: 500, size, against: against.to_owned() }]
    };
    found(cut, &truncated(600, "the checkpoint of size 600"));
    found(
        |log| {
            cut(log);
            log.checkpoints.clear();
        },
        &truncated(600, "the head row"),
    );
    found(
        |log| {
            cut(log);
            log.counted = 500;
        },
        &truncated(600, "the checkpoint of size 600"),
    );
    found(
        |log| {
            cut(log);
            log.counted = 500;
            log.checkpoints.clear();
        },
        &truncated(512, "a stored hash of the tree"),
    );
}

#[test]
fn a_changed_or_dropped_tile_is_told_from_a_changed_event() {
    let changed = |level, position| [Finding::TileChanged { level, position }];
    found(|log| log.hashes[1].hash = leaf(0, "fakes").hash, &changed(1, 1));
    found(|log| log.hashes.retain(|tile| tile.position != 0), &changed(1, 0));
}

#[test]
fn an_older_checkpoint_of_another_log_is_a_fork() {
    found(
        |log| log.checkpoints[0].root = leaf(0, "fakes").hash,
        &[Finding::Forked { size: 556, against: "the checkpoint of size 556".to_owned() }],
    );
}

#[test]
fn a_log_that_was_rewritten_whole_is_noticed_against_what_was_seen() {
    let seen = Log::of(300).checkpoints[1].clone();
    let mut log = Log::of(600);
    for (index, row) in log.rows.iter_mut().enumerate() {
        row.leaf = leaf(index as u64, "fakes");
    }
    let hashes: Vec<Sha256> = log.rows.iter().map(|row| row.leaf.hash).collect();
    log.hashes.clear();
    log.checkpoints[0] = seen;
    log.checkpoints[1].root = root_of(&hashes);
    let findings = log.review().findings;
    assert!(matches!(findings[0], Finding::Forked { size: 300, .. }), "{findings:?}");
    // And nobody stored what the tree of the new events consists of.
    assert!(matches!(findings[1..], [Finding::TileChanged { .. }, Finding::TileChanged { .. }]));
}

#[test]
fn findings_are_bounded() {
    let mut log = Log::of(600);
    log.rows.iter_mut().for_each(|row| row.leaf.bytes = leaf(0, "fakes").bytes);
    assert_eq!(log.review().findings.len(), 64);
}
