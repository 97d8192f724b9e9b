//! Spans: what a program did for whom and how long it took, told to a collector by OTLP when it is asked for.
//!
//! A span never waits and never fails what it observes: what does not fit is dropped and counted. While tracing is off, a span is nothing.
//! Where a span belongs travels as W3C Trace Context has it; nobody is believed anything because of it.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use countersign_identity::{Clock, Entropy, Serial, Timestamp};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::otlp::{self, Collector};
use crate::settings::{Field, Resolved};

/// Where spans go.
pub const OTLP: Field =
    Field::one("otlp", "URL", "Send traces there by OTLP, `http://HOST:PORT` of a collector");
/// How many traces are told of those that begin here.
pub const TRACE_SHARE: Field = Field::one(
    "trace-share",
    "SHARE",
    "The share of the traces that begin here which are told, from 0 to 1; of others, whoever began them decides",
)
.or("1");

/// Spans that wait to be sent; what comes on top is dropped.
const WAITING_MAX: usize = 4096;
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
/// Places in other traces that one span points to.
const LINKS_MAX: usize = 4;
/// Attributes of one span, and what is told of one text: the longest SPIFFE ID.
const ATTRIBUTES_MAX: usize = 16;
const TEXT_CHARS_MAX: usize = 2048;

/// A place in a trace: whoever is called from there continues it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    trace: [u8; 16], // INVARIANT: not all 0
    span: [u8; 8],   // INVARIANT: not all 0
    sampled: bool,
}

impl Context {
    /// Where the issue of a certificate is told. It follows from the serial number, which has 16 bytes as the number of a trace
    /// has, so whoever is shown a certificate can point there; whether it was told is not known to them.
    pub fn of_issue(serial: &Serial) -> Self {
        let trace = *serial.as_bytes();
        let mut span = [0; 8];
        // The half that was drawn, so that it is one of its own.
        span.copy_from_slice(&trace[8..]);
        // Chance could draw nothing but zeros, which names no span.
        span[7] |= u8::from(span == [0; 8]);
        Self { trace, span, sampled: true }
    }
}

/// A text that is no place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a `traceparent` as W3C Trace Context has it")]
pub struct BadContext;

impl FromStr for Context {
    type Err = BadContext;

    fn from_str(text: &str) -> Result<Self, BadContext> {
        let bytes = text.as_bytes();
        // A later version may say more behind a hyphen; this one says nothing more.
        let is_long = 55 < bytes.len();
        let fits = bytes.len() == 55 || (is_long && bytes[55] == b'-' && !text.starts_with("00"));
        if !fits || 256 < bytes.len() || [2, 35, 52].iter().any(|place| bytes[*place] != b'-') {
            return Err(BadContext);
        }
        let [version] = hex(&bytes[..2]).ok_or(BadContext)?;
        let (trace, span) = (hex(&bytes[3..35]), hex(&bytes[36..52]));
        let (trace, span) = trace.zip(span).ok_or(BadContext)?;
        let [flags] = hex(&bytes[53..55]).ok_or(BadContext)?;
        if version == 0xff || trace == [0; 16] || span == [0; 8] {
            return Err(BadContext);
        }
        Ok(Self { trace, span, sampled: flags & 1 == 1 })
    }
}

/// Lower-case hexadecimal digits, and no others.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{}-{}-{flags:02x}", Hex(&self.trace), Hex(&self.span))
    }
}

/// A share from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(f64); // INVARIANT: from 0 to 1

/// A text that is no share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no share: write a number from 0 to 1")]
pub struct BadShare(String);

impl FromStr for Share {
    type Err = BadShare;

    fn from_str(text: &str) -> Result<Self, BadShare> {
        let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
        share.map(Self).ok_or_else(|| BadShare(text.chars().take(80).collect()))
    }
}

/// Where spans go, and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracing {
    /// The collector.
    pub collector: Collector,
    /// Of the traces that begin here.
    pub share: Share,
}

impl Tracing {
    /// Reads the settings; nothing when no collector is named.
    pub fn resolve(resolved: &mut Resolved) -> Option<Self> {
        let collector = resolved.optional("otlp");
        let share = resolved.required("trace-share");
        Some(Self { collector: collector?, share: share? })
    }
}

