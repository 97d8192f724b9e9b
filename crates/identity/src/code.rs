//! The closed list of reasons: the same word in gRPC details, problems, events, metric labels, JSON and docs.

use std::fmt;
use std::str::FromStr;

/// Who has to act on a refusal. Retry, alert and status code follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The caller asked for something wrong; asking again as it is does not help.
    Caller,
    /// The other end of a connection did something wrong.
    Peer,
    /// Something needed is away for now; try again later.
    Outage,
    /// A defect or a broken machine of ours.
    Us,
}

/// A text that is none of the codes. Whoever receives one treats it as a refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a code of this version")]
pub struct UnknownCode(String);

macro_rules! codes {
    ($($name:ident $text:literal $fault:ident $doc:literal;)*) => {
        /// Why something was refused or failed. Closed: nothing is ever refused for "other" reasons.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $(#[doc = $doc] $name,)* }

        impl Code {
            /// Every code, in the order of the reference.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The stable word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it means, in one sentence, for the reference.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $doc,)* }
            }

            /// Who has to act.
            pub const fn fault(self) -> Fault {
                match self { $(Self::$name => Fault::$fault,)* }
            }
        }
    };
}

codes! {
    // What a caller of the server or the agent did.
    NotUnderstood "not-understood" Caller "The request or a field of it does not parse.";
    Unauthenticated "unauthenticated" Caller "The method needs an identity and the connection shows none.";
    Forbidden "forbidden" Caller "The caller is known, and may not do this.";
    NotFound "not-found" Caller "There is no such thing.";
    AlreadyExists "already-exists" Caller "There is one of that name.";
    StaleBase "stale-base" Caller "The state moved on since the base that the change was made for.";
    NotConverged "not-converged" Caller "Not everybody has done yet what this waits for.";
    InvalidManifest "invalid-manifest" Caller "A manifest breaks a rule.";
    InvalidPolicy "invalid-policy" Caller "A policy does not compile or names what no manifest declares.";
    TooLarge "too-large" Caller "The request is over a bound in size, count or depth.";
    RateLimited "rate-limited" Caller "The caller asks too often.";
    UnknownToken "unknown-token" Caller "The join token is not known.";
    SpentToken "spent-token" Caller "The join token was used already.";
    ExpiredToken "expired-token" Caller "The join token has expired.";
    UnknownNode "unknown-node" Caller "The node is not registered, or was removed.";
    StaleGeneration "stale-generation" Caller "The node's key was succeeded by a newer one.";
    SilentTooLong "silent-too-long" Caller "The node was away for over 30 days and must attest anew.";
    BadPossession "bad-possession" Caller "The caller did not prove that it holds the private key.";
    UnknownWorkload "unknown-workload" Caller "No workload of this name is open to this node.";
    NoMatch "no-match" Caller "The process matches no workload.";
    ForeignDomain "foreign-domain" Caller "The SPIFFE ID lies outside the trust domain.";
    ReservedPath "reserved-path" Caller "The SPIFFE ID lies under /countersign, which belongs to servers and agents.";
    LongLifetime "long-lifetime" Caller "The lifetime is over the limit.";
    WeakKey "weak-key" Caller "The key's kind or size is not accepted.";
    RevokedKey "revoked-key" Caller "The key was revoked, and is refused for ever.";
    Suspended "suspended" Caller "An operator stopped issuance for this identity, key or node.";
    // What our verifier says of a chain and of a handshake.
    NoCertificate "no-certificate" Peer "The peer showed no certificate.";
    Malformed "malformed" Peer "A certificate does not parse, or its encoding is not canonical.";
    TooManyCertificates "too-many-certificates" Peer "The chain is longer than any of ours.";
    NoIdentity "no-identity" Peer "The leaf has no URI name.";
    SeveralIdentities "several-identities" Peer "The leaf has more than one URI name.";
    BadIdentity "bad-identity" Peer "The leaf's URI name is not the SPIFFE ID of a workload.";
    LeafIsAuthority "leaf-is-authority" Peer "The leaf is a certificate authority or may sign certificates or lists.";
    BadKeyUsage "bad-key-usage" Peer "A key usage is missing, not critical, or does not allow what is done.";
    BadExtendedKeyUsage "bad-extended-key-usage" Peer "The extended key usage does not allow this role.";
    BadExtension "bad-extension" Peer "An extension is repeated, misplaced, or critical and not understood.";
    UnknownTrustDomain "unknown-trust-domain" Peer "There is no bundle for the peer's trust domain.";
    UnknownIssuer "unknown-issuer" Peer "The chain does not lead to an authority of the bundle.";
    IssuerNotAuthority "issuer-not-authority" Peer "A certificate that signed another is not a certificate authority.";
    PathLength "path-length" Peer "An authority's path length constraint is exceeded.";
    NameConstraint "name-constraint" Peer "A name constraint forbids the leaf's name, or is not understood.";
    BadSignature "bad-signature" Peer "A signature does not verify.";
    WeakAlgorithm "weak-algorithm" Peer "A signature algorithm or a key is not accepted.";
    Expired "expired" Peer "A certificate's validity has ended.";
    NotYetValid "not-yet-valid" Peer "A certificate's validity has not begun.";
    Revoked "revoked" Peer "A revocation covers the certificate.";
    Canary "canary" Peer "A canary was let through the verifier and answered; it is let in nowhere.";
    UnexpectedPeer "unexpected-peer" Peer "The peer is somebody else than the one that was dialled.";
    PolicyDenied "policy-denied" Peer "No policy allows it, or one forbids it.";
    PolicyError "policy-error" Peer "A policy could not be evaluated, which denies.";
    NoSharedProtocol "no-shared-protocol" Peer "The two ends share no TLS version, group, suite or application protocol.";
    BadHandshake "bad-handshake" Peer "The peer broke the TLS protocol.";
    HandshakeTimeout "handshake-timeout" Peer "The handshake did not end in time.";
    PeerClosed "peer-closed" Peer "The peer closed the connection before it had done its part.";
    BadAnswer "bad-answer" Peer "The answer breaks the rules of HTTP.";
    PeerRefused "peer-refused" Peer "The peer refused us by an alert.";
    PeerUnreachable "peer-unreachable" Outage "The peer could not be connected to.";
    TooManyConnections "too-many-connections" Peer "A limit on connections is reached.";
    NoOwnIdentity "no-own-identity" Outage "There is no valid credential of our own to show.";
    // What is away, or broken here.
    Unavailable "unavailable" Outage "Something needed is not reachable for now.";
    NotReady "not-ready" Outage "The process has not started up yet, or is shutting down.";
    Sealed "sealed" Outage "The server cannot open its keys.";
    Fenced "fenced" Outage "Rights were taken away while the request was under way, more often than it was tried again.";
    TimedOut "timed-out" Outage "It took longer than its limit.";
    AttestationFailed "attestation-failed" Outage "What the kernel says about the caller could not be read.";
    Internal "internal" Us "A defect or a broken machine of ours.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let code = Self::ALL.iter().find(|code| code.as_str() == text);
        code.copied().ok_or_else(|| UnknownCode(text.chars().take(80).collect()))
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
