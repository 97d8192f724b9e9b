//! Whatever an enforcement point says on its stream, the agent passes on no more than it may: of its own services, within the bounds,
//! and no acknowledgement of what it was not told. Each message has its length in two bytes before it.
#![no_main]

use std::sync::Arc;

use countersign_agent::attest::{Caller, Peer, SimulatedProcess};
use countersign_agent::steps::PointStream;
use countersign_api::v1::enforcement_request::Step;
use countersign_api::{Message, v1, wire};
use countersign_identity::{Revision, SimClock, Timestamp};
use libfuzzer_sys::fuzz_target;

#[path = "../support/parts.rs"]
mod parts;

/// Longer texts of a point's own name are no name.
const NAME_BYTES_MAX: usize = 64;
const TOLD: Revision = Revision { incarnation: 1, number: 7 };

fn stream() -> PointStream {
    let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_795_262_400)));
    let process = SimulatedProcess::new(Peer { pid: 1, uid: 1, gid: 1 }, []);
    let id = "spiffe://shop.example/orders".parse().expect("it is one");
    PointStream::open(clock, Arc::new(process) as Arc<dyn Caller>, id, TOLD)
}

fuzz_target!(|bytes: &[u8]| {
    let mut stream = stream();
    for part in parts::split(bytes) {
        let Ok(said) = v1::EnforcementRequest::decode(part) else { return };
        let beyond = matches!(&said.step, Some(Step::Acknowledge(ack))
            if ack.revision.is_some_and(|revision| TOLD < revision.into()));
        if stream.hear(said, |service| service == "orders").is_err() {
            break;
        }
        assert!(!beyond, "it acknowledged what was never sent");
    }
    let points = stream.acknowledgements();
    assert!(points.len() <= 1, "one stream speaks for one point");
    for point in points {
        assert!(point.revision.is_none_or(|revision| Revision::from(revision) <= TOLD));
        assert!((1..=NAME_BYTES_MAX).contains(&point.point.len()));
    }
    let report = stream.report();
    let lists = [report.handshakes.len(), report.flows.len(), report.served.len()];
    assert!(lists.iter().all(|length| *length <= wire::FACTS_MAX));
    for fact in &report.handshakes {
        assert!(fact.detail.len() <= wire::TEXT_BYTES_MAX && fact.point.len() <= NAME_BYTES_MAX);
    }
    for flow in &report.flows {
        assert_eq!(flow.service, "orders", "of others it may say nothing");
        assert!(flow.path.len() <= 2 * wire::TEXT_BYTES_MAX && 1 <= flow.count);
    }
    assert!(report.served.iter().all(|served| served.service == "orders"));
    for process in &report.processes {
        assert!(process.kind.len() <= NAME_BYTES_MAX && process.doors.len() <= 4);
    }
});
