//! Streams that replace each other, and what acknowledgements count.

use super::*;

const NODE: NodeId = NodeId::from_bytes([7; 16]);

fn now() -> Timestamp {
    Timestamp::from_secs(1_000_000)
}

/// A slice at revision 5 whose node runs `web` and `orders`.
fn told() -> Slice {
    Slice::of_ids(Revision { incarnation: 1, number: 5 }, &["web", "orders"])
}

fn ack(number: u64, points: Vec<v1::PointAck>) -> v1::SyncAck {
    v1::SyncAck { revision: Some(v1::Revision { incarnation: 1, number }), points, unaware: 0 }
}

#[tokio::test]
async fn newest_stream_of_a_node_ends_the_older_one() {
    let roster = Roster::default();
    let (first, mut leashed) = roster.attend(NODE, &v1::SyncHello::default(), now());
    let (_second, _other) = roster.attend(NODE, &v1::SyncHello::default(), now());
    assert_eq!(leashed.ended().await.code, Code::Unavailable);
    roster.leave(NODE, first);
    assert_eq!(
        roster.fleet(Timestamp::EPOCH).connected,
        1,
        "the end of the older stream does not disconnect the newer"
    );
}

#[test]
fn clock_that_is_set_while_the_stream_is_open_is_told_with_the_next_report() {
    let roster = Roster::default();
    let hello = v1::SyncHello { clock_micros: now().micros(), ..v1::SyncHello::default() };
    let _stream = roster.attend(NODE, &hello, now());
    let skew = || roster.snapshot()[&NODE].skew_micros;
    roster.report(NODE, v1::ReportRequest::default(), now());
    assert_eq!(skew(), Some(0), "a report that tells no clock changes nothing");
    let clock_micros = now().micros() - 600_000_000;
    roster.report(NODE, v1::ReportRequest { clock_micros, ..Default::default() }, now());
    assert_eq!(skew(), Some(-600_000_000));
}

#[tokio::test]
async fn removed_node_loses_its_stream() {
    let roster = Roster::default();
    let (_number, mut leashed) = roster.attend(NODE, &v1::SyncHello::default(), now());
    roster.remove(NODE);
    assert_eq!(leashed.ended().await.code, Code::UnknownNode);
    assert!(roster.snapshot().is_empty());
}

#[test]
fn older_acknowledgement_takes_nothing_back() {
    let roster = Roster::default();
    let _stream = roster.attend(NODE, &v1::SyncHello::default(), now());
    roster.acknowledge(NODE, ack(5, vec![]), Some(&told()), now());
    roster.acknowledge(NODE, ack(3, vec![]), Some(&told()), now());
    roster.acknowledge(NODE, ack(u64::MAX, vec![]), Some(&told()), now());
    roster.acknowledge(NODE, ack(6, vec![]), None, now());
    let expected = Revision { incarnation: 1, number: 5 };
    assert_eq!(roster.snapshot()[&NODE].revision, Some(expected));
}

#[test]
fn connections_that_are_told_before_their_revision_count_with_it() {
    let roster = Roster::default();
    let _stream = roster.attend(NODE, &v1::SyncHello::default(), now());
    let at = |number| Revision { incarnation: 1, number };
    let heard = |number, cut| {
        let point = v1::PointAck {
            point: "main".to_owned(),
            spiffe_id: "spiffe://shop.example/web".to_owned(),
            revision: Some(at(number).into()),
            cut,
            ..Default::default()
        };
        let heard = roster.acknowledge(NODE, ack(number, vec![point]), Some(&told()), now());
        heard.advances.iter().map(|advance| (advance.to, advance.cut)).collect::<Vec<_>>()
    };
    assert_eq!(heard(1, 0), [(at(1), 0)]);
    assert_eq!(heard(1, 3), [], "the slice is not on the agent's disk yet");
    assert_eq!(heard(2, 3), [(at(2), 3)]);
    assert_eq!(heard(2, 0), [], "its process was started anew");
    assert_eq!(heard(3, 2), [(at(3), 2)]);
}

#[test]
fn points_of_one_name_and_two_identities_are_two() {
    let roster = Roster::default();
    let hello = v1::SyncHello::default();
    let _stream = roster.attend(NODE, &hello, now());
    let point = |id: &str| v1::PointAck {
        point: "main".to_owned(),
        spiffe_id: format!("spiffe://shop.example/{id}"),
        ..Default::default()
    };
    roster.acknowledge(
        NODE,
        ack(1, vec![point("web"), point("orders"), point("vault")]),
        Some(&told()),
        now(),
    );
    assert_eq!(roster.snapshot()[&NODE].points.len(), 2);
    let _newer = roster.attend(NODE, &hello, now());
    let standings = roster.standings();
    assert_eq!(standings.len(), 2, "a new stream makes no point dead");
    assert!(standings.iter().all(|point| !point.confirmed));
}

