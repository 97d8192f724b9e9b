//! What takes credentials out of service: revocations of what was issued, suspensions of what would be.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    KeyId, NodeId, NodeTag, Revision, SKEW_ALLOWED, Serial, SpiffeId, Timestamp, TrustDomain,
};

/// A text that is none of the reasons of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a reason for a revocation: expected one of {}", Reason::list())]
pub struct UnknownReason {
    text: String,
}

macro_rules! reasons {
    ($($name:ident $text:literal $crl:literal $doc:literal;)*) => {
        /// Why a credential is taken out of service. What leaked decides what else has to happen.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $(#[doc = $doc] $name,)* }

        impl Reason {
            /// Every reason, in the order of the reference.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The stable word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it means, in one sentence, for the reference.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $doc,)* }
            }

            /// The CRLReason that the rest of the world is told (RFC 5280, 5.3.1).
            pub const fn crl_code(self) -> u8 {
                match self { $(Self::$name => $crl,)* }
            }
        }
    };
}

reasons! {
    KeyCompromise "key-compromise" 1 "A private key leaked, and nothing else: the workload gets a new key.";
    ProcessCompromise "process-compromise" 1 "Somebody else ran code as the workload: it gets nothing new until an operator resumes it.";
    NodeCompromise "node-compromise" 1 "Somebody else had the machine: all that was issued through it ends, and it must attest anew.";
    AuthorityCompromise "authority-compromise" 2 "The key of an authority leaked: nothing that it signed says anything any more.";
    Superseded "superseded" 4 "Something newer takes its place; nothing leaked, so live connections are drained and not cut.";
    CessationOfOperation "cessation-of-operation" 5 "The workload is no more.";
    PrivilegeWithdrawn "privilege-withdrawn" 9 "The workload may not be it any more.";
    Unspecified "unspecified" 0 "Nobody said why; treated as if a key had leaked.";
}

impl Reason {
    /// How live connections end that the revocation covers.
    pub const fn ending(self) -> Ending {
        match self {
            Self::Superseded => Ending::Drain,
            Self::KeyCompromise
            | Self::ProcessCompromise
            | Self::NodeCompromise
            | Self::AuthorityCompromise
            | Self::CessationOfOperation
            | Self::PrivilegeWithdrawn
            | Self::Unspecified => Ending::Cut,
        }
    }

    fn list() -> String {
        let words: Vec<_> = Self::ALL.iter().map(|reason| format!("`{reason}`")).collect();
        words.join(", ")
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        let reason = Self::ALL.iter().find(|reason| reason.as_str() == text);
        reason.copied().ok_or_else(|| UnknownReason { text: text.chars().take(80).collect() })
    }
}

impl Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How a live connection ends when a revocation covers what its peer showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ending {
    /// What is under way is finished, within a deadline; nothing new begins.
    Drain,
    /// At once.
    Cut,
}

/// What a revocation takes out of service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Revoked {
    /// One certificate.
    Serial(Serial),
    /// Every certificate of an identity that carries a lower revision, and every one that carries none.
    Identity {
        /// Whose.
        id: SpiffeId,
        /// The first revision that is not covered.
        before: Revision,
    },
    /// Every certificate for this key.
    Key(KeyId),
    /// Every certificate that was issued through a node and carries a lower revision.
    Node {
        /// Which node, for people.
        id: NodeId,
        /// What its certificates carry.
        tag: NodeTag,
        /// The first revision that is not covered.
        before: Revision,
    },
    /// Every certificate under this authority's key. There is no cut-off: who holds the key chooses what its
    /// certificates say.
    Authority(KeyId),
    /// Every certificate of a trust domain that carries a lower revision, and every one that carries none: what an
    /// earlier incarnation of its store has issued.
    Earlier {
        /// Whose.
        domain: TrustDomain,
        /// The first revision that is not covered.
        before: Revision,
    },
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(serial) => write!(f, "serial {serial}"),
            Self::Identity { id, before } => write!(f, "{id} before {before}"),
            Self::Key(key) => write!(f, "key {key}"),
            Self::Node { id, before, .. } => write!(f, "node {id} before {before}"),
            Self::Authority(key) => write!(f, "authority {key}"),
            Self::Earlier { domain, before } => {
                write!(f, "everything of {domain} before {before}")
            }
        }
    }
}

/// A rule that takes out of service what was issued. It has an end, and nothing lifts it before.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Revocation {
    /// What it covers.
    pub target: Revoked,
    /// Whose credentials those are, when that is one identity's: who never meets it need not know the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<SpiffeId>,
    /// Why.
    pub reason: Reason,
    /// When it was made.
    pub at: Timestamp,
    /// The last moment at which anything that it covers could be valid. The rule is kept for the allowed skew longer.
    pub until: Timestamp,
}

impl Revocation {
    /// Whether nothing that it covers can be valid any more, by whichever honest clock.
    pub fn is_moot(&self, now: Timestamp) -> bool {
        self.until + SKEW_ALLOWED < now
    }
}

/// What an operator stopped from being issued. It has no end; an operator lifts it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Suspended {
    /// Certificates of an identity.
    Identity(SpiffeId),
    /// Certificates for workloads of a node, and its agent's own.
    Node(NodeId),
}

