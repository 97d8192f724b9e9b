//! The agent's end of a standing connection.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::Code;
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{CALLS_MAX, Reader, write};
use crate::v1::answer::Outcome;
use crate::v1::call::Asked;
use crate::v1::from_agent::Step as Out;
use crate::v1::from_server::Step as In;
use crate::{v1, wire};

/// Messages each way that wait to be taken.
const QUEUED_MAX: usize = 16;
/// A whole snapshot of a large domain comes within so long, or the server is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a call has no answer, or why the stream has ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// The server's word.
    #[error("{0}")]
    Refused(wire::Refused),
    /// The connection is gone.
    #[error("the connection to the server is lost: {0}")]
    Lost(String),
    /// The server said what this version does not understand.
    #[error("the server's answer is not understood: {0}")]
    Broken(String),
}

/// An open connection.
#[derive(Debug)]
pub struct Standing {
    /// Where calls are made.
    pub calls: Calls,
    /// What the server says of the state.
    pub told: mpsc::Receiver<v1::SyncResponse>,
}

/// Calls on an open connection.
#[derive(Clone, Debug)]
pub struct Calls {
    outgoing: mpsc::Sender<v1::FromAgent>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    room: Semaphore,
}

#[derive(Debug, Default)]
struct Waiting {
    last: u32,
    answers: HashMap<u32, oneshot::Sender<Outcome>>,
    ended: Option<Failed>,
}

impl Standing {
    /// Speaks on this connection. The second part moves what is said; it must be run, ends when the connection does, and ends
    /// the connection when it is dropped.
    pub fn over<S>(stream: S) -> (Self, impl Future<Output = ()>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (outgoing, queue) = mpsc::channel(QUEUED_MAX);
        let (tell, told) = mpsc::channel(QUEUED_MAX);
        let waiting = Mutex::default();
        let shared = Arc::new(Shared { waiting, room: Semaphore::new(CALLS_MAX) });
        let (from, to) = tokio::io::split(stream);
        let calls = Calls { outgoing, shared: Arc::clone(&shared) };
        let work = async move {
            let shared = Ends(shared);
            let Ends(shared) = &shared;
            // Apart, so that neither end waits for the other to read.
            let ended = tokio::select! {
                ended = hear(from, shared, tell) => ended,
                ended = say(to, queue) => ended,
            };
            shared.end(ended);
        };
        (Self { calls, told }, work)
    }
}

impl Calls {
    /// Says hello, or acknowledges.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn sync(&self, step: v1::sync_request::Step) -> Result<(), Failed> {
        self.send(Out::Sync(v1::SyncRequest { step: Some(step) })).await
    }

    /// Asks for SVIDs.
    ///
    /// # Errors
    /// The server's refusal, or that there is no answer.
    pub async fn sign(&self, request: v1::SignRequest) -> Result<v1::SignResponse, Failed> {
        match self.ask(Asked::Sign(request)).await? {
            Outcome::Sign(answer) => Ok(answer),
            other => Err(unasked(&other)),
        }
    }

    /// Hands back rules that the server's state lacks.
    ///
    /// # Errors
    /// The server's refusal, or that there is no answer.
    pub async fn hand_back(
        &self,
        request: v1::HandBackRequest,
    ) -> Result<v1::HandBackResponse, Failed> {
        match self.ask(Asked::HandBack(request)).await? {
            Outcome::HandBack(answer) => Ok(answer),
            other => Err(unasked(&other)),
        }
    }

    /// Passes facts and statuses on.
    ///
    /// # Errors
    /// The server's refusal, or that there is no answer.
    pub async fn report(&self, request: v1::ReportRequest) -> Result<v1::ReportResponse, Failed> {
        match self.ask(Asked::Report(request)).await? {
            Outcome::Report(answer) => Ok(answer),
            other => Err(unasked(&other)),
        }
    }

    /// The revocation lists of all authorities.
    ///
    /// # Errors
    /// The server's refusal, or that there is no answer.
    pub async fn lists(&self, request: v1::ListsRequest) -> Result<v1::ListsResponse, Failed> {
        match self.ask(Asked::Lists(request)).await? {
            Outcome::Lists(answer) => Ok(answer),
            other => Err(unasked(&other)),
        }
    }

    /// Why the connection has ended.
    pub fn why_ended(&self) -> Failed {
        let waiting = self.shared.lock();
        waiting.ended.clone().unwrap_or_else(|| Failed::Lost("it was let go of".to_owned()))
    }

    async fn ask(&self, asked: Asked) -> Result<Outcome, Failed> {
        let _room = self.shared.room.acquire().await.map_err(|_closed| self.why_ended())?;
        let (answer, answered) = oneshot::channel();
        let number = self.shared.expect(answer)?;
        let _forget = Forget { shared: &self.shared, number };
        self.send(Out::Call(v1::Call { number, asked: Some(asked) })).await?;
        match answered.await.map_err(|_ended| self.why_ended())? {
            Outcome::Refused(refusal) => Err(refused(refusal)),
            outcome => Ok(outcome),
        }
    }

    async fn send(&self, step: Out) -> Result<(), Failed> {
        let message = v1::FromAgent { step: Some(step) };
        self.outgoing.send(message).await.map_err(|_ended| self.why_ended())
    }
}

