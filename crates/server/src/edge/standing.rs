//! One agent's standing connection: its stream, and the calls beside it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use countersign_api::standing::{CALLS_MAX, Reader, put};
use countersign_api::v1::answer::Outcome;
use countersign_api::v1::from_agent::Step as Heard;
use countersign_api::v1::from_server::Step as Said;
use countersign_api::v1::sync_request::Step as Asked;
use countersign_api::{v1, wire};
use countersign_identity::Code;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use crate::edge::Peer;
use crate::edge::service::NodeService;
use crate::publish::Live;
use crate::refusal::Refused;

/// The largest message of an agent: a full report.
const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// From its first byte on, a message is whole within so long.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// A caller that takes nothing of what is written for so long is cut.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection that is served.
pub(super) struct Standing<S> {
    io: S,
    service: Arc<NodeService>,
    peer: Arc<Peer>,
    reader: Reader,
    /// What is written next.
    out: BytesMut,
    live: Option<Box<Live>>,
    calls: FuturesUnordered<BoxFuture<'static, v1::Answer>>,
}

enum Event {
    Heard(io::Result<Option<v1::FromAgent>>),
    Told(Result<v1::SyncResponse, Refused>),
    Answered(v1::Answer),
}

/// Why a connection is served no more.
pub(super) enum Over {
    /// The caller has gone, or does not take what is said to it.
    Gone,
    /// It is to be told why.
    Refused(Refused),
}

impl From<Refused> for Over {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Standing<S> {
    pub(super) fn new(io: S, service: Arc<NodeService>, peer: Arc<Peer>) -> Self {
        Self {
            io,
            service,
            peer,
            reader: Reader::new(MESSAGE_BYTES_MAX, MESSAGE_TIMEOUT),
            out: BytesMut::new(),
            live: None,
            calls: FuturesUnordered::new(),
        }
    }

    /// Serves until there is a reason not to. Nothing is lost when it is dropped.
    pub(super) async fn run(&mut self) -> Over {
        loop {
            if let Err(over) = self.turn().await {
                return over;
            }
        }
    }

    async fn turn(&mut self) -> Result<(), Over> {
        match self.event().await {
            Event::Heard(Ok(Some(message))) => self.hear(message).await?,
            Event::Heard(Ok(None)) => return Err(Over::Gone),
            Event::Heard(Err(why)) => return Err(over(&why)),
            Event::Told(told) => {
                self.say(Said::Sync(told?));
                // In one piece: a crowd is told in half of the time.
                if let Some(rest) = self.live.as_mut().and_then(|live| live.rest()) {
                    self.say(Said::Sync(rest));
                }
            }
            Event::Answered(answer) => self.say(Said::Answer(answer)),
        }
        self.flush().await
    }

    async fn event(&mut self) -> Event {
        let Self { io, reader, live, calls, .. } = self;
        tokio::select! {
            heard = reader.next(io), if calls.len() < CALLS_MAX => Event::Heard(heard),
            told = next(live) => Event::Told(told),
            Some(answer) = calls.next() => Event::Answered(answer),
        }
    }

    async fn hear(&mut self, message: v1::FromAgent) -> Result<(), Refused> {
        match message.step {
            Some(Heard::Call(call)) => {
                self.call(call);
                Ok(())
            }
            Some(Heard::Sync(v1::SyncRequest { step: Some(step) })) => match (step, &mut self.live)
            {
                (Asked::Hello(hello), None) => {
                    let live = self.service.sync(Arc::clone(&self.peer), hello).await?;
                    self.live = Some(Box::new(live));
                    Ok(())
                }
                (Asked::Ack(ack), Some(live)) => live.hear(ack).await,
                (Asked::Hello(_), Some(_)) => Err(unexpected("a second hello")),
                (Asked::Ack(_), None) => Err(unexpected("an acknowledgement before the hello")),
            },
            Some(Heard::Sync(v1::SyncRequest { step: None })) | None => {
                Err(unexpected("a message of an unknown kind"))
            }
        }
    }

    fn call(&mut self, call: v1::Call) {
        let (service, peer) = (Arc::clone(&self.service), Arc::clone(&self.peer));
        self.calls.push(Box::pin(async move {
            let outcome = match call.asked {
                Some(asked) => service.answer(&peer, asked).await,
                None => Err(unexpected("a call of an unknown kind")),
            };
            let outcome = outcome.unwrap_or_else(|refused| {
                Outcome::Refused(wire::refusal(refused.code, &refused.why))
            });
            v1::Answer { number: call.number, outcome: Some(outcome) }
        }));
    }

    fn say(&mut self, step: Said) {
        put(&v1::FromServer { step: Some(step) }, &mut self.out);
    }

    async fn flush(&mut self) -> Result<(), Over> {
        if self.out.is_empty() {
            return Ok(());
        }
        let writing = async {
            self.io.write_all_buf(&mut self.out).await?;
            self.io.flush().await
        };
        match tokio::time::timeout(WRITE_TIMEOUT, writing).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Err(Over::Gone),
        }
        // Between messages it holds nothing.
        self.out = BytesMut::new();
        Ok(())
    }

    /// Answers what was asked already, says why nothing follows, and closes.
    pub(super) async fn end(mut self, refused: &Refused) -> Result<(), Over> {
        self.live = None;
        while let Some(answer) = self.calls.next().await {
            self.say(Said::Answer(answer));
        }
        self.say(Said::Ended(wire::refusal(refused.code, &refused.why)));
        self.flush().await?;
        // The caller may have gone before us.
        self.io.shutdown().await.map_err(|_gone| Over::Gone)
    }
}

async fn next(live: &mut Option<Box<Live>>) -> Result<v1::SyncResponse, Refused> {
    match live {
        Some(live) => live.next().await,
        None => std::future::pending().await,
    }
}

fn over(why: &io::Error) -> Over {
    match why.kind() {
        io::ErrorKind::InvalidData => {
            Refused::new(Code::NotUnderstood, format!("what came is not understood: {why}")).into()
        }
        io::ErrorKind::TimedOut => Refused::new(Code::TimedOut, why.to_string()).into(),
        _ => Over::Gone,
    }
}

fn unexpected(what: &str) -> Refused {
    Refused::new(Code::NotUnderstood, format!("{what} was not expected"))
}
