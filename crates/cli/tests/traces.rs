//! Traces as a collector gets them: from `web` through `orders` to `payments`, and from a renewal into its issuance.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/collector.rs"]
mod collector;
#[path = "support/spans.rs"]
mod spans;
mod support;

use collector::Collector;
use spans::{Span, by_trace, spans};
use support::{Up, folder, shop, until};

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
    assert_eq!(into_payments.says("countersign.peer"), "spiffe://shop.example/orders");
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
fn from_a_request_one_comes_to_the_issue_of_every_certificate_that_it_rode_on() {
    let collector = Collector::start();
    let (up, _state) = traced_shop(&collector, "1");
    let trace = until("a trace with all hops", || {
        assert_eq!(up.get("web", "/").0, 200);
        by_trace(&collector).into_values().find(|spans| spans.len() == 4)
    });
    for (instance, subject) in
        [("web-proxy", "web"), ("orders-proxy", "orders"), ("payments-proxy", "payments")]
    {
        let hop = trace.iter().find(|span| span.instance == instance).unwrap();
        let (issue, signing) = issue_of(&collector, hop);
        assert_eq!(issue.says("countersign.subject"), format!("spiffe://shop.example/{subject}"));
        assert_eq!(issue.says("countersign.certificate"), hop.says("countersign.certificate"));
        assert_eq!(signing.service, "countersign-server");
        let renewal = by_trace(&collector).remove(&signing.trace).unwrap();
        let asked = renewal.iter().find(|span| Some(&span.id) == signing.parent.as_ref());
        assert_eq!(asked.unwrap().name, "renew SVIDs", "{renewal:#?}");
    }
}

/// The issue of the certificate that a hop was made with, and the answer of the server that it was part of.
fn issue_of(collector: &Collector, hop: &Span) -> (Span, Span) {
    let at = |place: &(String, String)| {
        until("what is pointed to is told", || {
            let spans = by_trace(collector).remove(&place.0)?;
            spans.into_iter().find(|span| span.id == place.1)
        })
    };
    let issue = at(&hop.points_to()[0]);
    assert_eq!(issue.name, "issue SVID");
    let signing = at(&issue.points_to()[0]);
    assert_eq!(signing.name, "Sign");
    (issue, signing)
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
