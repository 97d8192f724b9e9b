//! What lies beside the map: tokens, nodes, secrets, and the bounds of all.

use std::sync::Arc;

use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, KeyId, Timestamp};
use countersign_store::{
    FLOW_BYTES_MAX, FlowRow, IssuedRow, KeysOf, Op, PAGE_MAX, PAPER_BYTES_MAX, PaperRow, PointKey,
    PointRow, REPORT_BYTES_MAX, ReportRow, StoreError, TALLY_BYTES_MAX, TRIM_ROWS_MAX, TallyOf,
    TallyPlace, TallyRow, VALUE_BYTES_MAX,
};
use tokio::task::JoinSet;

use crate::Shared;
use crate::fixture::{
    after, at, digest, doing, issuing, lease, node, node_id, noon, number, put, putting, row, token,
};

/// ATTACKS 3.
pub(crate) async fn a_join_token_raced_by_many_is_spent_once(store: Shared) {
    store.commit(doing([Op::CreateToken(token(1))])).await.unwrap();
    let mut callers = JoinSet::new();
    for caller in 0..32 {
        let store = Arc::clone(&store);
        let mut batch =
            doing([Op::SpendToken { hash: digest(1), now: noon() }, Op::PutNode(node(caller))]);
        batch.events = vec![Event::new(EventKind::NodeAttested, noon(), "server", "a node")];
        callers.spawn(async move { store.commit(batch).await.map(|_committed| caller) });
    }
    let outcomes = callers.join_all().await;
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for outcome in lost {
        assert_eq!(outcome, Err(StoreError::TokenSpent));
    }
    let nodes = store.nodes(None, PAGE_MAX).await.unwrap();
    assert_eq!(nodes.len(), 1, "the losers registered nothing");
    assert_eq!(nodes[0].id, node_id(*won[0].as_ref().unwrap()));
    assert_eq!(store.head().await.unwrap().log_size, 1, "and logged nothing");
    assert_eq!(store.token(digest(1)).await.unwrap().unwrap().spent, Some(noon()));
}

pub(crate) async fn a_join_token_is_refused_when_unknown_expired_or_spent(store: Shared) {
    let spend = |now| doing([Op::SpendToken { hash: digest(1), now }]);
    assert_eq!(store.commit(spend(noon())).await.unwrap_err(), StoreError::TokenUnknown);
    store.commit(doing([Op::CreateToken(token(1))])).await.unwrap();
    let twice = store.commit(doing([Op::CreateToken(token(1))])).await.unwrap_err();
    assert_eq!(twice.code(), Code::AlreadyExists);
    // At its end it is refused; the moment before, it is not.
    assert_eq!(store.commit(spend(after(600))).await.unwrap_err(), StoreError::TokenExpired);
    store.commit(spend(after(599))).await.unwrap();
    assert_eq!(store.commit(spend(after(599))).await.unwrap_err(), StoreError::TokenSpent);
    assert_eq!(store.commit(spend(after(601))).await.unwrap_err(), StoreError::TokenSpent);
}

/// ATTACKS 4: the previous key, also of a clone, and also when both come at once.
pub(crate) async fn an_older_generation_of_a_nodes_key_is_refused(store: Shared) {
    store.commit(doing([Op::PutNode(node(1))])).await.unwrap();
    let succeed = |expect_generation, key: u8| {
        let (id, key_spki) = (node_id(1), vec![key; 91]);
        doing([Op::UpdateNode {
            id,
            expect_generation,
            proven: KeyId::from_bytes([1; 32]),
            generation: expect_generation.wrapping_add(1),
            key_spki,
            at: after(5),
        }])
    };
    let mut clones = JoinSet::new();
    for clone in 10..20 {
        let (store, batch) = (Arc::clone(&store), succeed(1, clone));
        clones.spawn(async move { store.commit(batch).await.map(|_committed| clone) });
    }
    let outcomes = clones.join_all().await;
    let won: Vec<u8> = outcomes.iter().filter_map(|outcome| outcome.clone().ok()).collect();
    assert_eq!(won.len(), 1, "of two clones one goes on, and the other is noticed");
    let stale = StoreError::StaleGeneration { id: node_id(1), given: 1, current: 2 };
    assert_eq!(outcomes.into_iter().filter_map(Result::err).filter(|e| *e == stale).count(), 9);
    let kept = store.node(node_id(1)).await.unwrap().unwrap();
    assert_eq!((kept.generation, kept.key_spki, kept.seen_at), (2, vec![won[0]; 91], after(5)));

    let expect = |generation| doing([Op::ExpectNode { id: node_id(1), generation }]);
    assert_eq!(store.commit(expect(1)).await.unwrap_err(), stale);
    assert_eq!(store.commit(expect(3)).await.unwrap_err().code(), Code::StaleGeneration);
    assert_eq!(
        store.commit(succeed(u64::MAX, 30)).await.unwrap_err().code(),
        Code::StaleGeneration
    );
    store.commit(expect(2)).await.unwrap();
    store.commit(succeed(2, won[0])).await.unwrap();
}

