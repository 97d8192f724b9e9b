//! Writes `testdata/verify`: chains that are right, and chains that are broken in exactly one way, with an
//! index that says what a verifier must answer. Run by `cargo xtask gen`; running it twice changes nothing.

// A tool for developers: whatever goes wrong is theirs to see at once.
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a developers' tool")]

mod accepted;
mod authority;
mod constraints;
mod encoding;
mod leaf;
mod places;
mod x509;

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use x509::{Cert, Keys};

pub(crate) const NOW: &str = "2026-11-21T12:00:00Z";
pub(crate) const SHOP: &str = "shop.example";

/// One question to a verifier, and its answer.
pub(crate) struct Case {
    name: String,
    /// The accepted case from which it differs in one thing.
    twin: Option<&'static str>,
    rule: Option<&'static str>,
    pub(crate) chain: Vec<Cert>,
    pub(crate) bundles: Vec<(&'static str, Vec<Cert>)>,
    pub(crate) role: &'static str,
    pub(crate) at: &'static str,
    pub(crate) id: String,
}

impl Case {
    pub(crate) fn leaf(&mut self) -> &mut Cert {
        &mut self.chain[0]
    }

    pub(crate) fn issuer(&mut self) -> &mut Cert {
        &mut self.chain[1]
    }

    pub(crate) fn root(&mut self) -> &mut Cert {
        &mut self.bundles[0].1[0]
    }

