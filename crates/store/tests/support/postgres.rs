//! A PostgreSQL of the test's own, from Debian's package: on its own Unix socket, in a folder of its own, ended and
//! removed when the test's process ends, however that happens.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long to wait for anything that the database does.
const PATIENCE: Duration = Duration::from_secs(60);

/// Keeps a database running until its own input ends, which it does with the test's process; then ends it by its pid
/// and removes its folder, unless it is told to keep that.
const KEEPER: &str = r#"
"$1/postgres" -D "$2/data" -k "$2" -c listen_addresses="$3" -c port="$4" >>"$2/log" 2>&1 &
pid=$!
echo "$pid"
read -r end
kill -QUIT "$pid" 2>/dev/null
kill -CONT "$pid" 2>/dev/null
wait "$pid"
if [ "$end" != keep ]; then rm -rf "$2"; fi
"#;

/// A database server.
pub(crate) struct Cluster {
    folder: PathBuf,
    listen: Listen,
    keeper: Mutex<Option<Keeper>>,
    databases: AtomicU32,
}

struct Keeper {
    shell: Child,
    input: Option<ChildStdin>,
    pid: u32,
}

/// Where a server listens beside its Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    /// Nowhere.
    Nowhere,
    /// At this port of the loopback address.
    Loopback(u16),
}

/// The user under which the server runs: it refuses root.
fn user() -> Option<(u32, u32)> {
    let id = |flag: &str, name: &[&str]| {
        let output = Command::new("id").arg(flag).args(name).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse::<u32>().ok()
    };
    if id("-u", &[])? != 0 {
        return None;
    }
    let ids = |name: &str| Some((id("-u", &[name])?, id("-g", &[name])?));
    ids("postgres").or_else(|| ids("nobody"))
}

/// The folder of the newest version's programs.
fn programs() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = installed.map(|entry| entry.path()).max_by_key(|path| version(path));
    newest.expect("PostgreSQL is installed: `apt-get install postgresql`").join("bin")
}

fn as_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = user() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/");
    command
}