/// What is let go of answers nobody any more.
struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end(Failed::Lost("it was let go of".to_owned()));
    }
}

/// A call that is given up is not waited for any more.
struct Forget<'a> {
    shared: &'a Shared,
    number: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.lock().answers.remove(&self.number);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, answer: oneshot::Sender<Outcome>) -> Result<u32, Failed> {
        let mut waiting = self.lock();
        if let Some(ended) = &waiting.ended {
            return Err(ended.clone());
        }
        waiting.last = waiting.last.wrapping_add(1);
        let number = waiting.last;
        waiting.answers.insert(number, answer);
        Ok(number)
    }

    fn answer(&self, answer: v1::Answer) -> Result<(), Failed> {
        let Some(outcome) = answer.outcome else {
            return Err(Failed::Broken("an answer of an unknown kind".to_owned()));
        };
        let waiting = self.lock().answers.remove(&answer.number);
        if let Some(waiting) = waiting {
            // Whoever asked may have given up.
            let _unheard = waiting.send(outcome);
        }
        Ok(())
    }

    fn end(&self, why: Failed) {
        self.room.close();
        let mut waiting = self.lock();
        waiting.ended.get_or_insert(why);
        waiting.answers.clear();
    }
}

/// Hears until the connection ends, and says why it did.
async fn hear(
    mut from: ReadHalf<impl AsyncRead + AsyncWrite + Unpin>,
    shared: &Shared,
    tell: mpsc::Sender<v1::SyncResponse>,
) -> Failed {
    let mut reader = Reader::new(wire::MESSAGE_SIZE_MAX, PATIENCE);
    loop {
        let message = match reader.next::<v1::FromServer>(&mut from).await {
            Ok(Some(message)) => message,
            Ok(None) => return Failed::Lost("the server closed it".to_owned()),
            Err(why) => return lost(&why),
        };
        match message.step {
            // Whoever listens to the calls alone is told nothing.
            Some(In::Sync(response)) => drop(tell.send(response).await),
            Some(In::Answer(answer)) => {
                if let Err(broken) = shared.answer(answer) {
                    return broken;
                }
            }
            Some(In::Ended(refusal)) => return refused(refusal),
            None => return Failed::Broken("a message of an unknown kind".to_owned()),
        }
    }
}

async fn say(
    mut to: WriteHalf<impl AsyncRead + AsyncWrite + Unpin>,
    mut queue: mpsc::Receiver<v1::FromAgent>,
) -> Failed {
    while let Some(message) = queue.recv().await {
        if write(&mut to, &message).await.is_err() {
            // The reason is read, not written.
            break;
        }
    }
    std::future::pending().await
}

fn lost(why: &io::Error) -> Failed {
    if why.kind() == io::ErrorKind::InvalidData {
        return Failed::Broken(why.to_string());
    }
    Failed::Lost(why.to_string())
}

fn refused(refusal: v1::Refusal) -> Failed {
    match refusal.try_into() {
        Ok(refused) => Failed::Refused(refused),
        Err(why) => Failed::Broken(format!("{why}")),
    }
}

fn unasked(_outcome: &Outcome) -> Failed {
    Failed::Broken("an answer to another question".to_owned())
}

impl Failed {
    /// The reason, of the closed list.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(refused) => refused.code,
            Self::Lost(_) => Code::Unavailable,
            Self::Broken(_) => Code::Internal,
        }
    }
}
