//! The log against the vectors of Certificate Transparency and against the definition in RFC 6962 itself.

#![expect(clippy::unwrap_used, reason = "what a test sets up may fail loudly")]

use countersign_audit::{
    BadProof, Tree, consistency_proof, inclusion_proof, leaf_hash, root_of, verify_consistency,
    verify_inclusion,
};
use countersign_identity::Sha256;
use proptest::prelude::*;

/// The leaves that Certificate Transparency's implementations are tested with.
const LEAVES: [&[u8]; 8] = [
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    b"\x50\x51\x52\x53\x54\x55\x56\x57",
    b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
];

const ROOTS: [&str; 9] = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

fn vectors() -> Vec<Sha256> {
    LEAVES.iter().map(|leaf| leaf_hash(leaf)).collect()
}

/// Leaves whose contents are their index.
fn leaves(size: usize) -> Vec<Sha256> {
    (0..size).map(|index| leaf_hash(&index.to_be_bytes())).collect()
}

#[track_caller]
fn hashes(texts: &[&str]) -> Vec<Sha256> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// RFC 6962, 2.1, word for word: the hash of two subtrees, the left of the largest power of two below the size.
fn naive_root(leaves: &[Sha256]) -> Sha256 {
    let sha256 = |parts: &[&[u8]]| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &parts.concat());
        Sha256::from_bytes(digest.as_ref().try_into().unwrap())
    };
    match leaves {
        [] => sha256(&[]),
        [leaf] => *leaf,
        _ => {
            let mut split = 1;
            while split * 2 < leaves.len() {
                split *= 2;
            }
            let (left, right) = (naive_root(&leaves[..split]), naive_root(&leaves[split..]));
            sha256(&[&[1], left.as_bytes(), right.as_bytes()])
        }
    }
}

#[test]
fn roots_are_those_of_certificate_transparency() {
    for (size, root) in ROOTS.iter().enumerate() {
        assert_eq!(root_of(&vectors()[..size]).to_string(), *root, "{size} leaves");
    }
}

#[test]
fn proofs_are_those_of_certificate_transparency() {
    let leaves = vectors();
    let inclusion = hashes(&[
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]);
    assert_eq!(inclusion_proof(&leaves, 5), Some(inclusion));
    let growth = hashes(&[
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]);
    assert_eq!(consistency_proof(&leaves, 6), Some(growth));
}

#[test]
fn every_leaf_of_every_small_tree_is_proven_and_no_other() {
    for size in 1..=33 {
        let leaves = leaves(size);
        let (root, size) = (root_of(&leaves), size as u64);
        for index in 0..size {
            let proof = inclusion_proof(&leaves, index).unwrap();
            for (claimed, leaf) in (0..size).zip(&leaves) {
                let verdict = verify_inclusion(*leaf, claimed, size, &proof, root);
                assert_eq!(verdict.is_ok(), claimed == index, "{claimed} for {index} of {size}");
            }
        }
        assert_eq!(inclusion_proof(&leaves, size), None);
    }
}

#[test]
fn every_growth_of_small_trees_is_proven() {
    for size in 0..=33 {
        let leaves = leaves(size);
        for older in 0..=size {
            let proof = consistency_proof(&leaves, older as u64).unwrap();
            let old = (older as u64, root_of(&leaves[..older]));
            let new = (size as u64, root_of(&leaves));
            assert_eq!(verify_consistency(old, new, &proof), Ok(()), "{older} to {size}");
        }
        assert_eq!(consistency_proof(&leaves, size as u64 + 1), None);
    }
}

#[test]
fn a_rewritten_log_is_not_consistent_with_what_was_seen() {
    for older in 1..=16_usize {
        let seen = leaves(older);
        let mut rewritten = leaves(20);
        rewritten[older / 2] = leaf_hash(b"another past");
        let proof = consistency_proof(&rewritten, older as u64).unwrap();
        let (old, new) = ((older as u64, root_of(&seen)), (20, root_of(&rewritten)));
        assert!(verify_consistency(old, new, &proof).is_err(), "{older} leaves were seen");
    }
}

