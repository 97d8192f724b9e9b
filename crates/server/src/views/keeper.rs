//! Makes lists and what OCSP answers from, when a revocation changes them and on a schedule.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use countersign_api::resource::RevocationViews;
use countersign_identity::{Code, KeyId, Revision, Revocations, SpiffeId, Timestamp};
use countersign_pki::CrlOf;
use countersign_store::Batch;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::authority::{Rotation, Signing, destroy, issuer_name};
use crate::control::Control;
use crate::refusal::Refused;
use crate::state::State;
use crate::views::list::{History, Lists, Making};
use crate::views::ocsp::Answers;
use crate::views::responder::Responder;
use crate::views::sets::{self, Set};

/// How often it is looked for a new issuer, and tried again what failed.
const LOOK: Duration = Duration::from_secs(2);
/// How soon lists are tried again that were not made because what signs them is away.
const AWAY: Duration = Duration::from_secs(60);
/// How long somebody who asks waits for the newest revocation to be in the lists.
const CAUGHT_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// What the rest of the world is told now.
pub(crate) struct Views {
    shown: watch::Sender<Arc<Shown>>,
}

/// One consistent picture: every authority with unexpired certificates, at one revision.
#[derive(Default)]
pub(crate) struct Shown {
    revision: Revision,
    authorities: BTreeMap<KeyId, Arc<View>>,
}

/// What is told about the certificates of one authority.
pub(crate) struct View {
    pub(crate) lists: Arc<Lists>,
    /// Nothing for a root: its list tells of issuers.
    pub(crate) answers: Option<Answers>,
}

impl Default for Views {
    fn default() -> Self {
        Self { shown: watch::Sender::new(Arc::default()) }
    }
}

impl Views {
    /// What is told now, once it tells the revocations of this revision; what was told before when that takes long, since
    /// an older list is better than none.
    pub(crate) async fn at(&self, revision: Revision) -> Arc<Shown> {
        let mut shown = self.shown.subscribe();
        let reached = shown.wait_for(|shown| revision <= shown.revision);
        match tokio::time::timeout(CAUGHT_UP_TIMEOUT, reached).await {
            Ok(Ok(shown)) => Arc::clone(&shown),
            Ok(Err(_)) | Err(_) => Arc::clone(&self.shown.borrow()),
        }
    }

    /// What is told now.
    pub(crate) fn now(&self) -> Arc<Shown> {
        Arc::clone(&self.shown.borrow())
    }
}

impl Shown {
    /// Whose revocations are told.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// What is told about one authority's certificates.
    pub(crate) fn of(&self, authority: KeyId) -> Option<&Arc<View>> {
        self.authorities.get(&authority)
    }

    /// Every authority that is told about.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<View>> {
        self.authorities.values()
    }
}

/// Keeps the views true.
pub(crate) struct Keeper {
    pub(crate) control: Arc<Control>,
    pub(crate) rotation: Arc<Rotation>,
    /// Whose responders it makes, if anybody can ask them.
    pub(crate) responders_of: Option<SpiffeId>,
}

/// What the keeper remembers between two rounds.
#[derive(Default)]
struct Kept {
    /// Of what the present lists were made.
    of: Option<Basis>,
    /// When the next lists are due in which nothing has changed.
    due: Option<Timestamp>,
    histories: HashMap<KeyId, History>,
    signing: HashMap<KeyId, Signing>,
    responders: HashMap<KeyId, Arc<Responder>>,
    /// Whether a list was not made because what signs it is away.
    away: bool,
}

/// What lists follow from, besides the time.
#[derive(Clone)]
struct Basis {
    rules: Arc<Revocations>,
    views: RevocationViews,
    issuer: KeyId,
}

impl Basis {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.rules, &other.rules)
            && self.views == other.views
            && self.issuer == other.issuer
    }
}

impl Keeper {
    /// Looks at every change of the state, and now and then, until stopped. What fails is told and tried again.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut kept = Kept::default();
        let mut states = self.control.feed.watch();
        loop {
            let state = Arc::clone(&states.borrow_and_update());
            if let Err(refused) = self.look(&state, &mut kept).await {
                tracing::warn!(code = %refused.code, why = %refused.why, "revocation lists are not renewed");
            }
            let again = self.control.clock.about(LOOK);
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.control.clock.sleep_until(again) => {}
                changed = states.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn look(&self, state: &State, kept: &mut Kept) -> Result<(), Refused> {
        // A list of a time that is over already would be told as the newest.
        let time = &self.control.desk.time;
        let now = time.highest(self.control.desk.now().await?);
        let basis = Basis {
            rules: state.revocations(),
            views: state.domain().revocation_views.clone().unwrap_or_default(),
            issuer: self.control.desk.authorities.load().issuer.key_id(),
        };
        // Other spans begin at once, or a list of a shorter one would end before the next that was due.
        let tuned = kept.of.as_ref().is_none_or(|of| of.views != basis.views);
        let scheduled = tuned || kept.due.is_none_or(|due| due <= now);
        let changed = !kept.of.as_ref().is_some_and(|of| of.is(&basis));
        let responders = self.responders_of.is_some()
            && kept.responders.values().any(|responder| responder.is_due(now));
        let shown = &self.control.views.shown;
        if !scheduled && !changed && !responders {
            // Nothing of it concerns anybody outside.
            shown.send_if_modified(|shown| {
                let moved = shown.revision < state.revision;
                if moved {
                    let authorities = shown.authorities.clone();
                    *shown = Arc::new(Shown { revision: state.revision, authorities });
                }
                moved
            });
            return Ok(());
        }
        let round = Round { keeper: self, state, basis: &basis, now, scheduled };
        let authorities = round.authorities(kept).await?;
        if scheduled || kept.away {
            let usual = basis.views.interval.duration();
            kept.due = Some(now + if kept.away { usual.min(AWAY) } else { usual });
        }
        kept.of = Some(basis);
        shown.send_replace(Arc::new(Shown { revision: state.revision, authorities }));
        Ok(())
    }
}

/// One making of everything.
struct Round<'a> {
    keeper: &'a Keeper,
    state: &'a State,
    basis: &'a Basis,
    now: Timestamp,
    scheduled: bool,
}

