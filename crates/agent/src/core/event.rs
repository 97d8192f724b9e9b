//! What can happen to the machine, and what it can ask for.

use std::sync::Arc;

use countersign_identity::{Code, Failed, Name, NodeId, Revision, Revocations, Timestamp};

use super::credential::Credential;
use super::record::{Record, RecordKey, SignedRecord};
use super::replica::{Replica, Workload};

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Time has passed.
    Woke,
    /// A stream to the server is open.
    Opened,
    /// The stream could not be opened, or has ended.
    Closed {
        /// Why, for the machine.
        code: Code,
        /// Why, for people.
        why: String,
    },
    /// The server said something on the stream.
    Said(SyncMessage),
    /// What became of a request for SVIDs.
    Signed(Vec<(Name, Outcome)>),
    /// The server refuses the agent's own SVID because its key has a successor.
    KeySucceeded,
    /// The agent's own SVID was renewed.
    NodeRenewed(Credential),
    /// It was not.
    NodeRenewalFailed {
        /// Why, for the machine.
        code: Code,
        /// Why, for people.
        why: String,
    },
    /// The verifier does not accept these held SVIDs under the present bundle any more.
    Unusable(Vec<Name>),
}

/// A message of the server's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncMessage {
    /// The whole slice.
    Snapshot {
        /// Which state.
        revision: Revision,
        /// All of it.
        records: Vec<Record>,
        /// The server's clock, when it tells it.
        clock: Option<Timestamp>,
    },
    /// What changed.
    Changes {
        /// The state that it leads to.
        revision: Revision,
        /// New or other.
        put: Vec<Record>,
        /// Withdrawn.
        gone: Vec<RecordKey>,
    },
    /// Nothing changed up to this revision.
    Mark {
        /// Which.
        revision: Revision,
        /// The server's clock, when it tells it.
        clock: Option<Timestamp>,
    },
    /// The signatures of rules in the message that follows. The machine has no use for them; they are kept beside it.
    Signed(Vec<SignedRecord>),
}

/// What became of the request for one SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was issued, and our own verifier accepts it.
    Issued(Credential),
    /// The server refuses.
    Refused(Code, String),
    /// No answer, or one that our verifier does not accept.
    Failed(String),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a stream to this server, and give up the one before.
    Open {
        /// Which of the configured servers.
        server: usize,
        /// From where to go on; nothing when there is nothing.
        have: Option<Revision>,
    },
    /// Give up the stream.
    Close,
    /// Renew the agent's own SVID there.
    RenewNode {
        /// Which of the configured servers.
        server: usize,
    },
    /// Ask for SVIDs of these workloads.
    Sign(Vec<Arc<Workload>>),
    /// What is served has changed.
    Publish,
    /// The records have changed: write them down.
    Remember,
}

/// What the agent knows of its slice of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// Nothing.
    Nothing,
    /// What it wrote down in an earlier life.
    Remembered,
    /// A server's word in this life.
    Synced,
}

/// What an earlier life wrote down.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// The records.
    pub replica: Option<Replica>,
    /// The revocations that were in force.
    pub rules: Arc<Revocations>,
    /// The highest time that was seen.
    pub seen: Timestamp,
}

impl Remembered {
    /// Of a first life.
    pub fn nothing() -> Self {
        Self { replica: None, rules: Arc::default(), seen: Timestamp::EPOCH }
    }
}

/// How the link to a server stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkView {
    /// Which of the configured servers it is, or was last.
    pub server: usize,
    /// Since when there is none.
    pub disconnected: Option<Timestamp>,
    /// When it was last lost, or could not be made, and why; be it long mended.
    pub failed: Option<Failed>,
    /// Why there is none now.
    pub trouble: Option<String>,
    /// The word by which servers refuse this node itself, since they do.
    pub refused: Option<Code>,
}

/// What does not change while the machine runs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Which node this is.
    pub node: NodeId,
    /// How many servers there are.
    pub servers: usize,
    /// The most SVIDs that one request asks for.
    pub batch_max: usize,
}
