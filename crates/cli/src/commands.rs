//! The subcommands and their flags.

mod apply;
mod authority;
mod backup;
mod changes;
mod console;
mod crl;
mod explain;
mod export;
mod fetch;
mod flows;
mod handshakes;
mod history;
mod id;
mod inventory;
mod lists;
mod log;
mod named;
mod plan;
mod reference;
mod review;
mod revoke;
mod status;
pub mod steps;
mod store;
mod verify;
mod when;

use std::path::PathBuf;

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};
use countersign_api::resource::Kind;
use countersign_identity::{Lifetime, Name, NodeId};

use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::output::{self, Output};
use crate::serve;
use crate::settings::Settings;
use crate::up;

/// Cryptographic identity for services, and mutual TLS between them.
///
/// `countersign up` brings up everything on this machine, from a folder of manifests. The parts also run by
/// themselves: `init` makes a trust domain, `server` runs it, `agent` runs on each machine, `proxy` beside each
/// service that speaks no TLS itself.
///
/// Exit status: 0 done or yes, 1 no, 2 not understood, 3 not reachable or not ready, 4 conflict, 5 our fault.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// For whom to print: `human`, or `json` for scripts: one object a line, of a failure `{"error":{"code":…,"message":…}}`
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORM",
        hide_possible_values = true
    )]
    pub(crate) output: Output,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Arguments),
    /// Make a trust domain: its root, its first issuer, its empty state
    Init(Settings<serve::InitProgram>),
    /// Run the control plane of a trust domain
    Server(Settings<serve::ServerProgram>),
    /// Run the agent of this machine: attest processes, keep their certificates fresh
    Agent(Settings<serve::AgentProgram>),
    /// Run a proxy: mutual TLS for a service that speaks none
    Proxy(Settings<serve::ProxyProgram>),
    Status(status::Arguments),
    /// Get what the Workload API gives this process
    Fetch {
        #[command(subcommand)]
        what: fetch::What,
    },
    Verify(verify::Arguments),
    /// Look at SPIFFE IDs
    Id {
        #[command(subcommand)]
        what: id::What,
    },
    Apply(apply::Arguments),
    Console(console::Arguments),
    Explain(explain::Arguments),
    Flows(flows::Arguments),
    Inventory(inventory::Arguments),
    Handshakes(handshakes::Arguments),
    Plan(plan::Arguments),
    History(history::HistoryArguments),
    Show(history::ShowArguments),
    Diff(history::DiffArguments),
    Rollback(history::RollbackArguments),
    Drift(history::DriftArguments),
    Export(export::Arguments),
    /// Reviews of policies: who could, who did, and who signed that it is as it should be
    Review {
        #[command(subcommand)]
        what: review::What,
    },
    Revoke(revoke::RevokeArguments),
    Revocations(revoke::RevocationsArguments),
    Converged(revoke::ConvergedArguments),
    Crl(crl::Arguments),
    Suspend(revoke::SuspendArguments),
    Resume(revoke::ResumeArguments),
    /// The keys that sign: roots and issuers, and how far each has walked
    Authority {
        #[command(subcommand)]
        what: authority::What,
    },
    /// Put a new authority in the place of an old one
    Rotate {
        #[command(subcommand)]
        what: authority::Rotate,
    },
    Recover(authority::RecoverArguments),
    Backup(Box<backup::BackupArguments>),
    Restore(Box<backup::RestoreArguments>),
    /// Issue again at once, after a restore or a lost tail of the store, before the hold-off is over
    ResumeIssuing {
        #[command(flatten)]
        find: Find,
        /// Take the server's present time for right, although the log has entries of a later one: a clock was ahead when they
        /// were written
        #[arg(long)]
        clock: bool,
    },
    /// Join tokens, with which machines enter the trust domain
    Token {
        #[command(subcommand)]
        what: TokenCommand,
    },
    /// The machines of the trust domain
    Node {
        #[command(subcommand)]
        what: NodeCommand,
    },
    /// What is declared: trust domain, workloads, services, policies
    Resource {
        #[command(subcommand)]
        what: ResourceCommand,
    },
    /// Where the state is kept
    Store {
        #[command(subcommand)]
        what: StoreCommand,
    },
    /// The audit log: read it, prove what is in it, and check that nobody has rewritten it
    Log {
        #[command(subcommand)]
        what: log::What,
    },
    /// The events of the audit log, oldest first; `log tail` and `log search` do more
    Events {
        #[command(flatten)]
        find: Find,
        /// How many at most
        #[arg(long, default_value_t = 100, value_name = "COUNT", value_parser = named::count::<usize>)]
        limit: usize,
        /// Only those after this index
        #[arg(long, value_name = "INDEX", value_parser = named::index)]
        after: Option<u64>,
    },
    /// Print where a service of the running `up` is reached
    Address {
        #[command(flatten)]
        find: Find,
        #[command(flatten)]
        arguments: up::AddressArguments,
    },
    /// Print the JSON Schema of a kind of manifest, for editors
    Schema {
        /// `TrustDomain`, `Authority`, `Workload`, `Service`, `Policy`, `Role` or `TlsProfile`
        kind: Kind,
    },
    /// Print the completions of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print a page of the reference, as Markdown
    Reference {
        /// Which page
        #[arg(value_enum)]
        page: reference::Page,
    },
    /// Run one of the example services: plain HTTP, no TLS in it
    Example {
        /// `web`, `orders` or `payments`
        role: String,
    },
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    Copy(Box<store::Arguments>),
    Verify(Box<store::VerifyArguments>),
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token that lets one machine join, once
    Create {
        #[command(flatten)]
        find: Find,
        /// How long it may be used
        #[arg(long, default_value = "10m", value_name = "SPAN")]
        ttl: Lifetime,
        /// A label of the machine, which workloads may ask for (repeatable)
        #[arg(long = "label", value_name = "NAME")]
        labels: Vec<Name>,
    },
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// List the machines
    List {
        #[command(flatten)]
        find: Find,
    },
    /// Remove a machine: it is never given anything again, unless it joins anew
    Remove {
        #[command(flatten)]
        find: Find,
        /// Its id, as `node list` shows it
        #[arg(value_parser = named::node)]
        node: NodeId,
    },
}

