//! Who may ask whom for what, as an operator declares, asks and sees it: real processes, real requests.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{PATIENCE, Up, folder, manifest_of_me, shop, text, until};

/// A request as the program of `orders` sends it to `payments`: status and body.
fn as_orders(up: &Up, method: &str, path: &str) -> (u16, String) {
    let admin = up.ready["admin"].as_str().unwrap().trim_start_matches("unix://");
    let run = Path::new(admin).parent().unwrap();
    let mut stream = UnixStream::connect(run.join("orders.payments.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: payments\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer)
}

/// What `explain` says, and with which status it ends.
#[track_caller]
fn explain(up: &Up, arguments: &[&str]) -> (i32, Value) {
    let output = up.run(&[&["explain"], arguments, &["--output", "json"]].concat());
    let said = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr))
    });
    (output.status.code().unwrap(), said)
}

/// The shop's manifests in a folder of the test's own, with this put in place of that.
fn shop_with(place: &Path, from: &str, to: &str) -> PathBuf {
    let changed = place.join("changed");
    std::fs::create_dir_all(&changed).unwrap();
    for entry in std::fs::read_dir(shop()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let content = std::fs::read_to_string(&path).unwrap().replace(from, to);
            std::fs::write(changed.join(path.file_name().unwrap()), content).unwrap();
        }
    }
    changed
}