/// Whose spans they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The program, such as `countersign-proxy`.
    pub name: &'static str,
    /// Which of them.
    pub instance: String,
}

/// What a span is to those beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something within the program.
    Internal,
    /// It answers somebody.
    Server,
    /// It asks somebody.
    Client,
}

/// Begins spans. Cheap to clone; the default begins none.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    queue: mpsc::Sender<Finished>,
    dropped: Arc<AtomicU64>,
    share: Share,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

/// Something that is being done. It ends when it is dropped.
#[derive(Default)]
pub struct Span(Option<Box<Open>>);

struct Open {
    inner: Arc<Inner>,
    span: Finished,
}

/// Where the spans within another one begin. The default begins none.
#[derive(Clone, Default)]
pub struct Scope(Option<(Arc<Inner>, Context)>);

/// A span as it is told.
#[derive(Clone, Debug)]
struct Finished {
    context: Context,
    parent: Option<[u8; 8]>,
    name: Cow<'static, str>,
    kind: Kind,
    began: Timestamp,
    ended: Timestamp,
    attributes: Vec<Value>, // INVARIANT: at most ATTRIBUTES_MAX
    links: Vec<Context>,    // INVARIANT: at most LINKS_MAX
    failed: Option<Cow<'static, str>>,
}

impl Tracer {
    /// Begins spans that go to this collector, by a task that somebody has to run.
    pub fn new(
        tracing: &Tracing,
        service: Service,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> (Self, Exporter) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let collector = tracing.collector.clone();
        let exporter = Exporter { waiting, collector, service, dropped: Arc::clone(&dropped) };
        let inner = Inner { queue, dropped, share: tracing.share, clock, entropy };
        (Self(Some(Arc::new(inner))), exporter)
    }

    /// Begins a span: of the trace of `parent`, if there is one and it is to be told; else of a trace of its own.
    pub fn begin(
        &self,
        name: impl FnOnce() -> Cow<'static, str>,
        kind: Kind,
        parent: Option<Context>,
    ) -> Span {
        let Some(inner) = &self.0 else { return Span(None) };
        if parent.is_some_and(|parent| !parent.sampled) {
            return Span(None);
        }
        let mut bytes = [0; 24];
        // A span that cannot be named is not told.
        if inner.entropy.fill(&mut bytes).is_err() {
            return Span(None);
        }
        let mut context = Context { trace: [1; 16], span: [1; 8], sampled: true };
        context.span.copy_from_slice(&bytes[16..]);
        match parent {
            Some(parent) => context.trace = parent.trace,
            None => context.trace.copy_from_slice(&bytes[..16]),
        }
        let drawn = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let left_out = parent.is_none() && inner.share.0 <= f64::from(drawn) / 4_294_967_296.0;
        if left_out || context.trace == [0; 16] || context.span == [0; 8] {
            return Span(None);
        }
        Span::at(inner, context, parent, (name(), kind))
    }

    /// How many spans were told to nobody.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.dropped.load(Ordering::Relaxed))
    }
}

