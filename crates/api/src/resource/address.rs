//! Where things listen and where they are dialled.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::problem::shorten;

/// A Unix socket's path fits in `sockaddr_un` with its final NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// Not an address to listen on.
    #[error(
        "`{0}` is not an address to listen on: expected `IP:PORT`, such as `127.0.0.1:0` for a free port, or `[::1]:8443`"
    )]
    Listen(String),
    /// Not an address to dial.
    #[error(
        "`{0}` is not an address to dial: expected `HOST:PORT`, such as `orders.example:8443`, with a port from 1 to 65535"
    )]
    Dial(String),
    /// Not a place on this machine.
    #[error(
        "`{0}` is not a local address: expected `unix`, `unix:/path`, `tcp` or a loopback address such as `127.0.0.1:8080`"
    )]
    Local(String),
    /// Plain bytes would leave the machine.
    #[error(
        "`{0}` is not a loopback address, and this side is not encrypted: use `unix`, or `127.0.0.1:PORT`"
    )]
    NotLoopback(String),
    /// A path that is relative, or holds what a path cannot hold.
    #[error(
        "`{0}` is not the path of a socket: expected an absolute path without `..`, such as `unix:/run/orders.sock`"
    )]
    SocketPath(String),
    /// Too long for the kernel.
    #[error(
        "the socket path `{path}` has {bytes} bytes: the kernel allows {SOCKET_PATH_BYTES_MAX}, so choose a shorter one"
    )]
    LongSocketPath {
        /// Its beginning.
        path: String,
        /// How long it is.
        bytes: usize,
    },
}

/// Where to listen: an IP address and a port, 0 for a free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenAddress(pub SocketAddr);

/// Where to dial: a host's name or IP address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    host: String, // INVARIANT: a DNS name of LDH labels, or an IP address without brackets
    port: u16,    // INVARIANT: not 0
}

/// A loopback IP address and a port, 0 for a free one. Written `tcp` when both do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoopbackAddress(SocketAddr); // INVARIANT: a loopback address

/// The absolute path of a Unix socket, short enough for the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketPath(PathBuf); // INVARIANT: absolute, UTF-8, at most 107 bytes, no `..`, no control characters

/// A place on this machine where plain bytes are spoken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Local {
    /// A Unix socket whose path whoever runs it chooses. The default, because the kernel tells who calls.
    #[default]
    Unix,
    /// A Unix socket at this path.
    UnixAt(SocketPath),
    /// A loopback port, which every user of the machine may reach.
    Tcp(LoopbackAddress),
}

impl HostPort {
    /// The host, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The address itself, when the host is an IP address.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.host.parse().ok()?, self.port))
    }
}

impl From<SocketAddr> for HostPort {
    /// The address with its port, which must be a real one: port 0 becomes 1, and nothing answers there.
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port().max(1) }
    }
}

impl LoopbackAddress {
    /// Any free port.
    pub const FREE: Self =
        Self(SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0));

    /// As the standard library has it.
    pub const fn socket_addr(self) -> SocketAddr {
        self.0
    }
}

impl SocketPath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for ListenAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        text.parse().map(Self).map_err(|_not_one| BadAddress::Listen(shorten(text)))
    }
}

impl FromStr for HostPort {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress::Dial(shorten(text));
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(bad()) } else { Ok(address.into()) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port: u16 = port.parse().map_err(|_not_one| bad())?;
        // A name whose last label is all digits is a mistyped IPv4 address (WHATWG URL, 3.5).
        let numeric = host
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
        if !digits || port == 0 || numeric || !is_host(host) {
            return Err(bad());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

/// A DNS name of labels of letters, digits and inner hyphens; `_` is let through for container names.
fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (1..=253).contains(&host.len()) && host.split('.').all(label)
}

impl FromStr for SocketPath {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let path = Path::new(text);
        let above = path.components().any(|part| part == std::path::Component::ParentDir);
        if !text.starts_with('/') || text == "/" || above || text.chars().any(char::is_control) {
            return Err(BadAddress::SocketPath(shorten(text)));
        }
        if SOCKET_PATH_BYTES_MAX < text.len() {
            return Err(BadAddress::LongSocketPath { path: shorten(text), bytes: text.len() });
        }
        Ok(Self(path.to_owned()))
    }
}

impl FromStr for LoopbackAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let address: SocketAddr =
            text.parse().map_err(|_not_one| BadAddress::Local(shorten(text)))?;
        if !address.ip().is_loopback() {
            return Err(BadAddress::NotLoopback(shorten(text)));
        }
        Ok(Self(address))
    }
}

impl FromStr for Local {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        match text {
            "unix" => Ok(Self::Unix),
            "tcp" => Ok(Self::Tcp(LoopbackAddress::FREE)),
            _ => match text.strip_prefix("unix:") {
                Some(path) => Ok(Self::UnixAt(path.strip_prefix("//").unwrap_or(path).parse()?)),
                None => text.parse().map(Self::Tcp),
            },
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for LoopbackAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix => f.write_str("unix"),
            Self::UnixAt(path) => write!(f, "unix:{path}"),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

macro_rules! serialize_as_text {
    ($($name:ident),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

serialize_as_text!(ListenAddress, HostPort, LoopbackAddress, SocketPath, Local);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused<T: FromStr<Err = BadAddress> + fmt::Debug>(text: &str, part: &str) {
        let error = text.parse::<T>().unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }

    #[test]
    fn addresses_to_dial_round_trip() {
        for text in ["orders:8443", "a.b.example:1", "127.0.0.1:65535", "[::1]:80", "my_box:9"] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_dialled_is_refused() {
        for text in [
            "",
            ":",
            "orders",
            "orders:",
            ":80",
            "orders:0",
            "orders:65536",
            "orders:+80",
            "a b:80",
            "127.0.0.1:0",
            "127.0.0:80",
            "a..b:80",
            "-a:80",
            "http://a:80",
            "a/b:80",
            "user@a:80",
            "::1:80",
            "é:80",
            "a\0b:80",
        ] {
            refused::<HostPort>(text, "not an address to dial");
        }
    }

    #[test]
    fn local_sides_stay_on_the_machine() {
        assert_eq!("unix".parse(), Ok(Local::Unix));
        assert_eq!("tcp".parse(), Ok(Local::Tcp(LoopbackAddress::FREE)));
        assert_eq!("unix:///run/a.sock".parse::<Local>().unwrap().to_string(), "unix:/run/a.sock");
        refused::<Local>("0.0.0.0:80", "not a loopback address");
        refused::<Local>("10.0.0.1:80", "not a loopback address");
        refused::<Local>("localhost:80", "not a local address");
        refused::<Local>("unix:run/a", "not the path of a socket");
        refused::<Local>("unix:/run/../etc/a", "not the path of a socket");
        refused::<Local>(&format!("unix:/{}", "a".repeat(107)), "has 108 bytes");
        refused::<Local>("", "not a local address");
    }
}
