//! Every vector in `testdata/verify` gets the verdict that its index says.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::{Code, Timestamp};
use countersign_pki::{
    BadBundle, Bundle, Bundles, Certificate, ChainMemory, Refused, Role, Verified,
    decode_certificates, verify, verify_recalling,
};
use serde::Deserialize;

/// One question to a verifier, and its answer.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) chain: Vec<Vec<u8>>,
    bundles: Bundles,
    pub(crate) role: Role,
    pub(crate) at: Timestamp,
    id: Option<String>,
    pub(crate) rule: Option<Code>,
    pub(crate) twin: Option<String>,
}

/// Cases that have files of their own.
#[derive(Deserialize)]
struct Index {
    cases: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    chain: String,
    bundles: HashMap<String, String>,
    role: String,
    at: Timestamp,
    id: Option<String>,
    rule: Option<Code>,
    twin: Option<String>,
}

/// The same faults at every place of one chain: all in one file, each certificate once.
#[derive(Deserialize)]
struct Places {
    at: Timestamp,
    domain: String,
    certificates: Vec<String>,
    cases: Vec<Placed>,
}

#[derive(Deserialize)]
struct Placed {
    name: String,
    chain: Vec<usize>,
    roots: Vec<usize>,
    role: Option<String>,
    id: Option<String>,
    rule: Option<Code>,
    twin: Option<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/verify")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(folder().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn role(word: &str) -> Role {
    match word {
        "server" => Role::Server,
        "client" => Role::Client,
        other => panic!("{other}"),
    }
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    let index: Index = serde_json::from_str(&read("index.json")).unwrap();
    let places: Places = serde_json::from_str(&read("places.json")).unwrap();
    let placed = places.cases.iter().map(|case| placed(&places, case));
    index.cases.into_iter().map(filed).chain(placed).collect()
}

fn filed(entry: Entry) -> Case {
    let bundle = |(domain, file): (&String, &String)| {
        let domain = domain.parse().unwrap();
        match read(file).as_str() {
            "" => Bundle::new(domain, Vec::new(), 0),
            text => Bundle::from_pem(domain, text).unwrap(),
        }
    };
    let bundles = Bundles::new(entry.bundles.iter().map(bundle).collect()).unwrap();
    let chain = decode_certificates(&read(&entry.chain)).unwrap();
    let Entry { name, at, id, rule, twin, .. } = entry;
    Case { name, chain, bundles, role: role(&entry.role), at, id, rule, twin }
}

fn placed(places: &Places, case: &Placed) -> Case {
    let der = |number: &usize| STANDARD.decode(&places.certificates[*number]).unwrap();
    let roots = case.roots.iter().map(|root| Certificate::parse(&der(root)).unwrap()).collect();
    Case {
        name: case.name.clone(),
        chain: case.chain.iter().map(der).collect(),
        bundles: Bundles::of(Bundle::new(places.domain.parse().unwrap(), roots, 0)),
        role: role(case.role.as_deref().unwrap_or("server")),
        at: places.at,
        id: case.id.clone(),
        rule: case.rule,
        twin: case.twin.clone(),
    }
}

impl Case {
    pub(crate) fn run(&self) -> Result<Verified, Refused> {
        let chain: Vec<&[u8]> = self.chain.iter().map(Vec::as_slice).collect();
        verify(&chain, &self.bundles, self.role, self.at)
    }

    /// The roots of every bundle.
    pub(crate) fn roots(&self) -> Vec<&[u8]> {
        self.bundles.iter().flat_map(|bundle| &bundle.authorities).map(Certificate::der).collect()
    }
}

#[test]
fn no_verdict_depends_on_what_was_verified_before() {
    let memory = ChainMemory::new();
    for round in 0..2 {
        for case in cases() {
            let chain: Vec<&[u8]> = case.chain.iter().map(Vec::as_slice).collect();
            let found = verify_recalling(&chain, &case.bundles, case.role, case.at, &memory);
            if let Ok((_, findings)) = &found {
                memory.remember(findings, case.at);
            }
            let found = found.map(|(verified, _)| verified);
            assert_eq!(found, case.run(), "{}, round {round}", case.name);
        }
    }
    assert!(100 < memory.counts().recalled);
}

