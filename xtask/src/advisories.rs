//! Known advisories, held against the lock files without a download: `xtask/advisories.toml` says which, and of what day.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::lock::Lock;
use crate::shell::root;

const LIST: &str = "xtask/advisories.toml";
/// After so many days a list is too old to be relied on.
const DAYS_MAX: i64 = 90;

/// The list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advisories {
    as_of: String,
    advisory: Vec<Advisory>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advisory {
    id: String,
    #[serde(rename = "crate")]
    name: String,
    affected: Vec<String>,
    what: String,
}

/// A version, in the order of Semantic Versioning 2.0 as far as crates of the registry use it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    numbers: [u64; 3],
    is_release: bool, // Before `before`: a release comes after all that lead to it.
    before: Vec<Part>,
}

/// A part of what stands before a release; numbers come before words.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Word(String),
}

impl Version {
    fn parse(text: &str) -> Result<Self> {
        let bad = || format!("`{text}` is no version");
        let (text, _build) = text.split_once('+').unwrap_or((text, ""));
        let (numbers, before) = text.split_once('-').unwrap_or((text, ""));
        let parts = numbers.split('.').map(str::parse).collect::<Result<Vec<u64>, _>>();
        let numbers = parts.with_context(bad)?.try_into().ok().with_context(bad)?;
        let part = |part: &str| match part.parse() {
            Ok(number) => Part::Number(number),
            Err(_word) => Part::Word(part.to_owned()),
        };
        let is_release = before.is_empty();
        let before = before.split('.').filter(|part| !part.is_empty()).map(part).collect();
        Ok(Self { numbers, is_release, before })
    }

