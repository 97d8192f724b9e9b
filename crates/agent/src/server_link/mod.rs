//! What the agent asks of a server. Over TLS, or of a simulation in the same process.

mod alert;
mod channel;
mod tls;
pub mod wire;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use countersign_api::v1;
use countersign_identity::{Code, KeyId, Name, NodeId, Revision, Revocations, SpiffeId, Timestamp};
use countersign_pki::{Bundle, Chain, PrivateKey};
use countersign_program::trace::Context;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

pub use tls::TlsLink;

use crate::core::SyncMessage;

/// The way to a server. Every call is bounded in time and says why it failed.
#[async_trait]
pub trait ServerLink: Send + Sync + 'static {
    /// From now on, shows this credential to servers, and trusts this bundle for them.
    ///
    /// # Errors
    /// When our own verifier does not accept the credential. The one before stays then, as it also does when there is none.
    fn present(
        &self,
        credential: Option<NodeCredential<'_>>,
        bundle: &Bundle,
    ) -> Result<(), LinkFault>;

    /// From now on, talks to no server whose certificate these rules cover; connections to such end. The next set replaces
    /// this one.
    fn revoke(&self, rules: &Arc<Revocations>);

    /// Proves a new node, once.
    async fn attest(&self, server: &str, ask: AttestAsk) -> Result<Attested, LinkFault>;

    /// Gives a registered node a new SVID.
    async fn renew(&self, server: &str, ask: RenewAsk) -> Result<Renewed, LinkFault>;

    /// Opens the stream of changes.
    async fn open(&self, server: &str, have: Option<Revision>) -> Result<Session, LinkFault>;
}

/// The node's own SVID, to be shown.
#[derive(Clone, Copy, Debug)]
pub struct NodeCredential<'a> {
    /// The chain, leaf first.
    pub chain: &'a Chain,
    /// The leaf's key.
    pub key: &'a PrivateKey,
}

/// A call that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct LinkFault {
    /// The reason, from the closed list.
    pub code: Code,
    /// The sentence.
    pub why: String,
}

/// A join token: whoever has it becomes a node, once.
#[derive(zeroize::ZeroizeOnDrop)]
pub struct JoinToken(String);

