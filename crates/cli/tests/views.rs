//! Revocation lists and OCSP as the rest of the world sees them: `openssl` and `curl` against a real server.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/domain.rs"]
mod domain;
mod support;
#[path = "views/world.rs"]
mod world;

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::domain::{Domain, run};
use crate::support::{manifest_of_me, text};
use crate::world::{World, curl, fetch};

#[track_caller]
fn holds(text: &str, part: &str) {
    assert!(text.contains(part), "`{part}` is not in: {text}");
}

#[test]
fn openssl_sees_a_revocation_at_once_in_list_delta_and_ocsp() {
    let world = World::make(1);
    // Before: good, by everything.
    world.list("before.crl");
    let signed = world.openssl(&[
        "crl",
        "-inform",
        "DER",
        "-in",
        "before.crl",
        "-noout",
        "-verify",
        "-CAfile",
        "issuer.pem",
    ]);
    holds(&signed, "verify OK");
    holds(&world.verify(&["before.crl"], &[]), "leaf.pem: OK");
    for more in [&[][..], &["-no_nonce"]] {
        let good = world.ocsp(&[more, &["-cert", "leaf.pem"]].concat());
        holds(&good, "Response verify OK");
        holds(&good, "leaf.pem: good");
    }
    // After: revoked, by everything, and at once.
    world.revoke_me();
    world.list("after.crl");
    holds(&world.verify(&["after.crl"], &[]), "certificate revoked");
    let delta = world.countersign(&["crl", "--delta", "--pem", "--out", &world.path("delta.pem")]);
    assert!(delta.status.success(), "{}", text(&delta.stderr));
    holds(&world.verify(&["before.crl"], &[]), "leaf.pem: OK");
    holds(&world.verify(&["before.crl", "delta.pem"], &["-use_deltas"]), "certificate revoked");
    for more in [&[][..], &["-no_nonce"]] {
        let revoked = world.ocsp(&[more, &["-cert", "leaf.pem"]].concat());
        holds(&revoked, "Response verify OK");
        holds(&revoked, "leaf.pem: revoked");
        holds(&revoked, "Reason: keyCompromise");
    }
    // The successor is good, though the answers' sets are older than it.
    let leaf = std::fs::read(world.folder.join("leaf.pem")).unwrap();
    let successor = support::until("a successor is served", || {
        let folder = world.domain.credentials();
        let chain = std::fs::read(folder.join("svid.pem")).unwrap();
        (!chain.starts_with(&leaf)).then_some(chain)
    });
    std::fs::write(world.folder.join("successor.pem"), successor).unwrap();
    holds(&world.ocsp(&["-cert", "successor.pem"]), "successor.pem: good");
}

#[test]
fn whole_chain_is_checked_against_the_lists_of_issuer_and_root() {
    let world = World::make(1);
    world.list("issuer.crl");
    let issuers = world.json(&["crl"])["issuers"].clone();
    let signs = world.json(&["crl"])["issuer"].clone();
    let root = issuers.as_array().unwrap().iter().find(|issuer| **issuer != signs).unwrap();
    fetch(
        &format!("{}/crl/{}.crl", world.url, root.as_str().unwrap()),
        &world.folder.join("root.crl"),
    );
    let both = world.verify(&["issuer.crl", "root.crl"], &["-crl_check_all"]);
    holds(&both, "leaf.pem: OK");
    holds(&world.verify(&["issuer.crl"], &["-crl_check_all"]), "unable to get certificate CRL");
    // A root's key signs no answers: its list tells of issuers.
    let asked = world.openssl(&[
        "ocsp",
        "-issuer",
        "bundle.pem",
        "-CAfile",
        "bundle.pem",
        "-cert",
        "issuer.pem",
        "-url",
        &format!("{}/ocsp", world.url),
    ]);
    holds(&asked, "unauthorized (6)");
}

#[test]
fn certificates_name_the_shard_that_tells_of_them() {
    let world = World::make(4);
    let url = world.named("CRL Distribution Points");
    let last = u16::from_str_radix(&world.serial()[31..], 16).unwrap() % 4;
    assert!(url.ends_with(&format!("/4-{last}.crl")), "{url}");
    world.revoke_me();
    world.list("mine.crl");
    holds(&world.verify(&["mine.crl"], &[]), "certificate revoked");
    let other = url.replace(&format!("4-{last}"), &format!("4-{}", (last + 1) % 4));
    fetch(&other, &world.folder.join("other.crl"));
    // Another part says nothing about this certificate, and openssl knows that it does not.
    holds(&world.verify(&["other.crl"], &[]), "different CRL scope");
    let shown = world.openssl(&["crl", "-inform", "DER", "-in", "other.crl", "-noout", "-text"]);
    holds(&shown, "No Revoked Certificates");
    // Whatever division an older certificate names is there, and nothing else.
    let issuer = world.json(&["crl"])["issuer"].as_str().unwrap().to_owned();
    fetch(&format!("{}/crl/{issuer}/256-255.crl", world.url), &world.folder.join("old.crl"));
    let counted = world.json(&["crl", "--shard", &format!("4-{last}")]);
    assert_eq!(counted["count"], 1, "{counted}");
}

