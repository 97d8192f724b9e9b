//! A witness: somebody else who remembers what the log was, so that it cannot become another one unseen.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use countersign_audit::{
    Checkpoint, Note, NoteKey, NoteKeyKind, Plan, Tile, Tiles, cosigned, verify_consistency,
};
use countersign_identity::{Clock as _, Code, DurationText, Incarnation, Sha256, SystemClock};
use countersign_pki::{KeyKind, PrivateKey};
use serde_json::json;

use super::trusted;
use super::watched::Watched;
use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::out::{self, New};
use crate::output::{self, Output};

/// Watch a log from elsewhere: remember its last checkpoint, and cosign each that grew out of it
///
/// What the witness has seen it keeps in `--state`. A log that was rewritten, cut off, replaced by a copy or shown to others
/// differently does not grow out of that: the witness then says so, keeps what it was shown as evidence, and ends with
/// status 1. Run it on another machine than the servers, over `--log`, with a `--key` that came another way.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    find: Find,
    /// Where the log is served, `http://HOST:PORT`, as `server --views` does [default: the admin socket]
    #[arg(long, value_name = "URL", conflicts_with_all = ["data", "admin"])]
    log: Option<String>,
    /// The log's public key, as `countersign log key` prints it [default: what the server says, which helps only from then on]
    #[arg(long, value_name = "KEY")]
    key: Option<NoteKey>,
    /// The directory where the witness keeps its key and what it has seen; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The name under which it cosigns, such as `witness.example`; only at the first start [default: witness]
    #[arg(long, value_name = "NAME", default_value = "witness")]
    name: String,
    /// How often to look
    #[arg(long, value_name = "SPAN", default_value = "10s")]
    every: DurationText,
    /// Look once
    #[arg(long)]
    once: bool,
    /// Go on with the log of this incarnation: the operator has restored a backup, or the store has lost its tail
    #[arg(long, value_name = "NUMBER")]
    accept: Option<Incarnation>,
}

/// How long one look may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
const KEY_FILE: &str = "witness.key";
const NAME_FILE: &str = "witness.name";
const SEEN_FILE: &str = "last.checkpoint";

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    let watched = match &arguments.log {
        Some(url) => Watched::at(url)?,
        None => Watched::Server(arguments.find.client()?),
    };
    let named = match (&arguments.key, &watched) {
        (None, Watched::Server(client)) => client.log(None).await?.key,
        (Some(_), _) | (None, Watched::Http { .. }) => None,
    };
    let given: Vec<NoteKey> = arguments.key.iter().cloned().collect();
    let keys = trusted(&given, named.as_deref())?;
    let witness = Witness::open(&arguments.state, &arguments.name)?;
    loop {
        let looked = witness.look(&watched, &keys, arguments.accept);
        let looked = tokio::time::timeout(LOOK_TIMEOUT, looked).await.unwrap_or_else(|_elapsed| {
            Err(Failure::unreachable("the log did not answer in time").into())
        });
        match looked {
            Ok(Looked::Wrong(why)) => {
                tell_wrong(&why, output)?;
                return Ok(Exit::No);
            }
            Ok(Looked::Right(seen, how)) => tell(&seen, how, output)?,
            Err(error) if arguments.once => return Err(error),
            Err(error) => {
                let told = crate::exit::Told::of(&error, crate::known);
                if told.exit != Exit::Unreachable {
                    return Err(error);
                }
                output::aside(&format!("countersign: {}", told.message));
            }
        }
        if arguments.once {
            return Ok(Exit::Done);
        }
        tokio::select! {
            _interrupted = tokio::signal::ctrl_c() => return Ok(Exit::Done),
            () = tokio::time::sleep(arguments.every.0) => {}
        }
    }
}

/// What came of a look.
enum Looked {
    Right(Checkpoint, How),
    Wrong(String),
}

/// How a checkpoint stands to the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    First,
    Same,
    Grown(u64),
    Accepted,
}

/// What a checkpoint that is shown asks of one who has seen another.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Judgement {
    Right(How),
    /// Proof that it grew out of what was seen.
    Prove(Plan),
    Wrong(String),
}