impl Round<'_> {
    async fn authorities(&self, kept: &mut Kept) -> Result<BTreeMap<KeyId, Arc<View>>, Refused> {
        let control = &self.keeper.control;
        let mut sets = sets::read(&*control.store, &self.basis.rules, self.now).await?;
        // The issuer that signs now has a list also before it has signed anything.
        sets.entry(self.basis.issuer).or_default();
        let mut authorities = BTreeMap::new();
        kept.away = false;
        for (key, set) in sets {
            let Some(signing) = self.signing(key, kept).await? else {
                tracing::debug!(authority = %key, "its key is gone: nothing is told about its certificates");
                continue;
            };
            let view = match self.view(&signing, set, kept).await {
                Ok(view) => Arc::new(view),
                // A token that is away takes its root's list with it, and nothing else.
                Err(refused) if refused.code == Code::Unavailable => {
                    tracing::warn!(authority = %key, why = %refused.why, "its lists stay as they are");
                    kept.away = true;
                    let Some(before) = control.views.now().of(key).cloned() else { continue };
                    before
                }
                Err(refused) => return Err(refused),
            };
            authorities.insert(key, view);
        }
        self.forget(&authorities, kept).await?;
        kept.histories.retain(|key, _| authorities.contains_key(key));
        kept.signing.retain(|key, _| authorities.contains_key(key));
        kept.responders.retain(|key, _| authorities.contains_key(key));
        Ok(authorities)
    }

    /// Destroys the keys of former issuers whose last certificate has ended: there is nothing more to tell about them.
    async fn forget(
        &self,
        authorities: &BTreeMap<KeyId, Arc<View>>,
        kept: &Kept,
    ) -> Result<(), Refused> {
        let past = kept.signing.iter().filter(|(key, signing)| {
            !authorities.contains_key(key) && !signing.issuer.signs_authorities()
        });
        let ops: Vec<_> = past.map(|(key, _)| destroy(issuer_name(*key))).collect();
        if !ops.is_empty() {
            tracing::info!(
                count = ops.len(),
                "destroyed the keys of issuers that have nothing out any more"
            );
            self.keeper.control.store.commit(Batch { ops, ..Batch::default() }).await?;
        }
        Ok(())
    }

    /// What signs for an authority.
    async fn signing(&self, key: KeyId, kept: &mut Kept) -> Result<Option<Signing>, Refused> {
        if let Some(signing) = kept.signing.get(&key) {
            return Ok(Some(signing.clone()));
        }
        let signing = match self.keeper.rotation.signing(key).await {
            // One key that does not open keeps nobody from the lists of the others.
            Err(refused) if refused.code == Code::Sealed => {
                tracing::warn!(authority = %key, why = %refused.why, "nothing is told about its certificates");
                None
            }
            signing => signing?,
        };
        kept.signing.extend(signing.clone().map(|signing| (key, signing)));
        Ok(signing)
    }

    async fn view(&self, signing: &Signing, set: Set, kept: &mut Kept) -> Result<View, Refused> {
        let control = &self.keeper.control;
        let key = signing.issuer.key_id();
        let before = control.views.now().of(key).cloned();
        let before = before.as_ref().map(|view| &view.lists);
        let history = kept.histories.entry(key).or_default();
        let listed = history.listed(set.revoked(), before.map(|lists| &**lists));
        let same = before.filter(|lists| !self.scheduled && lists.says(&listed, &self.basis.views));
        let lists = match same {
            Some(lists) => Arc::clone(lists),
            None => {
                let making = Making {
                    signing,
                    of: match signing.issuer.signs_authorities() {
                        true => CrlOf::Authorities,
                        false => CrlOf::Users,
                    },
                    revision: self.state.revision,
                    now: self.now,
                    views: &self.basis.views,
                };
                let lists = Lists::make(&making, listed, history).await?;
                control.watch.list_published();
                Arc::new(lists)
            }
        };
        if self.scheduled {
            history.remember(&lists, self.now);
        }
        let responder = self.responder(signing, kept).await;
        let rules = Arc::clone(&self.basis.rules);
        let interval = self.basis.views.interval;
        let answers = match signing.issuer.signs_authorities() {
            true => None,
            false => Some(Answers::new(signing, set, rules, responder, interval, self.now)),
        };
        Ok(View { lists, answers })
    }

    /// What signs answers. Without one, who asks is told to come later.
    async fn responder(&self, signing: &Signing, kept: &mut Kept) -> Option<Arc<Responder>> {
        let server = self.keeper.responders_of.as_ref()?;
        // A root's key does nothing that is not asked for: lists tell of issuers.
        if signing.issuer.signs_authorities() {
            return None;
        }
        let key = signing.issuer.key_id();
        if let Some(responder) = kept.responders.get(&key).filter(|one| !one.is_due(self.now)) {
            return Some(Arc::clone(responder));
        }
        // What has ended signs nothing more, and lists tell of the rest.
        match Responder::create(&self.keeper.control, server, signing).await {
            Ok(responder) => drop(kept.responders.insert(key, Arc::new(responder))),
            Err(refused) => {
                tracing::warn!(authority = %key, code = %refused.code, why = %refused.why, "no new OCSP responder");
            }
        }
        kept.responders.get(&key).cloned()
    }
}
