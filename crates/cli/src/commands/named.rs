//! What arguments name, and where such names are found when one is none.

use std::fmt::Display;
use std::str::FromStr;

use countersign_audit::EventKind;
use countersign_identity::{KeyId, NodeId, Revision, Serial, SpiffeId};

fn read<T: FromStr<Err: Display>>(text: &str, found: &str) -> Result<T, String> {
    text.parse().map_err(|why| format!("{why}; {found}"))
}

/// A SPIFFE ID.
pub(crate) fn identity(text: &str) -> Result<SpiffeId, String> {
    read(
        text,
        "expected `spiffe://TRUST-DOMAIN/PATH`, such as `spiffe://shop.example/web`, as `countersign status` lists those that are held",
    )
}

/// What is to be revoked, by a SPIFFE ID: what else it can be named by goes with a flag of its own.
pub(crate) fn revoked(text: &str) -> Result<SpiffeId, String> {
    identity(text).map_err(|why| {
        format!(
            "{why}; a serial goes with `--serial`, a key with `--key`, a node with `--node`, an authority with `--authority`"
        )
    })
}

/// What is to be suspended, or was, by a SPIFFE ID.
pub(crate) fn suspended(text: &str) -> Result<SpiffeId, String> {
    identity(text).map_err(|why| format!("{why}; a node goes with `--node`"))
}

/// A certificate's serial.
pub(crate) fn serial(text: &str) -> Result<Serial, String> {
    read(text, "`countersign status` and `countersign log search --kind svid-issued` show serials")
}

/// A key of a workload.
pub(crate) fn key(text: &str) -> Result<KeyId, String> {
    read(
        text,
        "`openssl x509 -in FILE -noout -pubkey | openssl pkey -pubin -outform DER | sha256sum` computes that of a certificate's key",
    )
}

/// A node.
pub(crate) fn node(text: &str) -> Result<NodeId, String> {
    read(text, "`countersign node list` shows them")
}

/// The key of an authority.
pub(crate) fn authority(text: &str) -> Result<KeyId, String> {
    read(text, "`countersign authority list` shows them")
}

/// A revision.
pub(crate) fn revision(text: &str) -> Result<Revision, String> {
    read(text, "`countersign history` lists them")
}

/// A kind of event.
pub(crate) fn event_kind(text: &str) -> Result<EventKind, String> {
    read(text, "`countersign reference events` lists them")
}

/// The index of an event.
pub(crate) fn index(text: &str) -> Result<u64, String> {
    let none = |_| {
        format!(
            "`{text}` is not the index of an event: expected a whole number, as `countersign log tail` shows them"
        )
    };
    text.parse().map_err(none)
}

/// How many of something.
pub(crate) fn count<T: FromStr>(text: &str) -> Result<T, String> {
    let none = |_| format!("`{text}` is not a count: expected a whole number, such as `20`");
    text.parse().map_err(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn says<T: std::fmt::Debug>(read: fn(&str) -> Result<T, String>, words: &[&str]) {
        let said = read("nonsense").unwrap_err();
        for word in [&["`nonsense` "], words].concat() {
            assert!(said.contains(word), "expected {word:?} in: {said}");
        }
    }

    #[test]
    fn what_is_no_name_is_told_what_one_looks_like_and_what_shows_them() {
        says(identity, &["expected `spiffe://TRUST-DOMAIN/PATH`", "`countersign status`"]);
        says(revoked, &["`spiffe://shop.example/web`", "`--serial`", "`--key`", "`--authority`"]);
        says(suspended, &["`spiffe://shop.example/web`", "a node goes with `--node`"]);
        says(serial, &["expected 32 lower-case", "`countersign log search --kind svid-issued`"]);
        says(key, &["expected 64 lower-case", "`openssl x509 "]);
        says(node, &["expected 32 lower-case", "`countersign node list`"]);
        says(authority, &["expected 64 lower-case", "`countersign authority list`"]);
        says(revision, &["such as `1.412`", "`countersign history`"]);
        says(event_kind, &["`countersign reference events`"]);
        says(index, &["a whole number", "`countersign log tail`"]);
        says(count::<usize>, &["a whole number, such as `20`"]);
    }
}
