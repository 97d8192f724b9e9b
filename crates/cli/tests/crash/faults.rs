//! What is done to a trust domain, and by what means.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{root, text};

/// The chance of one run (SplitMix64), so that its seed tells it whole.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// Where the trust domain has its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreKind {
    Sqlite,
    Postgres,
}

/// Whose clock is far ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The server's alone.
    Server,
    /// That of every process, as where the machine's own is wrong.
    Machine,
}

/// What is done to the trust domain in one round.
#[derive(Debug)]
pub(crate) enum Fault {
    /// These processes are cut off, one after the other.
    Kill(Vec<&'static str>),
    /// Every process of the database is cut off, which comes back after a while.
    KillDatabase { away: Duration },
    /// All of it is cut off at once, as by a power failure of the processes.
    KillAll,
    /// The disk is full for a while.
    Full(Duration),
    /// Of a thousand system calls so many fail, for a while.
    Failing { writes: u32, syncs: u32, renames: u32, lasts: Duration },
    /// Each system call is late, for a while.
    Slow { each: Duration, lasts: Duration },
    /// Yesterday's backup takes the place of the state, with what else remembers the rules.
    Restore(Memory),
    /// The clock of every process steps by so many seconds, for good.
    Clock(i64),
    /// The server's clock alone is set back ten minutes for a while; its agent may end meanwhile.
    ServerClock { kill_agent: bool },
    /// A clock is so many seconds ahead for a while: more than anything lives that is held. Somebody may begin anew under it.
    ClockAhead { whose: Whose, ahead: i64, kill: Option<&'static str>, lasts: Duration },
}

/// Who remembers the rules that are newer than the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// The agents' disks: everything was stopped.
    Agents,
    /// Agents that live on, as do the proxies: only the server was stopped.
    LiveAgents,
    /// The journal alone.
    Journal,
}

/// Every kind of what can befall a trust domain, in the order of a short run: a restored backup has a lifetime's time left then
/// in which something else happens, and a clock goes forward before it goes back.
pub(crate) const KINDS: [&str; 16] = [
    "kill-server",
    "kill-agent",
    "kill-proxy",
    "restore-agents",
    "kill-all",
    "full",
    "failing",
    "slow",
    "restore-journal",
    "restore-live-agents",
    "clock-forward",
    "clock-back",
    "clock-server",
    "clock-server-kill-agent",
    "clock-server-ahead",
    "clock-machine-ahead",
];

/// In seconds.
const HOUR: i64 = 3600;

impl Fault {
    pub(crate) fn draw(dice: &mut Dice, store: StoreKind) -> Self {
        if store == StoreKind::Postgres && dice.below(3) == 0 {
            return Self::KillDatabase { away: dice.millis(100, 4000) };
        }
        let part = |dice: &mut Dice| *dice.one_of(&["server", "agent", "proxy"]);
        match dice.below(14) {
            0..=3 => Self::Kill((0..=dice.below(2)).map(|_| part(dice)).collect()),
            4 => Self::KillAll,
            5 => Self::Full(dice.millis(300, 1500)),
            6 | 7 => {
                let mut some = || u32::try_from(dice.below(400)).unwrap();
                let (writes, syncs, renames) = (some(), some(), some());
                Self::Failing { writes, syncs, renames, lasts: dice.millis(300, 1500) }
            }
            8 => Self::Slow { each: dice.millis(2, 60), lasts: dice.millis(500, 1500) },
            9 | 10 => Self::Restore(*dice.one_of(match store {
                StoreKind::Sqlite => &[Memory::Journal, Memory::Agents, Memory::LiveAgents],
                // There it is restored to another database, of which those that live on know nothing.
                StoreKind::Postgres => &[Memory::Journal, Memory::Agents],
            })),
            11 => Self::Clock(*dice.one_of(&[5, 40, -10, 20])),
            12 => Self::ServerClock { kill_agent: dice.below(2) == 0 },
            _ => Self::ClockAhead {
                whose: *dice.one_of(&[Whose::Server, Whose::Machine]),
                ahead: *dice.one_of(&[2 * HOUR, 30 * HOUR, 5 * 24 * HOUR]),
                kill: *dice.one_of(&[None, None, Some("server"), Some("agent")]),
                lasts: dice.millis(100, 1500),
            },
        }
    }