    /// Whether all bounds of a range hold, such as `>=1.2.0, <1.3.1`.
    fn is_in(&self, range: &str) -> Result<bool> {
        for bound in range.split(", ") {
            let holds = if let Some(from) = bound.strip_prefix(">=") {
                Self::parse(from)? <= *self
            } else if let Some(to) = bound.strip_prefix('<') {
                *self < Self::parse(to)?
            } else if let Some(exactly) = bound.strip_prefix('=') {
                *self == Self::parse(exactly)?
            } else {
                bail!("{LIST}: `{bound}` is no bound: write `>=`, `<` or `=` before a version");
            };
            if !holds {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Advisory {
    fn concerns(&self, version: &str) -> Result<bool> {
        let version = Version::parse(version)?;
        for range in &self.affected {
            if version.is_in(range)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Advisories {
    fn read() -> Result<Self> {
        let text = std::fs::read_to_string(root().join(LIST)).context(LIST)?;
        toml::from_str(&text).context(LIST)
    }

    /// What of it is in these files, a line each.
    fn found(&self, locks: &[Lock]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for lock in locks {
            for one in &lock.packages {
                for advisory in self.advisory.iter().filter(|advisory| advisory.name == one.name) {
                    if advisory.concerns(&one.version)? {
                        let Advisory { id, what, .. } = advisory;
                        let (name, version) = (&one.name, &one.version);
                        found.push(format!("{}: `{name}` {version}: {what} ({id})", lock.file));
                    }
                }
            }
        }
        Ok(found)
    }

    /// A sentence when it is too old on this day.
    fn age(&self, today: i64) -> Result<Option<String>> {
        let days = today - day(&self.as_of)?;
        let too_old = || {
            format!(
                "the list of known advisories is {days} days old, as of {}; to refresh it, run `cargo deny check advisories`, or read \
                 https://github.com/rustsec/advisory-db for what is newer about the crates of the lock files, write that into \
                 {LIST}, and set `as_of`",
                self.as_of
            )
        };
        Ok((DAYS_MAX < days).then(too_old))
    }
}

/// Days since 1970 of a date such as `2026-09-16`, in the Gregorian calendar.
fn day(date: &str) -> Result<i64> {
    let parts = date.split('-').map(str::parse).collect::<Result<Vec<i64>, _>>();
    let parts = parts.with_context(|| format!("`{date}` is no date"))?;
    let [year, month, day] = parts[..] else { bail!("`{date}` is no date") };
    ensure!((1..=12).contains(&month) && (1..=31).contains(&day), "`{date}` is no date");
    // Years that begin in March have the day that some of them lack at their end.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let of_years = 365 * year + year / 4 - year / 100 + year / 400;
    Ok(of_years + (153 * month + 2) / 5 + day - 1 - 719_468)
}

fn today() -> Result<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock")?;
    Ok(i64::try_from(since.as_secs() / 86_400)?)
}

/// Holds the lock files against the list.
///
/// # Errors
/// With all that are affected.
pub(crate) fn check(locks: &[Lock]) -> Result<()> {
    println!("── known advisories");
    let list = Advisories::read()?;
    let found = list.found(locks)?;
    ensure!(found.is_empty(), "known advisories:\n  {}", found.join("\n  "));
    if let Some(too_old) = list.age(today()?)? {
        eprintln!("xtask: warning: {too_old}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_lock_file_holds_what_is_known_to_be_affected() {
        check(&crate::lock::all().unwrap()).unwrap();
    }

    #[test]
    fn a_lock_file_with_an_affected_version_is_found_and_one_with_its_successor_is_not() {
        let list = Advisories::read().unwrap();
        let lock = |name: &str, version: &str| {
            let text = format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n");
            list.found(&[Lock::parse("some.lock", &text).unwrap()]).unwrap()
        };
        let found = lock("h2", "0.4.15");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("some.lock: `h2` 0.4.15: "), "{found:?}");
        assert!(found[0].ends_with("(RUSTSEC-2026-0258)"), "{found:?}");
        assert_eq!(lock("h2", "0.4.16"), [""; 0]);
        assert_eq!(lock("rustls-webpki", "0.103.9").len(), 4);
        assert_eq!(lock("rustls-webpki", "0.104.0-alpha.6").len(), 1);
        assert_eq!(lock("rustls-webpki", "0.104.0-alpha.7"), [""; 0]);
        assert_eq!(lock("not-in-the-list", "0.1.0"), [""; 0]);
    }

    #[test]
    fn every_entry_has_a_range_that_can_hold_and_says_what_it_is() {
        let list = Advisories::read().unwrap();
        assert!(40 <= list.advisory.len());
        let mut ids: Vec<&str> = list.advisory.iter().map(|advisory| &*advisory.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), list.advisory.len(), "an entry is there twice");
        for advisory in &list.advisory {
            let Advisory { id, affected, what, .. } = advisory;
            assert!(id.starts_with("RUSTSEC-20") && 20 <= what.len(), "{id}");
            assert!(!affected.is_empty(), "{id}");
            // Its lowest version is in it, or the lowest there can be.
            for range in affected {
                let first = range.split(", ").next().unwrap();
                let first = first.trim_start_matches(['>', '=']);
                let lowest = if first.starts_with('<') { "0.0.0" } else { first };
                assert!(advisory.concerns(lowest).unwrap(), "{id} {range}");
            }
            assert!(!advisory.concerns("999.0.0").unwrap(), "{id} has an end");
        }
    }

    #[test]
    fn versions_are_in_order() {
        let ordered = [
            "0.0.9",
            "0.4.10",
            "0.104.0-alpha.1",
            "0.104.0-alpha.6",
            "0.104.0-alpha.10",
            "0.104.0-rc.1",
            "0.104.0",
            "1.0.0-1",
            "1.0.0-a",
            "1.0.0+build",
            "1.38.2",
            "1.38.10",
        ];
        for pair in ordered.windows(2) {
            let (less, more) = (Version::parse(pair[0]).unwrap(), Version::parse(pair[1]).unwrap());
            assert!(less < more, "{pair:?}");
        }
        for bad in ["", "1", "1.2", "1.2.x", "1.2.3.4"] {
            assert!(Version::parse(bad).is_err(), "{bad}");
        }
        assert!(Version::parse("1.0.0").unwrap().is_in("~1").is_err());
    }

    #[test]
    fn an_old_list_says_how_to_refresh_it() {
        let list = Advisories { as_of: "2024-02-29".to_owned(), advisory: Vec::new() };
        let of = day("2024-02-29").unwrap();
        assert_eq!(of, 19_782);
        assert_eq!(day("1970-01-01").unwrap(), 0);
        assert_eq!(list.age(of + 90).unwrap(), None);
        let old = list.age(of + 91).unwrap().unwrap();
        assert!(
            old.contains("91 days old") && old.contains("cargo deny check advisories"),
            "{old}"
        );
        assert!(day("2024-13-01").is_err() && day("today").is_err());
    }
}
