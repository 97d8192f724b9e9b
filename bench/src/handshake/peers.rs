//! The same beside Nginx, HAProxy and Envoy, which terminate TLS and dial the same backend: all in TCP mode, with one suite and
//! one group, and nothing that is resumed. Ours also reads who the caller is, and decides whether it may come in; the others only verify.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion};

use super::{Acceptor, CHAINS, Callers, Terminating};
use crate::client::{call, one_suite};
use crate::figure::{Asked, Figure, Output, Verdict};
use crate::peers::process;
use crate::peers::proxies::Kind;

const OTHERS: [Kind; 3] = [Kind::Nginx, Kind::Haproxy, Kind::Envoy];

/// Each caller shows a chain of its own. What ours costs when one comes again and again is told beside it.
pub(crate) fn run(output: Output) -> Result<Verdict> {
    // Said before anything is measured.
    for kind in OTHERS {
        kind.program()?;
    }
    let callers = Callers::ready(CHAINS, 1, one_suite())?;
    let start = |kind: Kind| started(kind, &callers).with_context(|| kind.name());
    let mut again = start(Kind::Ours)?;
    again.connectors = callers.connectors.iter().take(1).cloned().collect();
    let mut ends = vec![start(Kind::Ours)?, again];
    for kind in OTHERS {
        ends.push(start(kind)?);
    }
    callers.take_turns(&mut ends)?;
    let names = ["countersign", "countersign with remembered chains"].into_iter();
    let names = names.chain(OTHERS.map(Kind::name));
    let costs: Vec<Cost> = ends.into_iter().map(|end| Cost::of(end.costs)).collect();
    for (name, cost) in names.zip(&costs) {
        let Cost { low, median, high } = cost;
        eprintln!(
            "  handshake_peers: {median:.1} µs CPU {name}, {low:.1} to {high:.1} in eight of ten turns"
        );
    }
    let [ours, again, others @ ..] = &costs[..] else { unreachable!("ours stands first") };
    let best = others.iter().map(|cost| cost.median).fold(f64::INFINITY, f64::min);
    eprintln!(
        "  handshake_peers: {:.3} of the best with chains that were never seen, {:.3} with remembered ones",
        ours.median / best,
        again.median / best
    );
    let figure = Figure {
        name: "handshake_peers",
        value: ours.median,
        unit: "µs CPU",
        limit: best,
        limit_is: "µs of the best of Nginx, HAProxy and Envoy; chains that were never seen, the same backend, median of turns",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}

/// One that stands, and does what all do.
fn started(kind: Kind, callers: &Callers) -> Result<Terminating> {
    let place = callers.place();
    let on_one = |program: &Path| process::pinned(place.cores.proxy, program);
    let end = Terminating::new(Acceptor::proxy(kind, on_one, &place)?, callers);
    callers.runtime.block_on(does_the_same(&end))?;
    Ok(end)
}

/// Asked once of each: another group or suite, or a ticket for next time, would be other work.
async fn does_the_same(end: &Terminating) -> Result<()> {
    let connector = end.connectors.first().context("a caller")?;
    let tls = call(connector, end.acceptor.address()).await?;
    let (_, session) = tls.get_ref();
    let suite = session.negotiated_cipher_suite().map(|suite| suite.suite());
    let group = session.negotiated_key_exchange_group().map(|group| group.name());
    let agreed = (session.protocol_version(), session.handshake_kind(), suite, group);
    let wanted = (
        Some(ProtocolVersion::TLSv1_3),
        Some(HandshakeKind::Full),
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256),
        Some(NamedGroup::X25519),
    );
    ensure!(agreed == wanted, "it agreed on {agreed:?}, and not on {wanted:?}");
    let tickets = session.tls13_tickets_received();
    ensure!(tickets == 0, "it made {tickets} tickets, which the others do not");
    Ok(())
}

/// Of a handshake, in microseconds of a processor.
struct Cost {
    /// Of the turn that a tenth of them is below.
    low: f64,
    median: f64,
    high: f64,
}

impl Cost {
    fn of(mut turns: Vec<f64>) -> Self {
        turns.sort_by(f64::total_cmp);
        let at = |tenth: usize| turns.get(turns.len() * tenth / 10).copied().unwrap_or(f64::NAN);
        Self { low: at(1), median: at(5), high: at(9) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_told_with_what_turns_differ_by() {
        let Cost { low, median, high } = Cost::of((0..40).rev().map(f64::from).collect());
        assert_eq!((low, median, high), (4.0, 20.0, 36.0));
    }
}