#[derive(Debug, Subcommand)]
enum ResourceCommand {
    /// List what is declared
    List {
        #[command(flatten)]
        find: Find,
        /// Only this kind
        #[arg(long, value_name = "KIND")]
        kind: Option<Kind>,
    },
    /// Remove one resource
    Remove {
        #[command(flatten)]
        find: Find,
        /// Its kind
        kind: Kind,
        /// Its name
        name: Name,
    },
}

/// Runs the command. `up` and the programs make their own runtimes, on this thread.
pub(crate) fn run(cli: Cli) -> Result<Exit> {
    let output = cli.output;
    match cli.command {
        Command::Up(arguments) => up::run(&arguments, output),
        Command::Init(settings) => serve::init(&settings, output),
        Command::Server(settings) => serve::server(&settings, output),
        Command::Agent(settings) => serve::agent(&settings, output),
        Command::Proxy(settings) => serve::proxy(&settings, output),
        Command::Example { role } => serve::example(&role),
        Command::Status(arguments) => wait(status::run(&arguments, output)),
        Command::Fetch { what } => wait(fetch::run(&what, output)),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Id { what } => id::run(&what, output),
        Command::Apply(arguments) => wait(apply::run(&arguments, output)),
        Command::Console(arguments) => wait(console::run(&arguments, output)),
        Command::Explain(arguments) => wait(explain::run(&arguments, output)),
        Command::Flows(arguments) => wait(flows::run(&arguments, output)),
        Command::Inventory(arguments) => wait(inventory::run(&arguments, output)),
        Command::Handshakes(arguments) => wait(handshakes::run(&arguments, output)),
        Command::Plan(arguments) => wait(plan::run(&arguments, output)),
        Command::History(arguments) => wait(history::history(&arguments, output)),
        Command::Show(arguments) => wait(history::show(&arguments, output)),
        Command::Diff(arguments) => wait(history::diff(&arguments, output)),
        Command::Rollback(arguments) => wait(history::rollback(&arguments, output)),
        Command::Drift(arguments) => wait(history::drift(&arguments, output)),
        Command::Export(arguments) => wait(export::run(&arguments, output)),
        Command::Review { what } => wait(review::run(&what, output)),
        Command::Revoke(arguments) => wait(revoke::revoke(&arguments, output)),
        Command::Revocations(arguments) => wait(revoke::revocations(&arguments, output)),
        Command::Converged(arguments) => wait(revoke::converged(&arguments, output)),
        Command::Crl(arguments) => wait(crl::run(&arguments, output)),
        Command::Suspend(arguments) => wait(revoke::suspend(&arguments, output)),
        Command::Resume(arguments) => wait(revoke::resume(&arguments, output)),
        Command::Authority { what } => wait(authority::authority(&what, output)),
        Command::Rotate { what } => wait(authority::rotate(&what, output)),
        Command::Recover(arguments) => wait(authority::recover(&arguments, output)),
        Command::Backup(arguments) => wait(backup::backup(&arguments, output)),
        Command::Restore(arguments) => wait(backup::restore(&arguments, output)),
        Command::ResumeIssuing { find, clock } => {
            wait(backup::resume_issuing(&find, clock, output))
        }
        Command::Token { what: TokenCommand::Create { find, ttl, labels } } => {
            wait(lists::create_token(&find, ttl, labels, output))
        }
        Command::Node { what: NodeCommand::List { find } } => wait(lists::nodes(&find, output)),
        Command::Node { what: NodeCommand::Remove { find, node } } => {
            wait(lists::remove_node(&find, node, output))
        }
        Command::Resource { what: ResourceCommand::List { find, kind } } => {
            wait(lists::resources(&find, kind, output))
        }
        Command::Resource { what: ResourceCommand::Remove { find, kind, name } } => {
            wait(lists::remove_resource(&find, kind, &name, output))
        }
        Command::Store { what: StoreCommand::Copy(arguments) } => {
            wait(store::copy(&arguments, output))
        }
        Command::Store { what: StoreCommand::Verify(arguments) } => {
            wait(store::verify(&arguments, output))
        }
        Command::Log { what } => wait(log::run(what, output)),
        Command::Events { find, limit, after } => wait(lists::events(&find, limit, after, output)),
        Command::Address { find, arguments } => up::address(&arguments, &find.up_json()?, output),
        Command::Schema { kind } => {
            let schema = countersign_api::resource::schema(kind);
            output::line(&serde_json::to_string_pretty(&schema)?)?;
            Ok(Exit::Done)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "countersign", &mut script);
            output::write(&script)?;
            Ok(Exit::Done)
        }
        Command::Reference { page } => {
            output::write(reference::page(page).as_bytes())?;
            Ok(Exit::Done)
        }
    }
}

/// Runs a command that asks somebody over a socket.
fn wait(command: impl Future<Output = Result<Exit>>) -> Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(command)
}

/// A file's bytes, or a sentence that names it.
fn read_file(path: &PathBuf, max: u64) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let cannot = |error: &std::io::Error| {
        let why = crate::manifest::plain(error);
        Failure::not_understood(format!("`{}` cannot be read: {why}", path.display()))
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| cannot(&error))?;
    file.take(max + 1).read_to_end(&mut bytes).map_err(|error| cannot(&error))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| max < length) {
        let path = path.display();
        return Err(Failure::not_understood(format!(
            "`{path}` is larger than {max} bytes, which is the most that is read"
        )));
    }
    Ok(bytes)
}
