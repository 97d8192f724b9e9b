//! Certificate files that something else renews, and policy files that somebody edits.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Clock, Timestamp, TrustDomain};
use countersign_pki::{Bundle, Chain};
use countersign_tls::Identity;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::authorization::read_policies;
use crate::keeper::Keeper;
use crate::svid::{Unusable, Update, verify_own};
use crate::{FileOptions, Link, Topic};

const FILE_BYTES_MAX: usize = 1024 * 1024;
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFault {
    /// Not there, or not for us.
    #[error("cannot read `{path}`: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A directory, a pipe, a device.
    #[error("`{0}` is not a file")]
    NotAFile(PathBuf),
    /// Nothing of ours is that large.
    #[error("`{path}` has over {max} bytes")]
    Large {
        /// Which file.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
}

/// Why a set of files is not used.
#[derive(Debug, thiserror::Error)]
pub enum FilesFault {
    /// One cannot be read.
    #[error(transparent)]
    Unreadable(#[from] ReadFault),
    /// They changed while they were read.
    #[error("the files are being replaced")]
    Changing,
    /// The key is not PKCS#8 in PEM.
    #[error(
        "`{0}` holds no PKCS#8 private key in PEM; `openssl pkcs8 -topk8 -nodes` makes one of an older form"
    )]
    Key(PathBuf),
    /// A file that does not hold what it should.
    #[error("`{path}`: {why}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What was expected, and what was found.
        why: String,
    },
    /// They do not belong together, or are not valid.
    #[error("`{path}`: {why}", path = .chain.display())]
    Identity {
        /// The chain's file.
        chain: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Reads a file of bounded size. Whatever it holds is wiped when it is dropped.
pub(crate) fn read_bounded(path: &Path, max: usize) -> Result<Zeroizing<Vec<u8>>, ReadFault> {
    let fault = |error| ReadFault::Io { path: path.to_owned(), error };
    // Asked before opening: a pipe would be waited for.
    if !std::fs::metadata(path).map_err(fault)?.is_file() {
        return Err(ReadFault::NotAFile(path.to_owned()));
    }
    let file = File::open(path).map_err(fault)?;
    // One allocation, so that no copy of a key stays behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(max + 1));
    let limit = u64::try_from(max + 1).unwrap_or(u64::MAX);
    file.take(limit).read_to_end(&mut bytes).map_err(fault)?;
    if max < bytes.len() {
        return Err(ReadFault::Large { path: path.to_owned(), max });
    }
    Ok(bytes)
}

/// What tells a file from the one that was there before. None: it cannot be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp(Option<(u64, u64, u64, i64, i64, i64, i64)>);

impl Stamp {
    /// Follows links, so that a switched link is a change.
    fn of(path: &Path) -> Self {
        let facts = |meta: Metadata| {
            let changed = (meta.ctime(), meta.ctime_nsec());
            let modified = (meta.mtime(), meta.mtime_nsec());
            let (dev, ino, size) = (meta.dev(), meta.ino(), meta.size());
            (dev, ino, size, modified.0, modified.1, changed.0, changed.1)
        };
        Self(std::fs::metadata(path).ok().map(facts))
    }
}

fn stamps(options: &FileOptions) -> Vec<Stamp> {
    let own = [&options.chain, &options.key, &options.bundle];
    let federated = options.federated.iter().map(|(_, path)| path);
    own.into_iter().chain(federated).map(|path| Stamp::of(path)).collect()
}

/// A set of files that belong together.
pub(crate) struct Loaded {
    update: Update,
    stamps: Vec<Stamp>,
    key_is_open: bool,
}

impl Loaded {
    /// Hands it over. Says what would be noticed as a change.
    fn publish(self, keeper: &Keeper, options: &FileOptions) -> Vec<Stamp> {
        let warning = self.key_is_open.then(|| {
            format!("every user of this machine can read the key `{}`", options.key.display())
        });
        keeper.trouble(Topic::KeyFile, warning);
        keeper.link(Link::Connected);
        keeper.update(Ok(self.update));
        self.stamps
    }
}

/// Reads the set, whole or not at all. Blocks.
pub(crate) fn load(options: &FileOptions, now: Timestamp) -> Result<Loaded, FilesFault> {
    let before = stamps(options);
    let chain = read_bounded(&options.chain, FILE_BYTES_MAX)?;
    let key = read_bounded(&options.key, FILE_BYTES_MAX)?;
    let bundle = read_bounded(&options.bundle, FILE_BYTES_MAX)?;
    let mut federated = Vec::new();
    for (domain, path) in &options.federated {
        federated.push(parse_bundle(domain, path, &read_bounded(path, FILE_BYTES_MAX)?)?);
    }
    // Written in between: the parts may be of two sets.
    if stamps(options) != before {
        return Err(FilesFault::Changing);
    }
    let identity = parse_identity(options, &chain, &key)?;
    let domain = options.trust_domain.as_ref().unwrap_or_else(|| identity.id().trust_domain());
    let own = parse_bundle(domain, &options.bundle, &bundle)?;
    verify_own(&identity, &own, now)
        .map_err(|why| FilesFault::Identity { chain: options.chain.clone(), why })?;
    let mut bundles = vec![own];
    bundles.append(&mut federated);
    let update = Update { identity, bundles, left_out: Vec::new() };
    let mode = std::fs::metadata(&options.key).map(|meta| meta.mode());
    let key_is_open = mode.is_ok_and(|mode| mode & 0o007 != 0);
    Ok(Loaded { update, stamps: before, key_is_open })
}

fn parse_identity(options: &FileOptions, chain: &[u8], key: &[u8]) -> Result<Identity, FilesFault> {
    let fault = |why: String| FilesFault::Identity { chain: options.chain.clone(), why };
    let text = str::from_utf8(chain).map_err(|_not_text| fault("it is not PEM".to_owned()))?;
    let chain = Chain::from_pem(text).map_err(|why| fault(why.to_string()))?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(key)
        .map_err(|_not_one| FilesFault::Key(options.key.clone()))?;
    Identity::new(chain, key.secret_pkcs8_der()).map_err(|why| fault(why.to_string()))
}

fn parse_bundle(domain: &TrustDomain, path: &Path, bytes: &[u8]) -> Result<Bundle, FilesFault> {
    let fault = |why: String| FilesFault::Content { path: path.to_owned(), why };
    if bytes.trim_ascii_start().starts_with(b"{") {
        return Bundle::parse_json(domain.clone(), bytes).map_err(|why| fault(why.to_string()));
    }
    let text = str::from_utf8(bytes)
        .map_err(|_not_text| fault("it is neither PEM nor a SPIFFE bundle".to_owned()))?;
    Bundle::from_pem(domain.clone(), text).map_err(|why| fault(why.to_string()))
}

/// Looks at the files every second.
pub(crate) struct FileWatch {
    options: Arc<FileOptions>,
    keeper: Arc<Keeper>,
    seen: Vec<Stamp>,
}

impl FileWatch {
    /// Publishes what was loaded, and goes on from there.
    pub(crate) fn begin(options: FileOptions, keeper: Arc<Keeper>, loaded: Loaded) -> Self {
        let seen = loaded.publish(&keeper, &options);
        Self { options: Arc::new(options), keeper, seen }
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let clock = Arc::clone(&self.options.clock);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = clock.sleep_until(clock.about(LOOK_EVERY)) => {}
            }
            let (options, seen, now) = (Arc::clone(&self.options), self.seen.clone(), clock.now());
            // A set that was refused is read again each time: its missing part may come without its stamp
            // differing from what was seen.
            let look = move || (stamps(&options) != seen).then(|| load(&options, now));
            match tokio::task::spawn_blocking(look).await {
                Ok(None) => {}
                Ok(Some(Ok(loaded))) => self.seen = loaded.publish(&self.keeper, &self.options),
                Ok(Some(Err(fault))) => {
                    self.keeper.update(Err(Unusable::Bad(fault.to_string())));
                }
                Err(failed) => self.keeper.update(Err(Unusable::Bad(failed.to_string()))),
            }
        }
    }
}

