//! Listening: TCP and Unix sockets, with a sentence for everything that can be in the way.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use crate::bounds::{ACCEPT_PAUSE, BACKLOG, SOCKET_PATH_MAX};

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum ListenFault {
    /// Somebody else listens there.
    #[error("`{0}` is taken by another process: choose another one, or port 0 for any free one")]
    Taken(SocketAddr),
    /// The system says no.
    #[error("cannot listen on `{address}`: {error}")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The kernel takes no longer ones.
    #[error(
        "the socket path `{path}` has {bytes} bytes, and the kernel takes {SOCKET_PATH_MAX}: use a shorter directory"
    )]
    LongPath {
        /// Which.
        path: PathBuf,
        /// How many.
        bytes: usize,
    },
    /// Somebody answers there.
    #[error("another process listens on the socket `{0}`: stop it, or use another directory")]
    SocketTaken(PathBuf),
    /// It is not ours to replace.
    #[error("`{0}` exists and is not a socket: move it away, or use another directory")]
    NotSocket(PathBuf),
    /// The system says no.
    #[error("cannot listen on the socket `{path}`: {error}")]
    Unix {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A place where programs of our own side, or peers, connect.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

/// Who connected.
pub(crate) enum Arrived {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// The file of a socket; removed with the listener, if it is still the same one.
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Listener {
    /// Listens on an address; port 0 takes a free one.
    pub(crate) fn tcp(address: SocketAddr) -> Result<Self, ListenFault> {
        listen(address, |_| Ok(())).map(Self::Tcp).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => ListenFault::Taken(address),
            _ => ListenFault::Tcp { address, error },
        })
    }

    /// Listens on a socket that only its owner may use. What a dead process left there is replaced.
    pub(crate) fn unix(path: &Path) -> Result<Self, ListenFault> {
        let bytes = path.as_os_str().len();
        if SOCKET_PATH_MAX < bytes {
            return Err(ListenFault::LongPath { path: path.to_owned(), bytes });
        }
        free(path)?;
        let fault = |error| ListenFault::Unix { path: path.to_owned(), error };
        // Bound under another name and moved once its mode is right, so nobody ever sees it open to all.
        let beside = beside(path);
        let bind = || {
            match fs::remove_file(&beside) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let listener = UnixListener::bind(&beside)?;
            fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
            let found = fs::symlink_metadata(&beside)?;
            fs::rename(&beside, path)?;
            let file =
                SocketFile { path: path.to_owned(), device: found.dev(), inode: found.ino() };
            Ok(Self::Unix { listener, _file: file })
        };
        bind().map_err(fault)
    }

    /// Has those who connect from now on be served as peers, which saves telling each connection.
    pub(crate) fn tune_for_peers(&self) {
        if let Self::Tcp(listener) = self
            && let Err(error) = countersign_tls::tune_listener(listener)
        {
            tracing::debug!(%error, "connections are told one by one how they are to be");
        }
    }

    /// The address, if it has one.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix { .. } => None,
        }
    }

    /// The next one to connect. A shortage of descriptors is waited out.
    pub(crate) async fn accept(&self) -> Arrived {
        loop {
            match self.try_accept().await {
                Ok(arrived) => return arrived,
                Err(error) if passing(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept for now");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Closes, and gives so many at most of those who wait in the kernel's queue: they connected before we stopped, and would be reset.
    pub(crate) fn into_waiting(self, most: usize) -> Vec<Arrived> {
        // Asked of the kernel itself: the runtime learns of a new connection only when it looks the next time.
        let waiting: io::Result<Vec<Arrived>> = match self {
            Self::Tcp(listener) => listener.into_std().map(|listener| {
                let next = || {
                    let (stream, from) = listener.accept().ok()?;
                    stream.set_nonblocking(true).ok()?;
                    Some(Arrived::Tcp(TcpStream::from_std(stream).ok()?, from))
                };
                std::iter::from_fn(next).take(most).collect()
            }),
            Self::Unix { listener, _file } => listener.into_std().map(|listener| {
                let next = || {
                    let (stream, _) = listener.accept().ok()?;
                    stream.set_nonblocking(true).ok()?;
                    Some(Arrived::Unix(UnixStream::from_std(stream).ok()?))
                };
                std::iter::from_fn(next).take(most).collect()
            }),
        };
        // A listener that cannot be asked any more has nobody waiting.
        waiting.unwrap_or_default()
    }

    async fn try_accept(&self) -> io::Result<Arrived> {
        match self {
            Self::Tcp(listener) => {
                listener.accept().await.map(|(stream, from)| Arrived::Tcp(stream, from))
            }
            Self::Unix { listener, .. } => {
                listener.accept().await.map(|(stream, _)| Arrived::Unix(stream))
            }
        }
    }
}

/// Listens, with whatever else the socket is told before.
pub(crate) fn listen(
    address: SocketAddr,
    tell: impl FnOnce(&TcpSocket) -> io::Result<()>,
) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    tell(&socket)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if same {
            // If it stays, the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The one who connected went away meanwhile: says nothing about the listener.
fn passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

/// Makes sure that nobody lives at the path.
fn free(path: &Path) -> Result<(), ListenFault> {
    let fault = |error| ListenFault::Unix { path: path.to_owned(), error };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenFault::NotSocket(path.to_owned()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fault(error)),
    }
    match BlockingStream::connect(path) {
        Ok(_answered) => Err(ListenFault::SocketTaken(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(fault(error)),
    }
}

/// A name of the same length in the same directory.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string().into_encoded_bytes();
    if let Some(last) = name.last_mut() {
        *last = if *last == b'~' { b'-' } else { b'~' };
    }
    // Only an ASCII byte may take the place of part of a name that is not ASCII, or the name would be torn.
    let name = String::from_utf8_lossy(&name).into_owned();
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap()
    }

    fn fault(listener: Result<Listener, ListenFault>) -> String {
        match listener {
            Ok(_) => panic!("it listens"),
            Err(fault) => fault.to_string(),
        }
    }

    #[tokio::test]
    async fn a_socket_is_open_to_its_owner_only_and_goes_with_its_listener() {
        let directory = directory();
        let path = directory.path().join("a.sock");
        let listener = Listener::unix(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let _client = UnixStream::connect(&path).await.unwrap();
        assert!(matches!(listener.accept().await, Arrived::Unix(_)));
        drop(listener);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = directory();
        let path = directory.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let live = Listener::unix(&path).unwrap();
        assert!(fault(Listener::unix(&path)).contains("another process listens"));
        let other = directory.path().join("b");
        fs::write(&other, "text").unwrap();
        assert!(fault(Listener::unix(&other)).contains("is not a socket"));
        drop(live);
        let long = directory.path().join("x".repeat(120));
        assert!(fault(Listener::unix(&long)).contains("use a shorter directory"));
    }

    #[tokio::test]
    async fn a_listener_does_not_remove_its_successors_socket() {
        let directory = directory();
        let path = directory.path().join("a.sock");
        let first = Listener::unix(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = Listener::unix(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn who_connected_before_the_end_is_let_in() {
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address().unwrap();
        let waiting: Vec<_> =
            (0..20).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        assert_eq!(listener.into_waiting(40).len(), waiting.len());
        assert!(std::net::TcpStream::connect(address).is_err());
        let another = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = another.address().unwrap();
        let _waiting: Vec<_> =
            (0..20).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        assert_eq!(another.into_waiting(15).len(), 15, "while they are taken, others may come");
    }

    #[tokio::test]
    async fn a_taken_port_is_told_in_a_sentence() {
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address().unwrap();
        assert_ne!(address.port(), 0);
        let expected = format!("`{address}` is taken by another process");
        assert!(fault(Listener::tcp(address)).starts_with(&expected));
    }
}
