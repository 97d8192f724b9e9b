//! What is granted against what is used, and who signs for it: real processes, real requests.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{Up, folder, shop, text, until};

/// The shop, whose policy on payments is as wide as it may be.
fn wide_shop(place: &Path) -> PathBuf {
    let all = r#"@id("all") @unscoped("adoption") permit (principal, action, resource in Service::"payments");"#;
    shop_with(place, all, "")
}

/// The shop with another policy on payments, and more manifests.
fn shop_with(place: &Path, payments: &str, more: &str) -> PathBuf {
    let wide = place.join("wide");
    std::fs::create_dir_all(&wide).unwrap();
    for entry in std::fs::read_dir(shop()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            let text = match text.split_once("    @id(\"connect\")") {
                Some((before, _)) => format!("{before}    {payments}\n{more}"),
                None => text,
            };
            std::fs::write(wide.join(path.file_name().unwrap()), text).unwrap();
        }
    }
    wide
}

/// Exit status and what was said as JSON.
fn ask(up: &Up, arguments: &[&str]) -> (i32, Value, String) {
    let output = up.run(&[arguments, &["--output", "json"]].concat());
    let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), value, text(&output.stderr))
}

fn charges_are_counted(up: &Up) {
    until("charges are counted", || {
        let said = up.json(&["flows"]);
        let charge = |flow: &Value| flow["source"] == "orders" && flow["path"] == "/charges";
        said["flows"].as_array().unwrap().iter().any(charge).then_some(())
    });
}