/// Looks at a policy file every second.
pub(crate) struct PolicyWatch {
    path: PathBuf,
    keeper: Arc<Keeper>,
    seen: Stamp,
}

impl PolicyWatch {
    /// The stamp is taken before the file is read for the first time, so that no change is missed.
    pub(crate) fn new(path: PathBuf, keeper: Arc<Keeper>, seen: PolicyStamp) -> Self {
        Self { path, keeper, seen: seen.0 }
    }

    pub(crate) async fn run(mut self, clock: Arc<dyn Clock>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = clock.sleep_until(clock.about(LOOK_EVERY)) => {}
            }
            let (path, seen) = (self.path.clone(), self.seen.clone());
            let look = move || {
                let stamp = Stamp::of(&path);
                (stamp != seen).then(|| (stamp, read_policies(&path)))
            };
            match tokio::task::spawn_blocking(look).await {
                Ok(None) => {}
                Ok(Some((stamp, policies))) => {
                    self.seen = stamp;
                    self.keeper.policies(policies.map_err(|fault| fault.to_string()));
                }
                Err(failed) => self.keeper.policies(Err(failed.to_string())),
            }
        }
    }
}

/// When a policy file was last looked at.
pub(crate) struct PolicyStamp(Stamp);

impl PolicyStamp {
    pub(crate) fn of(path: &Path) -> Self {
        Self(Stamp::of(path))
    }
}
