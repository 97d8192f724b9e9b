//! The key-encryption key, and the file that holds it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use countersign_identity::{Entropy, EntropyLost};
use zeroize::Zeroizing;

use crate::wrap::{self, KeyWrap, WRAPPED_BYTES_MAX, WrapMethod, WrapRefused, Wrapped};

/// How long the key is: AES-256.
pub(crate) const KEY_BYTES: usize = 32;
/// Keeps the digest that names a key from being of use for anything else.
const KEK_ID_LABEL: &[u8] = b"countersign kek id v1\0";
const MODE: u32 = 0o600;

/// The key that seals data keys. Wiped when dropped, never copied, never printed.
pub struct Kek(Box<Zeroizing<[u8; KEY_BYTES]>>); // On the heap: moving it leaves no copy behind.

/// The public name of a [`Kek`], written into all that it seals, so that a wrong key is told from damage.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KekId([u8; 8]);

/// A file that holds a [`Kek`], readable by its owner only: its 32 bytes and nothing else, or the key wrapped by something that has
/// a key of its own.
#[derive(Clone, Copy, Debug)]
pub struct KekFile;

/// Why a key file cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum KekFileRefused {
    /// Making a key where there is something already.
    #[error("`{}` exists already; a key file is never overwritten", .0.display())]
    Exists(PathBuf),
    /// There is no such file.
    #[error("there is no key file `{}`", .0.display())]
    Missing(PathBuf),
    /// A symbolic link, a folder, a pipe or a device.
    #[error("`{}` is not a plain file; a key file may not be a link, a folder or a device", .0.display())]
    NotPlain(PathBuf),
    /// Others may read or change it.
    #[error("key file `{}` has mode {mode:04o}, which lets others in; run `chmod 600` on it", .path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody else, who could replace it.
    #[error("key file `{}` belongs to uid {owner}, expected uid {expected}", .path.display())]
    Owner {
        /// Which file.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// As whom this process runs.
        expected: u32,
    },
    /// It is wrapped, and nothing was given that opens it.
    #[error(
        "key file `{}` is sealed by {}, and none was given that opens it", .path.display(), .method.as_str()
    )]
    Wrapped {
        /// Which file.
        path: PathBuf,
        /// By what.
        method: WrapMethod,
    },
    /// It is wrapped, and what was given does not open it.
    #[error("key file `{}`: {why}", .path.display())]
    Wrap {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: WrapRefused,
    },
    /// Not 32 bytes: cut off, or something else than a key.
    #[error("key file `{}` has {bytes} bytes, expected {KEY_BYTES}; restore it from its copy", .path.display())]
    Length {
        /// Which file.
        path: PathBuf,
        /// How long it is.
        bytes: u64,
    },
    /// The system gave no randomness for a new key.
    #[error(transparent)]
    Entropy(#[from] EntropyLost),
    /// The system refused.
    #[error("key file `{}` cannot be {doing}: {why}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        why: io::Error,
    },
}

impl Kek {
    /// Draws a new key.
    ///
    /// # Errors
    /// When the source of randomness fails.
    pub fn draw(entropy: &dyn Entropy) -> Result<Self, EntropyLost> {
        let mut kek = Self::blank();
        entropy.fill(kek.0.as_mut_slice())?;
        Ok(kek)
    }

    /// A key of these bytes, if they are as many as a key has.
    pub(crate) fn copied(bytes: &[u8]) -> Option<Self> {
        let mut kek = Self::blank();
        if bytes.len() != KEY_BYTES {
            return None;
        }
        kek.0.copy_from_slice(bytes);
        Some(kek)
    }

    /// Where a key's bytes are written to.
    fn blank() -> Self {
        Self(Box::new(Zeroizing::new([0; KEY_BYTES])))
    }

    /// Its public name. 64 bits of a digest tell keys apart, and tell nothing about them.
    pub fn id(&self) -> KekId {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(KEK_ID_LABEL);
        context.update(self.bytes());
        let mut id = [0; 8];
        id.copy_from_slice(&context.finish().as_ref()[..8]);
        KekId(id)
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kek")
    }
}

impl KekId {
    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }

    pub(crate) const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KekId({self})")
    }
}

