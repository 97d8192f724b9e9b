//! The command with which to go on, as it can be pasted into a shell.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use anyhow::Result;
use countersign_server::{KekFile, Password, StoreAt, WrapMethod};
use zeroize::Zeroizing;

use super::unlock::Openers;
use crate::find;

/// What was said to make a data directory, and has to be said again to whoever opens it. It holds no secret.
#[derive(Debug)]
pub(crate) struct Again {
    data: PathBuf,
    options: String,
    /// Environment variables in which something was given.
    variables: Vec<&'static str>,
}

impl Again {
    /// What these and the environment say.
    ///
    /// # Errors
    /// When a variable is no text.
    pub(crate) fn new(data: PathBuf, store: &StoreAt, openers: &Openers) -> Result<Self> {
        let Openers { passphrase_file, seal, pin_file } = openers;
        let mut again = Self { data, options: String::new(), variables: Vec::new() };
        if let StoreAt::Postgres { url, password } = store {
            again.option("store", url.to_string());
            match password {
                Password::File(file) => again.option("store-password-file", file),
                Password::Passfile(_) => again.variables.push("PGPASSFILE"),
                Password::Given(_) => again.variables.push("PGPASSWORD"),
                Password::None => {}
            }
        }
        if let Some(seal) = seal {
            again.option("seal", seal.uri());
        }
        match pin_file {
            Some(file) => again.option("pin-file", file),
            None => again.variable(PIN)?,
        }
        match passphrase_file {
            Some(file) => again.option("passphrase-file", file),
            None => again.variable(PASSPHRASE)?,
        }
        Ok(again)
    }

    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.options.push_str(&format!(" --{name} {}", quoted(value.as_ref())));
    }

    fn variable(&mut self, name: &'static str) -> Result<()> {
        if find::variable(name)?.map(Zeroizing::new).is_some() {
            self.variables.push(name);
        }
        Ok(())
    }

    /// Such as `next: countersign server --data d --seal pkcs11:…`, without an end of line. `more` is for after the options.
    pub(crate) fn next(&self, command: &str, more: &str) -> String {
        let Self { data, options, variables } = self;
        // The directory has been made: its key file says by what it is sealed.
        let by = KekFile::method(&data.join("kek")).ok().flatten();
        let needed =
            |name: &&&'static str| **name != PASSPHRASE || by == Some(WrapMethod::Passphrase);
        let needed: Vec<&str> = variables.iter().filter(needed).copied().collect();
        let data = quoted(data.as_os_str());
        let mut text = format!("next: countersign {command} --data {data}{options}{more}");
        if !needed.is_empty() {
            text.push_str(&format!("\n  with {} set as it is here", needed.join(", ")));
        }
        text
    }
}

const PIN: &str = "COUNTERSIGN_PIN";
const PASSPHRASE: &str = "COUNTERSIGN_PASSPHRASE";

/// One word of a shell, whatever is in it.
fn quoted(word: &OsStr) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,@%+=".contains(c);
    match word.to_str() {
        Some(text) if !text.is_empty() && text.chars().all(plain) => text.into(),
        Some(text) if !text.chars().any(countersign_identity::is_unseen) => {
            format!("'{}'", text.replace('\'', r"'\''")).into()
        }
        // What would move a terminal's cursor, or is no text.
        Some(_) | None => {
            let byte = |byte: &u8| match byte {
                b'\'' | b'\\' => format!("\\{}", char::from(*byte)),
                b' '..=b'~' => char::from(*byte).to_string(),
                other => format!("\\{other:03o}"),
            };
            format!("$'{}'", word.as_bytes().iter().map(byte).collect::<String>()).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is_quoted(word: &[u8], expected: &str) {
        assert_eq!(quoted(OsStr::from_bytes(word)), expected);
        // What bash makes of it.
        let command = std::process::Command::new("bash")
            .args(["-c", &format!("printf %s {expected}")])
            .output()
            .unwrap();
        assert_eq!(command.stdout, word, "{expected}");
    }

    #[test]
    fn word_is_one_word_to_a_shell_whatever_is_in_it() {
        is_quoted(b"/var/lib/a-b_c.d", "/var/lib/a-b_c.d");
        is_quoted(b"", "''");
        is_quoted(b"two words", "'two words'");
        is_quoted(b"it's", r"'it'\''s'");
        is_quoted("größe".as_bytes(), "'größe'");
        is_quoted(b"a;b?c=$(d)", "'a;b?c=$(d)'");
        is_quoted(b"~root", "'~root'");
        is_quoted(b"a\x1b[2J\n'\\\xff", r"$'a\033[2J\012\'\\\377'");
    }

    #[test]
    fn everything_is_said_again_but_no_secret() {
        let store = |password| {
            let url = "postgres://u@h/d?sslrootcert=/ca.pem".parse().unwrap();
            StoreAt::Postgres { url, password }
        };
        let openers = Openers {
            passphrase_file: Some("words".into()),
            seal: None,
            pin_file: Some("its pin".into()),
        };
        let next = |password| {
            let again = Again::new("no such".into(), &store(password), &openers).unwrap();
            again.next("server", "")
        };
        let begin = "next: countersign server --data 'no such' --store 'postgres://u@h/d?sslrootcert=/ca.pem'";
        let end = "--pin-file 'its pin' --passphrase-file words";
        assert_eq!(
            next(Password::File("p".into())),
            format!("{begin} --store-password-file p {end}")
        );
        assert_eq!(
            next(Password::Given(Zeroizing::new("secret".to_owned()))),
            format!("{begin} {end}\n  with PGPASSWORD set as it is here")
        );
    }
}
