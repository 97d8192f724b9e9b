//! Trials: an operator asks whether enforcement points refuse what they say they refuse, and the agent tries it out at
//! their doors, with a canary that the trial's own rule covers, one that it does not, and, where an authority is out of
//! service, one that this authority has signed.
//!
//! What the doors are, the points say. So a door is tried only on this machine, only while a trial is asked for, and only
//! what is proven there by the point's own certificate counts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1::{self, CanaryOutcome};
use countersign_identity::{Canary, Clock, Code, Revocations, Timestamp, Trial};
use countersign_pki::{Bundle, Bundles, Chain, KeyKind, PrivateKey, make_csr};
use countersign_tls::{CanaryAnswer, Identity, Slice, show_canary, show_former_canary};
use futures_util::{StreamExt as _, stream};
use tokio::sync::watch;

use crate::enforcement::{Points, Tryable};
use crate::server_link::{Calls, SignAnswer, SignItem, Subject};
use crate::view::View;

/// For how long an answer that proves nothing is asked for again.
const UNCLEAR_TIME: Duration = Duration::from_secs(3);
/// How long after a trial has begun points are tried that are slow to say that they enforce it.
const TRY_TIME: Duration = Duration::from_secs(40);
/// How often it is looked for points that can be tried now.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a door may take for one canary.
const DOOR_TIMEOUT: Duration = Duration::from_secs(3);
/// Points that are tried at the same time.
const TRIED_AT_ONCE_MAX: usize = 8;

/// Holds the trials that operators ask for.
#[derive(Clone)]
pub(crate) struct Trials {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) points: Points,
}

/// What is shown, and by what the doors are verified.
struct Birds {
    covered: Identity,
    uncovered: Identity,
    /// What an authority has signed that is out of service, if there is such a one.
    former: Option<Identity>,
    trusting: Slice,
}

impl Trials {
    /// Holds each new trial, with what one session gives. A trial that a session leaves unfinished is held by the next.
    pub(crate) async fn run(
        self,
        calls: Arc<dyn Calls>,
        mut views: watch::Receiver<Option<Arc<View>>>,
    ) {
        let mut rules = Arc::default();
        loop {
            let view = views.borrow_and_update().clone();
            // Looked through only when they are others than before: there may be many.
            let view = view.filter(|view| !Arc::ptr_eq(&rules, view.replica.rules()));
            if let Some(view) = &view {
                rules = Arc::clone(view.replica.rules());
            }
            if let Some(view) = view
                && let Some((trial, began)) = self.due(&view)
            {
                let newer = views.clone();
                self.hold((trial, began), &*calls, &view, newer).await;
                self.points.held(trial);
            }
            if views.changed().await.is_err() {
                return;
            }
        }
    }

    /// The newest trial, if it was not held yet, and when it began.
    fn due(&self, view: &View) -> Option<(Trial, Timestamp)> {
        let now = self.clock.now();
        let begun = view.replica.rules().iter().filter_map(|(_, rule)| {
            let trial = Trial::begun_by(rule)?;
            (now < rule.at + Trial::TIME).then_some((trial, rule.at))
        });
        let newest = begun.max_by_key(|(trial, _)| *trial)?;
        (self.points.last_held() < Some(newest.0)).then_some(newest)
    }

    /// Until all points were tried, it is late, or another trial has begun: a point that hangs keeps nobody waiting.
    async fn hold(
        &self,
        (trial, began): (Trial, Timestamp),
        calls: &dyn Calls,
        view: &View,
        views: watch::Receiver<Option<Arc<View>>>,
    ) {
        let birds = match self.birds(trial, calls, view).await {
            Ok(birds) => Ok(birds),
            Err(why) => {
                tracing::warn!(trial = %trial.0, %why, "there are no canaries for a trial");
                Err(format!("there was no canary to be shown: {why}"))
            }
        };
        // The clock that began it may be another than ours.
        let begun = began.max(self.clock.now());
        let (clear, late) = (begun + UNCLEAR_TIME, begun + TRY_TIME);
        loop {
            let mut pending = 0;
            let mut ready = Vec::new();
            for point in self.points.to_try(trial) {
                if point.enforces && point.doors.is_some() {
                    ready.push(point);
                } else {
                    pending += 1;
                }
            }
            let trying = stream::iter(ready).map(|point| self.try_out(trial, point, &birds, clear));
            let tried: Vec<Tried> = trying.buffer_unordered(TRIED_AT_ONCE_MAX).collect().await;
            pending += tried.iter().filter(|one| **one == Tried::Unclear).count();
            let latest = views
                .borrow()
                .clone()
                .filter(|latest| !Arc::ptr_eq(latest.replica.rules(), view.replica.rules()));
            let due = latest.and_then(|latest| self.due(&latest));
            let newer = due.is_some_and(|(newest, _)| trial < newest);
            if pending == 0 || newer || late <= self.clock.now() {
                return;
            }
            self.clock.sleep_until(self.clock.now() + LOOK_EVERY).await;
        }
    }