/// ATTACKS 4 and 13: whoever holds a revoked key brings in no successor by it, however long ago it was revoked.
pub(crate) async fn a_revoked_key_brings_no_successor(store: Shared) {
    let id = node_id(1);
    let (leaked, other) = (KeyId::from_bytes([1; 32]), KeyId::from_bytes([2; 32]));
    let revoke = Op::RevokeKeys { of: KeysOf::Key(leaked), at: noon() };
    store.commit(doing([Op::PutNode(node(1)), revoke])).await.unwrap();
    let succeed = |proven| {
        let key_spki = vec![7; 91];
        doing([Op::UpdateNode {
            id,
            expect_generation: 1,
            proven,
            generation: 2,
            key_spki,
            at: after(86_400 * 400),
        }])
    };
    let refused = store.commit(succeed(leaked)).await.unwrap_err();
    assert_eq!(refused, StoreError::KeyRevoked(leaked));
    assert_eq!(store.node(id).await.unwrap().unwrap().generation, 1);
    let both = [Op::RevokeKeys { of: KeysOf::Key(other), at: noon() }];
    store.commit(doing(both)).await.unwrap();
    assert_eq!(store.commit(succeed(other)).await.unwrap_err(), StoreError::KeyRevoked(other));
    store.commit(succeed(KeyId::from_bytes([3; 32]))).await.unwrap();
}

pub(crate) async fn a_key_of_another_node_is_refused(store: Shared) {
    store.commit(doing([Op::PutNode(node(1)), Op::PutNode(node(2))])).await.unwrap();
    let (id, key_spki) = (node_id(2), vec![1; 91]);
    let proven = KeyId::from_bytes([1; 32]);
    let steal =
        Op::UpdateNode { id, expect_generation: 1, proven, generation: 2, key_spki, at: noon() };
    assert_eq!(store.commit(doing([steal])).await.unwrap_err().code(), Code::AlreadyExists);
    let mut copy = node(3);
    copy.key_spki = vec![2; 91];
    let refused = store.commit(doing([Op::PutNode(copy)])).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    let refused = store.commit(doing([Op::PutNode(node(1))])).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    // A key that its node has given up, or that is gone with its node, is nobody's.
    let (id, key_spki) = (node_id(1), vec![7; 91]);
    let succeed =
        Op::UpdateNode { id, expect_generation: 1, proven, generation: 2, key_spki, at: noon() };
    store.commit(doing([succeed, Op::RemoveNode { id: node_id(2) }])).await.unwrap();
    let mut third = node(3);
    third.key_spki = vec![1; 91];
    let mut fourth = node(4);
    fourth.key_spki = vec![2; 91];
    store.commit(doing([Op::PutNode(third), Op::PutNode(fourth)])).await.unwrap();
}

