//! Every vector in `testdata/verify` gets the verdict that its index says.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use countersign_identity::{Code, Timestamp};
use countersign_pki::{
    BadBundle, Bundle, Bundles, ChainMemory, Refused, Role, Verified, decode_certificates, verify,
    verify_recalling,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Index {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    chain: String,
    bundles: HashMap<String, String>,
    role: String,
    at: Timestamp,
    verdict: String,
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

fn index() -> Vec<Case> {
    serde_json::from_str::<Index>(&read("index.json")).unwrap().cases
}

fn bundles(case: &Case) -> Bundles {
    let bundle = |(domain, file): (&String, &String)| {
        let domain = domain.parse().unwrap();
        match read(file).as_str() {
            "" => Bundle::new(domain, Vec::new(), 0),
            text => Bundle::from_pem(domain, text).unwrap(),
        }
    };
    Bundles::new(case.bundles.iter().map(bundle).collect()).unwrap()
}

fn role(case: &Case) -> Role {
    match case.role.as_str() {
        "server" => Role::Server,
        "client" => Role::Client,
        other => panic!("{other}"),
    }
}

fn run(case: &Case) -> Result<Verified, Refused> {
    let chain = decode_certificates(&read(&case.chain)).unwrap();
    let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
    verify(&chain, &bundles(case), role(case), case.at)
}

#[test]
fn no_verdict_depends_on_what_was_verified_before() {
    let memory = ChainMemory::new();
    for round in 0..2 {
        for case in index() {
            let chain = decode_certificates(&read(&case.chain)).unwrap();
            let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
            let bundles = bundles(&case);
            let found = verify_recalling(&chain, &bundles, role(&case), case.at, &memory);
            if let Ok((_, findings)) = &found {
                memory.remember(findings, case.at);
            }
            let found = found.map(|(verified, _)| verified);
            assert_eq!(found, run(&case), "{}, round {round}", case.name);
        }
    }
    assert!(100 < memory.counts().recalled);
}

#[test]
fn every_vector_gets_its_verdict_and_its_reason() {
    let mut wrong = Vec::new();
    for case in index() {
        let found = match run(&case) {
            Ok(verified) => format!("accepted {}", verified.id),
            Err(refused) => format!("refused {}: {refused}", refused.code),
        };
        let expected = match (case.verdict.as_str(), &case.id, case.rule) {
            ("accepted", Some(id), None) => format!("accepted {id}"),
            ("refused", None, Some(rule)) => format!("refused {rule}:"),
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
    let cases = index();
    let accepted =
        |name: &str| cases.iter().any(|case| case.name == name && case.verdict == "accepted");
    for case in cases.iter().filter(|case| case.verdict == "refused") {
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
    let differs = |case: &Case| case.name == "self_issued_authority_is_not_counted";
    for case in index().iter().filter(|case| case.verdict == "accepted" && !differs(case)) {
        let verified = run(case).unwrap();
        let chain = decode_certificates(&read(&case.chain)).unwrap();
        let ders: Vec<rustls_pki_types::CertificateDer<'_>> =
            chain.iter().map(|der| der.as_slice().into()).collect();
        let bundles = bundles(case);
        let bundle = bundles.get(verified.id.trust_domain()).unwrap();
        let roots: Vec<rustls_pki_types::CertificateDer<'_>> =
            bundle.authorities.iter().map(|root| root.der().into()).collect();
        let anchors: Vec<_> =
            roots.iter().map(|der| webpki::anchor_from_trusted_cert(der).unwrap()).collect();
        let usage = match case.role.as_str() {
            "server" => webpki::KeyUsage::server_auth(),
            _ => webpki::KeyUsage::client_auth(),
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
fn an_empty_bundle_file_is_not_taken_for_an_empty_bundle() {
    let refused = Bundle::from_pem("shop.example".parse().unwrap(), "");
    assert!(matches!(refused, Err(BadBundle::Pem(_))));
}
