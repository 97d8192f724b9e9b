//! Pages of the reference, written from what the program itself knows.

use clap::CommandFactory as _;
use countersign_api::resource::{Kind, schema};
use countersign_audit::EventKind;
use countersign_identity::{Code, Fault};

use super::Cli;
use crate::exit::Exit;
use crate::serve::{AgentProgram, InitProgram, ProxyProgram, ServerProgram};
use crate::settings::{COMMON, Field, Program, Takes};

/// A page.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Page {
    /// Flags, environment variables and TOML keys of the programs
    Config,
    /// Every code of a refusal, and its exit status
    Codes,
    /// Every command and its flags
    Commands,
    /// The fields of the manifests
    Manifests,
    /// The metrics of the programs
    Metrics,
    /// The events of the audit log
    Events,
}

pub(crate) fn page(page: Page) -> String {
    let body = match page {
        Page::Config => config(),
        Page::Codes => codes(),
        Page::Commands => commands(),
        Page::Manifests => manifests(),
        Page::Metrics => metrics(),
        Page::Events => events(),
    };
    let name = match page {
        Page::Config => "config",
        Page::Codes => "codes",
        Page::Commands => "commands",
        Page::Manifests => "manifests",
        Page::Metrics => "metrics",
        Page::Events => "events",
    };
    format!("{body}\n<!-- Written by `countersign reference {name}`; do not edit. -->\n")
}

fn config() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         Each setting is a flag, an environment variable and a key of the TOML file that `--config FILE` or \
         `COUNTERSIGN_CONFIG` names. A flag wins over the environment, the environment over the file, the file over the \
         default. Unknown keys are errors, and all problems are told at once. `countersign status --config` shows what \
         each running program was told, and by whom.\n\n\
         A setting with any number of values is a repeated flag, a TOML list, or in the environment a text with blanks \
         between the values.\n",
    );
    program::<InitProgram>(&mut text);
    program::<ServerProgram>(&mut text);
    program::<AgentProgram>(&mut text);
    program::<ProxyProgram>(&mut text);
    text
}

fn program<P: Program>(text: &mut String) {
    text.push_str(&format!("\n## countersign {}\n\n", P::NAME));
    text.push_str(
        "| flag | environment | TOML | default | what |\n| --- | --- | --- | --- | --- |\n",
    );
    for field in P::FIELDS.iter().chain(COMMON).filter(|field| !field.hidden) {
        text.push_str(&row(field));
    }
}

fn row(field: &Field) -> String {
    let value = match field.takes {
        Takes::One => format!(" {}", field.value),
        Takes::Many => format!(" {} …", field.value),
        Takes::Nothing => String::new(),
    };
    let default = field.default.map(|default| format!("`{default}`")).unwrap_or_default();
    let help = field.help.replace('|', "\\|");
    format!(
        "| `--{}{value}` | `{}` | `{}` | {default} | {help} |\n",
        field.flag,
        field.variable(),
        field.key()
    )
}

fn codes() -> String {
    let mut text = String::from(
        "# Codes\n\n\
         Every refusal has one of these codes, the same in gRPC details, HTTP problems, events, metric labels and the \
         JSON of commands.\n\n| code | what it means | who has to act | exit status |\n| --- | --- | --- | --- |\n",
    );
    for code in Code::ALL {
        let who = match code.fault() {
            Fault::Caller => "whoever asks",
            Fault::Peer => "the other end",
            Fault::Outage => "nobody yet: try again",
            Fault::Us => "us: report it",
        };
        text.push_str(&format!(
            "| `{code}` | {} | {who} | {} |\n",
            code.meaning(),
            Exit::of(*code) as u8
        ));
    }
    text.push_str(
        "\n## Exit statuses\n\n| status | meaning |\n| --- | --- |\n\
         | 0 | done, or yes |\n| 1 | no: refused, denied, different |\n| 2 | not understood |\n\
         | 3 | not reachable, or not ready |\n| 4 | conflict |\n| 5 | our fault |\n",
    );
    text
}

fn commands() -> String {
    let mut text = String::from("# Commands\n");
    describe(&Cli::command(), "", &mut text);
    text
}

