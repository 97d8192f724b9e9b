//! A trust domain with views for the rest of the world, and what that world looks at them with.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::domain::{Domain, run};
use crate::support::{manifest_of_me, text};

/// A trust domain whose certificates name its lists and its responder, and the certificates of this very process.
pub(crate) struct World {
    pub(crate) domain: Domain,
    pub(crate) url: String,
    pub(crate) folder: PathBuf,
}

impl World {
    pub(crate) fn make(shards: u16) -> Self {
        let manifests = |ready: &Value| {
            format!(
                "{}---\napiVersion: countersign.dev/v1alpha1\nkind: TrustDomain\nmetadata: {{name: prod}}\n\
                 spec: {{trustDomain: prod.example, revocationViews: {{url: \"http://{}\", shards: {shards}}}}}\n",
                manifest_of_me("1h"),
                ready["views"].as_str().unwrap()
            )
        };
        let domain = Domain::make_of(&[], &["--views", "127.0.0.1:0"], manifests);
        let url = format!("http://{}", domain.server.ready["views"].as_str().unwrap());
        let folder = domain.credentials();
        // Leaf and issuer, one file each, as openssl wants them.
        let chain = std::fs::read_to_string(folder.join("svid.pem")).unwrap();
        let end = "-----END CERTIFICATE-----\n";
        let (leaf, issuer) = chain.split_once(end).unwrap();
        std::fs::write(folder.join("leaf.pem"), format!("{leaf}{end}")).unwrap();
        std::fs::write(folder.join("issuer.pem"), issuer).unwrap();
        Self { domain, url, folder }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// Runs a command of this trust domain.
    pub(crate) fn countersign(&self, arguments: &[&str]) -> Output {
        run(&[arguments, &["--admin", &self.domain.admin()]].concat())
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.countersign(&[arguments, &["--output", "json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs openssl in the folder of the certificates.
    pub(crate) fn openssl(&self, arguments: &[&str]) -> String {
        let output = Command::new("openssl").args(arguments).current_dir(&self.folder).output();
        let output = output.unwrap();
        text(&output.stdout) + &text(&output.stderr)
    }

    /// The first URI after this word in the leaf's text.
    pub(crate) fn named(&self, after: &str) -> String {
        let shown = self.openssl(&["x509", "-in", "leaf.pem", "-noout", "-text"]);
        let rest = shown.split_once(after).unwrap_or_else(|| panic!("no {after}: {shown}")).1;
        rest.split_once("URI:").unwrap().1.lines().next().unwrap().to_owned()
    }

    /// The list that the leaf names, as a file.
    pub(crate) fn list(&self, name: &str) {
        let url = self.named("CRL Distribution Points");
        fetch(&url, &self.folder.join(name));
    }

    pub(crate) fn verify(&self, lists: &[&str], more: &[&str]) -> String {
        let mut arguments =
            vec!["verify", "-crl_check", "-CAfile", "bundle.pem", "-untrusted", "issuer.pem"];
        for list in lists {
            arguments.extend(["-CRLfile", list]);
        }
        arguments.extend(more);
        arguments.push("leaf.pem");
        self.openssl(&arguments)
    }

    pub(crate) fn ocsp(&self, more: &[&str]) -> String {
        let url = self.named("OCSP - ");
        let base = ["ocsp", "-issuer", "issuer.pem", "-CAfile", "bundle.pem", "-url", &url];
        self.openssl(&[&base, more].concat())
    }

    pub(crate) fn revoke_me(&self) {
        let revoked =
            self.countersign(&["revoke", "spiffe://prod.example/me", "--reason", "key-compromise"]);
        assert!(revoked.status.success(), "{}", text(&revoked.stderr));
    }

    pub(crate) fn serial(&self) -> String {
        let shown = self.openssl(&["x509", "-in", "leaf.pem", "-noout", "-serial"]);
        shown.trim().strip_prefix("serial=").unwrap().to_owned()
    }
}

pub(crate) fn curl(arguments: &[&str]) -> Output {
    Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20"])
        .args(arguments)
        .output()
        .unwrap()
}

pub(crate) fn fetch(url: &str, to: &Path) {
    let output = curl(&["--fail", "--output", to.to_str().unwrap(), url]);
    assert!(output.status.success(), "{url}: {}", text(&output.stderr));
}