pub(crate) async fn a_removed_node_is_unknown_to_everything(store: Shared) {
    let id = node_id(1);
    store.commit(doing([Op::PutNode(node(1))])).await.unwrap();
    store.commit(doing([Op::TouchNode { id, at: after(9) }])).await.unwrap();
    store.commit(doing([Op::TouchNode { id, at: after(3) }])).await.unwrap();
    let seen = store.node(id).await.unwrap().unwrap().seen_at;
    assert_eq!(seen, after(9), "an earlier moment changes nothing");
    store.commit(doing([Op::RemoveNode { id }])).await.unwrap();
    let (key_spki, proven) = (vec![5; 91], KeyId::from_bytes([1; 32]));
    for op in [
        Op::TouchNode { id, at: noon() },
        Op::UpdateNode { id, expect_generation: 1, proven, generation: 2, key_spki, at: noon() },
        Op::ExpectNode { id, generation: 1 },
        Op::RemoveNode { id },
    ] {
        let refused = store.commit(doing([op.clone()])).await.unwrap_err();
        assert_eq!(refused, StoreError::NodeUnknown(id), "{op:?}");
    }
    assert_eq!(store.node(id).await.unwrap(), None);
}

pub(crate) async fn flows_are_counted_together_and_forgotten_when_old(store: Shared) {
    let row = |flow: &str, first, last, count| FlowRow {
        flow: flow.to_owned(),
        first: Timestamp::from_secs(first),
        last: Timestamp::from_secs(last),
        count,
    };
    let add = async |row: FlowRow| store.commit(doing([Op::AddFlow(row)])).await.unwrap();
    assert_eq!(store.flows(None, 10).await.unwrap(), []);
    add(row("b", 10, 20, 3)).await;
    add(row("a", 30, 30, 1)).await;
    add(row("b", 5, 15, 4)).await;
    add(row("B", 1, 1, 1)).await;
    store
        .commit(doing([Op::AddFlow(row("b", 12, 40, 1)), Op::AddFlow(row("é", 2, 50, 9))]))
        .await
        .unwrap();
    let all = [row("B", 1, 1, 1), row("a", 30, 30, 1), row("b", 5, 40, 8), row("é", 2, 50, 9)];
    assert_eq!(store.flows(None, 10).await.unwrap(), all);
    assert_eq!(store.flows(Some("a".to_owned()), 1).await.unwrap(), all[2..3]);
    store.commit(doing([Op::TrimFlows { before: Timestamp::from_secs(40) }])).await.unwrap();
    assert_eq!(store.flows(None, 10).await.unwrap(), all[2..]);
    assert_eq!(store.head().await.unwrap().revision.number, 0, "it moves no revision");
    let long = row(&"x".repeat(FLOW_BYTES_MAX + 1), 1, 1, 1);
    let refused = store.commit(doing([Op::AddFlow(long)])).await.unwrap_err();
    assert!(matches!(refused, StoreError::TooLarge { .. }));
}

