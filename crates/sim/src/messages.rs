//! What agents and the server say to each other, and what a step asks of the world.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use countersign_agent::core::Term;
use countersign_api::renewal::renewal_statement;
use countersign_api::v1;
use countersign_identity::{Code, Name, NodeId, Sha256};
use countersign_pki::PrivateKey;

use crate::machine::Svid;

/// What goes to the server.
#[derive(Clone)]
pub(crate) enum Request {
    Open { session: u64, chain: Vec<bytes::Bytes>, hello: v1::SyncHello },
    Sign { call: u64, chain: Vec<bytes::Bytes>, request: v1::SignRequest },
    Renew { call: u64, hello: v1::RenewHello, ask: RenewAsk },
    Ack { session: u64, ack: v1::SyncAck },
    Gone { session: u64 },
}

/// What answers the server's nonce.
#[derive(Clone)]
pub(crate) struct RenewAsk {
    pub(crate) node: NodeId,
    pub(crate) generation: u64,
    pub(crate) key: Arc<PrivateKey>,
    pub(crate) csr: Vec<u8>,
}

/// What comes to the agent.
#[derive(Clone)]
pub(crate) enum Reply {
    Opened {
        session: u64,
    },
    Ended {
        session: u64,
        code: Code,
        why: String,
    },
    Said {
        session: u64,
        message: Box<v1::SyncResponse>,
        records: Arc<Records>,
    },
    Signed {
        call: u64,
        answer: Result<v1::SignResponse, String>,
    },
    Renewed {
        call: u64,
        answer: Result<v1::Renewed, (Code, String)>,
    },
    /// The caller's own patience.
    Silence {
        session: u64,
    },
    NoAnswer {
        call: u64,
    },
}

/// The records of a slice, by kind and name: what a replica must hold after a message.
pub(crate) type Records = BTreeMap<(String, String), Vec<u8>>;

/// What a step asks of the world.
pub(crate) enum Effect {
    /// To this server.
    Send(usize, Request),
    /// A reminder to itself.
    After(Duration, Reply),
    Trace(String),
    /// An SVID is asked for in place of this one.
    Renews(Name, Term),
    /// A new SVID is served.
    Serves(Arc<Svid>),
}

impl RenewAsk {
    /// The proof over this nonce.
    pub(crate) fn proof(&self, nonce: &[u8], exporter: &[u8; 32]) -> v1::RenewProof {
        let nonce: &[u8; 32] = nonce.try_into().expect("a nonce has 32 bytes");
        let statement =
            renewal_statement(nonce, exporter, self.node, self.generation, sha256(&self.csr));
        let signature = self.key.sign(&statement).expect("Ed25519 signs");
        v1::RenewProof { signature: signature.into(), successor_csr: self.csr.clone().into() }
    }
}

impl Request {
    /// Its name, for the trace.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Open { .. } => "open",
            Self::Sign { .. } => "sign",
            Self::Renew { .. } => "renew",
            Self::Ack { .. } => "ack",
            Self::Gone { .. } => "gone",
        }
    }
}

fn sha256(bytes: &[u8]) -> Sha256 {
    let digest = digest(&SHA256, bytes);
    Sha256::from_bytes(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}
