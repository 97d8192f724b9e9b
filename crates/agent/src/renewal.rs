//! Getting credentials: the node's first, its successors, and those of workloads.

use std::sync::Arc;

use countersign_identity::{Clock, Code, Name};
use countersign_pki::{
    Bundle, Bundles, Chain, KeyKind, PrivateKey, Role, Verified, make_csr, verify,
};
use countersign_program::trace::{Kind, Tracer};
use tokio::sync::Semaphore;

use crate::core::{Credential, Outcome, Workload};
use crate::disk::{Disk, Node};
use crate::server_link::{
    AttestAsk, Calls, Evidence, LinkFault, NodeCredential, RenewAsk, ServerLink, SignAnswer,
    SignItem, Subject,
};
use crate::view::Svid;

/// The kind of the node's own keys.
const NODE_KEY: KeyKind = KeyKind::P256;
pub(crate) const FIRST_GENERATION: u64 = 1;

/// What an attestation needs besides the key.
pub(crate) struct Admission {
    pub(crate) evidence: Evidence,
    pub(crate) pin: countersign_identity::KeyId,
    pub(crate) domain: Option<countersign_identity::TrustDomain>,
    /// Whether no earlier run of the agent has left a key here.
    pub(crate) first: bool,
}

/// Proves this node to a server, once.
pub(crate) async fn attest(
    link: &dyn ServerLink,
    disk: &Disk,
    server: &str,
    admission: &Admission,
) -> Result<Node, LinkFault> {
    match attest_with_key(link, disk, server, admission).await {
        // An earlier attestation registered this key, and its answer was lost. The server took nothing of this one, so
        // the token is unspent: join as another node.
        Err(fault)
            if fault.code == Code::AlreadyExists
                && matches!(admission.evidence, Evidence::Token(_)) =>
        {
            disk.forget_key(FIRST_GENERATION).map_err(|why| ours(&why))?;
            attest_with_key(link, disk, server, admission).await
        }
        other => other,
    }
}

async fn attest_with_key(
    link: &dyn ServerLink,
    disk: &Disk,
    server: &str,
    admission: &Admission,
) -> Result<Node, LinkFault> {
    // Written down before the server hears of it, so a crash cannot lose a registered key.
    let key = Arc::new(disk.key_or_new(FIRST_GENERATION, NODE_KEY).map_err(|why| ours(&why))?);
    let csr = make_csr(&key).map_err(|why| ours(&why))?;
    let ask = AttestAsk {
        evidence: admission.evidence.clone(),
        pin: admission.pin,
        domain: admission.domain.clone(),
        csr,
        host: host(),
        first: admission.first,
    };
    let attested = link.attest(server, ask).await?;
    if attested.chain.leaf().spki() != key.public().spki() {
        return Err(LinkFault::new(Code::Internal, "the server's certificate is for another key"));
    }
    let node = Node {
        id: attested.node,
        generation: attested.generation,
        key,
        chain: attested.chain,
        issued: attested.issued,
        bundle: attested.bundle,
    };
    present(link, &node)?;
    disk.keep_node(&node).map_err(|why| ours(&why))?;
    Ok(node)
}

/// Shows the node's SVID from now on; our own verifier looks at it first.
pub(crate) fn present(link: &dyn ServerLink, node: &Node) -> Result<(), LinkFault> {
    link.present(Some(NodeCredential { chain: &node.chain, key: &node.key }), &node.bundle)
}

/// What a renewal needs of the node.
#[derive(Clone)]
pub(crate) struct Registered {
    pub(crate) id: countersign_identity::NodeId,
    pub(crate) generation: u64,
    pub(crate) key: Arc<PrivateKey>,
    pub(crate) chain: Chain,
    pub(crate) bundle: Bundle,
}

impl Registered {
    pub(crate) fn of(node: &Node) -> Self {
        Self {
            id: node.id,
            generation: node.generation,
            key: Arc::clone(&node.key),
            chain: node.chain.clone(),
            bundle: node.bundle.clone(),
        }
    }
}

/// Gets the node's next SVID, under a successor of its key.
///
/// The successor is on disk before the server hears of it, and the same one is offered again after a lost answer. When
/// the server has it already, the key before is refused as stale, and the successor takes over.
pub(crate) async fn renew_node(
    link: &dyn ServerLink,
    disk: &Disk,
    server: &str,
    now: Registered,
) -> Result<Node, LinkFault> {
    let next = now.generation + 1;
    let successor = Arc::new(disk.key_or_new(next, NODE_KEY).map_err(|why| ours(&why))?);
    let ask = |generation, key: &Arc<PrivateKey>, successor_csr| RenewAsk {
        node: now.id,
        generation,
        key: Arc::clone(key),
        successor_csr,
        chain: now.chain.clone(),
        domain: now.bundle.domain.clone(),
    };
    let csr = make_csr(&successor).map_err(|why| ours(&why))?;
    let renewed = match link.renew(server, ask(now.generation, &now.key, csr)).await {
        Err(fault) if fault.code == Code::StaleGeneration => {
            link.renew(server, ask(next, &successor, Vec::new())).await?
        }
        other => other?,
    };
    let spki = renewed.chain.leaf().spki();
    let key = match renewed.generation {
        generation if generation == next && spki == successor.public().spki() => successor,
        generation if generation == now.generation && spki == now.key.public().spki() => now.key,
        _ => return Err(LinkFault::new(Code::Internal, "the server renewed another key")),
    };
    let node = Node {
        id: now.id,
        generation: renewed.generation,
        key,
        chain: renewed.chain,
        issued: renewed.issued,
        bundle: renewed.bundle,
    };
    present(link, &node)?;
    disk.keep_node(&node).map_err(|why| ours(&why))?;
    Ok(node)
}

