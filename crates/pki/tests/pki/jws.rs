//! Documents that an authority signs: what is refused, and that outsiders accept what we sign.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_identity::Code;
use countersign_pki::{Certificate, Jws, KeyKind, PrivateKey, SoftwareSigner};
use serde_json::{Value, json};

use crate::support::Realm;

const TYPE: &str = "countersign-report+json";
const DOCUMENT: &[u8] = br#"{"goal":"recover"}"#;

async fn signed(realm: &Realm) -> Value {
    let root = realm.root.certificate();
    let jws = Jws::sign(DOCUMENT, TYPE, root, &[], &realm.root_signer).await.unwrap();
    serde_json::to_value(jws).unwrap()
}

fn verified(jws: &Value, trusted: &[Certificate]) -> Result<Vec<u8>, Code> {
    let parsed = Jws::parse(jws.to_string().as_bytes()).map_err(|refused| refused.code)?;
    parsed.verify(TYPE, trusted).map_err(|refused| refused.code)
}

fn with_header(jws: &Value, change: impl FnOnce(&mut Value)) -> Value {
    let header = URL_SAFE_NO_PAD.decode(jws["protected"].as_str().unwrap()).unwrap();
    let mut header: Value = serde_json::from_slice(&header).unwrap();
    change(&mut header);
    let mut jws = jws.clone();
    jws["protected"] = URL_SAFE_NO_PAD.encode(header.to_string()).into();
    jws
}

#[tokio::test]
async fn document_is_what_was_signed_with_any_kind_of_key() {
    for kind in KeyKind::ALL {
        let realm = Realm::new("shop.example", kind).await;
        let trusted = [realm.root.certificate().clone()];
        for _time in 0..20 {
            // Numbers of a signature differ in length from time to time.
            assert_eq!(verified(&signed(&realm).await, &trusted).unwrap(), DOCUMENT, "{kind}");
        }
    }
}

#[tokio::test]
async fn issuer_signs_for_a_root_that_vouches_for_it_and_a_leaf_for_nobody() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let root = [realm.root.certificate().clone()];
    let issuer = realm.issuer.certificate();
    for above in [&[][..], &root] {
        let jws = Jws::sign(DOCUMENT, TYPE, issuer, above, &realm.signer).await.unwrap();
        let jws = serde_json::to_value(jws).unwrap();
        assert_eq!(verified(&jws, &root).unwrap(), DOCUMENT);
        assert_eq!(verified(&jws, std::slice::from_ref(issuer)).unwrap(), DOCUMENT);
        let other = Realm::new("shop.example", KeyKind::P256).await;
        let other = other.root.certificate().clone();
        assert_eq!(verified(&jws, &[other]), Err(Code::UnknownIssuer));
    }
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let leaf = realm.leaf("/orders", &key).await;
    let signer = SoftwareSigner::from(key);
    let above = [issuer.clone()];
    let jws = Jws::sign(DOCUMENT, TYPE, &leaf, &above, &signer).await.unwrap();
    let jws = serde_json::to_value(jws).unwrap();
    assert_eq!(verified(&jws, &root), Err(Code::UnknownIssuer));
}

#[tokio::test]
async fn altered_document_foreign_authority_and_confused_algorithm_are_refused() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let other = Realm::new("shop.example", KeyKind::P256).await;
    let trusted = [realm.root.certificate().clone()];
    let jws = signed(&realm).await;

    let mut altered = jws.clone();
    altered["payload"] = URL_SAFE_NO_PAD.encode(br#"{"goal":"rotate"}"#).into();
    assert_eq!(verified(&altered, &trusted), Err(Code::BadSignature));
    assert_eq!(verified(&signed(&other).await, &trusted), Err(Code::UnknownIssuer));
    assert_eq!(verified(&jws, &[]), Err(Code::UnknownIssuer));
    for (name, value) in [("alg", json!("none")), ("alg", json!("HS256")), ("alg", json!("EdDSA"))]
    {
        let confused = with_header(&jws, |header| header[name] = value);
        assert_eq!(verified(&confused, &trusted), Err(Code::WeakAlgorithm));
    }
    for (name, value) in [
        ("typ", json!("JWT")),
        ("crit", json!(["b64"])),
        ("jku", json!("https://example.org")),
        ("x5c", json!([])),
    ] {
        let confused = with_header(&jws, |header| header[name] = value);
        assert_eq!(verified(&confused, &trusted), Err(Code::NotUnderstood), "{name}");
    }
}

#[tokio::test]
async fn torn_repeated_and_huge_documents_are_refused() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let trusted = [realm.root.certificate().clone()];
    let text = signed(&realm).await.to_string();
    for length in 0..text.len() {
        assert!(Jws::parse(&text.as_bytes()[..length]).is_err());
    }
    let repeated = text.replacen('{', r#"{"payload":"e30","#, 1);
    assert!(Jws::parse(repeated.as_bytes()).is_err());
    let huge = vec![b' '; 1024 * 1024 + 1];
    assert_eq!(Jws::parse(&huge).unwrap_err().code, Code::TooLarge);
    for signature in ["", "AA", "not base64!"] {
        let mut jws = signed(&realm).await;
        jws["signature"] = signature.into();
        assert!(verified(&jws, &trusted).is_err(), "{signature}");
    }
}
