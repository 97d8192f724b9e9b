//! A test program that hangs must not take the whole run with it: it is ended, and the others still run.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Several times what the longest one takes on two slow cores.
const LONGEST: Duration = Duration::from_secs(20 * 60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Tells cargo to start each test program under this bound.
pub(crate) fn bound(tests: &mut Command) -> Result<()> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let own = own.to_str().context("the path of this program is not UTF-8")?;
    ensure!(!own.contains('\''), "the path of this program holds a quote: {own}");
    tests.args(["--config", &format!("target.'cfg(all())'.runner=['{own}','bounded']")]);
    Ok(())
}

/// Runs the program, in a process group of its own, and passes its failure on.
pub(crate) fn run(program: &[OsString]) -> Result<()> {
    let [name, arguments @ ..] = program else { bail!("a program to run is missing") };
    let mut child = Command::new(name)
        .args(arguments)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", name.display()))?;
    let Some(status) = within(LONGEST, &mut child)? else {
        bail!("{} was ended: it ran for more than {} s", name.display(), LONGEST.as_secs());
    };
    ensure!(status.success(), "{} ended with {status}", name.display());
    Ok(())
}

/// How it ended; `None` when it had to be ended, with every process of its group.
fn within(longest: Duration, child: &mut Child) -> Result<Option<ExitStatus>> {
    let started = Instant::now();
    while started.elapsed() < longest {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let group = format!("-{}", child.id());
    Command::new("kill").args(["-KILL", "--", &group]).status().context("cannot start kill")?;
    child.wait()?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).process_group(0).spawn().unwrap()
    }

    #[test]
    fn program_that_ends_is_reported_as_it_ended() {
        let status = within(Duration::from_secs(60), &mut sh("exit 3")).unwrap();
        assert_eq!(status.unwrap().code(), Some(3));
    }

    #[test]
    fn program_that_hangs_is_ended_with_what_it_started() {
        let started = Instant::now();
        // The inner one would hold the outer one's end back for a minute.
        let ended = within(Duration::from_millis(100), &mut sh("sleep 60 & wait")).unwrap();
        assert!(ended.is_none() && started.elapsed() < Duration::from_secs(50));
    }
}
