//! A server's start: its directory, its store and its keys are opened, then its addresses.

use std::net::SocketAddr;
use std::sync::Arc;

use countersign_identity::Timestamp;
use countersign_seal::{Kek, KekFile};
use countersign_store::Store;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::parts::{Browsed, Parts};
use super::serving::{Keys, Serving, recall};
use super::told::{notify, tell};
use super::{Ended, Surroundings};
use crate::admin::{Admin, AdminSocket, Mode, Operators, serve};
use crate::authority::{Authorities, Unsealed, internal, unseal};
use crate::config::{Config, Ready, StartError, kek_path};
use crate::directory::{self, Domain};
use crate::incarnation::{
    Beginning, Cause, Found, Known, LogKey, Seen, begin, first_start, read_rules, take_in_the_rest,
};
use crate::state::{Feeder, State};
use crate::storage;
use crate::watch::{self, About, KeptTime, LogTree, TimeGuard};

/// A server whose data directory is open.
pub(super) struct Start {
    pub(super) config: Config,
    pub(super) domain: Domain,
    pub(super) store: Arc<dyn Store>,
    pub(super) socket: AdminSocket,
    pub(super) operators: Operators,
    pub(super) time: Arc<TimeGuard>,
    pub(super) started: Timestamp,
    pub(super) around: Surroundings,
}

pub(super) enum Opened {
    Sealed(String),
    Open(Kek, Authorities),
}

impl Start {
    pub(super) async fn open(config: Config, around: Surroundings) -> Result<Self, StartError> {
        // 1. Whose directory is it?
        let domain = Domain::read(&config.data)?;
        directory::check_private(&config.data)?;
        // 2. The store, which tells of another server on the same directory.
        let store = storage::open(&config.store, &config.data, Arc::clone(&around.entropy)).await?;
        if store.head().await?.revision.number == 0 {
            return Err(StartError::Nothing);
        }
        // 3. The operators' socket, so that they can ask from here on.
        let socket = AdminSocket::bind(&config.admin_path())?;
        let operators = Operators::of(&config.data).map_err(|source| StartError::File {
            action: "look at",
            path: config.data.clone(),
            source,
        })?;
        // 4. What time the log says it was last, and what time it was by what had passed.
        let written = KeptTime::read(&config.data);
        let time = Arc::new(watch::begin(written, &*around.clock, &*store).await?);
        let started = around.clock.now();
        Ok(Self { config, domain, store, socket, operators, time, started, around })
    }

    pub(super) async fn unseal(&self) -> Result<Opened, StartError> {
        // A passphrase takes its time, and its memory.
        let (path, unlock) = (kek_path(&self.config.data), self.config.unlock.clone());
        let opened =
            tokio::task::spawn_blocking(move || KekFile::open_by(&path, unlock.as_deref()));
        let kek = match opened.await.map_err(internal)? {
            Ok(kek) => kek,
            Err(refused) => return Ok(Opened::Sealed(refused.to_string())),
        };
        Ok(match unseal(&*self.store, &kek, &*self.config.vault).await? {
            Unsealed::Open(authorities) => Opened::Open(kek, authorities),
            Unsealed::Sealed(why) => Opened::Sealed(why),
        })
    }

    pub(super) fn about(&self, listen: Option<SocketAddr>) -> About {
        let address = self.config.advertise.clone();
        let address = address.or_else(|| listen.map(|listen| listen.to_string()));
        About {
            domain: self.domain.trust_domain.clone(),
            address: address.unwrap_or_default(),
            started: self.started,
            views: None,
        }
    }

    pub(super) async fn run_sealed(
        self,
        why: &str,
        stop: CancellationToken,
        ready: Option<oneshot::Sender<Ready>>,
    ) -> Result<Ended, StartError> {
        tracing::error!(why, "the server is sealed: it serves its status and nothing else");
        let admin = Arc::new(Admin {
            about: self.about(None),
            store: Arc::clone(&self.store),
            log: LogTree::default(),
            operators: self.operators,
            mode: Mode::Sealed { why: why.to_owned() },
            console: None,
        });
        let ready_to_say = Ready {
            listen: None,
            admin: self.config.admin_path(),
            metrics: None,
            views: None,
            console: None,
        };
        tell(ready, ready_to_say, "sealed");
        serve(self.socket, admin, self.config.drain, stop).await;
        notify(&[sd_notify::NotifyState::Stopping]);
        Ok(Ended::Stopped)
    }