impl Span {
    fn at(
        inner: &Arc<Inner>,
        context: Context,
        parent: Option<Context>,
        (name, kind): (Cow<'static, str>, Kind),
    ) -> Self {
        let began = inner.clock.now();
        let span = Finished {
            context,
            parent: parent.map(|parent| parent.span),
            name,
            kind,
            began,
            ended: began,
            attributes: Vec::new(),
            links: Vec::new(),
            failed: None,
        };
        Self(Some(Box::new(Open { inner: Arc::clone(inner), span })))
    }

    /// Points to a place in another trace, which has to do with it.
    pub fn link(&mut self, to: Context) {
        if let Some(open) = &mut self.0
            && open.span.links.len() < LINKS_MAX
        {
            open.span.links.push(to);
        }
    }

    /// Says by which certificate it was done, and points to its issue.
    pub fn certificate(&mut self, serial: &Serial) {
        self.text("countersign.certificate", serial);
        self.link(Context::of_issue(serial));
    }

    /// Where it is, for whoever is called from there.
    pub fn context(&self) -> Option<Context> {
        self.0.as_ref().map(|open| open.span.context)
    }

    /// Says something of it.
    pub fn text(&mut self, key: &str, value: impl fmt::Display) {
        self.attribute(|| {
            let value = value.to_string();
            otlp::text(key, &value.chars().take(TEXT_CHARS_MAX).collect::<String>())
        });
    }

    /// Says a number of it.
    pub fn number(&mut self, key: &str, value: i64) {
        self.attribute(|| otlp::number(key, value));
    }

    fn attribute(&mut self, attribute: impl FnOnce() -> Value) {
        if let Some(open) = &mut self.0
            && open.span.attributes.len() < ATTRIBUTES_MAX
        {
            open.span.attributes.push(attribute());
        }
    }

    /// It failed.
    pub fn fail(&mut self, why: impl Into<Cow<'static, str>>) {
        if let Some(open) = &mut self.0 {
            open.span.failed = Some(why.into());
        }
    }

    /// Where spans within it begin.
    pub fn scope(&self) -> Scope {
        Scope(self.0.as_ref().map(|open| (Arc::clone(&open.inner), open.span.context)))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(open) = self.0.take() else { return };
        let Open { inner, mut span } = *open;
        span.ended = inner.clock.now();
        if inner.queue.try_send(span).is_err() {
            inner.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Scope {
    /// Begins a span within.
    pub fn begin(&self, name: &'static str) -> Span {
        match &self.0 {
            Some((inner, context)) => {
                let tracer = Tracer(Some(Arc::clone(inner)));
                tracer.begin(|| Cow::Borrowed(name), Kind::Internal, Some(*context))
            }
            None => Span(None),
        }
    }

    /// Tells that a certificate was issued here, at the place that follows from its serial number.
    pub fn issued(&self, serial: &Serial) -> Span {
        let Some((inner, context)) = &self.0 else { return Span(None) };
        let named = (Cow::Borrowed("issue SVID"), Kind::Internal);
        let mut span = Span::at(inner, Context::of_issue(serial), None, named);
        span.text("countersign.certificate", serial);
        span.link(*context);
        span
    }
}

/// Sends spans until stopped.
pub struct Exporter {
    waiting: mpsc::Receiver<Finished>,
    collector: Collector,
    service: Service,
    dropped: Arc<AtomicU64>,
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
fn body(service: &Service, spans: &[Finished]) -> Value {
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

fn told(span: &Finished) -> Value {
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

#[cfg(test)]
mod tests {
    use countersign_identity::{SeededEntropy, SimClock};

    use super::*;

    fn tracer(share: &str) -> (Tracer, Exporter) {
        let collector = "http://127.0.0.1:1".parse().unwrap();
        let tracing = Tracing { collector, share: share.parse().unwrap() };
        let service = Service { name: "countersign-test", instance: "a".to_owned() };
        let clock = Arc::new(SimClock::new(Timestamp::from_secs(1000)));
        Tracer::new(&tracing, service, clock, Arc::new(SeededEntropy::new(7)))
    }

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_place_is_read_as_the_standard_has_it_and_nothing_else_is() {
        let read = |text: &str| text.parse::<Context>().map(|place| place.to_string());
        assert_eq!(read(PARENT).unwrap(), PARENT);
        assert_eq!(read(&format!("cc{}-more", &PARENT[2..])).unwrap(), PARENT);
        let changed = |place: usize, with: &str| {
            let mut text = PARENT.to_owned();
            text.replace_range(place..place + with.len(), with);
            text
        };
        for bad in [
            String::new(),
            PARENT[..54].to_owned(),
            format!("{PARENT}-more"),
            format!("{PARENT} "),
            format!("cc{}-{}", &PARENT[2..], "x".repeat(4096)),
            changed(0, "ff"),
            changed(2, "_"),
            changed(3, &"0".repeat(32)),
            changed(36, &"0".repeat(16)),
            changed(3, "F"),
            changed(53, "g"),
            changed(3, "é"),
        ] {
            assert_eq!(read(&bad), Err(BadContext), "{bad}");
        }
    }

    #[test]
    fn a_span_continues_its_parents_trace_under_a_name_of_its_own() {
        let (tracer, mut exporter) = tracer("0");
        let parent: Context = PARENT.parse().unwrap();
        let mut span = tracer.begin(|| "outer".into(), Kind::Server, Some(parent));
        span.text("peer", "spiffe://a/b");
        span.fail("away");
        let inner = span.scope().begin("inner");
        let (outer_at, inner_at) = (span.context().unwrap(), inner.context().unwrap());
        assert_eq!((outer_at.trace, inner_at.trace), (parent.trace, parent.trace));
        assert!(outer_at.span != parent.span && inner_at.span != outer_at.span);
        drop(inner);
        drop(span);
        let (inner, outer) =
            (exporter.waiting.try_recv().unwrap(), exporter.waiting.try_recv().unwrap());
        assert_eq!((inner.parent, outer.parent), (Some(outer_at.span), Some(parent.span)));
        let body = body(&exporter.service, &[outer]);
        let told = &body["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!(told["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(told["parentSpanId"], "00f067aa0ba902b7");
        assert_eq!((&told["kind"], &told["status"]["code"]), (&json!(2), &json!(2)));
        assert_eq!(told["startTimeUnixNano"], "1000000000000");
    }

    #[test]
    fn who_is_shown_a_certificate_can_point_to_where_its_issue_is_told() {
        let (tracer, mut exporter) = tracer("1");
        let serial: Serial = "4bf92f3577b34da6a3ce929d0e0e4736".parse().unwrap();
        let signing = tracer.begin(|| "Sign".into(), Kind::Server, None);
        drop(signing.scope().issued(&serial));
        let mut asked = tracer.begin(|| "GET orders".into(), Kind::Client, None);
        asked.certificate(&serial);
        drop(asked);
        let told: Vec<Value> =
            (0..2).map(|_| told(&exporter.waiting.try_recv().unwrap())).collect();
        let (issued, asked) = (&told[0], &told[1]);
        assert_eq!(issued["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
        for member in ["traceId", "spanId"] {
            assert_eq!(asked["links"][0][member], issued[member]);
        }
        assert_eq!(asked["attributes"], issued["attributes"]);
        let signing = signing.context().unwrap();
        assert_eq!(issued["links"][0]["spanId"], Hex(&signing.span).to_string());
        assert_ne!(asked["traceId"], issued["traceId"]);
        assert!(Scope::default().issued(&serial).context().is_none());
        let undrawn: Serial = format!("{:0<32}", "4b").parse().unwrap();
        let place = Context::of_issue(&undrawn);
        assert_eq!(place.to_string().parse(), Ok(place), "it is a place, whatever was drawn");
    }

    #[test]
    fn what_nobody_asked_for_is_no_span() {
        let (tracer, mut exporter) = tracer("0");
        assert!(tracer.begin(|| "a".into(), Kind::Server, None).context().is_none());
        let unsampled = PARENT.replace("-01", "-00").parse().unwrap();
        assert!(tracer.begin(|| "a".into(), Kind::Server, Some(unsampled)).context().is_none());
        assert!(
            Tracer::default().begin(|| panic!("not named"), Kind::Server, None).context().is_none()
        );
        assert!(exporter.waiting.try_recv().is_err());
    }

    #[test]
    fn a_share_of_the_traces_that_begin_here_is_told() {
        let (tracer, _exporter) = tracer("0.25");
        let begun = (0..4000)
            .filter(|_| tracer.begin(|| "a".into(), Kind::Server, None).context().is_some());
        let count = begun.count();
        assert!((800..1200).contains(&count), "{count} of 4000");
        for bad in ["-0.1", "1.1", "NaN", "x", ""] {
            assert!(bad.parse::<Share>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_that_nobody_takes_are_dropped_and_counted() {
        let (tracer, _exporter) = tracer("1");
        for _ in 0..WAITING_MAX + 10 {
            drop(tracer.begin(|| "a".into(), Kind::Internal, None));
        }
        assert_eq!(tracer.dropped(), 10);
    }
}
