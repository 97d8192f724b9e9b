use std::time::Duration;

use countersign_identity::{Attested, Lifetime, NodeTag, Revision, SeededEntropy, Serial};
use countersign_pki::{
    AuthorityDraft, Draft, Issuer, KeyKind, PrivateKey, Profile, ProvenKey, Provenance, Receipt,
    Reserved, Reviewed, Signer, SoftwareSigner, encode_certificate,
};

use super::*;

/// The moment at which everything here was issued.
const ISSUED: Timestamp = Timestamp::from_secs(1_795_262_400);

fn signed(reviewed: Reviewed, signer: &dyn Signer) -> Certificate {
    let receipt = Receipt::assertion(reviewed.summary().tbs, 0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(reviewed.sign(receipt, signer)).unwrap()
}

fn serial(seed: u64) -> Serial {
    Serial::draw(ISSUED, &SeededEntropy::new(seed)).unwrap()
}

/// A root and a leaf signed by it, in PEM.
fn made() -> (String, String) {
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let domain: TrustDomain = "shop.example".parse().unwrap();
    let day = Lifetime::from_secs(86_400).unwrap();
    let public = key.public().clone();
    let signer = SoftwareSigner::from(key);
    let root = AuthorityDraft::root(domain.clone(), public, serial(1), ISSUED, day);
    let root = signed(root.review().unwrap(), &signer);
    let leaf_key = PrivateKey::generate(KeyKind::P256).unwrap();
    let draft = Draft {
        id: "spiffe://shop.example/web".parse().unwrap(),
        key: ProvenKey::of(&leaf_key),
        serial: serial(2),
        issued: ISSUED,
        lifetime: Lifetime::from_secs(3600).unwrap(),
        dns_names: Vec::new(),
        provenance: Provenance {
            revision: Revision::default(),
            node: NodeTag::from_bytes([1; 8]),
            attested: Attested::default(),
        },
        reserved: Reserved::Refuse,
    };
    let issuer = Issuer::from_certificate(root.clone()).unwrap();
    let profile = Profile { domain, lifetime_max: day, pointers: None };
    let leaf = signed(draft.review(&profile, &issuer).unwrap(), &signer);
    (encode_certificate(root.der()), encode_certificate(leaf.der()))
}

fn answer(case: &Value) -> (Value, Exit) {
    judge(&parse_case(case.to_string().as_bytes()).unwrap())
}

#[test]
fn a_good_chain_is_accepted_and_the_used_trust_domain_is_said() {
    let (root, leaf) = made();
    for role in ["client", "server"] {
        let case =
            json!({ "chain": [leaf], "roots": [root], "role": role, "at": ISSUED.to_string() });
        let (answer, exit) = answer(&case);
        assert_eq!((exit, &answer["verdict"]), (Exit::Done, &json!("accepted")), "{answer}");
        assert_eq!(answer["id"], "spiffe://shop.example/web");
        assert_eq!(answer["trust_domain"], "shop.example");
        assert!(answer["note"].as_str().unwrap().contains("the leaf's own"), "{answer}");
    }
}

#[test]
fn a_refusal_names_the_rule() {
    let (root, leaf) = made();
    let (other, _) = made();
    let at = ISSUED.to_string();
    let late = (ISSUED + Duration::from_secs(3601)).to_string();
    for (case, rule) in [
        (json!({ "chain": [leaf], "roots": [root], "role": "client", "at": late }), "expired"),
        (json!({ "chain": [leaf], "roots": [other], "role": "client", "at": at }), "bad-signature"),
        (json!({ "chain": [leaf], "roots": [], "role": "client", "at": at }), "unknown-issuer"),
        (json!({ "chain": [], "roots": [root], "role": "client", "at": at }), "no-certificate"),
        (json!({ "chain": [root], "roots": [root], "role": "client", "at": at }), "bad-identity"),
        (
            json!({ "chain": [leaf], "roots": [root], "role": "client", "at": at, "trust_domain": "b.example" }),
            "unknown-trust-domain",
        ),
    ] {
        let (answer, exit) = answer(&case);
        assert_eq!((exit, &answer["verdict"]), (Exit::No, &json!("refused")), "{answer}");
        assert_eq!(answer["rule"], rule, "{answer}");
        assert!(answer["why"].as_str().is_some_and(|why| !why.is_empty()), "{answer}");
    }
}

#[test]
fn a_case_that_is_not_understood_is_neither_accepted_nor_refused() {
    for case in [
        "",
        "[]",
        "{\"chain\":[]}",
        "{\"chain\":[\"x\"],\"roots\":[],\"role\":\"client\"}",
        "{\"chain\":[],\"roots\":[],\"role\":\"peer\"}",
        "{\"chain\":[],\"roots\":[],\"role\":\"client\",\"at\":\"yesterday\"}",
        "{\"chain\":[],\"roots\":[],\"role\":\"client\",\"trust_domain\":\"A\"}",
        "{\"chain\":[],\"roots\":[],\"role\":\"client\",\"insecure\":true}",
        "{\"chain\":[],\"roots\":[],\"role\":\"client\",\"role\":\"server\"}",
    ] {
        let failure = parse_case(case.as_bytes()).unwrap_err();
        assert_eq!(failure.exit, Exit::NotUnderstood, "{case}");
    }
}

#[test]
fn files_may_be_pem_or_der() {
    let (root, leaf) = made();
    let pem = format!("{leaf}{root}");
    let ders = certificates(pem.as_bytes()).unwrap();
    assert_eq!(ders.len(), 2);
    assert_eq!(certificates(&ders.concat()).unwrap(), ders);
    assert!(certificates(b"hello").is_err());
    assert!(certificates(b"").is_err());
    assert!(certificates(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]).is_err());
}

#[test]
fn what_follows_a_certificate_is_not_dropped() {
    let (_, leaf) = made();
    let mut bytes = certificates(leaf.as_bytes()).unwrap().concat();
    bytes.extend_from_slice(b"trailing");
    let ders = certificates(&bytes).unwrap();
    let refused = check_leaf(&ders[0]).unwrap_err();
    assert_eq!(refused.code, Code::Malformed);
}
