//! Proxies as `run` assembles them, with identities and policies set by hand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use countersign_identity::{
    Clock, Code, Name, Reason, Revision, Revocation, Revocations, Revoked, SeededEntropy, SimClock,
    SystemClock, Timestamp,
};
use countersign_pki::Bundles;
use countersign_policy::{Operations, Policies, PolicySource};
use countersign_tls::{Applied, HandshakeFact, ServiceTls, Slice, Trust};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::program::Program;
use super::realm::Realm;
use crate::config::{FixedInbound, FixedOutbound, LocalPlace, Protocol};
use crate::dial::Target;
use crate::plan::{Manners, Plan};
use crate::plane::Plane;
use crate::supervise::Supervisor;

pub(super) const WEB_TO_ORDERS: &str = r#"permit (principal == Workload::"web", action == Action::"connect", resource == Service::"orders");"#;
/// No policy at all.
pub(super) const NOTHING: &str = "";
/// Longer than anything in a test takes: who waits for it in vain fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How far a patient clock goes at once.
const TICK: Duration = Duration::from_millis(10);

/// A clock that goes about as fast as the system's while this process runs, and stands still while it does not: nothing ends
/// on it only because the machine had no time for us.
pub(super) fn patient_clock() -> Arc<dyn Clock> {
    let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_790_000_000)));
    let ticking = Arc::downgrade(&clock);
    tokio::spawn(async move {
        while let Some(clock) = ticking.upgrade() {
            clock.advance(TICK);
            drop(clock);
            tokio::time::sleep(TICK).await;
        }
    });
    clock
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn directory() -> TempDir {
    tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap()
}

/// One proxy.
pub(super) struct Proxy {
    pub(super) plane: Arc<Plane>,
    pub(super) supervisor: Supervisor,
    pub(super) realm: Arc<Realm>,
    workload: &'static str,
    facts: Arc<Mutex<Vec<HandshakeFact>>>,
    stop: CancellationToken,
}

impl Proxy {
    pub(super) async fn start(realm: &Arc<Realm>, workload: &'static str, policy: &str) -> Self {
        let trust = Trust::new(realm.clock.clone(), slice(realm, policy, 1));
        let stop = CancellationToken::new();
        let facts: Arc<Mutex<Vec<HandshakeFact>>> = Arc::default();
        let seen = facts.clone();
        let sink = Arc::new(move |fact| seen.lock().unwrap().push(fact));
        let plane = crate::run::plane(
            (trust.clone(), countersign_program::trace::Tracer::default()),
            realm.clock.clone(),
            Arc::new(SeededEntropy::new(5)),
            (sink, countersign::Flows::default(), countersign::Served::default()),
        );
        tokio::spawn(trust.clone().run(stop.clone()));
        // As the source does.
        tokio::spawn(trust.keep_proven(|_fact| {}, stop.clone()));
        let (alarms, until) = (plane.alarms.clone(), stop.clone());
        tokio::spawn(async move { alarms.run(&until).await });
        let supervisor = Supervisor::new(&plane);
        let proxy = Self { plane, supervisor, realm: realm.clone(), workload, facts, stop };
        proxy.renew(3600).await;
        proxy
    }

    /// Gives it a new certificate.
    pub(super) async fn renew(&self, lifetime_secs: u64) {
        let identity = self.realm.identity(self.workload, lifetime_secs).await.identity;
        self.plane.trust.set_identity(identity).unwrap();
    }

    /// Lets other policies hold, and says how many connections that ended.
    pub(super) fn enforce(&self, policy: &str, revision: u64) -> usize {
        self.plane.trust.apply(slice(&self.realm, policy, revision)).cut
    }

    /// Has the service `orders` another TLS profile, and says how many connections that ended.
    pub(super) fn profile(&self, tls: ServiceTls) -> usize {
        let before = self.plane.trust.slice();
        let profiles = Arc::new(HashMap::from([(name("orders"), tls)]));
        self.plane.trust.apply(Slice { profiles, ..Slice::clone(&before) }).cut
    }

