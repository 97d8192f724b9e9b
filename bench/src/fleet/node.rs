//! A simulated machine: it joins, renews and asks for SVIDs as a real agent does, over real connections.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use countersign_api::renewal::{EXPORTER_LABEL, renewal_statement};
use countersign_api::standing::{self, Standing};
use countersign_api::{v1, wire as api};
use countersign_identity::{Clock, KeyId, NodeId, Serial, Sha256, TrustDomain};
use countersign_pki::{Bundle, Bundles, Chain, KeyKind, PrivateKey, make_csr};
use countersign_tls::{
    Expected, FirstContact, Identity, Outbound, Present, Slice, Stream, Trust, connect,
    connect_pinned,
};
use h2::client::SendRequest;
use tokio::net::{TcpSocket, TcpStream};

use super::wire::{self, Call};

/// A crowd that comes at once may have to wait for its handshakes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Machines have kernels of their own, which ask at times of their own whether a server is there still. The one kernel of a
/// simulated fleet would ask for all of it in one tick, which is more than loopback queues, and take live connections for dead.
const NEVER: Duration = Duration::from_secs(6 * 3600);

/// Addresses of the loopback network that machines share.
const ADDRESSES: u32 = 250 * 250;

/// Where the fleet's server is, and how it is known.
#[derive(Clone)]
pub(crate) struct Home {
    pub(crate) address: SocketAddr,
    pub(crate) pin: KeyId,
    pub(crate) domain: TrustDomain,
    pub(crate) clock: Arc<dyn Clock>,
}

/// A machine that has joined.
pub(crate) struct Node {
    home: Home,
    address: Ipv4Addr,
    id: NodeId,
    key: PrivateKey,
    trust: Arc<Trust>,
    left: Mutex<HashSet<KeyId>>,
}

impl Node {
    /// Joins with a token, once.
    pub(crate) async fn join(home: Home, number: u32, token: String) -> Result<Self> {
        let contact = FirstContact {
            pin: home.pin,
            domain: Some(home.domain.clone()),
            alpn: vec![b"h2".to_vec()],
            timeout: PATIENCE,
        };
        let address = address(number);
        let tcp = reach(address, home.address).await?;
        let pinned = connect_pinned(&home.clock, tcp, &contact).await;
        let pinned = pinned.map_err(|refused| anyhow!("{}", refused.why))?;
        let key = PrivateKey::generate(KeyKind::P256)?;
        let request = v1::AttestRequest {
            evidence: Some(v1::attest_request::Evidence::JoinToken(token)),
            csr: make_csr(&key)?.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: "simulated".to_owned(),
        };
        let (sender, connection) = wire::over(pinned.stream).await?;
        let asking = wire::ask::<v1::AttestResponse>(&sender, "Attest", &request);
        let joined = wire::driving(connection, asking).await?;
        let bundle = Bundle::parse_json(home.domain.clone(), &joined.bundle)?;
        let trust = Trust::new(Arc::clone(&home.clock), Slice::nothing());
        let id = api::node_id(&joined.node_id)?;
        let node = Self { home, address, id, key, trust, left: Mutex::default() };
        node.trusts(bundle);
        node.shows(&joined.chain)?;
        Ok(node)
    }

    /// Verifies servers by this bundle from now on.
    pub(super) fn trusts(&self, bundle: Bundle) {
        let bundles = Arc::new(Bundles::of(bundle));
        self.trust.apply(Slice { bundles, ..Slice::nothing() });
    }

    /// Whether what it holds may be under one of these roots.
    pub(super) fn is_under(&self, retiring: &[KeyId]) -> bool {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        retiring.iter().any(|root| !left.contains(root))
    }