impl JoinToken {
    /// Takes a token as it was given out.
    ///
    /// # Errors
    /// When it cannot be one.
    pub fn new(text: &Zeroizing<String>) -> Result<Self, BadJoinToken> {
        let text = text.trim();
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || 512 < text.len() || !printable {
            return Err(BadJoinToken);
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for JoinToken {
    type Err = BadJoinToken;

    fn from_str(text: &str) -> Result<Self, BadJoinToken> {
        Self::new(&Zeroizing::new(text.to_owned()))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken")
    }
}

/// A text that is no join token. The text itself is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the join token is not understood: expected the text that `countersign token create` printed"
)]
pub struct BadJoinToken;

/// A new node's proof.
#[derive(Debug)]
pub struct AttestAsk {
    /// What entitles it.
    pub evidence: Evidence,
    /// The root that it was told to trust.
    pub pin: KeyId,
    /// The trust domain, when it was told.
    pub domain: Option<countersign_identity::TrustDomain>,
    /// The request signed by its key.
    pub csr: Vec<u8>,
    /// For people.
    pub host: String,
    /// Whether this run of the agent is the first: no key was there that an earlier one could have been this node with.
    pub first: bool,
}

/// What entitles a machine to become a node.
#[derive(Clone, Debug)]
pub enum Evidence {
    /// A join token.
    Token(Arc<JoinToken>),
    /// A certificate of the operator's own.
    Machine(Arc<MachineCredential>),
}

/// A machine's own certificate, with those above it, and its private key.
#[derive(Debug)]
pub struct MachineCredential {
    /// The chain, the machine's certificate first.
    pub chain: Chain,
    /// The key of the first.
    pub key: PrivateKey,
}

/// What came of an attestation.
#[derive(Clone, Debug)]
pub struct Attested {
    /// Its name from now on.
    pub node: NodeId,
    /// Its SVID.
    pub chain: Chain,
    /// When that was issued.
    pub issued: Timestamp,
    /// The authorities of its trust domain.
    pub bundle: Bundle,
    /// Of the registered key.
    pub generation: u64,
}

/// A renewal by the registered key.
#[derive(Clone, Debug)]
pub struct RenewAsk {
    /// Who.
    pub node: NodeId,
    /// Of the key that signs.
    pub generation: u64,
    /// The registered key.
    pub key: Arc<PrivateKey>,
    /// The request signed by the key that shall follow; empty: the key stays.
    pub successor_csr: Vec<u8>,
    /// The node's last SVID, also when it has ended: it tells of the registered key where the server has lost that.
    pub chain: Chain,
    /// The node's trust domain.
    pub domain: countersign_identity::TrustDomain,
}

/// What came of a renewal.
#[derive(Clone, Debug)]
pub struct Renewed {
    /// The new SVID.
    pub chain: Chain,
    /// When that was issued.
    pub issued: Timestamp,
    /// The authorities of the trust domain.
    pub bundle: Bundle,
    /// Of the key that is registered now.
    pub generation: u64,
}

/// An open stream, and the calls beside it. Dropping it closes the connection.
pub struct Session {
    /// What the server says, in order; ends with why.
    pub messages: ReceiverStream<Result<SyncMessage, LinkFault>>,
    /// What is acknowledged. Cumulative, so a full queue loses nothing.
    pub acks: mpsc::Sender<v1::SyncAck>,
    /// The calls.
    pub calls: Arc<dyn Calls>,
    /// How long the server may say nothing while all is well.
    pub quiet: Quiet,
    /// What moves the messages, ended with the session.
    pub pump: AbortOnDropHandle<()>,
}

/// How long a server may say nothing while all is well, as it said last. The more agents it has, the longer.
#[derive(Clone, Debug, Default)]
pub struct Quiet(Arc<AtomicU64>); // INVARIANT: milliseconds; 0 until the server has said it

impl Quiet {
    /// The server says it.
    pub fn told(&self, millis: u32) {
        self.0.store(millis.into(), Ordering::Relaxed);
    }

    /// What it said; none when it did not.
    pub fn get(&self) -> Option<Duration> {
        let millis = self.0.load(Ordering::Relaxed);
        (millis != 0).then(|| Duration::from_millis(millis))
    }
}

/// Calls on an open session.
#[async_trait]
pub trait Calls: Send + Sync + 'static {
    /// Asks for SVIDs; the answers come in the order of the items.
    /// The request stands there in a trace, if it does in any.
    async fn sign(
        &self,
        items: Vec<SignItem>,
        from: Option<Context>,
    ) -> Result<Vec<SignAnswer>, LinkFault>;

    /// Passes facts and statuses on. They may be lost.
    async fn report(&self, report: v1::ReportRequest) -> Result<(), LinkFault>;

    /// The revocation lists of all authorities, in DER, which tell at least the revocations of this revision.
    async fn lists(&self, revision: Revision) -> Result<Vec<Bytes>, LinkFault>;

    /// Hands back rules that the server's state lacks. Says how many of them were new to it.
    async fn hand_back(&self, _records: Vec<v1::SignedRecord>) -> Result<u64, LinkFault> {
        // A simulated server loses nothing.
        Ok(0)
    }
}

/// One SVID that is asked for.
#[derive(Clone, Debug)]
pub struct SignItem {
    /// For whom.
    pub subject: Subject,
    /// The request signed by its key.
    pub csr: Vec<u8>,
}

/// For whom an SVID is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A workload, by its manifest's name.
    Workload(Name),
    /// A canary of a trial.
    Canary(SpiffeId),
}

/// The answer to one item.
#[derive(Clone, Debug)]
pub enum SignAnswer {
    /// An SVID, not yet verified.
    Issued {
        /// The chain, leaf first.
        chain: Chain,
        /// The moment of issue.
        issued: Timestamp,
    },
    /// The server's word that there is none.
    Refused(Code, String),
    /// The answer was not understood.
    Broken(String),
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

impl LinkFault {
    /// A fault of the closed list, with its sentence.
    pub fn new(code: Code, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }
}