pub(crate) async fn a_paper_stays_as_it_was_first_kept_and_no_other_takes_its_name_until_it_is_dropped(
    store: Shared,
) {
    let row = |name: &str, value: &[u8]| PaperRow { name: name.to_owned(), value: value.to_vec() };
    let keep = async |row: PaperRow| store.commit(doing([Op::CreatePaper(row)])).await.unwrap();
    assert_eq!(store.papers(None, 10).await.unwrap(), []);
    keep(row("plan/b", b"1")).await;
    keep(row("plan/a/é", b"2")).await;
    keep(row("plan/a", b"3")).await;
    let another = || row("plan/a", b"another");
    let mut again = doing([Op::CreatePaper(another())]);
    again.events = vec![Event::new(EventKind::ChangeApproved, noon(), "somebody", "a plan")];
    let refused = store.commit(again).await.unwrap_err();
    assert_eq!(refused.to_string(), "paper `plan/a` exists already");
    let twice = doing([Op::CreatePaper(row("plan/c", b"")), Op::CreatePaper(row("plan/c", b""))]);
    assert_eq!(store.commit(twice).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(store.head().await.unwrap().log_size, 0, "what is refused is not logged");
    let all = [row("plan/a", b"3"), row("plan/a/é", b"2"), row("plan/b", b"1")];
    assert_eq!(store.papers(None, 10).await.unwrap(), all, "the first one stays");
    assert_eq!(store.papers(Some("plan/a".to_owned()), 1).await.unwrap(), all[1..2]);
    let drop_it = || doing([Op::RemovePaper { name: "plan/a".to_owned() }]);
    store.commit(drop_it()).await.unwrap();
    store.commit(drop_it()).await.unwrap();
    let anew = || doing([Op::RemovePaper { name: another().name }, Op::CreatePaper(another())]);
    store.commit(anew()).await.unwrap();
    store.commit(anew()).await.unwrap();
    store.commit(drop_it()).await.unwrap();
    assert_eq!(store.papers(None, 10).await.unwrap(), all[1..]);
    assert_eq!(store.head().await.unwrap().revision.number, 0, "it moves no revision");
    let long = row("x", &[0; PAPER_BYTES_MAX + 1]);
    let refused = store.commit(doing([Op::CreatePaper(long)])).await.unwrap_err();
    assert!(matches!(refused, StoreError::TooLarge { .. }));
}

pub(crate) async fn tallies_are_added_up_and_read_from_the_newest(store: Shared) {
    let at = Timestamp::from_secs;
    let row = |began, what: &str, last, count| TallyRow {
        at: at(began),
        what: what.to_owned(),
        first: at(began),
        last: at(last),
        count,
        micros: 10 * count,
        sample: format!("seen at {last}"),
    };
    let of = TallyOf::Handshakes;
    let add = async |of, row: TallyRow| {
        store.commit(doing([Op::AddTally(of, row)])).await.unwrap();
    };
    let end = || TallyPlace { at: at(1000), what: String::new() };
    assert_eq!(store.tallies(of, at(0), end(), 10).await.unwrap(), []);
    assert_eq!(store.tallies_beyond(of, 0).await.unwrap(), None);
    add(of, row(60, "a", 70, 2)).await;
    add(of, row(60, "b", 61, 1)).await;
    add(of, row(120, "a\0", 121, 5)).await;
    add(TallyOf::Requests, row(180, "of others", 181, 1)).await;
    // One that comes late adds to the count and is not the sample.
    add(of, row(60, "a", 65, 3)).await;
    let a =
        TallyRow { count: 5, micros: 50, sample: "seen at 70".to_owned(), ..row(60, "a", 70, 2) };
    let all = [row(120, "a\0", 121, 5), row(60, "b", 61, 1), a];
    assert_eq!(store.tallies(of, at(0), end(), 10).await.unwrap(), all);
    assert_eq!(store.tallies(of, at(60), end(), 2).await.unwrap(), all[..2]);
    let place = TallyPlace { at: at(60), what: "b".to_owned() };
    assert_eq!(store.tallies(of, at(0), place, 10).await.unwrap(), all[2..]);
    assert_eq!(store.tallies(of, at(61), end(), 10).await.unwrap(), all[..1]);
    let before = TallyPlace { at: at(120), what: String::new() };
    assert_eq!(store.tallies(of, at(0), before, 10).await.unwrap(), all[1..]);
    let none = TallyPlace { at: at(10), what: String::new() };
    assert_eq!(store.tallies(of, at(60), none, 10).await.unwrap(), []);
    assert_eq!(store.tallies_beyond(of, 1).await.unwrap(), Some(at(60)));
    assert_eq!(store.tallies_beyond(of, 3).await.unwrap(), None);
    store.commit(doing([Op::TrimTallies { of, before: at(120) }])).await.unwrap();
    assert_eq!(store.tallies(of, at(0), end(), 10).await.unwrap(), all[..1]);
    let others = store.tallies(TallyOf::Requests, at(0), end(), 10).await.unwrap();
    assert_eq!(others, [row(180, "of others", 181, 1)]);
    // However many there are, one trim keeps nobody waiting for long.
    let many =
        (0..=TRIM_ROWS_MAX).map(|number| Op::AddTally(of, row(180, &number.to_string(), 180, 1)));
    store.commit(doing(many.collect::<Vec<_>>())).await.unwrap();
    let trim = || doing([Op::TrimTallies { of, before: at(240) }]);
    for left in [2, 0] {
        store.commit(trim()).await.unwrap();
        assert_eq!(store.tallies(of, at(0), end(), 10).await.unwrap().len(), left);
    }
    let long = row(60, &"x".repeat(TALLY_BYTES_MAX + 1), 60, 1);
    let refused = store.commit(doing([Op::AddTally(of, long)])).await.unwrap_err();
    assert!(matches!(refused, StoreError::TooLarge { .. }), "{refused}");
}

pub(crate) async fn a_replicas_report_is_replaced_whole_by_a_later_one_only(store: Shared) {
    let report = |replica: &str, version, body: &[u8]| ReportRow {
        replica: replica.to_owned(),
        version,
        body: body.to_vec(),
    };
    let put = async |row: &ReportRow| store.report(row.clone()).await.unwrap();
    assert_eq!(store.report_versions().await.unwrap(), []);
    assert_eq!(store.report_of("a").await.unwrap(), None);
    let (first, large) = (report("b", 7, b"seven"), report("b", 9, &vec![9; 500_000]));
    assert!(put(&first).await);
    assert!(put(&report("a", 1, b"")).await);
    assert!(put(&large).await);
    for late in [&first, &report("b", 9, b"another nine")] {
        assert!(!put(late).await, "{late:?}");
    }
    let versions = [("a".to_owned(), 1), ("b".to_owned(), 9)];
    assert_eq!(store.report_versions().await.unwrap(), versions);
    assert_eq!(store.report_of("b").await.unwrap(), Some(large));
    let revision = store.head().await.unwrap().revision;
    assert_eq!(revision.number, 0, "it moves no revision");
    let much = report("a", 2, &vec![0; REPORT_BYTES_MAX + 1]);
    assert!(matches!(store.report(much).await.unwrap_err(), StoreError::TooLarge { .. }));
}

/// ATTACKS 27.
pub(crate) async fn a_secret_is_replaced_whole_and_never_printed(store: Shared) {
    assert_eq!(store.secret("issuer").await.unwrap(), None);
    for sealed in [vec![7; 4000], vec![0xee; 33]] {
        let batch = doing([Op::PutSecret { name: "issuer".to_owned(), sealed: sealed.clone() }]);
        let printed = format!("{batch:?}");
        assert!(printed.contains("bytes") && !printed.contains("7, 7"), "{printed}");
        assert!(!printed.contains("238"), "{printed}");
        store.commit(batch).await.unwrap();
        assert_eq!(store.secret("issuer").await.unwrap(), Some(sealed));
    }
    assert_eq!(store.secret("issue").await.unwrap(), None);
}

pub(crate) async fn too_much_at_once_is_refused(store: Shared) {
    let long = "x".repeat(256);
    let mut big = putting("web", "");
    big.changes = vec![put("web", &"x".repeat(VALUE_BYTES_MAX + 1))];
    let sealed = vec![0; VALUE_BYTES_MAX + 1];
    let mut labelled = token(1);
    labelled.labels = vec!["a".parse().unwrap(); 65];
    let mut hosted = node(1);
    hosted.host.clone_from(&long);
    let mut keyed = node(1);
    keyed.key_spki = vec![0; 1025];
    let mut worded = putting("web", "1");
    worded.events[0].subject = "x".repeat(1024);
    let mut detailed = putting("web", "1");
    detailed.events[0].details = serde_json::json!({"text": "x".repeat(17_000)});
    for batch in [
        putting(&long, "1"),
        big,
        worded,
        detailed,
        doing([Op::PutSecret { name: "a".to_owned(), sealed }]),
        doing([Op::PutSecret { name: long.clone(), sealed: vec![] }]),
        doing([Op::CreateToken(labelled)]),
        doing([Op::PutNode(hosted)]),
        doing([Op::PutNode(keyed)]),
        doing(vec![Op::TouchNode { id: node_id(1), at: noon() }; 50_001]),
    ] {
        assert_eq!(store.commit(batch).await.unwrap_err().code(), Code::TooLarge);
    }
    for (name, holder) in [(&*long, "a"), ("a", &*long)] {
        let refused = store.lease(name, lease(holder, noon()), None).await.unwrap_err();
        assert_eq!(refused.code(), Code::TooLarge);
    }
    assert_eq!(number(&store).await, 0);
}

/// ATTACKS 13: by itself, by a certificate's serial, by an identity, and by a node, in the transaction that says so.
pub(crate) async fn a_revoked_key_is_refused_for_ever_whoever_names_it(store: Shared) {
    let distinct = |seed: u8| IssuedRow {
        spiffe_id: format!("spiffe://shop.example/w{seed}").parse().unwrap(),
        key: KeyId::from_bytes([seed; 32]),
        node: Some(node_id(seed)),
        ..row(u64::from(seed), 0, at(0))
    };
    let rows: Vec<_> = (1..=5).map(distinct).collect();
    store.commit(issuing(rows.clone())).await.unwrap();
    let again = |of: usize, seed: u64| {
        let next = row(seed, 60, at(0));
        issuing([IssuedRow { serial: next.serial, tbs: next.tbs, ..rows[of].clone() }])
    };
    let revoke = |of: KeysOf| doing([Op::RevokeKeys { of, at: noon() }]);
    store.commit(revoke(KeysOf::Key(rows[0].key))).await.unwrap();
    store.commit(revoke(KeysOf::Serial(rows[1].serial))).await.unwrap();
    for of in [0, 1] {
        let refused = store.commit(again(of, 20 + of as u64)).await.unwrap_err();
        assert_eq!(refused, StoreError::KeyRevoked(rows[of].key));
    }
    store.commit(again(2, 30)).await.unwrap();
    store.commit(revoke(KeysOf::Identity(rows[2].spiffe_id.clone()))).await.unwrap();
    let refused = store.commit(again(2, 31)).await.unwrap_err();
    assert_eq!(refused, StoreError::KeyRevoked(rows[2].key));
    store.commit(revoke(KeysOf::Node(node_id(4)))).await.unwrap();
    let refused = store.commit(again(3, 32)).await.unwrap_err();
    assert_eq!(refused, StoreError::KeyRevoked(rows[3].key));
    store.commit(again(4, 33)).await.unwrap();
    // Twice is once, and a trim forgets none.
    store.commit(revoke(KeysOf::Key(rows[0].key))).await.unwrap();
    store.trim(after(10_000_000)).await.unwrap();
    assert!(store.commit(again(0, 40)).await.is_err());
}

pub(crate) async fn points_are_on_record_until_they_are_gone(store: Shared) {
    let id = |path: &str| format!("spiffe://shop.example/{path}").parse().unwrap();
    let key = |seed, path, name: &str| PointKey {
        node: node_id(seed),
        spiffe_id: id(path),
        name: name.to_owned(),
    };
    let point = |seed, path, name| PointRow { key: key(seed, path, name), registered_at: noon() };
    store.commit(doing([Op::PutNode(node(1)), Op::PutNode(node(2))])).await.unwrap();
    let rows = [point(1, "orders", "a"), point(1, "web", "a"), point(2, "web", "b")];
    store.commit(doing(rows.clone().map(Op::PutPoint))).await.unwrap();
    let later = PointRow { registered_at: after(5), ..point(1, "web", "a") };
    store.commit(doing([Op::PutPoint(later)])).await.unwrap();
    assert_eq!(store.points(None, PAGE_MAX).await.unwrap(), rows, "the first word stays");
    let rest = store.points(Some(rows[0].key.clone()), 1).await.unwrap();
    assert_eq!(rest, rows[1..2]);
    store.commit(doing([Op::RemovePoint(rows[1].key.clone())])).await.unwrap();
    store.commit(doing([Op::RemovePoint(rows[1].key.clone())])).await.unwrap();
    store.commit(doing([Op::RemoveNode { id: node_id(2) }])).await.unwrap();
    assert_eq!(
        store.points(None, PAGE_MAX).await.unwrap(),
        rows[..1],
        "a node takes its points along"
    );
}
