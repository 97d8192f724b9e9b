//! Settings of the programs: a flag over an environment variable over a file over a default, from one table.

mod address;
mod field;
mod file;
mod remember;
mod resolve;

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches};

pub use self::address::MaybeAddress;
pub use self::field::{Field, Takes};
pub use self::remember::{REMEMBERED_END, Remembered, RememberedSetting, remember};
pub use self::resolve::{Resolved, Source};

use crate::exit::Failure;
use crate::system;

/// A program that is told how to run.
pub trait Program {
    /// Its subcommand.
    const NAME: &'static str;
    /// What it can be told.
    const FIELDS: &'static [Field];
}

/// What every program can be told.
pub const COMMON: &[Field] = &[
    Field::one("log", "FORM", "How to log on standard error: `human` or `json`").or("human"),
    Field::one("log-level", "LEVEL", "What to log: `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,countersign_proxy=debug`").or("info"),
];

/// The flags of a program, as they were given.
#[derive(Clone, Debug)]
pub struct Settings<P> {
    flags: BTreeMap<&'static str, Vec<String>>,
    config: Option<PathBuf>,
    program: PhantomData<P>,
}

fn fields<P: Program>() -> impl Iterator<Item = &'static Field> {
    P::FIELDS.iter().chain(COMMON)
}

impl<P: Program> Settings<P> {
    /// Brings flags, environment, file and defaults together.
    ///
    /// # Errors
    /// When the file or an environment variable cannot be read. What they say is judged later, all at once.
    pub fn resolve(&self) -> Result<Resolved, Failure> {
        let config = match &self.config {
            Some(path) => Some(path.clone()),
            None => system::variable("COUNTERSIGN_CONFIG")?.map(PathBuf::from),
        };
        let mut resolved = Resolved::default();
        let mut from_file = match config {
            Some(path) => file::read(&path, &fields::<P>().collect::<Vec<_>>(), &mut resolved)?,
            None => BTreeMap::new(),
        };
        for field in fields::<P>() {
            let in_file = from_file.remove(field.flag);
            if let Some(texts) = self.flags.get(field.flag) {
                resolved.set(field, texts.clone(), Source::Flag);
                continue;
            }
            let variable = field.variable();
            if let Some(text) = system::variable(&variable)? {
                resolved.set(field, field.split(&text), Source::Environment(variable));
            } else if let Some((texts, source)) = in_file {
                resolved.set(field, texts, source);
            } else if let Some(default) = field.default {
                resolved.set(field, vec![default.to_owned()], Source::Default);
            }
        }
        Ok(resolved)
    }
}

impl<P: Program> clap::Args for Settings<P> {
    fn augment_args(command: clap::Command) -> clap::Command {
        let command = command.arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("A TOML file of these settings, each under its name with `_` for `-`")
                .long_help(
                    "A TOML file of these settings, each under its name with `_` for `-`. A flag wins over the \
                     environment, which wins over the file. Also COUNTERSIGN_CONFIG.",
                ),
        );
        fields::<P>().fold(command, |command, field| command.arg(argument(field)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

fn argument(field: &'static Field) -> Arg {
    let mut help = format!("{} [env: {}]", field.help, field.variable());
    if let Some(default) = field.default {
        help.push_str(&format!(" [default: {default}]"));
    }
    let argument = Arg::new(field.flag).long(field.flag).help(help).hide(field.hidden);
    match field.takes {
        Takes::One => argument.value_name(field.value).action(ArgAction::Set),
        Takes::Many => argument.value_name(field.value).action(ArgAction::Append),
        Takes::Nothing => argument.num_args(0).default_missing_value("true").action(ArgAction::Set),
    }
}

impl<P: Program> clap::FromArgMatches for Settings<P> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = BTreeMap::new();
        for field in fields::<P>() {
            if let Some(texts) = matches.get_many::<String>(field.flag) {
                flags.insert(field.flag, texts.cloned().collect());
            }
        }
        let config = matches.get_one::<PathBuf>("config").cloned();
        Ok(Self { flags, config, program: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
