use std::sync::Arc;

use countersign_identity::SystemEntropy;
use countersign_store::{Batch, MemoryStore, Op};

use super::*;
use crate::publish::Slice;
use crate::revoke::converge::joined;
use crate::revoke::holdings::{Ends, Out};
use crate::revoke::living::{Fate, fate};

const NEAR: NodeId = NodeId::from_bytes([1; 16]);
const FAR: NodeId = NodeId::from_bytes([2; 16]);

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(1_795_262_400) + Duration::from_secs(secs)
}

fn revision(number: u64) -> Revision {
    Revision { incarnation: 1, number }
}

/// One of several servers.
struct Server {
    store: Arc<MemoryStore>,
    roster: Roster,
    converging: Converging,
    replicas: Replicas,
}

impl Server {
    fn start(store: &Arc<MemoryStore>, name: &str) -> Self {
        Self {
            store: Arc::clone(store),
            roster: Roster::default(),
            converging: Converging::default(),
            replicas: Replicas::new(name.to_owned()),
        }
    }

    fn attend(&self, node: NodeId, secs: u64) -> u64 {
        let hello = v1::SyncHello { clock_micros: at(secs).micros(), ..Default::default() };
        self.roster.attend(node, &hello, at(secs)).0
    }

    /// The agent says what its one point has acknowledged.
    async fn hears(&self, node: NodeId, number: u64, cut: u64, secs: u64) {
        self.hear(node, point(number, cut), secs).await;
    }

    async fn hear(&self, node: NodeId, point: v1::PointAck, secs: u64) {
        let told = Slice::of_ids(revision(100), &["web"]);
        let gone = point.gone;
        let ack = v1::SyncAck { revision: None, points: vec![point], unaware: 2 };
        let new = self.roster.unregistered(node, &ack, Some(&told));
        let put =
            |key: &PointKey| Op::PutPoint(PointRow { key: key.clone(), registered_at: at(secs) });
        self.write(new.iter().map(put).collect()).await;
        let heard = self.roster.acknowledge(node, ack, Some(&told), at(secs));
        self.roster.registered(&new);
        self.converging.advanced(&heard.advances, at(secs));
        assert_eq!(heard.gone.len(), usize::from(gone));
        self.write(heard.gone.into_iter().map(Op::RemovePoint).collect()).await;
    }

    async fn write(&self, ops: Vec<Op>) {
        self.store.commit(Batch { ops, ..Batch::default() }).await.unwrap();
    }

    async fn tell(&self, secs: u64) {
        self.replicas.tell(&*self.store, &self.roster, &self.converging, at(secs)).await.unwrap();
    }

    /// Each node's point, by what is known of it here: what it has acknowledged, and whether anybody speaks for it.
    async fn looks(&self, secs: u64) -> Vec<(NodeId, Option<u64>, bool)> {
        let now = at(secs);
        self.replicas.look(&*self.store, &self.roster, &self.converging, now).await.unwrap();
        let heard = self.replicas.heard();
        let points = self.roster.standings().into_iter().map(|point| joined(point, &heard));
        let seen = points.map(|point| {
            (point.key.node, point.revision.map(|revision| revision.number), point.confirmed)
        });
        seen.collect()
    }

    fn unaware(&self) -> u64 {
        self.replicas.heard().unaware(self.roster.unaware())
    }
}

fn point(number: u64, cut: u64) -> v1::PointAck {
    v1::PointAck {
        point: "proxy".to_owned(),
        spiffe_id: "spiffe://shop.example/web".to_owned(),
        revision: Some(revision(number).into()),
        cut,
        ..Default::default()
    }
}

/// Two servers, each with an agent whose point has acknowledged revision 5.
async fn pair() -> (Server, Server) {
    let store = Arc::new(MemoryStore::new(Arc::new(SystemEntropy)));
    let (one, two) = (Server::start(&store, "one"), Server::start(&store, "two"));
    for (server, node) in [(&one, NEAR), (&two, FAR)] {
        server.attend(node, 0);
        server.hears(node, 5, 0, 0).await;
        server.tell(0).await;
    }
    (one, two)
}

#[tokio::test]
async fn each_server_knows_the_points_of_the_other_and_what_they_acknowledged() {
    let (one, two) = pair().await;
    let both = [(NEAR, Some(5), true), (FAR, Some(5), true)];
    assert_eq!(one.looks(1).await, both);
    assert_eq!(two.looks(1).await, both);
    let _begun = one.converging.begin(revision(6), at(1));
    two.hears(FAR, 6, 3, 2).await;
    assert_eq!(one.looks(2).await[1], (FAR, Some(5), true), "nobody has told it yet");
    two.tell(2).await;
    assert_eq!(one.looks(3).await, [(NEAR, Some(5), true), (FAR, Some(6), true)]);
    assert_eq!(one.replicas.heard().cut(revision(6)), 3);
    assert_eq!(one.replicas.heard().cut(revision(5)), 0);
    assert_eq!(one.replicas.heard().cut(revision(7)), 0);
    assert_eq!(one.unaware(), 4, "two of each node");
}

