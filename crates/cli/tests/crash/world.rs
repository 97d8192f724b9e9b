//! A trust domain of real processes, and how it is made to suffer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use countersign_identity::Timestamp;

use crate::faults::{CALLS, Dice, Disk, Fault, Faults, StoreKind};
use crate::postgres::{Cluster, Listen};
use crate::recovery::{Lost, Promised};
use crate::support::{self, Up, binary, folder, until};
use crate::witness::{Place, Places, Witness};

/// A trust domain, what was done to it, and what must therefore hold.
pub(crate) struct World {
    pub(crate) up: Option<Up>,
    pub(crate) manifests: PathBuf,
    pub(crate) faults: Faults,
    clock: PathBuf,
    ahead: i64,
    furthest: i64,
    /// Whether a clock was far ahead in a round before, so that something is dated so.
    pub(crate) was_ahead: bool,
    /// Where its state is, if not in its data directory.
    pub(crate) database: Option<Database>,
    /// A small disk of the trust domain's own, where this user may make one.
    disk: Option<Disk>,
    faketime: String,
    /// Who sees all certificates. `None` before there is anything to see.
    pub(crate) witness: Option<Witness>,
    pub(crate) promised: Promised,
    pub(crate) lost: Lost,
    /// Pairs of workloads of which both were put in one change.
    pub(crate) pairs: u64,
    pub(crate) backups: u64,
    pub(crate) incarnation: u64,
    pub(crate) revision: (u64, u64),
    pub(crate) restarts: u64,
    pub(crate) looked: Looked,
    // Last: it goes away after all that lies in it.
    pub(crate) folder: tempfile::TempDir,
}

/// A database of this world's own.
pub(crate) struct Database {
    cluster: Cluster,
    url: String,
    /// Those that follow each other are isolated differently.
    begun: usize,
}

impl Database {
    fn make() -> Self {
        let cluster = Cluster::start(Listen::Nowhere, &[]);
        let mut database = Self { cluster, url: String::new(), begun: 0 };
        database.begin_anew();
        database
    }

    /// Begins another one, in which there is nothing yet.
    pub(crate) fn begin_anew(&mut self) {
        let isolation = ["serializable", "read committed"][self.begun % 2];
        self.begun += 1;
        self.url = self.cluster.url(&self.cluster.database(isolation));
    }
}

/// What all checks together found that operators had put there, and what really befell it. Without any, they said nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Looked {
    /// Rounds by what really befell it in them.
    pub(crate) met: BTreeMap<String, u64>,
    pub(crate) rules: usize,
    pub(crate) pairs: u64,
    /// Rules and suspensions, newer than the backup, that only an agent still had.
    pub(crate) handed_back: usize,
    pub(crate) suspended_again: usize,
    /// Rules and suspensions, newer than the backup, that only the journal still had.
    pub(crate) from_journal: usize,
    /// Rules that were said to be in force and not in the journal.
    pub(crate) unjournaled: usize,
    /// Rounds in which an operator was refused by the storage, and `/ready` said so.
    pub(crate) not_ready: usize,
    /// Certificates that were valid, and refused only because they were of an earlier incarnation.
    pub(crate) thieves: usize,
}

impl World {
    pub(crate) fn begin(store: StoreKind) -> Self {
        let folder = folder();
        let manifests = support::shop_with_lifetimes(folder.path(), "30s", "5m");
        let faults = Faults::new(folder.path());
        let clock = folder.path().join("clock");
        let faketime = std::fs::read_dir("/usr/lib").unwrap().find_map(|entry| {
            let path = entry.unwrap().path().join("faketime/libfaketimeMT.so.1");
            path.exists().then(|| path.to_str().unwrap().to_owned())
        });
        let faketime =
            faketime.expect("the Debian package `libfaketime` is installed by `cargo xtask test`");
        let mut world = Self {
            folder,
            manifests,
            faults,
            clock,
            ahead: 0,
            furthest: 0,
            was_ahead: false,
            database: (store == StoreKind::Postgres).then(Database::make),
            disk: None,
            faketime,
            up: None,
            witness: None,
            promised: Promised::default(),
            lost: Lost::default(),
            pairs: 0,
            backups: 0,
            incarnation: 0,
            revision: (0, 0),
            restarts: 0,
            looked: Looked::default(),
        };
        world.set_clock(0);
        world.disk = Disk::mount(&world.disk());
        std::fs::create_dir(world.journal()).unwrap();
        world.start();
        world.up().make_me("30s");
        let up = world.up();
        let socket = |name: &str| up.ready[name].as_str().unwrap().to_owned();
        let door = |service: &str| (Place::Door, up.address(service));
        let places = Places {
            agent: socket("agent"),
            admin: socket("admin").trim_start_matches("unix://").into(),
            node: world.data().join("agent/node.json"),
            doors: vec![door("orders"), door("payments"), (Place::Server, socket("server"))],
        };
        world.witness = Some(Witness::begin(places));
        until("the state is backed up", || world.back_up());
        world
    }

