//! Who is alive, with which identity, until when.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign_api::admin::{
    CredentialView, IncarnationView, LogView, NodeStatus, OutageBudget, PartView, PointStatus,
    ProcessView, ServerStatus, Status, WorkloadStatus,
};
use countersign_api::{v1, wire};
use countersign_audit::Tree;
use countersign_identity::{Code, Incarnation, NodeId, Revision, Sha256, Timestamp, TrustDomain};
use countersign_store::{NodeRow, PAGE_MAX, Store, StoreError};

use crate::authority::Authorities;
use crate::control::Control;
use crate::incarnation::Life;
use crate::publish::Presence;
use crate::refusal::Refused;
use crate::rotate::{Gate, Walk};
use crate::state::State;
use crate::watch::resident_bytes;
use crate::watch::vitals::vitals;

/// How far a node's clock may differ before it is told.
const SKEW_TOLD: Duration = Duration::from_secs(5);
/// How long before its end a root is told of.
const ROOT_TOLD: Duration = Duration::from_secs(30 * 86_400);
/// Nodes that a status shows.
const NODES_MAX: usize = 10_000;

/// Hashes of leaves that are read at once.
const HASHES_MAX: usize = 16 * PAGE_MAX;

/// What does not change while the server runs.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) domain: TrustDomain,
    pub(crate) address: String,
    pub(crate) started: Timestamp,
    /// Where revocation lists and OCSP are served.
    pub(crate) views: Option<SocketAddr>,
}

/// The log's tree, kept up to date as it is asked for.
#[derive(Debug, Default)]
pub(crate) struct LogTree(tokio::sync::Mutex<Grown>);

/// The tree of the log of one incarnation: the next one has another log.
#[derive(Debug, Default)]
struct Grown {
    of: Incarnation,
    tree: Tree,
}

