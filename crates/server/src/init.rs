//! The beginning of a trust domain, and of one more server of it.

use std::path::Path;
use std::sync::Arc;

use countersign_identity::{Clock, Entropy, KeyId, SystemClock, SystemEntropy};
use countersign_pki::{KeyKind, PrivateKey};
use countersign_seal::KekFile;
use countersign_store::StoreError;

use crate::authority::{
    Ceremony, First, NewRoot, Unsealed, create_first, create_first_of, internal, unseal,
};
use crate::config::{InitConfig, InitReport, StartError, StoreAt, kek_path};
use crate::directory::{self, Domain};
use crate::incarnation::LogKey;
use crate::refusal::Refused;
use crate::state::State;
use crate::storage;

/// Makes a data directory with the keys, the store and the first records of a trust domain; or, given the key of one
/// that its store holds already, the data directory of one more server.
///
/// # Errors
/// [`StartError`], when the directory or the store is in use, the key is another one, or the system refuses.
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
    // 2. The keys and the records, new or those that are there.
    let trust = match &config.kek {
        None => first(&config, clock, Arc::clone(&entropy)).await?,
        Some(kek) => join(&config, kek, Arc::clone(&entropy)).await?,
    };
    // 3. Last, what makes the directory one of a trust domain.
    let domain = Domain::new(config.trust_domain.clone(), &*entropy).map_err(internal)?;
    domain.write(data)?;
    Ok(InitReport { trust_domain: config.trust_domain, trust })
}

/// A new trust domain.
async fn first(
    config: &InitConfig,
    clock: &dyn Clock,
    entropy: Arc<dyn Entropy>,
) -> Result<KeyId, StartError> {
    let data = &config.data;
    // 1. The store, which may refuse; then the key that seals all other keys.
    let store = storage::create(&config.store, data, Arc::clone(&entropy)).await;
    let store = store.map_err(|error| in_use(config, error))?;
    let kek = KekFile::create_by(&kek_path(data), config.unlock.as_deref(), &*entropy)?;
    // 2. The root, the issuer, the bundle.
    let ceremony = Ceremony { store: &*store, entropy: &*entropy, now: clock.now() };
    let domain = config.trust_domain.clone();
    let (root_lifetime, issuer_lifetime) = (config.root_lifetime, config.issuer_lifetime);
    let first = First { ceremony, kek: &kek, domain, root_lifetime, issuer_lifetime };
    let trust = match &config.root_key {
        None => create_first(first).await?,
        Some(uri) => {
            let public = config.vault.find_or_make(uri).await.map_err(Refused::from)?;
            let signer = config.vault.signer(uri, public).map_err(Refused::from)?;
            let issuer = PrivateKey::generate(KeyKind::P256).map_err(internal)?;
            create_first_of(first, &NewRoot::Token(uri, signer), &issuer).await?
        }
    };
    // 3. What vouches for rules and revisions after a loss.
    LogKey::open_or_make(&*store, &kek, &*entropy).await?;
    Ok(trust)
}

/// One more server of the trust domain that the store holds, by its key.
async fn join(
    config: &InitConfig,
    kek_file: &Path,
    entropy: Arc<dyn Entropy>,
) -> Result<KeyId, StartError> {
    let StoreAt::Postgres { .. } = config.store else { return Err(StartError::KekWithoutStore) };
    let kek = KekFile::open_by(kek_file, config.unlock.as_deref())?;
    let store = storage::open(&config.store, &config.data, entropy).await?;
    let state = State::from_snapshot(store.snapshot().await?).map_err(internal)?;
    let found = &state.domain().trust_domain;
    if *found != config.trust_domain {
        return Err(StartError::WrongDomain {
            path: place(config).into(),
            found: found.to_string(),
            expected: config.trust_domain.to_string(),
        });
    }
    match unseal(&*store, &kek, &*config.vault).await? {
        Unsealed::Open(authorities) => {
            directory::copy_private(kek_file, &kek_path(&config.data))?;
            Ok(authorities.trust())
        }
        Unsealed::Sealed(why) => Err(StartError::WrongKek { path: kek_file.into(), why }),
    }
}

fn place(config: &InitConfig) -> String {
    match &config.store {
        StoreAt::Directory => config.data.display().to_string(),
        StoreAt::Postgres { url, .. } => url.to_string(),
    }
}

/// Says of a database in use what can be done.
fn in_use(config: &InitConfig, error: StoreError) -> StartError {
    match (&config.store, error) {
        (StoreAt::Postgres { .. }, StoreError::AlreadyExists { .. }) => {
            StartError::StoreExists { place: place(config) }
        }
        (StoreAt::Directory | StoreAt::Postgres { .. }, other) => other.into(),
    }
}