/// One workload's outcome, with the SVID when there is one.
pub(crate) struct Signed {
    pub(crate) name: Name,
    pub(crate) outcome: Outcome,
    pub(crate) svid: Option<Svid>,
}

/// Makes private keys. Those that take long are made on a thread of their own, one at a time on the whole node.
#[derive(Clone, Debug)]
pub(crate) struct KeyMaker(Arc<Semaphore>);

impl KeyMaker {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }

    async fn make(&self, kind: KeyKind) -> Result<PrivateKey, LinkFault> {
        if !kind.is_slow_to_make() {
            return PrivateKey::generate(kind).map_err(|why| ours(&why));
        }
        let turn = Arc::clone(&self.0).acquire_owned().await.map_err(|why| ours(&why))?;
        // The turn goes with it: who stops waiting cannot stop the thread, and the next one begins when that has ended.
        let making = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            PrivateKey::generate(kind)
        });
        making.await.map_err(|why| ours(&why))?.map_err(|why| ours(&why))
    }
}

/// Makes a key for each workload, and asks for its SVID. What comes back is verified before anybody sees it.
pub(crate) async fn sign(
    calls: &dyn Calls,
    maker: &KeyMaker,
    workloads: Vec<Arc<Workload>>,
    bundle: Option<Arc<Bundle>>,
    (clock, tracer): (&dyn Clock, &Tracer),
) -> Vec<Signed> {
    let mut span = tracer.begin(|| "renew SVIDs".into(), Kind::Client, None);
    span.number("countersign.svids", i64::try_from(workloads.len()).unwrap_or(i64::MAX));
    let failed = |workload: &Arc<Workload>, why: String| Signed {
        name: workload.name.clone(),
        outcome: Outcome::Failed(why),
        svid: None,
    };
    let mut signed = Vec::new();
    let mut asked = Vec::new();
    let mut items = Vec::new();
    for workload in workloads {
        match request(maker, &workload).await {
            Ok((key, item)) => {
                items.push(item);
                asked.push((workload, key));
            }
            Err(why) => signed.push(failed(&workload, why.why)),
        }
    }
    match calls.sign(items, span.context()).await {
        Ok(answers) => {
            let bundles =
                bundle.map(|bundle| Bundles::of(Bundle::clone(&bundle))).unwrap_or_default();
            signed.extend(
                asked.into_iter().zip(answers).map(|((workload, key), answer)| {
                    outcome(&workload, key, answer, &bundles, clock)
                }),
            );
        }
        Err(fault) => {
            span.fail(fault.why.clone());
            signed.extend(asked.iter().map(|(workload, _)| failed(workload, fault.why.clone())));
        }
    }
    signed
}

async fn request(
    maker: &KeyMaker,
    workload: &Workload,
) -> Result<(PrivateKey, SignItem), LinkFault> {
    let key = maker.make(workload.spec.key_type).await?;
    let csr = make_csr(&key).map_err(|why| ours(&why))?;
    Ok((key, SignItem { subject: Subject::Workload(workload.name.clone()), csr }))
}

fn outcome(
    workload: &Workload,
    key: PrivateKey,
    answer: SignAnswer,
    bundles: &Bundles,
    clock: &dyn Clock,
) -> Signed {
    let name = workload.name.clone();
    let without = |outcome| Signed { name: workload.name.clone(), outcome, svid: None };
    let (chain, issued) = match answer {
        SignAnswer::Issued { chain, issued } => (chain, issued),
        SignAnswer::Refused(code, why) => return without(Outcome::Refused(code, why)),
        SignAnswer::Broken(why) => return without(Outcome::Failed(why)),
    };
    let verified = match check(workload, &key, &chain, bundles, clock) {
        Ok(verified) => verified,
        Err(why) => return without(Outcome::Failed(why)),
    };
    let credential = Credential::verified(&chain, &verified, issued);
    let svid = Svid { id: workload.id.clone(), chain, key, term: credential.term };
    Signed { name, outcome: Outcome::Issued(credential), svid: Some(svid) }
}

/// Our own verifier's word on a new SVID, or why it is not taken.
fn check(
    workload: &Workload,
    key: &PrivateKey,
    chain: &Chain,
    bundles: &Bundles,
    clock: &dyn Clock,
) -> Result<Verified, String> {
    if chain.leaf().spki() != key.public().spki() {
        return Err("the server's certificate is for another key".to_owned());
    }
    let verified = verify(&chain.ders(), bundles, Role::Client, clock.now())
        .map_err(|refused| format!("the server's certificate is not accepted: {}", refused.why))?;
    if verified.id != workload.id {
        return Err(format!("the server issued `{}`, expected `{}`", verified.id, workload.id));
    }
    Ok(verified)
}

/// Whether a held SVID is still one that verifiers accept.
pub(crate) fn still_good(svid: &Svid, bundles: &Bundles, clock: &dyn Clock) -> bool {
    verify(&svid.chain.ders(), bundles, Role::Client, clock.now()).is_ok()
}

fn ours(why: &dyn std::fmt::Display) -> LinkFault {
    LinkFault::new(Code::Internal, why.to_string())
}

fn host() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().chars().take(253).collect()
}
