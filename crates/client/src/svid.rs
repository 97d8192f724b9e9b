//! What the Workload API sends, read and verified.

use std::collections::BTreeMap;

use countersign_api::workload::{X509svid, X509svidResponse};
use countersign_identity::{SpiffeId, Timestamp, TrustDomain};
use countersign_pki::{Bundle, Bundles, Certificate, Chain, Role, verify};
use countersign_tls::Identity;
use zeroize::Zeroizing;

use crate::Choice;

const SVIDS_MAX: usize = 64;
const FEDERATED_MAX: usize = 1024;
const CHAIN_BYTES_MAX: usize = 128 * 1024;
const KEY_BYTES_MAX: usize = 16 * 1024;
/// How many of the SVIDs that are given are named where another was asked for.
const NAMED_MAX: usize = 5;

/// A whole message: who we are, and whom to trust.
#[derive(Debug)]
pub(crate) struct Update {
    pub(crate) identity: Identity,
    pub(crate) bundles: Vec<Bundle>,
    /// Bundles that were left out, so that their trust domains are not trusted.
    pub(crate) left_out: Vec<String>,
}

/// Why a message is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    /// We are not given the identity any more: it is to be withdrawn.
    #[error("{0}")]
    Withdrawn(String),
    /// The message is wrong: what was good before stays.
    #[error("{0}")]
    Bad(String),
    /// It lacks what every message has. What was good before stays, and time does not mend it: who gives nothing any more says
    /// `PermissionDenied`.
    #[error("the agent's message holds no SVID at all, and says nothing therefore")]
    Empty,
}

fn bad(why: String) -> Unusable {
    Unusable::Bad(why)
}

/// Reads a message, which replaces everything that the one before said.
pub(crate) fn read(
    mut response: X509svidResponse,
    choice: &Choice,
    now: Timestamp,
) -> Result<Update, Unusable> {
    // Taken out at once, so that every key is wiped, also of SVIDs that are not shown.
    let keys: Vec<_> = response
        .svids
        .iter_mut()
        .map(|svid| Zeroizing::new(std::mem::take(&mut svid.x509_svid_key)))
        .collect();
    if SVIDS_MAX < response.svids.len() || FEDERATED_MAX < response.federated_bundles.len() {
        let (svids, bundles) = (response.svids.len(), response.federated_bundles.len());
        return Err(bad(format!("{svids} SVIDs and {bundles} bundles are over the limits")));
    }
    if response.svids.is_empty() {
        return Err(Unusable::Empty);
    }
    let chosen = choose(&response.svids, choice)?;
    let (identity, bundle) = identity(&response.svids[chosen], &keys[chosen], now)?;
    let mut gathered = Gathered::begin(bundle);
    for svid in &response.svids {
        gathered.add(&svid.spiffe_id, &svid.bundle, Kin::Own);
    }
    for (domain, bundle) in &response.federated_bundles {
        gathered.add(domain, bundle, Kin::Federated);
    }
    let bundles = gathered.bundles.into_values().collect();
    Ok(Update { identity, bundles, left_out: gathered.left_out })
}

/// Which of them is asked for. There is one at least.
fn choose(svids: &[X509svid], choice: &Choice) -> Result<usize, Unusable> {
    let find = |is: &dyn Fn(&X509svid) -> bool| svids.iter().position(is);
    match choice {
        Choice::Default => Ok(0),
        Choice::Hint(hint) => find(&|svid| svid.hint == *hint).ok_or_else(|| {
            let given = given(svids);
            let why = format!("the agent gives no SVID with hint `{hint}`; it gives {given}");
            Unusable::Withdrawn(why)
        }),
        Choice::Id(id) => find(&|svid| svid.spiffe_id == id.as_str()).ok_or_else(|| {
            let given = given(svids);
            Unusable::Withdrawn(format!(
                "this process is not `{id}`: the agent gives it {given}; declare a workload with that SPIFFE ID, or alter its \
                 selectors so that they hold for this process"
            ))
        }),
    }
}

/// What is given instead of what was asked for.
fn given(svids: &[X509svid]) -> String {
    let given: Vec<_> =
        svids.iter().take(NAMED_MAX).map(|svid| format!("`{}`", svid.spiffe_id)).collect();
    match svids.len().saturating_sub(NAMED_MAX) {
        0 => given.join(" and "),
        more => format!("{} and {more} more", given.join(", ")),
    }
}

