//! Who may be at the agent's socket at once, so that nobody keeps the others out.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_identity::{Clock, Timestamp};
use countersign_tls::{Rank, Room, RoomBounds, Stay};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::attest::{Caller, Household};
use crate::reception::{Counted, Counter};

/// How many connections there may be at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlaceBounds {
    /// In all. Beyond that, the user that has most of them gives one up.
    pub(crate) all: usize,
    /// Of one user. Beyond that, its next is closed unheard.
    pub(crate) user: usize,
    /// Of one process, likewise.
    pub(crate) process: usize,
}

/// How long it may take to look up where a process lives. Whoever connects next waits for it.
const HOUSEHOLD_TIMEOUT: Duration = Duration::from_secs(1);

/// What the agent has places for.
pub(crate) const PLACES: PlaceBounds = PlaceBounds { all: 4096, user: 2048, process: 32 };

/// The places at the socket.
///
/// A user is root, the agent's own, one as whom some process was a workload, or a stranger; however many user ids strangers
/// have, they take no place of the others for long, and a newcomer always finds one. Root of a container is another user than the
/// machine's, and a stranger until one of its processes was a workload.
pub(crate) struct Places {
    bounds: PlaceBounds,
    room: Room<User>,
    users: Counter<User>,
    processes: Counter<u32>,
    known: KnownUsers,
    turned_away: TurnedAway,
}

/// A connection's place: in all, of its user, and of its process.
pub(crate) struct Place {
    stay: Stay<User>,
    _user: Counted<User>,
    _process: Counted<u32>,
}

/// Whose places are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct User {
    uid: u32,
    /// Where it lives, if it is one of those that are known by their number alone.
    household: Household,
}

impl User {
    /// The user of a process. Where it lives is looked up off the async workers, for as long as a newcomer may keep the next waiting.
    pub(crate) async fn of(caller: &Arc<dyn Caller>) -> Self {
        let uid = caller.peer().uid;
        if !is_ours(uid) {
            // It makes no difference: nothing is theirs but what their number has.
            return Self { uid, household: Household::Ours };
        }
        let asked = Arc::clone(caller);
        let mut told = tokio::task::spawn_blocking(move || asked.household());
        let household = tokio::time::timeout(HOUSEHOLD_TIMEOUT, &mut told).await;
        // It has not begun where all threads are busy, and need not.
        told.abort();
        // What cannot be told is no household of ours.
        let household = household.ok().and_then(Result::ok).unwrap_or(Household::Other(0));
        Self { uid, household }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.household {
            Household::Ours => write!(f, "uid {}", self.uid),
            Household::Other(_) => write!(f, "uid {} of another namespace", self.uid),
        }
    }
}

fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Why there is no place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoPlace {
    #[error("{user} has {most} connections, the most that one may")]
    User { user: User, most: usize },
    #[error("process `{pid}` of {user} has {most} connections, the most that one may")]
    Process { pid: u32, user: User, most: usize },
    #[error("there are {most} connections, the most that there may be")]
    All { most: usize },
}

impl Places {
    /// Nobody is there.
    pub(crate) fn new(bounds: PlaceBounds, known: KnownUsers, turned_away: TurnedAway) -> Self {
        // The bound of a user is kept by its count: who is there already does not go for others of its user.
        let room = RoomBounds { all: bounds.all, each: bounds.all, yields_after: Duration::ZERO };
        let (users, processes) = (Counter::default(), Counter::default());
        Self { bounds, room: Room::new(room), users, processes, known, turned_away }
    }

    /// A place for one more connection of this process.
    pub(crate) fn take(&self, user: User, pid: u32) -> Result<Place, NoPlace> {
        let place = self.find(user, pid);
        if let Err(why) = &place {
            self.turned_away.count(&why.to_string());
        }
        place
    }

