//! How many instructions the processor executes for what is done most, counted by Valgrind, beside the committed table: what
//! a change costs is seen where time would only be noise.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::shell::{cargo, output, root, step};
use crate::test::packages;

/// What is counted, and what it is.
const COUNTED: [(&str, &str); 6] = [
    ("issue", "from a CSR to a certificate: possession proven, drafted, reviewed, signed (P-256)"),
    ("verify", "a chain of leaf and issuer, nothing remembered"),
    ("decide", "one request among ten policies that bear on it, nothing remembered"),
    ("decide_remembered", "the same, decided before"),
    (
        "handshake",
        "a mutual TLS 1.3 handshake, both ends together, of a caller that was not seen before",
    ),
    ("handshake_remembered", "the same, of one that was"),
];
/// How often it is done in the two runs whose difference counts: keys and the seeds of hashes are random, so that one time is like another
/// only on average, and what takes little has to be done more often.
const COUNTS: [u64; 2] = [8, 264];
const COUNTS_OF_LITTLE: [u64; 2] = [1000, 5000];
/// By how much one of them may grow before the table has to say so, in hundredths: what keys that are random make of it is a quarter.
const GROWTH_ALLOWED: u64 = 2;
/// The page that keeps the table.
const PAGE: &str = "docs/instructions.md";
const BEGIN: &str = "<!-- counted -->\n";
const END: &str = "<!-- end -->";

#[derive(Args)]
pub(crate) struct Counting {
    /// Write what was counted into the table
    #[arg(long)]
    write: bool,
    /// Leave the machine's packages as they are
    #[arg(long)]
    no_install: bool,
    /// Count only this
    name: Option<String>,
}

/// Instructions for one time each.
type Table = BTreeMap<String, u64>;

/// Counts, and prints each figure beside that of the table.
///
/// # Errors
/// When Valgrind is not there, something that is counted fails, or takes more than the table says and it is not written anew.
pub(crate) fn run(counting: &Counting) -> Result<()> {
    let path = root().join(PAGE);
    let page = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let before = read(&page)?;
    if !counting.no_install {
        packages(&["valgrind"])?;
    }
    let mut build = cargo(&["build", "--release", "--package", "countersign-tls"]);
    step("what is counted", build.args(["--example", "instructions"]))?;
    let folder = root().join("target/instructions");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let mut after = before.clone();
    println!("{:<22} {:>14} {:>14} {:>8}", "instructions", "table", "now", "change");
    for (name, _) in COUNTED {
        if counting.name.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let now = one(name, &folder)?;
        let was = before.get(name).copied();
        println!("{name:<22} {:>14} {:>14} {:>8}", told(was), told(Some(now)), change(was, now));
        after.insert(name.to_owned(), now);
    }
    if counting.write {
        let (head, rest) = page.split_once(BEGIN).context("the page has no table")?;
        let (_, tail) = rest.split_once(END).context("the table does not end")?;
        let text = format!("{head}{BEGIN}{}{END}{tail}", table(&after));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("where they go: callgrind_annotate target/instructions/NAME");
    let grown = grown(&before, &after);
    ensure!(
        counting.write || grown.is_empty(),
        "{} took over {GROWTH_ALLOWED} % more than {PAGE} says: count with `--write`, and give the reason in the commit",
        grown.join(", ")
    );
    Ok(())
}

/// What takes more than the table allows, or stands in no table.
fn grown<'a>(before: &Table, after: &'a Table) -> Vec<&'a str> {
    let allowed = |name: &str| before.get(name).map_or(0, |was| was + was * GROWTH_ALLOWED / 100);
    let grown = after.iter().filter(|(name, now)| allowed(name) < **now);
    grown.map(|(name, _)| name.as_str()).collect()
}

/// What one time takes: the difference between many and few, without what is made before.
fn one(name: &str, folder: &Path) -> Result<u64> {
    let [few, many] = if name.starts_with("decide") { COUNTS_OF_LITTLE } else { COUNTS };
    let (less, more) = (collected(name, few, folder)?, collected(name, many, folder)?);
    Ok(more.saturating_sub(less) / (many - few))
}

