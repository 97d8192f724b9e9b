//! Opens, keeps, redirects and closes listeners, so that they are as the plan says.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign_identity::Name;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::acceptors;
use crate::bounds::CLOSES_WITHIN;
use crate::config::{BoundInbound, BoundOutbound, LocalPlace, Protocol};
use crate::dial::Dialer;
use crate::door::Door;
use crate::listener::{ListenFault, Listener};
use crate::outlet::Outlet;
use crate::plan::{DoorPlan, Leads, Manners, OutletPlan, Plan};
use crate::plane::Plane;
use crate::route::{Route, Tended, Ways};
use crate::upstream::Carries;

/// What is open now.
pub(crate) struct Supervisor {
    plane: Arc<Plane>,
    doors: BTreeMap<Name, Open>,
    outlets: BTreeMap<(Name, Name), Running<OutletPlan, BoundOutbound>>,
    /// Held by every door and by everything that came in through one.
    inside: mpsc::Sender<Infallible>,
    /// Ends when nobody is left inside.
    empty: mpsc::Receiver<Infallible>,
}

/// A door, and how it treats those who come in.
struct Open {
    running: Running<DoorPlan, BoundInbound>,
    manners: Arc<ArcSwap<Manners>>,
}

struct Running<P, B> {
    plan: P,
    bound: B,
    route: Arc<ArcSwap<Route>>,
    stop: CancellationToken,
    /// Done when nobody listens here any more.
    closed: CancellationToken,
}

impl Supervisor {
    pub(crate) fn new(plane: &Arc<Plane>) -> Self {
        let (inside, empty) = mpsc::channel(1);
        let (doors, outlets) = (BTreeMap::new(), BTreeMap::new());
        Self { plane: plane.clone(), doors, outlets, inside, empty }
    }

    /// Goes from what is open to what should be. Listeners that stay the same are not touched, and one that cannot be
    /// opened does not keep the others from it.
    pub(crate) async fn follow(&mut self, plan: &Plan) -> Vec<ListenFault> {
        let closing = self.close(plan);
        let closed = async {
            for one in closing {
                one.cancelled().await;
            }
        };
        // If one takes longer, what it is in the way of is told of, and tried again later.
        let _ = tokio::time::timeout(CLOSES_WITHIN, closed).await;
        self.open(plan)
    }

    /// Does the same at once: what has to close may still be in the way of what is to open.
    pub(crate) fn reconcile(&mut self, plan: &Plan) -> Vec<ListenFault> {
        self.close(plan);
        self.open(plan)
    }

    /// Begins to close what there is not to be, and what is in another's way: a listener may move from one name to another. A door
    /// that is in nobody's way stays until it is open at its new place. Gives what is done when each is closed.
    fn close(&mut self, plan: &Plan) -> Vec<CancellationToken> {
        let (wanted, mut closing) = (self.wanted(plan), Vec::new());
        self.doors.retain(|name, Open { running, .. }| {
            let (planned, at) = (plan.doors.get(name), running.bound.listen);
            let keep = planned.is_some_and(|planned| {
                let stays = planned.listen == running.plan.listen;
                stays || !wanted.iter().any(|address| excludes(*address, at))
            });
            if !keep {
                tracing::info!(service = %name, listen = %running.bound.listen, "the door is closed");
                running.stop.cancel();
                closing.push(running.closed.clone());
            }
            keep
        });
        self.outlets.retain(|name, outlet| {
            let planned = plan.outlets.get(name);
            let keep = planned.is_some_and(|planned| planned.local == outlet.plan.local);
            if !keep {
                let BoundOutbound { service, upstream, local } = &outlet.bound;
                tracing::info!(%service, %upstream, %local, "the way out is closed");
                outlet.stop.cancel();
                closing.push(outlet.closed.clone());
            }
            keep
        });
        closing
    }

    /// Opens and redirects what can be, and gives why the rest cannot.
    fn open(&mut self, plan: &Plan) -> Vec<ListenFault> {
        let doors =
            plan.doors.iter().filter_map(|(name, planned)| self.set_door(name, planned).err());
        let mut faults: Vec<_> = doors.collect();
        let outlets =
            plan.outlets.iter().filter_map(|(name, planned)| self.set_outlet(name, planned).err());
        faults.extend(outlets);
        self.plane.metrics.missing(faults.len());
        faults
    }

    /// Where somebody is to listen who does not yet.
    fn wanted(&self, plan: &Plan) -> Vec<SocketAddr> {
        let doors = plan.doors.iter().filter(|(name, planned)| {
            self.doors.get(*name).is_none_or(|open| open.running.plan.listen != planned.listen)
        });
        let doors = doors.map(|(_, planned)| planned.listen);
        let outlets = plan.outlets.iter().filter(|(name, planned)| {
            self.outlets.get(*name).is_none_or(|open| open.plan.local != planned.local)
        });
        let outlets = outlets.filter_map(|(_, planned)| match planned.local {
            LocalPlace::Tcp(address) => Some(address),
            LocalPlace::Unix(_) => None,
        });
        doors.chain(outlets).collect()
    }

    /// What is open, with real ports.
    pub(crate) fn bound(&self) -> (Vec<BoundInbound>, Vec<BoundOutbound>) {
        let inbound = self.doors.values().map(|door| door.running.bound.clone()).collect();
        let outbound = self.outlets.values().map(|outlet| outlet.bound.clone()).collect();
        (inbound, outbound)
    }

