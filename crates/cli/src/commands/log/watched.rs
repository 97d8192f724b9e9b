//! A log as a witness sees it: its checkpoint and its tiles, over the admin socket or over plain HTTP.

use std::time::Duration;

use anyhow::Result;
use countersign_api::admin::AdminClient;
use countersign_audit::{NOTE_BYTES_MAX, Tile};
use countersign_identity::Incarnation;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::exit::Failure;

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A log to watch.
pub(super) enum Watched {
    Server(AdminClient),
    Http { authority: String, prefix: String },
}

impl Watched {
    /// The log that is served here, by C2SP tlog-tiles. Its signatures vouch for it, so it needs no TLS.
    pub(super) fn at(url: &str) -> Result<Self, Failure> {
        let refuse = || {
            let url = crate::output::printable(url);
            Failure::not_understood(format!("`--log {url}`: expected `http://HOST:PORT`"))
        };
        let uri: Uri = url.parse().map_err(|_bad| refuse())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
        let authority = authority.ok_or_else(refuse)?;
        let port = authority.port_u16().unwrap_or(80);
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Ok(Self::Http { authority: format!("{}:{port}", authority.host()), prefix })
    }

    /// The newest checkpoint.
    pub(super) async fn checkpoint(&self) -> Result<Vec<u8>> {
        match self {
            Self::Server(client) => Ok(client.checkpoint(None).await?.to_vec()),
            Self::Http { authority, prefix } => {
                Ok(get(authority, &format!("{prefix}/checkpoint")).await?)
            }
        }
    }

    /// A tile of the log of an incarnation.
    pub(super) async fn tile(&self, of: Incarnation, tile: Tile) -> Result<Vec<u8>> {
        match self {
            Self::Server(client) => Ok(client.tile(of, &tile.to_string()).await?.to_vec()),
            Self::Http { authority, prefix } => {
                // Our own port has a prefix for each incarnation; any other prefix is that of one log.
                let prefix = match prefix.as_str() {
                    "" => format!("/log/{of}"),
                    prefix => prefix.to_owned(),
                };
                Ok(get(authority, &format!("{prefix}/tile/{tile}")).await?)
            }
        }
    }
}

async fn get(authority: &str, path: &str) -> Result<Vec<u8>, Failure> {
    let asked = tokio::time::timeout(ANSWER_TIMEOUT, exchange(authority, path)).await;
    let away = |why: &str| Failure::unreachable(format!("`http://{authority}{path}`: {why}"));
    match asked {
        Err(_elapsed) => Err(away("no answer in time")),
        Ok(Err(error)) => Err(away(&error.to_string())),
        Ok(Ok((StatusCode::OK, body))) => Ok(body),
        Ok(Ok((status, _))) => Err(away(&format!("the answer is {status}"))),
    }
}

async fn exchange(
    authority: &str,
    path: &str,
) -> Result<(StatusCode, Vec<u8>), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(authority).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header("host", authority).body(Empty::<Bytes>::new())?;
    // The connection ends with the exchange.
    tokio::select! {
        ended = connection => Err(ended.err().map_or("the connection broke".into(), Into::into)),
        answer = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), NOTE_BYTES_MAX).collect().await?;
            Ok((status, body.to_bytes().to_vec()))
        } => answer,
    }
}
