//! The beginning of a trust domain under somebody else's root: a request goes out, a chain comes in, and only then there is a
//! trust domain.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_api::resource::TrustDomainSpec;
use countersign_identity::{
    Clock as _, Entropy, KeyId, SystemClock, SystemEntropy, Timestamp, TrustDomain,
};
use countersign_pki::{KeyKind, PrivateKey, encode_csr, make_authority_csr};
use countersign_seal::{KekFile, KeyWrap};
use serde::{Deserialize, Serialize};

use crate::authority::{
    Ceremony, Wanted, create_outside, internal, open_waiting, read_chain, seal_waiting,
};
use crate::config::{InitReport, StartError, StoreAt, kek_path, pending_path};
use crate::directory::{self, Domain, write_whole};
use crate::incarnation::LogKey;
use crate::storage;

/// The file of the request, in the data directory.
const REQUEST: &str = "request.pem";
/// The file of the sealed key that waits, in the data directory.
const WAITING: &str = "request.sealed";
/// What a beginning that was cut off may have left of the embedded store.
const LEFT_OVER: [&str; 3] = ["state.db", "state.db-wal", "state.db-shm"];

/// What waits in a data directory. It is written last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Pending {
    format: u64,
    trust_domain: TrustDomain,
    key: KeyId,
    at: Timestamp,
}

/// What [`init_request`] made.
#[derive(Clone, Debug)]
pub struct RequestReport {
    /// The trust domain that is to be.
    pub trust_domain: TrustDomain,
    /// The issuer's key.
    pub key: KeyId,
    /// The file of the request (PKCS#10, PEM).
    pub request: PathBuf,
}

/// Makes a data directory in which an issuer's key waits for a certificate from outside.
///
/// # Errors
/// [`StartError`], when the directory is in use or the system refuses.
pub fn init_request(
    data: &Path,
    trust_domain: TrustDomain,
    seal: Option<&dyn KeyWrap>,
) -> Result<RequestReport, StartError> {
    let entropy = &SystemEntropy;
    // 1. A directory of our own, and the key that seals all others.
    directory::make(data)?;
    let kek = KekFile::create_by(&kek_path(data), seal, entropy)?;
    // 2. The issuer's key, sealed, and what is to be signed.
    let key = PrivateKey::generate(KeyKind::P256).map_err(internal)?;
    let csr = make_authority_csr(&key, &trust_domain).map_err(internal)?;
    write_whole(&data.join(WAITING), &seal_waiting(&key, &kek, entropy)?)?;
    let request = data.join(REQUEST);
    write_whole(&request, encode_csr(&csr).as_bytes())?;
    // 3. Last, what makes the directory one that waits.
    let at = SystemClock::new().now();
    let key = key.public().id();
    let pending = Pending { format: 1, trust_domain: trust_domain.clone(), key, at };
    let text = serde_json::to_vec_pretty(&pending).expect("texts always have a JSON form");
    write_whole(&pending_path(data), &text)?;
    Ok(RequestReport { trust_domain, key, request })
}

/// Makes the trust domain of a data directory that waits, with the chain that somebody outside has signed.
///
/// # Errors
/// [`StartError`], when nothing waits there, the chain breaks a rule, or the store is in use. What waits goes on waiting.
pub async fn init_import(
    data: &Path,
    store: &StoreAt,
    chain: &Path,
    unlock: Option<&dyn KeyWrap>,
) -> Result<InitReport, StartError> {
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    // 1. What waits, and whether the chain is for it.
    directory::check_private(data)?;
    let pending = read_pending(data)?;
    let kek = KekFile::open_by(&kek_path(data), unlock)?;
    let key = open_waiting(&read(&data.join(WAITING))?, &kek)?;
    let text = String::from_utf8_lossy(&read(chain)?).into_owned();
    let now = SystemClock::new().now();
    let domain = pending.trust_domain.clone();
    let imported = read_chain(
        &text,
        Wanted {
            key: pending.key,
            domain: &domain,
            known: Vec::new(),
            svid_lifetime: TrustDomainSpec::of(domain.clone()).lifetime_max,
            declared: None,
            now,
        },
    )?;
    // 2. The store, with everything in it.
    clear(data)?;
    let store = storage::create(store, data, Arc::clone(&entropy)).await?;
    let ceremony = Ceremony { store: &*store, entropy: &*entropy, now };
    let trust = create_outside(ceremony, &kek, &imported, &key).await?;
    LogKey::open_or_make(&*store, &kek, &*entropy).await?;
    // 3. Last, what makes the directory one of a trust domain; then nothing waits any more.
    Domain::new(domain.clone(), &*entropy).map_err(internal)?.write(data)?;
    for path in [pending_path(data), data.join(WAITING), data.join(REQUEST)] {
        remove(&path)?;
    }
    Ok(InitReport { trust_domain: domain, trust })
}

fn read_pending(data: &Path) -> Result<Pending, StartError> {
    match Domain::read(data) {
        Ok(domain) => {
            let domain = domain.trust_domain.to_string();
            return Err(StartError::DataExists { path: data.into(), domain });
        }
        Err(StartError::Pending { .. }) => {}
        Err(StartError::NoData { path }) => return Err(StartError::NothingWaits { path }),
        Err(other) => return Err(other),
    }
    let path = pending_path(data);
    let text = read(&path)?;
    serde_json::from_slice(&text)
        .map_err(|error| StartError::Damaged { path, why: error.to_string() })
}

/// Removes what a beginning that was cut off has left: it was never a trust domain's.
fn clear(data: &Path) -> Result<(), StartError> {
    LEFT_OVER.iter().try_for_each(|name| remove(&data.join(name)))
}

fn remove(path: &Path) -> Result<(), StartError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(StartError::File { action: "remove", path: path.into(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, StartError> {
    std::fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => StartError::NoFile { path: path.into() },
        _ => StartError::File { action: "read", path: path.into(), source },
    })
}
