//! Processes on cores of their own, and what they use.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fleet::server::Usage;

/// How long a process may take to end when it is asked to.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// Who runs where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cores {
    pub(crate) caller: u32,
    pub(crate) proxy: u32,
    /// The program behind the proxy: with the caller, where there are but two.
    pub(crate) program: u32,
}

impl Cores {
    /// Of those that this process may use.
    pub(crate) fn take() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        Self::of(&cores_of(list.context("`Cpus_allowed_list`")?.trim())?)
    }

    fn of(allowed: &[u32]) -> Result<Self> {
        let [caller, proxy, ..] = *allowed else {
            bail!("two cores are needed: one for the proxy, and one for those who call it");
        };
        let program = allowed.get(2).copied().unwrap_or(caller);
        Ok(Self { caller, proxy, program })
    }
}

/// A list as the kernel writes it, such as `0-3,8`.
fn cores_of(list: &str) -> Result<Vec<u32>> {
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cores.extend(first.parse::<u32>()?..=last.parse()?);
    }
    Ok(cores)
}

/// A program that runs on this core alone, with all that it starts.
pub(crate) fn pinned(core: u32, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

/// Asks a process to end, and sees to it that it does.
///
/// It is asked first because what it has started would outlive it otherwise.
pub(crate) fn end(child: &mut Child) {
    // It may have ended by itself, which the figures have told by then.
    let _asked = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
    let begin = Instant::now();
    while begin.elapsed() < END_TIMEOUT {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(LOOK);
    }
    let _ended = child.kill();
    let _reaped = child.wait();
}

/// A process and all that it has started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family(pub(crate) u32);

impl Family {
    /// Time of a processor that they have used so far.
    pub(crate) fn processor(self) -> Result<Duration> {
        self.members()?.into_iter().map(|pid| Usage::of(pid).processor()).sum()
    }

    fn members(self) -> Result<Vec<u32>> {
        let mut parents = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // Whoever has ended meanwhile is none of ours: those stay.
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
            parents.push((pid, parent_of(&stat)?));
        }
        Ok(descendants(self.0, &parents))
    }
}

/// The parent, in `/proc/PID/stat`.
fn parent_of(stat: &str) -> Result<u32> {
    // The name of the program, in brackets, may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("fields")?;
    Ok(fields.split_whitespace().nth(1).context("a parent")?.parse()?)
}

/// This process and those that stem from it, of processes with their parents.
fn descendants(first: u32, parents: &[(u32, u32)]) -> Vec<u32> {
    let mut found = vec![first];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_read_as_the_kernel_lists_them() {
        assert_eq!(cores_of("0-1").unwrap(), [0, 1]);
        assert_eq!(cores_of("2,4-6").unwrap(), [2, 4, 5, 6]);
        assert!(cores_of("").is_err());
        let cores =
            |allowed: &[u32]| Cores::of(allowed).map(|it| [it.caller, it.proxy, it.program]);
        assert!(cores(&[3]).is_err(), "nobody shares the proxy's core");
        assert_eq!(cores(&[3, 5]).unwrap(), [3, 5, 3]);
        assert_eq!(cores(&[0, 1, 2, 3]).unwrap(), [0, 1, 2]);
    }

    #[test]
    fn a_family_is_the_process_its_children_and_theirs() {
        let parents = [(2, 1), (10, 2), (11, 10), (12, 11), (20, 2)];
        assert_eq!(descendants(10, &parents), [10, 11, 12]);
        assert_eq!(parent_of("11 (a) b) S 10 11 11 0").unwrap(), 10);
    }

    #[test]
    fn what_a_child_uses_is_counted() {
        let mut shell = Command::new("sh");
        let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo; read -r _";
        shell.args(["-c", &format!("sh -c '{script}'; exit")]);
        shell.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        let family = Family(child.id());
        assert_eq!(family.members().unwrap().len(), 2);
        let (all, alone) =
            (family.processor().unwrap(), Usage::of(child.id()).processor().unwrap());
        end(&mut child);
        assert!(alone < all, "{alone:?} of {all:?}");
    }
}
