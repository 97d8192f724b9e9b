//! Spans, as a collector got them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::collector::Collector;

/// A span, with whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) service: String,
    pub(crate) instance: String,
    pub(crate) name: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: Option<String>,
    pub(crate) whole: Value,
}

impl Span {
    /// One of its attributes; nothing when it has no such.
    pub(crate) fn says(&self, key: &str) -> String {
        attribute(&self.whole["attributes"], key)
    }

    /// The traces and spans that it points to.
    pub(crate) fn points_to(&self) -> Vec<(String, String)> {
        let links = self.whole["links"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        links.map(|link| (text(&link["traceId"]), text(&link["spanId"]))).collect()
    }
}

fn attribute(attributes: &Value, key: &str) -> String {
    let found = attributes.as_array().unwrap().iter().find(|one| one["key"] == key);
    found
        .map(|one| one["value"]["stringValue"].as_str().unwrap_or_default().to_owned())
        .unwrap_or_default()
}

/// All that came so far.
pub(crate) fn spans(collector: &Collector) -> Vec<Span> {
    let mut spans = Vec::new();
    for body in collector.of("/v1/traces") {
        let resource = &body["resourceSpans"][0];
        let of = &resource["resource"]["attributes"];
        for span in resource["scopeSpans"][0]["spans"].as_array().unwrap() {
            let text = |field: &str| span[field].as_str().map(str::to_owned);
            spans.push(Span {
                service: attribute(of, "service.name"),
                instance: attribute(of, "service.instance.id"),
                name: text("name").unwrap(),
                trace: text("traceId").unwrap(),
                id: text("spanId").unwrap(),
                parent: text("parentSpanId"),
                whole: span.clone(),
            });
        }
    }
    spans
}

/// The same, those of one trace together.
pub(crate) fn by_trace(collector: &Collector) -> BTreeMap<String, Vec<Span>> {
    let mut traces: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for span in spans(collector) {
        traces.entry(span.trace.clone()).or_default().push(span);
    }
    traces
}
