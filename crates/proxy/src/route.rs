//! Where a door or a local listener leads; may change while it is open.

use std::ops::Deref;
use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::dial::Dialer;
use crate::plane::Plane;
use crate::upstream::{Carries, Upstream};

/// What is behind a door or a local listener.
pub(crate) enum Route {
    Requests(Ways),
    Bytes(Tended),
}

/// Where requests go.
pub(crate) struct Ways {
    pub(crate) http: Tended,
    /// gRPC needs HTTP/2 to the last hop; a program in clear is spoken to in it only when a request asks.
    pub(crate) grpc: Option<Tended>,
}

/// An upstream with the task that tends it, which ends with the last user.
#[derive(Clone)]
pub(crate) struct Tended {
    upstream: Arc<Upstream>,
    _stop: Arc<DropGuard>,
}

impl Tended {
    pub(crate) fn start(plane: &Arc<Plane>, ways: Vec<Dialer>, carries: Carries) -> Self {
        let upstream = Upstream::new(plane, ways, carries);
        let stop = CancellationToken::new();
        let tending = (upstream.clone(), stop.clone());
        plane.tasks.start(async move { tending.0.tend(&tending.1).await });
        Self { upstream, _stop: Arc::new(stop.drop_guard()) }
    }
}

impl Deref for Tended {
    type Target = Upstream;

    fn deref(&self) -> &Upstream {
        &self.upstream
    }
}
