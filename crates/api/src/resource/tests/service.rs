//! Services: what their manifests may say of doors, programs and connections.

use serde_json::json;

use super::*;

#[test]
fn what_becomes_of_expired_connections_is_one_of_two_words() {
    accepted("Service", json!({ "workload": "web", "connections": { "expired": "keep" } }));
    accepted("Service", json!({ "workload": "web", "connections": { "expired": "end" } }));
    accepted("Service", json!({ "workload": "web", "connections": {} }));
    for (connections, field, words) in [
        (json!({ "expired": "forgive" }), "spec.connections.expired", "`end` or `keep`"),
        (json!({ "expires": "keep" }), "spec.connections.expires", "unknown field"),
    ] {
        let spec = json!({ "workload": "web", "connections": connections });
        refused("Service", spec, &[(field, words)]);
    }
}

#[test]
fn what_a_program_is_told_of_certificates_is_one_of_four_words_and_for_requests_only() {
    for word in ["nothing", "identity", "certificate", "chain"] {
        accepted("Service", json!({ "workload": "web", "forwardClientCertificate": word }));
    }
    let spec = json!({ "workload": "web", "forwardClientCertificate": "path" });
    let words = "`nothing`, `identity`, `certificate` or `chain`";
    refused("Service", spec, &[("spec.forwardClientCertificate", words)]);
    let spec =
        json!({ "workload": "web", "protocol": "tcp", "forwardClientCertificate": "identity" });
    refused("Service", spec, &[("spec.forwardClientCertificate", "needs `protocol: http`")]);
}

#[test]
fn load_balancers_are_named_and_programs_get_a_header_only_where_bytes_are_passed() {
    let service = |protocol: &str, proxy: serde_json::Value| json!({ "workload": "web", "protocol": protocol, "proxyProtocol": proxy });
    accepted("Service", service("http", json!({ "from": ["10.0.0.7", "2001:db8::/32"] })));
    accepted("Service", service("tcp", json!({ "from": ["10.0.0.0/8"], "send": "v2" })));
    accepted("Service", service("http", json!({})));
    for (protocol, proxy, field, words) in [
        ("http", json!({ "send": "v2" }), "spec.proxyProtocol.send", "needs `protocol: tcp`"),
        ("tcp", json!({ "send": "v1" }), "spec.proxyProtocol.send", "expected `v2`"),
        ("tcp", json!({ "from": ["0.0.0.0/0"] }), "spec.proxyProtocol.from[0]", "every address"),
        ("tcp", json!({ "from": ["lb.example"] }), "spec.proxyProtocol.from[0]", "neither an IP"),
        ("tcp", json!({ "form": ["10.0.0.7"] }), "spec.proxyProtocol.form", "unknown field"),
    ] {
        refused("Service", service(protocol, proxy), &[(field, words)]);
    }
}

#[test]
fn plain_bytes_never_leave_the_machine() {
    refused(
        "Service",
        json!({ "workload": "web", "listen": "0.0.0.0:8443", "forward": "10.0.0.1:80" }),
        &[("spec.forward", "not a loopback address")],
    );
    refused(
        "Service",
        json!({ "workload": "web", "upstreams": [{ "service": "a", "local": "0.0.0.0:80" }] }),
        &[("spec.upstreams[0].local", "not a loopback address")],
    );
}

#[test]
fn a_door_must_lead_somewhere() {
    refused(
        "Service",
        json!({ "workload": "web", "listen": "127.0.0.1:0" }),
        &[("spec.forward", "is missing")],
    );
}

#[test]
fn variables_that_up_sets_cannot_be_given() {
    refused(
        "Service",
        json!({ "workload": "web", "environment": { "LISTEN": "a", "UPSTREAM_X": "b", "1": "c", "A": 5 } }),
        &[
            ("spec.environment.LISTEN", "set by `up` itself"),
            ("spec.environment.UPSTREAM_X", "set by `up` itself"),
            ("spec.environment.1", "not a variable's name"),
            ("spec.environment.A", "quote it"),
        ],
    );
}
