//! The data directory: whose it is, and whether this version may open it.

use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;

use countersign_identity::{Entropy, Name, NodeId, TrustDomain};
use serde::{Deserialize, Serialize};

use crate::config::{StartError, domain_path, pending_path};

/// The format that this version writes and knows.
const FORMAT: u64 = 1;

/// What the directory says of itself. It is written last, so that a beginning that was cut off is not taken for
/// a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Domain {
    format: u64,
    /// Whose state lies here.
    pub(crate) trust_domain: TrustDomain,
    /// The name of the server that runs on it.
    pub(crate) server: Name,
}

/// The one field that every version has.
#[derive(Deserialize)]
struct Format {
    format: u64,
}

impl Domain {
    /// A new server of this trust domain.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub(crate) fn new(
        trust_domain: TrustDomain,
        entropy: &dyn Entropy,
    ) -> Result<Self, countersign_identity::EntropyLost> {
        // A random name: two servers of one trust domain never share one.
        let server = NodeId::draw(entropy)?.to_string();
        let server = server.parse().expect("32 hexadecimal digits are a name");
        Ok(Self { format: FORMAT, trust_domain, server })
    }

    /// Reads what a directory says.
    ///
    /// # Errors
    /// When it holds no trust domain, one of a newer version, or nonsense.
    pub(crate) fn read(data: &Path) -> Result<Self, StartError> {
        let path = domain_path(data);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if pending_path(data).exists() {
                    return Err(StartError::Pending { path: data.into() });
                }
                return Err(StartError::NoData { path: data.into() });
            }
            Err(source) => return Err(StartError::File { action: "read", path, source }),
        };
        let damaged = |error: serde_json::Error| StartError::Damaged {
            path: path.clone(),
            why: error.to_string(),
        };
        // The format alone first: what a newer version adds must not hide that it is newer.
        let Format { format } = serde_json::from_slice(&text).map_err(damaged)?;
        if FORMAT < format {
            return Err(StartError::NewerData { path: data.into(), found: format, known: FORMAT });
        }
        serde_json::from_slice(&text).map_err(damaged)
    }

    /// Writes it, so that it is there as a whole or not at all.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn write(&self, data: &Path) -> Result<(), StartError> {
        let text =
            serde_json::to_vec_pretty(self).expect("texts and numbers always have a JSON form");
        write_whole(&domain_path(data), &text)
    }
}

/// Writes a file for its owner only, so that it is there as a whole or not at all.
///
/// # Errors
/// When the system refuses.
pub(crate) fn write_whole(path: &Path, text: &[u8]) -> Result<(), StartError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let failed = |source| StartError::File { action: "write", path: path.to_owned(), source };
    let options = &mut std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished);
    let mut file = file.map_err(failed)?;
    file.write_all(text).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&unfinished, path).map_err(failed)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// Makes a directory for a new trust domain, mode 0700. An empty one is taken as it is.
///
/// # Errors
/// When there is something in it.
pub(crate) fn make(data: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::File { action: "make", path: data.into(), source };
    match Domain::read(data) {
        Ok(domain) => {
            let domain = domain.trust_domain.to_string();
            return Err(StartError::DataExists { path: data.into(), domain });
        }
        Err(StartError::NoData { .. }) => {}
        Err(other) => return Err(other),
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(failed)?;
    if std::fs::read_dir(data).map_err(failed)?.next().is_some() {
        return Err(StartError::DataNotEmpty { path: data.into() });
    }
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(data, private).map_err(failed)
}

/// Copies a secret into the directory, for its owner only.
///
/// # Errors
/// When there is one already, or the system refuses.
pub(crate) fn copy_private(from: &Path, to: &Path) -> Result<(), StartError> {
    let failed =
        |action, path: &Path, source| StartError::File { action, path: path.into(), source };
    let secret = std::fs::read(from).map(zeroize::Zeroizing::new);
    let secret = secret.map_err(|source| failed("read", from, source))?;
    let options = &mut std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(to);
    let written = file.and_then(|mut file| {
        file.write_all(&secret)?;
        file.sync_all()
    });
    written.map_err(|source| failed("write", to, source))
}

/// Whether nobody but its owner, who we are, can put other keys or another state in its place.
///
/// # Errors
/// When others may write to it, or it is another user's.
pub(crate) fn check_private(data: &Path) -> Result<(), StartError> {
    let look = |path: &Path| {
        std::fs::metadata(path).map_err(|source| StartError::File {
            action: "look at",
            path: path.into(),
            source,
        })
    };
    let (directory, process) = (look(data)?, look(Path::new("/proc/self"))?);
    let mode = directory.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(StartError::Exposed { path: data.into(), mode });
    }
    if directory.uid() != process.uid() && process.uid() != 0 {
        return Err(StartError::ForeignData { path: data.into(), owner: directory.uid() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use countersign_identity::SystemEntropy;

    use super::*;

    fn domain() -> Domain {
        Domain::new("shop.example".parse().unwrap(), &SystemEntropy).unwrap()
    }

    #[test]
    fn directory_of_a_newer_version_is_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let newer = r#"{"format": 2, "trustDomain": "shop.example", "server": "a", "more": true}"#;
        std::fs::write(domain_path(dir.path()), newer).unwrap();
        assert!(matches!(
            Domain::read(dir.path()),
            Err(StartError::NewerData { found: 2, known: 1, .. })
        ));
        assert!(matches!(make(dir.path()), Err(StartError::NewerData { .. })));
    }

    #[test]
    fn directory_that_holds_something_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("kek"), "left over").unwrap();
        assert!(matches!(make(dir.path()), Err(StartError::DataNotEmpty { .. })));
        assert!(matches!(Domain::read(dir.path()), Err(StartError::NoData { .. })));
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path()).unwrap();
        let domain = domain();
        domain.write(dir.path()).unwrap();
        assert_eq!(Domain::read(dir.path()).unwrap(), domain);
        assert!(matches!(make(dir.path()), Err(StartError::DataExists { .. })));
    }

    #[test]
    fn damaged_description_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(domain_path(dir.path()), "{\"format\": 1}").unwrap();
        let error = Domain::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("domain.json"), "{error}");
    }

    #[test]
    fn directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        check_private(dir.path()).unwrap();
        for mode in [0o777, 0o770, 0o702] {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            let error = check_private(dir.path()).unwrap_err();
            assert!(matches!(error, StartError::Exposed { .. }), "{error}");
        }
    }
}
