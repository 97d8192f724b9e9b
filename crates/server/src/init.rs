//! The beginning of a trust domain.

use std::sync::Arc;

use countersign_identity::{Clock, Entropy, SystemClock, SystemEntropy};
use countersign_seal::KekFile;
use countersign_store::SqliteStore;

use crate::authority::{Ceremony, First, create_first, internal};
use crate::config::{InitConfig, InitReport, StartError, kek_path};
use crate::directory::{self, Domain};

/// Makes a data directory with the keys, the store and the first records of a trust domain.
///
/// # Errors
/// [`StartError`], when the directory is in use or the system refuses.
pub async fn init(config: InitConfig) -> anyhow::Result<InitReport> {
    let clock = SystemClock::new();
    Ok(begin(config, &clock, Arc::new(SystemEntropy)).await?)
}

/// Makes it under this time and chance.
pub(crate) async fn begin(
    config: InitConfig,
    clock: &dyn Clock,
    entropy: Arc<dyn Entropy>,
) -> Result<InitReport, StartError> {
    let data = &config.data;
    // 1. A directory of our own, and nobody else's.
    directory::make(data)?;
    // 2. The key that seals all other keys, and the store.
    let kek = KekFile::create(&kek_path(data), &*entropy).map_err(internal)?;
    let store = SqliteStore::create(data, Arc::clone(&entropy))?;
    // 3. The root, the issuer, the bundle.
    let ceremony = Ceremony { store: &store, entropy: &*entropy, now: clock.now() };
    let domain = config.trust_domain.clone();
    let (root_lifetime, issuer_lifetime) = (config.root_lifetime, config.issuer_lifetime);
    let first = First { ceremony, kek: &kek, domain, root_lifetime, issuer_lifetime };
    let trust = create_first(first).await?;
    // 4. Last, what makes the directory one of a trust domain.
    let domain = Domain::new(config.trust_domain.clone(), &*entropy).map_err(internal)?;
    domain.write(data)?;
    Ok(InitReport { trust_domain: config.trust_domain, trust })
}
