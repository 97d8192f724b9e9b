//! The agent's Unix socket: bound with care, each connection counted and its caller pinned before a byte is read.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::Code;
use futures_util::stream;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;

use crate::attest::Attestor;
use crate::authority_filter::FilteredStream;
use crate::places::{Guest, Places, User};
use crate::reception::Visitor;

/// A listening socket that is removed when dropped, unless another has taken its place.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: Option<UnixListener>,
    path: PathBuf,
    inode: (u64, u64),
}

/// Why the agent's socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketFault {
    /// Longer than the kernel takes.
    #[error(
        "the socket's path `{path}` has {bytes} bytes, over the limit of {PATH_BYTES_MAX} for Unix sockets: choose a shorter one with `--socket`"
    )]
    LongPath {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Somebody answers there.
    #[error("another process listens on `{0}`: stop it, or choose another path with `--socket`")]
    Taken(PathBuf),
    /// Something else lies there.
    #[error("`{0}` exists and is no socket: remove it, or choose another path with `--socket`")]
    NoSocket(PathBuf),
    /// Others could put their own socket in its place.
    #[error(
        "the folder `{folder}` (mode {mode:o}) can be written by others, who could put their own socket there: use one that only this user can write"
    )]
    OpenFolder {
        /// The folder.
        folder: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Whoever owns the folder could put their own socket there.
    #[error(
        "the folder `{folder}` belongs to uid {owner}: use one that belongs to root or to the user that the agent runs as"
    )]
    ForeignFolder {
        /// The folder.
        folder: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// The system says no.
    #[error("the socket `{path}` cannot be opened: {why}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
}

/// `sun_path` has 108 bytes, the last of which is NUL.
const PATH_BYTES_MAX: usize = 107;
/// Everybody may connect who may enter the folder: callers are told apart by the kernel, not by the socket's mode.
const SOCKET_MODE: u32 = 0o777;
/// A folder that the agent makes itself is its user's alone.
const FOLDER_MODE: u32 = 0o700;

/// How long to wait when the system has no descriptors left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

impl SocketFault {
    /// The stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::LongPath { .. }
            | Self::NoSocket(_)
            | Self::OpenFolder { .. }
            | Self::ForeignFolder { .. } => Code::NotUnderstood,
            Self::Taken(_) => Code::AlreadyExists,
            Self::Io { .. } => Code::Internal,
        }
    }
}

impl Socket {
    /// Listens at the path. A socket that nobody answers on is a leftover, and removed.
    pub(crate) fn bind(path: &Path) -> Result<Self, SocketFault> {
        use std::os::unix::ffi::OsStrExt;
        use std::os::unix::fs::DirBuilderExt;
        let io = |why| SocketFault::Io { path: path.to_owned(), why };
        let bytes = path.as_os_str().as_bytes().len();
        if PATH_BYTES_MAX < bytes {
            return Err(SocketFault::LongPath { path: path.to_owned(), bytes });
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(io)?;
        let metadata = fs::metadata(folder).map_err(io)?;
        let owner = metadata.uid();
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(SocketFault::ForeignFolder { folder: folder.to_owned(), owner });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(SocketFault::OpenFolder { folder: folder.to_owned(), mode });
        }
        remove_leftover(path)?;
        let listener = UnixListener::bind(path).map_err(io)?;
        fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(io)?;
        let inode = inode(path).map_err(io)?;
        Ok(Self { listener: Some(listener), path: path.to_owned(), inode })
    }

    /// The connections, each with its caller. Those that cannot be told, or are too many, are closed unheard.
    pub(crate) fn connections(
        &mut self,
        attestor: Arc<dyn Attestor>,
        places: Places,
    ) -> impl Stream<Item = io::Result<FilteredStream<Guest<UnixStream>, Visitor>>> + Send + use<>
    {
        let listener = self.listener.take();
        let door = Door { listener, attestor, places };
        stream::unfold(door, |door| async move {
            let listener = door.listener.as_ref()?;
            loop {
                let socket = match listener.accept().await {
                    Ok((socket, _address)) => socket,
                    Err(why) => {
                        tracing::warn!(%why, "no connection can be accepted");
                        tokio::time::sleep(EXHAUSTED_PAUSE).await;
                        continue;
                    }
                };
                match door.receive(socket).await {
                    Ok(stream) => return Some((Ok(stream), door)),
                    Err(why) => tracing::debug!(%why, "a connection was closed unheard"),
                }
            }
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            // It may be gone already, and nothing is to be done about any other failure.
            fs::remove_file(&self.path).ok();
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn remove_leftover(path: &Path) -> Result<(), SocketFault> {
    let io = |why| SocketFault::Io { path: path.to_owned(), why };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(why) => return Err(io(why)),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketFault::NoSocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(why) if why.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io)
        }
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(SocketFault::Taken(path.to_owned())),
        Err(why) => Err(io(why)),
    }
}

struct Door {
    listener: Option<UnixListener>,
    attestor: Arc<dyn Attestor>,
    places: Places,
}

impl Door {
    async fn receive(
        &self,
        socket: UnixStream,
    ) -> Result<FilteredStream<Guest<UnixStream>, Visitor>, String> {
        let caller = self.attestor.pin(&socket).map_err(|why| why.to_string())?;
        let peer = caller.peer();
        let user = User::of(&caller).await;
        let place = self.places.take(user, peer.pid).map_err(|why| why.to_string())?;
        let guest = self.places.guest(socket, &place, user);
        Ok(FilteredStream::new(guest, Visitor { caller, user, _place: Arc::new(place) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap()
    }

    #[tokio::test]
    async fn a_leftover_is_removed_and_a_live_socket_is_not() {
        let folder = folder();
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let live = Socket::bind(&path).unwrap();
        let refused = Socket::bind(&path).unwrap_err();
        assert!(matches!(refused, SocketFault::Taken(_)), "{refused}");
        drop(live);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_cannot_be_a_socket_is_refused_with_a_sentence() {
        let folder = folder();
        let long = folder.path().join("x".repeat(120));
        assert!(Socket::bind(&long).unwrap_err().to_string().contains("over the limit of 107"));
        let file = folder.path().join("f");
        fs::write(&file, b"precious").unwrap();
        assert!(matches!(Socket::bind(&file), Err(SocketFault::NoSocket(_))));
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(matches!(Socket::bind(&open.join("s")), Err(SocketFault::OpenFolder { .. })));
    }

    #[tokio::test]
    async fn a_folder_of_our_own_making_is_private_and_the_socket_open() {
        let folder = folder();
        let path = folder.path().join("run/s");
        let _socket = Socket::bind(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o777));
    }
}