#[test]
fn ocsp_knows_what_it_does_not_know() {
    let world = World::make(1);
    let responder = format!("{}/ocsp", world.url);
    let unknown = world.openssl(&[
        "ocsp",
        "-issuer",
        "issuer.pem",
        "-CAfile",
        "bundle.pem",
        "-url",
        &responder,
        "-serial",
        "0x41414141414141414141414141414141",
    ]);
    holds(&unknown, "Response verify OK");
    holds(&unknown, ": unknown");
    for digest in ["-sha256", "-sha1"] {
        let good = world.ocsp(&[digest, "-cert", "leaf.pem"]);
        holds(&good, "leaf.pem: good");
    }
    // A digest by which issuers are not found, and an authority of somebody else.
    holds(&world.ocsp(&["-sha512", "-cert", "leaf.pem"]), "unauthorized (6)");
    world.openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        "foreign.key",
        "-out",
        "foreign.pem",
        "-subj",
        "/CN=foreign",
        "-days",
        "1",
    ]);
    let foreign = world.openssl(&[
        "ocsp",
        "-issuer",
        "foreign.pem",
        "-CAfile",
        "bundle.pem",
        "-url",
        &responder,
        "-serial",
        "1",
    ]);
    holds(&foreign, "unauthorized (6)");
}

#[test]
fn questions_in_addresses_are_answered_and_may_be_kept() {
    let world = World::make(1);
    world.openssl(&[
        "ocsp",
        "-issuer",
        "issuer.pem",
        "-cert",
        "leaf.pem",
        "-no_nonce",
        "-reqout",
        "request.der",
    ]);
    let base64 = world.openssl(&["base64", "-A", "-in", "request.der"]);
    let escaped = base64.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    for written in [base64.trim_end_matches('='), base64.as_str(), escaped.as_str()] {
        let url = format!("{}/ocsp/{written}", world.url);
        fetch(&url, &world.folder.join("response.der"));
        let read = world.openssl(&[
            "ocsp",
            "-respin",
            "response.der",
            "-issuer",
            "issuer.pem",
            "-cert",
            "leaf.pem",
            "-CAfile",
            "bundle.pem",
        ]);
        holds(&read, "Response verify OK");
        holds(&read, "leaf.pem: good");
    }
    let url = format!("{}/ocsp/{escaped}", world.url);
    let head =
        text(&curl(&["--dump-header", "-", "--output", "/dev/null", &url]).stdout).to_lowercase();
    for part in [
        "200 ok",
        "content-type: application/ocsp-response",
        "max-age=60, public, no-transform, must-revalidate",
        "last-modified: ",
        "expires: ",
        "etag: \"",
    ] {
        holds(&head, part);
    }
    let tag = head.split_once("etag: ").unwrap().1.lines().next().unwrap().trim().to_owned();
    let again = curl(&[
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
        "--header",
        &format!("If-None-Match: {tag}"),
        &url,
    ]);
    assert_eq!(text(&again.stdout), "304");
    // A new revocation makes the kept answer another one.
    world.revoke_me();
    fetch(&url, &world.folder.join("response.der"));
    let read = world.openssl(&[
        "ocsp",
        "-respin",
        "response.der",
        "-issuer",
        "issuer.pem",
        "-cert",
        "leaf.pem",
        "-CAfile",
        "bundle.pem",
    ]);
    holds(&read, "leaf.pem: revoked");
}

