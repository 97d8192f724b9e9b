//! Spans as a collector gets them, and as whoever is called gets their places.

use countersign_identity::{SeededEntropy, SimClock};
use serde_json::json;

use super::context::Hex;
use super::export::{body, told};
use super::*;

fn tracer(share: &str) -> (Tracer, Exporter) {
    let collector = "http://127.0.0.1:1".parse().unwrap();
    let tracing = Tracing { collector, share: share.parse().unwrap() };
    let service = Service { name: "countersign-test", instance: "a".to_owned() };
    let clock = Arc::new(SimClock::new(Timestamp::from_secs(1000)));
    Tracer::new(&tracing, service, clock, Arc::new(SeededEntropy::new(7)))
}

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn a_place_is_read_as_the_standard_has_it_and_nothing_else_is() {
    let read = |text: &str| text.parse::<Context>().map(|place| place.to_string());
    assert_eq!(read(PARENT).unwrap(), PARENT);
    assert_eq!(read(&format!("cc{}-more", &PARENT[2..])).unwrap(), PARENT);
    let changed = |place: usize, with: &str| {
        let mut text = PARENT.to_owned();
        text.replace_range(place..place + with.len(), with);
        text
    };
    for bad in [
        String::new(),
        PARENT[..54].to_owned(),
        format!("{PARENT}-more"),
        format!("{PARENT} "),
        format!("cc{}-{}", &PARENT[2..], "x".repeat(4096)),
        changed(0, "ff"),
        changed(2, "_"),
        changed(3, &"0".repeat(32)),
        changed(36, &"0".repeat(16)),
        changed(3, "F"),
        changed(53, "g"),
        changed(3, "é"),
    ] {
        assert_eq!(read(&bad), Err(BadContext), "{bad}");
    }
}

#[test]
fn a_span_continues_its_parents_trace_under_a_name_of_its_own() {
    let (tracer, mut exporter) = tracer("0");
    let parent: Context = PARENT.parse().unwrap();
    let mut span = tracer.begin(|| "outer".into(), Kind::Server, Some(parent));
    span.text("peer", "spiffe://a/b");
    span.fail("away");
    let inner = span.scope().begin("inner");
    let (outer_at, inner_at) = (span.context().unwrap(), inner.context().unwrap());
    assert_eq!((outer_at.trace, inner_at.trace), (parent.trace, parent.trace));
    assert!(outer_at.span != parent.span && inner_at.span != outer_at.span);
    drop(inner);
    drop(span);
    let (inner, outer) =
        (exporter.waiting.try_recv().unwrap(), exporter.waiting.try_recv().unwrap());
    assert_eq!((inner.parent, outer.parent), (Some(outer_at.span), Some(parent.span)));
    let body = body(&exporter.service, &[outer]);
    let told = &body["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    assert_eq!(told["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(told["parentSpanId"], "00f067aa0ba902b7");
    assert_eq!((&told["kind"], &told["status"]["code"]), (&json!(2), &json!(2)));
    assert_eq!(told["startTimeUnixNano"], "1000000000000");
}

#[test]
fn who_is_shown_a_certificate_can_point_to_where_its_issue_is_told() {
    let (tracer, mut exporter) = tracer("1");
    let serial: Serial = "4bf92f3577b34da6a3ce929d0e0e4736".parse().unwrap();
    let signing = tracer.begin(|| "Sign".into(), Kind::Server, None);
    drop(signing.scope().issued(&serial));
    let mut asked = tracer.begin(|| "GET orders".into(), Kind::Client, None);
    asked.certificate(&serial);
    drop(asked);
    let told: Vec<Value> = (0..2).map(|_| told(&exporter.waiting.try_recv().unwrap())).collect();
    let (issued, asked) = (&told[0], &told[1]);
    assert_eq!(issued["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
    for member in ["traceId", "spanId"] {
        assert_eq!(asked["links"][0][member], issued[member]);
    }
    assert_eq!(asked["attributes"], issued["attributes"]);
    let signing = signing.context().unwrap();
    assert_eq!(issued["links"][0]["spanId"], Hex(&signing.span).to_string());
    assert_ne!(asked["traceId"], issued["traceId"]);
    assert!(Scope::default().issued(&serial).context().is_none());
    let undrawn: Serial = format!("{:0<32}", "4b").parse().unwrap();
    let place = Context::of_issue(&undrawn);
    assert_eq!(place.to_string().parse(), Ok(place), "it is a place, whatever was drawn");
}

#[test]
fn what_nobody_asked_for_is_no_span() {
    let (tracer, mut exporter) = tracer("0");
    assert!(tracer.begin(|| "a".into(), Kind::Server, None).context().is_none());
    let unsampled = PARENT.replace("-01", "-00").parse().unwrap();
    assert!(tracer.begin(|| "a".into(), Kind::Server, Some(unsampled)).context().is_none());
    assert!(
        Tracer::default().begin(|| panic!("not named"), Kind::Server, None).context().is_none()
    );
    assert!(exporter.waiting.try_recv().is_err());
}

#[test]
fn a_share_of_the_traces_that_begin_here_is_told() {
    let (tracer, _exporter) = tracer("0.25");
    let begun =
        (0..4000).filter(|_| tracer.begin(|| "a".into(), Kind::Server, None).context().is_some());
    let count = begun.count();
    assert!((800..1200).contains(&count), "{count} of 4000");
    for bad in ["-0.1", "1.1", "NaN", "x", ""] {
        assert!(bad.parse::<Share>().is_err(), "{bad}");
    }
}

#[test]
fn spans_that_nobody_takes_are_dropped_and_counted() {
    let (tracer, _exporter) = tracer("1");
    for _ in 0..WAITING_MAX + 10 {
        drop(tracer.begin(|| "a".into(), Kind::Internal, None));
    }
    assert_eq!(tracer.dropped(), 10);
}
