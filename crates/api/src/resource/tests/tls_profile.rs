//! TLS profiles: what is weak is marked, and what a service names is declared.

use serde_json::json;

use super::*;

#[test]
fn a_service_names_one_of_three_tls_profiles_or_one_of_a_manifest() {
    for profile in ["modern", "compatible", "pq-only", "legacy"] {
        accepted("Service", json!({ "workload": "web", "tlsProfile": profile }));
    }
    for (profile, why) in [
        (json!("Legacy"), "expected `modern`, `compatible`, `pq-only` or the name of a TlsProfile"),
        (json!(["modern"]), "found a list"),
        // What a record holds, no manifest can say: it would be a profile that nobody declared.
        (
            json!({ "name": "modern", "spec": { "versions": ["1.2"], "weak": true } }),
            "found fields",
        ),
    ] {
        let spec = json!({ "workload": "web", "tlsProfile": profile });
        refused("Service", spec, &[("spec.tlsProfile", why)]);
    }
}

#[test]
fn what_is_weak_in_a_tls_profile_is_marked_with_a_reason_and_nothing_else_is() {
    let why = "a press that nobody can update";
    accepted("TlsProfile", json!({ "groups": ["X25519MLKEM768", "P-384"] }));
    accepted("TlsProfile", json!({ "trustDomains": ["shop.example"], "roots": ["ab".repeat(32)] }));
    accepted("TlsProfile", json!({ "versions": ["1.3", "1.2"], "weak": true, "reason": why }));
    accepted("TlsProfile", json!({ "groups": ["P-384"], "weak": true, "reason": why }));
    for (spec, path, said) in [
        (json!({ "versions": ["1.3", "1.2"] }), "spec.versions", "is weak, since TLS 1.2"),
        (json!({ "groups": ["X25519"] }), "spec.groups", "write `weak: true` and a `reason`"),
        (json!({ "versions": ["1.2"], "weak": true }), "spec.reason", "needs a sentence"),
        (json!({ "weak": true, "reason": why }), "spec.weak", "marks nothing that is weak"),
        (json!({ "versions": ["1.1"] }), "spec.versions[0]", "expected one of `1.3`, `1.2`"),
        (json!({ "versions": [] }), "spec.versions", "is empty"),
        (json!({ "groups": [] }), "spec.groups", "is empty"),
        (json!({ "trustDomains": [] }), "spec.trustDomains", "is empty"),
        (json!({ "roots": [] }), "spec.roots", "is empty"),
        (json!({ "suites": ["TLS_RSA_WITH_RC4_128_SHA"] }), "spec.suites[0]", "cipher suite"),
        (json!({ "clientCertificate": "optional" }), "spec.clientCertificate", "is nobody"),
        (json!({ "clientCertificate": "none" }), "spec.clientCertificate", "write `required`"),
        (
            json!({ "versions": ["1.2"], "groups": ["X25519MLKEM768"], "weak": true, "reason": why }),
            "spec.groups",
            "nothing that TLS 1.2 could use",
        ),
    ] {
        refused("TlsProfile", spec, &[(path, said)]);
    }
}

#[test]
fn a_service_names_a_tls_profile_that_is_declared_and_its_record_holds_it() {
    let workload = resource("a", "Workload", json!({ "selectors": ["launch:a"] }));
    let service =
        |profile: &str| resource("a", "Service", json!({ "workload": "a", "tlsProfile": profile }));
    let profile = |name: &str| resource(name, "TlsProfile", json!({}));
    together(&[workload.clone(), service("legacy"), profile("legacy")], &[]);
    together(
        &[workload.clone(), service("legacies"), profile("legacy")],
        &[(
            "Service/a",
            "spec.tlsProfile",
            "or name one of `modern`, `compatible`, `pq-only`, `legacy`",
        )],
    );
    together(
        &[workload, profile("modern")],
        &[("TlsProfile/modern", "metadata.name", "choose another name")],
    );
    let Spec::Service(mut spec) = service("legacy").spec else { unreachable!("it is a service") };
    assert_eq!(spec.tls_profile.terms(), None, "what is not known is not the usual");
    let Spec::TlsProfile(legacy) = profile("legacy").spec else { unreachable!("it is one") };
    spec.tls_profile.spec = Some(Box::new(legacy));
    let spec = Spec::Service(spec);
    assert_eq!(spec.json()["tlsProfile"], "legacy");
    assert_eq!(Spec::decode(Kind::Service, &spec.encode()), Ok(spec));
}