    /// Names the leaf otherwise.
    pub(crate) fn named(&mut self, id: &str) {
        self.leaf().names(&[x509::uri(id.as_bytes())]);
        self.id = id.to_owned();
    }
}

fn blank(subject: &str, issuer: &str, key: &'static str, signer: &'static str) -> Cert {
    Cert {
        version: vec![0xa0, 3, 2, 1, 2],
        serial: format!("{:0<16.16}", format!("A{key}")).into_bytes(),
        algorithm: "ed25519",
        inner_algorithm: None,
        issuer: x509::name(issuer),
        subject: x509::name(subject),
        not_before: x509::utc("261121113000Z"),
        not_after: x509::utc("261121123000Z"),
        key,
        extensions: Vec::new(),
        before_extensions: Vec::new(),
        signer,
        signature_bits: 0,
        spoil: |bytes| bytes,
    }
}

pub(crate) fn root_of(domain: &str, subject: &str, key: &'static str) -> Cert {
    let mut root = blank(subject, subject, key, key);
    root.not_before = x509::utc("260101000000Z");
    root.not_after = x509::utc("270101000000Z");
    root.set(x509::BASIC, true, &x509::authority(None));
    root.set(x509::USAGE, true, &x509::usage(x509::CERT_SIGN | x509::CRL_SIGN));
    let uri = x509::uri(format!("spiffe://{domain}").as_bytes());
    root.set(x509::SAN, false, &x509::seq(&[&uri]));
    root
}

pub(crate) fn issuer_of(domain: &str, subject: &str, key: &'static str, root: &str) -> Cert {
    let mut issuer = root_of(domain, subject, key);
    issuer.issuer = x509::name(root);
    issuer.signer = if root == "shop root" { "root" } else { "other root" };
    issuer.not_before = x509::utc("261120000000Z");
    issuer.not_after = x509::utc("261127000000Z");
    issuer.set(x509::BASIC, true, &x509::authority(Some(0)));
    issuer
}

pub(crate) fn leaf_of(id: &str) -> Cert {
    let mut leaf = blank("", "shop issuer", "leaf", "issuer");
    leaf.set(x509::BASIC, true, &x509::seq(&[]));
    leaf.set(x509::USAGE, true, &x509::usage(x509::DIGITAL_SIGNATURE));
    leaf.set(x509::PURPOSE, false, &x509::purposes(&[1, 2]));
    leaf.names(&[x509::uri(id.as_bytes())]);
    leaf
}

fn base(name: &str) -> Case {
    let id = format!("spiffe://{SHOP}/orders");
    Case {
        name: name.to_owned(),
        twin: None,
        rule: None,
        chain: vec![leaf_of(&id), issuer_of(SHOP, "shop issuer", "issuer", "shop root")],
        bundles: vec![(SHOP, vec![root_of(SHOP, "shop root", "root")])],
        role: "server",
        at: NOW,
        id,
    }
}

/// A chain that is right.
pub(crate) fn accepted(name: &str, change: impl FnOnce(&mut Case)) -> Case {
    let mut case = base(name);
    change(&mut case);
    case
}

/// The plain chain, broken in one way.
pub(crate) fn refused(name: &str, rule: &'static str, spoil: impl FnOnce(&mut Case)) -> Case {
    twin_of("leaf_issuer_root", name, rule, spoil)
}

/// Another right chain, broken in one way.
pub(crate) fn twin_of(
    twin: &'static str,
    name: &str,
    rule: &'static str,
    spoil: impl FnOnce(&mut Case),
) -> Case {
    let mut case = accepted(name, spoil);
    (case.twin, case.rule) = (Some(twin), Some(rule));
    case
}

fn pem(certificates: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for der in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in STANDARD.encode(der).as_bytes().chunks(64) {
            text.push_str(std::str::from_utf8(line).unwrap());
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

fn write(case: &Case, keys: &mut Keys, folder: &Path) -> Value {
    let chain: Vec<Vec<u8>> = case.chain.iter().map(|cert| cert.write(keys)).collect();
    let chain_file = format!("{}.pem", case.name);
    std::fs::write(folder.join(&chain_file), pem(&chain)).unwrap();
    let plain = pem(&[root_of(SHOP, "shop root", "root").write(keys)]);
    let mut bundles = Map::new();
    for (domain, roots) in &case.bundles {
        let roots: Vec<Vec<u8>> = roots.iter().map(|cert| cert.write(keys)).collect();
        let text = pem(&roots);
        let file = if text == plain {
            "roots/shop.pem".to_owned()
        } else {
            format!("roots/{}.{domain}.pem", case.name)
        };
        std::fs::write(folder.join(&file), text).unwrap();
        bundles.insert((*domain).to_owned(), file.into());
    }
    let verdict = match case.rule {
        None => json!({"verdict": "accepted", "id": case.id}),
        Some(rule) => json!({"verdict": "refused", "rule": rule, "twin": case.twin}),
    };
    let mut entry = json!({
        "name": case.name, "chain": chain_file, "bundles": bundles, "role": case.role, "at": case.at,
    });
    entry.as_object_mut().unwrap().extend(verdict.as_object().unwrap().clone());
    entry
}

/// Writes many cases of one shape as one file, each certificate once.
fn write_together(cases: &[Case], keys: &mut Keys, file: &Path) {
    let mut certificates: Vec<String> = Vec::new();
    let mut number = |der: Vec<u8>| {
        let text = STANDARD.encode(der);
        let known = certificates.iter().position(|known| *known == text);
        known.unwrap_or_else(|| {
            certificates.push(text);
            certificates.len() - 1
        })
    };
    let mut index = Vec::new();
    for case in cases {
        let chain: Vec<usize> = case.chain.iter().map(|cert| number(cert.write(keys))).collect();
        let roots: Vec<usize> =
            case.bundles[0].1.iter().map(|cert| number(cert.write(keys))).collect();
        let verdict = match case.rule {
            None => json!({ "id": case.id }),
            Some(rule) => json!({ "rule": rule, "twin": case.twin }),
        };
        let mut entry = json!({ "name": case.name, "chain": chain, "roots": roots });
        let more = entry.as_object_mut().unwrap();
        more.extend(verdict.as_object().unwrap().clone());
        if case.role == "client" {
            more.insert("role".to_owned(), "client".into());
        }
        index.push(entry);
    }
    // A line for each, so that a change shows what it changed.
    let lines = |values: Vec<Value>| {
        let lines: Vec<String> = values.iter().map(Value::to_string).collect();
        lines.join(",\n")
    };
    let certificates = lines(certificates.into_iter().map(Value::from).collect());
    let text = format!(
        "{{\"at\":\"{NOW}\",\"domain\":\"{SHOP}\",\n\"certificates\":[\n{certificates}\n],\n\"cases\":[\n{}\n]}}\n",
        lines(index)
    );
    std::fs::write(file, text).unwrap();
}

fn main() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let folder = testdata.join("verify");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    std::fs::create_dir_all(folder.join("roots")).unwrap();
    let mut keys = Keys::open(testdata.join("keys"));
    let cases = [
        accepted::cases(),
        leaf::cases(),
        authority::cases(),
        constraints::cases(),
        encoding::cases(),
    ]
    .into_iter()
    .flatten();
    let cases: Vec<Case> = cases.collect();
    let index: Vec<Value> = cases.iter().map(|case| write(case, &mut keys, &folder)).collect();
    let text = serde_json::to_string_pretty(&json!({ "cases": index })).unwrap() + "\n";
    std::fs::write(folder.join("index.json"), text).unwrap();
    let together = places::cases();
    write_together(&together, &mut keys, &folder.join("places.json"));
    println!("{} cases written to places.json", together.len());
    keys.save();
    println!("{} cases written to {}", cases.len(), folder.display());
}