    /// Nothing that it holds is under these roots any more.
    pub(super) fn leave(&self, retiring: &[KeyId]) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).extend(retiring);
    }

    /// Reads a bundle of the trust domain.
    pub(super) fn read(&self, document: &[u8]) -> Result<Bundle> {
        Ok(Bundle::parse_json(self.home.domain.clone(), document)?)
    }

    fn shows(&self, chain: &[Bytes]) -> Result<()> {
        let chain = Chain::from_ders(chain.iter().map(AsRef::as_ref))?;
        let identity = Identity::new(chain, self.key.pkcs8())?;
        self.trust.set_identity(identity).map_err(|refused| anyhow!("{}", refused.why))
    }

    async fn dial(&self, present: Present, alpn: &[u8]) -> Result<Stream> {
        let mut outbound = Outbound::control(Expected::Server(self.home.domain.clone()));
        (outbound.present, outbound.alpn) = (present, vec![alpn.to_vec()]);
        outbound.timeout = PATIENCE;
        let tcp = reach(self.address, self.home.address).await?;
        let established = connect(&self.trust, tcp, &outbound).await;
        Ok(established.map_err(|failure| anyhow!("{failure}"))?.stream)
    }

    /// A standing connection.
    pub(crate) async fn connect(&self) -> Result<Stream> {
        let stream = self.dial(Present::Required, standing::ALPN).await?;
        stream.probe_after(NEVER)?;
        Ok(stream)
    }

    /// Asks for one SVID for each of these workloads, each with a key of its own; gives the leaves' serials.
    pub(super) async fn sign(&self, workloads: &[String]) -> Result<Vec<Serial>> {
        let (Standing { calls, .. }, moving) = Standing::over(self.connect().await?);
        let item = |workload: &String| -> Result<v1::SignItem> {
            let key = PrivateKey::generate(KeyKind::P256)?;
            let csr = make_csr(&key)?.into();
            Ok(v1::SignItem { workload: workload.clone(), csr, ..Default::default() })
        };
        let items = workloads.iter().map(item).collect::<Result<_>>()?;
        let answer = tokio::select! {
            answer = calls.sign(v1::SignRequest { items, ..v1::SignRequest::default() }) => answer?,
            () = moving => return Err(calls.why_ended().into()),
        };
        answer.results.into_iter().map(serial).collect()
    }

    /// Renews its own SVID by its registered key, which stays.
    pub(super) async fn renew(&self) -> Result<()> {
        let stream = self.dial(Present::Nothing, b"h2").await?;
        let exporter = stream.export(EXPORTER_LABEL).map_err(|code| anyhow!("exporter: {code}"))?;
        let (sender, connection) = wire::over(stream).await?;
        let renewed = wire::driving(connection, self.prove(&sender, &exporter)).await?;
        self.trusts(self.read(&renewed.bundle)?);
        self.shows(&renewed.chain)
    }

    async fn prove(&self, sender: &SendRequest<Bytes>, exporter: &[u8; 32]) -> Result<v1::Renewed> {
        use v1::renew_request::Step as Out;
        use v1::renew_response::Step as In;
        let mut call = Call::begin(sender, "Renew").await?;
        let node_id = Bytes::copy_from_slice(self.id.as_bytes());
        let hello = v1::RenewHello { node_id, generation: 1, ..Default::default() };
        call.say(&v1::RenewRequest { step: Some(Out::Hello(hello)) })?;
        let first: Option<v1::RenewResponse> = call.hear().await?;
        let Some(In::Nonce(nonce)) = first.and_then(|answer| answer.step) else {
            bail!("a nonce was expected");
        };
        let nonce: [u8; 32] = nonce.as_ref().try_into().context("a nonce has 32 bytes")?;
        let nothing = Sha256::from_bytes(NOTHING);
        let statement = renewal_statement(&nonce, exporter, self.id, 1, nothing);
        let proof = v1::RenewProof {
            signature: self.key.sign(&statement)?.into(),
            successor_csr: Bytes::new(),
        };
        call.say(&v1::RenewRequest { step: Some(Out::Proof(proof)) })?;
        let second: Option<v1::RenewResponse> = call.hear().await?;
        match second.and_then(|answer| answer.step) {
            Some(In::Renewed(renewed)) => Ok(renewed),
            Some(In::Nonce(_)) | None => bail!("a certificate was expected"),
        }
    }
}

/// Machines have addresses of their own: a server gives each source so much room and no more.
fn address(number: u32) -> Ipv4Addr {
    let number = number % ADDRESSES;
    let byte = |of: u32| u8::try_from(of % 250 + 1).expect("under 251");
    Ipv4Addr::new(127, 1, byte(number / 250), byte(number))
}

async fn reach(from: Ipv4Addr, to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddrV4::new(from, 0).into())?;
    Ok(socket.connect(to).await?)
}

/// SHA-256 of no bytes: the key has no successor.
const NOTHING: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

fn serial(result: v1::SignResult) -> Result<Serial> {
    match result.outcome {
        Some(v1::sign_result::Outcome::Issued(issued)) => {
            let chain = Chain::from_ders(issued.chain.iter().map(AsRef::as_ref))?;
            chain.leaf().serial().context("a serial of our form")
        }
        Some(v1::sign_result::Outcome::Refusal(refusal)) => bail!("refused: {}", refusal.message),
        None => bail!("no outcome"),
    }
}