/// A record that stops what would be issued.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Suspension {
    /// What.
    pub target: Suspended,
    /// Why.
    pub reason: Reason,
    /// Since when.
    pub at: Timestamp,
}

/// All of a presented chain that revocations speak of.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// Whom the leaf names.
    pub id: &'a SpiffeId,
    /// The leaf's serial; none when it is not of our form.
    pub serial: Option<Serial>,
    /// The leaf's key.
    pub key: KeyId,
    /// The keys of all authorities on the path, the root's included.
    pub authorities: &'a [KeyId],
    /// Under which revision and through which node it was issued, when it says so.
    pub provenance: Option<(Revision, NodeTag)>,
}

/// A set of revocations, ready to be asked at every handshake. What it holds does not change what a question costs.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    rules: HashMap<Arc<str>, Arc<Revocation>>,
    serials: Index<Serial>,
    identities: Index<SpiffeId>,
    keys: Index<KeyId>,
    nodes: Index<NodeTag>,
    authorities: Index<KeyId>,
    domains: Index<TrustDomain>,
}

type Index<K> = HashMap<K, Vec<Arc<Revocation>>>;

impl Revocations {
    /// These rules, by the names of their records.
    pub fn new(rules: impl IntoIterator<Item = (Arc<str>, Arc<Revocation>)>) -> Self {
        let mut set = Self::default();
        for (name, rule) in rules {
            set.add(name, rule);
        }
        set
    }

    /// These rules, and those of an older set that nobody may have lifted: a rule that is missing but not moot was lost,
    /// not lifted (a restored store, a server that fell behind), and goes on to hold.
    #[must_use]
    pub fn keeping(mut self, older: &Self, now: Timestamp) -> Self {
        for (name, rule) in &older.rules {
            if !rule.is_moot(now) && self.rules.get(name) != Some(rule) {
                // A record of the same name that says something else replaces nothing.
                let name = match self.rules.contains_key(name) {
                    true => Arc::from(format!("{name}~{}", rule.at.micros())),
                    false => Arc::clone(name),
                };
                self.add(name, Arc::clone(rule));
            }
        }
        self
    }

    fn add(&mut self, name: Arc<str>, rule: Arc<Revocation>) {
        if self.rules.insert(name, Arc::clone(&rule)).as_ref() == Some(&rule) {
            return;
        }
        match &rule.target {
            Revoked::Serial(serial) => enter(&mut self.serials, *serial, rule),
            Revoked::Identity { id, .. } => enter(&mut self.identities, id.clone(), rule),
            Revoked::Key(key) => enter(&mut self.keys, *key, rule),
            Revoked::Node { tag, .. } => enter(&mut self.nodes, *tag, rule),
            Revoked::Authority(key) => enter(&mut self.authorities, *key, rule),
            Revoked::Earlier { domain, .. } => enter(&mut self.domains, domain.clone(), rule),
        }
    }

    /// The rule that covers what was presented; of several, one that cuts.
    pub fn covering(&self, presented: &Presented<'_>) -> Option<&Arc<Revocation>> {
        self.all_covering(presented).max_by_key(|rule| rule.reason.ending())
    }

    /// The rule by which what was presented went out of service first.
    pub fn first_covering(&self, presented: &Presented<'_>) -> Option<&Arc<Revocation>> {
        self.all_covering(presented).min_by_key(|rule| (rule.at, rule.reason))
    }

    fn all_covering<'a, 'b>(
        &'a self,
        presented: &'b Presented<'b>,
    ) -> impl Iterator<Item = &'a Arc<Revocation>> + use<'a, 'b> {
        let before = |cut_off: &Revision| {
            // Without a revision it cannot be shown to be newer.
            presented.provenance.is_none_or(|(revision, _)| revision < *cut_off)
        };
        let serials = presented.serial.and_then(|serial| self.serials.get(&serial));
        let nodes = presented.provenance.and_then(|(_, tag)| self.nodes.get(&tag));
        let authorities = presented.authorities.iter().filter_map(|key| self.authorities.get(key));
        let (identity, key) = (self.identities.get(presented.id), self.keys.get(&presented.key));
        let domain = self.domains.get(presented.id.trust_domain());
        let candidates = [serials, identity, key, nodes, domain];
        let candidates = candidates.into_iter().flatten().chain(authorities).flatten();
        let covers = move |rule: &&'a Arc<Revocation>| match &rule.target {
            Revoked::Serial(_) | Revoked::Key(_) | Revoked::Authority(_) => true,
            Revoked::Identity { before: cut_off, .. }
            | Revoked::Node { before: cut_off, .. }
            | Revoked::Earlier { before: cut_off, .. } => before(cut_off),
        };
        candidates.filter(covers)
    }

    /// Whether everything under this authority's key is out of service.
    pub fn is_authority_revoked(&self, key: KeyId) -> bool {
        self.authorities.contains_key(&key)
    }

    /// The authorities under which everything is out of service, in no order.
    pub fn authorities(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.authorities.keys().copied()
    }

    /// Every rule with its name, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Revocation>)> {
        self.rules.iter()
    }

    /// The rule of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Revocation>> {
        self.rules.get(name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

fn enter<K: Eq + Hash>(index: &mut Index<K>, key: K, rule: Arc<Revocation>) {
    index.entry(key).or_default().push(rule);
}

#[cfg(test)]
mod tests;