    /// Gets the canaries, and whom to trust at doors.
    async fn birds(&self, trial: Trial, calls: &dyn Calls, view: &View) -> Result<Birds, String> {
        let domain = view.node.spiffe_id.trust_domain();
        let mut keys = Vec::new();
        let mut items = Vec::new();
        for canary in [Canary::Covered, Canary::Uncovered, Canary::Former] {
            let key = PrivateKey::generate(KeyKind::P256).map_err(|why| why.to_string())?;
            let csr = make_csr(&key).map_err(|why| why.to_string())?;
            items.push(SignItem { subject: Subject::Canary(trial.id(domain, canary)), csr });
            keys.push(key);
        }
        let answers = calls.sign(items, None).await.map_err(|fault| fault.why)?;
        let mut birds = keys.into_iter().zip(answers).map(|(key, answer)| match answer {
            SignAnswer::Issued { chain, .. } => identity(chain, &key).map(Some),
            SignAnswer::Refused(Code::NotFound, _) => Ok(None),
            SignAnswer::Refused(_, why) | SignAnswer::Broken(why) => Err(why),
        });
        let missing = || "the server did not give both canaries".to_owned();
        let mut next = || birds.next().unwrap_or_else(|| Err(missing()));
        Ok(Birds {
            covered: next()?.ok_or_else(missing)?,
            uncovered: next()?.ok_or_else(missing)?,
            former: next()?,
            trusting: trusting(view)?,
        })
    }

    /// What is unclear is not told before this moment: a door whose own credential is on its way refuses everybody for a while.
    async fn try_out(
        &self,
        trial: Trial,
        point: Tryable,
        birds: &Result<Birds, String>,
        clear: Timestamp,
    ) -> Tried {
        let mut result = v1::TrialResult { trial: Some(trial.0.into()), ..Default::default() };
        let mut unclear = false;
        let doors = point.doors.clone().unwrap_or_default();
        match birds {
            Err(why) => result.why.clone_from(why),
            Ok(_) if doors.is_empty() => "no door".clone_into(&mut result.why),
            Ok(birds) => {
                for door in doors {
                    unclear |= self.try_door(trial, &point, door, birds, &mut result).await;
                    // Of several doors the one that is told is the one that does not do what its point says.
                    if !is_as_claimed(&result) {
                        break;
                    }
                }
            }
        }
        if unclear && self.clock.now() < clear {
            return Tried::Unclear;
        }
        self.points.tried(&point, result);
        Tried::Told
    }

    /// Whether an answer proved nothing.
    async fn try_door(
        &self,
        trial: Trial,
        point: &Tryable,
        door: SocketAddr,
        birds: &Birds,
        result: &mut v1::TrialResult,
    ) -> bool {
        result.door = door.to_string();
        let Some(at) = on_this_machine(door) else {
            "the door is not on this machine".clone_into(&mut result.why);
            return false;
        };
        let (clock, to) = (&self.clock, (at, &point.spiffe_id));
        let shown = |canary: &Identity| {
            show_canary(clock, birds.trusting.clone(), canary.clone(), to, DOOR_TIMEOUT)
        };
        let mut unclear = false;
        let mut heard = |answer| {
            unclear |= matches!(answer, CanaryAnswer::Unclear(_));
            outcome(trial, answer, &mut result.why)
        };
        let covered = heard(shown(&birds.covered).await);
        let uncovered = heard(shown(&birds.uncovered).await);
        let former = match &birds.former {
            Some(canary) => {
                let slice = birds.trusting.clone();
                heard(show_former_canary(clock, slice, canary.clone(), to, DOOR_TIMEOUT).await)
            }
            None => CanaryOutcome::Unspecified,
        };
        result.set_covered(covered);
        result.set_uncovered(uncovered);
        result.set_former(former);
        unclear
    }
}

/// What came of one try at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    /// The server is told.
    Told,
    /// It says nothing yet.
    Unclear,
}

/// What an answer comes to; `why` is told what does not prove anything.
fn outcome(trial: Trial, answer: CanaryAnswer, why: &mut String) -> CanaryOutcome {
    match answer {
        CanaryAnswer::Revoked => CanaryOutcome::Revoked,
        CanaryAnswer::Untrusted => CanaryOutcome::Untrusted,
        CanaryAnswer::Alive(at) => {
            if at < trial.0 {
                *why = format!("the door enforces {at} only");
            }
            CanaryOutcome::Alive
        }
        CanaryAnswer::Unclear(unclear) => {
            *why = unclear;
            CanaryOutcome::Unspecified
        }
    }
}

