//! Spans: what a program did for whom and how long it took, told to a collector by OTLP when it is asked for.
//!
//! A span never waits and never fails what it observes: what does not fit is dropped and counted. While tracing is off, a span is nothing.
//! Where a span belongs travels as W3C Trace Context has it; nobody is believed anything because of it.

mod context;
mod export;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use countersign_identity::{Clock, Entropy, Serial, Timestamp};
use serde_json::Value;
use tokio::sync::mpsc;

pub use self::context::{BadContext, Context};
pub use self::export::Exporter;
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

/// Places in other traces that one span points to.
const LINKS_MAX: usize = 4;
/// Attributes of one span, and what is told of one text: the longest SPIFFE ID.
const ATTRIBUTES_MAX: usize = 16;
const TEXT_CHARS_MAX: usize = 2048;

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

#[cfg(test)]
mod tests;