#[test]
fn every_vector_gets_its_verdict_and_its_reason() {
    let mut wrong = Vec::new();
    for case in cases() {
        let found = match case.run() {
            Ok(verified) => format!("accepted {}", verified.id),
            Err(refused) => format!("refused {}: {refused}", refused.code),
        };
        let expected = match (&case.id, case.rule) {
            (Some(id), None) => format!("accepted {id}"),
            (None, Some(rule)) => format!("refused {rule}:"),
            _ => panic!("the index entry of {} is not one", case.name),
        };
        if found != expected && !(case.rule.is_some() && found.starts_with(&expected)) {
            wrong.push(format!("{}: {expected} expected, {found}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_broken_chain_has_a_right_twin_and_every_reason_has_a_vector() {
    let cases = cases();
    assert!(500 <= cases.len(), "{}", cases.len());
    let names: std::collections::BTreeSet<&str> = cases.iter().map(|case| &*case.name).collect();
    assert_eq!(names.len(), cases.len(), "each has a name of its own");
    let accepted = |name: &str| cases.iter().any(|case| case.name == name && case.id.is_some());
    for case in cases.iter().filter(|case| case.rule.is_some()) {
        assert!(case.twin.as_deref().is_some_and(accepted), "{} has no twin", case.name);
    }
    for code in [
        Code::Malformed,
        Code::TooManyCertificates,
        Code::NoIdentity,
        Code::SeveralIdentities,
        Code::BadIdentity,
        Code::LeafIsAuthority,
        Code::BadKeyUsage,
        Code::BadExtendedKeyUsage,
        Code::BadExtension,
        Code::UnknownTrustDomain,
        Code::UnknownIssuer,
        Code::IssuerNotAuthority,
        Code::PathLength,
        Code::NameConstraint,
        Code::BadSignature,
        Code::WeakAlgorithm,
        Code::Expired,
        Code::NotYetValid,
    ] {
        assert!(cases.iter().any(|case| case.rule == Some(code)), "no vector for {code}");
    }
}

#[test]
fn what_we_accept_webpki_accepts_too() {
    // webpki counts an authority that renewed its own key, which RFC 5280 (6.1.4 l) does not.
    let counts = |name: &str| name == "self_issued_authority_is_not_counted";
    // It compares no directory names, and refuses whatever is beside a constraint on them.
    let of_directories =
        |name: &str| name.starts_with("directory_constraint_") || name.starts_with("subject_");
    let differs = |case: &Case| counts(&case.name) || of_directories(&case.name);
    for case in cases().iter().filter(|case| case.id.is_some() && !differs(case)) {
        let verified = case.run().unwrap();
        let ders: Vec<rustls_pki_types::CertificateDer<'_>> =
            case.chain.iter().map(|der| der.as_slice().into()).collect();
        let bundle = case.bundles.get(verified.id.trust_domain()).unwrap();
        let roots: Vec<rustls_pki_types::CertificateDer<'_>> =
            bundle.authorities.iter().map(|root| root.der().into()).collect();
        let anchors: Vec<_> =
            roots.iter().map(|der| webpki::anchor_from_trusted_cert(der).unwrap()).collect();
        let usage = match case.role {
            Role::Server => webpki::KeyUsage::server_auth(),
            Role::Client => webpki::KeyUsage::client_auth(),
        };
        let secs = u64::try_from(case.at.secs()).unwrap();
        let now =
            rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(secs));
        let leaf = webpki::EndEntityCert::try_from(&ders[0]).unwrap();
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &ders[1..],
            now,
            usage,
            None,
            None,
        )
        .unwrap_or_else(|error| panic!("{}: {error}", case.name));
    }
}

#[test]
fn what_was_shown_beside_the_path_is_told_apart() {
    for case in cases().iter().filter(|case| case.id.is_some()) {
        let verified = case.run().unwrap();
        let shown = verified.shown.iter().map(|place| Certificate::parse(&case.chain[*place]));
        let shown: Vec<Certificate> = shown.map(Result::unwrap).collect();
        assert_eq!(shown[0], verified.leaf, "{}", case.name);
        let mut authorities = verified.authorities.iter();
        for authority in &shown[1..] {
            assert!(authorities.any(|key| *key == authority.key_id()), "{}", case.name);
        }
    }
    let cases = cases();
    let beside = cases.iter().find(|case| case.name == "expired_certificate_sent_along").unwrap();
    assert_eq!(beside.run().unwrap().shown.len() + 1, beside.chain.len());
}

#[test]
fn an_empty_bundle_file_is_not_taken_for_an_empty_bundle() {
    let refused = Bundle::from_pem("shop.example".parse().unwrap(), "");
    assert!(matches!(refused, Err(BadBundle::Pem(_))));
}
