//! Events as log records of OTLP.

use std::io;

use countersign_api::admin::EventView;
use countersign_program::otlp::{number, post, text};
use serde_json::{Value, json};

use super::line::connect;
use super::to::{Destination, Origin};

/// Sends events in one message. Whoever answers that it is well has them.
pub(super) async fn send(
    to: &Destination,
    origin: &Origin,
    events: &[EventView],
) -> io::Result<()> {
    let body = body(origin, events).to_string();
    let wire = connect(to).await?;
    let path = to.at.path("logs");
    match post(wire, (to.at.authority(), &path), body.as_bytes()).await? {
        200..=299 => Ok(()),
        status => Err(io::Error::other(format!("the collector answers {status}"))),
    }
}

/// The message, `ExportLogsServiceRequest` of the protocol.
fn body(origin: &Origin, events: &[EventView]) -> Value {
    let resource =
        [text("service.name", "countersign"), text("countersign.trust_domain", &origin.domain)];
    let records: Vec<Value> = events.iter().map(|event| record(origin, event)).collect();
    json!({ "resourceLogs": [{
        "resource": { "attributes": resource },
        "scopeLogs": [{ "scope": { "name": "countersign.audit" }, "logRecords": records }],
    }] })
}

fn record(origin: &Origin, event: &EventView) -> Value {
    let nanos = (i128::from(event.at.micros()) * 1000).to_string();
    let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let mut attributes = vec![
        number("countersign.incarnation", count(origin.incarnation)),
        number("countersign.index", count(event.index)),
        text("countersign.revision", &event.revision.to_string()),
        text("countersign.actor", &event.actor),
        text("countersign.subject", &event.subject),
        text("countersign.leaf", &event.leaf.to_string()),
    ];
    attributes.extend(event.serial.map(|serial| text("countersign.serial", &serial.to_string())));
    if !event.details.is_null() {
        attributes.push(text("countersign.details", &event.details.to_string()));
    }
    json!({
        "timeUnixNano": nanos, "observedTimeUnixNano": nanos,
        "severityNumber": 9, "severityText": "INFO",
        "eventName": event.kind,
        "body": { "stringValue": format!("{} {}", event.kind, event.subject) },
        "attributes": attributes,
    })
}
