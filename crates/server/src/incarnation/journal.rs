//! A second place for rules: each is appended and durable there before an operator hears that it was made.
//!
//! One line a rule, signed like those that agents keep, so that whoever can write to the place can invent none.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use countersign_api::v1;
use countersign_identity::{Incarnation, Name, Revision, Timestamp};
use countersign_store::Kind;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::hand_back::Handed;
use super::log_key::LogKey;
use crate::config::StartError;
use crate::directory::write_whole;
use crate::refusal::Refused;
use crate::state::{State, StateFeed};

/// How soon a failed write is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a write may take before it is told of.
const SLOW: Duration = Duration::from_secs(5);
/// How long an operator's word waits for the journal. What it says is in force meanwhile.
const WRITTEN_TIMEOUT: Duration = Duration::from_secs(2);
const SUSPENSION: &str = Kind::Suspension.as_str();
/// The longest line that may be a rule. A journal may have any number of them: each is read.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// One rule on its line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    kind: String,
    name: String,
    value: String,
    signature: String,
}

/// Kind, name and value of a rule.
type RuleKey = (String, String, Bytes);

/// What is in a journal, and what of it the state said last.
#[derive(Clone)]
struct Written {
    lines: BTreeMap<RuleKey, v1::SignedRecord>,
    in_state: HashSet<RuleKey>,
    /// Of which incarnation that state was.
    of: Incarnation,
}

/// How the file ends.
#[derive(Clone, Copy)]
enum End {
    /// With a whole line.
    Whole,
    /// As a write that failed has left it.
    Unknown,
}

/// The rules of one state, signed.
struct Rules {
    of: Incarnation,
    signed: Vec<v1::SignedRecord>,
}

/// How far a journal has come.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// Every rule up to this revision is in it.
    reached: Option<Revision>,
    /// Why the last write failed. `None` once one was done.
    trouble: Option<String>,
    /// Since when the present write goes on.
    writing: Option<Instant>,
}

/// The journal of one server.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    progress: watch::Sender<Progress>,
}

impl Journal {
    /// The journal of this server in a folder that exists.
    pub(crate) fn new(folder: &Path, server: &Name) -> Self {
        let path = folder.join(format!("rules-{server}.jsonl"));
        Self { path, progress: watch::Sender::default() }
    }

    /// Waits a little until every rule up to a revision is in it; says why not when they are not.
    pub(crate) async fn lacks(&self, revision: Revision) -> Option<String> {
        let mut progress = self.progress.subscribe();
        let there = progress.wait_for(|at| at.reached.is_some_and(|at| revision <= at));
        if let Ok(Ok(_there)) = tokio::time::timeout(WRITTEN_TIMEOUT, there).await {
            return None;
        }
        let slow = || format!("`{}` took no write in {WRITTEN_TIMEOUT:?}", self.path.display());
        Some(self.progress.borrow().trouble.clone().unwrap_or_else(slow))
    }

    /// Why it does not hold every rule that is in force, when it does not.
    pub(crate) fn trouble(&self) -> Option<String> {
        let Progress { trouble, writing, .. } = &*self.progress.borrow();
        let slow = writing.is_some_and(|since| SLOW < since.elapsed());
        let slow = slow.then(|| format!("`{}` takes no write", self.path.display()));
        trouble.clone().or(slow)
    }

    /// What an operator should know of it.
    pub(crate) fn warning(&self) -> Option<String> {
        let why = self.trouble()?;
        Some(format!(
            "the journal does not hold every rule that is in force, so a restored backup may lack some: {why}"
        ))
    }

