//! One connection: how it is made, what it is told first, and what its errors mean.

use std::collections::HashMap;
use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::error::Severity;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Row, Statement};

use super::hosts::{Reached, Server};
use super::schema;
use super::target::{Host, Password, PostgresUrl, Tls};
use super::tls::MakeTls;
use crate::version::{Steps, known};
use crate::{Result, StoreError};

/// How long making a connection may take, each host.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a peer that fell silent is believed.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5);
/// What every connection is told first. All under a second, so that nobody waits long for a replica that hangs. An
/// acknowledged write is durable whatever the database's own default is, and on its standbys if it has synchronous ones.
const SETTINGS: &str = "SET statement_timeout = 900; SET lock_timeout = 800; \
    SET idle_in_transaction_session_timeout = 900; \
    SELECT set_config('synchronous_commit', 'on', false) \
    WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')";

/// Where and how to connect.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) url: PostgresUrl,
    pub(super) password: Password,
    /// Of the schema, what this program knows.
    pub(super) steps: Steps,
    /// How far it was seen to be in an earlier life.
    pub(super) reached: Option<Reached>,
}

impl Target {
    pub(super) fn new(url: PostgresUrl, password: Password) -> Self {
        Self { url, password, steps: schema::STEPS, reached: None }
    }

    /// The same database, of which so much was seen.
    pub(super) fn after(self, reached: Option<Reached>) -> Self {
        Self { reached, ..self }
    }

    pub(super) fn known(&self) -> u64 {
        known(self.steps)
    }

    /// Where it is, to be told.
    pub(super) fn place(&self) -> PathBuf {
        self.url.to_string().into()
    }

    /// Under which name the database shows a connection: it says which version of the schema is known, so that a newer
    /// program sees who is still there. The database keeps 63 bytes.
    fn name(&self) -> String {
        let name = self.url.application.as_deref().unwrap_or("countersign");
        format!("{name:.50}/{}", self.known())
    }
}

/// Why a statement failed.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The database refused it, and with it its transaction: nothing of that was done.
    Refused { code: String, why: String },
    /// The connection is gone, and with it the knowledge of what was done.
    Lost { why: String },
}

impl Fault {
    fn new(error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refusal) if refusal.parsed_severity() == Some(Severity::Error) => {
                let code = refusal.code().code().to_owned();
                Self::Refused { why: format!("{} ({code})", refusal.message()), code }
            }
            Some(fatal) => Self::Lost { why: fatal.message().to_owned() },
            None => Self::Lost { why: told(error) },
        }
    }

    /// Whether the same may succeed when it is run again: it met another writer.
    pub(super) fn is_of_a_race(&self) -> bool {
        // Serialization failure, deadlock, lock not available, and a guard or a key that another has moved or taken.
        let races = ["40001", "40P01", "55P03", "23514", "23505"];
        matches!(self, Self::Refused { code, .. } if races.contains(&code.as_str()))
    }

    /// What a caller hears.
    pub(super) fn error(self) -> StoreError {
        match self {
            Self::Lost { why } => StoreError::Unavailable { why },
            Self::Refused { code, why } => {
                // What we sent, or what is stored, does not fit: no wait will mend it.
                let damage = ["22", "23", "42", "XX"].iter().any(|class| code.starts_with(class));
                if damage && code != "42501" {
                    StoreError::Broken { what: why }
                } else {
                    StoreError::Unavailable { why }
                }
            }
        }
    }
}

/// An error with its causes: the outermost alone says little.
fn told(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A statement and its values.
pub(super) struct Command<'a> {
    pub(super) text: &'static str,
    pub(super) values: Vec<Box<dyn ToSql + Sync + Send + 'a>>,
}

impl<'a> Command<'a> {
    pub(super) fn new(
        text: &'static str,
        values: impl IntoIterator<Item = Box<dyn ToSql + Sync + Send + 'a>>,
    ) -> Self {
        Self { text, values: values.into_iter().collect() }
    }
}

/// Makes a command of a text and its values.
macro_rules! command {
    ($text:expr $(, $value:expr)* $(,)?) => {
        $crate::postgres::session::Command::new($text, [$(Box::new($value) as Box<_>),*])
    };
}
pub(super) use command;

/// A connection that was told our settings.
pub(super) struct Session {
    client: Client,
    statements: Mutex<HashMap<&'static str, Statement>>,
    warned: Arc<AtomicBool>,
    /// Where it leads, if the database tells.
    pub(super) server: Option<Server>,
}

impl Session {
    /// Connects to a host if it takes writes. `notified` hears of notifications.
    pub(super) async fn connect_to(
        target: &Target,
        host: &Host,
        notified: Arc<Notify>,
    ) -> Result<Self> {
        let Target { url, password, .. } = target;
        let mut config = Config::new();
        config.user(&url.user).dbname(&url.database);
        config.application_name(target.name());
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config.keepalives_idle(SILENCE_TIMEOUT).keepalives_interval(SILENCE_TIMEOUT / 5);
        config.keepalives_retries(5).tcp_user_timeout(SILENCE_TIMEOUT);
        match host {
            Host::Tcp { name, port } => config.host(name).port(*port),
            Host::Unix { folder, port } => config.host_path(folder).port(*port),
        };
        if let Some(password) = password.find(url, host)? {
            config.password(password.as_bytes());
        }
        let warned = Arc::new(AtomicBool::new(false));
        let failed = |error: tokio_postgres::Error| StoreError::Unavailable {
            why: format!("{}: {}", name(host), told_of(&Fault::new(&error))),
        };
        let client = if matches!((&url.tls, host), (Tls::Off, _) | (_, Host::Unix { .. })) {
            let connecting = config.ssl_mode(SslMode::Disable).connect(NoTls);
            let (client, connection) = connecting.await.map_err(failed)?;
            tokio::spawn(drive(connection, Arc::clone(&warned), notified));
            client
        } else {
            let tls = MakeTls::new(&url.tls)?;
            let connecting = config.ssl_mode(SslMode::Require).connect(tls);
            let (client, connection) = connecting.await.map_err(failed)?;
            tokio::spawn(drive(connection, Arc::clone(&warned), notified));
            client
        };
        client.batch_execute(SETTINGS).await.map_err(failed)?;
        Ok(Self { client, statements: Mutex::default(), warned, server: None })
    }