/// Builds the identity, and verifies it against the bundle that came with it.
fn identity(svid: &X509svid, key: &[u8], now: Timestamp) -> Result<(Identity, Bundle), Unusable> {
    let named = &svid.spiffe_id;
    let id: SpiffeId = svid.spiffe_id.parse().map_err(|why| bad(format!("SVID: {why}")))?;
    if KEY_BYTES_MAX < key.len() {
        return Err(bad(format!("the key of `{named}` has {} bytes", key.len())));
    }
    if CHAIN_BYTES_MAX < svid.x509_svid.len() {
        return Err(bad(format!("the chain of `{named}` has {} bytes", svid.x509_svid.len())));
    }
    let chain = Chain::from_concatenated(&svid.x509_svid)
        .map_err(|why| bad(format!("the chain of `{named}` is not one: {why}")))?;
    let identity = Identity::new(chain, key)
        .map_err(|why| bad(format!("the SVID of `{named}` cannot be shown: {why}")))?;
    if *identity.id() != id {
        let leaf = identity.id();
        return Err(bad(format!("the SVID of `{named}` is one of `{leaf}`")));
    }
    let bundle = bundle(id.trust_domain().clone(), &svid.bundle)
        .map_err(|why| bad(format!("the bundle of `{named}` is not one: {why}")))?;
    verify_own(&identity, &bundle, now)
        .map_err(|why| bad(format!("the SVID of `{named}` does not verify: {why}")))?;
    Ok((identity, bundle))
}

/// Asks our own verifier what a peer would say.
pub(crate) fn verify_own(
    identity: &Identity,
    bundle: &Bundle,
    now: Timestamp,
) -> Result<(), String> {
    let bundles = Bundles::of(bundle.clone());
    let chain: Vec<_> = identity.chain().certificates().iter().map(Certificate::der).collect();
    // Foreign issuers may write certificates for one of the roles alone.
    verify(&chain, &bundles, Role::Client, now)
        .or_else(|refused| verify(&chain, &bundles, Role::Server, now).map_err(|_same| refused))
        .map(|_verified| ())
        .map_err(|refused| refused.to_string())
}

/// A bundle as the Workload API sends it.
pub(crate) fn bundle(domain: TrustDomain, bytes: &[u8]) -> Result<Bundle, String> {
    Bundle::from_concatenated(domain, bytes).map_err(|why| why.to_string())
}

/// Whose bundle it is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kin {
    /// That of an SVID of ours, which is named by its SPIFFE ID.
    Own,
    /// That of a foreign trust domain, which is named by itself.
    Federated,
}

/// Bundles by trust domain. The first that names a domain decides, and our own come first: a foreign entry never
/// adds authorities to our own trust domain.
#[derive(Debug)]
struct Gathered {
    bundles: BTreeMap<TrustDomain, Bundle>,
    left_out: Vec<String>,
}

impl Gathered {
    fn begin(own: Bundle) -> Self {
        Self { bundles: BTreeMap::from([(own.domain.clone(), own)]), left_out: Vec::new() }
    }

    fn add(&mut self, name: &str, bytes: &[u8], kin: Kin) {
        let domain = match kin {
            Kin::Own => name.parse().map(|id: SpiffeId| id.trust_domain().clone()),
            // The standard's key is the trust domain's SPIFFE ID; some agents send the bare name.
            Kin::Federated => name.strip_prefix("spiffe://").unwrap_or(name).parse(),
        };
        let shown: String = name.chars().take(80).collect();
        match domain {
            Err(why) => self.left_out.push(format!("a bundle of `{shown}` was left out: {why}")),
            Ok(domain) if self.bundles.contains_key(&domain) => {
                if kin == Kin::Federated {
                    let why = "the trust domain has a bundle of its own";
                    self.left_out
                        .push(format!("a foreign bundle of `{shown}` was left out: {why}"));
                }
            }
            Ok(domain) => match bundle(domain.clone(), bytes) {
                Ok(bundle) => {
                    self.bundles.insert(domain, bundle);
                }
                Err(why) => {
                    self.left_out.push(format!("the bundle of `{shown}` was left out: {why}"));
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        // Something that looks like the beginning of a certificate gets further than noise.
        let begins = vec![vec![], vec![0x30, 0x82, 0x00, 0x05], vec![0x30, 0x03]];
        (prop::sample::select(begins), any::<Vec<u8>>())
            .prop_map(|(begin, rest)| [begin, rest].concat())
    }

    proptest! {
        #[test]
        fn no_message_is_too_strange_to_be_refused(
            id in "(spiffe://)?[a-z./]{0,20}",
            parts in (bytes(), bytes(), bytes()),
            federated in prop::collection::hash_map(".{0,30}", bytes(), 0..4),
        ) {
            let svid = X509svid {
                spiffe_id: id,
                x509_svid: parts.0,
                x509_svid_key: parts.1,
                bundle: parts.2,
                hint: String::new(),
            };
            let federated_bundles: HashMap<_, _> = federated;
            let response = X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles };
            prop_assert!(read(response, &Choice::Default, Timestamp::EPOCH).is_err());
        }
    }
}