fn collected(name: &str, count: u64, folder: &Path) -> Result<u64> {
    let file = folder.join(name);
    let mut valgrind = Command::new("valgrind");
    valgrind.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", file.display()));
    valgrind.arg(root().join("target/release/examples/instructions"));
    output(valgrind.arg(name).arg(count.to_string()))
        .context("Debian's `valgrind` has what counts")?;
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    total(&text).with_context(|| format!("{} has no total", file.display()))
}

/// The sum that Callgrind writes.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("totals: "))?;
    line.trim().parse().ok()
}

/// The figures of the page.
fn read(page: &str) -> Result<Table> {
    let told = page.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    let (rows, _) = told.with_context(|| format!("{PAGE} has no table"))?;
    let figure = |row: &str| {
        let mut cells = row.split('|').map(str::trim).skip(1);
        let name = cells.next()?.trim_matches('`').to_owned();
        let digits: String = cells.next()?.chars().filter(char::is_ascii_digit).collect();
        Some((name, digits.parse().ok()?))
    };
    let table: Table = rows.lines().filter_map(figure).collect();
    ensure!(
        table.keys().all(|name| COUNTED.iter().any(|(known, _)| known == name)),
        "{PAGE} has a row that nobody counts"
    );
    Ok(table)
}

fn table(figures: &Table) -> String {
    let row = |(name, what): &(&str, &str)| {
        let figure = figures.get(*name)?;
        Some(format!("| `{name}` | {} | {what} |\n", told(Some(*figure))))
    };
    let rows: String = COUNTED.iter().filter_map(row).collect();
    format!("| what | instructions | |\n| --- | ---: | --- |\n{rows}")
}

/// Digits in groups of three.
fn told(figure: Option<u64>) -> String {
    let Some(figure) = figure else { return "-".to_owned() };
    let digits = figure.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

fn change(before: Option<u64>, now: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let percent = |before: u64| (now as f64 / before as f64 - 1.0) * 100.0;
    before
        .filter(|before| 0 < *before)
        .map_or_else(String::new, |it| format!("{:+.1}%", percent(it)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let figures = Table::from([("issue".to_owned(), 1_234_567), ("verify".to_owned(), 89)]);
        let page = format!("before\n{BEGIN}{}{END}\nafter", table(&figures));
        assert!(page.contains("| `issue` | 1,234,567 | from a CSR"), "{page}");
        assert_eq!(read(&page).unwrap(), figures);
        assert!(read("nothing").is_err());
        let unknown = format!("{BEGIN}| `dance` | 7 | |\n{END}");
        assert!(read(&unknown).is_err());
    }

    #[test]
    fn the_committed_table_has_every_figure() {
        let page = std::fs::read_to_string(root().join(PAGE)).unwrap();
        let figures = read(&page).unwrap();
        for (name, _) in COUNTED {
            assert!(figures.contains_key(name), "{name} has not been counted");
        }
    }

    #[test]
    fn what_takes_more_than_the_table_allows_is_named() {
        let table = |figures: &[(&str, u64)]| -> Table {
            figures.iter().map(|(name, figure)| ((*name).to_owned(), *figure)).collect()
        };
        let before = table(&[("decide", 1000), ("issue", 1000), ("verify", 1000)]);
        let after = table(&[("decide", 1020), ("handshake", 1), ("issue", 1021), ("verify", 900)]);
        assert_eq!(grown(&before, &after), ["handshake", "issue"]);
        assert!(grown(&before, &before).is_empty());
    }

    #[test]
    fn a_change_is_told_in_percent_and_a_total_is_found() {
        assert_eq!((change(Some(200), 203), change(None, 7)), ("+1.5%".to_owned(), String::new()));
        assert_eq!(total("# callgrind format\nevents: Ir\n\ntotals: 4711\n"), Some(4711));
    }
}
