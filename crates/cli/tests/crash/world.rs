//! A trust domain of real processes, and how it is made to suffer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::faults::{Dice, Disk, Fault, Faults};
use crate::support::{self, Up, binary, folder, signal, text, until};

/// A trust domain, what was done to it, and what must therefore hold.
pub(crate) struct World {
    pub(crate) up: Option<Up>,
    pub(crate) manifests: PathBuf,
    pub(crate) faults: Faults,
    clock: PathBuf,
    ahead: i64,
    furthest: i64,
    /// A small disk of the trust domain's own, where this user may make one.
    disk: Option<Disk>,
    faketime: String,
    /// Rules that were acknowledged, and are not moot while this runs: target and revision.
    pub(crate) rules: BTreeMap<String, String>,
    /// Pairs of workloads of which both were put in one change.
    pub(crate) pairs: u64,
    backups: u64,
    pub(crate) incarnation: u64,
    pub(crate) revision: (u64, u64),
    pub(crate) restarts: u64,
    pub(crate) looked: Looked,
    // Last: it goes away after all that lies in it.
    pub(crate) folder: tempfile::TempDir,
}

/// What all checks together found that operators had put there, and what really befell it. Without any, they said nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Looked {
    pub(crate) killed: u64,
    pub(crate) rules: usize,
    pub(crate) pairs: u64,
}

impl World {
    pub(crate) fn begin() -> Self {
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
            disk: None,
            faketime,
            up: None,
            rules: BTreeMap::new(),
            pairs: 0,
            backups: 0,
            incarnation: 0,
            revision: (0, 0),
            restarts: 0,
            looked: Looked::default(),
        };
        world.set_clock(0);
        world.disk = Disk::mount(&world.data());
        std::fs::create_dir(world.journal()).unwrap();
        world.start();
        world.up().make_me("30s");
        until("the state is backed up", || world.back_up());
        world
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    pub(crate) fn up(&self) -> &Up {
        self.up.as_ref().unwrap()
    }

    fn set_clock(&mut self, step: i64) {
        self.ahead += step;
        self.furthest = self.furthest.max(self.ahead);
        let new = self.clock.with_extension("new");
        std::fs::write(&new, format!("{:+}\n", self.ahead)).unwrap();
        std::fs::rename(new, &self.clock).unwrap();
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let preload = format!("{}:{}", self.faketime, self.faults.library.to_str().unwrap());
        vec![
            ("LD_PRELOAD", preload),
            ("FAULTS_PAGE", self.faults.page.to_str().unwrap().to_owned()),
            ("FAULTS_PATH", self.data().to_str().unwrap().to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.clock.to_str().unwrap().to_owned()),
            ("COUNTERSIGN_JOURNAL", self.journal().to_str().unwrap().to_owned()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    fn start(&mut self) {
        let environment = self.environment();
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.up = Some(Up::start_in(&self.manifests, &self.data(), &[], &environment));
    }

    /// A command of an operator, by the clock of the trust domain.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(arguments).env("XDG_STATE_HOME", self.data().join("xdg"));
        command
            .envs(self.environment().into_iter().filter(|(name, _)| !name.starts_with("FAULTS")));
        command.output().unwrap()
    }

    pub(crate) fn back_up(&mut self) -> Option<()> {
        let server = self.data().join("server");
        let file = self.folder.path().join(format!("backup-{}", self.backups + 1));
        let made =
            self.run(&["backup", file.to_str().unwrap(), "--data", server.to_str().unwrap()]);
        if !made.status.success() {
            return None;
        }
        if 0 < self.backups {
            std::fs::remove_file(self.folder.path().join(format!("backup-{}", self.backups)))
                .unwrap();
        }
        self.backups += 1;
        Some(())
    }

    /// The processes of a kind that `up` has started.
    fn processes(&self, kind: &str) -> Vec<i32> {
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
        let sent = Command::new("kill").args(["-KILL", &pid.to_string()]).output().unwrap();
        self.looked.killed += u64::from(sent.status.success());
    }

    /// Does it, while operators go on working.
    pub(crate) fn suffer(&mut self, fault: &Fault, dice: &mut Dice) {
        let seed = u32::try_from(dice.below(1 << 31)).unwrap();
        let wait = |duration: Duration| std::thread::park_timeout(duration);
        match fault {
            Fault::Kill(parts) => {
                for part in parts {
                    wait(dice.millis(0, 300));
                    self.kill(part, dice);
                }
            }
            Fault::KillAll => {
                wait(dice.millis(0, 500));
                signal(self.up().pid(), "KILL");
            }
            Fault::Full(lasts) => match &self.disk {
                Some(disk) => disk.fill_for(*lasts),
                None => {
                    self.faults.set([1, 1000, 0, 0, 28, 0, seed]);
                    wait(*lasts);
                }
            },
            Fault::Failing { writes, syncs, renames, lasts } => {
                self.faults.set([1, *writes, *syncs, *renames, 5, 0, seed]);
                wait(*lasts);
            }
            Fault::Slow { each, lasts } => {
                let micros = u32::try_from(each.as_micros()).unwrap();
                self.faults.set([1, 0, 0, 0, 5, micros, seed]);
                wait(*lasts);
            }
            Fault::Restore { .. } => {}
            Fault::Clock(step) => {
                // No further back than what counts as skew: beyond that nothing is issued until the time has come.
                let too_far = self.ahead + step < self.furthest - 12;
                self.set_clock(if too_far { 20 } else { *step });
                wait(Duration::from_millis(300));
            }
        }
        self.faults.lift();
    }

    /// Puts yesterday's backup in the place of the state.
    pub(crate) fn restore(&mut self, journal: bool) {
        drop(self.up.take());
        // What a live agent or the journal holds must come back; of the rest nobody can tell.
        let held = std::fs::read_to_string(self.data().join("agent/revocations.json"));
        let held = held.unwrap_or_default();
        self.rules.retain(|target, _| journal || held.contains(&format!("{target}\\\"")));
        let server = self.data().join("server");
        let kek = self.folder.path().join("kek");
        if !kek.exists() {
            std::fs::copy(server.join("kek"), &kek).unwrap();
        }
        let lost = self.data().join("lost");
        std::fs::rename(&server, &lost).unwrap();
        let file = self.folder.path().join(format!("backup-{}", self.backups));
        let (file, server, kek) =
            (file.to_str().unwrap(), server.to_str().unwrap(), kek.to_str().unwrap());
        let fixed = ["restore", file, "--data", server, "--kek", kek];
        let more = ["--hold-off", "1s", "--output", "json"];
        let folder = self.journal();
        let from = ["--journal", folder.to_str().unwrap()];
        let from = if journal { &from[..] } else { &[] };
        let restored = self.run(&[&fixed[..], &more[..], from].concat());
        assert!(restored.status.success(), "{}", text(&restored.stderr));
        let told: Value = serde_json::from_slice(&restored.stdout).unwrap();
        assert!(told["lostFrom"].is_string() && told["lostUntil"].is_string(), "{told}");
        std::fs::remove_dir_all(lost).unwrap();
        self.start();
    }

    /// `up` may have been cut off, or have given up: whoever supervises it starts it again.
    pub(crate) fn revive(&mut self) {
        let pid = self.up().pid();
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let dead = state.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'));
        if dead {
            self.restarts += 1;
            drop(self.up.take());
            self.start();
        }
    }
}
