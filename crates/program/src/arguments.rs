//! The command line of the process, read.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use countersign_identity::Code;

use crate::exit::Exit;
use crate::output::{self, Output, printable};

/// Reads the arguments of this process.
///
/// # Errors
/// How the program ends when there is nothing to run: help or the version was asked for and is printed, or the arguments are
/// not understood, which is told as every other failure is: on standard error, and for scripts as an object on standard
/// output. What may be a secret is repeated in neither.
pub fn read<C: Parser>() -> Result<C, ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    C::try_parse_from(&arguments).map_err(|error| {
        let error = without_secrets(error);
        tell(&error, wanted(&arguments)).into()
    })
}

/// The error without those of the given texts that may hold a secret.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    for kind in [ContextKind::InvalidValue, ContextKind::InvalidArg, ContextKind::InvalidSubcommand]
    {
        let Some(ContextValue::String(given)) = error.get(kind) else { continue };
        let Some(shown) = cut(given) else { continue };
        error.insert(kind, ContextValue::String(shown));
        // What is advised repeats it.
        error.remove(ContextKind::Suggested);
    }
    error
}

/// What is shown in place of a text that may hold a secret; nothing where it can be shown as it is.
fn cut(given: &str) -> Option<String> {
    let url = given.split_once("://");
    let open = ["spiffe://", "unix://", "file://"].iter().any(|scheme| given.starts_with(scheme));
    // A password in a URL, or in another form of one, or a token's PIN.
    let holds = ["@", "password=", "pin-value="].iter().any(|mark| given.contains(mark));
    if !holds && (url.is_none() || open) && !is_join_token(given) {
        return None;
    }
    let is_scheme =
        |text: &str| text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'+'));
    let scheme = url.map(|(scheme, _)| scheme).filter(|scheme| is_scheme(scheme));
    Some(scheme.map_or_else(|| "…".to_owned(), |scheme| format!("{scheme}://…")))
}

/// Whether a text has the form of a join token: base64url of 32 bytes, cut off or not. Flags and serials have no capitals.
fn is_join_token(given: &str) -> bool {
    let of_one = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    32 <= given.len()
        && given.bytes().all(of_one)
        && given.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn tell(error: &clap::Error, output: Output) -> Exit {
    // That nobody can read it ends the program no differently.
    let _unheard = error.print();
    if !error.use_stderr() {
        return Exit::Done;
    }
    if output == Output::Json {
        let object = crate::object(Code::NotUnderstood, &message(error), &[]);
        // The status says it all the same.
        let _unread = output::json(&object);
    }
    Exit::NotUnderstood
}

/// For whom to print, by arguments of which not all are understood. Nothing after `--` is a flag.
fn wanted(arguments: &[OsString]) -> Output {
    let flags = arguments.iter().skip(1).take_while(|argument| *argument != "--");
    let flags: Vec<&OsString> = flags.collect();
    let json = flags.iter().any(|flag| *flag == "--output=json")
        || flags.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json");
    if json { Output::Json } else { Output::Human }
}

/// What was not understood, as one sentence: without the usage, and the layout for terminals.
fn message(error: &clap::Error) -> String {
    match error.kind() {
        // Its text is the whole help.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            return "no command is named: `--help` shows which there are".to_owned();
        }
        _ => {}
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    // The last of each, since the first may stand in what was given.
    let text = text.rfind("\n\nFor more information").map_or(text, |end| &text[..end]);
    let usage = error.get(ContextKind::Usage).and_then(|_| text.rfind("\n\nUsage: "));
    let text = usage.map_or(text, |end| &text[..end]);
    let words: Vec<&str> = text.split_whitespace().collect();
    printable(&words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Probe {
        #[arg(long, global = true)]
        output: Option<String>,
        #[arg(long)]
        count: u8,
        rest: Vec<String>,
    }

    #[track_caller]
    fn asks(arguments: &[&str], output: Output) {
        let arguments: Vec<OsString> =
            [&["probe"], arguments].concat().into_iter().map(OsString::from).collect();
        assert_eq!(wanted(&arguments), output, "{arguments:?}");
    }

    #[test]
    fn the_form_is_known_of_arguments_that_are_not_understood() {
        asks(&["--nosuch", "--output", "json"], Output::Json);
        asks(&["--output=json", "--nosuch"], Output::Json);
        asks(&["--nosuch"], Output::Human);
        asks(&["json"], Output::Human);
        asks(&["--output"], Output::Human);
        asks(&["--output", "human", "json"], Output::Human);
        asks(&["--output=xml"], Output::Human);
        asks(&["--", "--output", "json"], Output::Human);
    }

    #[test]
    fn what_may_be_a_secret_is_cut_and_nothing_else_is() {
        let token = "q7RZx0Jt-yQ2m_8sV1nKpW3eUaYbGdLhTzCfXo5iE4M";
        for (given, shown) in [
            ("postgres://cs:hunter2@h/d", "postgres://…"),
            ("https://collector/hunter2", "https://…"),
            ("spiffe://cs:hunter2@h/d", "spiffe://…"),
            ("cs:hunter2@h://d", "…"),
            ("cs:hunter2@h/d", "…"),
            ("host=h password=hunter2", "…"),
            ("pkcs11:token=t?pin-value=hunter2", "…"),
            (token, "…"),
            (&token[..32], "…"),
        ] {
            assert_eq!(cut(given).as_deref(), Some(shown), "{given}");
        }
        for given in [
            "spiffe://shop.example/web",
            "unix:///run/admin.sock",
            "stauts",
            "a/folder/with/Capitals/and-a-file.yaml",
            "--revocation-views-of-the-whole-world",
            "0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(cut(given), None, "{given}");
        }
        let error = Probe::try_parse_from(["probe", &format!("--{token}")]).unwrap_err();
        let error = without_secrets(error);
        let said = error.render().to_string();
        assert!(!said.contains(token), "{said}");
        assert!(message(&error).starts_with("unexpected argument '…' found"), "{said}");
    }

    #[test]
    fn what_is_not_understood_is_one_sentence() {
        let says = |arguments: &[&str]| {
            message(&Probe::try_parse_from([&["probe"], arguments].concat()).unwrap_err())
        };
        assert_eq!(
            says(&["--count", "a\n\nUsage: b\u{202e}"]),
            "invalid value 'a Usage: b\u{fffd}' for '--count <COUNT>': invalid digit found in string"
        );
        let missing = "the following required arguments were not provided: --count <COUNT>";
        assert_eq!(says(&[]), missing);
        assert!(says(&["--cuont", "1"]).starts_with("unexpected argument '--cuont' found"));
    }
}
