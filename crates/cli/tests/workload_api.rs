//! Independent clients of the Workload API, unmodified: PyPI `spiffe` (gRPC C-core).

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::process::{Command, Output, Stdio};

use support::{Up, python, text, until};

const FETCH: &str = r#"
import sys
from spiffe import WorkloadApiClient
with WorkloadApiClient(sys.argv[1]) as client:
    svid = client.fetch_x509_svid()
    bundles = client.fetch_x509_bundles()
    domain = svid.spiffe_id.trust_domain
    print(svid.spiffe_id, format(svid.leaf.serial_number, "032x"), len(svid.cert_chain),
          len(bundles.get_bundle_for_trust_domain(domain).x509_authorities))
"#;

const WATCH: &str = r#"
import sys, threading
from spiffe import X509Source
source = X509Source(socket_path=sys.argv[1], timeout_in_seconds=20)
serials, done = set(), threading.Event()
def changed():
    serials.add(source.svid.leaf.serial_number)
    if 4 <= len(serials):
        done.set()
source.subscribe_for_updates(changed)
changed()
ok = done.wait(60)
print(len(serials))
source.close()
sys.exit(0 if ok else 1)
"#;

fn python_runs(up: &Up, script: &str) -> Output {
    Command::new(python())
        .args(["-c", script])
        .arg(up.ready["agent"].as_str().unwrap())
        .stdin(Stdio::null())
        .output()
        .expect("the Python environment is made by `cargo xtask test`")
}

#[test]
fn an_unmodified_python_client_is_refused_then_gets_its_identity_then_loses_it() {
    let up = Up::shop();
    let refused = python_runs(&up, FETCH);
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("PERMISSION_DENIED"), "{}", text(&refused.stderr));

    up.make_me("5m");
    let said = until("the identity is served", || {
        let output = python_runs(&up, FETCH);
        output.status.success().then(|| text(&output.stdout))
    });
    assert!(said.starts_with("spiffe://shop.example/me "), "{said}");

    up.json(&["resource", "remove", "Workload", "me"]);
    until("the identity is withdrawn", || {
        (!python_runs(&up, FETCH).status.success()).then_some(())
    });
}

#[test]
fn an_unmodified_python_client_follows_three_rotations_on_one_stream() {
    let up = Up::shop();
    up.make_me("10s");
    until("the identity is served", || python_runs(&up, FETCH).status.success().then_some(()));
    let output = python_runs(&up, WATCH);
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}
