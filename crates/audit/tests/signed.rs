//! Checkpoints, cosignatures, tiles and bundles, against the examples of their specifications and against each other.

#![expect(clippy::unwrap_used, reason = "what a test sets up may fail loudly")]

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use countersign_audit::{
    BadBundle, BadCheckpoint, BadNote, BadNoteKey, BadProof, Bundle, Checkpoint, Edge, Event,
    EventKind, Leaf, Note, NoteKey, NoteKeyKind, Origin, Plan, Tile, Tiles, Tree,
    consistency_proof, cosigned, inclusion_proof, leaf_hash, root_of,
};
use countersign_identity::{Revision, Sha256, Timestamp};
use proptest::prelude::*;

/// The key and the note of the package that the format comes from (Go's `sumdb/note`).
const GO_KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const GO_NOTE: &str = "If you think cryptography is the answer to your problem,\n\
    then you don't know what your problem is.\n\n\
    \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

struct Signer {
    pair: Ed25519KeyPair,
    key: NoteKey,
}

fn signer(name: &str, kind: NoteKeyKind, seed: u8) -> Signer {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    let public = pair.public_key().as_ref().try_into().unwrap();
    Signer { key: NoteKey::new(name, kind, public).unwrap(), pair }
}

fn log() -> Signer {
    signer("shop.example/log", NoteKeyKind::Log, 7)
}

fn witness() -> Signer {
    signer("witness.example", NoteKeyKind::Witness, 8)
}

impl Signer {
    fn sign(&self, note: Note) -> Note {
        let signature = self.pair.sign(note.text().as_bytes());
        note.with_signature(&self.key, signature.as_ref())
    }

    fn cosign(&self, note: Note, at: u64) -> Note {
        let signature = self.pair.sign(&cosigned(note.text(), at));
        note.with_cosignature(&self.key, at, signature.as_ref())
    }
}

fn leaf(index: u64) -> Leaf {
    let at = Timestamp::from_secs(1_800_000_000 + i64::try_from(index).unwrap());
    let event = Event::new(EventKind::Summary, at, "server", format!("facts/{index}"));
    Leaf::new(&event, Revision { incarnation: 1, number: 0 }, [0; 16]).unwrap()
}

fn checkpoint(leaves: &[Sha256]) -> Checkpoint {
    let origin = Origin::of(&log().key, 1);
    Checkpoint { origin, size: leaves.len() as u64, root: root_of(leaves) }
}

/// The tiles of a tree over these leaves, as the specification defines them.
fn tile(leaves: &[Sha256], tile: Tile) -> Vec<Sha256> {
    let span = 256_usize.pow(u32::from(tile.level));
    let first = usize::try_from(tile.first()).unwrap();
    (first..first + usize::from(tile.width))
        .map(|at| root_of(&leaves[at * span..(at + 1) * span]))
        .collect()
}

fn read(leaves: &[Sha256], plan: &Plan) -> Tiles {
    let mut tiles = Tiles::default();
    for wanted in plan.tiles() {
        tiles.put(wanted, tile(leaves, wanted));
    }
    tiles
}

#[test]
fn a_note_of_the_package_that_the_format_comes_from_verifies() {
    let key: NoteKey = GO_KEY.parse().unwrap();
    assert_eq!(key.to_string(), GO_KEY);
    let note = Note::parse(GO_NOTE.as_bytes()).unwrap();
    assert_eq!(note.to_string(), GO_NOTE);
    assert_eq!(note.verify(&[key]).unwrap()[0].key.name(), "PeterNeumann");
}

#[test]
fn a_changed_note_is_refused_and_a_foreign_signature_counts_for_nothing() {
    let key: NoteKey = GO_KEY.parse().unwrap();
    let changed = GO_NOTE.replace("answer", "key");
    let refused = Note::parse(changed.as_bytes()).unwrap().verify(std::slice::from_ref(&key));
    assert_eq!(refused, Err(BadNote::Signature("PeterNeumann".to_owned())));
    let note = Note::parse(GO_NOTE.as_bytes()).unwrap();
    assert_eq!(note.verify(&[log().key]), Err(BadNote::Unsigned));
    assert_eq!(note.verify(&[]), Err(BadNote::Unsigned));
    // Signed twice, once by somebody unknown: the known one counts.
    let both = log().sign(note);
    assert_eq!(both.verify(&[key]).unwrap().len(), 1);
}