    pub(super) async fn run_open(
        self,
        kek: Kek,
        authorities: Authorities,
        stop: CancellationToken,
        ready: &mut Option<oneshot::Sender<Ready>>,
    ) -> Result<Ended, StartError> {
        // 1. Whether the store is behind what was seen of it; then the snapshot, and whether it is this directory's.
        let log_key = LogKey::open_or_make(&*self.store, &kek, &*self.around.entropy).await?;
        self.go_on(&log_key).await?;
        Seen::begin(&*self.store, &self.config.data).await?;
        first_start(&*self.store, &self.time, self.around.clock.now()).await?;
        let (feeder, feed) =
            Feeder::start(Arc::clone(&self.store), Arc::clone(&self.around.clock)).await?;
        self.check(&feed.current())?;
        // 2. Every address, before anything begins that would have to be ended again.
        let listener = listen(self.config.listen).await?;
        let (metrics, metrics_at) = maybe_listen(self.config.metrics).await?;
        let (views, views_at) = maybe_listen(self.config.views).await?;
        let console = self.config.console.as_ref().map(|console| console.listen);
        let (console, console_at) = maybe_listen(console).await?;
        let ready_to_say = Ready {
            listen: Some(local(&listener, self.config.listen)?),
            admin: self.config.admin_path(),
            metrics: metrics_at,
            views: views_at,
            console: console_at,
        };
        // 3. The parts, the issuer fresh before the first certificate of our own.
        let keys = Keys { kek, authorities, log_key: Arc::new(log_key) };
        let serving = Serving::new(&self, keys, feed, &stop);
        recall(&serving.control).await?;
        // Another server may take rights away meanwhile, and what was authorised before is not issued then.
        let due = feeder.beside(serving.prepare(&self)).await?;
        let console =
            console.map(|listener| Browsed::new(&self, &serving, listener)).transpose()?;
        // 4. Everything runs until stopped, or until one of the parts breaks.
        let parts = Parts { start: self, serving, feeder, listener, metrics, views, console, due };
        parts.run(ready.take(), ready_to_say, stop).await
    }

    /// Begins a new incarnation when the store lost something that this server has seen.
    async fn go_on(&self, log_key: &LogKey) -> Result<(), StartError> {
        let (store, server) = (&*self.store, self.domain.server.to_string());
        let found = match Seen::read(&self.config.data) {
            Some(seen) => seen.compare(store).await?,
            None => Found::Same,
        };
        let Found::Behind(seen) = found else {
            let at = self.time.recorded_moment(&*self.around.clock);
            let journal = self.config.journal.as_deref();
            return take_in_the_rest(store, &server, journal, log_key, at).await;
        };
        tracing::error!(seen = %seen.revision, leaves = seen.log_size, "the store is behind what was seen of it");
        let rules = match &self.config.journal {
            Some(folder) => read_rules(folder, log_key)?.0,
            None => Vec::new(),
        };
        let beginning = Beginning {
            store,
            cause: Cause::Behind,
            now: self.around.clock.now(),
            steady: self.time.certain(&*self.around.clock),
            hold_off: self.config.hold_off,
            seen: seen.revision.incarnation,
            // It may be behind by being another one.
            reached: None,
            rules,
            by: &server,
            known: Known::of(&self.time),
        };
        if let Some(life) = begin(beginning).await? {
            self.time.recorded(life.began);
        }
        Ok(())
    }

    fn check(&self, state: &State) -> Result<(), StartError> {
        let found = &state.domain().trust_domain;
        if *found == self.domain.trust_domain {
            return Ok(());
        }
        Err(StartError::WrongDomain {
            path: self.config.data.clone(),
            found: found.to_string(),
            expected: self.domain.trust_domain.to_string(),
        })
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

/// An address that may be nowhere, with where it is in the end.
async fn maybe_listen(
    address: Option<SocketAddr>,
) -> Result<(Option<TcpListener>, Option<SocketAddr>), StartError> {
    let Some(address) = address else { return Ok((None, None)) };
    let listener = listen(address).await?;
    let at = local(&listener, address)?;
    Ok((Some(listener), Some(at)))
}

pub(super) fn local(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|source| StartError::Listen { address, source })
}