    /// The same for policies that speak of operations, and until when they do.
    pub(super) fn enforce_calls(
        &self,
        policy: &str,
        operations: Operations,
        until: Option<Timestamp>,
    ) -> usize {
        let connect = PolicySource::enforced(name("connect"), WEB_TO_ORDERS);
        let calls = PolicySource { until, ..PolicySource::enforced(name("shop"), policy) };
        let policies = Policies::compile(&[connect, calls], None);
        let policies = policies.unwrap_or_else(|problems| panic!("{}", problems[0]));
        let policies = Arc::new(policies.with_operations(operations));
        let before = self.plane.trust.slice();
        self.plane.trust.apply(Slice { policies, ..Slice::clone(&before) }).cut
    }

    /// Takes this out of service, beside what was before.
    pub(super) fn revoke(&self, reason: Reason, target: &Revoked) -> Applied {
        let (at, before) = (self.realm.clock.now(), self.plane.trust.slice());
        let until = at + Duration::from_secs(3600);
        let rule = Revocation { target: target.clone(), about: None, reason, at, until };
        let rules = Revocations::new([(format!("{reason} {target}").into(), Arc::new(rule))]);
        let revocations = Arc::new(rules.keeping(&before.revocations, at));
        self.plane.trust.apply(Slice { revocations, ..Slice::clone(&before) })
    }

    /// What covers the certificate that it shows now, and no other.
    pub(super) fn own_key(&self) -> Revoked {
        Revoked::Key(self.plane.trust.identity().unwrap().leaf().key_id())
    }

    pub(super) fn connections(&self) -> usize {
        self.plane.trust.connections()
    }

    /// How many connections retire.
    pub(super) fn draining(&self) -> usize {
        *self.plane.trust.draining().borrow()
    }

    /// Opens these listeners and no others.
    pub(super) fn listen(&mut self, inbound: &[FixedInbound], outbound: &[FixedOutbound]) {
        let plan = Plan::fixed(inbound, outbound);
        assert!(plan.problems.is_empty(), "{:?}", plan.problems);
        let faults = self.supervisor.reconcile(&plan);
        assert!(faults.is_empty(), "{faults:?}");
    }

    /// Opens one door, which treats those who come in otherwise than usual.
    pub(super) fn listen_as(
        &mut self,
        inbound: &[FixedInbound],
        change: impl FnOnce(&mut Manners),
    ) {
        let mut plan = Plan::fixed(inbound, &[]);
        change(&mut plan.doors.values_mut().next().unwrap().manners);
        let faults = self.supervisor.reconcile(&plan);
        assert!(faults.is_empty(), "{faults:?}");
    }

    pub(super) fn door(&self) -> SocketAddr {
        self.supervisor.bound().0[0].listen
    }

    /// What it tells scrapers.
    pub(super) fn exposed(&self) -> String {
        let parts = countersign::Parts::new(self.plane.trust.clone());
        self.plane.metrics.text(&self.plane.trust, &parts, 0)
    }

    /// Waits until a fact is seen for which this is true.
    pub(super) async fn fact(&self, wanted: impl Fn(&HandshakeFact) -> bool) -> HandshakeFact {
        eventually(|| self.facts.lock().unwrap().iter().find(|fact| wanted(fact)).cloned()).await
    }

    pub(super) async fn refused(&self, code: Code) -> HandshakeFact {
        self.fact(|fact| fact.code == Some(code)).await
    }

    pub(super) fn has_refused(&self, code: Code) -> bool {
        self.has_fact(|fact| fact.code == Some(code))
    }

    pub(super) fn has_fact(&self, wanted: impl Fn(&HandshakeFact) -> bool) -> bool {
        self.facts.lock().unwrap().iter().any(wanted)
    }

    /// How often that was so.
    pub(super) fn refusals(&self, code: Code) -> usize {
        self.facts.lock().unwrap().iter().filter(|fact| fact.code == Some(code)).count()
    }

    pub(super) fn handshakes(&self) -> usize {
        self.facts.lock().unwrap().iter().filter(|fact| fact.code.is_none()).count()
    }

    /// Drains it, and says how much was cut.
    pub(super) async fn end(self, grace: Duration) -> usize {
        let cut = self.supervisor.drain(grace).await;
        self.stop.cancel();
        cut
    }
}

