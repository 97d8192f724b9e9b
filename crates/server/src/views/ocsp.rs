//! OCSP answers, from memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use countersign_identity::{KeyId, Lifetime, Revocations, Serial, Timestamp};
use countersign_pki::{OcspAnswer, OcspFault, OcspIssuer, OcspQuestion, OcspRequest, OcspStatus};

use crate::authority::Signing;
use crate::control::Control;
use crate::views::asked::{Asker, Limited, Paid};
use crate::views::list::BACKDATE;
use crate::views::responder::Responder;
use crate::views::sets::{self, Set};

/// Signed answers that are kept of one authority.
const KEPT_MAX: usize = 16_384;
/// Certificates that were issued since the sets were read, and were asked about.
const LEARNED_MAX: usize = 16_384;
/// How much older than the sets a serial may be and still not be in them: it is drawn before it is recorded, and by
/// other servers' clocks.
const OVERLAP: Duration = Duration::from_secs(120);

/// What is answered about one authority's certificates.
pub(crate) struct Answers {
    issuer: KeyId,
    names: OcspIssuer,
    set: Set,
    rules: Arc<Revocations>,
    responder: Option<Arc<Responder>>,
    interval: Lifetime,
    read: Timestamp,
    learned: Mutex<HashMap<Serial, OcspStatus>>,
    kept: Mutex<HashMap<OcspQuestion, Answered>>,
}

/// A response, and how long it may be kept.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) der: Bytes,
    pub(crate) outcome: Outcome,
    /// Since when it is true and until when it is good; nothing for what may not be kept.
    pub(crate) good: Option<(Timestamp, Timestamp)>,
}

/// What came of a request, for the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Good,
    Revoked,
    Unknown,
    Several,
    Malformed,
    Unauthorized,
    Later,
    Limited,
    Internal,
}

/// What is certain at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// What there is.
    All,
    /// What was taken out of service: it stays so, whatever else is not known.
    Revoked,
}

/// Why there is no answer.
enum Fault {
    Later,
    Limited,
    Internal(String),
}

impl Outcome {
    fn of(status: OcspStatus) -> Self {
        match status {
            OcspStatus::Good => Self::Good,
            OcspStatus::Revoked { .. } => Self::Revoked,
            OcspStatus::Unknown => Self::Unknown,
        }
    }

    /// The stable word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Revoked => "revoked",
            Self::Unknown => "unknown",
            Self::Several => "several",
            Self::Malformed => "malformed",
            Self::Unauthorized => "unauthorized",
            Self::Later => "later",
            Self::Limited => "limited",
            Self::Internal => "internal",
        }
    }
}

impl From<Limited> for Fault {
    fn from(_: Limited) -> Self {
        Self::Limited
    }
}

