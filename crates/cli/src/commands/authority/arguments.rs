//! The flags.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use countersign_api::admin::Cause;
use countersign_identity::{KeyId, Lifetime};

use crate::find::Find;
use crate::serve::check_token_uri;

/// The fewest letters of a key that name an authority.
const PREFIX_MIN: usize = 8;

/// An authority as an operator names it: `authority:KEY`, a key id, or how one begins.
#[derive(Clone, Debug)]
pub(crate) struct Named(String); // INVARIANT: 8 to 64 of 0-9 a-f

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = text.strip_prefix("authority:").unwrap_or(text);
        let is_hex = key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_hex && (PREFIX_MIN..=64).contains(&key.len()) {
            return Ok(Self(key.to_owned()));
        }
        Err(format!(
            "expected the key id of an authority, or at least {PREFIX_MIN} of its letters, as `countersign authority list` shows it"
        ))
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Named {
    /// The key, when it is written out.
    pub(super) fn key(&self) -> Option<KeyId> {
        self.0.parse().ok()
    }

    /// Whether this key begins so.
    pub(super) fn fits(&self, key: &KeyId) -> bool {
        key.to_string().starts_with(&self.0)
    }
}

/// Why a root must not be trusted any more.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CauseWord {
    /// Something newer takes its place: issue anew first, drop last
    Superseded,
    /// Somebody else has its key: drop it as soon as there is another
    Compromised,
}

impl CauseWord {
    pub(super) fn cause(self) -> Cause {
        match self {
            Self::Superseded => Cause::Superseded,
            Self::Compromised => Cause::Compromised,
        }
    }
}

/// What every step has.
#[derive(Debug, Args)]
pub(crate) struct StepArguments {
    /// Take the step although its gate is not open; the words go on record
    #[arg(long, value_name = "WORDS")]
    pub(super) force: Option<String>,

    #[command(flatten)]
    pub(super) find: Find,
}

/// Where the key of the next root is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RootKeyWord {
    /// Sealed in the server's state.
    Here,
    /// With an authority that signs by ceremony.
    External,
    /// In a token.
    Token(String),
}

impl FromStr for RootKeyWord {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "here" => Ok(Self::Here),
            "external" => Ok(Self::External),
            token if token.starts_with("pkcs11:") => check_token_uri(token).map(Self::Token),
            _ => Err("expected `here`, `external` or `pkcs11:…`".to_owned()),
        }
    }
}

/// Where the key is to be of a root that the server makes by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NextKeyWord(String); // INVARIANT: `here`, or the name of a key in a token

impl FromStr for NextKeyWord {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse()? {
            RootKeyWord::Here | RootKeyWord::Token(_) => Ok(Self(text.to_owned())),
            RootKeyWord::External => Err(
                "an authority outside signs by ceremony: `countersign authority prepare --root-key external` begins that"
                    .to_owned(),
            ),
        }
    }
}

impl NextKeyWord {
    /// As it is asked for.
    pub(super) fn word(&self) -> String {
        self.0.clone()
    }
}

/// How the next root is made.
#[derive(Debug, Args)]
pub(crate) struct PrepareArguments {
    /// Where its key is: `here`; `pkcs11:…` in a token that the server reaches; or `external` for an authority that signs by
    /// ceremony: then a request is made, or given again [default: `here`, unless the active root's is in a token]
    #[arg(long, value_name = "WHERE")]
    pub(super) root_key: Option<RootKeyWord>,

    /// Where to write the request [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,

    /// Throw the request away that waits, and its key, and make another
    #[arg(long)]
    pub(super) anew: bool,

    #[command(flatten)]
    pub(super) step: StepArguments,
}

/// Whether to wait, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Waiting {
    /// Wait for the end, and show each gate; exit status 1 when it does not come in time
    #[arg(long)]
    pub(super) wait: bool,

    /// How long to wait
    #[arg(long, default_value = "2h", value_name = "SPAN")]
    timeout: Lifetime,
}