impl KekFile {
    /// Makes a new key and the file that holds it, durable and 0600 from its first moment.
    ///
    /// # Errors
    /// When there is a file already, or it cannot be written; then none is left behind.
    pub fn create(path: &Path, entropy: &dyn Entropy) -> Result<Kek, KekFileRefused> {
        Self::create_by(path, None, entropy)
    }

    /// The same, wrapped if something is given that wraps it.
    ///
    /// # Errors
    /// As for the plain one, or when that does not wrap.
    pub fn create_by(
        path: &Path,
        by: Option<&dyn KeyWrap>,
        entropy: &dyn Entropy,
    ) -> Result<Kek, KekFileRefused> {
        let kek = Kek::draw(entropy)?;
        Self::write(path, &kek, by, entropy)?;
        Ok(kek)
    }

    /// Writes a key into a new file.
    ///
    /// # Errors
    /// As for a new key.
    pub fn write(
        path: &Path,
        kek: &Kek,
        by: Option<&dyn KeyWrap>,
        entropy: &dyn Entropy,
    ) -> Result<(), KekFileRefused> {
        let failed = |doing| move |why| KekFileRefused::Io { path: path.to_owned(), doing, why };
        let wrapped = by.map(|by| wrap::wrap(kek, by, entropy)).transpose();
        let wrapped = wrapped.map_err(|why| KekFileRefused::Wrap { path: path.to_owned(), why })?;
        let contents = wrapped.as_deref().unwrap_or(kek.bytes());
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path);
        let mut file = file.map_err(|why| match why.kind() {
            io::ErrorKind::AlreadyExists => KekFileRefused::Exists(path.to_owned()),
            _ => failed("created")(why),
        })?;
        let written = file.write_all(contents).and_then(|()| file.sync_all());
        if let Err(why) = written.and_then(|()| sync_parent(path)) {
            // What could not be written whole must not be taken for a key; that this fails too changes nothing.
            let _ = std::fs::remove_file(path);
            return Err(failed("written")(why));
        }
        Ok(())
    }

    /// Reads the key.
    ///
    /// # Errors
    /// When the file is missing, open to others, somebody else's, not a plain file, not a key, or wrapped.
    pub fn open(path: &Path) -> Result<Kek, KekFileRefused> {
        Self::open_by(path, None)
    }

    /// Reads the key, and opens it by what is given if it is wrapped. That may take its time, and block.
    ///
    /// # Errors
    /// As for a plain one, or when what is given does not open it.
    pub fn open_by(path: &Path, by: Option<&dyn KeyWrap>) -> Result<Kek, KekFileRefused> {
        Self::parse(path, &read(path)?, by)
    }

    /// The key that the contents of such a file are; the path is for who is told what is wrong with it.
    ///
    /// # Errors
    /// When they are not a key, or wrapped and not opened by what is given.
    pub fn parse(
        path: &Path,
        bytes: &[u8],
        by: Option<&dyn KeyWrap>,
    ) -> Result<Kek, KekFileRefused> {
        if !wrap::is_wrapped(bytes) {
            let length =
                || KekFileRefused::Length { path: path.to_owned(), bytes: bytes.len() as u64 };
            return Kek::copied(bytes).ok_or_else(length);
        }
        let refused = |why| KekFileRefused::Wrap { path: path.to_owned(), why };
        let wrapped = Wrapped::read(bytes).ok_or_else(|| refused(WrapRefused::Note))?;
        let method = wrapped.method;
        match by.filter(|by| by.method() == method) {
            Some(by) => wrapped.open(by).map_err(refused),
            None => Err(KekFileRefused::Wrapped { path: path.to_owned(), method }),
        }
    }

    /// By what the key is wrapped; nothing when it lies open.
    ///
    /// # Errors
    /// As for reading it.
    pub fn method(path: &Path) -> Result<Option<WrapMethod>, KekFileRefused> {
        Ok(Wrapped::read(&read(path)?).map(|wrapped| wrapped.method))
    }
}