#[test]
fn requests_are_decided_by_operation_and_explain_says_the_same() {
    let up = Up::shop();
    assert_eq!(up.get("web", "/").0, 200, "orders may charge");
    assert_eq!(as_orders(&up, "GET", "/charges/7").0, 200);
    assert_eq!(as_orders(&up, "GET", "/%63harges/7").0, 200, "another spelling of the same path");
    for (method, path, status) in [
        ("POST", "/refunds", 403),
        ("DELETE", "/charges/7", 403),
        ("GET", "/charges", 403),
        ("GET", "/charges/7/", 403),
        ("BREW", "/charges", 403),
        ("GET", "/charges/../refunds", 400),
        ("GET", "//charges/7", 400),
        ("GET", "/charges/%2e%2e/refunds", 400),
        ("GET", "/charges%2f7", 400),
        ("GET", "/charges/7;v=1", 400),
    ] {
        let (found, answer) = as_orders(&up, method, path);
        assert_eq!(found, status, "{method} {path}: {answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
    }

    let (exit, said) = explain(&up, &["orders", "payments", "POST", "/charges"]);
    assert_eq!((exit, &said["decision"], &said["mode"]), (0, &"allow".into(), &"enforce".into()));
    assert_eq!(said["policies"], serde_json::json!(["orders-asks-payments#charge"]));
    assert!(said["revision"].is_string(), "{said}");
    let (exit, said) = explain(&up, &["web", "payments", "POST", "/refunds"]);
    assert_eq!((exit, &said["decision"]), (1, &"deny".into()), "{said}");
    assert_eq!(said["policies"], serde_json::json!([]));
    assert!(said["remedy"].as_str().unwrap().contains("payments/refund"), "{said}");
    assert_eq!(explain(&up, &["spiffe://shop.example/web", "orders"]).0, 0);

    let asked = up.run(&["explain", "web", "payment", "POST", "/refunds"]);
    assert_eq!(asked.status.code(), Some(2));
    assert!(text(&asked.stderr).contains("did you mean `payments`"), "{}", text(&asked.stderr));
}

#[test]
fn manifests_are_explained_without_a_server() {
    let shop = shop();
    let shop = shop.to_str().unwrap();
    let ask = |arguments: &[&str]| {
        let mut command = std::process::Command::new(support::binary());
        let output = command.args(["explain", "--offline", shop]).args(arguments).output().unwrap();
        (output.status.code().unwrap(), text(&output.stdout))
    };
    assert_eq!(ask(&["orders", "payments", "GET", "/charges/1"]).0, 0);
    let (exit, said) = ask(&["web", "payments", "GET", "/charges/1"]);
    assert_eq!(exit, 1);
    assert!(said.contains("no policy lets it connect"), "{said}");
}

#[test]
fn an_observed_policy_lets_pass_and_an_enforced_one_does_not() {
    let place = folder();
    let up = Up::shop();
    let observing = shop_with(
        place.path(),
        "  name: orders-asks-payments\nspec:\n",
        "  name: orders-asks-payments\nspec:\n  mode: observe\n",
    );
    up.json(&["apply", observing.to_str().unwrap()]);
    until("the policy only observes", || {
        (as_orders(&up, "POST", "/refunds").0 == 404).then_some(())
    });
    let (exit, said) = explain(&up, &["orders", "payments", "POST", "/refunds"]);
    assert_eq!((exit, &said["decision"], &said["mode"]), (1, &"deny".into(), &"observe".into()));
    up.json(&["apply", shop().to_str().unwrap()]);
    until("it is enforced again", || (as_orders(&up, "POST", "/refunds").0 == 403).then_some(()));
    assert_eq!(up.get("web", "/").0, 200);
}

/// The flows that were seen, once this holds of one of them.
#[track_caller]
fn flows_until(up: &Up, arguments: &[&str], what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    until(what, || {
        let said = up.json(&[&["flows"], arguments].concat());
        said["flows"].as_array().unwrap().iter().any(&holds).then_some(said)
    })
}

fn is(flow: &Value, source: &str, service: &str, path: &str) -> bool {
    flow["source"] == source && flow["service"] == service && flow["path"] == path
}

#[test]
fn flows_tell_who_asks_whom_for_what_and_which_grants_nobody_uses() {
    let up = Up::shop();
    for _ in 0..3 {
        assert_eq!(up.get("web", "/").0, 200);
    }
    assert_eq!(as_orders(&up, "POST", "/refunds").0, 403);
    for secret in ["/a", "/b", "/c?q=1"] {
        assert_eq!(as_orders(&up, "DELETE", secret).0, 403);
    }
    let charged = |flow: &Value| {
        is(flow, "orders", "payments", "/charges") && flow["count"].as_u64() >= Some(3)
    };
    let said = flows_until(&up, &[], "charges are counted", charged);
    let flow = said["flows"].as_array().unwrap().iter().find(|flow| charged(flow)).unwrap();
    assert_eq!((&flow["decision"], &flow["mode"]), (&"allow".into(), &"enforce".into()));
    assert_eq!(flow["policies"], serde_json::json!(["orders-asks-payments#charge"]));
    flows_until(&up, &["--denied"], "what nobody declared is counted", |flow| {
        flow["method"] == "DELETE" && flow["count"] == 3
    });
    let said = flows_until(&up, &["--denied"], "the refund is counted", |flow| {
        is(flow, "orders", "payments", "/refunds")
    });
    let denied = said["flows"].as_array().unwrap();
    assert!(denied.iter().all(|flow| flow["decision"] == "deny"), "{said}");
    let undeclared: Vec<_> = denied.iter().filter(|flow| flow["method"] == "DELETE").collect();
    assert_eq!(undeclared.len(), 1, "paths that nobody declared are one: {said}");
    assert!(undeclared[0]["path"].is_null() && undeclared[0]["count"] == 3, "{said}");
    // Each proxy tells of what it has seen in its own time.
    until("all grants are used but one", || {
        let unused = up.json(&["flows", "--unused"]);
        let unused: Vec<_> =
            unused["unused"].as_array().unwrap().iter().map(|one| &one["policy"]).collect();
        (unused == ["orders-asks-payments#see-charge"]).then_some(())
    });
    let picture = text(&up.run(&["flows", "--graph", "dot"]).stdout);
    assert!(picture.contains("\"orders\" -> \"payments\""), "{picture}");
    let picture = text(&up.run(&["flows", "--graph", "svg", "--since", "24h"]).stdout);
    assert!(picture.starts_with("<svg") && picture.contains("POST /charges"), "{picture}");
}

#[test]
fn a_plan_shows_whom_it_would_hit_and_is_carried_out_as_it_was_approved() {
    let place = folder();
    let up = Up::shop();
    let observing = shop_with(
        place.path(),
        "  name: orders-asks-payments\nspec:\n",
        "  name: orders-asks-payments\nspec:\n  mode: observe\n",
    );
    let plan = up.json(&["plan", observing.to_str().unwrap()]);
    assert_eq!(plan["changes"][0]["fields"][0]["after"], "observe", "{plan}");
    let applied = up.json(&["apply", observing.to_str().unwrap(), "--wait"]);
    assert_eq!(applied["live"], applied["enforcing"], "{applied}");
    assert_eq!(as_orders(&up, "POST", "/refunds").0, 404, "it is let pass");
    flows_until(&up, &["--denied"], "the refund is seen", |flow| {
        is(flow, "orders", "payments", "/refunds") && flow["mode"] == "observe"
    });

    let file = place.path().join("plan.json");
    let (shop, file) = (shop(), file.to_str().unwrap());
    let shop = shop.to_str().unwrap();
    let plan = up.json(&["plan", shop, "--out", file]);
    let denied = plan["newly_denied"].as_array().unwrap();
    assert_eq!(denied.len(), 1, "{plan}");
    assert!(is(&denied[0], "orders", "payments", "/refunds"), "{plan}");
    assert_eq!(plan["newly_allowed"], serde_json::json!([]));
    let said = text(&up.run(&["plan", shop]).stdout);
    assert!(said.contains("~ Policy orders-asks-payments    observe → enforce"), "{said}");
    assert!(said.contains("1 flow of the last 24 h would be denied"), "{said}");
    assert!(said.contains("orders → payments") && said.contains("POST /refunds"), "{said}");

    // Something moves: the plan is not what was approved any more.
    up.make_me("10m");
    let stale = up.run(&["apply", "--plan", file]);
    assert_eq!(stale.status.code(), Some(4), "{}", text(&stale.stderr));
    up.json(&["plan", shop, "--out", file]);
    let applied = up.json(&["apply", "--plan", file, "--wait"]);
    assert_eq!(applied["changes"].as_array().unwrap().len(), 1, "{applied}");
    assert_eq!(as_orders(&up, "POST", "/refunds").0, 403);
    let again = up.json(&["plan", shop]);
    assert_eq!(again["changes"], serde_json::json!([]));
    assert_eq!(again["kept"], serde_json::json!(["Workload/me"]));
}

/// The shop where whoever has the label `buyer` may see charges, and `orders` has it.
fn shop_of_buyers(place: &Path) -> PathBuf {
    let role = "apiVersion: countersign.dev/v1alpha1\nkind: Role\nmetadata: { name: buyers }\n\
                spec: { labels: [buyer], selectors: [launch:orders] }\n";
    let from = r#"principal == Workload::"orders", action == Action::"GET""#;
    let to = r#"principal in Role::"buyers", action == Action::"GET""#;
    let folder = shop_with(place, from, to);
    std::fs::write(folder.join("roles.yaml"), role).unwrap();
    let orders = folder.join("orders.yaml");
    let with = std::fs::read_to_string(&orders).unwrap();
    let selectors = "  selectors: [\"launch:orders\"]\n";
    let label = format!("{selectors}  labels: [buyer]\n");
    let with = with.replacen(selectors, &label, 1);
    assert!(with.contains(&label), "{with}");
    std::fs::write(orders, with).unwrap();
    folder
}

#[test]
fn a_role_permits_whom_labels_and_selectors_put_in_it_and_a_plan_shows_who_leaves_it() {
    let place = folder();
    let up = Up::shop();
    let buyers = shop_of_buyers(place.path());
    let shown = buyers.to_str().unwrap();
    up.json(&["apply", shown, "--wait"]);
    assert_eq!(as_orders(&up, "GET", "/charges/7").0, 200);
    let (exit, said) = explain(&up, &["orders", "payments", "GET", "/charges/7"]);
    assert_eq!(
        (exit, &said["policies"]),
        (0, &serde_json::json!(["orders-asks-payments#see-charge"]))
    );
    assert!(said["why"].as_str().unwrap().contains("`orders` is in role `buyers`"), "{said}");
    assert_eq!(explain(&up, &["web", "payments", "GET", "/charges/7"]).0, 1);
    flows_until(&up, &[], "the charge is seen", |flow| {
        is(flow, "orders", "payments", "/charges/{id}") && flow["decision"] == "allow"
    });
    assert_eq!(up.run(&["drift", shown]).status.code(), Some(0), "manifests are what is declared");
    let exported = place.path().join("exported");
    up.run(&["export", exported.to_str().unwrap()]);
    assert_eq!(up.run(&["drift", exported.to_str().unwrap()]).status.code(), Some(0));

    // The label goes, and with it the right, though neither role nor policy was touched.
    let orders = buyers.join("orders.yaml");
    let without = std::fs::read_to_string(&orders).unwrap().replace("  labels: [buyer]\n", "");
    std::fs::write(&orders, without).unwrap();
    let plan = up.json(&["plan", shown]);
    let changes = plan["changes"].as_array().unwrap();
    let role = changes.iter().find(|change| change["kind"] == "Role").unwrap();
    assert_eq!(role["fields"][0]["field"], "members[0]", "{plan}");
    assert_eq!(role["fields"][0]["before"], "orders", "{plan}");
    let denied = plan["newly_denied"].as_array().unwrap();
    assert!(is(&denied[0], "orders", "payments", "/charges/{id}"), "{plan}");
    up.json(&["apply", shown, "--wait"]);
    assert_eq!(as_orders(&up, "GET", "/charges/7").0, 403);
    assert_ne!(as_orders(&up, "POST", "/charges").0, 403, "what it may by itself it still may");
}

/// What OpenSSL says of a handshake with a door, with this SVID.
fn handshake(up: &Up, service: &str, svid: &Path, offer: &[&str]) -> String {
    let at = |name: &str| svid.join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (at("svid.pem"), at("svid-key.pem"));
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["s_client", "-brief", "-connect", &up.address(service), "-cert", &certificate]);
    openssl.args(["-cert_chain", &certificate, "-key", &key]).args(offer);
    let output = openssl.stdin(std::process::Stdio::null()).output().unwrap();
    text(&[output.stdout, output.stderr].concat())
}