    /// Whether it can be used no more.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs a text of any number of statements without values.
    pub(super) async fn run(&self, text: &str) -> std::result::Result<(), Fault> {
        self.client.batch_execute(text).await.map_err(|error| Fault::new(&error))
    }

    /// Gets statements ready, so that those that are then sent together go in their order.
    async fn prepare(
        &self,
        text: &'static str,
    ) -> std::result::Result<Statement, tokio_postgres::Error> {
        let known = || self.statements.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = known().get(text).cloned();
        if let Some(statement) = kept {
            return Ok(statement);
        }
        let statement = self.client.prepare(text).await?;
        known().insert(text, statement.clone());
        Ok(statement)
    }

    /// The rows that a statement gives.
    pub(super) async fn rows(&self, command: &Command<'_>) -> std::result::Result<Vec<Row>, Fault> {
        let failed = |error| Fault::new(&error);
        let statement = self.prepare(command.text).await.map_err(failed)?;
        let values: Vec<&(dyn ToSql + Sync)> =
            command.values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect();
        self.client.query(&statement, &values).await.map_err(failed)
    }

    /// The rows of a statement that is sent once.
    pub(super) async fn rows_of(
        &self,
        text: &str,
        values: &[Box<dyn ToSql + Sync + Send>],
    ) -> std::result::Result<Vec<Row>, Fault> {
        let values: Vec<&(dyn ToSql + Sync)> =
            values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect();
        self.client.query(text, &values).await.map_err(|error| Fault::new(&error))
    }

    /// Sends a beginning, all commands and an end at once, and gives the rows of each command: one round trip.
    ///
    /// The outcome is that of the first that failed; what came after it failed because of it.
    pub(super) async fn together(
        &self,
        begin: Option<&str>,
        commands: &[Command<'_>],
        end: Option<&str>,
    ) -> std::result::Result<Vec<Vec<Row>>, Fault> {
        for command in commands {
            self.prepare(command.text).await.map_err(|error| Fault::new(&error))?;
        }
        let mut sent: Vec<Sent<'_>> = Vec::with_capacity(commands.len() + 2);
        if let Some(begin) = begin {
            sent.push(Box::pin(self.bracket(begin)));
        }
        for command in commands {
            sent.push(Box::pin(self.rows(command)));
        }
        if let Some(end) = end {
            sent.push(Box::pin(self.bracket(end)));
        }
        let outcomes: std::result::Result<Vec<_>, Fault> =
            in_order(sent).await.into_iter().collect();
        let mut rows = outcomes?.into_iter();
        // A beginning gives none.
        Ok(rows.by_ref().skip(usize::from(begin.is_some())).take(commands.len()).collect())
    }

    async fn bracket(&self, text: &str) -> Outcome {
        self.run(text).await.map(|()| Vec::new())
    }

    /// Whether the database has warned since this was last asked.
    pub(super) fn was_warned(&self) -> bool {
        self.warned.swap(false, Ordering::AcqRel)
    }
}

type Outcome = std::result::Result<Vec<Row>, Fault>;
type Sent<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// Sends statements in their order, and waits for all. A statement goes out when its future is first polled, so all are
/// polled once, in order; then each when those before it are done, since answers come in the same order. None is nested in
/// another, so that a batch of many thousand needs no deep stack.
async fn in_order(mut sent: Vec<Sent<'_>>) -> Vec<Outcome> {
    let mut outcomes: Vec<Option<Outcome>> = sent.iter().map(|_open| None).collect();
    let mut are_sent = false;
    poll_fn(|context| {
        let open = sent.iter_mut().zip(&mut outcomes).filter(|(_, outcome)| outcome.is_none());
        let mut waits = false;
        for (statement, outcome) in open {
            match statement.as_mut().poll(context) {
                Poll::Ready(ended) => *outcome = Some(ended),
                Poll::Pending if are_sent => return Poll::Pending,
                Poll::Pending => waits = true,
            }
        }
        are_sent = true;
        if waits { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    outcomes.into_iter().flatten().collect()
}

fn told_of(fault: &Fault) -> &str {
    match fault {
        Fault::Refused { why, .. } | Fault::Lost { why } => why,
    }
}

pub(super) fn name(host: &Host) -> String {
    match host {
        Host::Tcp { name, port } => format!("`{name}:{port}`"),
        Host::Unix { folder, port } => format!("`{}/.s.PGSQL.{port}`", folder.display()),
    }
}

/// Moves the bytes of a connection until it ends.
async fn drive<S, T>(
    mut connection: Connection<S, T>,
    warned: Arc<AtomicBool>,
    notified: Arc<Notify>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match poll_fn(|context| connection.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notification(_))) => notified.notify_one(),
            Some(Ok(AsyncMessage::Notice(notice))) => {
                if notice.parsed_severity() == Some(Severity::Warning) {
                    tracing::warn!(
                        code = notice.code().code(),
                        "the database warns: {}",
                        notice.message()
                    );
                    warned.store(true, Ordering::Release);
                }
            }
            Some(Ok(_later)) => {}
            Some(Err(error)) => {
                tracing::debug!(why = told(&error), "a connection to the database ended");
                return;
            }
            None => return,
        }
    }
}
