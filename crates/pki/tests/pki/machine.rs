//! Chains of an operator's own authorities, by which machines become nodes.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use countersign_identity::{Code, Timestamp};
use countersign_pki::{Certificate, KeyKind, PrivateKey, decode_certificates, verify_machine};

use crate::support::{Realm, now};

fn refused(chain: &[&[u8]], anchors: &[Certificate], at: Timestamp) -> Code {
    verify_machine(chain, anchors, at).unwrap_err().code
}

#[tokio::test]
async fn chain_leads_to_a_trusted_authority_and_names_the_key_that_it_certifies() {
    let realm = Realm::new("machines.example", KeyKind::P384).await;
    for kind in KeyKind::ALL {
        let key = PrivateKey::generate(kind).unwrap();
        let chain = realm.chain("/host", &key).await;
        let anchors = [realm.root.certificate().clone()];
        let machine = verify_machine(&chain.ders(), &anchors, now()).unwrap();
        assert_eq!(machine.key(), key.public());
        assert_eq!(machine.anchor(), realm.root.key_id());
        assert_eq!(machine.leaf().der(), chain.leaf().der());
        // The issuer itself may be the one that is trusted, and the root may be shown as well.
        let issuer = [realm.issuer.certificate().clone()];
        assert!(verify_machine(&chain.ders(), &issuer, now()).is_ok());
        let whole = [chain.ders(), vec![realm.root.certificate().der()]].concat();
        assert!(verify_machine(&whole, &anchors, now()).is_ok());
    }
}

#[tokio::test]
async fn authority_is_no_machine_and_a_machine_no_authority() {
    let realm = Realm::new("machines.example", KeyKind::P256).await;
    let chain = realm.chain("/host", &PrivateKey::generate(KeyKind::P256).unwrap()).await;
    let (root, issuer) = (realm.root.certificate().clone(), realm.issuer.certificate().clone());
    let anchors = [root.clone()];
    assert_eq!(refused(&[issuer.der()], &anchors, now()), Code::LeafIsAuthority);
    assert_eq!(refused(&[root.der()], &anchors, now()), Code::LeafIsAuthority);
    // Trusting a machine's certificate makes nobody a node, itself included.
    let leaf = [chain.leaf().clone()];
    assert_eq!(refused(&chain.ders(), &leaf, now()), Code::UnknownIssuer);
    assert_eq!(refused(&[chain.leaf().der()], &leaf, now()), Code::UnknownIssuer);
    assert_eq!(refused(&chain.ders(), &[], now()), Code::UnknownIssuer);
    assert_eq!(refused(&[], &anchors, now()), Code::NoCertificate);
    // Without the issuer in between there is no way.
    assert_eq!(refused(&[chain.leaf().der()], &anchors, now()), Code::UnknownIssuer);
}

#[tokio::test]
async fn only_what_is_valid_now_and_signed_by_the_very_authority_counts() {
    let realm = Realm::new("machines.example", KeyKind::P256).await;
    let other = Realm::new("machines.example", KeyKind::P256).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let chain = realm.chain("/host", &key).await;
    let anchors = [realm.root.certificate().clone()];
    let foreign = [other.root.certificate().clone()];
    assert_eq!(refused(&chain.ders(), &foreign, now()), Code::BadSignature);
    let both = [foreign[0].clone(), anchors[0].clone()];
    assert!(verify_machine(&chain.ders(), &both, now()).is_ok(), "one of two of the same name");
    let later = now() + Duration::from_secs(3601);
    assert_eq!(refused(&chain.ders(), &anchors, later), Code::Expired);
    let issuer_ended = now() + Duration::from_secs(8 * 86_400);
    assert_eq!(refused(&chain.ders(), &anchors, issuer_ended), Code::Expired);
    let before = now() - Duration::from_secs(3600);
    assert_eq!(refused(&chain.ders(), &anchors, before), Code::NotYetValid);
    // Somebody else's leaf in front of a good chain, and a good one in front of somebody else's.
    let thief = other.chain("/host", &PrivateKey::generate(KeyKind::P256).unwrap()).await;
    let [mine, theirs] = [chain.ders(), thief.ders()];
    assert_eq!(refused(&[theirs[0], mine[0], mine[1]], &anchors, now()), Code::UnknownIssuer);
    assert_eq!(refused(&[theirs[0], mine[1]], &anchors, now()), Code::BadSignature);
    assert_eq!(refused(&[mine[0], theirs[1]], &anchors, now()), Code::BadSignature);
}

#[tokio::test]
async fn no_changed_bit_is_accepted() {
    let realm = Realm::new("machines.example", KeyKind::Ed25519).await;
    let chain = realm.chain("/host", &PrivateKey::generate(KeyKind::Ed25519).unwrap()).await;
    let anchors = [realm.root.certificate().clone()];
    for position in 0..2 {
        let good = chain.ders();
        for bit in 0..good[position].len() * 8 {
            let mut changed = good[position].to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let mut ders = good.clone();
            ders[position] = &changed;
            let result = verify_machine(&ders, &anchors, now());
            assert!(result.is_err(), "bit {bit} of certificate {position} changed: {result:?}");
        }
    }
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .expect("openssl is installed, as CONTRIBUTING.md asks");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A machine's certificate with these extensions, of an authority as openssl makes it by itself.
fn made_by_openssl(extensions: &str) -> Result<(), Code> {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("ext"), extensions).unwrap();
    openssl(
        folder.path(),
        "req -x509 -newkey rsa:2048 -nodes -subj /CN=ca -keyout ca.key -out ca.pem -days 2",
    );
    openssl(folder.path(), "req -newkey rsa:2048 -nodes -subj /CN=host -keyout key -out csr");
    openssl(
        folder.path(),
        "x509 -req -in csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile ext -out leaf.pem",
    );
    let ders = |name: &str| {
        decode_certificates(&std::fs::read_to_string(at(name)).unwrap()).unwrap().swap_remove(0)
    };
    let anchor = Certificate::parse(&ders("ca.pem")).unwrap();
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let at = Timestamp::from_secs(unix.as_secs().try_into().unwrap());
    verify_machine(&[&ders("leaf.pem")], &[anchor], at + Duration::from_secs(1))
        .map(|_machine| ())
        .map_err(|refused| refused.code)
}

#[test]
fn certificates_as_other_software_makes_them_are_taken_and_misused_ones_are_not() {
    assert_eq!(made_by_openssl("subjectAltName=DNS:host.example"), Ok(()));
    let usual = "basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth,serverAuth";
    assert_eq!(made_by_openssl(usual), Ok(()));
    for (extensions, code) in [
        ("basicConstraints=critical,CA:TRUE", Code::LeafIsAuthority),
        ("keyUsage=keyCertSign,digitalSignature", Code::LeafIsAuthority),
        ("keyUsage=keyEncipherment", Code::BadKeyUsage),
        ("extendedKeyUsage=serverAuth", Code::BadExtendedKeyUsage),
        ("extendedKeyUsage=codeSigning", Code::BadExtendedKeyUsage),
        ("1.2.3.4=critical,DER:0500", Code::BadExtension),
    ] {
        assert_eq!(made_by_openssl(extensions), Err(code), "{extensions}");
    }
}
