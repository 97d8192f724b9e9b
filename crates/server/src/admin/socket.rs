//! The operators' Unix socket: made private before anybody can connect, and never stolen from a living server.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use countersign_identity::Code;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

use crate::config::StartError;

/// The longest path that the kernel takes (`sun_path` without its final NUL).
const PATH_BYTES_MAX: usize = 107;
/// Connections that the kernel keeps waiting.
const BACKLOG: i32 = 128;

/// The listening socket; its file goes when this is dropped, if it is still ours.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl AdminSocket {
    /// Listens at `path`, mode 0600. Directories that are missing are made, mode 0700.
    ///
    /// # Errors
    /// When the path is too long, somebody answers there already, or the system refuses.
    pub(crate) fn bind(path: &Path) -> Result<Self, StartError> {
        let bytes = path.as_os_str().as_bytes().len();
        if PATH_BYTES_MAX < bytes {
            return Err(StartError::LongSocketPath { path: path.into(), bytes });
        }
        let failed = |source| StartError::Socket { path: path.into(), source };
        if let Some(parent) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(failed)?;
        }
        remove_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
        socket.bind(&SockAddr::unix(path).map_err(failed)?).map_err(failed)?;
        // Nobody can connect before `listen`, so there is no moment at which the file's first mode counts.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        socket.listen(BACKLOG).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(socket.into()).map_err(failed)?;
        let inode = inode(path).map_err(failed)?;
        Ok(Self { listener, path: path.into(), inode })
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // Another server may have been given the path since; its file stays.
        if inode(&self.path).is_ok_and(|inode| inode == self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "could not remove the admin socket");
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes a socket that a server left behind. What is no socket, and what answers, stays.
fn remove_stale(path: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Socket { path: path.into(), source };
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(StartError::NotASocket { path: path.into() });
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(StartError::SocketTaken { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Who may administer: root, and the uid that owns the data directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operators {
    owner: u32,
}

impl Operators {
    /// Those of this data directory.
    ///
    /// # Errors
    /// When the directory cannot be looked at.
    pub(crate) fn of(data: &Path) -> io::Result<Self> {
        Ok(Self { owner: std::fs::metadata(data)?.uid() })
    }

    /// Whether this uid is one of them.
    ///
    /// # Errors
    /// `forbidden` when it is not.
    pub(crate) fn admit(self, uid: u32) -> Result<(), crate::refusal::Refused> {
        if uid == 0 || uid == self.owner {
            return Ok(());
        }
        Err(crate::refusal::Refused::new(
            Code::Forbidden,
            format!("uid {uid} may not administer: expected root or uid {}", self.owner),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temp() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap()
    }

    #[tokio::test]
    async fn socket_and_its_directory_are_private() {
        let dir = temp();
        let path = dir.path().join("run/admin.sock");
        let socket = AdminSocket::bind(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = temp();
        let path = dir.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let living = AdminSocket::bind(&path).unwrap();
        let error = AdminSocket::bind(&path).unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
        drop(living);
        std::fs::write(&path, "a file").unwrap();
        assert!(AdminSocket::bind(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    }

    #[tokio::test]
    async fn long_path_is_a_sentence() {
        let path = Path::new("/tmp").join("x".repeat(120)).join("admin.sock");
        let error = AdminSocket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("107"), "{error}");
    }

    #[test]
    fn only_root_and_the_owner_administer() {
        let operators = Operators { owner: 1000 };
        assert!(operators.admit(0).is_ok());
        assert!(operators.admit(1000).is_ok());
        assert_eq!(operators.admit(1001).unwrap_err().code, Code::Forbidden);
    }
}
