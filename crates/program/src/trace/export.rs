//! The way of spans to the collector: gathered, put into its words, offered again, and dropped where that is of no use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use countersign_identity::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::context::{Context, Hex};
use super::{Finished, Kind, Service, TEXT_CHARS_MAX, WAITING_MAX};
use crate::otlp::{self, Collector};

/// Spans in one message.
const BATCH_MAX: usize = 512;
/// How long spans are gathered.
const GATHER: Duration = Duration::from_millis(500);
/// How long a collector may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a message is offered, and the wait before the second time; each wait is twice as long as the one before.
const TRIES: u32 = 4;
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// What is left when the program ends may take so long.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends spans until stopped.
pub struct Exporter {
    pub(super) waiting: mpsc::Receiver<Finished>,
    pub(super) collector: Collector,
    pub(super) service: Service,
    pub(super) dropped: Arc<AtomicU64>,
}

impl Exporter {
    /// Gathers spans and sends them, until stopped; what waits then is offered once more.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut spans = Vec::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                count = self.waiting.recv_many(&mut spans, 1) => if count == 0 { return },
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(GATHER) => {}
            }
            while spans.len() < BATCH_MAX
                && let Ok(span) = self.waiting.try_recv()
            {
                spans.push(span);
            }
            self.deliver(&spans, &stop).await;
            spans.clear();
        }
        while spans.len() < WAITING_MAX
            && let Ok(span) = self.waiting.try_recv()
        {
            spans.push(span);
        }
        if !spans.is_empty() {
            let offered = tokio::time::timeout(FLUSH_TIMEOUT, self.offer(&spans)).await;
            self.settle(&spans, matches!(offered, Ok(Ok(()))));
        }
    }

    async fn deliver(&self, spans: &[Finished], stop: &CancellationToken) {
        for attempt in 0..TRIES {
            match self.offer(spans).await {
                Ok(()) => return,
                Err(why) => {
                    tracing::debug!(%why, collector = %self.collector, "spans were not taken");
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(TRY_AGAIN * 2_u32.pow(attempt)) => {}
            }
        }
        self.settle(spans, false);
    }

    fn settle(&self, spans: &[Finished], taken: bool) {
        if !taken {
            self.dropped.fetch_add(spans.len() as u64, Ordering::Relaxed);
        }
    }

    async fn offer(&self, spans: &[Finished]) -> std::io::Result<()> {
        let body = body(&self.service, spans).to_string();
        let exchange = async {
            let stream = TcpStream::connect(self.collector.authority()).await?;
            let at = (self.collector.authority(), &*self.collector.path("traces"));
            otlp::post(stream, at, body.as_bytes()).await
        };
        let status = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await;
        match status.unwrap_or_else(|_late| Err(std::io::ErrorKind::TimedOut.into()))? {
            200..=299 => Ok(()),
            status => Err(std::io::Error::other(format!("the collector answers {status}"))),
        }
    }
}

/// The message, `ExportTraceServiceRequest` of the protocol.
pub(super) fn body(service: &Service, spans: &[Finished]) -> Value {
    let resource = [
        otlp::text("service.name", service.name),
        otlp::text("service.instance.id", &service.instance),
        otlp::text("service.version", env!("CARGO_PKG_VERSION")),
    ];
    let spans: Vec<Value> = spans.iter().map(told).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{ "scope": { "name": "countersign" }, "spans": spans }],
    }] })
}

pub(super) fn told(span: &Finished) -> Value {
    let kind = match span.kind {
        Kind::Internal => 1,
        Kind::Server => 2,
        Kind::Client => 3,
    };
    let nanos = |moment: Timestamp| (i128::from(moment.micros()) * 1000).to_string();
    let mut told = json!({
        "traceId": Hex(&span.context.trace).to_string(),
        "spanId": Hex(&span.context.span).to_string(),
        "name": span.name,
        "kind": kind,
        "startTimeUnixNano": nanos(span.began),
        "endTimeUnixNano": nanos(span.ended.max(span.began)),
        "attributes": span.attributes,
        "flags": 1,
    });
    if !span.links.is_empty() {
        let link = |to: &Context| json!({ "traceId": Hex(&to.trace).to_string(), "spanId": Hex(&to.span).to_string() });
        told["links"] = span.links.iter().map(link).collect();
    }
    if let Some(parent) = &span.parent {
        told["parentSpanId"] = Hex(parent).to_string().into();
    }
    if let Some(why) = &span.failed {
        let why: String = why.chars().take(TEXT_CHARS_MAX).collect();
        told["status"] = json!({ "code": 2, "message": why });
    }
    told
}