    /// Writes every rule of each state until stopped. What an earlier life wrote and the state does not know stays in it, as
    /// long as it could matter at the time as it has certainly come: the state may have lost it.
    pub(crate) async fn run(
        self: Arc<Self>,
        key: Arc<LogKey>,
        feed: StateFeed,
        steady: Timestamp,
        stop: CancellationToken,
    ) {
        let mut states = feed.watch();
        let mut written: Option<Written> = None;
        let mut end = End::Unknown;
        loop {
            let state = Arc::clone(&states.borrow_and_update());
            let signed = key.sign(&rules(&state));
            let rules = Rules { of: state.revision.incarnation, signed };
            let (journal, key, before) = (Arc::clone(&self), Arc::clone(&key), written.clone());
            self.progress.send_modify(|progress| progress.writing = Some(Instant::now()));
            let writing = tokio::task::spawn_blocking(move || match before {
                None => journal.begin(&key, rules, steady),
                Some(before) => journal.go_on(before, rules, end),
            });
            let done = writing.await.map_err(|broken| broken.to_string());
            match done.and_then(|done| done.map_err(|error| error.to_string())) {
                Ok(done) => {
                    written = Some(done);
                    end = End::Whole;
                    self.note(Ok(state.revision));
                }
                Err(why) => {
                    end = End::Unknown;
                    self.note(Err(why));
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = states.changed() => {}
                () = tokio::time::sleep(AGAIN), if matches!(end, End::Unknown) => {}
            }
        }
    }

    /// Takes down how a write ended, and says what is new of it.
    fn note(&self, outcome: Result<Revision, String>) {
        let before = self.progress.borrow().trouble.clone();
        match (&before, &outcome) {
            (Some(before), Err(why)) if before == why => {}
            (_, Err(why)) => tracing::error!(why, "the journal of rules is not written"),
            (Some(_), Ok(revision)) => {
                tracing::info!(%revision, "the journal holds every rule again");
            }
            (None, Ok(_)) => {}
        }
        self.progress.send_modify(|progress| {
            progress.writing = None;
            match outcome {
                Ok(revision) => (progress.reached, progress.trouble) = (Some(revision), None),
                Err(why) => progress.trouble = Some(why),
            }
        });
    }

    /// Writes it anew: what is in force, and what is in it already and could still matter.
    fn begin(
        &self,
        log_key: &LogKey,
        rules: Rules,
        steady: Timestamp,
    ) -> Result<Written, StartError> {
        let mut kept = Vec::new();
        if self.path.exists() {
            read_file(&self.path, log_key, &mut kept)?;
        }
        kept.retain(|record| Handed::read(record).is_ok_and(|handed| handed.could_matter(steady)));
        let Rules { of, signed } = rules;
        let in_state = signed.iter().map(key).collect();
        let lines = kept.into_iter().chain(signed).map(|rule| (key(&rule), rule)).collect();
        self.write_anew(Written { lines, in_state, of })
    }

    fn write_anew(&self, written: Written) -> Result<Written, StartError> {
        let text: Vec<u8> = written.lines.values().flat_map(line).collect();
        write_whole(&self.path, &text)?;
        Ok(written)
    }

    /// Appends what is new; writes it anew without the suspensions that were lifted. What is not there any more after another
    /// replica began a new incarnation was not lifted, but lost with the tail: that is what the journal is for.
    fn go_on(&self, before: Written, rules: Rules, end: End) -> Result<Written, StartError> {
        let Written { mut lines, in_state: was, of: before } = before;
        let Rules { of, signed } = rules;
        let in_state: HashSet<RuleKey> = signed.iter().map(key).collect();
        let lifted = was.difference(&in_state).filter(|(kind, _, _)| kind == SUSPENSION);
        let lifted: Vec<RuleKey> = lifted.filter(|_| before == of).cloned().collect();
        let new: Vec<_> =
            signed.into_iter().filter(|rule| !lines.contains_key(&key(rule))).collect();
        let text: Vec<u8> = new.iter().flat_map(line).collect();
        lines.extend(new.into_iter().map(|rule| (key(&rule), rule)));
        // A line after half of one would be lost with it.
        if matches!(end, End::Unknown) || !lifted.is_empty() {
            lines.retain(|key, _| !lifted.contains(key));
            return self.write_anew(Written { lines, in_state, of });
        }
        if !text.is_empty() {
            let failed =
                |source| StartError::File { action: "write", path: self.path.clone(), source };
            let mut options = OpenOptions::new();
            let mut file = options.append(true).mode(0o600).open(&self.path).map_err(failed)?;
            file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        Ok(Written { lines, in_state, of })
    }
}

fn key(rule: &v1::SignedRecord) -> RuleKey {
    (rule.kind.clone(), rule.name.clone(), rule.value.clone())
}

/// The records of a state that take rights away.
fn rules(state: &State) -> Vec<v1::Record> {
    let is_rule = |kind| matches!(kind, Kind::Revocation | Kind::Suspension);
    let rules = state.records.iter().filter(|(key, _)| is_rule(key.kind));
    rules.map(|(_, entry)| entry.wire.clone()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn line(record: &v1::SignedRecord) -> Vec<u8> {
    let line = Line {
        kind: record.kind.clone(),
        name: record.name.clone(),
        value: String::from_utf8_lossy(&record.value).into_owned(),
        signature: hex(&record.signature),
    };
    let mut text = serde_json::to_vec(&line).expect("texts always have a JSON form");
    text.push(b'\n');
    text
}

/// Goes on only with a folder in which a server has kept a journal, should it be one without any rule: an empty folder is most
/// likely not the one that was meant, or the place that it is on is not there.
///
/// # Errors
/// When there is no such folder, or nothing in it that a server would have written.
pub(crate) fn check_kept(folder: &Path) -> Result<(), StartError> {
    let none = |why| StartError::NoJournal { path: folder.to_owned(), why };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(none("is not there"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(none("is not a folder"));
        }
        Err(source) => {
            return Err(StartError::File { action: "read", path: folder.to_owned(), source });
        }
    };
    for entry in entries {
        let failed = |source| StartError::File { action: "read", path: folder.to_owned(), source };
        if is_journal(&entry.map_err(failed)?.path()) {
            return Ok(());
        }
    }
    Err(none("holds no journal, which is a file `rules-SERVER.jsonl`"))
}

fn is_journal(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("rules-") && name.ends_with(".jsonl")
}

/// Reads the journals of a folder. Says, too, how many lines were not rules of this trust domain: a torn last line is
/// one, and so is a forged one.
///
/// # Errors
/// When the folder or a journal cannot be read.
fn read_journals(
    folder: &Path,
    key: &LogKey,
) -> Result<(Vec<v1::SignedRecord>, usize), StartError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StartError::File { action: "read", path, source }
    };
    let (mut rules, mut refused) = (Vec::new(), 0);
    for entry in std::fs::read_dir(folder).map_err(failed(folder))? {
        let path = entry.map_err(failed(folder))?.path();
        if !is_journal(&path) {
            continue;
        }
        refused += read_file(&path, key, &mut rules)?;
    }
    Ok((rules, refused))
}

/// Reads the rules of a folder's journals, as those that were made here once; and how many lines are none.
///
/// # Errors
/// As [`read_journals`], and when one of them is of a later version.
pub(crate) fn read_rules(folder: &Path, key: &LogKey) -> Result<(Vec<Handed>, usize), StartError> {
    let (records, refused) = read_journals(folder, key)?;
    let rules: Result<Vec<Handed>, Refused> = records.iter().map(Handed::read).collect();
    Ok((rules?, refused))
}

/// Reads the rules of one journal, to its end. Says how many lines are none.
fn read_file(
    path: &Path,
    key: &LogKey,
    rules: &mut Vec<v1::SignedRecord>,
) -> Result<usize, StartError> {
    let failed = |source| StartError::File { action: "read", path: path.to_owned(), source };
    let text = BufReader::new(File::open(path).map_err(failed)?);
    read_lines(text, key, rules).map_err(failed)
}

/// Reads the rules of a text of lines. Says how many lines are none.
///
/// # Errors
/// When the text cannot be read.
pub(crate) fn read_lines(
    mut text: impl BufRead,
    key: &LogKey,
    rules: &mut Vec<v1::SignedRecord>,
) -> std::io::Result<usize> {
    let mut line = Vec::new();
    let mut refused = 0;
    loop {
        line.clear();
        if text.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(refused);
        }
        if !line.ends_with(b"\n") {
            // Too long for a rule, or the last one, which is torn or not.
            text.skip_until(b'\n')?;
        }
        match line.trim_ascii_end() {
            b"" => {}
            line => match read_line(line).filter(|record| key.made(record)) {
                Some(record) => rules.push(record),
                None => refused += 1,
            },
        }
    }
}

fn read_line(line: &[u8]) -> Option<v1::SignedRecord> {
    let Line { kind, name, value, signature } = serde_json::from_slice(line).ok()?;
    let digits = signature.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = digits.map(byte).collect::<Option<_>>()?;
    // A number may also be spelt with a sign or in capitals: a rule has one line.
    (hex(&bytes) == signature).then(|| v1::SignedRecord {
        kind,
        name,
        value: value.into_bytes().into(),
        signature: bytes.into(),
    })
}

#[cfg(test)]
mod tests {
    use countersign_pki::{KeyKind, PrivateKey};