/// All of the file, if nobody else can read or change it.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KekFileRefused> {
    let failed = |doing| move |why| KekFileRefused::Io { path: path.to_owned(), doing, why };
    // Not through a link; and a pipe must not block us before we have seen that it is one.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|why| match why.raw_os_error() {
        Some(nix::libc::ENOENT) => KekFileRefused::Missing(path.to_owned()),
        Some(nix::libc::ELOOP | nix::libc::ENXIO) => KekFileRefused::NotPlain(path.to_owned()),
        _ => failed("opened")(why),
    })?;
    // All is asked of the open file, never again of the path, which may name another by then.
    let metadata = file.metadata().map_err(failed("looked at"))?;
    check(path, &metadata)?;
    // As long as it may become, so that no copy of it is left behind by growth.
    let mut bytes = Zeroizing::new(Vec::with_capacity(WRAPPED_BYTES_MAX + 1));
    let most = WRAPPED_BYTES_MAX as u64 + 1;
    io::Read::take(file, most).read_to_end(&mut bytes).map_err(failed("read"))?;
    Ok(bytes)
}

fn check(path: &Path, metadata: &std::fs::Metadata) -> Result<(), KekFileRefused> {
    let path = || path.to_owned();
    if !metadata.is_file() {
        return Err(KekFileRefused::NotPlain(path()));
    }
    let expected = nix::unistd::geteuid().as_raw();
    if metadata.uid() != expected {
        return Err(KekFileRefused::Owner { path: path(), owner: metadata.uid(), expected });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & !MODE != 0 {
        return Err(KekFileRefused::Exposed { path: path(), mode });
    }
    if WRAPPED_BYTES_MAX as u64 <= metadata.len() {
        return Err(KekFileRefused::Length { path: path(), bytes: metadata.len() });
    }
    Ok(())
}

/// Makes the file's name durable, not only its contents.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use countersign_identity::{SeededEntropy, SystemEntropy};

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap()
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[track_caller]
    fn refused(path: &Path, why: &str) {
        let text = KekFile::open(path).unwrap_err().to_string();
        assert!(text.contains(why), "{text}");
    }

    #[test]
    fn the_file_holds_the_key_and_is_for_its_owner_only() {
        let folder = folder();
        let path = folder.path().join("kek");
        let made = KekFile::create(&path, &SystemEntropy).unwrap();
        assert_eq!(KekFile::open(&path).unwrap().id(), made.id());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let again = KekFile::create(&path, &SystemEntropy).unwrap_err();
        assert!(matches!(again, KekFileRefused::Exists(_)), "{again}");
        assert_eq!(KekFile::open(&path).unwrap().id(), made.id(), "it was not overwritten");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = folder();
        let path = folder.path().join("kek");
        KekFile::create(&path, &SystemEntropy).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o777] {
            set_mode(&path, mode);
            refused(&path, "chmod 600");
        }
        set_mode(&path, 0o400);
        assert!(KekFile::open(&path).is_ok(), "less than 0600 is fine");
    }

    #[test]
    fn what_is_not_a_plain_file_of_32_bytes_is_refused() {
        let folder = folder();
        let path = folder.path().join("kek");
        refused(&path, "there is no key file");
        KekFile::create(&path, &SystemEntropy).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        refused(&link, "not a plain file");
        refused(folder.path(), "not a plain file");
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        refused(&pipe, "not a plain file");
        for bytes in [0_usize, 31, 33, 64] {
            std::fs::write(&path, vec![7; bytes]).unwrap();
            refused(&path, &format!("has {bytes} bytes, expected 32"));
        }
    }

    #[test]
    fn a_file_of_somebody_else_is_refused() {
        let folder = folder();
        let path = folder.path().join("kek");
        KekFile::create(&path, &SystemEntropy).unwrap();
        // Only root can give a file away; without it, a file of root's stands in.
        let other = Some(nix::unistd::Uid::from_raw(65_534));
        if nix::unistd::geteuid().is_root() {
            nix::unistd::chown(&path, other, None).unwrap();
            refused(&path, "belongs to uid 65534");
        } else {
            refused(Path::new("/etc/hostname"), "belongs to uid 0");
        }
    }

    #[test]
    fn nothing_of_the_key_is_printed() {
        let kek = Kek::draw(&SeededEntropy::new(3)).unwrap();
        assert_eq!(format!("{kek:?}"), "Kek");
        let hex: String = kek.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!hex.contains(&kek.id().to_string()), "its name is not a part of it");
    }
}