/// Decides what is to be made of a checkpoint whose signature was verified.
fn judge(seen: Option<&Checkpoint>, shown: &Checkpoint, accept: Option<Incarnation>) -> Judgement {
    let Some(seen) = seen else { return Judgement::Right(How::First) };
    let (was, is) = (&seen.origin, &shown.origin);
    if was.name() != is.name() {
        return Judgement::Wrong(format!("this witness watches log `{was}`, and was shown `{is}`"));
    }
    if was.incarnation != is.incarnation {
        if was.incarnation < is.incarnation && accept == Some(is.incarnation) {
            return Judgement::Right(How::Accepted);
        }
        let size = seen.size;
        return Judgement::Wrong(format!(
            "another log began: `{is}` in place of `{was}`, of which {size} events were seen; when a backup was restored or \
             the store lost its tail, `--accept {}` goes on with it",
            is.incarnation
        ));
    }
    match (seen.size, shown.size) {
        (old, new) if new < old => Judgement::Wrong(format!(
            "the log `{is}` went back: {old} events were seen, now it has {new}"
        )),
        (old, new) if old == new && seen.root == shown.root => Judgement::Right(How::Same),
        (old, new) if old == new => Judgement::Wrong(forked(seen)),
        (old, new) => match Plan::consistency(old, new) {
            Some(plan) => Judgement::Prove(plan),
            None => Judgement::Wrong(forked(seen)),
        },
    }
}

fn forked(seen: &Checkpoint) -> String {
    let Checkpoint { origin, size, root } = seen;
    format!(
        "the log `{origin}` was rewritten or forked: its first {size} events are not those that were seen, whose root is {root}"
    )
}

/// A witness at work. Of two on one directory the second does not start.
struct Witness {
    state: PathBuf,
    private: PrivateKey,
    key: NoteKey,
    _lock: File,
}

fn cannot(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    move |error| {
        let why = crate::manifest::plain(&error);
        Failure::not_understood(format!("`{}`: {why}", path.display()))
    }
}

