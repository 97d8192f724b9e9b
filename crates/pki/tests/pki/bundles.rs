//! SPIFFE bundles in JSON (PROTOCOLS, 5.3 and 8), PEM and DER.

use std::time::Duration;

use crate::support::Realm;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::TrustDomain;
use countersign_pki::{Bundle, Chain, KeyKind};
use serde_json::{Value, json};

fn shop() -> TrustDomain {
    "shop.example".parse().unwrap()
}

fn parse(value: &Value) -> Result<Bundle, String> {
    Bundle::parse_json(shop(), value.to_string().as_bytes()).map_err(|bad| bad.to_string())
}

async fn entry() -> Value {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let text = realm.bundle().to_json();
    serde_json::from_str::<Value>(&text).unwrap()["keys"][0].clone()
}

#[tokio::test]
async fn a_bundle_reads_back_from_every_form() {
    for kind in [KeyKind::P256, KeyKind::Ed25519] {
        let realm = Realm::new("shop.example", kind).await;
        let other = Realm::new("shop.example", kind).await;
        let mut bundle = realm.bundle();
        bundle.authorities.extend(other.bundle().authorities);
        bundle.sequence = u64::MAX;
        bundle.refresh_hint = Duration::from_secs(60);
        let read = Bundle::parse_json(shop(), bundle.to_json().as_bytes()).unwrap();
        assert_eq!(read, bundle);
        let pem = Bundle::from_pem(shop(), &bundle.to_pem()).unwrap();
        assert_eq!(pem.authorities, bundle.authorities);
        let der = Bundle::from_concatenated(shop(), &bundle.authorities_der_concat()).unwrap();
        assert_eq!(der.authorities, bundle.authorities);
    }
}

#[tokio::test]
async fn an_entry_is_an_ordinary_key_with_one_certificate_and_no_kid() {
    let entry = entry().await;
    let mut names: Vec<&String> = entry.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(names, ["crv", "kty", "use", "x", "x5c", "y"]);
    assert_eq!((&entry["kty"], &entry["crv"]), (&"EC".into(), &"P-256".into()));
    assert_eq!(entry["use"], "x509-svid");
    assert_eq!(entry["x5c"].as_array().unwrap().len(), 1);
    assert_eq!(entry["x"].as_str().unwrap().len(), 43);
    assert_eq!(entry["y"].as_str().unwrap().len(), 43);
}

#[tokio::test]
async fn other_uses_and_kinds_of_keys_are_passed_over() {
    let good = entry().await;
    let with = |name: &str, value: Value| {
        let mut entry = good.clone();
        entry[name] = value;
        entry
    };
    for skipped in [
        with("use", "jwt-svid".into()),
        with("use", "X509-SVID".into()),
        with("use", "wit-svid".into()),
        with("use", "".into()),
        with("use", 1.into()),
        with("kty", "oct".into()),
        with("kty", "ec".into()),
        with("kty", Value::Null),
        with("x5c", json!([])),
        json!({"kty": "EC", "use": "x509-svid"}),
        json!({"kty": "EC"}),
        json!({}),
    ] {
        let bundle = parse(&json!({"keys": [skipped.clone(), good.clone()]})).unwrap();
        assert_eq!(bundle.authorities.len(), 1, "{skipped}");
    }
    let empty = parse(&json!({"keys": []})).unwrap();
    assert_eq!((empty.authorities.len(), empty.sequence), (0, 0));
    assert_eq!(empty.refresh_hint, Duration::from_secs(300));
}

/// Found by fuzzing: such an authority was read, and lost when the bundle was written.
#[tokio::test]
async fn an_authority_whose_certificate_holds_an_unknown_kind_of_key_is_passed_over_at_once() {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let mut entry =
        serde_json::from_str::<Value>(&realm.bundle().to_json()).unwrap()["keys"][0].clone();
    let mut der = STANDARD.decode(entry["x5c"][0].as_str().unwrap()).unwrap();
    // Ed25519's key becomes one of 1.3.101.113 (Ed448) by its identifier.
    let spki = der.windows(10).position(|part| part == b"\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00");
    der[spki.unwrap() + 6] = 0x71;
    entry["x5c"][0] = STANDARD.encode(&der).into();
    let read = parse(&json!({"keys": [entry]})).unwrap();
    assert_eq!(read.authorities.len(), 0);
    assert_eq!(parse(&serde_json::from_str(&read.to_json()).unwrap()), Ok(read));
}

