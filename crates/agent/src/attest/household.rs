//! In which namespaces a process lives.

use std::io;

use super::Household;
use super::proc::ProcEntry;

/// Of the process of this entry.
pub(super) fn of(entry: &ProcEntry) -> Household {
    let Ok(own) = ProcEntry::open(std::process::id()) else { return Household::Other(0) };
    told_by_numbers(&own, entry)
        .or_else(|_closed| told_by_texts(&own, entry))
        .unwrap_or(Household::Other(0))
}

fn told_by_numbers(own: &ProcEntry, entry: &ProcEntry) -> io::Result<Household> {
    // That of processes first: each container has one, while many share the machine's users.
    for kind in ["pid", "user"] {
        let (ours, theirs) = (own.namespace(kind)?, entry.namespace(kind)?);
        if ours != theirs {
            return Ok(Household::Other(theirs));
        }
    }
    Ok(Household::Ours)
}

/// What everybody may read: how many numbers the process has, one in each namespace down to its own, and how its users are ours.
fn told_by_texts(own: &ProcEntry, entry: &ProcEntry) -> io::Result<Household> {
    let depth = |entry: &ProcEntry| {
        let numbers = entry.text("status")?;
        let numbers = numbers.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let numbers = numbers.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok::<usize, io::Error>(numbers.split_ascii_whitespace().count())
    };
    let alike = depth(own)? == depth(entry)? && own.text("uid_map")? == entry.text("uid_map")?;
    Ok(if alike { Household::Ours } else { Household::Other(0) })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that lives until it is dropped.
    struct Lives(Child);

    impl Lives {
        fn start(program: &str, arguments: &[&str]) -> Self {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
            Self(command.spawn().unwrap())
        }

        /// Once it has said that it is there.
        fn entry(&mut self) -> Option<(u32, ProcEntry)> {
            use std::io::{BufRead as _, BufReader};
            let mut said = String::new();
            BufReader::new(self.0.stdout.as_mut()?).read_line(&mut said).ok()?;
            // It says which it is in its own namespace; here it is the last child.
            said.trim().parse::<u32>().ok()?;
            let mut pid = self.0.id();
            while let Ok(children) =
                std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
                && let Some(child) = children.split_ascii_whitespace().next()
            {
                pid = child.parse().unwrap();
            }
            Some((pid, ProcEntry::open(pid).ok()?))
        }
    }

    impl Drop for Lives {
        fn drop(&mut self) {
            // What it started ends with it: its input is over.
            drop(self.0.stdin.take());
            self.0.wait().unwrap();
        }
    }

    const SAYS: [&str; 3] = ["sh", "-c", "echo $$; read line"];

    #[test]
    fn a_child_lives_where_we_do_and_one_in_namespaces_of_its_own_does_not() {
        let mut here = Lives::start(SAYS[0], &SAYS[1..]);
        let (_, entry) = here.entry().unwrap();
        let own = ProcEntry::open(std::process::id()).unwrap();
        assert_eq!(of(&entry), Household::Ours);
        assert_eq!(told_by_texts(&own, &entry).unwrap(), Household::Ours);

        let mut seen = Vec::new();
        for namespaces in [&["--pid", "--fork"][..], &["--user", "--map-root-user"]] {
            // Whoever may not make the one of processes alone makes one of users with it.
            let without = [namespaces, &SAYS].concat();
            let with = [&["--user", "--map-root-user"], namespaces, &SAYS].concat();
            let found = [without, with].into_iter().find_map(|arguments| {
                let mut there = Lives::start("unshare", &arguments);
                let (_, entry) = there.entry()?;
                Some((of(&entry), told_by_texts(&own, &entry).unwrap()))
            });
            let Some((household, by_texts)) = found else {
                assert!(std::env::var_os("CI").is_none(), "no namespace can be made here");
                eprintln!("no namespace can be made here");
                return;
            };
            assert!(matches!(household, Household::Other(1..)), "{household:?}");
            assert_eq!(by_texts, Household::Other(0));
            seen.push(household);
        }
        assert_ne!(seen[0], seen[1], "one is told from another");
    }
}
