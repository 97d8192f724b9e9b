//! Reviews of policies: begun by an operator with a date by which they are due, and signed by one.
//!
//! A review is a paper beside the state: it moves no revision, and nobody who enforces knows of it. What was signed is an event
//! of the log as well, which stays when the paper has made room for others.

mod report;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use countersign_api::admin::{
    ReviewState, ReviewSubject, ReviewView, SignReviewRequest, SignatureView, StartReviewRequest,
    Verdict,
};
use countersign_api::resource::{Kind, Reason};
use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, Lifetime, Name, Sha256, Timestamp};
use countersign_store::{Batch, Op, Store, StoreError};
use serde::{Deserialize, Serialize};

pub(crate) use self::report::report;
use crate::authority::internal;
use crate::control::Control;
use crate::papers::{beginning, paper, says};
use crate::refusal::Refused;
use crate::state::State;

/// What the names of all reviews begin with.
const REVIEWS: &str = "review/";
/// What the names of their signatures end with.
const SIGNED: &str = "/signed";
/// How many are kept. Of those that are signed, the oldest make room; who signed them stays in the log.
const REVIEWS_MAX: usize = 500;
/// A review as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Review {
    subject: ReviewSubject,
    window: Lifetime,
    started_at: Timestamp,
    started_by: String,
    due: Timestamp,
    /// The digest of the policies that it is about, as they were when it began.
    policies: Sha256,
}

/// A review with who has signed it.
#[derive(Clone, Debug)]
struct Kept {
    id: Name,
    review: Review,
    signed: Option<SignatureView>,
}

impl Kept {
    fn state(&self, now: Timestamp) -> ReviewState {
        match &self.signed {
            Some(_) => ReviewState::Signed,
            None if self.review.due <= now => ReviewState::Overdue,
            None => ReviewState::Open,
        }
    }

    fn view(&self, now: Timestamp) -> ReviewView {
        let Review { subject, window, started_at, started_by, due, policies: _ } =
            self.review.clone();
        let (id, signed, state) = (self.id.clone(), self.signed.clone(), self.state(now));
        ReviewView { id, subject, state, window, started_at, started_by, due, signed }
    }
}

/// When the reviews that wait are due, as they were last read: for the metrics, which wait for no store.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<Vec<Timestamp>>);

impl Waiting {
    /// How many are overdue.
    pub(crate) fn overdue(&self, now: Timestamp) -> usize {
        let due = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        due.iter().filter(|due| **due <= now).count()
    }
}

async fn all(store: &dyn Store) -> Result<Vec<Kept>, Refused> {
    let rows = beginning(store, REVIEWS).await?;
    let mut signatures = BTreeMap::new();
    let mut reviews = Vec::new();
    for row in &rows {
        let name = row.name.trim_start_matches(REVIEWS);
        match name.strip_suffix(SIGNED) {
            Some(of) => drop(signatures.insert(of, says::<SignatureView>(row)?)),
            None => reviews.push((name, says::<Review>(row)?)),
        }
    }
    let kept = |(id, review): (&str, Review)| {
        Ok(Kept { id: id.parse().map_err(internal)?, review, signed: signatures.remove(id) })
    };
    reviews.into_iter().map(kept).collect()
}

/// Every review, those that wait first.
pub(crate) async fn reviews(control: &Control) -> Result<Vec<ReviewView>, Refused> {
    let now = control.clock.now();
    let mut all = all(&*control.store).await?;
    all.sort_by_key(|kept| (kept.signed.is_some(), kept.review.due, kept.id.clone()));
    let waiting = all.iter().filter(|kept| kept.signed.is_none()).map(|kept| kept.review.due);
    let waiting = waiting.collect();
    *control.watch.reviews.0.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
    Ok(all.iter().map(|kept| kept.view(now)).collect())
}

/// A sentence for each review that waits longer than it should.
pub(crate) async fn warnings(control: &Control) -> Result<Vec<String>, Refused> {
    let overdue = |view: &ReviewView| view.state == ReviewState::Overdue;
    let sentence = |view: ReviewView| {
        let ReviewView { id, subject, due, .. } = view;
        format!(
            "review `{id}` of `{subject}` was due at {due}: look at `countersign review show {id}`, and sign it"
        )
    };
    Ok(reviews(control).await?.into_iter().filter(overdue).map(sentence).collect())
}

