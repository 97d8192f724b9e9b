//! Workloads: who they are, and which certificates they ask for.

use countersign_pki::KeyKind;
use serde_json::json;

use super::*;

#[test]
fn a_workload_without_selectors_is_refused() {
    refused("Workload", json!({}), &[("spec.selectors", "needs at least one selector")]);
    refused("Workload", json!({ "selectors": [] }), &[("spec.selectors", "at least one")]);
    refused(
        "Workload",
        json!({ "selectors": ["launch:a", "launch:a"] }),
        &[("spec.selectors[1]", "listed twice")],
    );
}

#[test]
fn a_workload_is_never_the_trust_domain_itself() {
    refused(
        "Workload",
        json!({ "selectors": ["launch:a"], "spiffeId": "spiffe://shop.example" }),
        &[("spec.spiffeId", "add a path")],
    );
    let long = format!("spiffe://shop.example/{}", "a".repeat(600));
    refused(
        "Workload",
        json!({ "selectors": ["launch:a"], "spiffeId": long }),
        &[("spec.spiffeId", "at most 512")],
    );
}

#[test]
fn lists_for_a_workload_are_off_unless_asked_for() {
    let spec = accepted("Workload", json!({ "selectors": ["launch:a"] }));
    assert!(matches!(spec.spec, Spec::Workload(WorkloadSpec { crl: false, .. })));
    refused(
        "Workload",
        json!({ "selectors": ["launch:a"], "crl": "yes" }),
        &[("spec.crl", "expected `true` or `false`")],
    );
}

#[test]
fn a_workload_may_ask_for_any_kind_of_key_and_an_authority_for_none_of_rsa() {
    for kind in KeyKind::ALL {
        let resource =
            accepted("Workload", json!({ "selectors": ["launch:web"], "keyType": kind }));
        assert!(matches!(&resource.spec, Spec::Workload(spec) if spec.key_type == kind));
    }
    for kind in ["ecdsa-p256", "ecdsa-p384", "ed25519"] {
        accepted("Authority", json!({ "keyType": kind }));
    }
    for kind in ["rsa-2048", "rsa-3072"] {
        let expected = [("spec.keyType", "write `ecdsa-p256`, `ecdsa-p384` or `ed25519`")];
        refused("Authority", json!({ "keyType": kind }), &expected);
    }
    for kind in ["rsa-1024", "rsa-4096", "rsa", "ecdsa-p521", "RSA-2048", "*"] {
        let spec = json!({ "selectors": ["launch:web"], "keyType": kind });
        refused("Workload", spec, &[("spec.keyType", "`rsa-2048` or `rsa-3072`")]);
    }
}