#[tokio::test]
async fn server_that_is_cut_off_or_dead_makes_no_point_fewer_and_what_it_said_stays() {
    let (one, _two) = pair().await;
    for secs in [1, 40, 100_000] {
        let speaks = secs < 30;
        let seen = one.looks(secs).await;
        assert_eq!(seen, [(NEAR, Some(5), true), (FAR, Some(5), speaks)], "after {secs} s");
    }
    // Another one that starts now knows them as well.
    let three = Server::start(&one.store, "three");
    assert_eq!(three.looks(100_001).await.len(), 2);
}

#[tokio::test]
async fn agent_that_goes_over_is_heard_through_its_new_server() {
    let (one, two) = pair().await;
    one.looks(1).await;
    // `two` dies. Its agent comes to `one`, which has told it more meanwhile.
    one.attend(FAR, 2);
    assert_eq!(one.looks(40).await[1], (FAR, Some(5), false), "it has not said anything yet");
    one.hears(FAR, 7, 0, 41).await;
    assert_eq!(one.looks(42).await[1], (FAR, Some(7), true));
    assert_eq!(one.unaware(), 4, "a node is counted where its newest stream is");
    // `two` comes back without having heard anything.
    let two = Server::start(&two.store, "two");
    two.tell(43).await;
    one.tell(43).await;
    assert_eq!(one.looks(44).await[1], (FAR, Some(7), true));
    assert_eq!(two.looks(44).await[1], (FAR, Some(7), true));
}

#[tokio::test]
async fn node_that_no_server_hears_any_more_is_not_taken_for_what_it_said_before() {
    let (one, two) = pair().await;
    let first = one.attend(FAR, 1);
    one.hears(FAR, 5, 0, 1).await;
    one.roster.leave(FAR, first);
    let second = two.attend(FAR, 2);
    two.tell(2).await;
    two.hears(FAR, 5, 0, 2).await;
    two.tell(3).await;
    one.looks(3).await;
    assert_eq!(one.unaware(), 4, "the other hears it");
    two.roster.leave(FAR, second);
    two.tell(4).await;
    one.looks(4).await;
    assert_eq!((one.unaware(), one.roster.unheard()), (2, [FAR].into()));
    one.attend(FAR, 5);
    assert_eq!(one.roster.unheard(), [FAR].into(), "it has said nothing yet");
    one.tell(5).await;
    two.looks(5).await;
    assert_eq!(two.unaware(), 4, "what it said to the one that it was with last");
    one.hears(FAR, 5, 0, 6).await;
    assert_eq!((one.unaware(), one.roster.unheard()), (4, [].into()));
}

#[tokio::test]
async fn goodbye_that_one_server_hears_is_known_to_the_other() {
    let (one, two) = pair().await;
    assert_eq!(one.looks(1).await.len(), 2);
    two.hear(FAR, v1::PointAck { gone: true, ..point(5, 0) }, 2).await;
    assert_eq!(one.looks(3).await, [(NEAR, Some(5), true)]);
    // The same name again is another point, of which nothing is known.
    two.hears(FAR, 0, 0, 4).await;
    assert_eq!(one.looks(5).await.len(), 2);
}

#[tokio::test]
async fn point_that_another_server_gave_up_is_put_on_record_again_by_the_one_that_hears_it() {
    let (one, two) = pair().await;
    let points = one.store.points(None, 10).await.unwrap();
    one.write(vec![Op::RemovePoint(points[1].key.clone())]).await;
    assert_eq!(two.looks(1).await.len(), 2, "its agent speaks for it");
    two.hears(FAR, 6, 0, 2).await;
    assert_eq!(one.looks(3).await.len(), 2);
}

#[tokio::test]
async fn nothing_is_written_while_nothing_changes_but_a_sign_of_life() {
    let (one, _two) = pair().await;
    let version = async || one.store.report_of("one").await.unwrap().unwrap().version;
    let before = version().await;
    for secs in 1..10 {
        one.tell(secs).await;
    }
    assert_eq!(version().await, before);
    one.tell(11).await;
    assert_eq!(version().await, before + 1);
    // A restart goes on where its last life ended, whatever its clock says.
    let again = Server::start(&one.store, "one");
    again.tell(0).await;
    assert_eq!(version().await, before + 2);
}

