//! Two ends of a connection, each with its own trust, on the loopback interface.

use std::collections::HashMap;
use std::sync::Arc;

use countersign_identity::{
    Clock, Code, Name, NodeId, Reason, Revision, Revocation, Revocations, Revoked, SimClock,
};
use countersign_pki::Bundles;
use countersign_policy::{Policies, PolicySource};
use countersign_tls::{
    Established, Expected, HandshakeFailure, Identity, Inbound, Outbound, Slice, Trust, accept,
    code_of_io, dial,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::realm::{Realm, START, Svid};

pub(crate) const WEB_TO_ORDERS: &str = r#"permit (principal == Workload::"web", action == Action::"connect", resource == Service::"orders");"#;

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn clock() -> Arc<SimClock> {
    Arc::new(SimClock::new(START))
}

/// No text, no policy.
pub(crate) fn policies(text: &str) -> Arc<Policies> {
    if text.is_empty() {
        return Arc::new(Policies::none());
    }
    let source = PolicySource::enforced(name("shop"), text);
    match Policies::compile(&[source], None) {
        Ok(policies) => Arc::new(policies),
        Err(problems) => panic!("{}", problems[0]),
    }
}

/// A slice with these realms' bundles, which names `/x` of the first one `x`.
pub(crate) fn slice(realms: &[&Realm], text: &str) -> Slice {
    let bundles = realms.iter().map(|realm| realm.bundle()).collect();
    let names = ["web", "orders", "payments"]
        .map(|path| (realms[0].domain.with_path(&format!("/{path}")).unwrap(), name(path)));
    Slice {
        revision: Revision { incarnation: 1, number: 1 },
        bundles: Arc::new(Bundles::new(bundles).unwrap()),
        names: Arc::new(HashMap::from(names)),
        policies: policies(text),
        revocations: Arc::default(),
        profiles: Arc::default(),
    }
}

/// The first revision that a rule of the tests does not cover; their certificates carry 7.
pub(crate) const CUT_OFF: Revision = Revision { incarnation: 1, number: 8 };

/// Every kind of rule that covers this one's certificate.
pub(crate) fn rules_on(svid: &Svid, realm: &Realm) -> [Revoked; 7] {
    let leaf = svid.chain.leaf();
    let node = NodeId::from_bytes([1; 16]);
    [
        Revoked::Serial(leaf.serial().unwrap()),
        Revoked::Identity { id: svid.id.clone(), before: CUT_OFF },
        Revoked::Key(leaf.key_id()),
        Revoked::Node { id: node, tag: leaf.provenance().unwrap().node, before: CUT_OFF },
        Revoked::Authority(realm.issuer.key_id()),
        Revoked::Authority(realm.root.key_id()),
        Revoked::Earlier { domain: svid.id.trust_domain().clone(), before: CUT_OFF },
    ]
}

/// What it enforces, and these rules.
pub(crate) fn revoking(trust: &Trust, reason: Reason, targets: &[Revoked]) -> Slice {
    let rule = |target: &Revoked| Revocation {
        target: target.clone(),
        about: None,
        reason,
        at: START,
        until: START + std::time::Duration::from_secs(86_400),
    };
    let rules = targets.iter().map(|target| (target.to_string().into(), Arc::new(rule(target))));
    let revocations = Arc::new(Revocations::new(rules));
    Slice { revocations, ..Slice::clone(&trust.slice()) }
}

pub(crate) fn trust(clock: &Arc<SimClock>, slice: Slice, svid: Option<&Svid>) -> Arc<Trust> {
    let trust = Trust::new(Arc::clone(clock) as Arc<dyn Clock>, slice);
    if let Some(svid) = svid {
        trust.set_identity(identity(svid)).unwrap();
    }
    trust
}

pub(crate) fn identity(svid: &Svid) -> Identity {
    Identity::new(svid.chain.clone(), &svid.pkcs8).unwrap()
}

/// The usual case: `web` and `orders` of one realm, and a policy for the two.
pub(crate) struct Shop {
    pub(crate) clock: Arc<SimClock>,
    pub(crate) realm: Realm,
    pub(crate) web: Arc<Trust>,
    pub(crate) orders: Arc<Trust>,
}

impl Shop {
    pub(crate) fn open() -> Self {
        Self::with_policy(WEB_TO_ORDERS)
    }

    pub(crate) fn with_policy(text: &str) -> Self {
        let realm = Realm::new("shop.example", 1);
        let clock = clock();
        let web = realm.svid("/web", START, 3600);
        let orders = realm.svid("/orders", START, 3600);
        let web = trust(&clock, slice(&[&realm], text), Some(&web));
        let orders = trust(&clock, slice(&[&realm], text), Some(&orders));
        Self { clock, realm, web, orders }
    }

    pub(crate) fn to_orders(&self) -> Outbound {
        let orders = self.realm.domain.with_path("/orders").unwrap();
        Outbound::service(name("orders"), Expected::Id(orders))
    }

    pub(crate) async fn shake(&self) -> Shaken {
        shake(&self.web, &self.to_orders(), &self.orders, &door()).await
    }
}

pub(crate) fn door() -> Inbound {
    Inbound::service(name("orders"))
}

/// What became of a handshake, at both ends.
pub(crate) struct Shaken {
    /// None: it went away when its first read told that it was refused.
    pub(crate) client: Result<Option<Established>, HandshakeFailure>,
    pub(crate) server: Result<Established, HandshakeFailure>,
    /// What the client's first read said, when the server refused.
    pub(crate) told: Option<Code>,
}

impl Shaken {
    #[track_caller]
    pub(crate) fn both(self) -> (Established, Established) {
        (self.client.unwrap().expect("the server refused"), self.server.unwrap())
    }

    /// Refused by the server, with this code, and the client was told that it was refused.
    #[track_caller]
    pub(crate) fn refused_by_server(self, code: Code) -> HandshakeFailure {
        assert_eq!(self.told, Some(Code::PeerRefused), "what the client is told");
        let failure = self.server.expect_err("the server accepted");
        assert_eq!(failure.code, code, "{failure}");
        assert_eq!(failure.fact.code, Some(code));
        failure
    }

    /// Refused by the client, with this code, and the server was told that it was refused.
    #[track_caller]
    pub(crate) fn refused_by_client(self, code: Code) -> HandshakeFailure {
        let server = self.server.expect_err("the server accepted");
        assert_eq!(server.code, Code::PeerRefused, "what the server is told: {server}");
        let failure = self.client.expect_err("the client accepted");
        assert_eq!(failure.code, code, "{failure}");
        assert_eq!(failure.fact.code, Some(code));
        failure
    }
}

pub(crate) async fn shake(
    client: &Arc<Trust>,
    outbound: &Outbound,
    server: &Arc<Trust>,
    inbound: &Inbound,
) -> Shaken {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let greeting = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut done = accept(server, tcp, inbound).await;
        // So that the client learns of the end of the handshake from its first read, whatever it is.
        if let Ok(established) = &mut done {
            let stream = &mut established.stream;
            // It may have been ended meanwhile, which the client finds out as well.
            if stream.write_all(b"hello").await.is_ok() {
                stream.flush().await.ok();
            }
        }
        done
    };
    let calling = async {
        let mut done = dial(client, address, outbound).await.map(Some);
        let mut told = None;
        if let Ok(slot) = &mut done {
            let stream = &mut slot.as_mut().unwrap().stream;
            told = stream.read_exact(&mut [0; 5]).await.err().map(|error| code_of_io(&error));
            // A client that was refused goes away.
            slot.take_if(|_| told.is_some());
        }
        (done, told)
    };
    let (server, (client, told)) = tokio::join!(greeting, calling);
    Shaken { client, server, told }
}

/// A line each way.
pub(crate) async fn exchange(client: &mut Established, server: &mut Established) {
    client.stream.write_all(b"ping").await.unwrap();
    client.stream.flush().await.unwrap();
    let mut four = [0; 4];
    server.stream.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"ping");
    server.stream.write_all(b"pong").await.unwrap();
    server.stream.flush().await.unwrap();
    client.stream.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"pong");
}

/// Why nothing more comes, or goes, over this end.
pub(crate) async fn end_of(established: &mut Established) -> Code {
    let mut bytes = [0; 64];
    loop {
        match established.stream.read(&mut bytes).await {
            Ok(0) => return Code::PeerClosed,
            Ok(_) => {}
            Err(error) => return code_of_io(&error),
        }
    }
}

/// Both ends of a TCP connection.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(dialled, listener.accept());
    (near.unwrap(), far.unwrap().0)
}