    use super::*;

    fn suspension(name: &str) -> v1::Record {
        let at = Timestamp::from_secs(1_795_262_400);
        let id = format!("spiffe://shop.example/{name}").parse().unwrap();
        let target = countersign_identity::Suspended::Identity(id);
        let reason = countersign_identity::Reason::ProcessCompromise;
        let suspension = countersign_identity::Suspension { target, reason, at };
        let value = serde_json::to_vec(&suspension).unwrap().into();
        v1::Record { kind: SUSPENSION.to_owned(), name: name.to_owned(), value }
    }

    #[test]
    fn a_suspension_that_a_new_incarnation_lost_stays_and_one_that_was_lifted_goes() {
        let folder = tempfile::tempdir().unwrap();
        let key = LogKey::of(PrivateKey::generate(KeyKind::Ed25519).unwrap());
        let journal = Journal::new(folder.path(), &"one".parse().unwrap());
        let rules = |of, names: &[&str]| {
            let records: Vec<_> = names.iter().map(|name| suspension(name)).collect();
            Rules { of, signed: key.sign(&records) }
        };
        let kept = || {
            let (mut rules, refused) = read_journals(folder.path(), &key).unwrap();
            rules.sort_by(|one, next| one.name.cmp(&next.name));
            assert_eq!(refused, 0);
            rules.into_iter().map(|rule| rule.name).collect::<Vec<_>>()
        };
        let now = Timestamp::from_secs(1_795_262_500);
        let written = journal.begin(&key, rules(1, &["a", "b", "c"]), now).unwrap();
        let written = journal.go_on(written, rules(1, &["b", "c"]), End::Whole).unwrap();
        assert_eq!(kept(), ["b", "c"], "a was lifted");
        // Another replica began anew from a state that never had c.
        let written = journal.go_on(written, rules(7, &["b"]), End::Whole).unwrap();
        assert_eq!(kept(), ["b", "c"]);
        let written = journal.go_on(written, rules(7, &["b", "d"]), End::Whole).unwrap();
        assert_eq!(kept(), ["b", "c", "d"]);
        journal.go_on(written, rules(7, &["d"]), End::Whole).unwrap();
        assert_eq!(kept(), ["c", "d"], "b was lifted in the new one");
    }
    #[test]
    fn what_follows_a_write_that_was_cut_off_is_not_lost_with_half_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let key = LogKey::of(PrivateKey::generate(KeyKind::Ed25519).unwrap());
        let journal = Journal::new(folder.path(), &"one".parse().unwrap());
        let rules = |names: &[&str]| {
            let records: Vec<_> = names.iter().map(|name| suspension(name)).collect();
            Rules { of: 1, signed: key.sign(&records) }
        };
        let now = Timestamp::from_secs(1_795_262_500);
        let written = journal.begin(&key, rules(&["a", "b"]), now).unwrap();
        let mut file = OpenOptions::new().append(true).open(&journal.path).unwrap();
        file.write_all(b"{\"kind\":\"Suspen").unwrap();
        let written = journal.go_on(written, rules(&["a", "b", "c"]), End::Unknown).unwrap();
        let kept = || {
            let (kept, refused) = read_journals(folder.path(), &key).unwrap();
            (kept.into_iter().map(|rule| rule.name).collect::<String>(), refused)
        };
        assert_eq!(kept(), ("abc".to_owned(), 0));
        // One that was lifted while nothing could be written is not kept.
        journal.go_on(written, rules(&["b", "c"]), End::Unknown).unwrap();
        assert_eq!(kept(), ("bc".to_owned(), 0));
    }