#[test]
fn a_truncated_log_is_not_consistent_with_what_was_seen() {
    let (seen, shorter) = (leaves(9), leaves(8));
    let verdict = verify_consistency((9, root_of(&seen)), (8, root_of(&shorter)), &[]);
    assert_eq!(verdict, Err(BadProof::Beyond { position: 9, size: 8 }));
    let verdict = verify_consistency((9, root_of(&seen)), (9, root_of(&shorter)), &[]);
    assert_eq!(verdict, Err(BadProof::Root));
}

#[test]
fn an_empty_tree_proves_nothing_but_itself() {
    let empty = (0, root_of(&[]));
    assert_eq!(verify_consistency(empty, (3, root_of(&leaves(3))), &[]), Ok(()));
    let false_root = (0, leaf_hash(b""));
    assert_eq!(verify_consistency(false_root, (3, root_of(&leaves(3))), &[]), Err(BadProof::Root));
    let verdict = verify_inclusion(leaf_hash(b""), 0, 0, &[], root_of(&[]));
    assert_eq!(verdict, Err(BadProof::Beyond { position: 0, size: 0 }));
}

proptest! {
    #[test]
    fn the_compact_tree_has_the_root_that_the_rfc_defines(size in 0..300_usize) {
        let leaves = leaves(size);
        let tree = Tree::from_leaf_hashes(leaves.iter().copied());
        prop_assert_eq!(tree.root(), naive_root(&leaves));
        prop_assert_eq!(tree.size(), size as u64);
    }

    #[test]
    fn a_changed_proof_proves_nothing(
        size in 2..200_usize, index: usize, older: usize, place: usize, bit in 0..256_usize,
    ) {
        let leaves = leaves(size);
        let (index, older) = (index % size, 1 + older % (size - 1));
        let (root, wide) = (root_of(&leaves), size as u64);
        let flip = |hash: &mut Sha256| {
            let mut bytes = *hash.as_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            *hash = Sha256::from_bytes(bytes);
        };

        let mut proof = inclusion_proof(&leaves, index as u64).unwrap();
        let verify = |proof: &[Sha256]| {
            verify_inclusion(leaves[index], index as u64, wide, proof, root)
        };
        prop_assert_eq!(verify(&proof), Ok(()));
        prop_assert!(verify(&proof[1..]).is_err());
        proof.push(root);
        prop_assert!(verify(&proof).is_err());
        proof.pop();
        let place_in = place % proof.len();
        flip(&mut proof[place_in]);
        prop_assert!(verify(&proof).is_err());

        let old = (older as u64, root_of(&leaves[..older]));
        let mut proof = consistency_proof(&leaves, older as u64).unwrap();
        prop_assert_eq!(verify_consistency(old, (wide, root), &proof), Ok(()));
        proof.push(root);
        prop_assert!(verify_consistency(old, (wide, root), &proof).is_err());
        proof.pop();
        let place_in = place % proof.len();
        flip(&mut proof[place_in]);
        prop_assert!(verify_consistency(old, (wide, root), &proof).is_err());
    }

    #[test]
    fn no_proof_makes_a_verifier_panic(
        index: u64, size: u64, hashes in proptest::collection::vec(any::<[u8; 32]>(), 0..80),
    ) {
        let proof: Vec<Sha256> = hashes.into_iter().map(Sha256::from_bytes).collect();
        let hash = leaf_hash(b"");
        prop_assert!(verify_inclusion(hash, index, size, &proof, leaf_hash(b"x")).is_err());
        // Only equal sizes with equal roots need no proof.
        let verdict = verify_consistency((index, hash), (size, leaf_hash(b"x")), &proof);
        prop_assert!(verdict.is_err());
    }
}