/// Whether a door refuses all that is out of service, and nobody else.
fn is_as_claimed(result: &v1::TrialResult) -> bool {
    result.why.is_empty()
        && result.covered() == CanaryOutcome::Revoked
        && result.uncovered() == CanaryOutcome::Alive
        && result.former() != CanaryOutcome::Alive
}

fn identity(chain: Chain, key: &PrivateKey) -> Result<Identity, String> {
    Identity::new(chain, key.pkcs8()).map_err(|why| why.to_string())
}

/// By what doors are verified: all that is enforced on this node but the rules of trials, by which we could not show what
/// they cover.
fn trusting(view: &View) -> Result<Slice, String> {
    let bundles = view.replica.bundles().values().map(|bundle| Bundle::clone(bundle)).collect();
    let bundles = Bundles::new(bundles).map_err(|why| why.to_string())?;
    let rules = view.replica.rules().iter();
    let rules = rules.filter(|(_, rule)| Trial::begun_by(rule).is_none());
    let rules = rules.map(|(name, rule)| (Arc::clone(name), Arc::clone(rule)));
    Ok(Slice {
        revision: view.replica.revision(),
        bundles: Arc::new(bundles),
        revocations: Arc::new(Revocations::new(rules)),
        ..Slice::nothing()
    })
}

/// Where a door is reached, if it is one of this machine's addresses: an agent dials nobody else on a workload's word.
fn on_this_machine(door: SocketAddr) -> Option<SocketAddr> {
    let ip = match door.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let one = !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST) && door.port() != 0;
    (one && (ip.is_loopback() || is_own(ip))).then(|| SocketAddr::new(ip, door.port()))
}

/// Whether the machine has the address: what it would send there, it would send from there. (To bind to it tells nothing
/// where `ip_nonlocal_bind` is on.) Nothing is sent.
fn is_own(ip: IpAddr) -> bool {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        // The port is of no meaning; a datagram socket only looks up its way.
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn door_is_tried_on_this_machine_only() {
        let reached = |door: &str| on_this_machine(door.parse().unwrap());
        assert_eq!(reached("0.0.0.0:8443"), "127.0.0.1:8443".parse().ok());
        assert_eq!(reached("127.0.0.1:8443"), "127.0.0.1:8443".parse().ok());
        for elsewhere in
            ["192.0.2.1:443", "169.254.169.254:80", "224.0.0.1:443", "255.255.255.255:1"]
        {
            assert_eq!(reached(elsewhere), None, "{elsewhere}");
        }
        assert_eq!(reached("127.0.0.1:0"), None);
        assert_eq!(reached("127.0.0.2:8443"), "127.0.0.2:8443".parse().ok());
        assert_eq!(reached("[::1]:8443"), "[::1]:8443".parse().ok());
        assert_eq!(reached("[::ffff:192.0.2.1]:8443"), None);
        assert_eq!(reached("[2001:db8::1]:8443"), None);
    }

    /// Not a test by itself: what the next one does in a network of its own.
    #[test]
    fn in_a_network_that_lets_anybody_bind_to_any_address() {
        if std::env::var_os("COUNTERSIGN_TEST_NETWORK").is_none() {
            return;
        }
        let reached = |door: &str| on_this_machine(door.parse().unwrap());
        assert!(UdpSocket::bind(("192.0.2.1", 0)).is_ok(), "it was set up");
        assert_eq!(reached("192.0.2.1:443"), None);
        assert_eq!(reached("[2001:db8::1]:443"), None);
        assert_eq!(reached("192.0.2.77:443"), "192.0.2.77:443".parse().ok());
        assert_eq!(reached("127.0.0.1:443"), "127.0.0.1:443".parse().ok());
    }

    #[test]
    fn address_that_may_be_bound_to_is_not_therefore_the_machines() {
        let set_up = "ip link set lo up && ip address add 192.0.2.77/32 dev lo && ip route add default dev lo && \
             echo 1 > /proc/sys/net/ipv4/ip_nonlocal_bind && exec \"$0\" \"$@\"";
        let test = "in_a_network_that_lets_anybody_bind_to_any_address";
        let ended = std::process::Command::new("unshare")
            .args(["--net", "--", "sh", "-c", set_up])
            .arg(std::env::current_exe().unwrap())
            .args([test, "--nocapture"])
            .env("COUNTERSIGN_TEST_NETWORK", "1")
            .output();
        match ended {
            Ok(ended) if ended.status.success() => {
                let said = String::from_utf8_lossy(&ended.stdout).into_owned();
                assert!(said.contains("1 passed"), "{said}");
            }
            // Only root may make networks.
            Ok(ended) if !rustix::process::geteuid().is_root() => drop(ended),
            Ok(ended) => panic!("{}", String::from_utf8_lossy(&ended.stderr)),
            Err(why) => eprintln!("no network can be made here: {why}"),
        }
    }
}
