//! Issuers that openssl signed, as somebody else's authority would: what is taken, and that each broken rule is named.

use std::path::Path;
use std::process::Command;

use countersign_identity::{Code, Timestamp, TrustDomain};
use countersign_pki::{
    Certificate, IssuerPath, KeyKind, PrivateKey, Refused, encode_csr, make_authority_csr,
    open_csr, verify_issuer,
};

/// An authority of openssl's in a folder, and a request of ours.
struct Ceremony {
    folder: tempfile::TempDir,
    key: PrivateKey,
}

#[track_caller]
fn openssl(folder: &Path, line: &str) {
    let mut command = Command::new("openssl");
    let done = command.args(line.split(' ')).current_dir(folder).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "openssl {line}: {said}");
}

impl Ceremony {
    /// A root of this kind of key, and our request for an issuer.
    fn new(key: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        openssl(
            at,
            &format!(
                "req -x509 -newkey {key} -noenc -keyout root.key -out root.pem -days 3650 -addext keyUsage=critical,keyCertSign,cRLSign -subj /O=Acme/CN=Offline"
            ),
        );
        let domain = domain();
        let key = PrivateKey::generate(KeyKind::P256).unwrap();
        let csr = make_authority_csr(&key, &domain).unwrap();
        assert_eq!(open_csr(&csr).unwrap().public(), key.public(), "our own reader takes it");
        std::fs::write(at.join("request.pem"), encode_csr(&csr)).unwrap();
        openssl(at, "req -in request.pem -verify -noout");
        Self { folder, key }
    }

    /// Signs the request as asked for.
    fn copied(&self, days: u32) -> Certificate {
        let line = format!(
            "x509 -req -in request.pem -CA root.pem -CAkey root.key -copy_extensions copyall -days {days} -out issuer.pem"
        );
        openssl(self.folder.path(), &line);
        self.read("issuer.pem")
    }

    /// Signs the request with these extensions instead.
    fn with(&self, extensions: &str) -> Certificate {
        std::fs::write(self.folder.path().join("ext"), extensions).unwrap();
        let line = "x509 -req -in request.pem -CA root.pem -CAkey root.key -extfile ext -days 90 -out issuer.pem";
        openssl(self.folder.path(), line);
        self.read("issuer.pem")
    }

    fn read(&self, name: &str) -> Certificate {
        let text = std::fs::read_to_string(self.folder.path().join(name)).unwrap();
        Certificate::from_pem(&text).unwrap()
    }

    fn check(&self, certificate: &Certificate) -> Result<IssuerPath, Refused> {
        verify_issuer(certificate, &[], &domain(), vec![self.read("root.pem")], now())
    }

    #[track_caller]
    fn refused(&self, extensions: &str, code: Code, says: &str) {
        let refused = self.check(&self.with(extensions)).unwrap_err();
        assert_eq!(refused.code, code, "{}", refused.why);
        assert!(refused.why.contains(says), "{}", refused.why);
    }
}

fn domain() -> TrustDomain {
    "shop.example".parse().unwrap()
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_secs(i64::try_from(since.as_secs()).unwrap())
}

const GOOD: [&str; 3] = [
    "basicConstraints=critical,CA:TRUE,pathlen:0",
    "keyUsage=critical,keyCertSign,cRLSign",
    "subjectAltName=URI:spiffe://shop.example",
];

/// The good extensions, with one line in the place of another.
fn instead(position: usize, line: &str) -> String {
    let mut lines = GOOD;
    lines[position] = line;
    lines.join("\n")
}

#[test]
fn issuer_that_an_authority_of_any_usual_key_signed_as_asked_is_taken() {
    for key in
        ["ec -pkeyopt ec_paramgen_curve:P-256", "ec -pkeyopt ec_paramgen_curve:P-384", "rsa:2048"]
    {
        let ceremony = Ceremony::new(key);
        let path = ceremony.check(&ceremony.copied(90)).unwrap();
        assert_eq!(path.issuer.key(), ceremony.key.public(), "{key}");
        assert_eq!(path.root, ceremony.read("root.pem"), "{key}");
        assert!(path.above.is_empty() && path.root.is_self_signed(), "{key}");
    }
}

