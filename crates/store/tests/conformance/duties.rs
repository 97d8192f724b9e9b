//! Who has a duty, and who takes it over, whatever their clocks say.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use countersign_store::{Duties, Duty, Lease};
use tokio::task::JoinSet;

use crate::Shared;
use crate::fixture::{after, lease};

const TTL_SECS: i64 = 10;
const DUTY: Duty = Duty { name: "sweep", ttl: Duration::from_secs(TTL_SECS.unsigned_abs()) };
const HOUR: i64 = 3600;

/// A server whose clock is so many seconds ahead.
struct Server {
    duties: Duties,
    duty: Duty,
    ahead: i64,
}

impl Server {
    fn new(store: &Shared, name: &str, ahead: i64) -> Self {
        Self { duties: Duties::new(Arc::clone(store), name.to_owned()), duty: DUTY, ahead }
    }

    /// Whether it has the duty at that true time.
    async fn has(&self, secs: i64) -> bool {
        self.duties.is_ours(self.duty, after(secs + self.ahead)).await.unwrap()
    }

    /// When it first has the duty of these moments, looking at each.
    async fn first(&self, secs: Range<i64>) -> Option<i64> {
        for secs in secs {
            if self.has(secs).await {
                return Some(secs);
            }
        }
        None
    }
}

pub(crate) async fn a_lease_gives_way_to_its_holder_and_to_who_names_it_exactly(store: Shared) {
    // Of those who race for it, one gets it: where there is none, and where all have seen the same.
    let mut over = None;
    for ends in [after(1), after(2)] {
        let mut replicas = JoinSet::new();
        for replica in 0..16 {
            let (store, over, ends) = (Arc::clone(&store), over.clone(), ends);
            let holder = format!("r{replica} {ends}");
            replicas.spawn(async move { store.lease("sweep", lease(&holder, ends), over).await });
        }
        let taken = replicas.join_all().await.into_iter().filter(|taken| *taken == Ok(true));
        assert_eq!(taken.count(), 1);
        over = store.lease_of("sweep").await.unwrap();
        assert_eq!(over.as_ref().map(|lease| lease.ends), Some(ends));
    }
    assert_eq!(store.lease_of("rotate").await.unwrap(), None, "another duty, another lease");
    let put = async |new: &Lease, over: Option<&Lease>| {
        store.lease("rotate", new.clone(), over.cloned()).await.unwrap()
    };
    let (first, renewed) = (lease("a", after(1)), lease("a", after(2)));
    // Long after its end by any clock.
    let others = lease("b", after(9 * HOUR));
    assert!(put(&first, Some(&others)).await, "what is not there is in nobody's way");
    assert!(!put(&others, None).await);
    assert!(put(&renewed, None).await, "its holder renews it");
    assert!(!put(&others, Some(&first)).await, "it was renewed meanwhile");
    assert!(!put(&others, Some(&lease("c", after(2)))).await, "it is somebody else's");
    assert_eq!(store.lease_of("rotate").await.unwrap().as_ref(), Some(&renewed));
    assert!(put(&others, Some(&renewed)).await);
    assert_eq!(store.lease_of("rotate").await.unwrap(), Some(others));
    assert!(!put(&renewed, None).await, "and the former holder has lost it");
}

pub(crate) async fn a_server_ahead_of_time_takes_nothing_from_who_renews(store: Shared) {
    let holder = Server::new(&store, "a", 0);
    let ahead = [11, HOUR, 9000 * HOUR].map(|ahead| Server::new(&store, &ahead.to_string(), ahead));
    for secs in 0..5 * TTL_SECS {
        assert!(holder.has(secs).await, "after {secs} s");
        for other in &ahead {
            assert!(!other.has(secs).await, "after {secs} s, {} s ahead", other.ahead);
        }
    }
}

