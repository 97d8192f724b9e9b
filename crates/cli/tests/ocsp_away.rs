//! What an OCSP responder says while it cannot know: `tryLater`, and never `good`. Two servers on one PostgreSQL, and `openssl ocsp`.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "../../store/tests/support/postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use the rest of it")]
mod postgres;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::path::PathBuf;
use std::process::Command;

use servers::{Domain, Part, done, run};
use support::{text, until};

const LATER: &str = "Responder Error: trylater (3)";

/// A certificate that an agent has handed out, beside its issuer's and the bundle.
struct Held {
    folder: PathBuf,
}

impl Held {
    /// What the agent hands to this process now, once it is another than this one.
    fn fetch(domain: &Domain, agent: &str, name: &str, former: Option<&Self>) -> Self {
        let folder = PathBuf::from(domain.place(name));
        let socket = format!("unix://{}", domain.place(&format!("{agent}-run/agent.sock")));
        let former = former.map(|held| std::fs::read(held.folder.join("leaf.pem")).unwrap());
        let (leaf, issuer) = until("another certificate is served", || {
            let to = folder.to_str().unwrap();
            let fetched = run(&["fetch", "x509", "--socket", &socket, "--write", to]);
            let chain = std::fs::read_to_string(folder.join("svid.pem"));
            let chain = chain.ok().filter(|_| fetched.status.success())?;
            let end = "-----END CERTIFICATE-----\n";
            let (leaf, issuer) = chain.split_once(end)?;
            let leaf = format!("{leaf}{end}");
            (former.as_deref() != Some(leaf.as_bytes())).then(|| (leaf, issuer.to_owned()))
        });
        std::fs::write(folder.join("leaf.pem"), leaf).unwrap();
        std::fs::write(folder.join("issuer.pem"), issuer).unwrap();
        Self { folder }
    }

    /// What openssl is told of it by a server.
    fn asked_of(&self, server: &Part) -> String {
        self.asked_with(server, &[])
    }

    /// The same in one request with others.
    fn asked_with(&self, server: &Part, others: &[&Self]) -> String {
        let leaf = |other: &&Self| {
            ["-cert".to_owned(), other.folder.join("leaf.pem").display().to_string()]
        };
        let others: Vec<String> = others.iter().flat_map(leaf).collect();
        let url = format!("http://{}/ocsp", server.ready["views"].as_str().unwrap());
        let fixed = ["ocsp", "-issuer", "issuer.pem", "-CAfile", "bundle.pem", "-timeout", "30"];
        let output = Command::new("openssl")
            .args(fixed)
            .args(["-cert", "leaf.pem"])
            .args(others)
            .args(["-url", &url])
            .current_dir(&self.folder)
            .output()
            .unwrap();
        text(&output.stdout) + &text(&output.stderr)
    }

    /// Waits until that holds this text.
    fn comes_to_be(&self, server: &Part, told: &str) {
        until(told, || self.asked_of(server).contains(told).then_some(()));
    }
}

#[test]
fn a_responder_without_its_database_says_try_later_and_the_truth_once_it_is_back() {
    let domain = Domain::make();
    // Its own way to the database, which can be taken away from it alone.
    let (way, folder) = (domain.place("way"), domain.cluster.folder());
    std::os::unix::fs::symlink(folder, &way).unwrap();
    let url = domain.url.replace(folder.to_str().unwrap(), &way) + "&application_name=cut";
    let views = ["--views", "127.0.0.1:0"];
    let (one, two) = (domain.server_at("one", &url, &views), domain.server_with("two", &views));
    let near = domain.agent("near", &[&two]);
    // Good for longer than this may take on a slow machine.
    let manifest = domain.manifest("web", "5m");
    let declared = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, declared.replace("lifetime: 5m", "lifetime: 1h")).unwrap();
    done(&["apply", &manifest, "--admin", two.admin()]);
    let first = Held::fetch(&domain, "near", "first", None);
    let revoke = || {
        let id = "spiffe://prod.example/web";
        done(&["revoke", id, "--reason", "key-compromise", "--admin", two.admin()]);
    };
    for server in [&one, &two] {
        first.comes_to_be(server, "leaf.pem: good");
    }
    revoke();
    let second = Held::fetch(&domain, "near", "second", Some(&first));
    for server in [&one, &two] {
        first.comes_to_be(server, "leaf.pem: revoked");
        second.comes_to_be(server, "leaf.pem: good");
    }

    // The database stands still: neither knows what becomes of a good certificate, and both know what is revoked.
    domain.cluster.signal_all("STOP");
    for server in [&one, &two] {
        second.comes_to_be(server, LATER);
        first.comes_to_be(server, "leaf.pem: revoked");
        // All that a request asks for is answered, or nothing of it.
        let both = first.asked_with(server, &[&first]);
        assert_eq!(both.matches("leaf.pem: revoked").count(), 2, "{both}");
        assert!(first.asked_with(server, &[&second]).contains(LATER));
    }
    domain.cluster.signal_all("CONT");
    for server in [&one, &two] {
        second.comes_to_be(server, "leaf.pem: good");
        let both = first.asked_with(server, &[&second]);
        assert!(
            ["leaf.pem: revoked", "leaf.pem: good"].iter().all(|told| both.contains(told)),
            "{both}"
        );
    }

    // One is cut off while the other revokes: it may not say `good` again before it knows of that.
    std::fs::remove_file(&way).unwrap();
    domain.cluster.sql(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cut/%'",
    );
    second.comes_to_be(&one, LATER);
    revoke();
    second.comes_to_be(&two, "leaf.pem: revoked");
    for _ in 0..5 {
        let told = second.asked_of(&one);
        assert!(!told.contains("leaf.pem: good"), "{told}");
    }
    second.comes_to_be(&one, LATER);
    std::os::unix::fs::symlink(folder, &way).unwrap();
    until("it has heard of the revocation", || {
        let told = second.asked_of(&one);
        assert!(!told.contains("leaf.pem: good"), "{told}");
        told.contains("leaf.pem: revoked").then_some(())
    });
    let third = Held::fetch(&domain, "near", "third", Some(&second));
    third.comes_to_be(&one, "leaf.pem: good");
    drop(near);
}