fn describe(command: &clap::Command, before: &str, text: &mut String) {
    let name = format!("{before}{}", command.get_name());
    let about = command
        .get_long_about()
        .or(command.get_about())
        .map(ToString::to_string)
        .unwrap_or_default();
    text.push_str(&format!("\n## {name}\n\n{about}\n"));
    let arguments: Vec<_> =
        command.get_arguments().filter(|argument| !argument.is_hide_set()).collect();
    if !arguments.is_empty() {
        text.push_str("\n| argument | what |\n| --- | --- |\n");
    }
    for argument in arguments {
        let value = argument
            .get_value_names()
            .and_then(|names| names.first())
            .map(|name| format!(" {name}"));
        let takes = argument.get_action().takes_values();
        let shown = match argument.get_long() {
            Some(long) => format!("--{long}{}", value.filter(|_| takes).unwrap_or_default()),
            None => value.unwrap_or_default().trim().to_owned(),
        };
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!(
            "| `{shown}` | {} |\n",
            help.replace('|', "\\|").replace('\n', " ")
        ));
    }
    for subcommand in command.get_subcommands() {
        describe(subcommand, &format!("{name} "), text);
    }
}

fn manifests() -> String {
    let mut text = String::from(
        "# Manifests\n\n\
         YAML documents with `apiVersion: countersign.dev/v1alpha1`, `kind`, `metadata: {name: …}` and `spec`. Unknown \
         fields are errors. `countersign schema KIND` prints the JSON Schema of a kind, for editors.\n",
    );
    for kind in Kind::ALL {
        let schema = schema(kind);
        let spec = &schema["properties"]["spec"];
        let about = spec["description"].as_str().unwrap_or_default();
        text.push_str(&format!("\n## {kind}\n\n{about}\n\n"));
        fields(spec, &mut text);
        if kind == Kind::Service {
            text.push_str("\n### Upstreams\n\n");
            fields(&schema["$defs"]["Upstream"], &mut text);
        }
    }
    text
}

fn fields(spec: &serde_json::Value, text: &mut String) {
    text.push_str("| field | needed | what |\n| --- | --- | --- |\n");
    let required = |name: &str| {
        spec["required"].as_array().is_some_and(|names| names.iter().any(|needed| needed == name))
    };
    for (name, field) in spec["properties"].as_object().into_iter().flatten() {
        let what = field["description"]
            .as_str()
            .unwrap_or_default()
            .replace('\n', " ")
            .replace('|', "\\|");
        let needed = if required(name) { "yes" } else { "" };
        text.push_str(&format!("| `{name}` | {needed} | {what} |\n"));
    }
}

fn events() -> String {
    let mut text = String::from(
        "# Events\n\n\
         The kinds of events of the audit log, in a closed list: no other is written or read. Every event has a kind, a time \
         (`at`), an actor, a subject, and the incarnation and revision that were current once it had happened; what tells of \
         a certificate also its serial and `tbs`, the SHA-256 of its to-be-signed bytes. These are in the leaf, whose form \
         is version 1 (`v`); the details are beside it, bound by a salted digest. [The audit log](../log.md) says more.\n",
    );
    for kind in EventKind::ALL {
        let (meaning, subject) = (kind.meaning(), kind.subject());
        text.push_str(&format!(
            "\n## {kind}\n\n{meaning} Subject: {}\n",
            subject.replace('|', "\\|")
        ));
        if !kind.fields().is_empty() {
            text.push_str("\n| detail | what |\n| --- | --- |\n");
        }
        for countersign_audit::Field { name, meaning } in kind.fields() {
            text.push_str(&format!("| `{name}` | {} |\n", meaning.replace('|', "\\|")));
        }
    }
    text
}

fn metrics() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Names stay what they are. Labels have their values from closed lists and from manifests, so nobody who connects can \
         add any. A `histogram` shows as `…_bucket`, `…_sum` and `…_count`, a `summary` as `…_sum` and `…_count`. \
         [Monitoring](../monitoring.md) says what to make of them.\n",
    );
    let mut table = |whose: &str, metrics: &mut dyn Iterator<Item = countersign_proxy::Row>| {
        text.push_str(&format!(
            "\n## {whose}\n\n| metric | kind | labels | what |\n| --- | --- | --- | --- |\n"
        ));
        for (name, kind, labels, what) in metrics {
            let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
            text.push_str(&format!("| `{name}` | {kind} | {} | {what} |\n", labels.join(", ")));
        }
    };
    table("countersign server", &mut countersign_server::metrics());
    table("countersign agent", &mut countersign_agent::METRICS.into_iter());
    table("countersign proxy", &mut countersign_proxy::METRICS.into_iter());
    table("The library `countersign`", &mut countersign::METRICS.into_iter());
    table("countersign log export", &mut super::log::METRICS.into_iter());
    text
}