    fn find(&self, user: User, pid: u32) -> Result<Place, NoPlace> {
        let PlaceBounds { all, user: most, process } = self.bounds;
        let of_user = self.users.take(user, most).ok_or(NoPlace::User { user, most })?;
        let of_process = self.processes.take(pid, process);
        let of_process = of_process.ok_or(NoPlace::Process { pid, user, most: process })?;
        // Places are had without waiting for time to pass, whatever the time is.
        let stay = self.room.enter(user, self.known.rank(user), Timestamp::EPOCH);
        let stay = stay.ok_or(NoPlace::All { most: all })?;
        Ok(Place { stay, _user: of_user, _process: of_process })
    }

    /// The connection, for as long as its place is not another's.
    pub(crate) fn guest<S>(&self, inner: S, place: &Place, user: User) -> Guest<S> {
        let gone = Box::pin(place.stay.give_way().clone().cancelled_owned());
        Guest { inner, gone, user, turned_away: Some(self.turned_away.clone()) }
    }
}

/// Users as whom some process was a workload, since this agent started.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownUsers(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    users: BTreeMap<User, u64>, // INVARIANT: at most KNOWN_USERS_MAX
    last: u64,
}

/// Of more, the one that was a workload longest ago is a stranger again.
const KNOWN_USERS_MAX: usize = 1024;

impl KnownUsers {
    /// A process of this user is a workload now.
    pub(crate) fn remember(&self, user: User) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.last += 1;
        let last = known.last;
        known.users.insert(user, last);
        if KNOWN_USERS_MAX < known.users.len() {
            let longest_ago = known.users.iter().min_by_key(|(_, at)| **at).map(|(user, _)| *user);
            longest_ago.map(|user| known.users.remove(&user));
        }
    }

    fn rank(&self, user: User) -> Rank {
        let ours = user.household == Household::Ours && is_ours(user.uid);
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ours || known.users.contains_key(&user) { Rank::Known } else { Rank::Stranger }
    }
}

/// How many connections were closed for want of a place.
#[derive(Clone)]
pub(crate) struct TurnedAway(Arc<Away>);

struct Away {
    clock: Arc<dyn Clock>,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    count: u64,
    at: Option<Timestamp>,
}

/// Whoever tries without end does not fill the log.
const WARN_EVERY: Duration = Duration::from_secs(60);

impl TurnedAway {
    /// None yet.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Away { clock, told: Mutex::default() }))
    }

    /// All of them, since the agent started.
    pub(crate) fn total(&self) -> u64 {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    fn count(&self, why: &str) {
        let now = self.0.clock.now();
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.count += 1;
        // A clock that was set back is no reason for silence.
        if told.at.is_none_or(|at| now < at || at + WARN_EVERY <= now) {
            told.at = Some(now);
            tracing::warn!(
                why,
                total = told.count,
                "connections to the socket were closed for want of a place"
            );
        }
    }
}

/// A connection that ends once its place is another's.
pub(crate) struct Guest<S> {
    inner: S,
    gone: Pin<Box<WaitForCancellationFutureOwned>>,
    user: User,
    turned_away: Option<TurnedAway>, // None: it was told already
}