    /// Where the small disk is.
    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.disk().join("data")
    }

    /// On the same disk, so that it meets whatever the state meets.
    pub(crate) fn journal(&self) -> PathBuf {
        self.disk().join("journal")
    }

    pub(crate) fn up(&self) -> &Up {
        self.up.as_ref().unwrap()
    }

    fn set_clock(&mut self, step: i64) {
        self.ahead += step;
        self.furthest = self.furthest.max(self.ahead);
        write_clock(&self.clock, self.ahead);
        self.set_server_clock(0);
    }

    /// How far the server's clock is ahead of everybody else's.
    pub(crate) fn set_server_clock(&self, ahead: i64) {
        write_clock(&self.clock.with_file_name("clock-server"), self.ahead + ahead);
    }

    /// How far everybody's clock is ahead of where it was until then.
    pub(crate) fn set_clock_of_all(&self, ahead: i64) {
        write_clock(&self.clock, self.ahead + ahead);
        self.set_server_clock(ahead);
    }

    /// The time by the clock of the trust domain.
    pub(crate) fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Timestamp::from_secs(i64::try_from(since.as_secs()).unwrap() + self.ahead)
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let preload = format!("{}:{}", self.faketime, self.faults.library.to_str().unwrap());
        let mut environment = vec![
            ("LD_PRELOAD", preload),
            ("FAULTS_PAGE", self.faults.page.to_str().unwrap().to_owned()),
            ("FAULTS_PATH", self.data().to_str().unwrap().to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.clock.to_str().unwrap().to_owned()),
            ("COUNTERSIGN_JOURNAL", self.journal().to_str().unwrap().to_owned()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        let database = self.database.as_ref().map(|database| database.url.clone());
        environment.extend(database.map(|url| ("COUNTERSIGN_STORE", url)));
        environment
    }

    pub(crate) fn store_kind(&self) -> StoreKind {
        self.database.as_ref().map_or(StoreKind::Sqlite, |_| StoreKind::Postgres)
    }

    /// Where the state is, for who looks at it from outside.
    pub(crate) fn state(&self) -> String {
        let file = self.data().join("server/state.db").to_str().unwrap().to_owned();
        self.database.as_ref().map_or(file, |database| database.url.clone())
    }

    pub(crate) fn start(&mut self) {
        let environment = self.environment();
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let pass = ["--pass", "COUNTERSIGN_JOURNAL", "--pass", "COUNTERSIGN_STORE"];
        self.up = Some(Up::start_in(&self.manifests, &self.data(), &pass, &environment));
    }

    /// A command of an operator, by the clock of the trust domain.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// One by a clock that is a day behind.
    pub(crate) fn run_behind(&self, arguments: &[&str]) -> Output {
        let clock = self.clock.with_file_name("clock-behind");
        write_clock(&clock, self.ahead - 86_400);
        self.command(arguments).env("FAKETIME_TIMESTAMP_FILE", clock).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).env("XDG_STATE_HOME", self.data().join("xdg"));
        command
            .envs(self.environment().into_iter().filter(|(name, _)| !name.starts_with("FAULTS")));
        command
    }

    /// The processes of a kind that `up` has started.
    pub(crate) fn processes(&self, kind: &str) -> Vec<i32> {
        let parent = self.up().pid().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name();
            let Ok(pid) = name.to_string_lossy().parse::<i32>() else { continue };
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let after = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let mut words = command.split(|byte| *byte == 0);
            if after.split(' ').nth(1) == Some(parent.as_str())
                && words.nth(1) == Some(kind.as_bytes())
            {
                found.push(pid);
            }
        }
        found.sort_unstable();
        found
    }

    fn kill(&mut self, kind: &str, dice: &mut Dice) {
        let pids = self.processes(kind);
        if pids.is_empty() {
            return;
        }
        let pid = pids[usize::try_from(dice.below(pids.len() as u64)).unwrap()];
        // It may have ended by itself in this moment.
        if sent_kill(&[pid]) {
            self.met(&format!("kill-{kind}"));
        }
    }

    fn met(&mut self, kind: &str) {
        *self.looked.met.entry(kind.to_owned()).or_default() += 1;
    }

    /// What was drawn, or what can be done in place of it now.
    pub(crate) fn possible(&self, fault: Fault) -> Fault {
        match fault {
            // No further back than what counts as skew: beyond that nothing is issued until the time has come.
            Fault::Clock(step) if self.ahead + step < self.furthest - 12 => Fault::Clock(20),
            other => other,
        }
    }

    /// Does it, while operators go on working. Says which of [`CALLS`] were met.
    pub(crate) fn suffer(&mut self, fault: &Fault, dice: &mut Dice) -> Vec<&'static str> {
        let seed = u32::try_from(dice.below(1 << 31)).unwrap();
        let wait = |duration: Duration| std::thread::park_timeout(duration);
        let suffered = self.faults.suffered();
        let mut befell = true;
        match fault {
            Fault::Kill(parts) => {
                for part in parts {
                    wait(dice.millis(0, 300));
                    self.kill(part, dice);
                }
                return Vec::new();
            }
            Fault::KillDatabase { away } => {
                let cluster = &self.database.as_ref().expect("it was drawn for one").cluster;
                cluster.kill();
                wait(*away);
                cluster.resume();
            }
            Fault::KillAll => {
                wait(dice.millis(0, 500));
                let parts = ["server", "agent", "proxy", "example"];
                let mut all: Vec<i32> =
                    parts.iter().flat_map(|part| self.processes(part)).collect();
                all.insert(0, self.up().pid());
                sent_kill(&all);
            }
            Fault::Full(lasts) => match &self.disk {
                Some(disk) => befell = disk.fill_for(*lasts),
                None => {
                    self.faults.set([1, 1000, 0, 0, 28, 0, seed]);
                    wait(*lasts);
                    befell = suffered != self.faults.suffered();
                }
            },
            Fault::Failing { writes, syncs, renames, lasts } => {
                self.faults.set([1, *writes, *syncs, *renames, 5, 0, seed]);
                wait(*lasts);
                befell = suffered != self.faults.suffered();
            }
            Fault::Slow { each, lasts } => {
                let micros = u32::try_from(each.as_micros()).unwrap();
                self.faults.set([1, 0, 0, 0, 5, micros, seed]);
                wait(*lasts);
                befell = suffered != self.faults.suffered();
            }
            Fault::Restore(_) => {}
            Fault::Clock(step) => {
                self.set_clock(*step);
                wait(Duration::from_millis(300));
            }
            Fault::ServerClock { kill_agent } => self.suffer_server_clock(*kill_agent),
            Fault::ClockAhead { whose, ahead, kill, lasts } => {
                self.suffer_clock_ahead((*whose, *ahead), *kill, *lasts);
            }
        }
        self.faults.lift();
        if befell {
            fault.kinds().iter().for_each(|kind| self.met(kind));
        }
        let now = self.faults.suffered();
        let calls = CALLS.iter().zip(suffered.iter().zip(now));
        let calls: Vec<_> = calls.filter(|(_, (before, now))| *before != now).collect();
        calls.into_iter().map(|(call, _)| *call).inspect(|call| self.met(call)).collect()
    }

    /// `up` mends what it has started; whoever supervises it starts it again only where it was killed itself.
    pub(crate) fn revive(&mut self, fault: &Fault) {
        if matches!(fault, Fault::KillAll) {
            until("`up` is cut off", || self.up_has_ended().then_some(()));
            self.restarts += 1;
            drop(self.up.take());
            self.start();
        } else {
            assert!(!self.up_has_ended(), "`up` has ended by itself");
        }
    }

    /// Cuts the server off and keeps `up` from starting it again. Everything else lives on.
    pub(crate) fn stop_server(&self) {
        send("STOP", &[self.up().pid()]);
        let server = self.processes("server");
        assert!(!server.is_empty(), "there is a server");
        sent_kill(&server);
        // What was under way may come to its end before it does. Its parent is stopped, and sees nothing of it.
        until("the server is cut off", || server.iter().all(|pid| has_ended(*pid)).then_some(()));
    }

    /// `up` sees that its server has ended, and starts it again.
    pub(crate) fn go_on(&self) {
        send("CONT", &[self.up().pid()]);
    }

    pub(crate) fn up_has_ended(&self) -> bool {
        has_ended(self.up().pid())
    }
}

/// Whether it is gone, or only its parent has not heard of it yet.
fn has_ended(pid: i32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// Cuts them off at once. Whether there was any.
pub(crate) fn sent_kill(pids: &[i32]) -> bool {
    send("KILL", pids)
}

fn send(signal: &str, pids: &[i32]) -> bool {
    let pids = pids.iter().map(ToString::to_string);
    Command::new("kill").arg("-s").arg(signal).args(pids).output().unwrap().status.success()
}

/// A reader sees the old text or the new.
fn write_clock(clock: &Path, ahead: i64) {
    let new = clock.with_extension("new");
    std::fs::write(&new, format!("{ahead:+}\n")).unwrap();
    std::fs::rename(new, clock).unwrap();
}