    #[test]
    fn a_signature_is_read_in_the_one_form_in_which_it_is_written() {
        let key = LogKey::of(PrivateKey::generate(KeyKind::Ed25519).unwrap());
        let rule = v1::SignedRecord { signature: vec![0x0a; 2].into(), ..Default::default() };
        let written = String::from_utf8(line(&rule)).unwrap();
        assert_eq!(read_line(written.as_bytes()), Some(rule));
        for other in ["+a0a", "0A0a", "0aa", "0a0", " a0a", "0a0a0", ""] {
            let spelt = written.replace("0a0a", other);
            let read = read_line(spelt.as_bytes());
            assert!(other.is_empty() || read.is_none(), "`{other}`: {read:?}");
            assert!(read.is_none_or(|record| !key.made(&record)));
        }
    }

    #[test]
    fn a_journal_is_read_to_its_end_however_long_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let key = LogKey::of(PrivateKey::generate(KeyKind::Ed25519).unwrap());
        let journal = Journal::new(folder.path(), &"one".parse().unwrap());
        let [a, b, c] = ["a", "b", "c"].map(|name| key.sign(&[suspension(name)]).remove(0));
        let mut file = File::create(&journal.path).unwrap();
        file.write_all(&line(&a)).unwrap();
        // A line that takes no room on the disk, and no memory.
        file.set_len(300 << 20).unwrap();
        drop(file);
        let mut file = OpenOptions::new().append(true).open(&journal.path).unwrap();
        file.write_all(&[b"\n", &line(&b)[..]].concat()).unwrap();
        // The last one without its end is read as well.
        file.write_all(line(&c).trim_ascii_end()).unwrap();
        let (rules, refused) = read_journals(folder.path(), &key).unwrap();
        let names: String = rules.into_iter().map(|rule| rule.name).collect();
        assert_eq!((&*names, refused), ("abc", 1));
        // So nothing of it is lost when it is written anew.
        let now = Timestamp::from_secs(1_795_262_500);
        journal.begin(&key, Rules { of: 1, signed: Vec::new() }, now).unwrap();
        let (rules, refused) = read_journals(folder.path(), &key).unwrap();
        assert_eq!((rules.len(), refused), (3, 0));
    }
}