#[tokio::test]
async fn only_the_first_certificate_of_an_entry_counts() {
    let first = entry().await;
    let mut both = first.clone();
    both["x5c"].as_array_mut().unwrap().push(entry().await["x5c"][0].clone());
    let read = parse(&json!({"keys": [both]})).unwrap();
    assert_eq!(read, parse(&json!({"keys": [first]})).unwrap());
}

#[tokio::test]
async fn a_bundle_that_breaks_the_form_is_refused_whole() {
    let good = entry().await;
    let with = |name: &str, value: Value| {
        let mut entry = good.clone();
        entry[name] = value;
        json!({"keys": [good.clone(), entry]})
    };
    let trailing = [STANDARD.decode(good["x5c"][0].as_str().unwrap()).unwrap(), vec![0]].concat();
    for bad in [
        json!([]),
        json!("keys"),
        json!({}),
        json!({"keys": {}}),
        json!({"keys": null}),
        json!({"keys": [1]}),
        with("kid", "1".into()),
        with("x5c", "text".into()),
        with("x5c", json!([1])),
        with("x5c", json!(["!"])),
        with("x5c", json!(["MAA="])),
        with("x5c", json!([STANDARD.encode(trailing)])),
        json!({"keys": [], "spiffe_sequence": -1}),
        json!({"keys": [], "spiffe_sequence": 1.5}),
        json!({"keys": [], "spiffe_sequence": "1"}),
        json!({"keys": [], "spiffe_refresh_hint": -300}),
    ] {
        let shown = bad.to_string();
        assert!(parse(&bad).is_err(), "{}", &shown[..shown.len().min(200)]);
    }
}

#[test]
fn members_that_stand_twice_are_refused_at_every_depth() {
    for text in [
        r#"{"keys": [], "keys": []}"#,
        r#"{"keys": [], "x": {"a": 1, "a": 2}}"#,
        r#"{"keys": [{"kty": "oct", "kty": "EC"}]}"#,
        r#"{"keys": [], "\u006beys": []}"#,
        r#"{"keys": []} {}"#,
        "",
        "{",
    ] {
        assert!(Bundle::parse_json(shop(), text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn documents_too_large_or_too_deep_are_refused() {
    let long = format!(r#"{{"keys": [], "x": "{}"}}"#, "a".repeat(256 * 1024));
    assert!(Bundle::parse_json(shop(), long.as_bytes()).is_err());
    let deep = format!(r#"{{"keys": [], "x": {}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(Bundle::parse_json(shop(), deep.as_bytes()).is_err());
}

#[test]
fn a_hint_of_years_is_cut_to_a_month() {
    let bundle = parse(&json!({"keys": [], "spiffe_refresh_hint": u64::MAX})).unwrap();
    assert_eq!(bundle.refresh_hint, Duration::from_secs(31 * 86_400));
}

#[tokio::test]
async fn a_pem_text_holds_certificates_and_nothing_else() {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let pem = realm.bundle().to_pem();
    let commented = format!("subject=O = Countersign\r\n{}\nthe end", pem.replace('\n', "\r\n"));
    assert!(Chain::from_pem(&commented).is_ok());
    let key = countersign_pki::PrivateKey::generate(KeyKind::Ed25519).unwrap();
    let key = countersign_pki::encode_private_key(&key);
    let with_key = Chain::from_pem(&format!("{pem}{}", *key)).unwrap_err().to_string();
    assert!(with_key.contains("begins a `PRIVATE KEY` where only `CERTIFICATE`"), "{with_key}");
    for bad in [
        "",
        "nothing",
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END X-----",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----",
        &pem.repeat(9),
    ] {
        assert!(Chain::from_pem(bad).is_err(), "{}", &bad[..bad.len().min(80)]);
    }
}
