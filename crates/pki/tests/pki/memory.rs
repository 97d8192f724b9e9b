//! What is remembered of a chain is arithmetic: it saves work, and changes no verdict.

use std::time::Duration;

use countersign_identity::{Code, Timestamp};
use countersign_pki::{
    Bundle, Bundles, Certificate, ChainMemory, Findings, KeyKind, PrivateKey, Receipt, Refused,
    Role, SignatureCounts, Verified, verify, verify_fresh, verify_recalling,
};

use crate::support::{Realm, now};

fn key() -> PrivateKey {
    PrivateKey::generate(KeyKind::Ed25519).unwrap()
}

/// A realm, what one of its members shows, and a memory of that.
async fn remembered() -> (Realm, Vec<Vec<u8>>, ChainMemory) {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let chain = realm.chain("/orders", &key()).await;
    let chain: Vec<Vec<u8>> = chain.ders().into_iter().map(<[u8]>::to_vec).collect();
    let memory = ChainMemory::new();
    let (_, findings) = ask(&chain, &realm.bundles(), now(), &memory).unwrap();
    memory.remember(&findings, now());
    assert_eq!(memory.counts(), SignatureCounts { recalled: 0, verified: 2 });
    (realm, chain, memory)
}

fn ask(
    chain: &[Vec<u8>],
    bundles: &Bundles,
    at: Timestamp,
    memory: &ChainMemory,
) -> Result<(Verified, Findings), Refused> {
    let ders: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
    verify_recalling(&ders, bundles, Role::Server, at, memory)
}

/// What a verifier with the memory says, which is what one without says.
#[track_caller]
fn refused(chain: &[Vec<u8>], bundles: &Bundles, at: Timestamp, memory: &ChainMemory) -> Code {
    let ders: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
    let plain = verify(&ders, bundles, Role::Server, at).unwrap_err();
    assert_eq!(ask(chain, bundles, at, memory).unwrap_err(), plain);
    plain.code
}

#[tokio::test]
async fn a_chain_seen_before_costs_no_signature_and_says_the_same() {
    let (realm, chain, memory) = remembered().await;
    let (again, findings) = ask(&chain, &realm.bundles(), now(), &memory).unwrap();
    assert_eq!(memory.counts(), SignatureCounts { recalled: 2, verified: 2 });
    let ders: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
    assert_eq!(again, verify(&ders, &realm.bundles(), Role::Server, now()).unwrap());
    memory.remember(&findings, now());
    // Another member of the same issuer: only its own signature is new.
    let other = realm.chain("/web", &key()).await;
    let other: Vec<Vec<u8>> = other.ders().into_iter().map(<[u8]>::to_vec).collect();
    ask(&other, &realm.bundles(), now(), &memory).unwrap();
    assert_eq!(memory.counts(), SignatureCounts { recalled: 3, verified: 3 });
}

#[tokio::test]
async fn what_was_just_signed_is_verified_as_by_any_peer_and_its_signature_once() {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let other = Realm::new("shop.example", KeyKind::Ed25519).await;
    let fresh = async || {
        let draft = realm.draft("/orders", &key());
        let reviewed = draft.review(&realm.profile(), &realm.issuer).unwrap();
        let receipt = Receipt::assertion(reviewed.summary().tbs, 0);
        reviewed.sign_fresh(receipt, &realm.signer).await.unwrap()
    };
    let first = fresh().await;
    let memory = ChainMemory::new();
    let same = |above: &Certificate, bundles: &Bundles, at: Timestamp| {
        let ders = [first.certificate().der(), above.der()];
        let plain = verify(&ders, bundles, Role::Client, at);
        let above = std::slice::from_ref(above);
        assert_eq!(verify_fresh(&first, above, bundles, (Role::Client, at), &memory), plain);
        plain.map(drop).map_err(|refused| refused.code)
    };
    let issuer = realm.issuer.certificate();
    assert_eq!(same(issuer, &realm.bundles(), now()), Ok(()));
    assert_eq!(memory.counts(), SignatureCounts { recalled: 0, verified: 1 }, "the issuer's own");
    let above = std::slice::from_ref(issuer);
    let moment = (Role::Client, now());
    verify_fresh(&fresh().await, above, &realm.bundles(), moment, &memory).unwrap();
    assert_eq!(memory.counts(), SignatureCounts { recalled: 1, verified: 1 });
    // Whatever else a verifier asks, it asks.
    let hours = now() + 2 * Duration::from_secs(3600);
    assert_eq!(same(issuer, &realm.bundles(), hours), Err(Code::Expired));
    assert_eq!(same(issuer, &other.bundles(), now()), Err(Code::BadSignature));
    assert_eq!(same(issuer, &Bundles::none(), now()), Err(Code::UnknownTrustDomain));
    // Another key of the issuer's name did not sign it.
    let foreign = realm.certify_issuer_of(&other).await;
    assert_eq!(same(&foreign, &realm.bundles(), now()), Err(Code::BadSignature));
}

#[tokio::test]
async fn what_is_not_handed_back_is_not_remembered() {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let chain = realm.chain("/orders", &key()).await;
    let chain: Vec<Vec<u8>> = chain.ders().into_iter().map(<[u8]>::to_vec).collect();
    let memory = ChainMemory::new();
    for _ in 0..3 {
        ask(&chain, &realm.bundles(), now(), &memory).unwrap();
    }
    assert_eq!(memory.counts(), SignatureCounts { recalled: 0, verified: 6 });
}