/// Makes a file the server's own.
pub(crate) fn give_away(path: &Path) {
    if let Some((uid, gid)) = user() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// A folder of the server's own.
fn new_folder() -> PathBuf {
    let folder = tempfile::Builder::new().prefix("cspg").tempdir_in("/tmp").unwrap().keep();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    give_away(&folder);
    folder
}

#[track_caller]
fn made(command: &mut Command) {
    let made = command.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

impl Cluster {
    /// The one that the tests of this process share, each with databases of its own. Its log names the code of each error
    /// and the database.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(Listen::Nowhere, &["log_line_prefix = '%e %d '"]))
    }

    /// Makes one and starts it, with more lines of its configuration.
    ///
    /// It does not wait for the disk, unless these lines say `fsync = on`: what it has written outlives its processes, of
    /// which tests kill every one, but no test takes its machine's power.
    pub(crate) fn start(listen: Listen, settings: &[&str]) -> Self {
        let folder = new_folder();
        let mut initdb = as_user(&programs().join("initdb"));
        initdb.args(["--no-sync", "--auth=trust", "--username=cs", "--locale=C.UTF-8"]);
        made(initdb.args(["--encoding=UTF8", "-D"]).arg(folder.join("data")));
        let mut all = vec!["max_connections = 200", "shared_buffers = 64MB", "fsync = off"];
        all.extend(settings);
        let config = folder.join("data/postgresql.conf");
        let mut file = std::fs::OpenOptions::new().append(true).open(config).unwrap();
        writeln!(file, "{}", all.join("\n")).unwrap();
        let (keeper, databases) = (Mutex::default(), AtomicU32::new(0));
        let cluster = Self { folder, listen, keeper, databases };
        cluster.resume();
        cluster
    }

    /// Makes a standby of a running server, by the name under which that may count it as synchronous.
    pub(crate) fn standby_of(primary: &Self, name: &str) -> Self {
        let folder = new_folder();
        let from =
            format!("host={} port=5432 user=cs application_name={name}", primary.folder.display());
        let mut copy = as_user(&programs().join("pg_basebackup"));
        copy.args(["--no-sync", "--checkpoint=fast", "--write-recovery-conf", "-d", &from, "-D"]);
        made(copy.arg(folder.join("data")));
        let (keeper, databases) = (Mutex::default(), AtomicU32::new(0));
        let cluster = Self { folder, listen: Listen::Nowhere, keeper, databases };
        cluster.resume();
        cluster
    }

    /// Kills every process of the server.
    pub(crate) fn kill(&self) {
        self.signal_all("KILL");
        self.crash();
    }

    /// Starts the server that was stopped, and waits until it answers.
    pub(crate) fn resume(&self) {
        let (address, port) = match self.listen {
            Listen::Nowhere => ("", "5432".to_owned()),
            Listen::Loopback(port) => ("127.0.0.1", port.to_string()),
        };
        let mut shell = as_user(Path::new("/bin/sh"))
            .args(["-c", KEEPER, "keeper"])
            .arg(programs())
            .arg(&self.folder)
            .args([address, &port])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = shell.stdin.take();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid = line.trim().parse().unwrap();
        *self.keeper() = Some(Keeper { shell, input, pid });
        let begin = Instant::now();
        while !self.psql("postgres", "SELECT 1").status.success() {
            assert!(begin.elapsed() < PATIENCE, "PostgreSQL did not start:\n{}", self.log());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn keeper(&self) -> std::sync::MutexGuard<'_, Option<Keeper>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the server as a power cut does: nobody is waited for.
    pub(crate) fn crash(&self) {
        if let Some(mut keeper) = self.keeper().take() {
            keeper.input.take().unwrap().write_all(b"keep\n").unwrap();
            keeper.shell.wait().unwrap();
        }
    }

    /// The process of the server, to be signalled.
    pub(crate) fn pid(&self) -> u32 {
        self.keeper().as_ref().expect("it runs").pid
    }

    /// Stops every process of the server where it is, or lets it go on.
    pub(crate) fn signal_all(&self, signal: &str) {
        let main = self.pid().to_string();
        let children = Command::new("ps").args(["-o", "pid=", "--ppid", &main]).output().unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        let mut kill = Command::new("kill");
        kill.arg(format!("-{signal}")).arg(&main).args(children.split_whitespace());
        // One of them may just have ended by itself.
        let _status = kill.stderr(Stdio::null()).status().unwrap();
    }

    /// Runs SQL, each statement by itself.
    pub(crate) fn psql(&self, database: &str, sql: &str) -> Output {
        let port = match self.listen {
            Listen::Nowhere => 5432,
            Listen::Loopback(port) => port,
        };
        Command::new(programs().join("psql"))
            .args(["-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-U", "cs", "-d", database])
            .arg("-h")
            .arg(&self.folder)
            .args(["-p", &port.to_string(), "-c", sql])
            .env_remove("PGPASSWORD")
            .output()
            .unwrap()
    }

    /// Runs SQL that must succeed, and gives what it printed.
    #[track_caller]
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        let output = self.psql(database, sql);
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A new database in which transactions are isolated like this unless they say otherwise; its name.
    pub(crate) fn database(&self, isolation: &str) -> String {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.sql(
            "postgres",
            &format!("ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'"),
        );
        name
    }

    /// What `--store` is told to find a database by the Unix socket.
    pub(crate) fn url(&self, database: &str) -> String {
        let port = match self.listen {
            Listen::Nowhere => 5432,
            Listen::Loopback(port) => port,
        };
        format!("postgres://cs@/{database}?host={}&port={port}", self.folder.display())
    }

    /// What the server has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// The server's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.crash();
        // What is left of a temporary folder hurts nobody.
        let _removed = std::fs::remove_dir_all(&self.folder);
    }
}