#[test]
fn what_is_no_note_is_refused() {
    let bad = [
        "",
        "\n",
        "a\n",
        "a\n\n",
        "a\n\n\u{2014} b\n",
        "a\n\n\u{2014} b !!!!\n",
        "a\n\n- b AAAAAAA=\n",
        "a\n\n\u{2014} b AAAAAAA=",
        "a\r\n\n\u{2014} b AAAAAAA=\n",
        "a\n\n\u{2014} b AAAA\n",
        "a\n\n\u{2014}  AAAAAAA=\n",
        "a\n\n\u{2014} b+c AAAAAAA=\n",
    ];
    for text in bad {
        assert_eq!(Note::parse(text.as_bytes()), Err(BadNote::Form), "{text:?}");
    }
    let line = "\u{2014} b AAAAAAA=\n";
    assert!(Note::parse(format!("a\n\n{line}").as_bytes()).is_ok());
    assert!(Note::parse(format!("a\n\n{}", line.repeat(16)).as_bytes()).is_ok());
    assert_eq!(Note::parse(format!("a\n\n{}", line.repeat(65)).as_bytes()), Err(BadNote::Long));
    assert_eq!(Note::parse(&[b'a'; 70_000]), Err(BadNote::Long));
}

#[test]
fn a_key_that_was_mistyped_is_refused() {
    let refused = |text: &str| text.parse::<NoteKey>().unwrap_err();
    assert_eq!(refused(""), BadNoteKey::Form);
    assert_eq!(refused("name+00000000"), BadNoteKey::Form);
    assert_eq!(
        refused("a b+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"),
        BadNoteKey::Name
    );
    let renamed = refused(&GO_KEY.replace("Peter", "Paul"));
    assert!(matches!(renamed, BadNoteKey::Id { .. }), "{renamed}");
    assert_eq!(refused(&GO_KEY.replace("+ARpc", "+BRpc")), BadNoteKey::Kind);
    assert_eq!(refused("a+00000000+AQ=="), BadNoteKey::Kind);
}

#[test]
fn a_cosignature_is_over_the_time_too() {
    let note = witness().cosign(log().sign(checkpoint(&[]).note()), 1_679_315_147);
    let keys = [log().key, witness().key];
    let (read, signed) = Checkpoint::open(note.to_string().as_bytes(), &keys).unwrap();
    assert_eq!(read, checkpoint(&[]));
    let times: Vec<_> = signed.iter().map(|signed| signed.at_secs).collect();
    assert_eq!(times, [None, Some(1_679_315_147)]);
    let message = String::from_utf8(cosigned(note.text(), 1_679_315_147)).unwrap();
    assert!(message.starts_with("cosignature/v1\ntime 1679315147\nshop.example/log/1\n0\n"));
}

#[test]
fn a_checkpoint_counts_only_with_the_signature_of_its_own_log() {
    let foreign = signer("other.example/log", NoteKeyKind::Log, 9);
    let (log, witness) = (log(), witness());
    let open = |note: Note, keys: &[NoteKey]| Checkpoint::open(note.to_string().as_bytes(), keys);
    let note = checkpoint(&[]).note();
    assert!(open(log.sign(note.clone()), std::slice::from_ref(&log.key)).is_ok());
    let keys = [log.key, witness.key.clone(), foreign.key.clone()];
    let origin = checkpoint(&[]).origin;
    let refused = Err(BadCheckpoint::Origin(origin));
    assert_eq!(open(witness.cosign(note.clone(), 1), &keys), refused);
    assert_eq!(open(foreign.sign(note), &keys), refused);
}

#[test]
fn a_checkpoint_is_said_in_one_way_only() {
    let log = log();
    let text = checkpoint(&[]).note().text().to_owned();
    let open = |text: &str| {
        let signature = log.pair.sign(text.as_bytes());
        let note = Note::parse(format!("{text}\n\u{2014} x AAAAAAA=\n").as_bytes()).unwrap();
        let note = note.with_signature(&log.key, signature.as_ref());
        Checkpoint::open(note.to_string().as_bytes(), std::slice::from_ref(&log.key))
    };
    assert!(open(&text).is_ok());
    let changes = [
        text.replace("\n0\n", "\n00\n"),
        text.replace("\n0\n", "\n+0\n"),
        text.replace("\n0\n", "\n\n"),
        format!("{text}an extension\n"),
        text.replace("/1\n", "/01\n"),
        text.replace("/1\n", "\n"),
        text.replace("=\n", "\n"),
    ];
    for changed in changes {
        assert_ne!(changed, text);
        assert_eq!(open(&changed), Err(BadCheckpoint::Form), "{changed:?}");
    }
}

