//! OTLP over HTTP with bodies of JSON: where it goes, and one exchange (OpenTelemetry Protocol, section OTLP/HTTP).

use std::io;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The port that collectors listen on for it.
pub(super) const PORT: u16 = 4318;
/// The longest first line of an answer.
const STATUS_BYTES_MAX: usize = 1024;

/// Where a receiver is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Collector {
    authority: String,
    prefix: String,
}

impl Collector {
    /// Where to connect to, `HOST:PORT`.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Where a signal goes, such as `traces`.
    pub(super) fn path(&self, signal: &str) -> String {
        format!("{}/v1/{signal}", self.prefix)
    }

    /// What stands behind the scheme: `HOST[:PORT][/PREFIX]`.
    pub(super) fn behind_scheme(rest: &str) -> Option<Self> {
        let (authority, prefix) = match rest.split_once('/') {
            Some((authority, prefix)) => (authority, format!("/{}", prefix.trim_end_matches('/'))),
            None => (rest, String::new()),
        };
        let graphic = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let fine = !authority.is_empty()
            && !authority.contains(['@', '?', '#'])
            && graphic(authority)
            && graphic(&prefix);
        if !fine {
            return None;
        }
        let prefix = if prefix == "/" { String::new() } else { prefix };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            Some(_) | None => (authority, PORT),
        };
        (!host.is_empty()).then(|| Self { authority: format!("{host}:{port}"), prefix })
    }
}

/// Sends one body on a connection of its own, and says with which status it was answered.
///
/// # Errors
/// When the connection breaks, or what comes back is not HTTP.
pub(super) async fn post<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    (authority, path): (&str, &str),
    body: &[u8],
) -> io::Result<u16> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    stream.flush().await?;
    let mut line = Vec::new();
    let mut buffer = [0; 256];
    while !line.contains(&b'\n') {
        let read = stream.read(&mut buffer).await?;
        if read == 0 || STATUS_BYTES_MAX < line.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no answer of HTTP came back"));
        }
        line.extend_from_slice(&buffer[..read]);
    }
    let line = String::from_utf8_lossy(&line);
    let mut words = line.split_ascii_whitespace();
    let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
    let status = words.next().filter(|_| is_http).and_then(|status| status.parse().ok());
    status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}

/// An attribute with a text.
pub(super) fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

/// An attribute with a number. As JSON has no integers of 64 bits, they travel as texts.
pub(super) fn number(key: &str, value: i64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_is_a_host_and_a_port() {
        let at = |text: &str| {
            Collector::behind_scheme(text).map(|at| (at.authority().to_owned(), at.path("logs")))
        };
        let told = |authority: &str, path: &str| Some((authority.to_owned(), path.to_owned()));
        assert_eq!(at("127.0.0.1:9"), told("127.0.0.1:9", "/v1/logs"));
        assert_eq!(at("collector/"), told("collector:4318", "/v1/logs"));
        assert_eq!(at("[::1]:9/otlp/"), told("[::1]:9", "/otlp/v1/logs"));
        for bad in ["", "u@c:1", "c:99999", "c\r\nx: y", ":1", "c?x"] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn the_status_is_read_and_noise_is_no_answer() {
        let answered = async |answer: &'static [u8]| {
            let (near, mut far) = tokio::io::duplex(4096);
            let server = tokio::spawn(async move {
                let mut request = [0; 1024];
                let read = far.read(&mut request).await.unwrap();
                far.write_all(answer).await.unwrap();
                String::from_utf8_lossy(&request[..read]).into_owned()
            });
            let status = post(near, ("c:4318", "/v1/logs"), b"{}").await;
            (status.ok(), server.await.unwrap())
        };
        let (status, request) = answered(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        assert_eq!(status, Some(200));
        assert!(request.starts_with("POST /v1/logs HTTP/1.1\r\nhost: c:4318\r\n"), "{request}");
        assert_eq!(answered(b"HTTP/1.1 503 Away\r\n\r\n").await.0, Some(503));
        assert_eq!(answered(b"SSH-2.0-x\r\n").await.0, None);
        assert_eq!(answered(b"").await.0, None);
    }
}