    /// What it is meant to be, of [`KINDS`].
    pub(crate) fn kinds(&self) -> Vec<String> {
        let one = |kind: &str| vec![kind.to_owned()];
        match self {
            Self::Kill(parts) => parts.iter().map(|part| format!("kill-{part}")).collect(),
            Self::KillDatabase { .. } => one("kill-database"),
            Self::KillAll => one("kill-all"),
            Self::Full(_) => one("full"),
            Self::Failing { .. } => one("failing"),
            Self::Slow { .. } => one("slow"),
            Self::Restore(Memory::Journal) => one("restore-journal"),
            Self::Restore(Memory::Agents) => one("restore-agents"),
            Self::Restore(Memory::LiveAgents) => one("restore-live-agents"),
            Self::Clock(step) if *step < 0 => one("clock-back"),
            Self::Clock(_) => one("clock-forward"),
            Self::ServerClock { kill_agent: false } => one("clock-server"),
            Self::ServerClock { kill_agent: true } => one("clock-server-kill-agent"),
            Self::ClockAhead { whose: Whose::Server, .. } => one("clock-server-ahead"),
            Self::ClockAhead { whose: Whose::Machine, .. } => one("clock-machine-ahead"),
        }
    }
}

/// Among so many seeds each kind is drawn again and again.
const SEEDS_MAX: u64 = 10_000;

/// The seeds of a short run: the first ones that draw each of these kinds so many times, taken in turn.
pub(crate) fn seeds_of_each_kind(
    store: StoreKind,
    from: u64,
    kinds: &[&str],
    times: usize,
) -> Vec<u64> {
    let mut of_kind: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for seed in from..from + SEEDS_MAX {
        // Of one kind alone, so that none takes the place of another.
        if let [kind] = &Fault::draw(&mut Dice(seed), store).kinds()[..] {
            of_kind.entry(kind.clone()).or_default().push(seed);
        }
        let have = |kind: &&str| of_kind.get(*kind).is_some_and(|seeds| times <= seeds.len());
        if kinds.iter().all(have) {
            break;
        }
    }
    let turn = |turn: usize| kinds.iter().map(move |kind| (turn, *kind));
    (0..times).flat_map(turn).map(|(turn, kind)| of_kind[kind][turn]).collect()
}

/// What of system calls `faults.c` counts apart, in the order of its page.
pub(crate) const CALLS: [&str; 4] = ["write-failed", "sync-failed", "rename-failed", "late"];

/// The page by which `faults.c` is told what fails.
pub(crate) struct Faults {
    file: std::fs::File,
    pub(crate) page: PathBuf,
    pub(crate) library: PathBuf,
}

impl Faults {
    pub(crate) fn new(folder: &Path) -> Self {
        let (page, library) = (folder.join("faults"), folder.join("faults.so"));
        let source = root().join("crates/cli/tests/support/faults.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", text(&compiled.stderr));
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(&page).unwrap();
        file.set_len(4096).unwrap();
        Self { file, page, library }
    }

    pub(crate) fn set(&self, numbers: [u32; 7]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        // The rest before the word that makes it hold.
        self.file.write_all_at(&bytes[4..], 4).unwrap();
        self.file.write_all_at(&bytes[..4], 0).unwrap();
    }

    /// How many system calls of each of [`CALLS`] were met until now.
    pub(crate) fn suffered(&self) -> [u32; CALLS.len()] {
        let mut bytes = [0; 4 * CALLS.len()];
        self.file.read_exact_at(&mut bytes, 28).unwrap();
        let mut numbers = bytes.chunks_exact(4);
        CALLS.map(|_| u32::from_ne_bytes(numbers.next().unwrap().try_into().unwrap()))
    }

    pub(crate) fn lift(&self) {
        self.set([0; 7]);
    }
}

/// A file system in memory, small enough to be filled.
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// Makes one at this place, if this user may.
    pub(crate) fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir(at).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=96m,mode=700", "tmpfs"]).arg(at);
        command.output().is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }

    /// Leaves no room on it for a while. Whether it was ever full.
    pub(crate) fn fill_for(&self, lasts: Duration) -> bool {
        use std::io::Write as _;
        let path = self.0.join("filler");
        let mut filler = std::fs::File::create(&path).unwrap();
        let begin = Instant::now();
        let block = vec![0xa5; 1 << 20];
        let (mut size, mut full) = (block.len(), false);
        // What is freed meanwhile is taken, too.
        while begin.elapsed() < lasts {
            if filler.write_all(&block[..size]).is_err() {
                full = true;
                size = (size / 2).max(1);
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
        std::fs::remove_file(path).unwrap();
        full
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It ends with whoever still has a file on it.
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
