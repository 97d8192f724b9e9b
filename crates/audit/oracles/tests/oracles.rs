//! The log's tree, tiles, checkpoints and notes, beside other people's implementations of the same specifications.

#![expect(clippy::unwrap_used, reason = "what a test sets up may fail loudly")]

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_audit::{
    Checkpoint, Note, NoteKey, NoteKeyKind, Origin, Tile, consistency_proof, inclusion_proof,
    leaf_hash, root_of,
};
use countersign_identity::Sha256;
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use signed_note::{Signer as _, StandardSigner, StandardVerifier, VerifierList};
use tlog_tiles::{Hash, HashReader, stored_hashes_for_record_hash};

/// Sizes at which trees change their shape, and some between.
const SIZES: [u64; 16] = [1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 255, 256, 257, 511, 600];
const SEED: [u8; 32] = [7; 32];

fn leaf(index: u64) -> Vec<u8> {
    format!("event {index}").into_bytes()
}

fn leaves(size: u64) -> Vec<Sha256> {
    (0..size).map(|index| leaf_hash(&leaf(index))).collect()
}

fn theirs(hash: Sha256) -> Hash {
    Hash(*hash.as_bytes())
}

fn all_theirs(hashes: Option<Vec<Sha256>>) -> Vec<Hash> {
    hashes.unwrap().into_iter().map(theirs).collect()
}

/// The tree as `tlog_tiles` stores it.
struct Stored(Vec<Hash>);

impl HashReader for Stored {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
        let at = |index: &u64| self.0[usize::try_from(*index).unwrap()];
        Ok(indexes.iter().map(at).collect())
    }
}

fn stored(leaves: &[Sha256]) -> Stored {
    let mut stored = Stored(Vec::new());
    for (index, leaf) in leaves.iter().enumerate() {
        let more = stored_hashes_for_record_hash(index as u64, theirs(*leaf), &stored).unwrap();
        stored.0.extend(more);
    }
    stored
}

fn key_pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&SEED).unwrap()
}

fn key() -> NoteKey {
    let public = key_pair().public_key().as_ref().try_into().unwrap();
    NoteKey::new("shop.example/log", NoteKeyKind::Log, public).unwrap()
}

fn checkpoint(size: u64) -> Checkpoint {
    Checkpoint { origin: Origin::of(&key(), 1), size, root: root_of(&leaves(size)) }
}

#[test]
fn roots_and_proofs_are_those_of_tlog_tiles() {
    for size in SIZES {
        let ours = leaves(size);
        let tree = stored(&ours);
        let root = tlog_tiles::tree_hash(size, &tree).unwrap();
        assert_eq!(theirs(root_of(&ours)), root, "{size}");
        for index in [0, size / 3, size / 2, size - 1] {
            let proof = tlog_tiles::prove_record(size, index, &tree).unwrap();
            assert_eq!(all_theirs(inclusion_proof(&ours, index)), proof, "{index} of {size}");
            let hash = theirs(ours[usize::try_from(index).unwrap()]);
            tlog_tiles::check_record(&proof, size, root, index, hash).unwrap();
            let older = index + 1;
            let proof = all_theirs(consistency_proof(&ours, older));
            assert_eq!(
                tlog_tiles::prove_tree(size, older, &tree).unwrap(),
                proof,
                "{older} of {size}"
            );
            let before = theirs(root_of(&ours[..usize::try_from(older).unwrap()]));
            tlog_tiles::check_tree(&proof, size, root, older, before).unwrap();
        }
    }
}

#[test]
fn roots_and_proofs_are_those_of_ct_merkle() {
    let mut tree = MemoryBackedTree::<sha2::Sha256, Vec<u8>>::new();
    let mut size = 0;
    for wanted in SIZES {
        while size < wanted {
            tree.push(leaf(size));
            size += 1;
        }
        let ours = leaves(size);
        assert_eq!(tree.root().as_bytes().as_slice(), root_of(&ours).as_bytes(), "{size}");
        for index in [0, size / 3, size / 2, size - 1] {
            let proof = tree.prove_inclusion(usize::try_from(index).unwrap());
            let bytes: Vec<u8> = inclusion_proof(&ours, index)
                .unwrap()
                .iter()
                .flat_map(|hash| *hash.as_bytes())
                .collect();
            assert_eq!(bytes, proof.as_bytes(), "{index} of {size}");
        }
    }
}

