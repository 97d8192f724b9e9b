//! The files of a store: made whole or not at all, for their owner only, and open in one process at a time.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::rows::{broken, failed};
use super::schema;
use crate::{Result, StoreError};

const MODE: u32 = 0o600;
const HEADER: &[u8; 16] = b"SQLite format 3\0";
/// How long a statement waits for a lock. Nobody else should hold one for long: a backup, a curious operator.
const LOCK_TIMEOUT: Duration = Duration::from_millis(900);
/// How large the write-ahead log may stay once its contents are in the database.
const WAL_BYTES_MAX: i64 = 64 << 20;
const STATEMENTS_CACHED: usize = 64;

/// The path of the database in a data directory.
pub(super) fn database(directory: &Path) -> PathBuf {
    directory.join("state.db")
}

fn unavailable(path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |why| StoreError::Unavailable { why: format!("`{}`: {why}", path.display()) }
}

/// Held while the store is open. The system takes it from a process that crashes.
pub(super) struct Lock(File);

impl Lock {
    /// Takes the directory's lock.
    pub(super) fn take(directory: &Path) -> Result<Self> {
        let path = directory.join("state.lock");
        let failed = unavailable(&path);
        let options = &mut OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(MODE);
        let mut file = options.open(&path).map_err(|why| match why.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                StoreError::NoFolder { path: directory.to_owned() }
            }
            _ => failed(why),
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(why)) => return Err(failed(why)),
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Only a help for the reader; whoever has the lock may just be writing it.
                let pid = file.take(16).read_to_string(&mut text).ok();
                let pid = pid.and_then(|_bytes| text.trim().parse().ok());
                return Err(StoreError::Locked { path: directory.to_owned(), pid });
            }
        }
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        Ok(Self(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would leave it to a child that another thread starts right now, until that child's `exec`.
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "a data directory may stay locked for a moment");
        }
    }
}

/// Makes the database of a new store. It appears under its name only when it is complete.
pub(super) fn create(directory: &Path, lock: &Lock) -> Result<()> {
    Draft::begin(directory, lock)?.publish()
}

/// The database of a new store while it is being made. It has no name yet, and none is left when it never gets one.
pub(super) struct Draft {
    connection: Connection,
    // After the connection, so that it is closed before.
    leftover: Leftover,
    path: PathBuf,
}

/// A file that is removed, if it is still there.
struct Leftover(PathBuf);

impl Drop for Leftover {
    fn drop(&mut self) {
        // What stays is replaced by the next one, and is nobody's store.
        let _removed = remove(&self.0);
    }
}

