//! The flags.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use countersign_api::admin::Target;
use countersign_identity::{
    KeyId, Lifetime, NodeId, Reason, Revision, Serial, SpiffeId, Suspended, Timestamp,
};

use crate::commands::named;
use crate::exit::Failure;
use crate::find::Find;

/// A list of targets is not longer than this.
const LIST_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Take credentials out of service everywhere, and say who enforces it
///
/// What leaked decides what else happens. A key: the workload gets a new credential with a new key. A process: it gets
/// nothing until `countersign resume`. A node: all that was issued through it ends, and it must attest anew.
/// Nothing lifts a revocation before the last credential that it covers has ended.
#[derive(Debug, Args)]
pub(crate) struct RevokeArguments {
    /// SPIFFE IDs: all that they hold now
    #[arg(value_name = "SPIFFE-ID", value_parser = named::revoked)]
    identities: Vec<SpiffeId>,

    /// One certificate, by its serial (repeatable)
    #[arg(long = "serial", value_name = "SERIAL", value_parser = named::serial)]
    serials: Vec<Serial>,

    /// All certificates for a key, by the SHA-256 of its SubjectPublicKeyInfo (repeatable)
    #[arg(long = "key", value_name = "KEY-ID", value_parser = named::key)]
    keys: Vec<KeyId>,

    /// All that was issued through a node, and its agent's own (repeatable)
    #[arg(long = "node", value_name = "NODE", value_parser = named::node)]
    nodes: Vec<NodeId>,

    /// All certificates under an authority that is out of use, by the SHA-256 of its key (repeatable)
    #[arg(long = "authority", value_name = "KEY-ID", value_parser = named::authority)]
    authorities: Vec<KeyId>,

    /// More targets, one a line: serials and SPIFFE IDs; `-` is standard input
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    /// Why: key-compromise, process-compromise, node-compromise, authority-compromise, superseded,
    /// cessation-of-operation, privilege-withdrawn or unspecified
    #[arg(long, value_name = "REASON")]
    reason: Option<Reason>,

    /// Only what was issued before this moment (RFC 3339); errs towards covering more
    #[arg(long, value_name = "TIME")]
    pub(super) issued_before: Option<Timestamp>,

    /// Give nothing new to whom it concerns, until `countersign resume`
    #[arg(long)]
    pub(super) no_reissue: bool,

    /// Only say what would happen
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Wait until every live enforcement point enforces it; exit status 1 when that does not come true in time
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) wait: bool,

    /// Try it out: show two canaries at the door of each enforcement point, one that a rule of the same moment covers and one
    /// that none does; exit status 1 when a door does not do what its point says
    #[arg(long, requires = "wait")]
    pub(super) verify: bool,

    /// How long to wait
    #[arg(long, default_value = "30s", value_name = "SPAN")]
    pub(super) timeout: Lifetime,

    #[command(flatten)]
    pub(super) find: Find,
}

impl RevokeArguments {
    pub(super) fn targets(&self) -> Result<Vec<Target>> {
        let mut targets: Vec<Target> = Vec::new();
        targets.extend(self.identities.iter().cloned().map(Target::Identity));
        targets.extend(self.serials.iter().copied().map(Target::Serial));
        targets.extend(self.keys.iter().copied().map(Target::Key));
        targets.extend(self.nodes.iter().copied().map(Target::Node));
        targets.extend(self.authorities.iter().copied().map(Target::Authority));
        if let Some(path) = &self.from {
            targets.extend(listed(path)?);
        }
        if targets.is_empty() {
            return Err(Failure::not_understood(
                "nothing is named that is to be revoked: give a SPIFFE ID, `--serial`, `--key`, `--node`, `--authority` or `--from FILE`",
            )
            .into());
        }
        Ok(targets)
    }