#[test]
fn port_for_lists_serves_lists_and_answers_and_nothing_else() {
    let world = World::make(1);
    let code = |arguments: &[&str], path: &str| {
        let url = format!("{}{path}", world.url);
        let base = ["--output", "/dev/null", "--write-out", "%{http_code}"];
        text(&curl(&[&base, arguments, &[&url]].concat()).stdout)
    };
    let issuer = world.json(&["crl"])["issuer"].as_str().unwrap().to_owned();
    assert_eq!(code(&[], &format!("/crl/{issuer}.crl")), "200");
    assert_eq!(code(&["--head"], &format!("/crl/{issuer}/delta.crl")), "200");
    for path in [
        "/",
        "/metrics",
        "/v1/status",
        "/crl/",
        "/crl/x.crl",
        "/crl/../crl",
        &format!("/crl/{issuer}"),
        &format!("/crl/{issuer}/3-1.crl"),
        &format!("/crl/{issuer}/4-4.crl"),
        &format!("/crl/{}.crl", "0".repeat(64)),
    ] {
        assert_eq!(code(&[], path), "404", "{path}");
    }
    assert_eq!(code(&["--request", "POST"], &format!("/crl/{issuer}.crl")), "405");
    assert_eq!(code(&["--data-binary", &"x".repeat(9000)], "/ocsp"), "413");
    assert_eq!(code(&["--header", &format!("X: {}", "x".repeat(20_000))], "/ocsp/MA"), "431");
    // What is no request is answered so, in DER.
    let answer = curl(&["--data-binary", "x", &format!("{}/ocsp", world.url)]);
    assert_eq!(answer.stdout, [0x30, 0x03, 0x0a, 0x01, 0x01]);
    let answer = curl(&[&format!("{}/ocsp/%%%", world.url)]);
    assert_eq!(answer.stdout, [0x30, 0x03, 0x0a, 0x01, 0x01]);
    let status = world.domain.status();
    assert_eq!(format!("http://{}", status["server"]["views"].as_str().unwrap()), world.url);
}

#[test]
fn workload_that_asks_gets_the_lists_with_its_identity() {
    let manifests =
        |_ready: &Value| manifest_of_me("1h").replace("lifetime:", "crl: true, lifetime:");
    let domain = Domain::make_of(&[], &[], manifests);
    let folder = domain.credentials();
    let verify = |leaf: &Path| {
        let chain = std::fs::read_to_string(folder.join("svid.pem")).unwrap();
        let end = "-----END CERTIFICATE-----\n";
        std::fs::write(folder.join("issuer.pem"), chain.split_once(end).unwrap().1).unwrap();
        let output = Command::new("openssl")
            .args(["verify", "-crl_check_all", "-CAfile", "bundle.pem", "-untrusted", "issuer.pem"])
            .args(["-CRLfile", "crl.pem"])
            .arg(leaf)
            .current_dir(&folder)
            .output()
            .unwrap();
        text(&output.stdout) + &text(&output.stderr)
    };
    let old = domain.folder.path().join("old.pem");
    std::fs::copy(folder.join("svid.pem"), &old).unwrap();
    holds(&verify(&old), "old.pem: OK");
    let admin = domain.admin();
    let revoked = run(&[
        "revoke",
        "spiffe://prod.example/me",
        "--reason",
        "key-compromise",
        "--admin",
        &admin,
    ]);
    assert!(revoked.status.success(), "{}", text(&revoked.stderr));
    support::until("the lists tell it, and the successor is good by them", || {
        domain.credentials();
        let (old, new) = (verify(&old), verify(&folder.join("svid.pem")));
        (old.contains("certificate revoked") && new.contains("svid.pem: OK")).then_some(())
    });
}

