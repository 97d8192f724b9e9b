//! Every bound of the data plane, in one place, each with its reason.

use std::num::NonZeroUsize;
use std::time::Duration;

use countersign_tls::{Rate, RoomBounds, StandingRates};

/// How long a TLS handshake may take, certificate checks included.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a load balancer may take to say for whom it connects.
pub(crate) const PROXY_HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way at all doors together, and from one source. Each may cost 0.4 ms of CPU and some 30 KiB. An honest one takes
/// milliseconds, so that one older than a second gives way to a newcomer when there is no place. There are fewer than
/// `Limits::USUAL` has, whose places know nobody: those that gave way hold theirs until they have noticed.
pub(crate) const HANDSHAKES: RoomBounds =
    RoomBounds { all: 512, each: 256, yields_after: Duration::from_secs(1) };
/// Failed handshakes, at all doors together: strangers and suspects take a quarter of a core at most. A source from which
/// somebody was let in, or would be if they had not as many connections as one may have, may be many machines behind one address, and
/// is given more.
pub(crate) const STANDING: StandingRates = StandingRates {
    suspect: Rate { burst: 32, every: Duration::from_millis(500) },
    proven: Rate { burst: 512, every: Duration::from_millis(16) },
    suspects: Rate { burst: 128, every: Duration::from_millis(8) },
    strangers: Rate { burst: 512, every: Duration::from_millis(2) },
};
/// Connections of one door or one local listener. Idle ones of HTTP/1.1 take about 15 KiB, holes between what they hold included.
pub(crate) const CONNECTIONS_MAX: usize = 8192;
/// Connections of one peer at one door, by its identity, and as many that prove them anew. Each further one is a handshake that failed.
pub(crate) const CONNECTIONS_PER_PEER_MAX: NonZeroUsize = NonZeroUsize::new(2048).unwrap();
/// Requests of one peer under way at one door, over all its connections. Each may hold a connection to the program.
pub(crate) const REQUESTS_PER_PEER_MAX: usize = 4096;
/// How long to wait before accepting again after the system had no descriptor left.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What the kernel queues for one listener before we accept.
pub(crate) const BACKLOG: u32 = 1024;
/// How many of those who wait are still taken when a door or a way out closes, over all its listeners. While we take them, others may
/// come.
pub(crate) const WAITING_MAX: usize = 4 * BACKLOG as usize;

/// How long connecting to one address may take before the next one is tried.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a response's head may take. Long polls and streams that send their head early are not hurt.
pub(crate) const RESPONSE_HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// The same for a request with a body, which is as a rule answered after it was read.
pub(crate) const UPLOAD_TIMEOUT: Duration = Duration::from_secs(900);
/// How often the log says of one thing to reach why it gave no good answer. A program may be asked a thousand times a second.
pub(crate) const UNANSWERED_SAID: Rate = Rate { burst: 4, every: Duration::from_secs(30) };
/// How often one request or byte stream is tried at most, over all addresses.
pub(crate) const TRIES_MAX: usize = 6;

/// Bytes of a request's body that are remembered until somebody answers, so that it can be sent again when it was not
/// read.
pub(crate) const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// Bytes of one head in HTTP/1.1, and hyper's read buffer with it. Its fields are 100 at most, which is what hyper has room for
/// on the stack: any other number is made room for anew, and filled, with each head.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one header list in HTTP/2, as its section 6.5.2 counts them.
pub(crate) const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
/// Streams at once on one HTTP/2 connection that we accept.
pub(crate) const STREAMS_MAX: u32 = 256;
/// Streams at once on one HTTP/2 connection that we dialled, before another is opened.
pub(crate) const STREAMS_DIALLED_MAX: usize = 100;
/// HTTP/2 connections to one address. Beyond, streams queue.
pub(crate) const MULTIPLEXED_MAX: usize = 8;
/// Streams that a peer opened and reset, and which we have not handed on yet (rapid reset).
pub(crate) const RESET_STREAMS_MAX: usize = 32;
/// Streams that a peer made us reset.
pub(crate) const PROVOKED_RESETS_MAX: usize = 256;
/// Bytes in flight per HTTP/2 stream and per connection.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
/// See [`STREAM_WINDOW`].
pub(crate) const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes that wait to be sent on one HTTP/2 stream.
pub(crate) const SEND_BUFFER_MAX: usize = 128 * 1024;
/// Bytes that wait to be sent on all streams of one HTTP/2 connection, from which on no stream gets more while some of its own wait. Eight
/// streams have all that they may have, and however many there are, the connection has more to send than its socket takes at once.
pub(crate) const UNSENT_MAX: usize = 1024 * 1024;
/// Bytes of all streams of one HTTP/2 connection that are sent together: what one TLS record holds.
pub(crate) const GATHERED_MAX: usize = 16 * 1024;