    /// The reason: given, or asked for where somebody can answer.
    pub(super) fn reason(&self) -> Result<Reason> {
        if let Some(reason) = self.reason {
            return Ok(reason);
        }
        let words: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        let missing = || {
            let words = words.join(", ");
            Failure::not_understood(format!("say why with `--reason`: one of {words}"))
        };
        let stdin_is_list = self.from.as_ref().is_some_and(|path| path.as_os_str() == "-");
        if stdin_is_list || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return Err(missing().into());
        }
        for reason in Reason::ALL {
            eprintln!("  {reason:<24} {}", reason.meaning());
        }
        eprint!("reason: ");
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(|_unreadable| missing())?;
        Ok(answer.trim().parse().map_err(|bad| Failure::not_understood(format!("{bad}")))?)
    }
}

fn listed(path: &Path) -> Result<Vec<Target>, Failure> {
    let path = if path.as_os_str() == "-" { PathBuf::from("/dev/stdin") } else { path.to_owned() };
    let bytes = crate::commands::read_file(&path, LIST_BYTES_MAX)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::not_understood(format!("`{}` is not UTF-8", path.display())))?;
    let mut targets = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let target = match line.parse::<SpiffeId>() {
            Ok(id) => Target::Identity(id),
            Err(_) => Target::Serial(line.parse().map_err(|_| {
                let line = crate::output::printable(line);
                Failure::not_understood(format!(
                    "line {number} of `{}`: `{line}` is neither a SPIFFE ID (`spiffe://TRUST-DOMAIN/PATH`) nor a serial (32 lower-case hexadecimal digits, the first from 0 to 7, not all 0)",
                    path.display()
                ))
            })?),
        };
        targets.push(target);
    }
    Ok(targets)
}

/// Show what is out of service, who does not know it yet, and when exposure ends
#[derive(Debug, Args)]
pub(crate) struct RevocationsArguments {
    #[command(flatten)]
    pub(super) find: Find,
}

/// Say who enforces a revision; exit status 0 only when all live enforcement points do
#[derive(Debug, Args)]
pub(crate) struct ConvergedArguments {
    /// Which, such as `1.412` [default: the newest]
    #[arg(value_name = "REVISION", value_parser = named::revision)]
    pub(super) revision: Option<Revision>,

    /// Wait until all do
    #[arg(long)]
    pub(super) wait: bool,

    /// Try it out with canaries at the doors of all points, and wait for that; exit status 1 when a door does not do what
    /// its point says
    #[arg(long)]
    pub(super) verify: bool,

    /// How long to wait
    #[arg(long, default_value = "30s", value_name = "SPAN")]
    pub(super) timeout: Lifetime,

    #[command(flatten)]
    pub(super) find: Find,
}

/// What can be suspended.
#[derive(Debug, Args)]
pub(crate) struct SuspendTarget {
    /// A SPIFFE ID: nothing is issued for it
    #[arg(value_name = "SPIFFE-ID", required_unless_present = "node", conflicts_with = "node", value_parser = named::suspended)]
    identity: Option<SpiffeId>,

    /// A node: nothing is issued through it, nor for its agent
    #[arg(long, value_name = "NODE", value_parser = named::node)]
    node: Option<NodeId>,
}

impl SuspendTarget {
    pub(super) fn suspended(&self) -> Result<Suspended> {
        match (&self.identity, self.node) {
            (Some(id), None) => Ok(Suspended::Identity(id.clone())),
            (None, Some(node)) => Ok(Suspended::Node(node)),
            (None, None) | (Some(_), Some(_)) => {
                Err(Failure::not_understood("name one SPIFFE ID or `--node NODE`").into())
            }
        }
    }
}

/// Stop what would be issued for an identity or through a node, until it is resumed
#[derive(Debug, Args)]
pub(crate) struct SuspendArguments {
    #[command(flatten)]
    pub(super) target: SuspendTarget,

    /// Why, in the words of `revoke`
    #[arg(long, default_value = "unspecified", value_name = "REASON")]
    pub(super) reason: Reason,

    #[command(flatten)]
    pub(super) find: Find,
}

/// Lift a suspension: it is issued again; what was revoked stays revoked
#[derive(Debug, Args)]
pub(crate) struct ResumeArguments {
    #[command(flatten)]
    pub(super) target: SuspendTarget,

    #[command(flatten)]
    pub(super) find: Find,
}
