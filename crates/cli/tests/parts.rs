//! The parts by themselves, as in production: init, server, token, agent, proxy from certificate files.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/domain.rs"]
mod domain;
mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use domain::{Domain, Part};
use support::text;

/// A program that answers every connection with one page.
fn program() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                while let Ok(1..) = stream.read(&mut request) {
                    let seen =
                        text(&request).to_ascii_lowercase().contains("x-forwarded-client-cert");
                    let body = if seen { "forged" } else { "hello" };
                    let answer =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                    request = [0; 4096];
                }
            });
        }
    });
    address
}

fn file(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

/// A proxy from files, with more arguments about who may connect.
fn proxy(me: &Path, more: &[&str]) -> Part {
    let inbound = format!("service=me,listen=127.0.0.1:0,forward={}", program());
    let (chain, key, bundle) =
        (file(me, "svid.pem"), file(me, "svid-key.pem"), file(me, "bundle.pem"));
    let fixed =
        ["proxy", "--chain", &chain, "--key", &key, "--bundle", &bundle, "--inbound", &inbound];
    Part::start(&[&fixed, more].concat(), &[])
}

fn curl(me: &Path, proxy: &Part, more: &[&str]) -> Output {
    let door = proxy.ready["inbound"][0]["listen"].as_str().unwrap();
    Command::new("curl")
        // The name in the certificate is a SPIFFE ID, which curl does not look at.
        .args(["-sS", "--insecure", "--max-time", "20", "--cert", &file(me, "svid.pem")])
        .args(["--key", &file(me, "svid-key.pem")])
        .args(more)
        .arg(format!("https://{door}/"))
        .output()
        .unwrap()
}

#[test]
fn a_proxy_from_files_lets_in_whom_it_is_told_to_and_nobody_without_a_word() {
    let domain = Domain::make();
    let me = domain.credentials();
    let open = proxy(&me, &["--allow", "spiffe://prod.example/me"]);
    let answer = curl(&me, &open, &[]);
    assert_eq!(text(&answer.stdout), "hello", "{}", text(&answer.stderr));
    let forged =
        curl(&me, &open, &["-H", "X-Forwarded-Client-Cert: By=spiffe://prod.example/admin"]);
    assert_eq!(text(&forged.stdout), "hello", "a header from outside is not believed");

    for more in [&[][..], &["--allow", "spiffe://prod.example/other"]] {
        let closed = proxy(&me, more);
        let answer = curl(&me, &closed, &[]);
        assert!(!answer.status.success(), "{more:?} answered {}", text(&answer.stdout));
    }

    let policy = me.join("policy.cedar");
    std::fs::write(
        &policy,
        "permit (principal == Workload::\"spiffe://prod.example/me\", action == Action::\"connect\", resource == Service::\"me\");",
    )
    .unwrap();
    let by_policy = proxy(&me, &["--policy", policy.to_str().unwrap()]);
    assert_eq!(text(&curl(&me, &by_policy, &[]).stdout), "hello");
}

#[test]
fn openssl_reads_what_we_issue_and_agrees_that_it_is_good() {
    let domain = Domain::make();
    let me = domain.credentials();
    let verified = Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", "sslclient"])
        .args(["-CAfile", &file(&me, "bundle.pem"), "-untrusted", &file(&me, "svid.pem")])
        .arg(file(&me, "svid.pem"))
        .output()
        .unwrap();
    assert!(verified.status.success(), "{}{}", text(&verified.stdout), text(&verified.stderr));
    let shown = Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in", &file(&me, "svid.pem")])
        .output()
        .unwrap();
    assert!(
        text(&shown.stdout).contains("URI:spiffe://prod.example/me"),
        "{}",
        text(&shown.stdout)
    );
    let mode = std::fs::metadata(me.join("svid-key.pem")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
}

#[test]
fn a_full_disk_behind_the_log_costs_lines_and_ends_no_program() {
    let folder = support::folder();
    let data = file(folder.path(), "server");
    let made = domain::run(&["init", "--data", &data, "--trust-domain", "prod.example"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let server = ["server", "--data", &data, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let server = Part::start_without_log(&server);
    let admin = server.ready["admin"].as_str().unwrap();
    // Each of them makes the server say something in its log.
    for _ in 0..3 {
        let token = domain::run(&["token", "create", "--admin", admin]);
        assert!(token.status.success(), "{}", text(&token.stderr));
        let status = domain::run(&["status", "--admin", admin]);
        assert!(status.status.success(), "{}", text(&status.stderr));
    }
}

#[test]
fn a_server_that_is_ready_says_whether_it_is_sealed() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = support::folder();
    let (data, words) = (file(folder.path(), "d"), file(folder.path(), "words"));
    std::fs::write(&words, "correct horse battery staple").unwrap();
    std::fs::set_permissions(&words, std::fs::Permissions::from_mode(0o600)).unwrap();
    let with = ["--passphrase-file", &*words];
    let init = ["init", "--data", &data, "--trust-domain", "prod.example", "--seal", "passphrase"];
    let made = domain::run(&[&init[..], &with].concat());
    assert!(made.status.success(), "{}", text(&made.stderr));
    let arguments = ["server", "--data", &data, "--listen", "127.0.0.1:0", "--metrics", "off"];
    let shut = Part::start(&arguments, &[]);
    assert_eq!((&shut.ready["sealed"], &shut.ready["listen"]), (&true.into(), &().into()));
    drop(shut);
    let open = Part::start(&[&arguments[..], &with].concat(), &[]);
    assert_eq!(open.ready["sealed"], false, "{}", open.ready);
}
