//! What a source says of itself.

use std::collections::BTreeMap;
use std::fmt;

use countersign_identity::{Revision, Serial, SpiffeId, Timestamp};

/// A source at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Who the process is; none before the first SVID, and after it was withdrawn.
    pub identity: Option<IdentityStatus>,
    /// Where the identity comes from: the Workload API, or files.
    pub link: Link,
    /// Where the policies come from.
    pub enforcement: Enforcement,
    /// The revision that is enforced; none before the agent's first slice, and with local rules.
    pub revision: Option<Revision>,
    /// What is wrong now. What was good before stays in use meanwhile, until it expires.
    pub troubles: BTreeMap<Topic, String>,
}

/// The own X.509-SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityStatus {
    /// The SPIFFE ID.
    pub id: SpiffeId,
    /// The leaf's serial, when it is one of Countersign's.
    pub serial: Option<Serial>,
    /// When it ends.
    pub expires: Timestamp,
}

/// The way to what gives the identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Nothing was heard yet.
    Connecting,
    /// It is there.
    Connected,
    /// It is away; the source goes on with what it holds.
    Lost {
        /// Since when.
        since: Timestamp,
        /// What was seen of it.
        why: String,
    },
}

/// Where the policies come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// From a file, a list, or there are none, as the program was told. The agent is not asked.
    Local,
    /// From the agent, which has not answered yet. Nothing is allowed.
    Waiting,
    /// The agent does not offer policies. Nothing is allowed, unless it offered them before.
    NotOffered,
    /// From the agent.
    Subscribed,
    /// From the agent, which is away; what it said last stays in force.
    Lost {
        /// Since when.
        since: Timestamp,
        /// What was seen of it.
        why: String,
    },
}

/// What a trouble is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// The own SVID, or the files that it comes from.
    Identity,
    /// A bundle of another trust domain, or of an SVID that is not shown.
    Bundle,
    /// What the agent wants enforced.
    Slice,
    /// The policy file.
    Policy,
    /// Who can read the private key's file.
    KeyFile,
    /// The doors that peers come through.
    Door,
}

impl Status {
    pub(crate) fn begin(enforcement: Enforcement) -> Self {
        Self {
            identity: None,
            link: Link::Connecting,
            enforcement,
            revision: None,
            troubles: BTreeMap::new(),
        }
    }

    /// Whether there is an identity, and all has been said about who may connect.
    pub fn is_ready(&self) -> bool {
        let settled = match &self.enforcement {
            Enforcement::Local | Enforcement::NotOffered => true,
            Enforcement::Waiting | Enforcement::Subscribed | Enforcement::Lost { .. } => {
                self.revision.is_some()
            }
        };
        settled && self.identity.is_some()
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting"),
            Self::Connected => f.write_str("connected"),
            Self::Lost { since, why } => write!(f, "away since {since}: {why}"),
        }
    }
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("by local rules; revocations do not arrive"),
            Self::Waiting => f.write_str("waiting for the agent; nothing is allowed"),
            Self::NotOffered => f.write_str(
                "the agent offers no policies; nothing is allowed without a policy file or a list",
            ),
            Self::Subscribed => f.write_str("by the agent"),
            Self::Lost { since, why } => {
                write!(f, "by the agent, which is away since {since}: {why}")
            }
        }
    }
}
