//! Traces as a collector gets them: from `web` through `orders` to `payments`, and from a renewal into its issuance.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/collector.rs"]
mod collector;
mod support;

use std::collections::BTreeMap;

use collector::Collector;
use serde_json::Value;
use support::{Up, folder, shop, until};

/// A span, with whose it is.
#[derive(Clone, Debug)]
struct Span {
    service: String,
    instance: String,
    name: String,
    trace: String,
    id: String,
    parent: Option<String>,
    whole: Value,
}

fn attribute(attributes: &Value, key: &str) -> String {
    let found = attributes.as_array().unwrap().iter().find(|one| one["key"] == key);
    found
        .map(|one| one["value"]["stringValue"].as_str().unwrap_or_default().to_owned())
        .unwrap_or_default()
}

fn spans(collector: &Collector) -> Vec<Span> {
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

fn by_trace(collector: &Collector) -> BTreeMap<String, Vec<Span>> {
    let mut traces: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for span in spans(collector) {
        traces.entry(span.trace.clone()).or_default().push(span);
    }
    traces
}

fn traced_shop(collector: &Collector, share: &str) -> (Up, tempfile::TempDir) {
    let state = folder();
    let environment = [("COUNTERSIGN_OTLP", &*collector.url()), ("COUNTERSIGN_TRACE_SHARE", share)]
        .map(|(name, value)| (name, value.to_owned()));
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let up = Up::start_in(&shop(), state.path(), &[], &environment);
    (up, state)
}

#[test]
fn one_trace_leads_from_web_through_orders_to_payments() {
    let collector = Collector::start();
    let (up, _state) = traced_shop(&collector, "1");
    let trace = until("a trace with all hops", || {
        assert_eq!(up.get("web", "/").0, 200);
        let traces = by_trace(&collector);
        traces.into_values().find(|spans| spans.len() == 4)
    });
    let of = |instance: &str, kind: u64| {
        let found =
            trace.iter().find(|span| span.instance == instance && span.whole["kind"] == kind);
        found.unwrap_or_else(|| panic!("no span of {instance}: {trace:#?}")).clone()
    };
    // Each way out is a child of the way in before it, through the program between them.
    let (out_of_web, into_orders) = (of("web-proxy", 3), of("orders-proxy", 2));
    let (out_of_orders, into_payments) = (of("orders-proxy", 3), of("payments-proxy", 2));
    assert_eq!(out_of_web.parent, None);
    assert_eq!(into_orders.parent, Some(out_of_web.id));
    assert_eq!(out_of_orders.parent, Some(into_orders.id));
    assert_eq!(into_payments.parent, Some(out_of_orders.id));
    assert_eq!(into_orders.name, "GET orders");
    assert_eq!(
        attribute(&into_payments.whole["attributes"], "countersign.peer"),
        "spiffe://shop.example/orders"
    );
    assert!(trace.iter().all(|span| span.service == "countersign-proxy"), "{trace:#?}");
}

#[test]
fn a_renewal_and_its_issuance_are_one_trace() {
    let collector = Collector::start();
    // What is not taken is offered again.
    collector.refuse(1);
    let (_up, _state) = traced_shop(&collector, "1");
    until("a renewal with its issuance", || {
        let traces = by_trace(&collector);
        traces.into_values().find(|spans| {
            let of = |service: &str, name: &str| {
                spans.iter().find(|span| span.service == service && span.name == name)
            };
            let asked = of("countersign-agent", "renew SVIDs");
            let Some((asked, signed)) = asked.zip(of("countersign-server", "Sign")) else {
                return false;
            };
            let steps = ["verify requests", "authorise", "review", "record", "sign"];
            signed.parent.as_ref() == Some(&asked.id)
                && steps.iter().all(|step| {
                    of("countersign-server", step)
                        .is_some_and(|step| step.parent.as_ref() == Some(&signed.id))
                })
        })
    });
}

#[test]
fn what_a_caller_says_of_its_trace_is_continued_only_when_it_is_well_formed() {
    let collector = Collector::start();
    // Nothing begins here: what is told is what callers ask for.
    let (up, _state) = traced_shop(&collector, "0");
    let asked = "4bf92f3577b34da6a3ce929d0e0e4736";
    let ask = |parent: &str| {
        let address = up.address("web");
        let answer = std::process::Command::new("curl")
            .args(["-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}"])
            .args(["-H", &format!("traceparent: {parent}"), &format!("http://{address}/")])
            .output()
            .unwrap();
        assert_eq!(support::text(&answer.stdout), "200", "{}", support::text(&answer.stderr));
    };
    for bad in ["nonsense".to_owned(), format!("00-{asked}-00f067aa0ba902b7"), "x".repeat(3000)] {
        ask(&bad);
    }
    ask(&format!("00-{asked}-00f067aa0ba902b7-01"));
    let trace = until("the trace that was asked for", || {
        by_trace(&collector).remove(asked).filter(|spans| spans.len() == 4)
    });
    let first = trace.iter().find(|span| span.parent.as_deref() == Some("00f067aa0ba902b7"));
    assert_eq!(first.unwrap().instance, "web-proxy");
    assert_eq!(by_trace(&collector).len(), 1, "{:#?}", spans(&collector));
}