#[tokio::test]
async fn a_remembered_authority_that_left_the_bundle_vouches_for_nobody() {
    let (realm, chain, memory) = remembered().await;
    let successor = Realm::new("shop.example", KeyKind::Ed25519).await;
    let gone = refused(&chain, &successor.bundles(), now(), &memory);
    assert_eq!(gone, Code::BadSignature, "another root of that name is there");
    let none = Bundles::of(Bundle::new(realm.domain.clone(), Vec::new(), 2));
    assert_eq!(refused(&chain, &none, now(), &memory), Code::UnknownIssuer);
    assert_eq!(refused(&chain, &Bundles::none(), now(), &memory), Code::UnknownTrustDomain);
    assert!(ask(&chain, &realm.bundles(), now(), &memory).is_ok(), "and back");
}

#[tokio::test]
async fn a_remembered_chain_is_refused_once_it_has_expired_and_before_it_began() {
    let (realm, chain, memory) = remembered().await;
    let (verified, _) = ask(&chain, &realm.bundles(), now(), &memory).unwrap();
    let after = verified.expires + Duration::from_micros(1);
    assert_eq!(refused(&chain, &realm.bundles(), after, &memory), Code::Expired);
    let before = Timestamp::from_secs(verified.leaf.validity().not_before.secs() - 1);
    assert_eq!(refused(&chain, &realm.bundles(), before, &memory), Code::NotYetValid);
    // Only the leaf has ended: its issuer goes on to vouch, remembered.
    let counts = memory.counts();
    let young = realm.chain("/web", &key()).await;
    let young: Vec<Vec<u8>> = young.ders().into_iter().map(<[u8]>::to_vec).collect();
    ask(&young, &realm.bundles(), now(), &memory).unwrap();
    assert_eq!(memory.counts().recalled, counts.recalled + 1);
}

#[tokio::test]
async fn no_changed_bit_of_a_remembered_chain_is_accepted() {
    let (realm, chain, memory) = remembered().await;
    let bundles = realm.bundles();
    for position in 0..2 {
        for bit in 0..chain[position].len() * 8 {
            let mut changed = chain.clone();
            changed[position][bit / 8] ^= 1 << (bit % 8);
            let result = ask(&changed, &bundles, now(), &memory);
            assert!(result.is_err(), "bit {bit} of certificate {position} changed: {result:?}");
        }
    }
}

#[tokio::test]
async fn a_remembered_leaf_needs_its_own_issuer_and_takes_no_other_of_that_name() {
    let (realm, chain, memory) = remembered().await;
    let (leaf, issuer) = (chain[0].clone(), chain[1].clone());
    // The same names throughout, and the same trust domain, but other keys.
    let impostor = Realm::new("shop.example", KeyKind::Ed25519).await;
    let other = impostor.issuer.certificate().der().to_vec();
    let bundles = realm.bundles();
    assert_eq!(
        refused(&[leaf.clone(), other.clone()], &bundles, now(), &memory),
        Code::BadSignature
    );
    let alone = refused(std::slice::from_ref(&leaf), &bundles, now(), &memory);
    assert_eq!(alone, Code::UnknownIssuer);
    // Beside the right one it is of no use, and takes no room in the memory.
    let before = memory.counts();
    let (verified, findings) =
        ask(&[leaf.clone(), other.clone(), issuer.clone()], &bundles, now(), &memory).unwrap();
    assert_eq!(verified.issuer, realm.issuer.key_id());
    assert!(before.recalled + 2 <= memory.counts().recalled);
    memory.remember(&findings, now());
    let (_, again) = ask(&[leaf, other, issuer], &bundles, now(), &memory).unwrap();
    assert_eq!(again, findings, "nothing is new");
}

#[tokio::test]
async fn an_issuer_remembered_under_one_root_is_not_known_under_another() {
    // Both roots certify one issuer's key, as while a root walks.
    let (realm, chain, memory) = remembered().await;
    let successor = Realm::new("shop.example", KeyKind::Ed25519).await;
    let cross = successor.certify_issuer_of(&realm).await;
    let crossed = vec![chain[0].clone(), cross.der().to_vec()];
    let before = memory.counts();
    let (verified, _) = ask(&crossed, &successor.bundles(), now(), &memory).unwrap();
    assert_eq!(verified.anchor, successor.root.key_id());
    // The leaf's signature is of the same key; that of the new certificate had to be verified.
    assert_eq!(memory.counts().recalled, before.recalled + 1);
    assert_eq!(memory.counts().verified, before.verified + 1);
    assert_eq!(refused(&crossed, &realm.bundles(), now(), &memory), Code::BadSignature);
}

#[tokio::test]
async fn a_wrong_signature_is_verified_each_time_and_never_remembered() {
    let (realm, mut chain, memory) = remembered().await;
    *chain[0].last_mut().unwrap() ^= 1;
    assert!(Certificate::parse(&chain[0]).is_ok());
    for times in 1..=3 {
        assert_eq!(refused(&chain, &realm.bundles(), now(), &memory), Code::BadSignature);
        assert_eq!(memory.counts(), SignatureCounts { recalled: 0, verified: 2 + times });
    }
}
