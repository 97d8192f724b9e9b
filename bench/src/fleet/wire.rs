//! gRPC as a crowd speaks it: one HTTP/2 connection an agent, driven by the agent's own task and by nothing else.

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use countersign_api::Message;
use countersign_api::workload::X509svidRequest;
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite};

/// A whole snapshot fits, so that no agent waits for another's turn.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Before each message: whether it is compressed, and how long it is.
const PREFIX_BYTES: usize = 5;

/// A connection, and what begins calls on it.
pub(crate) async fn over<S>(stream: S) -> Result<(SendRequest<Bytes>, Connection<S, Bytes>)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .enable_push(false);
    Ok(builder.handshake(stream).await?)
}

/// Runs `work` while the connection is driven; the connection does not outlive it.
pub(crate) async fn driving<S, T>(
    connection: Connection<S, Bytes>,
    work: impl Future<Output = Result<T>>,
) -> Result<T>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    tokio::select! {
        biased;
        outcome = work => outcome,
        ended = connection => {
            ended?;
            bail!("the server ended the connection")
        }
    }
}

/// The gRPC status with which a call ended.
#[derive(Debug, thiserror::Error)]
#[error("gRPC status {status}: {why}")]
pub(crate) struct Refused {
    /// Its number.
    pub(crate) status: String,
    why: String,
}

/// A call that is under way.
pub(crate) struct Call {
    outgoing: SendStream<Bytes>,
    answer: Answer,
}

enum Answer {
    Awaited(ResponseFuture),
    Read(Messages),
    Ended,
}

impl Call {
    /// Begins to call this method of the service for agents.
    pub(crate) async fn begin(sender: &SendRequest<Bytes>, method: &str) -> Result<Self> {
        Self::to(sender, &format!("/countersign.v1.Node/{method}"), None).await
    }

    /// Asks the Workload API for SVIDs, as long as the call is held.
    pub(crate) async fn svids(sender: &SendRequest<Bytes>) -> Result<Self> {
        let header = Some(("workload.spiffe.io", "true"));
        let mut call = Self::to(sender, "/SpiffeWorkloadAPI/FetchX509SVID", header).await?;
        call.outgoing.send_data(framed(&X509svidRequest {})?, true)?;
        Ok(call)
    }

    async fn to(
        sender: &SendRequest<Bytes>,
        path: &str,
        header: Option<(&str, &str)>,
    ) -> Result<Self> {
        let mut sender = sender.clone().ready().await?;
        let mut request = http::Request::post(format!("http://server{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let (answer, outgoing) = sender.send_request(request.body(())?, false)?;
        Ok(Self { outgoing, answer: Answer::Awaited(answer) })
    }

    pub(crate) fn say(&mut self, message: &impl Message) -> Result<()> {
        Ok(self.outgoing.send_data(framed(message)?, false)?)
    }

    /// The next message of the answer; `None` at its end. Nothing is lost when it is dropped.
    pub(crate) async fn hear<T: Message + Default>(&mut self) -> Result<Option<T>> {
        loop {
            match &mut self.answer {
                Answer::Awaited(answer) => {
                    let (parts, body) = answer.await?.into_parts();
                    refused(&parts.headers)?;
                    self.answer = Answer::Read(Messages { body, read: BytesMut::new() });
                }
                Answer::Read(messages) => match messages.next().await? {
                    Some(message) => return Ok(Some(message)),
                    None => self.answer = Answer::Ended,
                },
                Answer::Ended => return Ok(None),
            }
        }
    }
}

/// A call with one message each way.
pub(crate) async fn ask<T: Message + Default>(
    sender: &SendRequest<Bytes>,
    method: &str,
    question: &impl Message,
) -> Result<T> {
    let mut call = Call::begin(sender, method).await?;
    call.outgoing.send_data(framed(question)?, true)?;
    call.hear().await?.with_context(|| format!("`{method}` has no answer"))
}

fn framed(message: &impl Message) -> Result<Bytes> {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length)?);
    message.encode(&mut frame)?;
    Ok(frame.freeze())
}

struct Messages {
    body: RecvStream,
    read: BytesMut,
}

impl Messages {
    async fn next<T: Message + Default>(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(message) = self.whole()? {
                return Ok(Some(T::decode(message)?));
            }
            match self.body.data().await {
                Some(bytes) => {
                    let bytes = bytes?;
                    self.body.flow_control().release_capacity(bytes.len())?;
                    self.read.extend_from_slice(&bytes);
                }
                None => {
                    let trailers = self.body.trailers().await?;
                    refused(&trailers.unwrap_or_default())?;
                    return Ok(None);
                }
            }
        }
    }

    /// A message of which everything has come.
    fn whole(&mut self) -> Result<Option<Bytes>> {
        let Some((prefix, rest)) = self.read.split_at_checked(PREFIX_BYTES) else {
            return Ok(None);
        };
        ensure!(prefix.first() == Some(&0), "a compressed message");
        let length = (&prefix[1..]).get_u32() as usize;
        if rest.len() < length {
            return Ok(None);
        }
        self.read.advance(PREFIX_BYTES);
        Ok(Some(self.read.split_to(length).freeze()))
    }
}

fn refused(headers: &http::HeaderMap) -> Result<()> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(status) => {
            let why = text("grpc-message").unwrap_or_default();
            bail!(Refused { status: status.to_owned(), why: why.to_owned() })
        }
    }
}
