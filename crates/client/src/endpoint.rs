//! Where the Workload API is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Uri};

/// The variable that tells every SPIFFE library the socket (SPIFFE Workload Endpoint, section 4).
pub const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

const SCHEME: &str = "unix:";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The Unix socket of a Workload API: `unix:///run/countersign/agent.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint(PathBuf); // INVARIANT: absolute, short enough for a socket address

/// Why there is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEndpoint {
    /// Nobody told.
    #[error(
        "{ENDPOINT_VARIABLE} is not set; set it to the agent's socket, such as `unix:///run/countersign/agent.sock`"
    )]
    NotSet,
    /// It cannot be attested who calls over TCP.
    #[error("`{0}` is not a Unix socket; expected `unix:///path`")]
    Scheme(String),
    /// A relative path, or an authority before the path.
    #[error("`{0}` has no absolute path; expected `unix:///path`, with three slashes")]
    Path(String),
    /// `?` or `#`, which the standard forbids.
    #[error("`{0}` has a query or a fragment; expected `unix:///path` and nothing else")]
    Extra(String),
    /// The kernel takes no longer ones.
    #[error("the socket path `{path}` has {bytes} bytes, over the limit of {PATH_BYTES_MAX}")]
    LongPath {
        /// The path.
        path: String,
        /// How long it is.
        bytes: usize,
    },
}

const PATH_BYTES_MAX: usize = 107;

impl Endpoint {
    /// Reads `SPIFFE_ENDPOINT_SOCKET`.
    ///
    /// # Errors
    /// When it is not set, or is no Unix socket.
    pub fn from_environment() -> Result<Self, BadEndpoint> {
        let Some(value) = std::env::var_os(ENDPOINT_VARIABLE) else {
            return Err(BadEndpoint::NotSet);
        };
        value.to_string_lossy().parse()
    }

    /// The socket with this path.
    ///
    /// # Errors
    /// When the path is relative, or too long for the kernel.
    pub fn at(path: &Path) -> Result<Self, BadEndpoint> {
        let text = || path.display().to_string();
        if !path.is_absolute() {
            return Err(BadEndpoint::Path(text()));
        }
        let bytes = path.as_os_str().len();
        if PATH_BYTES_MAX < bytes {
            return Err(BadEndpoint::LongPath { path: text(), bytes });
        }
        Ok(Self(path.to_owned()))
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Connects, once. The channel breaks when the socket does, and the caller comes again.
    pub(crate) async fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        let path = self.0.clone();
        // The authority is not looked at on a Unix socket, but h2 wants a valid one.
        tonic::transport::Endpoint::from_static("http://localhost")
            .connect_timeout(CONNECT_TIMEOUT)
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
    }
}

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let shown = || text.chars().take(200).collect();
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| BadEndpoint::Scheme(shown()))?;
        let path = match rest.strip_prefix("//") {
            Some(path) => path,
            None => rest,
        };
        if !path.starts_with('/') {
            return Err(BadEndpoint::Path(shown()));
        }
        if path.contains(['?', '#']) {
            return Err(BadEndpoint::Extra(shown()));
        }
        Self::at(Path::new(path))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

/// A transport error with its causes, which its own text leaves out.
pub(crate) fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, why: &str) {
        let error = text.parse::<Endpoint>().unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }

    #[test]
    fn only_absolute_unix_sockets_are_endpoints() {
        for text in ["unix:///run/agent.sock", "unix:/run/agent.sock"] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), "unix:///run/agent.sock");
        }
        refused("", "not a Unix socket");
        refused("/run/agent.sock", "not a Unix socket");
        refused("tcp://127.0.0.1:8081", "not a Unix socket");
        refused("unix://run/agent.sock", "three slashes");
        refused("unix:agent.sock", "three slashes");
        refused("unix:", "three slashes");
        refused("unix:///run/a?b", "query");
        refused(&format!("unix:///{}", "a".repeat(107)), "over the limit");
    }
}
