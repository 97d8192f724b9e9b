//! One agent's standing connection: its stream, and the calls beside it.

use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use countersign_api::Message as _;
use countersign_api::standing::{CALLS_MAX, Reader, elements_within, put};
use countersign_api::v1::answer::Outcome;
use countersign_api::v1::call::Asked as Call;
use countersign_api::v1::from_agent::Step as Heard;
use countersign_api::v1::from_server::Step as Said;
use countersign_api::v1::sync_request::Step as Asked;
use countersign_api::{v1, wire};
use countersign_identity::Code;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::task::{JoinError, JoinSet};

use crate::edge::Peer;
use crate::edge::service::NodeService;
use crate::publish::Live;
use crate::refusal::Refused;

/// The largest message of an agent: a full report.
const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The most items of one message: a full report has so many. An item of two bytes takes a hundred times as much once it is read.
const ELEMENTS_MAX: usize = 12_288;
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
    /// What is written next, and then `out`.
    told: Bytes,
    out: BytesMut,
    live: Option<Box<Live>>,
    /// Tasks of their own: what waits for its turn at the store is not held up by what this connection waits for.
    calls: JoinSet<v1::Answer>,
}

enum Event {
    Heard(io::Result<Option<Bytes>>),
    Told(Result<Bytes, Refused>),
    Answered(Result<v1::Answer, JoinError>),
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
            told: Bytes::new(),
            out: BytesMut::new(),
            live: None,
            calls: JoinSet::new(),
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
            Event::Heard(Ok(Some(message))) => self.hear(read(&message)?).await?,
            Event::Heard(Ok(None)) => return Err(Over::Gone),
            Event::Heard(Err(why)) => return Err(over(&why)),
            // All of what was to be written before was written.
            Event::Told(told) => self.told = told?,
            Event::Answered(Ok(answer)) => self.say(Said::Answer(answer)),
            // It panicked, which is told where it happened.
            Event::Answered(Err(_)) => return Err(Over::Gone),
        }
        self.flush().await
    }

    async fn event(&mut self) -> Event {
        let Self { io, reader, live, calls, .. } = self;
        tokio::select! {
            heard = reader.bytes(io), if calls.len() < CALLS_MAX => Event::Heard(heard),
            told = next(live) => Event::Told(told),
            Some(answer) = calls.join_next() => Event::Answered(answer),
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
        let number = call.number;
        let asked = match (call.asked, self.live.as_ref().and_then(|live| live.known())) {
            (Some(Call::Report(report)), Some(caller)) => {
                let outcome = self.service.report_of(caller, report);
                return self.say(Said::Answer(answer(number, outcome)));
            }
            (asked, _) => asked,
        };
        let (service, peer) = (Arc::clone(&self.service), Arc::clone(&self.peer));
        self.calls.spawn(async move {
            let outcome = match asked {
                Some(asked) => service.answer(&peer, asked).await,
                None => Err(unexpected("a call of an unknown kind")),
            };
            answer(number, outcome)
        });
    }

    fn say(&mut self, step: Said) {
        put(&v1::FromServer { step: Some(step) }, &mut self.out);
    }

    async fn flush(&mut self) -> Result<(), Over> {
        if self.told.is_empty() && self.out.is_empty() {
            return Ok(());
        }
        while !self.told.is_empty() {
            timely(self.io.write_buf(&mut self.told)).await?;
        }
        while !self.out.is_empty() {
            timely(self.io.write_buf(&mut self.out)).await?;
        }
        timely(self.io.flush()).await?;
        // Between messages it holds nothing.
        (self.told, self.out) = (Bytes::new(), BytesMut::new());
        Ok(())
    }

    /// Nothing that was asked is answered any more.
    pub(super) fn give_up(&mut self) {
        self.calls.abort_all();
    }

    /// Answers what was asked already, says why nothing follows, and closes.
    pub(super) async fn end(mut self, refused: &Refused) -> Result<(), Over> {
        self.live = None;
        while let Some(answer) = self.calls.join_next().await {
            answer.into_iter().for_each(|answer| self.say(Said::Answer(answer)));
        }
        self.say(Said::Ended(wire::refusal(refused.code, &refused.why)));
        self.flush().await?;
        // The caller may have gone before us.
        self.io.shutdown().await.map_err(|_gone| Over::Gone)
    }
}

fn answer(number: u32, outcome: Result<Outcome, Refused>) -> v1::Answer {
    let refused = |refused: Refused| Outcome::Refused(wire::refusal(refused.code, &refused.why));
    v1::Answer { number, outcome: Some(outcome.unwrap_or_else(refused)) }
}

async fn next(live: &mut Option<Box<Live>>) -> Result<Bytes, Refused> {
    match live {
        Some(live) => live.next().await,
        None => std::future::pending().await,
    }
}

/// A step of writing, which has to get somewhere in time.
async fn timely<T>(step: impl Future<Output = io::Result<T>>) -> Result<T, Over> {
    let mut step = std::pin::pin!(step);
    // Most need not wait, and no timer.
    let at_once = std::future::poll_fn(|cx| match step.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => Poll::Ready(None),
    });
    let done = match at_once.await {
        Some(done) => Ok(done),
        None => tokio::time::timeout(WRITE_TIMEOUT, step).await,
    };
    match done {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) | Err(_) => Err(Over::Gone),
    }
}

/// Reads one message of an agent.
///
/// # Errors
/// When it is none, or holds too many items.
pub(crate) fn read(message: &Bytes) -> Result<v1::FromAgent, Refused> {
    if !elements_within(message, ELEMENTS_MAX) {
        let why = format!("a message holds more than {ELEMENTS_MAX} items");
        return Err(Refused::new(Code::TooLarge, why));
    }
    v1::FromAgent::decode(message.clone()).map_err(|why| {
        Refused::new(Code::NotUnderstood, format!("what came is not understood: {why}"))
    })
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