fn slice(realm: &Realm, policy: &str, number: u64) -> Slice {
    let source = PolicySource::enforced(name("shop"), policy);
    let policies = if policy.is_empty() {
        Policies::none()
    } else {
        Policies::compile(&[source], None).unwrap_or_else(|problems| panic!("{}", problems[0]))
    };
    let names = ["web", "orders", "payments"].map(|workload| (realm.id(workload), name(workload)));
    Slice {
        revision: Revision { incarnation: 1, number },
        bundles: Arc::new(Bundles::new(vec![realm.bundle()]).unwrap()),
        names: Arc::new(HashMap::from(names)),
        policies: Arc::new(policies),
        revocations: Arc::default(),
        profiles: Arc::default(),
    }
}

pub(super) fn inbound(program: &Target, protocol: Protocol) -> FixedInbound {
    let listen = "127.0.0.1:0".parse().unwrap();
    FixedInbound { service: name("orders"), listen, forward: program.clone(), protocol }
}

pub(super) fn outbound(
    realm: &Realm,
    local: &Path,
    doors: &[SocketAddr],
    protocol: Protocol,
) -> FixedOutbound {
    FixedOutbound {
        service: name("orders"),
        local: LocalPlace::Unix(local.to_owned()),
        addresses: doors.iter().map(ToString::to_string).collect(),
        peer: realm.id("orders"),
        protocol,
    }
}

/// `web`'s proxy, `orders`' proxy, and the program of `orders`.
pub(super) struct Shop {
    pub(super) web: Proxy,
    pub(super) orders: Proxy,
    pub(super) program: Program,
    pub(super) local: PathBuf,
    pub(super) realm: Arc<Realm>,
    _directory: TempDir,
}

impl Shop {
    pub(super) async fn open(protocol: Protocol) -> Self {
        Self::open_on(Arc::new(SystemClock::new()), protocol).await
    }

    /// On another clock than the system's.
    pub(super) async fn open_on(clock: Arc<dyn Clock>, protocol: Protocol) -> Self {
        Self::build(clock, protocol, |_manners| {}).await
    }

    /// With a door of `orders` that is otherwise than usual.
    pub(super) async fn open_as(protocol: Protocol, change: impl FnOnce(&mut Manners)) -> Self {
        Self::build(Arc::new(SystemClock::new()), protocol, change).await
    }

    /// Both.
    pub(super) async fn build(
        clock: Arc<dyn Clock>,
        protocol: Protocol,
        change: impl FnOnce(&mut Manners),
    ) -> Self {
        let directory = directory();
        let realm = Realm::on(clock, "shop.example", 1).await;
        let program = Program::start(&directory.path().join("orders.sock"));
        let mut orders = Proxy::start(&realm, "orders", WEB_TO_ORDERS).await;
        orders.listen_as(&[inbound(&program.target(), protocol)], change);
        let local = directory.path().join("web.orders.sock");
        let mut web = Proxy::start(&realm, "web", WEB_TO_ORDERS).await;
        web.listen(&[], &[outbound(&realm, &local, &[orders.door()], protocol)]);
        Self { web, orders, program, local, realm, _directory: directory }
    }

    /// Lets this much time pass on its clock.
    pub(super) async fn pass(&self, span: Duration) {
        let clock = &self.realm.clock;
        clock.sleep_until(clock.now() + span).await;
    }

    /// A keep-alive connection of `web`'s program to its way out.
    pub(super) async fn caller(&self) -> Caller {
        Caller::connect(&self.local).await
    }
}

/// A program that speaks plain HTTP/1.1.
pub(super) struct Caller {
    sender: SendRequest<Full<Bytes>>,
}

impl Caller {
    pub(super) async fn connect(local: &Path) -> Self {
        let stream = UnixStream::connect(local).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self { sender }
    }

    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Response<Incoming>> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    pub(super) async fn get(&mut self, path: &str) -> (u16, String) {
        let answer = self.send(get(path)).await.unwrap();
        read(answer).await
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

pub(super) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "orders").body(Full::default()).unwrap()
}

pub(super) async fn read(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// Waits for something that other tasks bring about.
pub(super) async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("what was waited for did not come")
}
