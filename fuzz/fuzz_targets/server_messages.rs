//! No bytes of an agent or of another server make the reader of their messages panic, and what is passed on is within its bounds. The
//! first byte says which message it is.
#![no_main]

use countersign_api::admin::{CredentialView, Handshake, ProcessView};
use countersign_api::{Message, v1, wire};
use libfuzzer_sys::fuzz_target;

fn report(report: v1::ReportRequest) {
    for fact in report.handshakes {
        if let Ok(seen) = Handshake::from_wire(0, fact) {
            assert!(seen.detail.len() <= wire::TEXT_BYTES_MAX && 1 <= seen.count);
            assert!(!seen.detail.chars().any(char::is_control));
        }
    }
    for process in report.processes {
        assert!(ProcessView::from(process).name.len() <= wire::TEXT_BYTES_MAX);
    }
    for credential in report.credentials {
        let _read = CredentialView::try_from(credential).is_ok();
    }
    for flow in report.flows {
        let flow = wire::bounded_flow(flow);
        assert!(flow.path.len() <= 2 * wire::TEXT_BYTES_MAX && 1 <= flow.count);
    }
}

fn acknowledge(ack: v1::SyncAck) {
    let _revision = wire::revision(ack.revision).is_ok();
    for point in ack.points {
        let _id = wire::spiffe_id(&point.spiffe_id).is_ok();
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 4 {
        0 => drop(v1::Refusal::decode(bytes).ok().map(wire::Refused::try_from)),
        1 => drop(wire::replica_report(bytes)),
        2 => drop(v1::SyncAck::decode(bytes).ok().map(acknowledge)),
        _ => drop(v1::ReportRequest::decode(bytes).ok().map(report)),
    }
});