#[test]
fn tiles_have_the_hashes_and_the_paths_of_tlog_tiles() {
    let size = 600;
    let ours = leaves(size);
    let tree = stored(&ours);
    let all = tlog_tiles::Tile::new_tiles(8, 0, size);
    assert_eq!(all.len(), 4, "two that are full, what is left, and one above");
    for theirs in all {
        let tile = Tile::at(theirs.level(), theirs.level_index(), size).unwrap();
        assert_eq!(u32::from(tile.width), theirs.width());
        // Go's paths name the height, which C2SP has fixed.
        let path = theirs.path();
        assert_eq!(path.strip_prefix("tile/8/").unwrap(), tile.to_string());
        let span = 256_usize.pow(u32::from(tile.level));
        let first = usize::try_from(tile.first()).unwrap();
        let hashes: Vec<u8> = (first..first + usize::from(tile.width))
            .flat_map(|at| *root_of(&ours[at * span..(at + 1) * span]).as_bytes())
            .collect();
        assert_eq!(theirs.read_data(&tree).unwrap(), hashes, "{path}");
    }
    let far = Tile { level: 2, index: 1_234_067, width: 8 };
    let path = tlog_tiles::Tile::new(8, 2, 1_234_067, 8, false).path();
    assert_eq!(path.strip_prefix("tile/8/").unwrap(), far.to_string());
}

#[test]
fn a_checkpoint_reads_the_same_to_both() {
    for size in SIZES {
        let ours = checkpoint(size);
        let text = ours.note().text().to_owned();
        let read = tlog_tiles::Checkpoint::from_bytes(text.as_bytes()).unwrap();
        assert_eq!(read.origin(), ours.origin.to_string());
        assert_eq!((read.size(), *read.hash()), (size, theirs(ours.root)));
        assert_eq!(read.to_bytes(), text.as_bytes());
    }
}

#[test]
fn a_note_that_one_signs_the_other_verifies() {
    let note = checkpoint(300).note();
    let signature = key_pair().sign(note.text().as_bytes());
    let ours = note.clone().with_signature(&key(), signature.as_ref()).to_string();
    let verifier = StandardVerifier::new(&key().to_string()).unwrap();
    let known = VerifierList::new(vec![Box::new(verifier)]);
    let read = signed_note::Note::from_bytes(ours.as_bytes()).unwrap();
    assert_eq!(read.verify(&known).unwrap().0.len(), 1);

    let signer = StandardSigner::new(&secret()).unwrap();
    assert_eq!(signer.name(), key().name());
    let mut theirs = signed_note::Note::new(note.text().as_bytes(), &[]).unwrap();
    theirs.add_sigs(&[&signer]).unwrap();
    // Ed25519 signs the same in the same way.
    assert_eq!(theirs.to_bytes(), ours.as_bytes());
    let read = Note::parse(&theirs.to_bytes()).unwrap();
    assert_eq!(read.verify(&[key()]).unwrap().len(), 1);

    let forged = ours.replacen("300", "301", 1);
    let read = signed_note::Note::from_bytes(forged.as_bytes()).unwrap();
    assert!(read.verify(&known).is_err());
    assert!(Note::parse(forged.as_bytes()).unwrap().verify(&[key()]).is_err());
}

/// The secret half, as `signed_note` writes it: the public half's name and number, and the seed.
fn secret() -> String {
    let public = key().to_string();
    let (name_and_id, _public) = public.rsplit_once('+').unwrap();
    let seed = [&[1][..], &SEED].concat();
    format!("PRIVATE+KEY+{name_and_id}+{}", STANDARD.encode(seed))
}
