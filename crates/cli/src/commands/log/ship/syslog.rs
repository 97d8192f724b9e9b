//! Syslog: RFC 5424 messages in the frames of RFC 5425, over TLS.
//!
//! Syslog knows no acknowledgement. So an event counts as received only when the line stood for a while after it was sent, or when the receiver
//! closed the line after we had said that nothing more comes. Whatever lies behind that is sent again on the next line.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use countersign_api::admin::EventView;
use countersign_identity::{Clock as _, SystemClock, Timestamp};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::line::{Wire, connect};
use super::to::{Destination, Enterprise, Origin};
use crate::output::printable;

/// Facility 13, log audit; severity 5, notice.
const PRIORITY: u8 = 13 * 8 + 5;
/// What receivers are expected to take (RFC 5425, 4.3.1).
const MESSAGE_BYTES_MAX: usize = 8192;
/// How long a line has to stand after an event was sent.
const STANDS: Duration = Duration::from_secs(5);
/// How long a receiver may take to end the line.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// Pages whose fate is open; with more the line is not used any further.
const OPEN_MAX: usize = 10_000;

/// A line to a receiver.
pub(super) struct Syslog {
    wire: Wire,
    enterprise: Enterprise,
    /// Up to where, and when it was sent.
    open: VecDeque<(u64, Timestamp)>, // INVARIANT: at most OPEN_MAX
    sent: Option<u64>,
}

impl Syslog {
    pub(super) async fn open(to: &Destination) -> io::Result<Self> {
        let wire = connect(to).await?;
        Ok(Self { wire, enterprise: to.enterprise, open: VecDeque::new(), sent: None })
    }

    /// The first event that was not sent on this line, if any was.
    pub(super) fn sent_to(&self) -> Option<u64> {
        self.sent
    }

    /// Sends events, each in a frame.
    pub(super) async fn send(&mut self, origin: &Origin, events: &[EventView]) -> io::Result<()> {
        self.look()?;
        let mut frames = Vec::new();
        for event in events {
            let message = message(self.enterprise, origin, event);
            frames.extend_from_slice(format!("{} ", message.len()).as_bytes());
            frames.extend_from_slice(message.as_bytes());
        }
        self.wire.write_all(&frames).await?;
        self.wire.flush().await?;
        if OPEN_MAX <= self.open.len() {
            return Err(io::Error::other("the receiver's line never settles"));
        }
        if let Some(next) = events.last().map(|event| event.index + 1) {
            self.sent = Some(next);
            self.open.push_back((next, SystemClock::new().now()));
        }
        Ok(())
    }

    /// Fails when the receiver has ended the line, or said what it should not.
    pub(super) fn look(&mut self) -> io::Result<()> {
        use futures_util::FutureExt as _;
        let mut byte = [0; 64];
        match self.wire.read(&mut byte).now_or_never() {
            None => Ok(()),
            Some(Ok(0)) => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the receiver ended the line"))
            }
            Some(Ok(_)) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the receiver speaks, and syslog does not",
            )),
            Some(Err(error)) => Err(error),
        }
    }

    /// Up to where the receiver is taken to have all.
    pub(super) fn settled(&mut self) -> Option<u64> {
        let now = SystemClock::new().now();
        let mut settled = None;
        while let Some((next, at)) = self.open.front().copied()
            && at + STANDS <= now
        {
            settled = Some(next);
            self.open.pop_front();
        }
        settled
    }

    /// Says that nothing more comes, and waits until the receiver has read that, and with it all.
    pub(super) async fn end(mut self) -> io::Result<()> {
        self.look()?;
        self.wire.shutdown().await?;
        let ended = async {
            let mut byte = [0; 64];
            while 0 < self.wire.read(&mut byte).await? {}
            Ok(())
        };
        let late = |_late| {
            let why = "the receiver does not end the line, so it is not known what it has";
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        };
        tokio::time::timeout(END_TIMEOUT, ended).await.unwrap_or_else(late)
    }
}

/// An event as a message.
fn message(enterprise: Enterprise, origin: &Origin, event: &EventView) -> String {
    let whole = json!({
        "incarnation": origin.incarnation, "index": event.index, "kind": event.kind, "at": event.at,
        "revision": event.revision, "actor": event.actor, "subject": event.subject,
        "serial": event.serial, "leaf": event.leaf, "details": event.details,
    });
    let text = framed(enterprise, origin, event, &whole.to_string());
    if text.len() <= MESSAGE_BYTES_MAX {
        return text;
    }
    // The leaf binds them, and `countersign log show` has them.
    let mut shorter = whole;
    shorter["detailsLeftOut"] = event.details.to_string().len().into();
    shorter["details"] = serde_json::Value::Null;
    framed(enterprise, origin, event, &shorter.to_string())
}