#[test]
fn tiles_have_the_paths_of_the_specification() {
    let whole = |level, index| Tile { level, index, width: 256 };
    for (tile, path) in [
        (whole(0, 0), "0/000"),
        (whole(1, 1_234_067), "1/x001/x234/067"),
        (whole(2, 999), "2/999"),
        (whole(2, 1000), "2/x001/000"),
        (Tile { level: 0, index: 273, width: 112 }, "0/273.p/112"),
    ] {
        assert_eq!(tile.to_string(), path);
        assert_eq!(path.parse(), Ok(tile));
    }
    let bad = [
        "",
        "0",
        "0/",
        "0/0",
        "0/00",
        "0/0000",
        "00/000",
        "0/x000/000",
        "0/001/000",
        "0/x001/x000",
        "0/000.p/0",
        "0/000.p/256",
        "0/000.p/01",
        "8/000",
        "-1/000",
        "0/+00",
        "0/000/",
        "entries/000",
        "0/x018/x446/x744/x073/x709/x551/615",
        "0/000.p/1.p/1",
    ];
    for path in bad {
        assert!(path.parse::<Tile>().is_err(), "{path}");
    }
}

/// The example of the specification: a tree of 70,000.
#[test]
fn a_tree_has_the_tiles_of_the_specification() {
    let width = |level, index| Tile::at(level, index, 70_000).map(|tile| tile.width);
    assert_eq!((width(0, 272), width(0, 273), width(0, 274)), (Some(256), Some(112), None));
    assert_eq!((width(1, 0), width(1, 1), width(1, 2)), (Some(256), Some(17), None));
    assert_eq!((width(2, 0), width(2, 1), width(3, 0)), (Some(1), None, None));
    assert_eq!(Tile::at(1, 0, 256).map(|tile| tile.width), Some(1));
    assert_eq!(Tile::at(0, 0, 0), None);
    assert_eq!(Tile::at(0, u64::MAX, u64::MAX), None);
    assert_eq!(Tile::at(9, 0, u64::MAX), None);
}

#[test]
fn full_tiles_come_into_being_where_the_specification_places_them() {
    let leaves: Vec<Sha256> = (0..66_000_u64).map(|n| leaf_hash(&n.to_be_bytes())).collect();
    let (mut edge, mut full) = (Edge::default(), Vec::new());
    for leaf in &leaves {
        edge.push(*leaf, |tile| full.push(tile));
    }
    assert_eq!(full.iter().filter(|tile| tile.level == 1).count(), 257);
    assert_eq!(full.iter().filter(|tile| tile.level == 2).count(), 1);
    for tile in full {
        let span = 256_usize.pow(u32::from(tile.level));
        let first = usize::try_from(tile.position).unwrap() * span;
        assert_eq!(tile.hash, root_of(&leaves[first..first + span]), "{tile:?}");
    }
    assert_eq!((edge.size(), edge.root()), (66_000, root_of(&leaves)));
    // Read again from its tiles, it goes on the same way.
    let mut tiles = Tiles::default();
    for wanted in Edge::tiles(66_000) {
        tiles.put(wanted, tile(&leaves, wanted));
    }
    let mut again = Edge::resume(66_000, &tiles).unwrap();
    assert_eq!((again.size(), again.root()), (66_000, root_of(&leaves)));
    for n in 66_000..67_000_u64 {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        edge.push(leaf_hash(&n.to_be_bytes()), |tile| one.push(tile));
        again.push(leaf_hash(&n.to_be_bytes()), |tile| other.push(tile));
        assert_eq!((one, edge.root()), (other, again.root()));
    }
    assert_eq!(Edge::resume(66_000, &Tiles::default()), None);
}

fn bundle(size: u64, index: u64) -> Bundle {
    let all: Vec<Leaf> = (0..size).map(leaf).collect();
    let hashes: Vec<Sha256> = all.iter().map(|leaf| leaf.hash).collect();
    Bundle {
        leaf: all[usize::try_from(index).unwrap()].bytes.clone(),
        index,
        path: inclusion_proof(&hashes, index).unwrap(),
        checkpoint: log().sign(checkpoint(&hashes).note()),
    }
}