impl Draft {
    /// An empty store in a directory that has none.
    pub(super) fn begin(directory: &Path, _lock: &Lock) -> Result<Self> {
        let path = database(directory);
        if path.try_exists().map_err(unavailable(&path))? {
            return Err(StoreError::AlreadyExists { what: format!("store `{}`", path.display()) });
        }
        let leftover = Leftover(directory.join("state.db.new"));
        let draft = &leftover.0;
        for left in [draft.clone(), beside(draft, "-journal")] {
            remove(&left).map_err(unavailable(&left))?;
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(draft);
        drop(file.map_err(unavailable(draft))?);
        let mut connection = connect(draft, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        schema::mark(&connection)?;
        schema::migrate(&mut connection, draft)?;
        Ok(Self { connection, leftover, path })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Gives it its name, durably.
    pub(super) fn publish(self) -> Result<()> {
        let Self { connection, leftover, path } = self;
        connection.close().map_err(|(_connection, error)| failed(error))?;
        std::fs::rename(&leftover.0, &path).map_err(unavailable(&path))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        File::open(directory).and_then(|folder| folder.sync_all()).map_err(unavailable(directory))
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Opens the writer's connection, and brings the schema to this version.
pub(super) fn open_writer(path: &Path) -> Result<Connection> {
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let ours = schema::is_ours(&connection).map_err(|error| match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => StoreError::NotAStore { path: path.to_owned() },
        _ => failed(error),
    })?;
    if !ours {
        return Err(StoreError::NotAStore { path: path.to_owned() });
    }
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(failed)?;
    if mode != "wal" {
        return Err(broken(format!("journal mode is `{mode}`, expected `wal`")));
    }
    // Durable when COMMIT returns, not when the system gets to it.
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    connection
        .pragma_update_and_check(None, "journal_size_limit", WAL_BYTES_MAX, |_row| Ok(()))
        .map_err(failed)?;
    schema::migrate(&mut connection, path)?;
    Ok(connection)
}

/// Opens a connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection> {
    // Each connection is used by one thread at a time.
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(LOCK_TIMEOUT).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    // Otherwise a statement with a limit, or one that compares a number, is planned anew for each number that it is given.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(failed)?;
    // A schema that somebody tampered with must not run functions; a damaged page is to be noticed early.
    connection.pragma_update(None, "trusted_schema", "OFF").map_err(failed)?;
    connection.pragma_update(None, "cell_size_check", "ON").map_err(failed)?;
    Ok(connection)
}

/// Checks that there is a store and that it is for its owner only.
///
/// Without opening a file: closing one would drop the locks that this process may hold on it (POSIX).
pub(super) fn check_modes(directory: &Path) -> Result<()> {
    let path = database(directory);
    let exists = match path.try_exists() {
        Err(why) if why.kind() == io::ErrorKind::NotADirectory => false,
        exists => exists.map_err(unavailable(&path))?,
    };
    if !exists {
        return Err(StoreError::Missing { path: directory.to_owned() });
    }
    for path in [path.clone(), beside(&path, "-wal"), beside(&path, "-shm")] {
        let mode = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.permissions().mode() & 0o7777,
            Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
            Err(why) => return Err(unavailable(&path)(why)),
        };
        if mode & !MODE != 0 {
            return Err(StoreError::Exposed { path, mode });
        }
    }
    Ok(())
}

/// Checks that the file is SQLite's at all, before SQLite may write to it: it takes an empty file for a new database.
pub(super) fn check_header(directory: &Path, _lock: &Lock) -> Result<()> {
    let path = database(directory);
    let mut file = File::open(&path).map_err(unavailable(&path))?;
    let mut header = [0; HEADER.len()];
    match file.read_exact(&mut header) {
        Ok(()) if header == *HEADER => Ok(()),
        Err(why) if why.kind() != io::ErrorKind::UnexpectedEof => Err(unavailable(&path)(why)),
        Ok(()) | Err(_) => Err(StoreError::NotAStore { path }),
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;
    use crate::sql;

    #[test]
    fn a_directory_is_free_at_once_though_a_child_has_inherited_its_lock() {
        let directory = tempfile::tempdir().unwrap();
        let lock = Lock::take(directory.path()).unwrap();
        // As between `fork` and `exec` in another thread.
        let _inherited = lock.0.try_clone().unwrap();
        assert!(matches!(Lock::take(directory.path()), Err(StoreError::Locked { .. })));
        drop(lock);
        Lock::take(directory.path()).unwrap();
    }

    #[test]
    fn a_statement_is_planned_once_whatever_numbers_it_is_given() {
        let directory = tempfile::tempdir().unwrap();
        let lock = Lock::take(directory.path()).unwrap();
        create(directory.path(), &lock).unwrap();
        let path = database(directory.path());
        let connections = [open_writer(&path).unwrap(), open_reader(&path).unwrap()];
        for (connection, text) in connections.iter().zip([sql::MOVE_HEAD, sql::EVENTS]) {
            let mut statement = connection.prepare(text).unwrap();
            let count = statement.parameter_count();
            for number in 0..3 {
                let values = rusqlite::params_from_iter(vec![number; count]);
                let _found = statement.query(values).unwrap().next().unwrap().is_some();
            }
            assert_eq!(statement.get_status(StatementStatus::RePrepare), 0, "{text}");
        }
    }
}