#[test]
fn a_door_speaks_tls_1_2_where_a_profile_is_marked_weak_and_as_long_as_it_is() {
    let place = folder();
    let up = Up::shop();
    up.make_me("10m");
    let svid = place.path().join("svid");
    until("an SVID is there", || {
        let fetched = up.run(&["fetch", "x509", "--write", svid.to_str().unwrap()]);
        fetched.status.success().then_some(())
    });
    let changed = shop_with(
        place.path(),
        "  workload: payments\n",
        "  workload: payments\n  tlsProfile: press\n",
    );
    let shown = changed.to_str().unwrap();
    let permit = "apiVersion: countersign.dev/v1alpha1\nkind: Policy\nmetadata: { name: me-payments }\nspec:\n  cedar: |\n    \
                  permit (principal == Workload::\"me\", action == Action::\"connect\", resource == Service::\"payments\");\n";
    std::fs::write(changed.join("permit.yaml"), permit).unwrap();
    std::fs::write(changed.join("me.yaml"), manifest_of_me("10m")).unwrap();
    let profile = |spec: &str| {
        let head =
            "apiVersion: countersign.dev/v1alpha1\nkind: TlsProfile\nmetadata: { name: press }\n";
        std::fs::write(changed.join("press.yaml"), format!("{head}spec: {{ {spec} }}\n")).unwrap();
    };
    let old = ["-tls1_2"];
    profile(r#"versions: ["1.3", "1.2"]"#);
    let refused = up.run(&["apply", shown]);
    assert_eq!(refused.status.code(), Some(2));
    let said = text(&refused.stderr);
    assert!(said.contains("is weak, since TLS 1.2") && said.contains("`weak: true`"), "{said}");
    assert!(!handshake(&up, "payments", &svid, &old).contains("Protocol version"));

    profile(r#"versions: ["1.3", "1.2"], weak: true, reason: "a press that nobody can update""#);
    up.json(&["apply", shown, "--wait"]);
    let said = handshake(&up, "payments", &svid, &old);
    assert!(said.contains("Protocol version: TLSv1.2"), "{said}");
    assert_eq!(up.get("web", "/").0, 200, "our own speak as before");
    assert!(!handshake(&up, "orders", &svid, &old).contains("Protocol version: TLSv1.2"));
    assert_eq!(up.run(&["drift", shown]).status.code(), Some(0), "manifests are what is declared");
    let exported = place.path().join("exported");
    up.run(&["export", exported.to_str().unwrap()]);
    assert_eq!(up.run(&["drift", exported.to_str().unwrap()]).status.code(), Some(0));

    // The profile alone changes, and with it the door.
    profile("");
    let plan = up.json(&["plan", shown]);
    let changes = plan["changes"].as_array().unwrap();
    assert!(changes.iter().any(|change| change["kind"] == "TlsProfile"), "{plan}");
    let service = changes.iter().find(|change| change["kind"] == "Service").unwrap();
    assert!(service["fields"].to_string().contains("tlsProfile.spec.versions"), "{plan}");
    up.json(&["apply", shown, "--wait"]);
    assert!(!handshake(&up, "payments", &svid, &old).contains("Protocol version"));
    assert_eq!(up.get("web", "/").0, 200);
    let removed = up.run(&["resource", "remove", "TlsProfile", "press"]);
    assert!(!removed.status.success(), "a service names it");
    let said = text(&removed.stderr);
    assert!(said.contains("no manifest declares TLS profile `press`"), "{said}");
}

#[test]
fn plans_are_made_without_a_server() {
    let place = folder();
    let changed = shop_with(place.path(), "path: /refunds", "path: /returns");
    let mut command = std::process::Command::new(support::binary());
    let command = command.args(["plan", "--offline", "--output", "json", "--against"]);
    let output = command.arg(shop()).arg(&changed).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["base"], Value::Null);
    let [change] = plan["changes"].as_array().unwrap().as_slice() else { panic!("{plan}") };
    assert_eq!((&change["kind"], &change["name"]), (&"Service".into(), &"payments".into()));
    assert_eq!(change["fields"][0]["field"], "operations[2].path", "{plan}");
}

#[test]
fn the_past_is_told_gone_back_to_and_compared_with_a_folder() {
    let place = folder();
    let up = Up::shop();
    let shop = shop();
    let shop = shop.to_str().unwrap();
    let begun = up.json(&["history"]);
    let first = begun["entries"][0]["revision"].as_str().unwrap().to_owned();
    assert_eq!(up.run(&["drift", shop]).status.code(), Some(0));

    let changed = shop_with(place.path(), "path: /refunds", "path: /returns");
    let applied = up.json(&["apply", changed.to_str().unwrap()]);
    let revision = applied["revision"].as_str().unwrap().to_owned();
    let told = up.json(&["history", "--limit", "1"]);
    let entry = &told["entries"][0];
    assert_eq!(
        (&entry["revision"], &entry["put"]),
        (&revision.as_str().into(), &serde_json::json!(["Service/payments"]))
    );
    let uid = format!("operator:uid:{}", nix::unistd::geteuid());
    assert_eq!(entry["actor"], uid.as_str());
    let shown = up.json(&["show", &revision]);
    assert_eq!(shown["changes"][0]["fields"][0]["before"], "/refunds", "{shown}");
    let number = revision.split('.').nth(1).unwrap();
    let differs = up.json(&["diff", &first, number]);
    assert_eq!(differs["changes"], shown["changes"]);

    let drifted = up.run(&["drift", shop, "--output", "json"]);
    assert_eq!(drifted.status.code(), Some(1));
    let drifted: Value = serde_json::from_slice(&drifted.stdout).unwrap();
    assert_eq!(drifted["drift"][0]["last"]["actor"], uid.as_str(), "{drifted}");
    assert_eq!(drifted["drift"][0]["last"]["revision"], revision.as_str());

    // Going back lifts nothing that was taken out of service meanwhile.
    let orders = "spiffe://shop.example/orders";
    up.json(&["revoke", orders, "--reason", "key-compromise"]);
    up.json(&["suspend", orders]);
    let before = up.json(&["revocations"]);
    let back = up.json(&["rollback", &first, "--wait"]);
    assert_eq!(back["changes"][0]["name"], "payments", "{back}");
    assert!(back["revision"].as_str().unwrap() != first, "it is a revision of its own");
    let after = up.json(&["revocations"]);
    assert_eq!(after["rules"], before["rules"]);
    assert_eq!(after["suspensions"], before["suspensions"]);
    assert_eq!(up.run(&["drift", shop]).status.code(), Some(0));
    assert_eq!(up.run(&["show", "9999"]).status.code(), Some(1));

    let exported = place.path().join("exported");
    up.json(&["export", exported.to_str().unwrap()]);
    let plan = up.json(&["plan", exported.to_str().unwrap(), "--prune"]);
    assert_eq!((&plan["changes"], &plan["kept"]), (&serde_json::json!([]), &Value::Null), "{plan}");
    assert_eq!(up.run(&["export", exported.to_str().unwrap()]).status.code(), Some(4), "not empty");
}

#[test]
fn what_goes_with_a_removal_is_said_before_it_is_done() {
    let place = folder();
    let up = Up::shop();
    assert_eq!(up.get("web", "/").0, 200);
    flows_until(&up, &[], "charges are counted", |flow| is(flow, "orders", "payments", "/charges"));
    let few = shop_with(place.path(), "no such text", "");
    std::fs::remove_file(few.join("payments.yaml")).unwrap();
    std::fs::remove_file(few.join("policies.yaml")).unwrap();
    let orders = few.join("orders.yaml");
    let without = std::fs::read_to_string(&orders)
        .unwrap()
        .replace("  upstreams:\n    - service: payments\n", "");
    std::fs::write(&orders, without).unwrap();
    let said = text(&up.run(&["plan", few.to_str().unwrap(), "--prune"]).stdout);
    assert!(said.contains("`spiffe://shop.example/payments` is declared no more"), "{said}");
    assert!(said.contains("service `payments` closes its door"), "{said}");
    assert!(said.contains("would be denied"), "{said}");
    let kept = up.json(&["plan", few.to_str().unwrap()]);
    assert!(kept["kept"].as_array().unwrap().contains(&"Workload/payments".into()), "{kept}");
}

#[test]
fn time_source_and_attestation_narrow_what_real_requests_may_and_are_assumed_in_words() {
    let place = folder();
    let up = Up::shop();
    assert_eq!(as_orders(&up, "GET", "/charges/7").0, 200);
    let see = r#"resource == Operation::"payments/see-charge");"#;
    let narrowed = |net: &str, kind: &str, end: &str| {
        let when = format!(
            r#"resource == Operation::"payments/see-charge") when {{ context has source && context.source.isInRange(ip("{net}")) && context has attestation && context.attestation.contains("{kind}") && context.time < datetime("{end}") }};"#
        );
        shop_with(place.path(), see, &when)
    };
    let apply = |manifests: &Path| {
        up.json(&["apply", manifests.to_str().unwrap(), "--wait"]);
    };
    // What is so: a proxy on this machine, whose process the launcher has vouched for.
    apply(&narrowed("127.0.0.0/8", "launch", "2999-01-01"));
    assert_eq!(as_orders(&up, "GET", "/charges/7").0, 200);
    for (net, kind, end) in [
        ("10.0.0.0/8", "launch", "2999-01-01"),
        ("127.0.0.0/8", "container:id", "2999-01-01"),
        ("127.0.0.0/8", "launch", "2020-01-01"),
    ] {
        apply(&narrowed(net, kind, end));
        let (status, answer) = as_orders(&up, "GET", "/charges/7");
        assert_eq!(status, 403, "{net} {kind} {end}: {answer}");
        assert_eq!(up.get("web", "/").0, 200, "nothing else is denied");
    }

    let question = ["orders", "payments", "GET", "/charges/7", "--address", "127.0.0.1"];
    let (exit, said) = explain(&up, &[&question[..], &["--at", "2019-06-01T00:00:00Z"]].concat());
    assert_eq!((exit, &said["decision"]), (0, &"allow".into()), "{said}");
    let assumed = said["assumed"].to_string();
    for words in ["2019-06-01T00:00:00Z", "comes from 127.0.0.1", "says `launch`"] {
        assert!(assumed.contains(words), "{assumed}");
    }
    assert_eq!(explain(&up, &question).0, 1, "today it is over");
    apply(&shop());
    flows_until(&up, &[], "a flow of it", |flow| is(flow, "orders", "payments", "/charges/{id}"));
    let changed = narrowed("127.0.0.0/8", "launch", "2999-01-01");
    let plan = up.json(&["plan", changed.to_str().unwrap()]);
    let denied = plan["newly_denied"].as_array().unwrap();
    assert!(denied.iter().any(|flow| flow["path"] == "/charges/{id}"), "{plan}");
    assert!(plan["assumed"].to_string().contains("from where any of them came"), "{plan}");

    let anybody = r#"@unscoped("our own network") permit (principal, action, resource in Service::"payments") when { context has source && context.source.isInRange(ip("127.0.0.0/8")) };"#;
    let principal = r#"permit (principal == Workload::"web", action == Action::"connect", resource == Service::"orders");"#;
    let addressed = shop_with(place.path(), principal, anybody);
    let refused = up.run(&["apply", addressed.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        text(&refused.stderr).contains("an address is no identity"),
        "{}",
        text(&refused.stderr)
    );
}

#[test]
fn data_sets_and_classifications_decide_real_requests_and_topics_are_explained() {
    let place = folder();
    let up = Up::shop();
    let see = r#"resource == Operation::"payments/see-charge");"#;
    let apply = |manifests: &Path| {
        up.json(&["apply", manifests.to_str().unwrap(), "--wait"]);
    };
    apply(&shop_with(place.path(), see, r#"resource in Dataset::"charges");"#));
    assert_eq!(as_orders(&up, "GET", "/charges/7").0, 200);
    assert_eq!(as_orders(&up, "GET", "/charges").0, 403, "no operation, so it touches nothing");
    let public =
        r#"resource in Dataset::"charges") when { resource.classifications == ["public"] };"#;
    apply(&shop_with(place.path(), see, public));
    let (status, answer) = as_orders(&up, "GET", "/charges/7");
    assert_eq!(status, 403, "they are confidential: {answer}");
    assert_eq!(up.get("web", "/").0, 200, "charging is permitted by its own name");
    let misspelt = shop_with(place.path(), see, r#"resource in Dataset::"chargez");"#);
    let refused = up.run(&["apply", misspelt.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("did you mean `charges`?"), "{}", text(&refused.stderr));

    let with_topic = shop_with(
        place.path(),
        "  operations:\n    - name: charge\n",
        "  topics: [{name: charges-made, dataSets: [charges]}]\n  operations:\n    - name: charge\n",
    );
    let policies = with_topic.join("policies.yaml");
    let publish = r#"

    @id("tell")
    permit (principal == Workload::"orders", action == Action::"publish", resource == Topic::"payments/charges-made");
"#;
    let all = std::fs::read_to_string(&policies).unwrap();
    std::fs::write(&policies, format!("{}{publish}", all.trim_end())).unwrap();
    apply(&with_topic);
    let (exit, said) = explain(&up, &["orders", "payments", "publish", "charges-made"]);
    assert_eq!((exit, &said["policies"]), (0, &serde_json::json!(["orders-asks-payments#tell"])));
    assert_eq!(explain(&up, &["orders", "payments", "subscribe", "charges-made"]).0, 1);
    let unknown = up.run(&["explain", "orders", "payments", "publish", "charges-mad"]);
    assert_eq!(unknown.status.code(), Some(2));
    let said = text(&unknown.stderr);
    assert!(said.contains("did you mean `charges-made`?"), "{said}");
}