#[test]
fn a_review_proposes_what_was_used_and_is_signed_once_it_was_applied() {
    let place = folder();
    let up = Up::start(&wide_shop(place.path()), &place.path().join("state"), &[]);
    assert_eq!(up.get("web", "/").0, 200);
    charges_are_counted(&up);

    assert_eq!(ask(&up, &["review", "start", "Service/payment"]).0, 1, "nothing is declared so");
    let review = up.json(&["review", "start", "Service/payments", "--due", "14d"]);
    let id = review["id"].as_str().unwrap().to_owned();
    assert_eq!(
        (&review["state"], &review["subject"]),
        (&"open".into(), &"Service/payments".into())
    );

    // It says how long it has looked, who could, who did, and who did not.
    let (exit, report, _) = ask(&up, &["review", "show", &id]);
    assert_eq!(exit, 0);
    let caution = report["observed"]["caution"].as_str().unwrap();
    assert!(caution.contains("minutes only, and 30d were asked for"), "{caution}");
    assert_eq!(report["observed"]["askedSeconds"], 30 * 86_400);
    let [permit] = report["permits"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!(
        (&permit["policy"], &permit["sources"]),
        (&json!("orders-asks-payments#all"), &json!([]))
    );
    let did: Vec<_> =
        permit["used"].as_array().unwrap().iter().map(|flow| &flow["source"]).collect();
    assert!(!did.is_empty() && did.iter().all(|source| **source == "orders"), "{permit}");
    let idle = permit["idle"].as_array().unwrap();
    assert!(idle.contains(&"web".into()) && idle.contains(&"payments/refund".into()), "{permit}");

    // Nobody signs that something was narrowed which was not.
    let sign = |verdict: &str, more: &[&str]| {
        let sign =
            ["review", "sign", &id, "--verdict", verdict, "--name", "Ada", "--reason", "yearly"];
        ask(&up, &[&sign[..], more].concat())
    };
    let (exit, _, said) = sign("narrowed", &[]);
    assert!(exit == 3 && said.contains("nothing that review"), "{exit}: {said}");

    // The patch is one for what `export` writes, and is what `--out` writes as a manifest.
    let (exported, out) = (place.path().join("exported"), place.path().join("out"));
    up.json(&["export", exported.to_str().unwrap()]);
    let patch = up.run(&["review", "show", &id, "--diff"]);
    let patch = text(&patch.stdout);
    assert!(patch.starts_with("--- a/policy-orders-asks-payments.yaml\n+++ b/policy-"), "{patch}");
    up.json(&["review", "show", &id, "--out", out.to_str().unwrap()]);
    let narrower = std::fs::read_to_string(out.join("policy-orders-asks-payments.yaml")).unwrap();
    let before =
        std::fs::read_to_string(exported.join("policy-orders-asks-payments.yaml")).unwrap();
    for (sign, of) in [('-', &before), ('+', &narrower)] {
        let changed = patch.lines().skip(2).filter_map(|line| line.strip_prefix(sign));
        for line in changed {
            assert!(of.lines().any(|other| other == line), "{line}\n{of}");
        }
    }
    let planned = up.json(&["plan", out.to_str().unwrap()]);
    assert_eq!(planned["newly_denied"], json!([]), "what was seen is let pass: {planned}");
    up.json(&["apply", out.to_str().unwrap(), "--wait"]);
    assert_eq!(up.get("web", "/").0, 200, "and goes on");
    let explained =
        |from: &str| up.run(&["explain", from, "payments", "POST", "/charges"]).status.code();
    assert_eq!((explained("orders"), explained("web")), (Some(0), Some(1)));

    let (exit, signed, said) = sign("narrowed", &["--again", "90d"]);
    assert_eq!(exit, 0, "{said}");
    let uid = format!("operator:uid:{}", nix::unistd::geteuid());
    assert_eq!((&signed["signed"]["name"], &signed["signed"]["by"]), (&json!("Ada"), &json!(uid)));
    assert_eq!(sign("keep", &[]).0, 4, "it is signed once");
    let all = up.json(&["review", "show"]);
    let next =
        all["reviews"].as_array().unwrap().iter().find(|one| one["state"] == "open").unwrap();
    assert_eq!(
        (&next["id"], &next["subject"]),
        (&signed["signed"]["next"], &json!("Service/payments"))
    );

    let kinds = up.json(&["events", "--limit", "1000"]);
    let events: Vec<_> = kinds["events"].as_array().unwrap().iter().collect();
    let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
    assert_eq!((of("review-started"), of("review-signed")), (2, 1));
}

#[test]
fn a_review_counts_each_member_of_a_role() {
    let place = folder();
    let role = r#"---
apiVersion: countersign.dev/v1alpha1
kind: Role
metadata: {name: buyers}
spec: {workloads: [web, orders]}
"#;
    let payments = r#"@id("all") permit (principal in Role::"buyers", action, resource in Service::"payments");"#;
    let up = Up::start(&shop_with(place.path(), payments, role), &place.path().join("state"), &[]);
    assert_eq!(up.get("web", "/").0, 200);
    charges_are_counted(&up);
    let review = up.json(&["review", "start", "Service/payments"]);
    let id = review["id"].as_str().unwrap();
    let (_, report, _) = ask(&up, &["review", "show", id]);
    let [permit] = report["permits"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!((&permit["role"], &permit["outcome"]), (&json!("buyers"), &json!("narrower")));
    assert_eq!(permit["sources"], json!(["orders", "web"]));
    let idle = permit["idle"].as_array().unwrap();
    assert!(idle.contains(&json!("web")) && !idle.contains(&json!("orders")), "{permit}");
    let after = report["proposals"][0]["after"]["spec"]["cedar"].as_str().unwrap();
    assert!(after.contains(r#"principal == Workload::"orders""#), "{after}");
    assert!(!after.contains("Role::") && !after.contains(r#"Workload::"web""#), "{after}");
    let shown = text(&up.run(&["review", "show", id]).stdout);
    assert!(shown.contains("role buyers (orders, web)"), "{shown}");
}

#[test]
fn a_review_that_nobody_signs_in_time_is_told_of() {
    let up = Up::shop();
    let review = up.json(&["review", "start", "--due", "1s"]);
    let id = review["id"].as_str().unwrap();
    let status = up.status_until("the review is overdue", |status| {
        status["warnings"].to_string().contains(&format!("review `{id}` of `all` was due at"))
    });
    assert!(status["warnings"].to_string().contains("and sign it"), "{status}");
    let (exit, listed, _) = ask(&up, &["review", "show"]);
    assert_eq!((exit, &listed["reviews"][0]["state"]), (1, &"overdue".into()));
    assert_eq!(ask(&up, &["review", "show", id]).0, 1);
    // What nobody used is told as such, with its removal.
    let (_, report, _) = ask(&up, &["review", "show", id]);
    let outcome = |policy: &str| {
        let permits = report["permits"].as_array().unwrap();
        permits.iter().find(|one| one["policy"] == policy).unwrap()["outcome"].clone()
    };
    assert_eq!(outcome("orders-asks-payments#see-charge"), "unused");
    up.json(&["review", "sign", id, "--verdict", "keep", "--name", "Ada", "--reason", "new"]);
    assert_eq!(ask(&up, &["review", "show"]).0, 0);
    let control = "a\u{1b}[2Jb";
    let bad =
        ask(&up, &["review", "sign", id, "--verdict", "keep", "--name", control, "--reason", "x"]);
    assert_eq!(bad.0, 2, "{}", bad.2);
}

#[test]
fn the_inventory_tells_what_nobody_declared_what_nobody_serves_and_what_is_plain() {
    let place = folder();
    let up = Up::shop();
    assert_eq!(up.get("web", "/").0, 200);
    let agreed = until("what is declared is what is seen", || {
        let (exit, said, _) = ask(&up, &["inventory"]);
        (exit == 0).then_some(said)
    });
    let services = agreed["services"].as_array().unwrap();
    let payments = services.iter().find(|one| one["service"] == "payments").unwrap();
    assert_eq!(
        (&payments["classification"], &payments["served"]),
        (&json!("confidential"), &json!(true))
    );
    assert_eq!(payments["operations"][0]["dataSets"], json!(["charges"]));

    // Somebody asks for what no operation stands for.
    let admin = up.ready["admin"].as_str().unwrap().trim_start_matches("unix://");
    let socket = Path::new(admin).parent().unwrap().join("orders.payments.sock");
    for path in ["/a", "/b"] {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        let request =
            format!("DELETE {path} HTTP/1.1\r\nhost: payments\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
    // One is declared that nobody serves, one hands out in plain text what it should not.
    let more = place.path().join("more.yaml");
    let manifest = |kind: &str, name: &str, spec: &str| {
        format!(
            "apiVersion: countersign.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
        )
    };
    let text = [
        manifest("Workload", "ledger", "{selectors: [\"unix:uid:1\"]}"),
        manifest("Service", "ledger", "{workload: ledger, addresses: [\"127.0.0.1:9\"]}"),
        manifest(
            "Service",
            "old",
            "{workload: ledger, mutualTls: none, dataSets: [{name: books, classification: restricted}]}",
        ),
        manifest("Service", "bare", "{workload: ledger, forward: \"127.0.0.1:9\"}"),
    ];
    std::fs::write(&more, text.concat()).unwrap();
    up.json(&["apply", more.to_str().unwrap()]);
    let found = until("what differs is told", || {
        let (exit, said, _) = ask(&up, &["inventory"]);
        let undeclared = said["findings"].to_string().contains("undeclared");
        undeclared.then(|| (exit, said["findings"].as_array().unwrap().clone()))
    });
    assert_eq!(found.0, 1);
    let kinds: Vec<_> = found.1.iter().map(|one| (&one["kind"], &one["service"])).collect();
    let of = |kind: &str, service: &str| (json!(kind), json!(service));
    let expected = [
        of("undeclared", "payments"),
        of("unserved", "ledger"),
        of("plain", "bare"),
        of("plain", "old"),
    ];
    assert_eq!(kinds, expected.iter().map(|(kind, service)| (kind, service)).collect::<Vec<_>>());
    assert_eq!(found.1[0]["sources"], json!(["orders"]), "one finding, whatever paths were tried");
    assert!(found.1[3]["what"].as_str().unwrap().contains("`books` (restricted)"));
}
