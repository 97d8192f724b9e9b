//! A small client over the admin socket.

mod admission;
mod authorities;
mod error;
mod log;
mod manifests;
mod reviews;
mod revocations;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

pub use self::error::AdminError;
use super::ProblemDetails;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a change may take: `apply` of a large domain compiles its policies.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Speaks to one server over its admin socket. Each request is a connection of its own.
#[derive(Clone, Debug)]
pub struct AdminClient {
    socket: PathBuf,
}

impl AdminClient {
    /// For the server whose admin socket is here. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The JSON of any `GET`, as it came.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        let answer = self.ask(Method::GET, path, None).await?;
        understand(path, &answer)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AdminError> {
        let body =
            serde_json::to_vec(body).map_err(|error| not_understood(path, error.to_string()))?;
        let answer = self.ask(Method::POST, path, Some(body)).await?;
        understand(path, &answer)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, AdminError> {
        let limit = if method == Method::GET { ANSWER_TIMEOUT } else { CHANGE_TIMEOUT };
        tokio::time::timeout(limit, self.exchange(method, path, body))
            .await
            .map_err(|_elapsed| AdminError::TimedOut { path: self.socket.clone(), limit })?
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, AdminError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            let path = self.socket.clone();
            match source.kind() {
                std::io::ErrorKind::PermissionDenied => AdminError::NotAdmitted { path },
                _ => AdminError::Unreachable { path, source },
            }
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| not_understood(path, error.to_string()))?;
        // The connection makes progress only while it is polled, and ends with the answer.
        let (response, _connection) = tokio::join!(
            async move {
                let response = sender.send_request(request).await?;
                let (parts, body) = response.into_parts();
                Ok::<_, hyper::Error>((parts, Limited::new(body, ANSWER_BYTES_MAX).collect().await))
            },
            connection,
        );
        let (parts, collected) = response.map_err(|error| self.broken(error))?;
        let answer = collected.map_err(|error| self.broken(error))?.to_bytes();
        refuse(path, parts.status, &answer)?;
        Ok(answer)
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> AdminError {
        AdminError::Broken { path: self.socket.clone(), source: source.into() }
    }
}

fn refuse(request: &str, status: StatusCode, answer: &[u8]) -> Result<(), AdminError> {
    if status.is_success() {
        return Ok(());
    }
    match ProblemDetails::decode(answer) {
        Ok(problem) => Err(AdminError::Refused(Box::new(problem))),
        Err(bad) => Err(not_understood(request, format!("HTTP status {status}; {bad}"))),
    }
}

fn understand<T: DeserializeOwned>(request: &str, answer: &[u8]) -> Result<T, AdminError> {
    serde_json::from_slice(answer).map_err(|error| not_understood(request, error.to_string()))
}

fn not_understood(request: &str, why: String) -> AdminError {
    AdminError::NotUnderstood { request: request.to_owned(), why }
}
