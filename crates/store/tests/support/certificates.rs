//! Certificates of a database and of those whom it knows, made by OpenSSL as an operator makes them.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Authorities `root` and `other`, a database `db` at 127.0.0.1 and a user `cs` that the first vouches for, a user `stranger`
/// that it vouches for as well, and a `cs` of the other one's; each as NAME.pem and NAME.key.
pub(crate) struct Certificates(PathBuf);

impl Certificates {
    /// Makes them in a folder, which the database's own user may enter.
    pub(crate) fn make(folder: &Path) -> Self {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        let all = Self(folder.to_owned());
        for root in ["root", "other"] {
            all.openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={root} \
                 -addext basicConstraints=critical,CA:TRUE -keyout {root}.key -out {root}.pem"
            ));
        }
        all.write("ext", "subjectAltName=IP:127.0.0.1\n", 0o644);
        all.issue("db", "db", "root");
        all.issue("cs", "cs", "root");
        all.issue("stranger", "stranger", "root");
        all.issue("false", "cs", "other");
        all
    }

    fn openssl(&self, line: &str) {
        let made = Command::new("openssl").args(line.split(' ')).current_dir(&self.0).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{line}: {}", String::from_utf8_lossy(&made.stderr));
    }

    fn issue(&self, file: &str, name: &str, by: &str) {
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} \
             -keyout {file}.key -out {file}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {file}.csr -CA {by}.pem -CAkey {by}.key -days 2 -extfile ext -out {file}.pem"
        ));
    }

    pub(crate) fn place(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file beside them.
    pub(crate) fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// What a database's configuration says so that it lets in by TLS whom this line says.
    pub(crate) fn settings(&self, line: &str) -> [String; 5] {
        self.write("hba", &format!("local all all trust\n{line}\n"), 0o644);
        [
            "ssl = on".to_owned(),
            format!("ssl_cert_file = '{}'", self.place("db.pem")),
            format!("ssl_key_file = '{}'", self.place("db.key")),
            format!("ssl_ca_file = '{}'", self.place("root.pem")),
            format!("hba_file = '{}'", self.place("hba")),
        ]
    }
}

/// A port that nobody has right now.
pub(crate) fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().port()
}