impl Witness {
    fn open(state: &Path, name: &str) -> Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state)
            .map_err(cannot(state))?;
        let path = state.join("lock");
        let lock = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(cannot(&path))?;
        if lock.try_lock().is_err() {
            let why = format!("another witness is at work in `{}`", state.display());
            return Err(Failure::new(Code::AlreadyExists, why).into());
        }
        let path = state.join(KEY_FILE);
        if !path.try_exists().map_err(cannot(&path))? {
            let private = PrivateKey::generate(KeyKind::Ed25519)?;
            out::write(&state.join(NAME_FILE), New::Public, name.as_bytes())?;
            write_private(&path, private.pkcs8())?;
        }
        let private = PrivateKey::from_pkcs8(&std::fs::read(&path).map_err(cannot(&path))?)?;
        let path = state.join(NAME_FILE);
        let name = std::fs::read_to_string(&path).map_err(cannot(&path))?;
        let public = private.public().spki().last_chunk::<32>().copied().unwrap_or_default();
        let key = NoteKey::new(name.trim(), NoteKeyKind::Witness, public)
            .map_err(|bad| Failure::not_understood(format!("`--name {name}`: {bad}")))?;
        Ok(Self { state: state.to_owned(), private, key, _lock: lock })
    }

    /// What was seen last. It counts only as it was cosigned, so that nobody lets the witness forget.
    fn seen(&self, keys: &[NoteKey]) -> Result<Option<Checkpoint>, Failure> {
        let path = self.state.join(SEEN_FILE);
        if !path.try_exists().map_err(cannot(&path))? {
            return Ok(None);
        }
        let mut trusted = keys.to_vec();
        trusted.push(self.key.clone());
        let refuse = |why: String| {
            Failure::not_understood(format!(
                "`{}` is not what this witness wrote: {why}",
                path.display()
            ))
        };
        let note = super::read_file(&path)?;
        let (seen, signed) =
            Checkpoint::open(&note, &trusted).map_err(|bad| refuse(bad.to_string()))?;
        if signed.iter().any(|signed| signed.key == self.key) {
            return Ok(Some(seen));
        }
        Err(refuse("it is not cosigned".to_owned()))
    }

    async fn look(
        &self,
        watched: &Watched,
        keys: &[NoteKey],
        accept: Option<Incarnation>,
    ) -> Result<Looked> {
        let seen = self.seen(keys)?;
        let bytes = watched.checkpoint().await?;
        let shown = match Checkpoint::open(&bytes, keys) {
            Ok((shown, _signed)) => shown,
            Err(bad) => {
                return self.wrong(&bytes, format!("what is shown as a checkpoint is none: {bad}"));
            }
        };
        let how = match judge(seen.as_ref(), &shown, accept) {
            Judgement::Right(how) => how,
            Judgement::Wrong(why) => return self.wrong(&bytes, why),
            Judgement::Prove(plan) => {
                let Some(seen) = &seen else { return self.wrong(&bytes, String::new()) };
                let proof = prove(watched, shown.origin.incarnation, &plan).await?;
                let (old, new) = ((seen.size, seen.root), (shown.size, shown.root));
                if proof.is_none_or(|proof| verify_consistency(old, new, &proof).is_err()) {
                    return self.wrong(&bytes, forked(seen));
                }
                How::Grown(seen.size)
            }
        };
        self.cosign(&bytes, how)?;
        Ok(Looked::Right(shown, how))
    }

    /// Written down before anybody is told.
    fn cosign(&self, bytes: &[u8], how: How) -> Result<()> {
        if how == How::Same {
            return Ok(());
        }
        let note = Note::parse(bytes)?;
        let at = u64::try_from(SystemClock::new().now().secs()).unwrap_or(0);
        let signature = self.private.sign(&cosigned(note.text(), at))?;
        let note = note.with_cosignature(&self.key, at, &signature);
        out::write(&self.state.join(SEEN_FILE), New::Public, note.to_string().as_bytes())?;
        let folder = File::open(&self.state).map_err(cannot(&self.state))?;
        Ok(folder.sync_all().map_err(cannot(&self.state))?)
    }

    /// Keeps what was shown, beside what had been seen.
    fn wrong(&self, shown: &[u8], why: String) -> Result<Looked> {
        let secs = SystemClock::new().now().secs();
        let conflict = self.state.join(format!("conflict-{secs}.checkpoint"));
        out::write(&conflict, New::Public, shown)?;
        Ok(Looked::Wrong(why))
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(cannot(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(cannot(path))
}

/// The hashes of a proof, from the tiles that the log shows; `None` when they are too few.
async fn prove(watched: &Watched, of: Incarnation, plan: &Plan) -> Result<Option<Vec<Sha256>>> {
    let mut tiles = Tiles::default();
    for tile in plan.tiles() {
        let Some(hashes) = hashes(&watched.tile(of, tile).await?, tile) else { return Ok(None) };
        tiles.put(tile, hashes);
    }
    Ok(plan.prove(&tiles))
}

fn hashes(bytes: &[u8], tile: Tile) -> Option<Vec<Sha256>> {
    let (hashes, rest) = bytes.as_chunks::<32>();
    let whole = rest.is_empty() && hashes.len() == usize::from(tile.width);
    whole.then(|| hashes.iter().map(|hash| Sha256::from_bytes(*hash)).collect())
}

fn tell(seen: &Checkpoint, how: How, output: Output) -> Result<()> {
    let Checkpoint { origin, size, root } = seen;
    if output == Output::Json {
        let event = if how == How::Same { "unchanged" } else { "cosigned" };
        let log = origin.to_string();
        return output::json(&json!({ "event": event, "log": log, "size": size, "root": root }));
    }
    let how = match how {
        How::First => "seen for the first time, cosigned".to_owned(),
        How::Same => return Ok(()),
        How::Grown(old) => format!("grown out of the {old} that were seen before, cosigned"),
        How::Accepted => "accepted as a new incarnation, cosigned".to_owned(),
    };
    output::line(&format!("log {origin}: {size} events with root {root}, {how}"))
}

fn tell_wrong(why: &str, output: Output) -> Result<()> {
    match output {
        Output::Json => output::json(&json!({ "event": "conflict", "why": why })),
        Output::Human => output::line(&format!("CONFLICT: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(origin: &str, size: u64, seed: u8) -> Checkpoint {
        Checkpoint { origin: origin.parse().unwrap(), size, root: Sha256::from_bytes([seed; 32]) }
    }

    #[track_caller]
    fn is_wrong(shown: &Checkpoint, word: &str) {
        let seen = checkpoint("a.example/log/2", 7, 1);
        match judge(Some(&seen), shown, None) {
            Judgement::Wrong(why) => assert!(why.contains(word), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_grew_out_of_what_was_seen_is_right() {
        is_wrong(&checkpoint("a.example/log/2", 7, 2), "rewritten");
        is_wrong(&checkpoint("a.example/log/2", 6, 1), "went back");
        is_wrong(&checkpoint("b.example/log/2", 9, 1), "watches");
        is_wrong(&checkpoint("a.example/log/3", 9, 1), "--accept 3");
        is_wrong(&checkpoint("a.example/log/1", 9, 1), "another log");
        let (log, seen) = ("a.example/log/2", checkpoint("a.example/log/2", 7, 1));
        assert_eq!(judge(None, &seen, None), Judgement::Right(How::First));
        assert_eq!(judge(Some(&seen), &seen, None), Judgement::Right(How::Same));
        let grown = judge(Some(&seen), &checkpoint(log, 9, 2), None);
        assert_eq!(grown, Judgement::Prove(Plan::consistency(7, 9).unwrap()));
        let next = checkpoint("a.example/log/3", 1, 1);
        assert_eq!(judge(Some(&seen), &next, Some(3)), Judgement::Right(How::Accepted));
        // Never back to an earlier one, also when asked for.
        assert!(matches!(judge(Some(&next), &seen, Some(2)), Judgement::Wrong(_)));
    }
}
