//! A walk through all of it with the shop under load: a refused handshake found by its reason, a trace from `web` to the issue of its
//! certificate, a certificate proven to be in the log by files alone, and a picture of every page meanwhile.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::browser::Browser;
use crate::collector::Collector;
use crate::load::Load;
use crate::spans::{Span, by_trace};
use crate::support::{Up, binary, folder, root, shop, signal, text, until};
use crate::{LOOKS, PAGES, comes, enter, picture, see};

/// Requests a second while somebody walks. A program without optimisation answers them beside a browser.
const PER_SECOND: u32 = 30;

/// Where the walk leaves its pictures, for people to look at.
fn album() -> PathBuf {
    let folder = root().join("target/walk");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The shop, told to a collector.
fn traced(collector: &Collector) -> (Up, tempfile::TempDir) {
    let state = folder();
    let up = Up::start_in(
        &shop(),
        &state.path().join("data"),
        &[],
        &[("COUNTERSIGN_OTLP", &collector.url())],
    );
    (up, state)
}

/// Somebody at a door without a certificate. What the door showed of itself is the answer.
fn knock(up: &Up, service: &str) -> String {
    let answered = Command::new("openssl")
        .args(["s_client", "-ign_eof", "-showcerts", "-connect", &up.address(service)])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    text(&answered.stdout)
}

/// Somebody at a door whose certificate is good, and whom no policy lets in.
fn intrude(up: &Up, service: &str, place: &Path) {
    up.make_me("10m");
    let me = place.join("me");
    until("the certificate of `me` is served", || {
        let fetched = up.run(&["fetch", "x509", "--write", me.to_str().unwrap()]);
        fetched.status.success().then_some(())
    });
    let refused = Command::new("curl")
        .args([
            "-sS",
            "--insecure",
            "--max-time",
            "20",
            &format!("https://{}/", up.address(service)),
        ])
        .arg("--cert")
        .arg(me.join("svid.pem"))
        .arg("--key")
        .arg(me.join("svid-key.pem"))
        .output()
        .unwrap();
    assert!(!refused.status.success(), "{}", text(&refused.stdout));
}

/// Searches refused handshakes by reason, as an operator does, and shows who it was.
fn found_by_reason(up: &Up, reason: &str, at: &str) -> Value {
    let asked = ["handshakes", "--reason", reason, "--at", at];
    let found = until("the refusal is stored", || {
        let found = up.json(&asked);
        found["handshakes"].as_array().unwrap().first().cloned()
    });
    let shown = up.run(&asked);
    assert!(text(&shown.stdout).contains(&format!("refused: {reason}")), "{}", text(&shown.stdout));
    found
}

/// A trace that leads from `web` through `orders` into `payments`.
fn trace(collector: &Collector) -> Vec<Span> {
    until("a trace with all hops", || {
        by_trace(collector).into_values().find(|spans| {
            let of = |instance: &str| spans.iter().any(|span| span.instance == instance);
            spans.len() == 4 && ["web-proxy", "orders-proxy", "payments-proxy"].into_iter().all(of)
        })
    })
}

/// The span that another one points to.
fn pointed_to(collector: &Collector, from: &Span) -> Span {
    let (trace, id) = from.points_to().remove(0);
    until("what is pointed to is told", || {
        let spans = by_trace(collector).remove(&trace)?;
        spans.into_iter().find(|span| span.id == id)
    })
}

/// Follows the trace of a request to the issue of the certificate of its first hop, and to what that was part of.
fn follow(collector: &Collector) -> String {
    let trace = trace(collector);
    let out_of_web = trace.iter().find(|span| span.instance == "web-proxy").unwrap();
    let issue = pointed_to(collector, out_of_web);
    assert_eq!(
        (issue.service.as_str(), issue.name.as_str()),
        ("countersign-server", "issue SVID"),
        "{issue:?}"
    );
    assert_eq!(issue.says("countersign.subject"), "spiffe://shop.example/web");
    let signing = pointed_to(collector, &issue);
    let whole = by_trace(collector).remove(&signing.trace).unwrap();
    for step in ["renew SVIDs", "verify requests", "authorise", "review", "record", "sign"] {
        assert!(whole.iter().any(|span| span.name == step), "no `{step}`: {whole:#?}");
    }
    issue.says("countersign.certificate")
}

fn serial(certificate: &Path) -> String {
    let shown = Command::new("openssl")
        .args(["x509", "-noout", "-serial", "-in", certificate.to_str().unwrap()])
        .output()
        .unwrap();
    let shown = text(&shown.stdout).trim().to_lowercase();
    shown.strip_prefix("serial=").unwrap().to_owned()
}

/// Puts into a folder what somebody elsewhere needs: a certificate as a door shows it, its proof, and the log's public key.
fn pack(up: &Up, bag: &Path) {
    let leaf = knock(up, "orders");
    let begin = leaf.find("-----BEGIN CERTIFICATE-----").unwrap_or_else(|| panic!("{leaf}"));
    std::fs::write(bag.join("orders.pem"), &leaf[begin..]).unwrap();
    let proof = bag.join("orders.tlog-proof");
    let serial = serial(&bag.join("orders.pem"));
    until("the certificate's event is signed", || {
        let proven = up.run(&["log", "prove", &serial, "--out", proof.to_str().unwrap()]);
        proven.status.success().then_some(())
    });
    let key = up.run(&["log", "key"]);
    std::fs::write(bag.join("log.key"), text(&key.stdout).trim()).unwrap();
}

/// Somebody elsewhere: nothing of the trust domain is there but the files of the bag.
fn prove_elsewhere(bag: &Path) {
    let key = std::fs::read_to_string(bag.join("log.key")).unwrap();
    let verify = |certificate: &str| {
        let output = Command::new(binary())
            .args(["log", "verify", "--proof", "orders.tlog-proof", "--key", &key])
            .args(["--certificate", certificate, "--output", "json"])
            .current_dir(bag)
            .env_clear()
            .env("HOME", bag)
            .output()
            .unwrap();
        let said: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
        (output.status.code(), said)
    };
    let (status, said) = verify("orders.pem");
    assert_eq!((status, &said["proven"]), (Some(0), &Value::Bool(true)), "{said}");
    assert_eq!(said["subject"], "spiffe://shop.example/orders");
    let (status, said) = verify("me.pem");
    assert_eq!((status, &said["proven"]), (Some(1), &Value::Bool(false)), "{said}");
}

/// Takes a picture of a page in every look, and sees that it fits.
fn take(browser: &Browser, album: &Path, path: &str) {
    for (width, colours) in LOOKS {
        browser.looks(width, colours);
        browser.picture(&picture(album, path, width, colours));
        let over = browser.run(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth",
        );
        assert_eq!(over, 0, "{path} is wider than a window of {width}");
    }
}

fn visit(browser: &Browser, album: &Path, path: &str) {
    see(browser, path);
    take(browser, album, path);
}

/// The pages that show a thing at work: what is denied, a try, a proof, a bar, and a walk that waits.
fn visit_what_happens(up: &Up, browser: &Browser, album: &Path) {
    visit(browser, album, "/handshakes?outcome=policy-denied");
    let seen = browser.run("return document.querySelectorAll('#list tbody tr').length");
    assert_ne!(seen, 0, "the refusal is found by its reason");
    visit(browser, album, "/handshakes?by=pair");
    visit(browser, album, "/workloads/orders");
    visit(browser, album, "/map?from=orders&to=payments");
    visit(browser, album, "/policies?from=web&to=payments&method=POST&path=%2Frefunds");
    let events = up.json(&["log", "search", "--kind", "svid-issued", "--limit", "1"]);
    visit(browser, album, &format!("/log/{}", events["index"]));
    let verdict = "const text = document.querySelector('#verdict').textContent; return text.startsWith('Check') ? '' : text";
    assert!(comes(browser, "the page has checked the proof", verdict).starts_with("Proven"));
    take(browser, album, "/log/proven");
}

/// A root walks. A proxy that hangs holds it up, and is named; when it goes on, so does the walk, until it waits for who might
/// read the files that were fetched, and an operator says that nobody does.
fn rotate(up: &Up, browser: &Browser, album: &Path) {
    let status = up.json(&["status"]);
    let mut processes = status["nodes"][0]["processes"].as_array().unwrap().iter();
    let hanging = processes.find(|process| process["name"] == "web-proxy").unwrap();
    let hanging = i32::try_from(hanging["pid"].as_u64().unwrap()).unwrap();
    signal(hanging, "STOP");
    let begun = up.run(&["rotate", "root"]);
    assert!(begun.status.success(), "{}", text(&begun.stderr));
    see(browser, "/authorities");
    let waits = "const now = document.querySelector('#walk .now')?.textContent ?? ''; return now.includes('web-proxy') ? now : ''";
    comes(browser, "the page names who is missing", waits);
    take(browser, album, "/authorities?waits");
    signal(hanging, "CONT");
    let waits = "const now = document.querySelector('#walk .now')?.textContent ?? ''; return now.includes('cannot acknowledge') ? now : ''";
    comes(browser, "the page says for whom else it waits", waits);
    take(browser, album, "/authorities?unaware");
    assert!(up.run(&["authority", "activate", "--force", "nobody reads them"]).status.success());
    let over = "return document.querySelector('#walk .now') ? '' : document.querySelector('#walk')?.textContent ?? ''";
    comes(browser, "the page shows that the walk is over", over);
    take(browser, album, "/authorities?over");
}

#[test]
fn walk_through_all_of_it_with_the_shop_under_load() {
    let collector = Collector::start();
    let (up, state) = traced(&collector);
    let (home, bag, album) = (folder(), folder(), album());
    let load = Load::start(&up.address("web"), PER_SECOND);
    let kept = home.path().join("kept.checkpoint");
    std::fs::write(&kept, up.run(&["log", "checkpoint"]).stdout).unwrap();

    // 1. Two handshakes that were refused are found, each by its reason.
    knock(&up, "orders");
    let found = found_by_reason(&up, "no-certificate", "orders");
    assert!(found["peerAddress"].as_str().unwrap().starts_with("127.0.0.1"), "{found}");
    intrude(&up, "payments", state.path());
    let found = found_by_reason(&up, "policy-denied", "payments");
    assert_eq!(found["from"], "spiffe://shop.example/me");

    // 2. From a request of `web` to the issue of the certificate that it rode on.
    let of_web = follow(&collector);
    let shown = up.run(&["log", "show", &of_web]);
    assert!(text(&shown.stdout).contains("spiffe://shop.example/web"), "{}", text(&shown.stdout));

    // 3. Every page, while all of that goes on.
    let browser = enter(&up, home.path());
    for path in PAGES {
        visit(&browser, &album, path);
    }
    visit_what_happens(&up, &browser, &album);
    let outcome = load.stop();
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures.first());
    assert!(100 < outcome.answered, "{}", outcome.answered);
    println!("{} requests, 99 of 100 within {:?}", outcome.answered, outcome.quantile(990));

    // 4. A root that walks, with a gate that names who is missing, and a revocation that converged.
    rotate(&up, &browser, &album);
    let revoke = ["revoke", "spiffe://shop.example/me", "--reason", "key-compromise", "--wait"];
    let revoked = up.run(&revoke);
    assert!(revoked.status.success(), "{}", text(&revoked.stderr));
    see(&browser, "/revocations");
    let bar =
        "return document.querySelector('#bars progress.good')?.parentElement.textContent ?? ''";
    assert!(comes(&browser, "the bar is full", bar).contains("enforcing"));
    take(&browser, &album, "/revocations?bar");
    let foreign =
        browser.asked_for().into_iter().find(|url| !url.starts_with("https://localhost:"));
    assert_eq!(foreign, None, "each request goes to the console itself");
    drop(browser);

    // 5. A certificate proven elsewhere, when nobody is left who could be asked; the log as a whole before that.
    let verified = up.run(&["log", "verify", "--from", kept.to_str().unwrap()]);
    assert!(verified.status.success(), "{}", text(&verified.stdout));
    pack(&up, bag.path());
    std::fs::copy(state.path().join("me/svid.pem"), bag.path().join("me.pem")).unwrap();
    assert!(up.interrupt().success());
    drop(state);
    prove_elsewhere(bag.path());
}
