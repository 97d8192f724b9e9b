//! The outbound side: a program of our own comes in over a local listener, and goes on to a peer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use countersign_identity::{Code, Name};
use countersign_tls::{Direction, HandshakeFact, Limit};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::bounds::{CONNECTIONS_MAX, WAITING_MAX};
use crate::door::{answer, join};
use crate::facts::blank_fact;
use crate::listener::{Arrived, Listener};
use crate::metrics::Meter;
use crate::plane::Plane;
use crate::relay::Relay;
use crate::route::Route;
use crate::session::{Patience, Spoken};
use crate::wire::{Kind, Wire};

/// One local listener, for one upstream. Whoever may use it *is* the workload, so only our own user may.
pub(crate) struct Outlet {
    plane: Arc<Plane>,
    upstream: Name,
    route: Arc<ArcSwap<Route>>,
    meter: Meter,
    places: Limit,
    stop: CancellationToken,
}

impl Outlet {
    pub(crate) fn new(
        plane: &Arc<Plane>,
        upstream: Name,
        route: Arc<ArcSwap<Route>>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            plane: plane.clone(),
            meter: plane.metrics.meter(upstream.as_str(), Direction::Outbound),
            upstream,
            route,
            places: Limit::new(CONNECTIONS_MAX),
            stop,
        })
    }

    /// Lets the program in until stopped, those connections included which it had made by then.
    pub(crate) async fn run(self: Arc<Self>, listener: Listener) {
        loop {
            let arrived = tokio::select! {
                () = self.stop.cancelled() => break,
                arrived = listener.accept() => arrived,
            };
            self.admit(arrived);
        }
        for arrived in listener.into_waiting(WAITING_MAX) {
            self.admit(arrived);
        }
    }

    fn admit(self: &Arc<Self>, arrived: Arrived) {
        let Some(place) = self.places.take() else {
            let reason = Code::TooManyConnections.as_str();
            return self.plane.metrics.refused(self.upstream.as_str(), reason);
        };
        let kept = (place, self.meter.open());
        let outlet = self.clone();
        self.plane.tasks.start(async move {
            let (kind, from, owner) = match arrived {
                Arrived::Unix(stream) => {
                    let owner = owner_of(&stream);
                    (Kind::Unix(stream), None, owner)
                }
                Arrived::Tcp(stream, from) => {
                    let owner = tcp_owner(&stream, from).await;
                    (Kind::Tcp(stream), Some(from), owner)
                }
            };
            match refusal(owner, nix::unistd::geteuid().as_raw()) {
                None => outlet.serve(Wire::new(kind, kept)).await,
                Some(why) => outlet.turn_away(from, why),
            }
        });
    }

    async fn serve<K: Unpin + Send + 'static>(&self, wire: Wire<K>) {
        let route = self.route.load_full();
        match &*route {
            Route::Requests(_) => {
                let relay = Relay {
                    plane: self.plane.clone(),
                    route: self.route.clone(),
                    meter: self.meter.clone(),
                    peer: None,
                    certificate: None,
                    requests: None,
                    guard: None,
                    service: self.upstream.clone(),
                };
                drop(route);
                let how = (Spoken::Either, Patience::Program);
                answer(wire, how, (relay, None), self.stop.cancelled()).await;
            }
            Route::Bytes(upstream) => {
                let upstream = upstream.clone();
                drop(route);
                join(wire, &upstream, (&self.meter, Vec::new())).await;
            }
        }
    }

    fn turn_away(&self, from: Option<SocketAddr>, why: String) {
        tracing::warn!(upstream = %self.upstream, why, "a local caller was refused");
        self.plane.metrics.refused(self.upstream.as_str(), Code::Forbidden.as_str());
        let blank = blank_fact(&self.plane, Direction::Outbound, &self.upstream, from);
        self.plane.facts.report(HandshakeFact {
            code: Some(Code::Forbidden),
            detail: why,
            ..blank
        });
    }
}

/// Who owns the other end of a local connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Uid(u32),
    /// The kernel's tables are there, and do not say.
    Unknown,
}

/// Why the caller may not speak for the workload, if it may not.
fn refusal(owner: Owner, own: u32) -> Option<String> {
    match owner {
        Owner::Uid(uid) if uid == own => None,
        Owner::Uid(uid) => Some(format!(
            "the caller runs as uid {uid}, and this listener speaks for uid {own} only"
        )),
        Owner::Unknown => Some("the kernel does not say who the caller is".to_owned()),
    }
}

fn owner_of(stream: &UnixStream) -> Owner {
    stream.peer_cred().map_or(Owner::Unknown, |credentials| Owner::Uid(credentials.uid()))
}

/// The uid of the other end of a loopback connection, from the kernel's table of sockets. Anybody may read it.
async fn tcp_owner(stream: &TcpStream, from: SocketAddr) -> Owner {
    let Ok(own) = stream.local_addr() else { return Owner::Unknown };
    let table = if from.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    match tokio::fs::read_to_string(table).await {
        Ok(text) => find_owner(&text, from, own).map_or(Owner::Unknown, Owner::Uid),
        Err(_unreadable) => Owner::Unknown,
    }
}

/// How the table writes the state of a connection that both ends hold open.
const ESTABLISHED: &str = "01";

/// Finds the socket that is bound to `from` and connected to `to`.
fn find_owner(table: &str, from: SocketAddr, to: SocketAddr) -> Option<u32> {
    let (from, to) = (written(from), written(to));
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let (local, remote, state) = (columns.next()?, columns.next()?, columns.next()?);
        // A socket that its process has closed is nobody's, and is shown as root's.
        let held = local == from && remote == to && state == ESTABLISHED;
        // Behind these: queues, timer, retransmissions, uid.
        held.then(|| columns.nth(3)?.parse().ok()).flatten()
    })
}

/// An address as the table writes it: words of 32 bits in the machine's own order, in hexadecimal.
fn written(address: SocketAddr) -> String {
    let bytes = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words =
        bytes.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    let words: String = words.map(|word| format!("{word:08X}")).collect();
    format!("{words}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_tells_who_owns_a_loopback_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, from) = listener.accept().await.unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        let own = nix::unistd::geteuid().as_raw();
        assert_eq!(tcp_owner(&accepted, from).await, Owner::Uid(own));
        let (near, _far) = UnixStream::pair().unwrap();
        assert_eq!(owner_of(&near), Owner::Uid(own));
    }

    #[test]
    fn a_caller_of_another_user_or_of_none_is_refused() {
        assert_eq!(refusal(Owner::Uid(1000), 1000), None);
        assert!(
            refusal(Owner::Uid(0), 1000).unwrap().contains("uid 0"),
            "not even root speaks for another"
        );
        assert!(refusal(Owner::Uid(1001), 1000).unwrap().contains("uid 1001"));
        assert!(refusal(Owner::Unknown, 1000).is_some());
    }

    #[test]
    fn a_line_of_the_table_is_found_by_both_ends() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000   111        0 1 1\n   \
            1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 2 1\n   \
            2: 0100007F:C351 0100007F:1F90 05 00000000:00000000 00:00000000 00000000     0        0 0 1\n   \
            3: torn";
        let (client, server) =
            ("127.0.0.1:50000".parse().unwrap(), "127.0.0.1:8080".parse().unwrap());
        assert_eq!(find_owner(table, client, server), Some(1000));
        assert_eq!(find_owner(table, server, client), Some(111));
        assert_eq!(find_owner(table, client, client), None);
        let closed = "127.0.0.1:50001".parse().unwrap();
        assert_eq!(find_owner(table, closed, server), None, "nobody's socket is not root's");
    }
}