#[test]
fn points_of_a_node_are_bounded() {
    let roster = Roster::default();
    let _stream = roster.attend(NODE, &v1::SyncHello::default(), now());
    let point = |number: usize| v1::PointAck {
        point: format!("p{number}"),
        spiffe_id: "spiffe://shop.example/web".to_owned(),
        ..Default::default()
    };
    roster.acknowledge(NODE, ack(1, (0..5000).map(point).collect()), Some(&told()), now());
    assert_eq!(roster.snapshot()[&NODE].points.len(), POINTS_MAX);
    let gone = v1::PointAck { gone: true, ..point(0) };
    roster.acknowledge(NODE, ack(1, vec![gone]), Some(&told()), now());
    assert_eq!(roster.snapshot()[&NODE].points.len(), POINTS_MAX - 1);
}

fn main_of(id: &str) -> (PointKey, v1::PointAck) {
    let spiffe_id = format!("spiffe://shop.example/{id}");
    let key =
        PointKey { node: NODE, spiffe_id: spiffe_id.parse().unwrap(), name: "main".to_owned() };
    (key, v1::PointAck { point: "main".to_owned(), spiffe_id, ..Default::default() })
}

#[test]
fn point_is_left_out_only_by_a_connected_agent_that_has_told_all_its_points_and_not_that_one() {
    let roster = Roster::default();
    let (key, point) = main_of("web");
    roster.recall(vec![PointRow { key, registered_at: now() }]);
    let left_out = || roster.standings()[0].left_out;
    let (number, _stream) = roster.attend(NODE, &v1::SyncHello::default(), now());
    roster.acknowledge(NODE, ack(1, vec![]), Some(&told()), now());
    assert_eq!(left_out(), None, "it does not say since when it has run");
    roster.runs_since(NODE, number, now());
    assert_eq!(left_out(), Some(now()));
    // What cannot be heard of a point is no proof that there is none.
    roster.acknowledge(NODE, ack(1, vec![point.clone()]), None, now());
    assert_eq!(left_out(), None);
    let orders = Slice::of_ids(Revision { incarnation: 1, number: 5 }, &["orders"]);
    roster.acknowledge(NODE, ack(1, vec![point.clone()]), Some(&orders), now());
    assert_eq!(left_out(), None);
    let many = (0..=STATUSES_MAX).map(|number| {
        let point = format!("p{number}");
        v1::PointAck { point, ..main_of("payments").1 }
    });
    roster.acknowledge(NODE, ack(1, many.collect()), Some(&told()), now());
    assert_eq!(left_out(), None);
    roster.acknowledge(NODE, ack(1, vec![]), Some(&told()), now());
    assert_eq!(left_out(), Some(now()));
    roster.leave(NODE, number);
    assert_eq!(left_out(), None);
    let (newer, _stream) = roster.attend(NODE, &v1::SyncHello::default(), now());
    roster.runs_since(NODE, newer, now());
    assert_eq!(left_out(), None, "it has told nothing yet");
    roster.acknowledge(NODE, ack(1, vec![point]), Some(&told()), now());
    assert_eq!(left_out(), None);
    let (_newest, _stream) = roster.attend(NODE, &v1::SyncHello::default(), now());
    roster.runs_since(NODE, newer, now());
    roster.acknowledge(NODE, ack(1, vec![]), Some(&told()), now());
    assert_eq!(left_out(), None, "the age was another stream's");
}

#[test]
fn point_whose_agent_has_spoken_for_it_meanwhile_is_not_forgotten() {
    let roster = Roster::default();
    let (web, point) = main_of("web");
    let (orders, _) = main_of("orders");
    let rows = [&web, &orders].map(|key| PointRow { key: key.clone(), registered_at: now() });
    roster.recall(rows.into());
    let _stream = roster.attend(NODE, &v1::SyncHello::default(), now());
    roster.acknowledge(NODE, ack(1, vec![point]), Some(&told()), now());
    assert_eq!(roster.forget(vec![web, orders.clone()]), [orders]);
    assert_eq!(roster.standings().len(), 1);
}

#[test]
fn point_was_last_heard_of_when_its_agent_last_spoke_for_it() {
    let roster = Roster::default();
    let (_, point) = main_of("web");
    let seen = || roster.standings()[0].seen.unwrap().since(now()).as_secs();
    let at = |secs| now() + std::time::Duration::from_secs(secs);
    let _stream = roster.attend(NODE, &v1::SyncHello::default(), now());
    roster.acknowledge(NODE, ack(1, vec![point]), Some(&told()), at(1));
    roster.report(NODE, v1::ReportRequest::default(), at(2));
    assert_eq!(seen(), 2);
    let _newer = roster.attend(NODE, &v1::SyncHello::default(), at(3));
    roster.acknowledge(NODE, ack(1, vec![]), Some(&told()), at(4));
    roster.report(NODE, v1::ReportRequest::default(), at(5));
    assert_eq!(seen(), 2);
}
