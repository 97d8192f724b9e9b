//! Where a PostgreSQL database is, and how we prove to it who we are.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use super::passfile;
use crate::{Result, StoreError};

/// The port of PostgreSQL.
const PORT: u16 = 5432;
/// How many servers of one database may be named: a primary and those that may take its place.
const HOSTS_MAX: usize = 8;

/// Where a database is: `postgres://USER@HOST:PORT/DATABASE?sslmode=…&sslrootcert=…`.
///
/// It never holds a password, so it may be shown. More hosts, with commas between, are tried in their order until one
/// takes writes. `host=/run/postgresql` among the parameters is a Unix socket's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresUrl {
    text: String,
    pub(super) user: String,
    pub(super) hosts: Vec<Host>, // INVARIANT: at least one
    pub(super) database: String,
    pub(super) tls: Tls,
    pub(super) application: Option<String>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// By a name or an address.
    Tcp { name: String, port: u16 },
    /// The folder of its Unix socket.
    Unix { folder: PathBuf, port: u16 },
}

/// Whether and how the database is known by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    /// Not at all.
    Off,
    /// Its chain and its name are checked; we may show a certificate, too.
    Full { roots: PathBuf, own: Option<OwnCertificate> },
}

/// A certificate by which the database knows us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnCertificate {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
}

/// Why a text is not the place of a database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Another scheme, or none.
    #[error("`{0}` is not a store: expected `postgres://USER@HOST/DATABASE?…`")]
    Scheme(String),
    /// It would be seen by whoever lists processes or reads a configuration.
    #[error("a password has no place in `--store`; put it into a file for `--store-password-file`")]
    Password,
    /// Nobody is named.
    #[error("`--store` names no user: expected `postgres://USER@HOST/DATABASE`")]
    NoUser,
    /// No database is named.
    #[error("`--store` names no database: expected `postgres://USER@HOST/DATABASE`")]
    NoDatabase,
    /// No host is named, or too many.
    #[error("`--store` names {0} hosts, expected 1 to {HOSTS_MAX}")]
    Hosts(usize),
    /// A port that is none.
    #[error("`{0}` is not a port")]
    Port(String),
    /// A `%` without two hexadecimal digits, or bytes that are no text.
    #[error("`{0}` is not well encoded: after `%` two hexadecimal digits are expected")]
    Encoding(String),
    /// A parameter that we do not know; it may be one that matters.
    #[error(
        "`{0}` is not a parameter of `--store`: expected `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `host`, `port`, `target_session_attrs` or `application_name`"
    )]
    Parameter(String),
    /// A server that takes no writes would be of no use.
    #[error(
        "`target_session_attrs={0}` is of no use here: expected `read-write`, which is so anyway"
    )]
    Session(String),
    /// A mode in which it is not known who answers.
    #[error(
        "`sslmode={0}` does not make sure who answers: expected `verify-full`, or `disable` where the way is safe by itself"
    )]
    SslMode(String),
    /// Nobody to trust.
    #[error(
        "`sslmode=verify-full` needs `sslrootcert=FILE`, the certificates of those who vouch for the database"
    )]
    NoRoots,
    /// One without the other, or without TLS.
    #[error("`sslcert` and `sslkey` belong together, and to `sslmode=verify-full`")]
    OwnCertificate,
}

