//! The source itself.

use std::net::SocketAddr;
use std::sync::Arc;

use countersign_identity::{Clock, Name};
use countersign_tls::{Expected, HandshakeFact, Inbound, Outbound, Slice, Trust};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::enforcement::Subscription;
use crate::fact::Reporter;
use crate::files::{FileWatch, PolicyStamp, PolicyWatch, load};
use crate::gate::Gate;
use crate::keeper::Keeper;
use crate::workload_api::WorkloadApi;
use crate::{
    Authorization, Enforcement, FileOptions, FilesFault, Parts, PolicyFileFault, Services, Status,
    WorkloadApiOptions,
};

/// Why a source does not start.
#[derive(Debug, thiserror::Error)]
pub enum SourceFault {
    /// The policy file is not usable.
    #[error(transparent)]
    Policy(#[from] PolicyFileFault),
    /// The certificate files are not usable.
    #[error(transparent)]
    Files(#[from] FilesFault),
    /// There is no agent beside files.
    #[error(
        "certificate files come without an agent: name a policy file or the SPIFFE IDs that may connect"
    )]
    NoAgent,
    /// The program is ending.
    #[error("the program is ending")]
    Ending,
}

/// The source has ended before it was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source ended before it was ready")]
pub struct NotReady;

/// Who this process is, whom it trusts and who may talk to it, kept current.
///
/// It ends when it is [shut down](Self::shutdown), which also ends what was made of its [`trust`](Self::trust), or
/// dropped: then that goes on with the last state, and must not be used for long, since nothing is renewed any more, and
/// the agent waits for the process to end.
#[derive(Debug)]
pub struct Source {
    keeper: Arc<Keeper>,
    gate: Arc<Gate>,
    reporter: Reporter,
    status: watch::Receiver<Status>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Source {
    /// Lives with a Workload API, SPIFFE's or Countersign's. Does not wait for it; [`ready`](Self::ready) does.
    ///
    /// # Errors
    /// When the policy file is not usable.
    pub async fn from_workload_api(options: WorkloadApiOptions) -> Result<Self, SourceFault> {
        let WorkloadApiOptions { endpoint, choice, authorization, point, clock, entropy } = options;
        let enforcement = match &authorization {
            Authorization::FromAgent => Enforcement::Waiting,
            Authorization::PolicyFile(_) | Authorization::AllowIds(_) | Authorization::Nothing => {
                Enforcement::Local
            }
        };
        let from_agent = enforcement == Enforcement::Waiting;
        let (mut source, facts) = Self::begin(authorization, enforcement, &clock).await?;
        let keeper = Arc::clone(&source.keeper);
        let link = WorkloadApi {
            endpoint: endpoint.clone(),
            choice: choice.clone(),
            keeper: Arc::clone(&keeper),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
        };
        source.spawn(|stop| link.run(stop));
        // With rules of its own the process must not acknowledge the agent's, which it does not enforce.
        if from_agent {
            let subscription =
                Subscription { endpoint, choice, point, keeper, facts, clock, entropy };
            source.spawn(|stop| subscription.run(stop));
        }
        Ok(source)
    }

    /// Lives with certificate files, which it reads again when they change.
    ///
    /// # Errors
    /// When the files are not usable now. Later, what was good stays in use until better comes.
    pub async fn from_files(options: FileOptions) -> Result<Self, SourceFault> {
        let authorization = options.authorization.clone();
        if authorization == Authorization::FromAgent {
            return Err(SourceFault::NoAgent);
        }
        let clock = Arc::clone(&options.clock);
        let now = clock.now();
        let read = move || (load(&options, now), options);
        let (loaded, options) = blocking(read).await?;
        let (mut source, _no_agent) =
            Self::begin(authorization, Enforcement::Local, &clock).await?;
        let watch = FileWatch::begin(options, Arc::clone(&source.keeper), loaded?);
        source.spawn(|stop| watch.run(stop));
        Ok(source)
    }

    async fn begin(
        authorization: Authorization,
        enforcement: Enforcement,
        clock: &Arc<dyn Clock>,
    ) -> Result<(Self, crate::fact::Facts), SourceFault> {
        let read = move || {
            let watched = match &authorization {
                Authorization::PolicyFile(path) => Some((path.clone(), PolicyStamp::of(path))),
                Authorization::FromAgent | Authorization::AllowIds(_) | Authorization::Nothing => {
                    None
                }
            };
            (authorization.initial(), watched)
        };
        let (policies, watched) = blocking(read).await?;
        let trust = Trust::new(Arc::clone(clock), Slice::nothing());
        let keeper =
            Arc::new(Keeper::new(Arc::clone(&trust), policies?, Status::begin(enforcement)));
        let (reporter, facts) = Reporter::new(Arc::clone(&trust));
        let (status, stop) = (keeper.status(), CancellationToken::new());
        let gate = Arc::new(Gate::new(clock.now()));
        let mut source = Self { keeper, gate, reporter, status, stop, tasks: JoinSet::new() };
        source.spawn(|stop| Arc::clone(&trust).run(stop));
        let reporting = source.reporter.clone();
        source.spawn(|stop| trust.keep_proven(move |fact| reporting.report(fact), stop));
        if let Some((path, stamp)) = watched {
            let watch = PolicyWatch::new(path, Arc::clone(&source.keeper), stamp);
            let clock = Arc::clone(clock);
            source.spawn(|stop| watch.run(clock, stop));
        }
        Ok((source, facts))
    }

    /// None of the tasks ends before it is stopped. Should one fail by a defect, the others end with it: a source that
    /// renews but does not enforce, or the other way round, would be worse than none.
    fn spawn<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        task: impl FnOnce(CancellationToken) -> F,
    ) {
        let guard = self.stop.clone().drop_guard();
        let task = task(self.stop.clone());
        self.tasks.spawn(async move {
            task.await;
            drop(guard);
        });
    }