impl Answers {
    pub(crate) fn new(
        signing: &Signing,
        set: Set,
        rules: Arc<Revocations>,
        responder: Option<Arc<Responder>>,
        interval: Lifetime,
        read: Timestamp,
    ) -> Self {
        Self {
            issuer: signing.issuer.key_id(),
            names: OcspIssuer::of(signing.issuer.certificate()),
            set,
            rules,
            responder,
            interval,
            read,
            learned: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// Answers a request that is about at least one certificate of this authority, about each certificate in it (RFC 6960, 2.2): where
    /// that cannot be, about none.
    async fn answer(
        &self,
        (control, asker): (&Control, &Asker),
        request: &OcspRequest,
        (now, known): (Timestamp, Known),
    ) -> Result<Answered, Fault> {
        let single = match (request.questions.as_slice(), &request.nonce) {
            ([question], None) => Some(question),
            _ => None,
        };
        if let Some(kept) = single.and_then(|question| self.kept(question, now)) {
            let stands = known == Known::All || kept.outcome == Outcome::Revoked;
            return if stands { Ok(kept) } else { Err(Fault::Later) };
        }
        let responder = self.responder.as_ref().ok_or(Fault::Later)?;
        let mut paid = asker.pays(now)?;
        let mut statuses = Vec::with_capacity(request.questions.len());
        for question in &request.questions {
            let status = self.status(control, &mut paid, question, now).await?;
            if status != OcspStatus::Unknown {
                asker.knew(now);
            }
            if known == Known::Revoked && !matches!(status, OcspStatus::Revoked { .. }) {
                return Err(Fault::Later);
            }
            statuses.push((question, status));
        }
        let outcome = match statuses.as_slice() {
            [(_, status)] => Outcome::of(*status),
            _ => Outcome::Several,
        };
        let next_update = (now + self.interval.duration()).min(responder.answers_until());
        if next_update <= now {
            return Err(Fault::Later);
        }
        let (this_update, next_update) = ((now - BACKDATE).floor_secs(), next_update.floor_secs());
        let nonce = request.nonce.as_deref();
        let answer = OcspAnswer { statuses, produced: now, this_update, next_update, nonce };
        let der = answer.sign(&responder.certificate, &responder.signer).await;
        let der = der.map_err(|fault| Fault::Internal(fault.to_string()))?.into();
        let good = nonce.is_none().then_some((this_update, next_update));
        let answered = Answered { der, outcome, good };
        if let Some(question) = single {
            self.keep(question, &answered);
        }
        Ok(answered)
    }

    /// An answer from before, in the first half of its time.
    fn kept(&self, question: &OcspQuestion, now: Timestamp) -> Option<Answered> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = kept.get(question)?;
        let (_, next_update) = answered.good?;
        (now + self.interval.duration() / 2 <= next_update).then(|| answered.clone())
    }

    fn keep(&self, question: &OcspQuestion, answered: &Answered) {
        // What is not known may be issued the next moment, and anybody can ask about as much of it as he likes.
        if answered.outcome == Outcome::Unknown {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if KEPT_MAX <= kept.len() {
            kept.clear();
        }
        kept.insert(question.clone(), answered.clone());
    }

    async fn status(
        &self,
        control: &Control,
        paid: &mut Paid<'_>,
        question: &OcspQuestion,
        now: Timestamp,
    ) -> Result<OcspStatus, Fault> {
        // A certificate of another authority: this responder's word would count for nothing.
        let Some(serial) = question.serial().filter(|_| question.is_about(&self.names)) else {
            return Ok(OcspStatus::Unknown);
        };
        let status = self.set.status(serial);
        // Serials tell their time, so only for what is newer than the sets there is anything to find in the store.
        let newer =
            self.read - OVERLAP <= serial.drawn_for() && serial.drawn_for() <= now + OVERLAP;
        if status != OcspStatus::Unknown || !newer {
            return Ok(status);
        }
        if let Some(status) = self.learned().get(&serial) {
            return Ok(*status);
        }
        let issued = paid.look_up(now, control.store.issued(serial)).await?;
        let issued = issued.map_err(|_away| Fault::Later)?;
        let Some(row) = issued.map(|issued| issued.row) else { return Ok(OcspStatus::Unknown) };
        if row.issuer != self.issuer {
            return Ok(OcspStatus::Unknown);
        }
        let status = sets::status(&row, &self.rules);
        let mut learned = self.learned();
        if learned.len() < LEARNED_MAX {
            learned.insert(serial, status);
        }
        Ok(status)
    }

    fn learned(&self) -> std::sync::MutexGuard<'_, HashMap<Serial, OcspStatus>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers the bytes of a request of somebody, whatever they are.
pub(crate) async fn answer(control: &Control, asker: &Asker, request: &[u8]) -> Answered {
    let refused =
        |fault: OcspFault, outcome| Answered { der: fault.to_der().into(), outcome, good: None };
    let Ok(request) = OcspRequest::parse(request) else {
        return refused(OcspFault::MalformedRequest, Outcome::Malformed);
    };
    let now = control.clock.now();
    // Before the state itself, which only gets newer.
    let fresh = control.feed.is_fresh(now);
    let state = control.feed.current();
    // Rules that were lost with the store's tail come back from agents until then.
    let whole = fresh && state.life().is_none_or(|life| life.holds(now).is_none());
    let shown = control.views.at(state.revision).await;
    let is_about = |answers: &Answers| {
        request.questions.iter().any(|question| question.is_about(&answers.names))
    };
    let ours = shown.all().find_map(|view| {
        let answers = view.answers.as_ref().filter(|answers| is_about(answers))?;
        Some((view, answers))
    });
    let Some((view, answers)) = ours else {
        return refused(OcspFault::Unauthorized, Outcome::Unauthorized);
    };
    // What was taken out of service since then would be missing.
    let is_behind =
        shown.revision() < state.revision && !Arc::ptr_eq(&answers.rules, &state.revocations());
    if is_behind || view.lists.whole.next_update <= now {
        return refused(OcspFault::TryLater, Outcome::Later);
    }
    let known = if whole { Known::All } else { Known::Revoked };
    match answers.answer((control, asker), &request, (now, known)).await {
        Ok(answered) => answered,
        Err(Fault::Later) => refused(OcspFault::TryLater, Outcome::Later),
        Err(Fault::Limited) => refused(OcspFault::TryLater, Outcome::Limited),
        Err(Fault::Internal(why)) => {
            tracing::error!(why, "an OCSP answer could not be signed");
            refused(OcspFault::InternalError, Outcome::Internal)
        }
    }
}
