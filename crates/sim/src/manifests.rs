//! What operators declare in a simulated world.

use serde_json::{Value, json};

/// The name of a workload.
pub(crate) fn name(machine: usize, number: usize) -> String {
    format!("w{machine}-{number}")
}

/// A manifest of this kind.
pub(crate) fn manifest(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": kind, "metadata": {"name": name},
        "spec": spec,
    })
}

/// A workload of one node.
pub(crate) fn workload(machine: usize, number: usize, lifetime: &str) -> Value {
    let own = name(machine, number);
    let spec = json!({
        "selectors": [format!("launch:{own}")], "lifetime": lifetime, "keyType": "ed25519",
        "nodes": [format!("n{machine}")],
    });
    manifest("Workload", &own, &spec)
}

/// The service of a node's first workload, which calls another node's.
pub(crate) fn service(machine: usize, calls: usize) -> Value {
    let (own, upstream) = (name(machine, 0), name(calls, 0));
    let spec = json!({
        "workload": own, "protocol": "tcp", "listen": "127.0.0.1:0", "forward": "unix",
        "addresses": ["127.0.0.1:1"], "upstreams": [{"service": upstream, "local": "unix"}],
    });
    manifest("Service", &own, &spec)
}

/// The policy that lets one node's service call another's.
pub(crate) fn policy(from: usize, to: usize) -> Value {
    let (principal, resource) = (name(from, 0), name(to, 0));
    let cedar = format!(
        r#"permit (principal == Workload::"{principal}", action == Action::"connect", resource == Service::"{resource}");"#
    );
    manifest("Policy", &format!("p{from}"), &json!({"cedar": cedar}))
}

/// The service that runs on several machines, and is called by all.
pub(crate) const SHARED: &str = "warehouse";

/// The workload of a machine that calls it.
pub(crate) fn caller(machine: usize) -> String {
    format!("web{machine}")
}

/// The service on these machines, and their workload of the same name.
pub(crate) fn shared(machines: &[usize], lifetime: &str) -> [Value; 2] {
    let addresses: Vec<String> =
        machines.iter().map(|machine| format!("127.0.0.1:{}", machine + 1)).collect();
    let workload = json!({
        "selectors": ["launch:warehouse"], "lifetime": lifetime, "keyType": "ed25519",
        "nodes": [SHARED],
    });
    let service = json!({
        "workload": SHARED, "protocol": "tcp", "listen": "127.0.0.1:0", "forward": "unix",
        "addresses": addresses,
    });
    [manifest("Workload", SHARED, &workload), manifest("Service", SHARED, &service)]
}

/// A workload that calls it, and its service.
pub(crate) fn calling(machine: usize, lifetime: &str) -> [Value; 2] {
    let own = caller(machine);
    let workload = json!({
        "selectors": [format!("launch:{own}")], "lifetime": lifetime, "keyType": "ed25519",
        "nodes": [format!("n{machine}")],
    });
    let service = json!({
        "workload": own, "protocol": "tcp", "listen": "127.0.0.1:0", "forward": "unix",
        "addresses": ["127.0.0.1:1"], "upstreams": [{"service": SHARED, "local": "unix"}],
    });
    [manifest("Workload", &own, &workload), manifest("Service", &own, &service)]
}

/// The name of the policy that lets it call.
pub(crate) fn call_policy_name(machine: usize) -> String {
    format!("q{machine}")
}

/// That policy.
pub(crate) fn call_policy(machine: usize) -> Value {
    let principal = caller(machine);
    let cedar = format!(
        r#"permit (principal == Workload::"{principal}", action == Action::"connect", resource == Service::"{SHARED}");"#
    );
    manifest("Policy", &call_policy_name(machine), &json!({"cedar": cedar}))
}
