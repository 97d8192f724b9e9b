//! From a draft to a certificate that others accept.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{Realm, lifetime, now, serial};
use async_trait::async_trait;
use countersign_identity::{Code, Timestamp};
use countersign_pki::{
    AuthorityDraft, Certificate, Draft, KeyKind, PrivateKey, PublicKey, Receipt, Refusal, Reserved,
    Role, SignFault, Signer, SoftwareSigner, make_csr, open_csr, verify,
};

const KINDS: [KeyKind; 5] = KeyKind::ALL;
const AUTHORITIES: [KeyKind; 3] = [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519];

#[tokio::test]
async fn what_we_issue_our_verifier_accepts_in_both_roles() {
    let keys = KINDS.map(|kind| PrivateKey::generate(kind).unwrap());
    for kind in AUTHORITIES {
        let realm = Realm::new("shop.example", kind).await;
        for key in &keys {
            let chain = realm.chain("/orders", key).await;
            for role in [Role::Client, Role::Server] {
                let verified = verify(&chain.ders(), &realm.bundles(), role, now()).unwrap();
                assert_eq!(verified.id.as_str(), "spiffe://shop.example/orders");
                assert_eq!(verified.key, key.public().id());
                assert_eq!(verified.issuer, realm.issuer.key_id());
                assert_eq!(verified.anchor, realm.root.key_id());
                let path = [realm.issuer.key_id(), realm.root.key_id()];
                assert_eq!(*verified.authorities, path, "upwards, the root included");
                assert_eq!(verified.expires, now() + Duration::from_secs(3600));
                assert_eq!(verified.provenance().unwrap().revision.to_string(), "1.412");
                assert_eq!(verified.leaf.serial(), Some(serial(3)));
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_never_lives_longer_than_asked_nor_than_its_issuer() {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let key = PrivateKey::generate(KeyKind::Ed25519).unwrap();
    for micros in [0, 1, 500_000, 999_999] {
        let mut draft = realm.draft("/orders", &key);
        draft.issued = Timestamp::from_micros(now().micros() + micros);
        draft.lifetime = lifetime("10s");
        let (issued, lifetime) = (draft.issued, draft.lifetime.duration());
        let reviewed = draft.review(&realm.profile(), &realm.issuer).unwrap();
        let validity = crate::support::signed(reviewed, &realm.signer).await.validity();
        assert!(validity.not_after <= issued + lifetime, "{validity:?}");
        assert!(issued + lifetime < validity.not_after + Duration::from_secs(1));
        assert!(validity.not_before <= issued - Duration::from_secs(5));
    }
    let mut late = realm.draft("/orders", &key);
    late.issued = realm.issuer.certificate().validity().not_after - Duration::from_secs(60);
    let reviewed = late.review(&realm.profile(), &realm.issuer).unwrap();
    let end = realm.issuer.certificate().validity().not_after;
    assert_eq!(reviewed.summary().validity.not_after, end);
}

#[tokio::test]
async fn times_from_2050_on_are_written_in_their_own_form() {
    // Our reader refuses each form in the other's years.
    let signer = SoftwareSigner::from(PrivateKey::generate(KeyKind::Ed25519).unwrap());
    for (issued, form) in [("2049-12-31T23:59:00Z", 0x17), ("2050-01-01T00:01:00Z", 0x18)] {
        let domain = "shop.example".parse().unwrap();
        let (key, at) = (signer.public().clone(), issued.parse().unwrap());
        let draft = AuthorityDraft::root(domain, key, serial(1), at, lifetime("1d"));
        let root = crate::support::signed(draft.review().unwrap(), &signer).await;
        assert_eq!(root.validity().not_after, at + Duration::from_secs(86_400));
        assert_eq!(root.validity().not_before, at - Duration::from_secs(30));
        let starts = if form == 0x17 { b"491231235830Z".as_slice() } else { b"20500101000030Z" };
        let at = root.der().windows(starts.len()).position(|part| part == starts).unwrap();
        assert_eq!(root.der()[at - 2], form);
    }
}

#[tokio::test]
async fn a_long_trust_domain_fits_into_no_common_name_and_works_all_the_same() {
    let domain = format!("{}.example", "d".repeat(247));
    let realm = Realm::new(&domain, KeyKind::Ed25519).await;
    let key = PrivateKey::generate(KeyKind::Ed25519).unwrap();
    let chain = realm.chain("/orders", &key).await;
    let verified = verify(&chain.ders(), &realm.bundles(), Role::Client, now()).unwrap();
    assert_eq!(verified.id.trust_domain().as_str(), domain);
}

#[track_caller]
fn refused(realm: &Realm, code: Code, spoil: impl FnOnce(&mut Draft)) -> Refusal {
    let key = PrivateKey::generate(KeyKind::Ed25519).unwrap();
    let mut draft = realm.draft("/orders", &key);
    spoil(&mut draft);
    let refusal = draft.review(&realm.profile(), &realm.issuer).unwrap_err();
    assert_eq!(refusal.code(), code, "{refusal}");
    refusal
}

#[tokio::test]
async fn a_draft_that_breaks_a_rule_is_not_signed() {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let id = |text: &str| text.parse().unwrap();
    refused(&realm, Code::ForeignDomain, |draft| draft.id = id("spiffe://other.example/orders"));
    refused(&realm, Code::ForeignDomain, |draft| draft.id = id("spiffe://shop.example.org/orders"));
    refused(&realm, Code::NotUnderstood, |draft| draft.id = id("spiffe://shop.example"));
    refused(&realm, Code::ReservedPath, |draft| {
        draft.id = id("spiffe://shop.example/countersign/server/1");
    });
    refused(&realm, Code::ReservedPath, |draft| draft.id = id("spiffe://shop.example/countersign"));
    refused(&realm, Code::NotUnderstood, |draft| draft.reserved = Reserved::Allow);
    refused(&realm, Code::LongLifetime, |draft| draft.lifetime = lifetime("25h"));
    refused(&realm, Code::NotUnderstood, |draft| {
        draft.dns_names = (0..33).map(|n| format!("n{n}.shop.example").parse().unwrap()).collect();
    });
    let expired = refused(&realm, Code::Unavailable, |draft| {
        draft.issued = now() + Duration::from_secs(8 * 86_400);
    });
    assert!(expired.to_string().contains("and not at 2026-11-29T12:00:00Z"), "{expired}");
}

#[tokio::test]
async fn a_workload_never_gets_the_issuers_own_key_certified() {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let key = PrivateKey::generate(KeyKind::Ed25519).unwrap();
    let draft =
        AuthorityDraft::issuer(&realm.root, key.public().clone(), serial(9), now(), lifetime("7d"));
    let issuer = crate::support::signed(draft.review().unwrap(), &realm.root_signer).await;
    let issuer = countersign_pki::Issuer::from_certificate(issuer).unwrap();
    let refusal = realm.draft("/orders", &key).review(&realm.profile(), &issuer).unwrap_err();
    assert_eq!(refusal, Refusal::IssuerKey);
}

#[tokio::test]
async fn an_issuer_signs_no_further_authority() {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let key = PrivateKey::generate(KeyKind::Ed25519).unwrap();
    let draft = AuthorityDraft::issuer(
        &realm.issuer,
        key.public().clone(),
        serial(9),
        now(),
        lifetime("1d"),
    );
    assert!(matches!(draft.review(), Err(Refusal::Issuer(_))));
}

#[tokio::test]
async fn a_receipt_for_other_contents_signs_nothing() {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let key = PrivateKey::generate(KeyKind::Ed25519).unwrap();
    let review = |path| realm.draft(path, &key).review(&realm.profile(), &realm.issuer).unwrap();
    let receipt = Receipt::assertion(review("/payments").summary().tbs, 7);
    let fault = review("/orders").sign(receipt, &realm.signer).await.unwrap_err();
    assert!(matches!(fault, SignFault::WrongReceipt { .. }), "{fault}");
}

/// A token that answers with a signature over something else.
struct Faulty(PrivateKey);

#[async_trait]
impl Signer for Faulty {
    fn public(&self) -> &PublicKey {
        self.0.public()
    }

    async fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, SignFault> {
        self.0.sign(b"something else")
    }
}

#[tokio::test]
async fn a_faulty_signer_is_found_before_anybody_gets_the_certificate() {
    let faulty = Faulty(PrivateKey::generate(KeyKind::P256).unwrap());
    let domain = "shop.example".parse().unwrap();
    let key = faulty.public().clone();
    let draft = AuthorityDraft::root(domain, key, serial(1), now(), lifetime("365d"));
    let reviewed = draft.review().unwrap();
    let receipt = Receipt::assertion(reviewed.summary().tbs, 0);
    assert_eq!(reviewed.sign(receipt, &faulty).await.unwrap_err(), SignFault::BadSignature);
}

#[tokio::test]
async fn another_key_than_the_issuers_signs_nothing() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let reviewed = realm.draft("/orders", &key).review(&realm.profile(), &realm.issuer).unwrap();
    let receipt = Receipt::assertion(reviewed.summary().tbs, 0);
    let fault = reviewed.sign(receipt, &realm.root_signer).await.unwrap_err();
    assert!(matches!(fault, SignFault::WrongKey { .. }), "{fault}");
}

#[tokio::test]
async fn the_recorded_digest_is_the_digest_of_the_signed_bytes() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let reviewed = realm.draft("/orders", &key).review(&realm.profile(), &realm.issuer).unwrap();
    let recorded = reviewed.summary().tbs;
    let certificate = crate::support::signed(reviewed, &realm.signer).await;
    assert_eq!(certificate.tbs_digest(), recorded);
    assert_eq!(Certificate::parse(certificate.der()).unwrap().tbs_digest(), recorded);
}

#[tokio::test]
async fn nothing_in_a_request_reaches_the_certificate_but_its_key() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    // Asks for a CA certificate of another name.
    let folder = tempfile::tempdir().unwrap();
    let csr = openssl_csr(folder.path());
    let proven = open_csr(&csr).unwrap();
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let mut draft = realm.draft("/orders", &key);
    draft.key = proven.clone();
    let reviewed = draft.review(&realm.profile(), &realm.issuer).unwrap();
    let leaf = crate::support::signed(reviewed, &realm.signer).await;
    assert_eq!(leaf.spiffe_id().unwrap().as_str(), "spiffe://shop.example/orders");
    assert_eq!(leaf.public_key().unwrap(), *proven.public());
    assert!(!leaf.is_authority());
}

#[track_caller]
fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("openssl is installed, as CONTRIBUTING.md asks");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn openssl_csr(folder: &Path) -> Vec<u8> {
    openssl(
        folder,
        &[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "key.pem",
            "-subj",
            "/CN=evil",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "subjectAltName=URI:spiffe://shop.example/payments",
            "-outform",
            "DER",
            "-out",
            "csr.der",
        ],
    );
    std::fs::read(folder.join("csr.der")).unwrap()
}

#[tokio::test]
async fn openssl_accepts_our_chains_strictly() {
    for kind in KINDS {
        let authority = if kind.is_rsa() { KeyKind::P256 } else { kind };
        let realm = Realm::new("shop.example", authority).await;
        let key = PrivateKey::generate(kind).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("root.pem", &realm.bundle().to_pem());
        let mut draft = realm.draft("/orders", &key);
        draft.dns_names = vec!["orders.shop.example".parse().unwrap()];
        let reviewed = draft.review(&realm.profile(), &realm.issuer).unwrap();
        let leaf = crate::support::signed(reviewed, &realm.signer).await;
        write("leaf.pem", &countersign_pki::encode_certificate(leaf.der()));
        let issuer = realm.issuer.certificate().der();
        write("issuer.pem", &countersign_pki::encode_certificate(issuer));
        for purpose in ["sslserver", "sslclient"] {
            let at = crate::support::NOW.to_string();
            let text = openssl(
                folder.path(),
                &[
                    "verify",
                    "-x509_strict",
                    "-purpose",
                    purpose,
                    "-attime",
                    &at,
                    "-CAfile",
                    "root.pem",
                    "-untrusted",
                    "issuer.pem",
                    "leaf.pem",
                ],
            );
            assert!(text.contains("leaf.pem: OK"), "{text}");
        }
        let text = openssl(folder.path(), &["x509", "-in", "leaf.pem", "-noout", "-text"]);
        for line in [
            "URI:spiffe://shop.example/orders, DNS:orders.shop.example",
            "CA:FALSE",
            "Digital Signature",
            "TLS Web Server Authentication, TLS Web Client Authentication",
            "Not After : Nov 21 13:00:00 2026 GMT",
            "2.25.14296939048434451238334504876767025306",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
    }
}

#[test]
fn openssl_accepts_our_requests() {
    for kind in KINDS {
        let key = PrivateKey::generate(kind).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("csr.der"), make_csr(&key).unwrap()).unwrap();
        openssl(folder.path(), &["req", "-inform", "DER", "-in", "csr.der", "-verify", "-noout"]);
    }
}

#[test]
fn keys_made_by_openssl_are_read_and_ours_by_openssl() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, algorithm, option) in [
        (KeyKind::P256, "EC", Some("ec_paramgen_curve:P-256")),
        (KeyKind::P384, "EC", Some("ec_paramgen_curve:P-384")),
        (KeyKind::Ed25519, "ED25519", None),
        (KeyKind::Rsa2048, "RSA", Some("rsa_keygen_bits:2048")),
        (KeyKind::Rsa3072, "RSA", Some("rsa_keygen_bits:3072")),
    ] {
        let mut arguments = vec!["genpkey", "-algorithm", algorithm, "-out", "key.pem"];
        arguments.extend(option.into_iter().flat_map(|option| ["-pkeyopt", option]));
        openssl(folder.path(), &arguments);
        let text = std::fs::read_to_string(folder.path().join("key.pem")).unwrap();
        let key = PrivateKey::from_pem(&text).unwrap();
        assert_eq!(key.public().kind(), kind);
        let ours = countersign_pki::encode_private_key(&key);
        std::fs::write(folder.path().join("ours.pem"), ours.as_bytes()).unwrap();
        openssl(folder.path(), &["pkey", "-in", "ours.pem", "-check", "-noout"]);
    }
}
