//! The log on standard error. A full disk behind it, or a reader that went away, costs lines and never the program.

use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

use countersign_identity::{Clock as _, SystemClock};
use tracing_subscriber::fmt::MakeWriter;

use crate::output;

/// How a program logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogForm {
    Human,
    Json,
}

impl std::str::FromStr for LogForm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            other => Err(format!("`{}` is neither `human` nor `json`", output::printable(other))),
        }
    }
}

impl LogForm {
    /// What stands in the log in the place of lines that are not in it.
    fn gap(self, lost: u64) -> String {
        let now = SystemClock::new().now();
        let message = "lines of this log could not be written";
        match self {
            Self::Human => format!("{now}  WARN {message} lines={lost}\n"),
            Self::Json => {
                let line = serde_json::json!({
                    "timestamp": now.to_string(), "level": "WARN", "message": message, "lines": lost,
                });
                format!("{line}\n")
            }
        }
    }
}

/// Writes the lines of a log. Those that cannot be written are counted, and their number stands in the log as soon as it can be.
pub(crate) struct Log<W> {
    form: LogForm,
    out: Mutex<Out<W>>,
}

struct Out<W> {
    to: W,
    lost: u64,
    /// Whether the last line was written in part.
    torn: bool,
}

impl<W: Write> Log<W> {
    pub(crate) fn new(form: LogForm, to: W) -> Self {
        Self { form, out: Mutex::new(Out { to, lost: 0, torn: false }) }
    }

    fn line(&self, line: &[u8]) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if 0 < out.lost {
            let end = if out.torn { "\n" } else { "" };
            let gap = format!("{end}{}", self.form.gap(out.lost));
            if out.whole(gap.as_bytes()) {
                out.lost = 0;
            }
        }
        if 0 < out.lost || !out.whole(line) {
            out.lost += 1;
        }
    }
}

impl<W: Write> Out<W> {
    /// Whether all of it could be written.
    fn whole(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match self.to.write(bytes) {
                Ok(0) => return false,
                Ok(count) => {
                    bytes = bytes.get(count..).unwrap_or_default();
                    self.torn = !bytes.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_full) => return false,
            }
        }
        true
    }
}

impl<W: Write> Write for &Log<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a, W: Write + 'a> MakeWriter<'a> for Log<W> {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    #[derive(Default)]
    struct Disk {
        room: usize,
        written: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.room -= count;
            self.written.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn with_room(log: &Log<Disk>, room: usize) {
        log.out.lock().unwrap().to.room = room;
    }

    fn written(log: &Log<Disk>) -> String {
        String::from_utf8(log.out.lock().unwrap().to.written.clone()).unwrap()
    }

    #[test]
    fn lines_that_a_full_disk_took_are_counted_where_they_are_missing() {
        let log = Log::new(LogForm::Human, Disk::default());
        with_room(&log, 9);
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            assert_eq!((&log).write(line.as_bytes()).unwrap(), line.len());
        }
        assert_eq!(written(&log), "one\ntwo\nt");
        with_room(&log, 1000);
        (&log).write_all(b"five\nsix\n").unwrap();
        (&log).write_all(b"seven\n").unwrap();
        let text = written(&log);
        let lines: Vec<_> = text.lines().collect();
        let [.., torn, gap, five, six, seven] = lines.as_slice() else { panic!("{text}") };
        assert_eq!((*torn, *five, *six, *seven), ("t", "five", "six", "seven"));
        assert!(gap.ends_with("WARN lines of this log could not be written lines=2"), "{gap}");
    }

    #[test]
    fn every_line_of_a_log_for_programs_is_an_object_also_the_one_about_others() {
        let log = Log::new(LogForm::Json, Disk::default());
        (&log).write_all(b"{\"lost\":1}\n").unwrap();
        with_room(&log, 1000);
        (&log).write_all(b"{\"message\":\"again\"}\n").unwrap();
        let lines = written(&log);
        let lines: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["level"], &lines[0]["lines"]), (&"WARN".into(), &1.into()));
        assert_eq!(lines[1]["message"], "again");
    }
}