    /// What everything is made from: [`accept`](crate::accept) and [`dial`](crate::dial) take it.
    pub fn trust(&self) -> Arc<Trust> {
        Arc::clone(self.keeper.trust())
    }

    /// A rustls configuration for the door of a service, for frameworks that accept by themselves.
    ///
    /// Policy is decided in the handshake. Connections are not in the register: a later change or expiry
    /// does not end them. When the TLS profile of the service comes to ask for more than when it was made, it refuses callers with whom it
    /// could agree on less: make one for each connection, or whenever the status tells of another revision.
    /// [`accept`](crate::accept) does better.
    pub fn server_config(&self, service: Name, alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
        let mut inbound = Inbound::service(service);
        inbound.alpn = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        self.keeper.trust().server_config(&inbound)
    }

    /// A rustls configuration for dialling a service, for frameworks that connect by themselves. The server name that
    /// they give is not looked at: `expected` is who must answer. See [`server_config`](Self::server_config).
    pub fn client_config(
        &self,
        service: Name,
        expected: Expected,
        alpn: &[&[u8]],
    ) -> Arc<rustls::ClientConfig> {
        let mut outbound = Outbound::service(service, expected);
        outbound.alpn = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        self.keeper.trust().client_config(&outbound)
    }

    /// Waits until there is an identity, and the agent has said who may connect (or that it never will).
    ///
    /// # Errors
    /// When the source ends before.
    pub async fn ready(&self) -> Result<(), NotReady> {
        let mut status = self.status.clone();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(NotReady),
            ready = status.wait_for(Status::is_ready) => ready.map(|_| ()).map_err(|_ended| NotReady),
        }
    }

    /// Waits until the source has ended by a defect of its own. A program then has to end as well, since
    /// nothing is renewed or enforced anew any more.
    pub async fn ended(&self) {
        self.stop.cancelled().await;
    }

    /// How things are now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// How things are, to wait on.
    pub fn status_changes(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// How the own credential, its issuer, the bundle and the policies stand: what was last had, what was last wanted and not
    /// had and why, and what ends when.
    pub fn parts(&self) -> Parts {
        self.keeper.parts().clone()
    }

    /// The services that concern this process, as the agent tells them. None until it has, and with local rules.
    pub fn services(&self) -> watch::Receiver<Option<Arc<Services>>> {
        self.keeper.services()
    }

    /// Passes on what was seen of a handshake, for `status` and for detection. Never waits.
    pub fn report(&self, fact: HandshakeFact) {
        self.reporter.report(fact);
    }

    /// Says that this process lets peers in at this address, until what is given back is dropped: there the agent can try
    /// out whether it refuses what it should. A [`Door`](crate::Door) says so by itself.
    pub fn announce(&self, door: SocketAddr) -> Announcement {
        Announcement { _announced: self.keeper.announce(door) }
    }

    /// Says whether all doors are open that there are to be, and otherwise why not, in a sentence: it is told where the state of all
    /// processes is, and to whoever watches the [status](Self::status). A [`Door`](crate::Door) is open for as long as it is there.
    pub fn doors_open(&self, open: Result<(), String>) {
        self.keeper.doors_open(open);
    }

    /// Who may begin a handshake at its doors.
    pub(crate) const fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// What tasks report handshakes with.
    pub fn reporter(&self) -> Reporter {
        self.reporter.clone()
    }

    /// Ends it, after the program has finished what was under way: from here on nothing is let in, what is still open is
    /// cut, and the agent is told that it need not wait for this point any more.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task of the source failed");
            }
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // The set of tasks aborts them as it is dropped.
        self.stop.cancel();
    }
}

/// That peers are let in somewhere. Dropping it takes it back.
#[derive(Debug)]
pub struct Announcement {
    _announced: crate::keeper::Announced,
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SourceFault> {
    tokio::task::spawn_blocking(work).await.map_err(|_cancelled| SourceFault::Ending)
}