#[test]
fn a_bundle_proves_its_leaf_with_nothing_but_a_public_key() {
    let text = bundle(300, 41).to_string();
    assert!(text.starts_with("c2sp.org/tlog-proof@v1\nextra "), "{text}");
    let read = Bundle::parse(text.as_bytes()).unwrap();
    assert_eq!(read.to_string(), text);
    let proven = read.verify(&[log().key]).unwrap();
    assert_eq!(proven.entry.subject, "facts/41");
    assert_eq!(proven.checkpoint.size, 300);
    let stranger = signer("shop.example/log", NoteKeyKind::Log, 9);
    assert!(matches!(read.verify(&[stranger.key]), Err(BadBundle::Checkpoint(_))));
}

#[test]
fn a_bundle_of_which_anything_was_changed_proves_nothing() {
    let whole = bundle(300, 41);
    let verify = |bundle: &Bundle| bundle.verify(&[log().key]);
    let mut changed = whole.clone();
    changed.leaf = leaf(42).bytes;
    assert_eq!(verify(&changed), Err(BadBundle::Proof(BadProof::Root)));
    let changed = Bundle { index: 40, ..whole.clone() };
    assert_eq!(verify(&changed), Err(BadBundle::Proof(BadProof::Root)));
    let mut changed = whole.clone();
    changed.path.pop();
    assert!(matches!(verify(&changed), Err(BadBundle::Proof(BadProof::Length { .. }))));
    let changed = Bundle { checkpoint: bundle(299, 41).checkpoint, ..whole.clone() };
    assert!(matches!(verify(&changed), Err(BadBundle::Proof(_))));
    let text = whole.to_string();
    for (from, to) in
        [("index 41", "index 041"), ("extra ", "other "), ("@v1", "@v2"), ("\n\n", "\n")]
    {
        let changed = text.replacen(from, to, 1);
        assert!(Bundle::parse(changed.as_bytes()).is_err(), "{changed}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn proofs_from_tiles_are_those_from_all_leaves(size in 1..2000_usize, index: usize, older: usize) {
        let leaves: Vec<Sha256> = (0..size).map(|n| leaf_hash(&n.to_be_bytes())).collect();
        let (wide, index, older) = (size as u64, (index % size) as u64, (older % (size + 1)) as u64);
        let plan = Plan::inclusion(index, wide).unwrap();
        prop_assert_eq!(plan.prove(&read(&leaves, &plan)), inclusion_proof(&leaves, index));
        prop_assert!(plan.tiles().len() <= 5, "a proof reads few tiles");
        let plan = Plan::consistency(older, wide).unwrap();
        prop_assert_eq!(plan.prove(&read(&leaves, &plan)), consistency_proof(&leaves, older));
        let plan = Plan::root(wide);
        prop_assert_eq!(plan.prove(&read(&leaves, &plan)), Some(vec![root_of(&leaves)]));
        prop_assert!(Plan::inclusion(wide, wide).is_none());
        prop_assert!(Plan::consistency(wide + 1, wide).is_none());
    }

    #[test]
    fn a_missing_tile_proves_nothing(size in 2..2000_u64, index: u64) {
        let plan = Plan::inclusion(index % size, size).unwrap();
        prop_assert_eq!(plan.prove(&Tiles::default()), None);
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes: Vec<u8>, text in ".{0,200}") {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            let _ = Note::parse(bytes);
            let _ = Bundle::parse(bytes);
        }
        let _ = text.parse::<NoteKey>();
        let _ = text.parse::<Tile>();
        let _ = text.parse::<Origin>();
    }

    #[test]
    fn no_size_makes_a_plan_panic(index: u64, size: u64, older: u64) {
        for plan in [Plan::inclusion(index, size), Plan::consistency(older, size)].into_iter().flatten() {
            prop_assert!(plan.tiles().len() < 200);
        }
        prop_assert!(Plan::root(size).tiles().len() <= 8 + 8);
    }
}

#[test]
fn the_empty_tree_has_its_root() {
    let plan = Plan::root(0);
    assert_eq!(plan.prove(&Tiles::default()), Some(vec![Tree::new().root()]));
}
