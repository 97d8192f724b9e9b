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
