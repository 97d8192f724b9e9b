//! What an agent reports: facts, and the state of its processes and credentials.

use countersign_api::{v1, wire};
use countersign_identity::Code;

use crate::attest::Caller;
use crate::control::Control;
use crate::refusal::Refused;
use crate::watch::SERVER_POINT;

/// Takes a report. Facts are kept as far as there is room; the statuses replace those before.
///
/// # Errors
/// When it is over its bound.
pub(crate) fn report(
    control: &Control,
    caller: &Caller,
    mut report: v1::ReportRequest,
) -> Result<v1::ReportResponse, Refused> {
    for (what, count) in [
        ("handshakes", report.handshakes.len()),
        ("flows", report.flows.len()),
        ("counts of answers", report.served.len()),
    ] {
        if wire::FACTS_MAX < count {
            let most = wire::FACTS_MAX;
            let why = format!("{count} {what} are over the limit of {most} a report");
            return Err(Refused::new(Code::TooLarge, why));
        }
    }
    let now = control.clock.now();
    let mut handshakes = std::mem::take(&mut report.handshakes);
    // Nobody else speaks for the server.
    handshakes.retain(|fact| fact.point != SERVER_POINT);
    control.watch.observe(Some(caller.id()), handshakes, report.dropped, now);
    let flows = std::mem::take(&mut report.flows);
    control.watch.flows.observe(flows, report.flows_dropped, now);
    let served = std::mem::take(&mut report.served);
    control.watch.served(caller.id(), &served, report.served_dropped, now);
    control.roster.report(caller.id(), report, now);
    Ok(v1::ReportResponse {})
}