#[test]
fn each_rule_that_the_authority_broke_is_named() {
    let ceremony = Ceremony::new("ec -pkeyopt ec_paramgen_curve:P-256");
    let none = instead(0, "basicConstraints=critical,CA:FALSE");
    ceremony.refused(&none, Code::IssuerNotAuthority, "CA:TRUE");
    let usage = instead(1, "keyUsage=critical,cRLSign");
    ceremony.refused(&usage, Code::IssuerNotAuthority, "keyCertSign");
    let lists = instead(1, "keyUsage=critical,keyCertSign");
    ceremony.refused(&lists, Code::BadKeyUsage, "cRLSign");
    let soft = instead(1, "keyUsage=keyCertSign,cRLSign");
    ceremony.refused(&soft, Code::BadKeyUsage, "not critical");
    let long = instead(0, "basicConstraints=critical,CA:TRUE");
    ceremony.refused(&long, Code::PathLength, "pathlen:0");
    let deep = instead(0, "basicConstraints=critical,CA:TRUE,pathlen:1");
    ceremony.refused(&deep, Code::PathLength, "pathlen:0");
    let nameless = instead(2, "nsComment=none");
    ceremony.refused(&nameless, Code::BadIdentity, "spiffe://shop.example");
    let foreign = instead(2, "subjectAltName=URI:spiffe://other.example");
    ceremony.refused(&foreign, Code::BadIdentity, "spiffe://other.example");
    let several = instead(2, "subjectAltName=URI:spiffe://shop.example,URI:spiffe://b.example");
    ceremony.refused(&several, Code::BadIdentity, "b.example");
    let constrained =
        format!("{}\nnameConstraints=critical,permitted;URI:shop.example", GOOD.join("\n"));
    ceremony.refused(&constrained, Code::NameConstraint, "constraint on URI names");
    let purposes = format!("{}\nextendedKeyUsage=clientAuth", GOOD.join("\n"));
    ceremony.refused(&purposes, Code::BadExtendedKeyUsage, "extended key usage");
    let unknown = format!("{}\n1.2.3.4=critical,ASN1:NULL", GOOD.join("\n"));
    ceremony.refused(&unknown, Code::BadExtension, "1.2.3.4");
    assert!(ceremony.check(&ceremony.with(&GOOD.join("\n"))).is_ok(), "the twin without a fault");
}

#[test]
fn issuer_is_refused_that_outlives_its_root_or_is_not_of_now_or_of_another_root() {
    let ceremony = Ceremony::new("ec -pkeyopt ec_paramgen_curve:P-256");
    let refused = ceremony.check(&ceremony.copied(4000)).unwrap_err();
    assert_eq!(refused.code, Code::Expired, "{}", refused.why);
    let issuer = ceremony.copied(90);
    let other = Ceremony::new("ec -pkeyopt ec_paramgen_curve:P-256").read("root.pem");
    let refused = verify_issuer(&issuer, &[], &domain(), vec![other], now()).unwrap_err();
    assert_eq!(refused.code, Code::BadSignature, "of the same name: {}", refused.why);
    let roots = vec![ceremony.read("root.pem")];
    let late = now() + std::time::Duration::from_secs(91 * 86_400);
    let refused = verify_issuer(&issuer, &[], &domain(), roots, late).unwrap_err();
    assert_eq!(refused.code, Code::Expired, "{}", refused.why);
}

#[test]
fn way_to_the_root_may_lead_over_an_authority_between_that_allows_it() {
    let ceremony = Ceremony::new("ec -pkeyopt ec_paramgen_curve:P-256");
    let at = ceremony.folder.path();
    for (length, taken) in [(0, false), (1, true)] {
        let extensions = format!(
            "basicConstraints=critical,CA:TRUE,pathlen:{length}\nkeyUsage=critical,keyCertSign"
        );
        std::fs::write(at.join("between.ext"), extensions).unwrap();
        openssl(
            at,
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout between.key -out between.csr -subj /CN=Between",
        );
        openssl(
            at,
            "x509 -req -in between.csr -CA root.pem -CAkey root.key -extfile between.ext -days 365 -out between.pem",
        );
        openssl(
            at,
            "x509 -req -in request.pem -CA between.pem -CAkey between.key -copy_extensions copyall -days 90 -out issuer.pem",
        );
        let between = ceremony.read("between.pem");
        let checked = verify_issuer(
            &ceremony.read("issuer.pem"),
            std::slice::from_ref(&between),
            &domain(),
            vec![ceremony.read("root.pem")],
            now(),
        );
        match checked {
            Ok(path) => assert!(taken && path.above == [between], "{length}"),
            Err(refused) => assert_eq!((refused.code, taken), (Code::PathLength, false)),
        }
    }
}
