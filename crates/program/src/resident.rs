//! Memory that only the start needed.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Gives back the program's own code that only its start used: parsing of the command, policies' tables, first keys.
///
/// The kernel maps code generously around each page that is touched, so that a program which has come up has half of
/// its file resident. What is still needed comes back from the page cache, a page at a time, without a read. Done once,
/// when a program is ready; it is a hint, so a failure changes nothing but the figure in `status`.
pub(crate) fn give_back_code() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let own = std::env::current_exe().ok();
    let Some(own) = own.as_deref().and_then(std::path::Path::to_str) else { return };
    for (from, length) in maps.lines().filter_map(|line| code(line, own)) {
        let Some(from) = NonNull::new(std::ptr::with_exposed_provenance_mut::<c_void>(from.get()))
        else {
            continue;
        };
        #[expect(unsafe_code, reason = "the kernel offers no other way to give code pages back")]
        // SAFETY: the range is a private, read-only, executable mapping of our own file (`code` checks that), of which no page
        // was ever written; a page that is dropped reads the same when it is mapped again.
        let advised = unsafe { madvise(from, length.get(), MmapAdvise::MADV_DONTNEED) };
        if let Err(error) = advised {
            tracing::debug!("the kernel keeps code resident: {error}");
        }
    }
}

/// Where a line of `/proc/self/maps` says that code of the file is mapped, never written: start and length.
fn code(line: &str, file: &str) -> Option<(NonZeroUsize, NonZeroUsize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, rights) = (words.next()?, words.next()?);
    let mapped = words.nth(3)?;
    if rights != "r-xp" || mapped != file {
        return None;
    }
    let (from, to) = range.split_once('-')?;
    let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
    Some((NonZeroUsize::new(from)?, NonZeroUsize::new(to.checked_sub(from)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_own_code_is_given_back() {
        let of =
            |line| code(line, "/bin/countersign").map(|(from, length)| (from.get(), length.get()));
        let line = "55e0-5ff0 r-xp 00001000 fe:00 99 /bin/countersign";
        assert_eq!(of(line), Some((0x55e0, 0xa10)));
        for other in [
            "55e0-5ff0 r--p 00001000 fe:00 99 /bin/countersign",
            "55e0-5ff0 rwxp 00001000 fe:00 99 /bin/countersign",
            "55e0-5ff0 r-xp 00001000 fe:00 99 /lib/libc.so.6",
            "55e0-5ff0 r-xp 00000000 00:00 0 [vdso]",
            "5ff0-55e0 r-xp 00001000 fe:00 99 /bin/countersign",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn code_that_was_given_back_runs_again() {
        give_back_code();
        assert_eq!("7".parse::<u8>(), Ok(7));
    }
}