impl Waiting {
    pub(super) fn no() -> Self {
        Self { wait: false, timeout: Lifetime::from_secs(1).expect("a second is a lifetime") }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout.duration()
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// Every root and issuer: where it is on its walk, what it vouches for, what is under way
    List {
        #[command(flatten)]
        find: Find,
    },
    /// Make a new root, cross-certified by the one that is active; or a request for an authority outside to sign
    Prepare(PrepareArguments),
    /// Bring what an authority outside has signed: the issuer's certificate, those above it, and the root
    ///
    /// Under the root that is active, the new issuer signs at once. A root that is new here goes into every bundle first, and
    /// the whole walk follows, each step when its gate opens.
    Import {
        /// The chain, PEM; `-` is standard input
        #[arg(value_name = "CHAIN")]
        chain: PathBuf,
        #[command(flatten)]
        wait: Waiting,
        #[command(flatten)]
        find: Find,
    },
    /// Put the new root into every bundle
    Publish(StepArguments),
    /// Let the new root sign, once every live enforcement point trusts it
    Activate(StepArguments),
    /// Say that the new root may sign, as one of the operators whom the manifest names to approve it
    ///
    /// The word is for this key, and for none that takes its place. Who ordered the rotation does not count, and nobody
    /// counts twice.
    Approve {
        /// Which root, as whoever prepared it tells you by another way
        #[arg(value_name = "AUTHORITY")]
        authority: Named,
        #[command(flatten)]
        find: Find,
    },
    /// Take the old root out of service and out of every bundle, once nothing depends on it
    Retire {
        /// Which root [default: the oldest that is on its way out]
        #[arg(value_name = "AUTHORITY")]
        authority: Option<Named>,
        #[command(flatten)]
        wait: Waiting,
        #[command(flatten)]
        step: StepArguments,
    },
    /// Say that a root must not be trusted any more, and why; the walk that follows from it begins at once
    Taint {
        /// Which root
        #[arg(value_name = "AUTHORITY")]
        authority: Named,
        /// Why
        #[arg(long, value_enum)]
        cause: CauseWord,
        #[command(flatten)]
        wait: Waiting,
        #[command(flatten)]
        step: StepArguments,
    },
    /// The last rotation or recovery that came to its end, signed by the active root (a JSON Web Signature)
    Report {
        /// Where to write it [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        find: Find,
    },
    /// Check a report's signature, and print what it says
    CheckReport {
        /// The report; `-` is standard input
        #[arg(value_name = "FILE")]
        report: PathBuf,
        /// The authorities that may have signed it, PEM
        #[arg(long, value_name = "FILE")]
        bundle: PathBuf,
    },
    /// Go back by one rotation: possible until the old root's word counts no more
    Rollback(StepArguments),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rotate {
    /// The whole walk of a new root: prepare, publish, activate, supersede, retire; each step when its gate opens
    Root {
        /// Why, in words that go on record
        #[arg(long, value_name = "WORDS")]
        reason: Option<String>,
        /// Where the new root's key is to be: `here`, or `pkcs11:…` in a token that the server reaches [default: `here`, unless
        /// the active root's is in a token]
        #[arg(long, value_name = "WHERE")]
        root_key: Option<NextKeyWord>,
        #[command(flatten)]
        wait: Waiting,
        #[command(flatten)]
        find: Find,
    },
    /// A new issuer under the same root, at once
    Issuer {
        /// Why, in words that go on record
        #[arg(long, value_name = "WORDS")]
        reason: Option<String>,
        #[command(flatten)]
        find: Find,
    },
}

/// Recover from an authority's leaked key: plan, replace, revoke, re-issue, prove
///
/// Shows the plan first. A new authority takes the place of the old one; everything that the old one vouches for is
/// refused and its live connections are cut; everybody is issued anew. A server that is killed half-way goes on when
/// it is back.
#[derive(Debug, Args)]
pub(crate) struct RecoverArguments {
    /// The authority whose key leaked: `authority:KEY`, a key id, or how one begins
    #[arg(long, value_name = "AUTHORITY")]
    pub(super) compromised: Named,

    /// Only show the plan
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Do not ask whether to carry out the plan
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) yes: bool,

    /// Why, in words that go on record
    #[arg(long, value_name = "WORDS")]
    pub(super) reason: Option<String>,

    /// Where the new root's key is to be: `here`, or `pkcs11:…` in a token that the server reaches [default: `here`, unless the
    /// compromised one's is in a token]
    #[arg(long, value_name = "WHERE")]
    pub(super) root_key: Option<NextKeyWord>,

    /// Do not wait for the end; `countersign authority list` shows how far it is
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) begin_only: bool,

    /// How long to wait; exit status 1 when it is not over in time
    #[arg(long, default_value = "2h", value_name = "SPAN")]
    pub(super) timeout: Lifetime,

    #[command(flatten)]
    pub(super) find: Find,
}