    /// Closes everything within `grace`, and says how many tasks had to be cut.
    ///
    /// The doors close first. A request that came in through one may need a way out until it is answered, so those close
    /// when nobody is inside any more, or when four fifths of the time are over.
    pub(crate) async fn drain(self, grace: Duration) -> usize {
        let Self { plane, doors, outlets, inside, mut empty } = self;
        let began = Instant::now();
        drop(inside);
        for (_, door) in doors {
            door.running.stop.cancel();
        }
        // Nothing is ever sent: it resolves with the last one who leaves, or is given up.
        let _ = tokio::time::timeout(grace / 5 * 4, empty.recv()).await;
        for (_, outlet) in outlets {
            outlet.stop.cancel();
        }
        plane.tasks.drain(grace.saturating_sub(began.elapsed())).await
    }

    fn set_door(&mut self, name: &Name, planned: &DoorPlan) -> Result<(), ListenFault> {
        if let Some(Open { running: door, manners }) = self.doors.get_mut(name) {
            // Where it listens remains to be seen.
            let here = DoorPlan { listen: door.plan.listen, ..planned.clone() };
            if door.plan != here {
                manners.store(Arc::new(planned.manners.clone()));
                door.route.store(Arc::new(route(&self.plane, &planned.leads)));
                door.plan = here;
            }
            if door.plan.listen == planned.listen {
                return Ok(());
            }
        }
        let cores = tokio::runtime::Handle::current().metrics().num_workers();
        let listeners = acceptors::listeners(planned.listen, cores)?;
        let listen = listeners.first().and_then(Listener::address).unwrap_or(planned.listen);
        let route = Arc::new(ArcSwap::from_pointee(route(&self.plane, &planned.leads)));
        let manners = Arc::new(ArcSwap::from_pointee(planned.manners.clone()));
        let stop = CancellationToken::new();
        let door = Door::new(
            &self.plane,
            name.clone(),
            (route.clone(), manners.clone()),
            (stop.clone(), self.inside.clone()),
        );
        let closed = self.start(door.run(listeners));
        tracing::info!(service = %name, %listen, "the door is open");
        let bound = BoundInbound { service: name.clone(), listen };
        let running = Running { plan: planned.clone(), bound, route, stop, closed };
        if let Some(before) = self.doors.insert(name.clone(), Open { running, manners }) {
            let listen = before.running.bound.listen;
            tracing::info!(service = %name, %listen, "the door was moved, and is closed here");
            before.running.stop.cancel();
        }
        Ok(())
    }

    fn set_outlet(&mut self, name: &(Name, Name), planned: &OutletPlan) -> Result<(), ListenFault> {
        if let Some(outlet) = self.outlets.get_mut(name) {
            if outlet.plan != *planned {
                outlet.route.store(Arc::new(route(&self.plane, &planned.leads)));
                outlet.plan = planned.clone();
            }
            return Ok(());
        }
        let (service, upstream) = name.clone();
        let (listener, local) = match &planned.local {
            LocalPlace::Unix(path) => (Listener::unix(path)?, planned.local.clone()),
            LocalPlace::Tcp(address) => {
                let listener = Listener::tcp(*address)?;
                let address = listener.address().unwrap_or(*address);
                (listener, LocalPlace::Tcp(address))
            }
        };
        let route = Arc::new(ArcSwap::from_pointee(route(&self.plane, &planned.leads)));
        let stop = CancellationToken::new();
        let outlet = Outlet::new(&self.plane, upstream.clone(), route.clone(), stop.clone());
        let closed = self.start(outlet.run(listener));
        tracing::info!(%service, %upstream, %local, "the way out is open");
        let bound = BoundOutbound { service, upstream, local };
        let running = Running { plan: planned.clone(), bound, route, stop, closed };
        self.outlets.insert(name.clone(), running);
        Ok(())
    }

    /// Has it listen, and gives what is done when it does so no more.
    fn start(&self, listening: impl Future<Output = ()> + Send + 'static) -> CancellationToken {
        let closed = CancellationToken::new();
        let open = closed.clone().drop_guard();
        self.plane.tasks.start(async move {
            let _open = open;
            listening.await;
        });
        closed
    }
}

/// Whether nobody can listen at the one while somebody listens at the other.
fn excludes(one: SocketAddr, other: SocketAddr) -> bool {
    // `::ffff:127.0.0.1` is `127.0.0.1` by another name.
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port() && (a == b || a.is_unspecified() || b.is_unspecified())
}

fn route(plane: &Arc<Plane>, leads: &Leads) -> Route {
    match leads.protocol {
        Protocol::Http => {
            let http = Tended::start(plane, leads.ways.clone(), Carries::Requests);
            let grpc: Vec<Dialer> = leads.ways.iter().filter_map(Dialer::for_grpc).collect();
            let grpc = (!grpc.is_empty()).then(|| Tended::start(plane, grpc, Carries::Requests));
            Route::Requests(Ways { http, grpc })
        }
        Protocol::Tcp => Route::Bytes(Tended::start(plane, leads.ways.clone(), Carries::Bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_excludes_another_also_where_it_has_another_name() {
        let excludes = |one: &str, other: &str| {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(excludes(one, other), excludes(other, one));
            excludes(one, other)
        };
        for other in
            ["127.0.0.1:1", "0.0.0.0:1", "[::]:1", "[::ffff:127.0.0.1]:1", "[::ffff:0.0.0.0]:1"]
        {
            assert!(excludes("127.0.0.1:1", other), "{other}");
        }
        for other in ["127.0.0.1:2", "127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.2]:1"] {
            assert!(!excludes("127.0.0.1:1", other), "{other}");
        }
    }
}
