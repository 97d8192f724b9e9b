//! The words that every other crate speaks: SPIFFE IDs, serials, revisions, lifetimes, selectors, revocation
//! rules, refusal codes and the clock.
//!
//! Everything here is a pure type with its rules. The crate refuses to know sockets, files,
//! certificates' bytes, databases and wire formats. Parsing happens once, at the edge, into types
//! that cannot hold a bad value; time and chance enter through [`Clock`] and [`Entropy`] only.

mod backoff;
mod canary;
mod clock;
mod code;
mod course;
mod entropy;
mod hex;
mod ids;
mod lifetime;
mod mode;
mod name;
mod node_evidence;
mod path;
mod revision;
mod revocation;
mod selector;
mod sim_clock;
mod spiffe_id;
mod timestamp;
mod tls_profile;
mod tls_terms;
mod unseen;
mod verb;
mod vitals;

pub use backoff::{Backoff, BackoffPolicy};
pub use canary::{Canary, Trial};
pub use clock::{Clock, Sleep, SystemClock};
pub use code::{Code, Fault, UnknownCode};
pub use course::Course;
pub use entropy::{Entropy, EntropyLost, SeededEntropy, SystemEntropy};
pub use ids::{BadId, KeyId, NodeId, NodeTag, Serial, Sha256};
pub use lifetime::{BadLifetime, Lifetime, Spread, Validity, backdate, renewal_due, retry_ends};
pub use mode::{Mode, UnknownMode};
pub use name::{BadName, Name};
pub use node_evidence::{NodeEvidence, UnknownNodeEvidence};
pub use path::{BadPath, BadTemplate, CanonicalPath, PATH_BYTES_MAX, PathTemplate};
pub use revision::{BadRevision, Incarnation, Revision};
pub use revocation::{
    Ending, Presented, Reason, Revocation, Revocations, Revoked, Suspended, Suspension,
    UnknownReason,
};
pub use selector::{Attested, BadSelector, Selector, SelectorKind};
pub use sim_clock::SimClock;
pub use spiffe_id::{IdError, SpiffeId, TrustDomain};
pub use timestamp::{BadTimestamp, DurationText, Timestamp};
pub use tls_profile::{TlsProfile, UnknownTlsProfile};
pub use tls_terms::{NoTerms, TlsGroup, TlsSuite, TlsTerms, TlsVersion, UnknownTlsWord};
pub use unseen::is_unseen;
pub use verb::{UnknownVerb, Verb};
pub use vitals::{Condition, Failed, Told, Vital, Vitals};

/// How far apart two honest clocks may be. A rule that ends is kept this much longer, and a peer
/// whose clock differs by more than a twelfth of it is said in `status` (design, section 3.9).
pub const SKEW_ALLOWED: std::time::Duration = std::time::Duration::from_secs(60);