fn framed(enterprise: Enterprise, origin: &Origin, event: &EventView, body: &str) -> String {
    let Origin { incarnation, domain } = origin;
    let (at, kind) = (event.at, header(&event.kind, 32));
    let mut data = format!("incarnation=\"{incarnation}\" index=\"{}\"", event.index);
    data.push_str(&format!(" actor=\"{}\"", value(&event.actor)));
    data.push_str(&format!(" subject=\"{}\"", value(&event.subject)));
    if let Some(serial) = &event.serial {
        data.push_str(&format!(" serial=\"{serial}\""));
    }
    let host = header(domain, 255);
    format!(
        "<{PRIORITY}>1 {at} {host} countersign - {kind} [event@{enterprise} {data}] \u{feff}{body}"
    )
}

/// A field of the header: printable ASCII without blanks, and never empty.
fn header(text: &str, bytes_max: usize) -> String {
    let text: String = text.chars().filter(char::is_ascii_graphic).take(bytes_max).collect();
    if text.is_empty() { "-".to_owned() } else { text }
}

/// A parameter's value, escaped (RFC 5424, 6.3.3), and without what would end a line where receivers write lines.
fn value(text: &str) -> String {
    let mut escaped = String::new();
    for letter in printable(text).chars() {
        if matches!(letter, '"' | '\\' | ']') {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use countersign_identity::{Revision, Sha256};
    use serde_json::Value;

    use super::*;

    fn event(subject: &str, details: Value) -> EventView {
        EventView {
            index: 7,
            kind: "svid-issued".to_owned(),
            at: Timestamp::from_secs(1_000_000),
            revision: Revision::default(),
            actor: "operator:uid:0".to_owned(),
            subject: subject.to_owned(),
            serial: None,
            leaf: Sha256::from_bytes([7; 32]),
            details,
        }
    }

    fn origin() -> Origin {
        Origin { incarnation: 2, domain: "prod.example".to_owned() }
    }

    #[test]
    fn a_message_has_header_data_and_the_event_as_json() {
        let message = message(
            Enterprise::DOCUMENTATION,
            &origin(),
            &event("spiffe://a/b", json!({ "a": 1 })),
        );
        let begins = "<109>1 1970-01-12T13:46:40Z prod.example countersign - svid-issued [event@32473 \
                      incarnation=\"2\" index=\"7\" actor=\"operator:uid:0\" subject=\"spiffe://a/b\"] \u{feff}{";
        assert!(message.starts_with(begins), "{message}");
        let (_, body) = message.split_once('\u{feff}').unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["index"], &body["details"]["a"]), (&json!(7), &json!(1)));
    }

    #[test]
    fn the_data_is_named_by_the_number_of_the_organisation_that_has_one() {
        let ours: Enterprise = "4294967295".parse().unwrap();
        let message = message(ours, &origin(), &event("a", Value::Null));
        assert!(message.contains(" svid-issued [event@4294967295 incarnation="), "{message}");
        for bad in ["", "0", "-1", "4294967296", "1.2", "x", "1] [other@1", "+1", "01"] {
            assert!(bad.parse::<Enterprise>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hostile_name_makes_no_second_message_and_no_second_parameter() {
        let hostile = "a\"] x\n<0>1 - - - - - -\\\u{202e}\u{0}";
        let message = message(Enterprise::DOCUMENTATION, &origin(), &event(hostile, Value::Null));
        let (head, body) = message.split_once('\u{feff}').unwrap();
        assert!(
            !head.chars().any(char::is_control) && !body.chars().any(char::is_control),
            "{message:?}"
        );
        assert!(head.contains("subject=\"a\\\"\\] x"), "{head}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["subject"], hostile);
    }

    #[test]
    fn what_receivers_would_cut_is_sent_without_its_details() {
        let message = message(
            Enterprise::DOCUMENTATION,
            &origin(),
            &event("a", json!({ "text": "x".repeat(20_000) })),
        );
        assert!(message.len() <= MESSAGE_BYTES_MAX);
        let body: Value = serde_json::from_str(message.split_once('\u{feff}').unwrap().1).unwrap();
        assert_eq!((&body["details"], &body["detailsLeftOut"]), (&Value::Null, &json!(20_011)));
    }
}
