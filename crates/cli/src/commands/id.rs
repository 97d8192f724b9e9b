//! `countersign id check`: which lines are SPIFFE IDs.

use std::io::{BufRead, ErrorKind};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use countersign_identity::SpiffeId;
use serde_json::json;

use crate::exit::{Exit, OutputClosed};
use crate::output::{Output, printable};

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// Read SPIFFE IDs from standard input, one a line; print `ok ID` or `bad REASON` for each
    ///
    /// Only a line feed ends a line, so a carriage return belongs to the text and is refused. Exit status 0 when
    /// all are SPIFFE IDs, 1 when one is not. With `--output json`, {"verdict":"ok","id":…} or {"verdict":"bad","why":…}.
    Check,
}

pub(crate) fn run(what: &What, output: Output) -> Result<Exit> {
    let What::Check = what;
    let out = std::io::BufWriter::new(std::io::stdout().lock());
    check(std::io::stdin().lock(), out, output)
}

/// A line is longer than any SPIFFE ID by then; the rest of it is passed over.
const LINE_BYTES_MAX: usize = 4096;

fn check(mut input: impl BufRead, mut out: impl std::io::Write, output: Output) -> Result<Exit> {
    let mut exit = Exit::Done;
    while let Some(line) = next_line(&mut input).context("cannot read standard input")? {
        let verdict = judge(&line);
        if verdict.is_err() {
            exit = Exit::No;
        }
        let text = match (output, verdict) {
            (Output::Human, Ok(id)) => format!("ok {id}"),
            (Output::Human, Err(why)) => format!("bad {}", printable(&why)),
            (Output::Json, Ok(id)) => json!({ "verdict": "ok", "id": id }).to_string(),
            (Output::Json, Err(why)) => json!({ "verdict": "bad", "why": why }).to_string(),
        };
        if let Err(error) = writeln!(out, "{text}") {
            return closed(error);
        }
    }
    match out.flush() {
        Ok(()) => Ok(exit),
        Err(error) => closed(error),
    }
}

fn closed(error: std::io::Error) -> Result<Exit> {
    match error.kind() {
        ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        _ => Err(anyhow::Error::new(error).context("cannot write to standard output")),
    }
}

fn judge(line: &Line) -> Result<SpiffeId, String> {
    match line {
        Line::Whole(bytes) => {
            let text =
                std::str::from_utf8(bytes).map_err(|_not_text| "it is not UTF-8".to_owned())?;
            text.parse().map_err(|error: countersign_identity::IdError| error.to_string())
        }
        Line::Long { bytes } => {
            Err(format!("SPIFFE ID of {bytes} bytes is over the limit of 2048"))
        }
    }
}

enum Line {
    Whole(Vec<u8>),
    Long { bytes: usize },
}

/// The next line without its line feed. What lies beyond the bound is counted, and not kept.
fn next_line(input: &mut impl BufRead) -> std::io::Result<Option<Line>> {
    let mut kept = Vec::new();
    let mut bytes = 0;
    loop {
        let buffer = match input.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            return Ok((0 < bytes).then(|| line(kept, bytes)));
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        let room = LINE_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&part[..part.len().min(room)]);
        bytes += part.len();
        let used = part.len() + usize::from(end.is_some());
        input.consume(used);
        if end.is_some() {
            return Ok(Some(line(kept, bytes)));
        }
    }
}

fn line(kept: Vec<u8>, bytes: usize) -> Line {
    if kept.len() < bytes { Line::Long { bytes } } else { Line::Whole(kept) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn answers(input: &[u8], expected: &str, exit: Exit) {
        let mut out = Vec::new();
        assert_eq!(check(input, &mut out, Output::Human).unwrap(), exit, "{input:?}");
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{input:?}");
    }

    #[test]
    fn each_line_gets_its_answer() {
        answers(b"", "", Exit::Done);
        answers(b"spiffe://a/b", "ok spiffe://a/b\n", Exit::Done);
        answers(b"spiffe://a/b\nSPIFFE://a/b\n", "ok spiffe://a/b\nok spiffe://a/b\n", Exit::Done);
        answers(b"\n", "bad `` does not begin with `spiffe://`\n", Exit::No);
    }

    #[test]
    fn whatever_a_line_holds_it_gets_one_line_of_answer() {
        for line in [
            &b"spiffe://a/b\r\n"[..],
            b"spiffe://a/\0\n",
            b"spiffe://a/\xff\n",
            b"spiffe://a/\x1b[2J\n",
            "spiffe://a/b\u{2028}c\n".as_bytes(),
            b" spiffe://a/b\n",
            b"spiffe://a/b \n",
            b"spiffe://a/b%2fc\n",
        ] {
            let mut out = Vec::new();
            assert_eq!(check(line, &mut out, Output::Human).unwrap(), Exit::No, "{line:?}");
            let text = String::from_utf8(out).unwrap();
            assert!(text.starts_with("bad ") && text.lines().count() == 1, "{line:?}: {text:?}");
            assert!(text.trim_end_matches('\n').chars().all(|c| !c.is_control()), "{text:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_counted_and_not_kept() {
        let mut input = vec![b'a'; 1_000_000];
        input.extend_from_slice(b"\nspiffe://a/b\n");
        let expected =
            "bad SPIFFE ID of 1000000 bytes is over the limit of 2048\nok spiffe://a/b\n";
        answers(&input, expected, Exit::No);
    }
}