impl LogTree {
    /// The log's size and root now.
    pub(crate) async fn head(&self, store: &dyn Store) -> Result<LogView, Refused> {
        let mut grown = self.0.lock().await;
        match grown.catch_up(store).await {
            Ok(()) => Ok(grown.view()),
            // While the store is away, what was read before is the best that can be told.
            Err(StoreError::Unavailable { .. }) if 0 < grown.tree.size() => Ok(grown.view()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Grown {
    fn view(&self) -> LogView {
        LogView { size: self.tree.size(), root: self.tree.root() }
    }

    /// Reads what the log has more of, or all of it where another incarnation has begun. It is one log that is read: the
    /// head says so before and after.
    async fn catch_up(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let mut head = store.head().await?;
        loop {
            if self.of != head.revision.incarnation {
                *self = Self { of: head.revision.incarnation, tree: Tree::default() };
            }
            let from = self.tree.size();
            let hashes: Vec<Sha256> = store.leaf_hashes(from, HASHES_MAX).await?;
            head = store.head().await?;
            if self.of != head.revision.incarnation {
                continue;
            }
            let done = hashes.is_empty();
            for hash in hashes {
                self.tree.push(hash);
            }
            if done {
                return Ok(());
            }
        }
    }
}

fn server(about: &About, sealed: bool, log: LogView) -> ServerStatus {
    ServerStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        resident_bytes: resident_bytes(),
        started_at: about.started,
        address: about.address.clone(),
        views: about.views.map(|views| views.to_string()).unwrap_or_default(),
        sealed,
        log,
        parts: Vec::new(),
    }
}

/// The status of a server that could not open its keys.
pub(crate) async fn sealed_status(
    about: &About,
    store: &dyn Store,
    log: &LogTree,
    why: &str,
) -> Result<Status, Refused> {
    Ok(Status {
        trust_domain: about.domain.clone(),
        revision: store.head().await?.revision,
        // Agents are not let in, wherever they were told to come.
        server: ServerStatus {
            address: String::new(),
            ..server(about, true, log.head(store).await?)
        },
        nodes: Vec::new(),
        points: Vec::new(),
        workloads: Vec::new(),
        outage_budget: OutageBudget { guaranteed_seconds: 0, ends_at: None },
        incarnation: None,
        warnings: vec![format!("the server is sealed: {why}")],
    })
}

/// The status of a serving server.
pub(crate) async fn status(
    about: &About,
    control: &Control,
    log: &LogTree,
    authorities: &ArcSwap<Authorities>,
) -> Result<Status, Refused> {
    let now = control.clock.now();
    let state = control.feed.current();
    let mut presences = control.roster.snapshot();
    let mut nodes = Vec::new();
    let mut points = Vec::new();
    let (rows, stale) = nodes_now_or_before(control).await?;
    for row in rows {
        let presence = presences.remove(&row.id).unwrap_or_default();
        points.extend(points_of(row.id, &presence));
        nodes.push(node(row, presence));
    }
    let mut warnings = warnings(&nodes, &authorities.load(), now);
    warnings.extend(state.walk().ok().and_then(|walk| waiting_for_approval(walk)));
    if let Err(refused) = control.desk.time.trusted(now) {
        warnings.push(refused.why);
    }
    warnings.extend(control.desk.time.warning(&*control.clock));
    warnings.extend(control.pulse.warnings());
    warnings.extend(control.journal.as_ref().and_then(|journal| journal.warning()));
    warnings.extend(control.signing.warning());
    match crate::review::warnings(control).await {
        Ok(overdue) => warnings.extend(overdue),
        // That it is away is said already.
        Err(refused) if refused.code == Code::Unavailable => {}
        // A paper of a later version must not keep anybody from seeing the rest.
        Err(refused) => warnings.push(format!("reviews cannot be read: {}", refused.why)),
    }
    warnings.extend(control.watch.differences.warning());
    warnings.extend(stale);
    let life = state.life();
    warnings.extend(life.as_ref().and_then(|life| life.issues(now).err()).map(|held| held.why));
    let workloads = workloads(&state, &nodes);
    let parts = wire::parts_of(&vitals(control, &state, &authorities.load(), now));
    let parts = parts.into_iter().map(PartView::from).collect();
    Ok(Status {
        trust_domain: about.domain.clone(),
        revision: state.revision,
        server: ServerStatus { parts, ..server(about, false, log.head(&*control.store).await?) },
        outage_budget: outage_budget(&state, &nodes),
        incarnation: life.map(|life| incarnation(&life, now)),
        workloads,
        points,
        nodes,
        warnings,
    })
}

fn incarnation(life: &Life, now: Timestamp) -> IncarnationView {
    IncarnationView {
        cause: life.cause.sentence().to_owned(),
        began_at: life.began,
        from: life.from.revision,
        log_before: LogView { size: life.from.log_size, root: life.from.log_root },
        held_until: life.holds(now),
        covered_at: life.cover_at,
        covered: life.covered,
    }
}

/// The nodes on record; while the store is away those of the last time, with a sentence that says so.
async fn nodes_now_or_before(control: &Control) -> Result<(Vec<NodeRow>, Option<String>), Refused> {
    match all_nodes(&*control.store).await {
        Ok(nodes) => {
            control.watch.remember_nodes(&nodes);
            Ok((nodes, None))
        }
        Err(refused) if refused.code == Code::Unavailable => {
            let why = "nodes and the log are shown as they were last read: the store is away";
            Ok((control.watch.remembered_nodes(), Some(why.to_owned())))
        }
        Err(refused) => Err(refused),
    }
}

pub(crate) async fn all_nodes(store: &dyn Store) -> Result<Vec<NodeRow>, Refused> {
    let mut nodes: Vec<NodeRow> = Vec::new();
    loop {
        let after = nodes.last().map(|node| node.id);
        let page = store.nodes(after, PAGE_MAX).await?;
        let last = page.len() < PAGE_MAX;
        nodes.extend(page);
        if last || NODES_MAX <= nodes.len() {
            return Ok(nodes);
        }
    }
}

fn node(row: NodeRow, presence: Presence) -> NodeStatus {
    NodeStatus {
        id: row.id,
        spiffe_id: row.spiffe_id,
        host: row.host,
        attested_by: row.attested_by,
        connected: presence.connected(),
        seen_at: presence.seen.map_or(row.seen_at, |seen| seen.max(row.seen_at)),
        revision: presence.revision,
        clock_skew_millis: presence.skew_micros.map(|micros| micros / 1000),
        processes: presence.processes.into_iter().map(ProcessView::from).collect(),
        // What does not parse is an agent's mistake, and nothing to show.
        credentials: presence
            .credentials
            .into_iter()
            .filter_map(|credential| CredentialView::try_from(credential).ok())
            .collect(),
    }
}

fn points_of(node: NodeId, presence: &Presence) -> Vec<PointStatus> {
    let points = presence.points.values().filter_map(|point| {
        let v1::PointAck { point: name, spiffe_id, revision, .. } = &point.ack;
        let process = presence.processes.iter().find(|process| process.name == *name);
        Some(PointStatus {
            name: name.clone(),
            spiffe_id: spiffe_id.parse().ok()?,
            node,
            revision: revision.map(Revision::from),
            live: point.confirmed,
            resident_bytes: process.map_or(0, |process| process.resident_bytes),
            connections: process.map_or(0, |process| process.connections),
        })
    });
    points.collect()
}

fn workloads(state: &State, nodes: &[NodeStatus]) -> Vec<WorkloadStatus> {
    let mut held: HashMap<&str, u64> = HashMap::new();
    for credential in nodes.iter().flat_map(|node| &node.credentials) {
        *held.entry(credential.workload.as_str()).or_default() += 1;
    }
    let domain = state.domain();
    let status =
        |(name, spec): (&countersign_identity::Name, &countersign_api::resource::WorkloadSpec)| {
            let lifetime = spec.lifetime.unwrap_or(domain.svid_lifetime).min(domain.lifetime_max);
            WorkloadStatus {
                name: name.clone(),
                spiffe_id: spec.spiffe_id_in(name, &domain.trust_domain),
                lifetime,
                guaranteed_budget_seconds: lifetime.guaranteed_budget().as_secs(),
                held: held.get(name.as_str()).copied().unwrap_or(0),
            }
        };
    state.workloads().map(status).collect()
}

/// What an outage may last: guaranteed by the shortest lifetime that is in use, and as it is right now.
fn outage_budget(state: &State, nodes: &[NodeStatus]) -> OutageBudget {
    let domain = state.domain();
    let in_use = nodes.iter().flat_map(|node| &node.credentials);
    let lifetimes = in_use.clone().filter_map(|credential| {
        let spec = state.workload(&credential.workload)?.1;
        Some(spec.lifetime.unwrap_or(domain.svid_lifetime).min(domain.lifetime_max))
    });
    let shortest = lifetimes.min().unwrap_or(domain.svid_lifetime);
    OutageBudget {
        guaranteed_seconds: shortest.guaranteed_budget().as_secs(),
        ends_at: in_use.map(|credential| credential.expires_at).min(),
    }
}

/// Who is waited for before a new root signs.
fn waiting_for_approval(walk: &Walk) -> Option<String> {
    let root = walk.successor()?.key;
    match walk.approval() {
        Gate::Waits { why, .. } => Some(format!("root `{root}` is to sign: {why}")),
        Gate::Open => None,
    }
}

fn warnings(nodes: &[NodeStatus], authorities: &Authorities, now: Timestamp) -> Vec<String> {
    let mut warnings = Vec::new();
    let root_ends = authorities.root_certificate().validity().not_after;
    if root_ends <= now + ROOT_TOLD {
        warnings.push(format!("the root ends at {root_ends}"));
    }
    let issuer_ends = authorities.issuer_validity().not_after;
    if issuer_ends <= now {
        warnings.push(format!("the issuer ended at {issuer_ends}: nothing can be issued"));
    }
    if authorities.is_outside() && authorities.successor_due(now) {
        warnings.push(format!(
            "the issuer ends at {issuer_ends}, and its root is held outside: have a successor signed with `countersign \
             authority prepare --root-key external`, and bring it with `countersign authority import`"
        ));
    }
    if let Some(trouble) = authorities.root_signer.as_ref().and_then(|signer| signer.trouble()) {
        warnings.push(format!("the root could not sign when it was last asked to: {trouble}"));
    }
    for node in nodes {
        let named = if node.host.is_empty() { node.id.to_string() } else { node.host.clone() };
        if let Some(skew) = node.clock_skew_millis
            && SKEW_TOLD.as_millis() < u128::from(skew.unsigned_abs())
        {
            warnings.push(format!("the clock of node `{named}` is off by {skew} ms"));
        }
        for credential in &node.credentials {
            if let Some(trouble) = &credential.trouble {
                let workload = &credential.workload;
                warnings.push(format!(
                    "`{workload}` on node `{named}` could not be renewed: {trouble}"
                ));
            }
        }
    }
    warnings
}
