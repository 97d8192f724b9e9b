//! Enough open files for a crowd: each stream takes one here and one in the server.

use anyhow::{Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const A_STREAM: u64 = 1;
/// For all that is no stream.
const OTHERS: u64 = 512;

/// Raises the limit of this process, which the server inherits.
pub(crate) fn allow(streams: usize) -> Result<()> {
    let needed = streams as u64 * A_STREAM + OTHERS;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if needed <= soft {
        return Ok(());
    }
    let raised = setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed));
    let raised = raised.or_else(|_denied| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    raised?;
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(
        needed <= soft,
        "{streams} streams need {needed} open files a process, and the system allows {soft}: raise `ulimit -Hn`, or take \
         fewer with `--agents {}`",
        soft.saturating_sub(OTHERS) / A_STREAM
    );
    Ok(())
}