impl<S> Guest<S> {
    /// Asked at whatever is done, so that it ends also while nobody reads what is written.
    fn stay(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.gone.as_mut().poll(context).is_pending() {
            return Ok(());
        }
        if let Some(turned_away) = self.turned_away.take() {
            let why = format!("one of {} had to make room", self.user);
            turned_away.count(&why);
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guest<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stay(context)?;
        Pin::new(&mut self.inner).poll_read(context, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guest<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stay(context)?;
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stay(context)?;
        Pin::new(&mut self.inner).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use countersign_identity::{SelectorKind, SimClock};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;
    use crate::attest::{AttestRefused, Facts, Peer, SimulatedProcess};

    const BOUNDS: PlaceBounds = PlaceBounds { all: 64, user: 32, process: 4 };

    fn places() -> Places {
        let clock = Arc::new(SimClock::new(Timestamp::from_secs(1000)));
        Places::new(BOUNDS, KnownUsers::default(), TurnedAway::new(clock))
    }

    const fn of(uid: u32) -> User {
        User { uid, household: Household::Ours }
    }

    /// Root of some container.
    const fn elsewhere(number: u64) -> User {
        User { uid: 0, household: Household::Other(number) }
    }

    /// One user's processes, each with as many connections as it may have, until the user has all of its own.
    fn crowd(places: &Places, uid: u32) -> Vec<Place> {
        crowd_of(places, of(uid), 100 * uid)
    }

    fn crowd_of(places: &Places, user: User, first: u32) -> Vec<Place> {
        let processes = (0..).map(|number| first + number / 4);
        let taken = processes.map(|pid| places.take(user, pid));
        taken.take(BOUNDS.user).map(Result::unwrap).collect()
    }

    fn gone(places: &[Place]) -> usize {
        places.iter().filter(|place| place.stay.give_way().is_cancelled()).count()
    }

    #[test]
    fn two_users_that_take_every_place_keep_neither_a_third_nor_root_out() {
        let places = places();
        let crowds = [crowd(&places, 4001), crowd(&places, 4002)];
        let third = places.take(of(4003), 1).unwrap();
        let root: Vec<_> = (2..6).map(|pid| places.take(of(0), pid).unwrap()).collect();
        assert_eq!(crowds.iter().map(|crowd| gone(crowd)).sum::<usize>(), 5);
        // They come back, and take places of each other only.
        drop(crowds);
        let _crowds = [crowd(&places, 4001), crowd(&places, 4002)];
        assert_eq!(gone(&[third]) + gone(&root), 0);
    }

    #[test]
    fn strangers_of_any_number_of_users_keep_nobody_out_and_push_out_nobody_who_is_known() {
        let places = places();
        places.known.remember(of(4003));
        let known = [places.take(of(4003), 1).unwrap(), places.take(of(0), 2).unwrap()];
        let mut strangers: Vec<_> =
            (10_000..10_500).map(|uid| places.take(of(uid), uid).unwrap()).collect();
        assert_eq!((gone(&known), gone(&strangers)), (0, 500 + 2 - BOUNDS.all));
        let newest = [strangers.pop().unwrap()];
        let more = [places.take(of(4003), 3).unwrap(), places.take(of(0), 4).unwrap()];
        assert_eq!(gone(&newest) + gone(&more) + gone(&known), 0);
    }

    #[test]
    fn a_user_and_a_process_have_their_bounds_and_who_is_there_does_not_go_for_them() {
        let places = places();
        let user = crowd(&places, 4001);
        let told = |refused: Result<Place, NoPlace>| refused.err().unwrap().to_string();
        let refused = told(places.take(of(4001), 7));
        assert_eq!(refused, "uid 4001 has 32 connections, the most that one may");
        let process: Vec<_> = (0..4).map(|_| places.take(of(4002), 8).unwrap()).collect();
        let refused = told(places.take(of(4002), 8));
        assert_eq!(refused, "process `8` of uid 4002 has 4 connections, the most that one may");
        assert_eq!(gone(&user) + gone(&process), 0);
        assert_eq!(places.turned_away.total(), 2);
        drop(user);
        assert!(places.take(of(4001), 7).is_ok());
    }

    #[tokio::test]
    async fn roots_of_containers_take_no_place_of_the_machines_root_nor_of_each_other() {
        let places = places();
        let root: Vec<_> = (1..4).map(|pid| places.take(of(0), pid).unwrap()).collect();
        let crowds = [crowd_of(&places, elsewhere(7), 100), crowd_of(&places, elsewhere(8), 200)];
        let told = places.take(elsewhere(7), 199).err().unwrap().to_string();
        assert_eq!(told, "uid 0 of another namespace has 32 connections, the most that one may");
        let third = places.take(elsewhere(9), 300).unwrap();
        let more: Vec<_> = (4..36).map(|pid| places.take(of(0), pid)).map(Result::ok).collect();
        assert_eq!(more.iter().flatten().count(), BOUNDS.user - root.len(), "all of its own");
        let more: Vec<_> = more.into_iter().flatten().collect();
        assert_eq!(gone(&root) + gone(&more) + gone(&[third]), 0);
        drop(crowds);
        // Who it is, is asked where the number alone makes one known.
        let user = async |uid| {
            let process = SimulatedProcess::new(Peer { pid: 1, uid, gid: uid }, []);
            let caller: Arc<dyn Caller> = Arc::new(process.living_in(Household::Other(7)));
            User::of(&caller).await
        };
        assert_eq!((user(0).await, user(65_534).await), (elsewhere(7), of(65_534)));
        // Where one of its processes was a workload, a container's root is no stranger.
        assert_eq!(places.known.rank(elsewhere(7)), Rank::Stranger);
        places.known.remember(elsewhere(7));
        let ranks = [7, 8].map(|number| places.known.rank(elsewhere(number)));
        assert_eq!(ranks, [Rank::Known, Rank::Stranger]);
    }

    /// One of whom it is not told where it lives, for as long as the sender lives.
    struct Untold(Mutex<std::sync::mpsc::Receiver<()>>);

    impl Caller for Untold {
        fn peer(&self) -> Peer {
            Peer { pid: 1, uid: 0, gid: 0 }
        }

        fn household(&self) -> Household {
            let _ended = self.0.lock().unwrap().recv();
            Household::Ours
        }

        fn facts(&self, _: &BTreeSet<SelectorKind>) -> Result<Facts, AttestRefused> {
            Err(AttestRefused::Gone { pid: 1 })
        }

        fn alive(&self) -> Result<(), AttestRefused> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn who_does_not_tell_in_time_where_it_lives_is_none_of_ours_and_keeps_nobody_waiting() {
        let (_untold, ended) = std::sync::mpsc::channel();
        let caller: Arc<dyn Caller> = Arc::new(Untold(Mutex::new(ended)));
        let user = tokio::time::timeout(Duration::from_secs(60), User::of(&caller)).await;
        assert_eq!(user.expect("the next one waits no longer"), elsewhere(0));
        assert_eq!(places().known.rank(elsewhere(0)), Rank::Stranger);
    }

    #[test]
    fn users_without_end_that_were_workloads_take_no_memory_without_end() {
        let known = KnownUsers::default();
        (1..5000).for_each(|uid| known.remember(of(uid)));
        assert_eq!(known.0.lock().unwrap().users.len(), KNOWN_USERS_MAX);
        assert_eq!((known.rank(of(4999)), known.rank(of(1))), (Rank::Known, Rank::Stranger));
        assert_eq!(known.rank(of(0)), Rank::Known);
    }

    #[tokio::test]
    async fn who_has_to_make_room_is_cut_off_whatever_it_does() {
        let places = places();
        let [oldest, _other] = [crowd(&places, 4001), crowd(&places, 4002)];
        let (_near, far) = UnixStream::pair().unwrap();
        let mut guest = places.guest(far, &oldest[0], of(4001));
        let waiting = tokio::spawn(async move {
            let read = guest.read_u8().await.unwrap_err();
            let written = guest.write_u8(0).await.unwrap_err();
            (read.kind(), written.kind())
        });
        tokio::task::yield_now().await;
        let _newcomers = [places.take(of(4003), 1).unwrap(), places.take(of(4003), 1).unwrap()];
        let waiting = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        let cut = io::ErrorKind::ConnectionAborted;
        assert_eq!(waiting.expect("it is woken").unwrap(), (cut, cut));
        assert_eq!(places.turned_away.total(), 1);
    }
}