async fn find(store: &dyn Store, id: &Name) -> Result<Kept, Refused> {
    let found = all(store).await?.into_iter().find(|kept| kept.id == *id);
    found.ok_or_else(|| {
        Refused::new(
            Code::NotFound,
            format!("there is no review `{id}`: `countersign review show` lists them"),
        )
    })
}

/// Opens a review.
///
/// # Errors
/// When nothing of that name is declared, or too many wait.
pub(crate) async fn start(
    control: &Arc<Control>,
    request: StartReviewRequest,
    actor: String,
) -> Result<ReviewView, Refused> {
    let now = control.desk.now().await?;
    let StartReviewRequest { subject, due, window } = request;
    let state = control.feed.current();
    is_declared(&state, &subject)?;
    let kept = all(&*control.store).await?;
    let mut ops = room(kept)?;
    let review = open(&state, (subject, window, due), &actor, now);
    let id = draw(control)?;
    ops.push(Op::CreatePaper(paper(format!("{REVIEWS}{id}"), &review)?));
    let events = vec![began(&id, &review, &actor, now)];
    control.store.commit(Batch { ops, events, ..Batch::default() }).await?;
    Ok(Kept { id, review, signed: None }.view(now))
}

fn open(
    state: &State,
    (subject, window, due): (ReviewSubject, Lifetime, Lifetime),
    actor: &str,
    now: Timestamp,
) -> Review {
    let policies = digest(state, &subject);
    let (started_by, due) = (actor.to_owned(), now + due.duration());
    Review { subject, window, started_at: now, started_by, due, policies }
}

fn began(id: &Name, review: &Review, actor: &str, now: Timestamp) -> Event {
    let details = serde_json::json!({
        "review": id, "due": review.due, "window": review.window, "policies": review.policies,
    });
    Event::new(EventKind::ReviewStarted, now, actor, review.subject.to_string())
        .with_details(details)
}

fn draw(control: &Control) -> Result<Name, Refused> {
    let mut bytes = [0; 4];
    control.entropy.fill(&mut bytes).map_err(internal)?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("r{digits}").parse().map_err(internal)
}

/// What makes room for one more: the oldest of those that are signed go.
fn room(mut kept: Vec<Kept>) -> Result<Vec<Op>, Refused> {
    let over = (kept.len() + 1).saturating_sub(REVIEWS_MAX);
    kept.retain(|kept| kept.signed.is_some());
    kept.sort_by_key(|kept| kept.review.started_at);
    if kept.len() < over {
        let why = format!("{REVIEWS_MAX} reviews wait already: sign some of them first");
        return Err(Refused::new(Code::TooLarge, why));
    }
    let drop = |kept: Kept| {
        let name = format!("{REVIEWS}{}", kept.id);
        [Op::RemovePaper { name: format!("{name}{SIGNED}") }, Op::RemovePaper { name }]
    };
    Ok(kept.into_iter().take(over).flat_map(drop).collect())
}

fn is_declared(state: &State, subject: &ReviewSubject) -> Result<(), Refused> {
    let (kind, name) = match subject {
        ReviewSubject::All => return Ok(()),
        ReviewSubject::Policy(name) => (Kind::Policy, name),
        ReviewSubject::Service(name) => (Kind::Service, name),
    };
    if state.resources().any(|one| one.kind() == kind && one.name == *name) {
        return Ok(());
    }
    Err(Refused::new(
        Code::NotFound,
        format!("there is no {kind} `{name}`: `countersign export` shows what there is"),
    ))
}

/// The digest of the policies that a review is about: of those of a service it is all policies, since any may permit something on it.
fn digest(state: &State, subject: &ReviewSubject) -> Sha256 {
    let about = |name: &Name| match subject {
        ReviewSubject::All | ReviewSubject::Service(_) => true,
        ReviewSubject::Policy(only) => only == name,
    };
    let mut bytes = Vec::new();
    for one in state.resources().filter(|one| one.kind() == Kind::Policy && about(&one.name)) {
        bytes.extend_from_slice(&countersign_api::resource::canonical(&one.manifest()));
        bytes.push(b'\n');
    }
    crate::digest::sha256(&bytes)
}

