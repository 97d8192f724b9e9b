//! What an unsealed server works with.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign_audit::{Event, EventKind};
use countersign_identity::Timestamp;
use countersign_pki::ChainMemory;
use countersign_program::trace::{Exporter, Service, Tracer};
use countersign_seal::Kek;
use countersign_store::{Batch, Duties, PAGE_MAX};
use countersign_tls::{Limits, Slice, Trust};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Surroundings;
use super::start::Start;
use crate::attest::Returned;
use crate::authority::{Authorities, Rotation};
use crate::config::{StartError, StoreAt};
use crate::control::Control;
use crate::incarnation::{Journal, LogKey};
use crate::issue::{Desk, Own};
use crate::log::Signing;
use crate::publish::{Roster, Slices};
use crate::revoke::{Converging, Remembered, Replicas};
use crate::rotate::Walker;
use crate::state::{State, StateFeed};
use crate::views::Views;
use crate::watch::Watch;

/// Connections on the agents' port.
const CONNECTIONS_MAX: usize = 32_768;
/// Handshakes under way: more than the edge lets strangers in, so that the edge decides who waits.
const HANDSHAKES_MAX: usize = 2048;

/// What was opened by the key-encryption key.
pub(super) struct Keys {
    pub(super) kek: Kek,
    pub(super) authorities: Authorities,
    pub(super) log_key: Arc<LogKey>,
}

/// What an unsealed server works with.
pub(super) struct Serving {
    pub(super) control: Arc<Control>,
    pub(super) trust: Arc<Trust>,
    pub(super) authorities: Arc<ArcSwap<Authorities>>,
    pub(super) rotation: Arc<Rotation>,
    pub(super) walker: Arc<Walker>,
    pub(super) own: Own,
    /// What sends spans, if anybody wants any.
    pub(super) exporter: Option<Exporter>,
}

impl Serving {
    pub(super) fn new(
        start: &Start,
        keys: Keys,
        feed: StateFeed,
        stop: &CancellationToken,
    ) -> Self {
        let Keys { kek, authorities, log_key } = keys;
        let journal = start.config.journal.as_deref();
        let journal = journal.map(|folder| Arc::new(Journal::new(folder, &start.domain.server)));
        let Surroundings { clock, entropy } = start.around.clone();
        let authorities = Arc::new(ArcSwap::from_pointee(authorities));
        let desk = Desk {
            store: Arc::clone(&start.store),
            authorities: Arc::clone(&authorities),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            time: Arc::clone(&start.time),
            memory: ChainMemory::new(),
        };
        let limits = Limits {
            connections_max: CONNECTIONS_MAX,
            // Nobody is dialled with it.
            dialled_min: 0,
            handshakes_max: HANDSHAKES_MAX,
        };
        let trust = Trust::with_limits(Arc::clone(&clock), trusting(&feed.current()), limits);
        let shared = matches!(start.config.store, StoreAt::Postgres { .. });
        let replicas = shared.then(|| Replicas::new(start.domain.server.to_string()));
        let watch = Arc::new(Watch::new(start.started));
        let (tracer, exporter) = tracer(start);
        let name = start.domain.server.to_string();
        let duties = Arc::new(Duties::new(Arc::clone(&start.store), name));
        let rotation = Arc::new(Rotation {
            store: Arc::clone(&start.store),
            authorities: Arc::clone(&authorities),
            kek,
            vault: Arc::clone(&start.config.vault),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            time: Arc::clone(&start.time),
            duties: Arc::clone(&duties),
            lifetime: start.config.issuer_lifetime,
            feed: feed.clone(),
            watch: Arc::clone(&watch),
        });
        let control = Arc::new(Control {
            store: Arc::clone(&start.store),
            duties,
            feed,
            desk,
            rotation: Some(Arc::clone(&rotation)),
            roster: Roster::default(),
            converging: Converging::default(),
            remembered: Remembered::default(),
            replicas,
            slices: Slices::default(),
            watch,
            tracer,
            pulse: Arc::default(),
            views: Views::default(),
            signing: Signing::default(),
            log_key: Some(log_key),
            lost: watch::Sender::new(None),
            returned: Returned::default(),
            journal,
            node_authorities: start.config.node_authorities.clone(),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            stop: stop.clone(),
            tasks: TaskTracker::new(),
        });
        let walker = Arc::new(Walker::new(Arc::clone(&control), Arc::clone(&rotation)));
        let path = format!("/countersign/server/{}", start.domain.server);
        let id = start.domain.trust_domain.with_path(&path).expect("a name is a path segment");
        let own = Own {
            control: Arc::clone(&control),
            trust: Arc::clone(&trust),
            authorities: Arc::clone(&authorities),
            id,
            dns_names: Vec::new(),
            clock,
            entropy,
        };
        Self { control, trust, authorities, rotation, walker, own, exporter }
    }

    /// Succeeds the issuer if that is due, records the start, and issues the first credential of our own. While
    /// the clock cannot be believed, or another server may be about to succeed an issuer that has ended, the server waits with it,
    /// and says so.
    pub(super) async fn prepare(&self, start: &Start) -> Result<Timestamp, StartError> {
        let now = start.around.clock.now();
        if let Err(refused) = start.time.trusted(now) {
            tracing::error!(why = %refused.why, "nothing is issued for now");
            return Ok(now + Duration::from_secs(1));
        }
        self.rotation.look().await?;
        let authorities = self.authorities.load();
        if authorities.issuer_validity().not_after <= now && !authorities.is_outside() {
            tracing::error!(
                "nothing is issued for now: the issuer has ended, and another server had the duty to succeed it"
            );
            return Ok(now + Duration::from_secs(1));
        }
        let id = self.own.id.as_str();
        let event = Event::new(EventKind::ServerStarted, now, id, id)
            .with_details(serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }));
        start.store.commit(Batch { events: vec![event], ..Batch::default() }).await?;
        start.time.recorded(now);
        Ok(self.own.renew().await?)
    }
}

/// What begins spans, and what sends them, if anybody wants any.
fn tracer(start: &Start) -> (Tracer, Option<Exporter>) {
    let Some(tracing) = &start.config.tracing else { return (Tracer::default(), None) };
    let instance = start.domain.server.to_string();
    let service = Service { name: "countersign-server", instance };
    let Surroundings { clock, entropy } = start.around.clone();
    let (tracer, exporter) = Tracer::new(tracing, service, clock, entropy);
    (tracer, Some(exporter))
}

/// Remembers the enforcement points on record: none of them is dead because the server was away. Of the other processes of
/// a node nothing is known until it is heard.
pub(super) async fn recall(control: &Control) -> Result<(), StartError> {
    let mut after = None;
    loop {
        let page = control.store.nodes(after, PAGE_MAX).await?;
        after = page.last().map(|row| row.id);
        control.roster.expect(page.iter().map(|row| row.id));
        if page.len() < PAGE_MAX {
            break;
        }
    }
    let mut after = None;
    loop {
        let page = control.store.points(after.take(), PAGE_MAX).await?;
        let last = page.len() < PAGE_MAX;
        after = page.last().map(|row| row.key.clone());
        control.roster.recall(page);
        if last {
            return Ok(());
        }
    }
}

/// What the server enforces on its own port: the bundles and revocations of a state. Who may do what is asked at each call.
pub(super) fn trusting(state: &State) -> Slice {
    Slice {
        revision: state.revision,
        bundles: Arc::clone(state.bundles()),
        revocations: state.revocations(),
        ..Slice::nothing()
    }
}