impl FromStr for PostgresUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> std::result::Result<Self, BadUrl> {
        let scheme = ["postgres://", "postgresql://"];
        let rest = scheme.iter().find_map(|scheme| text.strip_prefix(scheme));
        // What is not ours may be anything, also a secret: no more of it than its first word.
        let word =
            || text.split(['@', '?', '/', ':', '=', ' ']).next().unwrap_or_default().to_owned();
        let rest = rest.ok_or_else(|| BadUrl::Scheme(word()))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').ok_or(BadUrl::NoDatabase)?;
        let (user, hosts) = authority.rsplit_once('@').ok_or(BadUrl::NoUser)?;
        if user.contains(':') || hosts.contains('@') {
            return Err(BadUrl::Password);
        }
        let parameters = Parameters::read(query)?;
        let hosts = parameters.hosts(hosts)?;
        let tls = parameters.tls(&hosts)?;
        let (user, database) = (decoded(user)?, decoded(database)?);
        if user.is_empty() {
            return Err(BadUrl::NoUser);
        }
        if database.is_empty() {
            return Err(BadUrl::NoDatabase);
        }
        let application = parameters.application;
        Ok(Self { text: text.to_owned(), user, hosts, database, tls, application })
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PostgresUrl {
    /// Whether what is said to the database crosses a network unprotected.
    pub(super) fn is_exposed(&self) -> bool {
        let outside = |host: &Host| match host {
            Host::Tcp { name, .. } => !is_loopback(name),
            Host::Unix { .. } => false,
        };
        self.tls == Tls::Off && self.hosts.iter().any(outside)
    }
}

fn is_loopback(name: &str) -> bool {
    let address = name.parse::<std::net::IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[derive(Default)]
struct Parameters {
    sslmode: Option<String>,
    sslrootcert: Option<PathBuf>,
    sslcert: Option<PathBuf>,
    sslkey: Option<PathBuf>,
    host: Option<String>,
    port: Option<u16>,
    application: Option<String>,
}

impl Parameters {
    fn read(query: &str) -> std::result::Result<Self, BadUrl> {
        let mut found = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // Before it is read, since what cannot be read is repeated.
            if matches!(name, "password" | "passfile") {
                return Err(BadUrl::Password);
            }
            let value = decoded(value)?;
            match name {
                "sslmode" => found.sslmode = Some(value),
                "sslrootcert" => found.sslrootcert = Some(value.into()),
                "sslcert" => found.sslcert = Some(value.into()),
                "sslkey" => found.sslkey = Some(value.into()),
                "host" => found.host = Some(value),
                "port" => found.port = Some(port(&value)?),
                "application_name" => found.application = Some(value),
                // What we ask for in any case.
                "target_session_attrs" if value == "read-write" => {}
                "target_session_attrs" => return Err(BadUrl::Session(value)),
                other => return Err(BadUrl::Parameter(other.to_owned())),
            }
        }
        Ok(found)
    }

    fn hosts(&self, authority: &str) -> std::result::Result<Vec<Host>, BadUrl> {
        let usual = self.port.unwrap_or(PORT);
        let named = match (&self.host, authority) {
            (Some(host), "") => host.as_str(),
            (Some(_), _) => return Err(BadUrl::Hosts(2)),
            (None, authority) => authority,
        };
        let named: Vec<&str> = named.split(',').filter(|host| !host.is_empty()).collect();
        if !(1..=HOSTS_MAX).contains(&named.len()) {
            return Err(BadUrl::Hosts(named.len()));
        }
        named.into_iter().map(|host| one_host(host, usual)).collect()
    }

    fn tls(&self, hosts: &[Host]) -> std::result::Result<Tls, BadUrl> {
        let own = match (&self.sslcert, &self.sslkey) {
            (Some(chain), Some(key)) => {
                Some(OwnCertificate { chain: chain.clone(), key: key.clone() })
            }
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err(BadUrl::OwnCertificate),
        };
        let local = hosts.iter().all(|host| matches!(host, Host::Unix { .. }));
        match self.sslmode.as_deref() {
            Some("disable") if own.is_some() => Err(BadUrl::OwnCertificate),
            Some("disable") => Ok(Tls::Off),
            // No certificate can say more than the kernel does about who owns a socket's folder.
            None if local => Ok(Tls::Off),
            None | Some("verify-full") => {
                let roots = self.sslrootcert.clone().ok_or(BadUrl::NoRoots)?;
                Ok(Tls::Full { roots, own })
            }
            Some(other) => Err(BadUrl::SslMode(other.to_owned())),
        }
    }
}

fn one_host(text: &str, usual: u16) -> std::result::Result<Host, BadUrl> {
    if let Some(rest) = text.strip_prefix('[')
        && let Some((address, after)) = rest.split_once(']')
    {
        let port = after.strip_prefix(':').map_or(Ok(usual), port)?;
        return Ok(Host::Tcp { name: address.to_owned(), port });
    }
    let name = decoded(text)?;
    if name.starts_with('/') {
        return Ok(Host::Unix { folder: name.into(), port: usual });
    }
    let (name, given) = match name.split_once(':') {
        Some((name, given)) => (name.to_owned(), port(given)?),
        None => (name, usual),
    };
    Ok(Host::Tcp { name, port: given })
}

fn port(text: &str) -> std::result::Result<u16, BadUrl> {
    text.parse().ok().filter(|port| *port != 0).ok_or_else(|| BadUrl::Port(text.to_owned()))
}

fn decoded(text: &str) -> std::result::Result<String, BadUrl> {
    let bad = || BadUrl::Encoding(text.to_owned());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = after.split_at_checked(2).ok_or_else(bad)?;
        let digits = std::str::from_utf8(digits).map_err(|_no_text| bad())?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_no_digits| bad())?);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_no_text| bad())
}

/// Where the password is, if there is one. Files are read at each connection, so that a new password needs no restart.
#[derive(Clone, Default)]
pub enum Password {
    /// The database asks for none: a Unix socket, a certificate.
    #[default]
    None,
    /// This one; it does not print.
    Given(Zeroizing<String>),
    /// The contents of a file, without the line's end.
    File(PathBuf),
    /// A file in the form of PostgreSQL's own `.pgpass`.
    Passfile(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Given(_) => f.write_str("Given"),
            Self::File(path) => write!(f, "File({path:?})"),
            Self::Passfile(path) => write!(f, "Passfile({path:?})"),
        }
    }
}