pub(crate) async fn a_dead_holders_duty_is_taken_by_one_whose_clock_is_behind(store: Shared) {
    for (name, behind) in [("even", 0), ("little", 11), ("far", HOUR), ("absurd", 9000 * HOUR)] {
        let duty = Duty { name, ..DUTY };
        let holder = Server { duty, ..Server::new(&store, "a", 0) };
        let other = Server { duty, ..Server::new(&store, "b", -behind) };
        assert!(holder.has(0).await);
        let taken = other.first(1..100).await;
        assert_eq!(taken, Some(1 + TTL_SECS), "{behind} s behind");
        assert!(!holder.has(2 + TTL_SECS).await, "and who comes back finds it taken");
        // It was not taken from who had it as soon as it had not renewed it for so long, but as soon as that was seen.
        let late = Server { duty, ..Server::new(&store, "c", 0) };
        assert_eq!(late.first(HOUR..HOUR + 100).await, Some(HOUR + TTL_SECS));
    }
}

pub(crate) async fn a_server_that_is_restarted_has_its_duty_at_once(store: Shared) {
    assert!(Server::new(&store, "a", 0).has(0).await);
    let other = Server::new(&store, "b", 0);
    assert!(!other.has(1).await);
    // Also after its clock was set meanwhile.
    for ahead in [0, HOUR, -HOUR] {
        assert!(Server::new(&store, "a", ahead).has(2).await, "{ahead} s ahead");
        assert!(!other.has(2).await);
    }
}

pub(crate) async fn a_duty_that_nobody_renews_any_more_is_taken_by_one_of_many(store: Shared) {
    assert!(Server::new(&store, "dead", 0).has(0).await);
    let name = |number: i64| number.to_string();
    let mut others: Vec<_> =
        (0..8).map(|number| Server::new(&store, &name(number), number * 50 - 200)).collect();
    for secs in 1..=TTL_SECS + 2 {
        let mut looking = JoinSet::new();
        for other in others {
            looking.spawn(async move { (other.has(secs).await, other) });
        }
        let (has, all): (Vec<_>, Vec<_>) = looking.join_all().await.into_iter().unzip();
        others = all;
        let holders = has.iter().filter(|has| **has).count();
        assert_eq!(holders, usize::from(TTL_SECS < secs), "after {secs} s");
    }
}

pub(crate) async fn who_watches_has_a_free_duty_as_soon_as_it_wants_it(store: Shared) {
    let (holder, other) = (Server::new(&store, "a", 0), Server::new(&store, "b", 0));
    let watch = async |secs| other.duties.watch(DUTY, after(secs)).await.unwrap();
    assert!(holder.has(0).await);
    watch(1).await;
    watch(6).await;
    assert!(holder.has(7).await, "watching takes nothing");
    watch(10).await;
    assert!(holder.has(12).await);
    for secs in [13, 18, 23] {
        watch(secs).await;
    }
    assert!(other.has(23).await);
    // Nor does it make the one that has the duty lose it.
    watch(24).await;
    assert!(other.has(24).await && !holder.has(24).await);
}

pub(crate) async fn a_clock_that_is_set_makes_no_second_holder(store: Shared) {
    let (mut one, mut other) = (Server::new(&store, "a", 0), Server::new(&store, "b", 0));
    assert!(one.has(0).await && !other.has(0).await);
    // Forth, under who wants it: as much as it shows, half of the time is left to be seen.
    other.ahead = HOUR;
    for secs in 0..5 {
        assert!(one.has(secs).await && !other.has(secs).await, "after {secs} s");
    }
    // Back, under who has it, who lets half of the time pass before it renews: it is not believed for an hour.
    assert!(one.has(5).await && !other.has(5).await, "renewed");
    one.ahead = -HOUR;
    assert!(one.has(6).await && !other.has(6).await, "renewed once more");
    // It stands still from now on.
    assert_eq!(other.first(7..100).await, Some(6 + TTL_SECS));
    assert!(!one.has(6 + TTL_SECS).await, "it has lost it");
}
