//! The form of a backup, version 1.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `CSBACKUP` |
//! | 1 | the version, 1 |
//! | 16 | a random name |
//! | 4 | the length of a part, big endian |
//! | any | the part, sealed for `backup/NAME/NUMBER` |
//!
//! and so on for each part. What is in a part is told by its first byte: what the backup says of itself, a page of a table,
//! or the end with the count of every table and the root of the log. Each part is sealed for its own place in this very file,
//! so none can be left out, moved, or taken from another, and a file without its end is cut off.

use std::fs::{File, TryLockError};
use std::io::{BufReader, BufWriter, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use countersign_identity::{Entropy, NodeId, Revision, Sha256, Timestamp, TrustDomain};
use countersign_seal::Kek;
use countersign_store::Page;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::building::is_at;
use crate::authority::internal;
use crate::config::StartError;

const MAGIC: &[u8; 8] = b"CSBACKUP";
const VERSION: u8 = 1;
const NAME_BYTES: usize = 16;
/// The longest part, sealed: a page of the largest values.
const PART_BYTES_MAX: u32 = (16 << 20) + 1024;
const SELF: u8 = 0;
const PAGE: u8 = 1;
const END: u8 = 2;
/// How often a file is taken that others take at the same time.
const ATTEMPTS_MAX: usize = 8;
/// Plaintext that is gathered before it is sealed.
const GATHERED: usize = 256 * 1024;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct About {
    pub(super) trust_domain: TrustDomain,
    /// When it was made.
    pub(super) at: Timestamp,
    pub(super) revision: Revision,
    pub(super) fence: Revision,
    pub(super) log_size: u64,
}

/// With what a backup ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct End {
    pub(super) tables: Vec<(String, u64)>,
    pub(super) log_root: Sha256,
}

/// A part that was opened.
pub(super) enum Part {
    Page(Zeroizing<Vec<u8>>),
    End(End),
}

/// A backup that is being written, under another name until it is whole.
pub(super) struct Writing<'a> {
    file: BufWriter<File>,
    path: PathBuf,
    unfinished: PathBuf,
    name: String,
    parts: u64,
    kek: &'a Kek,
    entropy: &'a dyn Entropy,
    gathered: Vec<u8>,
    finished: bool,
}

fn context(name: &str, part: u64) -> String {
    format!("backup/{name}/{part}")
}

impl<'a> Writing<'a> {
    /// Begins a file where there is none.
    pub(super) fn create(
        path: &Path,
        kek: &'a Kek,
        entropy: &'a dyn Entropy,
    ) -> Result<Self, StartError> {
        if path.symlink_metadata().is_ok() {
            return Err(StartError::BackupExists { path: path.into() });
        }
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".part");
        let unfinished = PathBuf::from(unfinished);
        let mut file = BufWriter::new(take(&unfinished)?);
        let id = NodeId::draw(entropy).map_err(internal)?;
        let begun = file.write_all(MAGIC).and_then(|()| file.write_all(&[VERSION]));
        let begun = begun.and_then(|()| file.write_all(id.as_bytes()));
        let (name, path) = (id.to_string(), path.to_owned());
        let (parts, gathered, finished) = (0, Vec::new(), false);
        let writing =
            Self { file, path, unfinished, name, parts, kek, entropy, gathered, finished };
        begun.map_err(|source| writing.failed(source)).map(|()| writing)
    }

    fn failed(&self, source: std::io::Error) -> StartError {
        StartError::File { action: "write", path: self.unfinished.clone(), source }
    }

    pub(super) fn about(&mut self, about: &About) -> Result<(), StartError> {
        self.part(SELF, &json(about))
    }

    /// Takes a page. Small ones travel together.
    pub(super) fn page(&mut self, page: &Page) -> Result<(), StartError> {
        let length = u32::try_from(page.bytes.len()).map_err(internal)?;
        self.gathered.extend_from_slice(&length.to_be_bytes());
        self.gathered.extend_from_slice(&page.bytes);
        if self.gathered.len() < GATHERED { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), StartError> {
        let pages = Zeroizing::new(std::mem::take(&mut self.gathered));
        if pages.is_empty() { Ok(()) } else { self.part(PAGE, &pages) }
    }

    fn part(&mut self, kind: u8, plain: &[u8]) -> Result<(), StartError> {
        let plain = Zeroizing::new([&[kind], plain].concat());
        let context = context(&self.name, self.parts);
        let sealed = countersign_seal::seal(self.kek, &context, &plain, self.entropy);
        let sealed = sealed.map_err(internal)?;
        self.parts += 1;
        let length = u32::try_from(sealed.len()).map_err(internal)?.to_be_bytes();
        let written = self.file.write_all(&length).and_then(|()| self.file.write_all(&sealed));
        written.map_err(|source| self.failed(source))
    }

    /// Ends the file, makes it durable, and gives it its name. Says how long it is.
    pub(super) fn finish(mut self, end: &End) -> Result<u64, StartError> {
        self.flush()?;
        self.part(END, &json(end))?;
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        let length = synced.and_then(|()| Ok(self.file.get_ref().metadata()?.len()));
        let length = length.map_err(|source| self.failed(source))?;
        // Unlike a renaming, it replaces nothing.
        std::fs::hard_link(&self.unfinished, &self.path).map_err(|source| self.failed(source))?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new(".")));
        folder.and_then(|folder| folder.sync_all()).map_err(|source| self.failed(source))?;
        self.finished = true;
        Ok(length)
    }
}

