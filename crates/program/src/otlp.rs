//! OTLP over HTTP with bodies of JSON: where it goes, and one exchange (OpenTelemetry Protocol, section OTLP/HTTP).

use std::fmt;
use std::io;
use std::str::FromStr;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The port that collectors listen on for it.
pub const PORT: u16 = 4318;
/// The longest first line of an answer.
const STATUS_BYTES_MAX: usize = 1024;

/// A collector, reached in the clear: one beside the program, which knows the way on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    authority: String,
    prefix: String,
}

/// A text that names no collector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no collector: write `http://HOST:PORT`")]
pub struct BadCollector(String);

impl Collector {
    /// Where to connect to, `HOST:PORT`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Where a signal goes, such as `traces`.
    pub fn path(&self, signal: &str) -> String {
        format!("{}/v1/{signal}", self.prefix)
    }

    /// What stands behind the scheme: `HOST[:PORT][/PREFIX]`.
    pub fn behind_scheme(rest: &str) -> Option<Self> {
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

impl FromStr for Collector {
    type Err = BadCollector;

    fn from_str(text: &str) -> Result<Self, BadCollector> {
        let rest = text.strip_prefix("http://");
        let bad = || BadCollector(text.chars().take(80).collect());
        rest.and_then(Self::behind_scheme).ok_or_else(bad)
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.prefix)
    }
}

/// Sends one body on a connection of its own, and says with which status it was answered.
///
/// # Errors
/// When the connection breaks, or what comes back is not HTTP.
pub async fn post<S: AsyncRead + AsyncWrite + Unpin>(
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
pub fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

/// An attribute with a number. As JSON has no integers of 64 bits, they travel as texts.
pub fn number(key: &str, value: i64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_a_host_and_a_port_in_the_clear() {
        let named = |text: &str| text.parse::<Collector>().map(|collector| collector.to_string());
        assert_eq!(named("http://127.0.0.1:4318").unwrap(), "http://127.0.0.1:4318");
        assert_eq!(named("http://collector/").unwrap(), "http://collector:4318");
        assert_eq!(named("http://[::1]:9/otlp/").unwrap(), "http://[::1]:9/otlp");
        assert_eq!("http://c/a".parse::<Collector>().unwrap().path("traces"), "/a/v1/traces");
        for bad in [
            "",
            "127.0.0.1:4318",
            "https://c:1",
            "http://",
            "http://u@c:1",
            "http://c:99999",
            "http://c\r\nx: y",
        ] {
            assert!(named(bad).is_err(), "{bad}");
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