impl Password {
    /// The password for this host.
    pub(super) fn find(&self, url: &PostgresUrl, host: &Host) -> Result<Option<Zeroizing<String>>> {
        match self {
            Self::None => Ok(None),
            Self::Given(password) => Ok(Some(password.clone())),
            Self::File(path) => {
                let text = private(path)?;
                Ok(Some(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned())))
            }
            Self::Passfile(path) => Ok(passfile::find(&private(path)?, url, host)),
        }
    }
}

/// Reads a file that nobody but its owner may read.
pub(super) fn private(path: &Path) -> Result<Zeroizing<String>> {
    use std::os::unix::fs::PermissionsExt as _;
    let unavailable = |why: std::io::Error| StoreError::Unavailable {
        why: format!("`{}`: {why}", path.display()),
    };
    let mode = std::fs::metadata(path).map_err(unavailable)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Exposed { path: path.to_owned(), mode });
    }
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(unavailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn read(text: &str) -> PostgresUrl {
        text.parse().unwrap_or_else(|bad| panic!("{text}: {bad}"))
    }

    #[track_caller]
    fn refused(text: &str, why: &BadUrl) {
        assert_eq!(text.parse::<PostgresUrl>().as_ref(), Err(why), "{text}");
    }

    #[test]
    fn a_database_is_known_by_its_certificate_unless_the_way_is_safe_by_itself() {
        let roots = PathBuf::from("/etc/db-root.pem");
        let url = read("postgres://cs@db.example/state?sslrootcert=/etc/db-root.pem");
        assert_eq!(url.tls, Tls::Full { roots, own: None });
        assert_eq!(url.hosts, [Host::Tcp { name: "db.example".to_owned(), port: PORT }]);
        assert!(!url.is_exposed());
        let url = read("postgres://cs@/state?host=/run/postgresql");
        assert_eq!(url.tls, Tls::Off);
        assert!(!url.is_exposed());
        assert!(!read("postgres://cs@127.0.0.1/state?sslmode=disable").is_exposed());
        assert!(read("postgres://cs@db.example/state?sslmode=disable").is_exposed());
        refused("postgres://cs@db.example/state", &BadUrl::NoRoots);
        refused("postgres://cs@127.0.0.1/state", &BadUrl::NoRoots);
        for mode in ["allow", "prefer", "require", "verify-ca", "VERIFY-FULL", ""] {
            let text = format!("postgres://cs@db.example/state?sslrootcert=/r&sslmode={mode}");
            refused(&text, &BadUrl::SslMode(mode.to_owned()));
        }
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        for text in [
            "postgres://cs:hunter2@db.example/state",
            "postgres://cs:hun@ter2@db.example/state",
            "postgres://cs@db.example/state?password=hunter2",
            "postgres://cs@db.example/state?password=hunter2%",
        ] {
            refused(text, &BadUrl::Password);
        }
        for text in ["mysql://hunter2@db", "cs:hunter2@db/state", "host=db password=hunter2"] {
            let bad = text.parse::<PostgresUrl>().unwrap_err().to_string();
            assert!(!bad.contains("hunter2"), "{bad}");
        }
        let shown = format!("{:?}", Password::Given("hunter2".to_owned().into()));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn hosts_ports_and_names_are_read() {
        let url = read("postgresql://c%40s@one:5433,[::1]:5434,two/my%20db?sslmode=disable&port=6");
        let tcp = |name: &str, port| Host::Tcp { name: name.to_owned(), port };
        assert_eq!(url.hosts, [tcp("one", 5433), tcp("::1", 5434), tcp("two", 6)]);
        assert_eq!((url.user.as_str(), url.database.as_str()), ("c@s", "my db"));
        let url = read("postgres://cs@%2Ftmp%2Fa/state");
        assert_eq!(url.hosts, [Host::Unix { folder: "/tmp/a".into(), port: PORT }]);
    }

    #[test]
    fn what_is_missing_or_unknown_is_told() {
        refused("postgres://db.example/state", &BadUrl::NoUser);
        refused("postgres://@db.example/state?sslmode=disable", &BadUrl::NoUser);
        refused("postgres://cs@db.example", &BadUrl::NoDatabase);
        refused("postgres://cs@db.example/?sslmode=disable", &BadUrl::NoDatabase);
        refused("postgres://cs@/state", &BadUrl::Hosts(0));
        refused("postgres://cs@db:0/state", &BadUrl::Port("0".to_owned()));
        refused("postgres://cs@db:x/state", &BadUrl::Port("x".to_owned()));
        refused("postgres://c%zs@db/s?sslmode=disable", &BadUrl::Encoding("c%zs".to_owned()));
        refused("postgres://cs@db/s?sslmod=disable", &BadUrl::Parameter("sslmod".to_owned()));
        refused("postgres://cs@db/s?sslrootcert=/r&sslcert=/c", &BadUrl::OwnCertificate);
    }
}