/// How long the accepting side waits for a head, idle time between requests included. It must be longer than
/// [`IDLE_DIALLED`], so that it is the dialling side which closes and no request meets a closing connection.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How long nothing must be asked for on an HTTP/1.1 connection until it rests: what reading and answering needs is given back, and
/// made anew for the next request. Short, since what many connections that come one after the other give back only later has been
/// taken by then: memory once taken seldom goes back to the system.
pub(crate) const REST_AFTER: Duration = Duration::from_millis(20);
/// So many looks whether a connection has nothing to do come soon after each other; those after them less and less often.
pub(crate) const LOOKS_SOON: u32 = 4;
/// How long at most it takes to notice that a connection which was in use has nothing to do.
pub(crate) const LOOK_AGAIN_MAX: Duration = Duration::from_secs(1);
/// A peer of HTTP/1.1 may take nothing of an answer that is whole for so many times as long as it may ask for nothing.
pub(crate) const TAKES_LONGER: u32 = 2;
/// How long an idle connection to a peer is kept.
pub(crate) const IDLE_DIALLED: Duration = Duration::from_secs(30);
/// How long an idle connection to the program behind the door is kept: less than any common server's own limit
/// (gunicorn 2 s, Node 5 s), since a request that meets a closing connection cannot be repeated.
pub(crate) const IDLE_BACKEND: Duration = Duration::from_millis(1500);
/// Idle connections kept to one address.
pub(crate) const IDLE_MAX: usize = 128;
/// How often idle connections are looked through.
pub(crate) const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long a connection just given back may take to be ready again.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_millis(20);
/// Silence on an HTTP/2 connection after which it is pinged, and how long the answer may take.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(20);
/// See [`PING_EVERY`].
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// After closing was announced on HTTP/1.1: how long a connection must stay idle before it is closed.
pub(crate) const ANNOUNCED_IDLE: Duration = Duration::from_millis(200);
/// How long to wait for that at most, before no further request is taken.
pub(crate) const ANNOUNCED_MAX: Duration = Duration::from_secs(1);
/// How long requests in flight may take at shutdown before they are cut.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that are read at once to be passed on. Sealed in four TLS records, and with the heads of TCP and IP, they are the most that
/// the kernel takes as one packet: of 64 KiB the rest would go out by itself, and wake whoever waits for it once more. At most so many
/// of each way of a tunnel are kept, until they are taken: how much is, shows only once it has been read.
pub(crate) const PASSED_AT_ONCE_MAX: usize = 65_000;

/// How long an address rests after its first failure in a row.
pub(crate) const EJECTED_FIRST: Duration = Duration::from_millis(200);
/// How long it rests at most.
pub(crate) const EJECTED_LONGEST: Duration = Duration::from_secs(10);
/// Addresses of one upstream that are probed side by side. Each that says nothing takes a place for [`CONNECT_TIMEOUT`].
pub(crate) const PROBES_MAX: usize = 16;
/// Addresses that one name resolves to, and which are tried.
pub(crate) const RESOLVED_MAX: usize = 8;
/// Addresses of one upstream.
pub(crate) const ADDRESSES_MAX: usize = 64;

/// Failed handshakes that are reported of one source.
pub(crate) const FAILURES: Rate = Rate { burst: 20, every: Duration::from_millis(500) };
/// Sources whose failures are counted apart, in each of 16 shards. What comes from others is counted together.
pub(crate) const SOURCES_PER_SHARD_MAX: usize = 64;

/// Longest path of a Unix socket that the kernel takes, without the final NUL.
pub(crate) const SOCKET_PATH_MAX: usize = 107;

/// After how long a proxy that waits for its identity, or for who may connect, says why; a launcher's word or a first SVID takes
/// less. And how often it says so again.
pub(crate) const COMPLAIN_FIRST: Duration = Duration::from_secs(5);
pub(crate) const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// How long listeners that are to close may take before others are opened, which may be to take their places.
pub(crate) const CLOSES_WITHIN: Duration = Duration::from_secs(1);
/// How often a listener that could not be opened is tried again.
pub(crate) const REBIND_EVERY: Duration = Duration::from_secs(2);