/// Signs a review, once, and opens the next one of the same if that is wanted.
///
/// # Errors
/// When it is signed already, or the verdict says that something has changed and nothing has.
pub(crate) async fn sign(
    control: &Arc<Control>,
    id: Name,
    request: SignReviewRequest,
    actor: String,
) -> Result<ReviewView, Refused> {
    let now = control.desk.now().await?;
    let SignReviewRequest { verdict, name, reason, again } = request;
    let (name, reason) = (told("name", &name)?, told("reason", &reason)?);
    let kept = find(&*control.store, &id).await?;
    let state = control.feed.current();
    if kept.signed.is_some() {
        return Err(already(&id));
    }
    let changed = digest(&state, &kept.review.subject) != kept.review.policies;
    if matches!(verdict, Verdict::Narrowed | Verdict::Removed) && !changed {
        let why = format!(
            "nothing that review `{id}` is about has changed since it began: apply the change first, or sign `keep`"
        );
        return Err(Refused::new(Code::NotReady, why));
    }
    let (mut ops, mut events) = (Vec::new(), Vec::new());
    let mut next = None;
    if let Some(again) = again {
        let Review { subject, window, .. } = kept.review.clone();
        let review = open(&state, (subject, window, again), &actor, now);
        let following = draw(control)?;
        ops.extend(room(all(&*control.store).await?)?);
        ops.push(Op::CreatePaper(paper(format!("{REVIEWS}{following}"), &review)?));
        events.push(began(&following, &review, &actor, now));
        next = Some(following);
    }
    let signed = SignatureView { verdict, name, by: actor.clone(), reason, at: now, next };
    let details = serde_json::json!({
        "review": id, "verdict": verdict, "name": signed.name, "reason": signed.reason,
    });
    let event = Event::new(EventKind::ReviewSigned, now, actor, kept.review.subject.to_string());
    events.push(event.with_details(details));
    ops.push(Op::CreatePaper(paper(format!("{REVIEWS}{id}{SIGNED}"), &signed)?));
    match control.store.commit(Batch { ops, events, ..Batch::default() }).await {
        // Of two who sign at once, at any two servers, the store takes one, and opens what it opens.
        Err(StoreError::AlreadyExists { .. }) => return Err(already(&id)),
        committed => committed?,
    };
    Ok(Kept { signed: Some(signed), ..kept }.view(now))
}

fn already(id: &Name) -> Refused {
    let why = format!(
        "review `{id}` is signed already, and stays so: `countersign review start` begins another"
    );
    Refused::new(Code::AlreadyExists, why)
}

/// A text that people have written, in bounds and on one line.
fn told(what: &str, text: &str) -> Result<String, Refused> {
    let reason: Result<Reason, _> = text.trim().parse();
    let reason = reason.map_err(|bad| Refused::new(Code::NotUnderstood, format!("`{what}` {bad}")));
    Ok(reason?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(number: usize, signed: bool) -> Kept {
        let at = Timestamp::from_secs(i64::try_from(number).unwrap());
        let signature = SignatureView {
            verdict: Verdict::Keep,
            name: "a".to_owned(),
            by: "operator:uid:0".to_owned(),
            reason: "b".to_owned(),
            at,
            next: None,
        };
        Kept {
            id: format!("r{number}").parse().unwrap(),
            review: Review {
                subject: ReviewSubject::All,
                window: "30d".parse().unwrap(),
                started_at: at,
                started_by: "operator:uid:0".to_owned(),
                due: at,
                policies: Sha256::from_bytes([0; 32]),
            },
            signed: signed.then_some(signature),
        }
    }

    #[test]
    fn only_signed_reviews_make_room_the_oldest_first() {
        let few = (0..REVIEWS_MAX - 1).map(|number| kept(number, true)).collect();
        assert!(room(few).unwrap().is_empty());
        let full = (0..REVIEWS_MAX).map(|number| kept(number, number == 7)).collect();
        let dropped = room(full).unwrap();
        let name = "review/r7".to_owned();
        let signed = "review/r7/signed".to_owned();
        assert_eq!(dropped, [Op::RemovePaper { name: signed }, Op::RemovePaper { name }]);
        let waiting = (0..REVIEWS_MAX).map(|number| kept(number, false)).collect();
        assert_eq!(room(waiting).unwrap_err().code, Code::TooLarge);
    }

    #[test]
    fn review_is_overdue_from_the_moment_on_that_it_was_due() {
        let due = Timestamp::from_secs(5);
        let before = Timestamp::from_micros(due.micros() - 1);
        assert_eq!(kept(5, false).state(before), ReviewState::Open);
        assert_eq!(kept(5, false).state(due), ReviewState::Overdue);
        assert_eq!(kept(5, true).state(due), ReviewState::Signed);
    }
}
