//! What can be asked: who wants what, of which service, and when.

use std::fmt;

use countersign_identity::{CanonicalPath, Name, SpiffeId, Timestamp, Verb};

use crate::circumstance::Context;
use crate::holdings::TopicAct;

/// Who asks: a workload that a manifest names, or a peer that none names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Principal {
    /// `Workload::"web"`.
    Named(Name),
    /// `Workload::"spiffe://other.example/web"`.
    Id(SpiffeId),
}

impl Principal {
    /// As policies write it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Named(name) => name.as_str(),
            Self::Id(id) => id.as_str(),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// May this peer open a connection to this service?
#[derive(Clone, Copy, Debug)]
pub struct ConnectRequest<'a> {
    /// Who asks.
    pub principal: &'a Principal,
    /// The name of the service.
    pub service: &'a str,
    /// What the handshake has shown.
    pub context: &'a Context,
    /// When it is decided.
    pub now: Timestamp,
}

/// May this peer ask for this, over a connection that it may have?
#[derive(Clone, Copy, Debug)]
pub struct CallRequest<'a> {
    /// Who asks.
    pub principal: &'a Principal,
    /// The name of the service.
    pub service: &'a str,
    /// The method of the request; `None` when it is none that an operation could have.
    pub verb: Option<Verb>,
    /// The path, in the form that is sent on.
    pub path: &'a CanonicalPath,
    /// What the handshake has shown.
    pub context: &'a Context,
    /// When it is decided.
    pub now: Timestamp,
}

/// May this peer do that with a topic, over a connection that it may have?
#[derive(Clone, Copy, Debug)]
pub struct TopicRequest<'a> {
    /// Who asks.
    pub principal: &'a Principal,
    /// The name of the service.
    pub service: &'a str,
    /// The name of its topic.
    pub topic: &'a Name,
    /// What is to be done with it.
    pub act: TopicAct,
    /// What the handshake has shown.
    pub context: &'a Context,
    /// When it is decided.
    pub now: Timestamp,
}