#[test]
fn lists_come_from_the_operators_socket_when_the_port_is_closed() {
    let domain = Domain::make();
    let credentials = domain.credentials();
    let admin = domain.admin();
    let listed = |arguments: &[&str]| {
        let output = run(&[&["crl", "--admin", &admin], arguments].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        output.stdout
    };
    let told = text(&listed(&[]));
    holds(&told, "0 certificates, good until");
    let plain = Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(credentials.join("svid.pem"))
        .output()
        .unwrap();
    assert!(
        !text(&plain.stdout).contains("URI:http"),
        "nobody asked certificates to name anything"
    );
    let before: Value = serde_json::from_slice(&listed(&["--output", "json"])).unwrap();
    let revoked =
        run(&["revoke", "spiffe://prod.example/me", "--reason", "superseded", "--admin", &admin]);
    assert!(revoked.status.success(), "{}", text(&revoked.stderr));
    let after: Value = serde_json::from_slice(&listed(&["--output", "json"])).unwrap();
    assert_eq!(after["count"], 1, "{after}");
    let number = |list: &Value| list["number"].as_str().unwrap().to_owned();
    assert!((number(&before).len(), number(&before)) < (number(&after).len(), number(&after)));
    holds(&text(&listed(&["--pem"])), "-----BEGIN X509 CRL-----");
    let der = listed(&["--der"]);
    assert_eq!(der.first(), Some(&0x30));
    let unknown = run(&["crl", "--issuer", &"0".repeat(64), "--admin", &admin]);
    assert_eq!(unknown.status.code(), Some(1), "{}", text(&unknown.stderr));
    holds(&text(&unknown.stderr), "there is no revocation list of authority");
}

/// pkilint as it is, but for its quick decoder, which refuses identifiers of the form `2.25.UUID` (ITU-T X.667) like ours;
/// the plain one of the library that it is built on takes its place.
const PKILINT: &str = "
import importlib, sys
import pkilint.document
from pyasn1.codec.der.decoder import decode
pkilint.document.decode_der = decode
sys.exit(importlib.import_module('pkilint.bin.' + sys.argv.pop(1)).main())
";

/// What pkilint says, without what it says of every SPIFFE ID: it takes `spiffe://` for no URI.
fn lint(world: &World, program: &str, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new(support::python());
    command.args(["-c", PKILINT, program, "lint", "--severity", "WARNING", "--format", "CSV"]);
    let output = command.args(arguments).current_dir(&world.folder).output().unwrap();
    assert!(output.stderr.is_empty(), "{program} {arguments:?}: {}", text(&output.stderr));
    let told = text(&output.stdout);
    let mut lines = told.lines();
    assert!(lines.next().is_some_and(|head| head.starts_with("node_path,")), "{told}");
    let spiffe = |line: &&str| {
        line.contains("pkix.invalid_uri_syntax") && line.contains("spiffe://prod.example")
    };
    lines.filter(|line| !line.is_empty() && !spiffe(line)).map(str::to_owned).collect()
}

#[test]
fn pkilint_finds_nothing_in_certificates_lists_and_answers() {
    let world = World::make(4);
    let clean = |program: &str, arguments: &[&str]| {
        assert_eq!(
            lint(&world, program, arguments),
            Vec::<String>::new(),
            "{program} {arguments:?}"
        );
    };
    world.revoke_me();
    for (name, more) in [("whole.crl", &[][..]), ("delta.crl", &["--delta"])] {
        let written =
            world.countersign(&[&["crl", "--der", "--out", &world.path(name)], more].concat());
        assert!(written.status.success(), "{}", text(&written.stderr));
        clean("lint_crl", &["--type", "CRL", "--profile", "PKIX", name]);
    }
    world.list("part.crl");
    clean("lint_crl", &["--type", "CRL", "--profile", "PKIX", "part.crl"]);
    let listed = world.json(&["crl"]);
    let root = listed["issuers"].as_array().unwrap().iter().find(|key| **key != listed["issuer"]);
    let root = root.unwrap().as_str().unwrap();
    let path = world.path("root.crl");
    let written = world.countersign(&["crl", "--issuer", root, "--der", "--out", &path]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    clean("lint_crl", &["--type", "ARL", "--profile", "PKIX", "root.crl"]);
    for (nonce, name) in [("-no_nonce", "kept.der"), ("-nonce", "fresh.der")] {
        world.ocsp(&["-cert", "leaf.pem", nonce, "-respout", name]);
        clean("lint_ocsp_response", &[name]);
    }
    // The responder's certificate, out of an answer.
    let shown = world.openssl(&["ocsp", "-respin", "kept.der", "-noverify", "-resp_text"]);
    let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----\n");
    let (from, to) = (shown.find(begin).unwrap(), shown.find(end).unwrap() + end.len());
    std::fs::write(world.folder.join("responder.pem"), &shown[from..to]).unwrap();
    holds(&world.openssl(&["x509", "-in", "responder.pem", "-noout", "-text"]), "OCSP No Check");
    for certificate in ["leaf.pem", "issuer.pem", "bundle.pem", "responder.pem"] {
        clean("lint_pkix_cert", &[certificate]);
    }
    for (issuer, subject) in
        [("bundle.pem", "issuer.pem"), ("issuer.pem", "leaf.pem"), ("issuer.pem", "responder.pem")]
    {
        clean("lint_pkix_signer_signee_cert_chain", &[issuer, subject]);
    }
}

#[test]
fn pkilint_finds_what_is_wrong() {
    let world = World::make(1);
    // A list without a number, made by openssl.
    let config = "[ca]\ndefault_ca = d\n[d]\ndatabase = index.txt\ndefault_md = sha256\ndefault_crl_days = 1\n";
    std::fs::write(world.folder.join("ca.cnf"), config).unwrap();
    std::fs::write(world.folder.join("index.txt"), "").unwrap();
    world.openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        "k.pem",
        "-out",
        "c.pem",
        "-subj",
        "/CN=a",
        "-days",
        "1",
    ]);
    world.openssl(&[
        "ca", "-config", "ca.cnf", "-gencrl", "-keyfile", "k.pem", "-cert", "c.pem", "-out",
        "bad.crl",
    ]);
    assert!(
        !lint(&world, "lint_crl", &["--type", "CRL", "--profile", "PKIX", "bad.crl"]).is_empty()
    );
}