/// Makes a file that is ours as long as it is open. One that a backup has left which was cut off is replaced.
fn take(path: &Path) -> Result<File, StartError> {
    let failed = |source| StartError::File { action: "write", path: path.into(), source };
    let runs = || StartError::BackupRuns { path: path.into() };
    for _attempt in 0..ATTEMPTS_MAX {
        let mut options = std::fs::OpenOptions::new();
        match options.write(true).create_new(true).mode(0o600).open(path) {
            Ok(file) => {
                lock(&file, failed)?.then_some(()).ok_or_else(runs)?;
                // Before it was locked, another backup may have taken it for one that was left.
                if is_at(&file, path) {
                    return Ok(file);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let there = path.symlink_metadata().map_err(failed)?;
                if !there.is_file() || !is_begun(path).map_err(failed)? {
                    return Err(StartError::BackupExists { path: path.into() });
                }
                let left = File::open(path).map_err(failed)?;
                lock(&left, failed)?.then_some(()).ok_or_else(runs)?;
                if is_at(&left, path) {
                    std::fs::remove_file(path).map_err(failed)?;
                }
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Err(runs())
}

fn lock(file: &File, failed: impl Fn(std::io::Error) -> StartError) -> Result<bool, StartError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Whether a file begins as a backup does, as far as it goes.
fn is_begun(path: &Path) -> std::io::Result<bool> {
    let mut begin = Vec::new();
    File::open(path)?.take(MAGIC.len() as u64).read_to_end(&mut begin)?;
    Ok(MAGIC.starts_with(&begin))
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // Of a backup that did not end well nothing is left.
        if let Err(error) = std::fs::remove_file(&self.unfinished) {
            tracing::debug!(%error, finished = self.finished, "an unfinished backup is left");
        }
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts and numbers always have a JSON form")
}

/// A backup that is being read.
pub(super) struct Reading<'a, R> {
    file: R,
    path: PathBuf,
    name: String,
    parts: u64,
    kek: &'a Kek,
}

impl<'a> Reading<'a, BufReader<File>> {
    /// Opens a file, and reads what it says of itself.
    pub(super) fn open(path: &Path, kek: &'a Kek) -> Result<(Self, About), StartError> {
        let file = File::open(path);
        let file = file.map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => StartError::NoFile { path: path.into() },
            _ => StartError::File { action: "read", path: path.into(), source },
        })?;
        Self::of(BufReader::new(file), path, kek)
    }
}

impl<'a, R: Read> Reading<'a, R> {
    /// Reads what a backup says of itself.
    pub(super) fn of(file: R, path: &Path, kek: &'a Kek) -> Result<(Self, About), StartError> {
        let mut reading = Self { file, path: path.into(), name: String::new(), parts: 0, kek };
        let mut head = [0; MAGIC.len() + 1];
        reading.exactly(&mut head).map_err(|error| match error {
            StartError::BadBackup { .. } => {
                reading.bad("it is cut off, or not a backup: `countersign backup` writes them")
            }
            other => other,
        })?;
        if head[..MAGIC.len()] != *MAGIC {
            return Err(reading.bad("it is not a backup: `countersign backup` writes them"));
        }
        let version = head[MAGIC.len()];
        if version != VERSION {
            let why = format!(
                "it has version {version} of the form, this program knows version {VERSION}: use a newer one"
            );
            return Err(reading.bad(why));
        }
        let mut name = [0; NAME_BYTES];
        reading.exactly(&mut name)?;
        reading.name = NodeId::from_bytes(name).to_string();
        let part = reading.open_part()?;
        let about = match part.split_first() {
            Some((&SELF, about)) => serde_json::from_slice(about).ok(),
            _ => None,
        };
        let about = about.ok_or_else(|| reading.bad("it does not begin as a backup does"))?;
        Ok((reading, about))
    }

    fn bad(&self, why: impl Into<String>) -> StartError {
        StartError::BadBackup { path: self.path.clone(), why: why.into() }
    }

    fn exactly(&mut self, bytes: &mut [u8]) -> Result<(), StartError> {
        self.file.read_exact(bytes).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => self.bad("it is cut off"),
            _ => StartError::File { action: "read", path: self.path.clone(), source },
        })
    }

    fn open_part(&mut self) -> Result<Zeroizing<Vec<u8>>, StartError> {
        let mut length = [0; 4];
        self.exactly(&mut length)?;
        let length = u32::from_be_bytes(length);
        if PART_BYTES_MAX < length {
            return Err(self.bad("it was changed, or is damaged"));
        }
        let mut sealed = vec![0; usize::try_from(length).map_err(internal)?];
        self.exactly(&mut sealed)?;
        let context = context(&self.name, self.parts);
        self.parts += 1;
        countersign_seal::open(self.kek, &context, &sealed).map_err(|refused| match refused {
            countersign_seal::OpenRefused::OtherKey { .. } => self.bad(refused.to_string()),
            _ => self.bad("it was changed, or is damaged"),
        })
    }

    /// The next part. After the end there must be nothing.
    pub(super) fn next(&mut self) -> Result<Part, StartError> {
        let part = self.open_part()?;
        match part.split_first() {
            Some((&PAGE, pages)) => Ok(Part::Page(Zeroizing::new(pages.to_vec()))),
            Some((&END, end)) => {
                let end = serde_json::from_slice(end).ok();
                let end = end.ok_or_else(|| self.bad("its end is not understood"))?;
                let mut more = [0];
                match self.file.read(&mut more) {
                    Ok(0) => Ok(Part::End(end)),
                    Ok(_) => Err(self.bad("there is more after its end")),
                    Err(source) => {
                        Err(StartError::File { action: "read", path: self.path.clone(), source })
                    }
                }
            }
            _ => Err(self.bad("a part of it is of a kind that this version does not know")),
        }
    }

    /// Reads all that follows to its end, and hands on each page.
    pub(super) fn read_to_end(
        mut self,
        mut each: impl FnMut(&[u8]) -> Result<(), StartError>,
    ) -> Result<End, StartError> {
        loop {
            match self.next()? {
                Part::Page(part) => self.pages(&part)?.into_iter().try_for_each(&mut each)?,
                Part::End(end) => return Ok(end),
            }
        }
    }

    /// The pages of a part.
    pub(super) fn pages<'p>(&self, mut part: &'p [u8]) -> Result<Vec<&'p [u8]>, StartError> {
        let mut pages = Vec::new();
        while let Some((length, rest)) = part.split_first_chunk::<4>() {
            let length = usize::try_from(u32::from_be_bytes(*length)).map_err(internal)?;
            let page = rest.split_at_checked(length);
            let (page, rest) = page.ok_or_else(|| self.bad("a part of it is cut off"))?;
            pages.push(page);
            part = rest;
        }
        if part.is_empty() { Ok(pages) } else { Err(self.bad("a part of it is cut off")) }
    }
}