#[tokio::test]
async fn report_that_is_not_understood_takes_nothing_away() {
    let (one, two) = pair().await;
    assert_eq!(one.looks(1).await.len(), 2);
    let row = ReportRow { replica: "two".to_owned(), version: 99, body: vec![0xff; 9] };
    assert!(two.store.report(row).await.unwrap());
    assert_eq!(one.looks(2).await[1], (FAR, Some(5), true));
}

#[tokio::test]
async fn point_is_left_out_by_the_agent_at_the_newest_stream_while_its_server_lives() {
    let (one, two) = pair().await;
    let left_out = async |secs| {
        two.looks(secs).await;
        let heard = two.replicas.heard();
        let standings = two.roster.standings();
        let proxy = standings.iter().find(|at| at.key.node == FAR && at.key.name == "proxy");
        joined(proxy.unwrap().clone(), &heard).left_out
    };
    let far = two.attend(FAR, 1);
    two.roster.runs_since(FAR, far, at(0));
    let other = |number| v1::PointAck { point: "other".to_owned(), ..point(number, 0) };
    two.hear(FAR, other(5), 1).await;
    assert_eq!(left_out(2).await, Some(at(0)), "its own agent's word");
    // Another agent of the node comes to `one`, and the stream of the one before is not known to be lost yet.
    let anew = one.attend(FAR, 3);
    one.roster.runs_since(FAR, anew, at(2));
    one.tell(3).await;
    assert_eq!(left_out(4).await, None, "nobody knows whom it knows");
    one.looks(4).await;
    one.hear(FAR, other(5), 5).await;
    one.tell(5).await;
    assert_eq!(left_out(6).await, Some(at(2)));
    assert_eq!(left_out(36).await, None, "`one` is silent");
    let again = two.attend(FAR, 37);
    two.roster.runs_since(FAR, again, at(2));
    two.hear(FAR, other(5), 37).await;
    assert_eq!(left_out(38).await, Some(at(2)));
}

#[tokio::test]
async fn point_that_another_servers_agent_does_not_know_is_taken_off_record_by_that_server_alone() {
    let (one, two) = pair().await;
    let anew = one.attend(FAR, 3);
    one.roster.runs_since(FAR, anew, at(2));
    one.hear(FAR, v1::PointAck { point: "other".to_owned(), ..point(5, 0) }, 5).await;
    one.looks(5).await;
    one.tell(5).await;
    two.roster.leave(FAR, 1);
    two.tell(5).await;
    one.looks(6).await;
    two.looks(6).await;
    let of = |server: &Server, secs| {
        let heard = server.replicas.heard();
        let standings = server.roster.standings();
        let mut proxies =
            standings.iter().filter(|at| at.key.node == FAR && at.key.name == "proxy");
        let proxy = joined(proxies.next().unwrap().clone(), &heard);
        assert_eq!(proxy.left_out, Some(at(2)));
        // One was issued before the agent began, and the other is its successor.
        let issued = vec![(at(0), at(900)), (at(500), at(1400))];
        let ends = Ends::from([((FAR, proxy.key.spiffe_id.clone()), issued)]);
        fate(&proxy, &ends, &Out::at(&*server.store, at(secs), at(secs)), &heard)
    };
    assert_eq!((of(&one, 960), of(&two, 960)), (Fate::Counts, Fate::Counts));
    // It may have come back at `one`, which has not told that yet.
    assert_eq!((of(&one, 961), of(&two, 961)), (Fate::Gone, Fate::Passed));
    assert_eq!(of(&two, 1460), Fate::Passed);
    assert_eq!(of(&two, 1461), Fate::Gone, "nothing is left that it could present");
}

#[tokio::test]
async fn age_of_a_nodes_agent_is_that_of_the_newest_stream_on_which_it_has_told_something() {
    let (one, two) = pair().await;
    let age =
        |server: &Server| server.replicas.heard().agents(server.roster.agents()).get(&FAR).copied();
    two.looks(1).await;
    assert_eq!(age(&two), None, "it does not say");
    let first = two.attend(FAR, 2);
    two.roster.runs_since(FAR, first, at(1));
    assert_eq!(age(&two), None, "what is known is of the one before");
    two.hears(FAR, 5, 0, 2).await;
    two.tell(2).await;
    one.looks(3).await;
    assert_eq!((age(&one), age(&two)), (Some(at(1)), Some(at(1))));
    two.roster.leave(FAR, first);
    assert_eq!(age(&two), Some(at(1)), "nobody else has told anything since");
    let second = one.attend(FAR, 4);
    one.roster.runs_since(FAR, second, at(3));
    one.hears(FAR, 5, 0, 5).await;
    one.tell(5).await;
    two.looks(6).await;
    assert_eq!((age(&one), age(&two)), (Some(at(3)), Some(at(3))));
    assert_eq!(two.replicas.heard().nodes().count(), 2);
}
