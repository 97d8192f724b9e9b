//! The lists of one authority: the whole one, what changed since an older one, and parts.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use countersign_api::resource::RevocationViews;
use countersign_identity::{KeyId, Revision, Timestamp};
use countersign_pki::{CrlDraft, CrlNumber, CrlOf, RevokedSerial, Shard};

use crate::authority::Signing;
use crate::refusal::Refused;
use crate::views::sets::Listed;

/// A list is true since a little before it was made, for clients whose clocks are behind.
pub(crate) const BACKDATE: Duration = Duration::from_secs(30);

/// What a new list is made of.
pub(crate) struct Making<'a> {
    pub(crate) signing: &'a Signing,
    pub(crate) of: CrlOf,
    pub(crate) revision: Revision,
    pub(crate) now: Timestamp,
    pub(crate) views: &'a RevocationViews,
}

/// One list of what is out of service, signed.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) number: CrlNumber,
    pub(crate) this_update: Timestamp,
    pub(crate) next_update: Timestamp,
    /// On which list it builds, if it tells changes only.
    pub(crate) base: Option<CrlNumber>,
    /// How many certificates it lists.
    pub(crate) count: usize,
    pub(crate) der: Bytes,
}

/// All lists of one authority that belong together.
pub(crate) struct Lists {
    signing: Signing,
    of: CrlOf,
    views: RevocationViews,
    listed: Arc<[Listed]>, // INVARIANT: in the order of the serials
    pub(crate) whole: Published,
    pub(crate) delta: Published,
    /// Parts are signed when somebody asks for them; there are few divisions, so few of them.
    parts: Mutex<HashMap<Shard, Published>>,
}

/// Which lists went out on schedule, as far as anybody may still hold them.
#[derive(Clone, Debug, Default)]
pub(crate) struct History(VecDeque<Past>);

#[derive(Clone, Debug)]
struct Past {
    number: CrlNumber,
    made: Timestamp,
    next_update: Timestamp,
    listed: Arc<[Listed]>,
}

impl History {
    /// What is to be listed: what is out of service, and what was and has ended, until a list that was made on schedule
    /// after its end has told it (RFC 5280, 3.3).
    pub(crate) fn listed(&self, revoked: &[Listed], shown: Option<&Lists>) -> Arc<[Listed]> {
        let (Some(last), Some(shown)) = (self.0.back(), shown) else { return revoked.into() };
        let is_out = |old: &Listed| {
            let serial = &old.revoked.serial;
            revoked.binary_search_by_key(serial, |listed| listed.revoked.serial).is_err()
        };
        let kept = shown.listed.iter().filter(|old| last.made <= old.ends && is_out(old));
        let mut all: Vec<_> = revoked.iter().chain(kept).copied().collect();
        all.sort_unstable_by_key(|listed| listed.revoked.serial);
        all.into()
    }

    /// On which list the changes build, and what they are. Every whole list that anybody may still hold is that one or
    /// a later one; when this server has not run for long enough to know, all is told, which goes with every list.
    fn changes(&self, listed: &[Listed], now: Timestamp) -> (CrlNumber, Vec<RevokedSerial>) {
        let known = self.0.iter().take_while(|past| past.next_update <= now).last();
        let is_new = |listed: &&Listed| {
            known.is_none_or(|base| {
                let serial = &listed.revoked.serial;
                let found = base.listed.binary_search_by_key(serial, |old| old.revoked.serial);
                found.map_or(true, |at| base.listed[at].revoked != listed.revoked)
            })
        };
        let changes = listed.iter().filter(is_new).map(|listed| listed.revoked).collect();
        (known.map_or(CrlNumber::ZERO, |base| base.number), changes)
    }

    /// A list went out on schedule.
    pub(crate) fn remember(&mut self, lists: &Lists, now: Timestamp) {
        let Published { number, next_update, .. } = lists.whole;
        self.0.push_back(Past {
            number,
            made: now,
            next_update,
            listed: Arc::clone(&lists.listed),
        });
        // The newest of those that nobody may hold any more is what changes build on.
        while self.0.iter().take(2).filter(|past| past.next_update <= now).count() == 2 {
            self.0.pop_front();
        }
    }
}

impl Lists {
    /// Makes the whole list, and what changed.
    ///
    /// # Errors
    /// When the signer fails.
    pub(crate) async fn make(
        making: &Making<'_>,
        listed: Arc<[Listed]>,
        history: &History,
    ) -> Result<Self, Refused> {
        let Making { signing, of, revision, now, views } = making;
        let issuer = &signing.issuer;
        let freshest = views.pointers().map(|pointers| pointers.delta(issuer.key_id()));
        let entries: Vec<_> = listed.iter().map(|listed| listed.revoked).collect();
        let this_update = (*now - BACKDATE).floor_secs();
        let draft = CrlDraft {
            issuer,
            number: CrlNumber::new(*revision, *now),
            this_update,
            next_update: (*now + views.validity.duration()).floor_secs(),
            of: *of,
            part: None,
            base: None,
            freshest: freshest.as_deref(),
            entries: &entries,
        };
        let whole = publish(&draft, signing).await?;
        let (base, changes) = history.changes(&listed, *now);
        let draft = CrlDraft { base: Some(base), freshest: None, entries: &changes, ..draft };
        let delta = publish(&draft, signing).await?;
        let (signing, views) = ((*signing).clone(), (*views).clone());
        Ok(Self { signing, of: *of, views, listed, whole, delta, parts: Mutex::default() })
    }

    /// Whether a list with these would say anything else.
    pub(crate) fn says(&self, listed: &[Listed], views: &RevocationViews) -> bool {
        self.views == *views && *self.listed == *listed
    }

    /// The authority.
    pub(crate) fn issuer(&self) -> KeyId {
        self.signing.issuer.key_id()
    }

    /// One part of the list.
    ///
    /// # Errors
    /// When the signer fails.
    pub(crate) async fn part(&self, shard: Shard) -> Result<Published, Refused> {
        let known = |parts: &Mutex<HashMap<Shard, Published>>| {
            parts.lock().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned()
        };
        if let Some(published) = known(&self.parts) {
            return Ok(published);
        }
        // Without an address there is nothing that a part could say of itself that certificates say, too.
        let url = match self.views.pointers() {
            Some(pointers) => pointers.shard(self.issuer(), shard),
            None => format!("urn:countersign:crl:{}:{shard}", self.issuer()),
        };
        let entries = self.listed.iter().map(|listed| listed.revoked);
        let entries: Vec<_> = entries.filter(|revoked| shard.holds(revoked.serial)).collect();
        let Published { number, this_update, next_update, .. } = self.whole;
        let draft = CrlDraft {
            issuer: &self.signing.issuer,
            number,
            this_update,
            next_update,
            of: self.of,
            part: Some(&url),
            base: None,
            freshest: None,
            entries: &entries,
        };
        let published = publish(&draft, &self.signing).await?;
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(parts.entry(shard).or_insert(published).clone())
    }
}

async fn publish(draft: &CrlDraft<'_>, signing: &Signing) -> Result<Published, Refused> {
    let der = draft.sign(&*signing.signer).await?;
    let CrlDraft { number, this_update, next_update, base, .. } = *draft;
    Ok(Published {
        number,
        this_update,
        next_update,
        base,
        count: draft.entries.len(),
        der: der.into(),
    })
}

#[cfg(test)]
mod tests {
    use countersign_identity::{Reason, SeededEntropy, Serial};
    use countersign_pki::{AuthorityDraft, Crl, Issuer, KeyKind, PrivateKey, Receipt, Signer as _};

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_795_262_400);

    async fn signing() -> Signing {
        let signer =
            countersign_pki::SoftwareSigner::from(PrivateKey::generate(KeyKind::P256).unwrap());
        let serial = Serial::draw(NOW, &SeededEntropy::new(1)).unwrap();
        let (domain, key) = ("shop.example".parse().unwrap(), signer.public().clone());
        let draft = AuthorityDraft::root(domain, key, serial, NOW, "365d".parse().unwrap());
        let reviewed = draft.review().unwrap();
        let receipt = Receipt::assertion(reviewed.summary().tbs, 0);
        let certificate = reviewed.sign(receipt, &signer).await.unwrap();
        let issuer = Issuer::from_certificate(certificate).unwrap();
        Signing { issuer, above: Vec::new(), signer: Arc::new(signer) }
    }

    fn listed(seed: u64, ends_after: u64) -> Listed {
        let serial = Serial::draw(NOW, &SeededEntropy::new(seed)).unwrap();
        let revoked = RevokedSerial { serial, at: NOW, reason: Reason::KeyCompromise };
        Listed { revoked, ends: NOW + Duration::from_secs(ends_after) }
    }

    /// One authority's lists over time, as the keeper makes them.
    struct Course {
        signing: Signing,
        views: RevocationViews,
        history: History,
        lists: Option<Lists>,
        number: u64,
    }

    impl Course {
        async fn begin() -> Self {
            let (signing, views) = (signing().await, RevocationViews::default());
            Self { signing, views, history: History::default(), lists: None, number: 0 }
        }

        /// Makes lists so many minutes after the beginning. Gives how many the whole list and the changes hold, and
        /// whether the changes go with any list.
        async fn make(
            &mut self,
            minute: u64,
            scheduled: bool,
            mut revoked: Vec<Listed>,
        ) -> (usize, usize, bool) {
            revoked.sort_unstable_by_key(|listed| listed.revoked.serial);
            self.number += 1;
            let now = NOW + Duration::from_secs(60 * minute);
            let making = Making {
                signing: &self.signing,
                of: CrlOf::Users,
                revision: Revision { incarnation: 1, number: self.number },
                now,
                views: &self.views,
            };
            let listed = self.history.listed(&revoked, self.lists.as_ref());
            let lists = Lists::make(&making, listed, &self.history).await.unwrap();
            if scheduled {
                self.history.remember(&lists, now);
            }
            let (whole, delta) =
                (Crl::parse(&lists.whole.der).unwrap(), Crl::parse(&lists.delta.der).unwrap());
            assert_eq!((whole.number, whole.base), (delta.number, None));
            assert!(delta.base.unwrap() < delta.number);
            self.lists = Some(lists);
            (whole.entries.len(), delta.entries.len(), delta.base == Some(CrlNumber::ZERO))
        }
    }

    #[tokio::test]
    async fn changes_build_on_a_list_that_every_reader_may_hold_or_on_none() {
        let (mut course, [a, b, c]) =
            (Course::begin().await, [1, 2, 3].map(|seed| listed(seed, 90_000)));
        // Somebody may hold a list of an earlier run of this server, so all is told for an hour.
        assert_eq!(course.make(0, true, vec![a]).await, (1, 1, true));
        assert_eq!(course.make(15, true, vec![a]).await, (1, 1, true));
        assert_eq!(course.make(20, false, vec![a, b]).await, (2, 2, true));
        assert_eq!(course.make(30, true, vec![a, b]).await, (2, 2, true));
        // The first list has ended: whoever holds one holds the first or a later one.
        assert_eq!(course.make(60, true, vec![a, b]).await, (2, 1, false));
        assert_eq!(course.make(75, true, vec![a, b, c]).await, (3, 2, false));
        // And after the list with `b` has ended, too, only `c` is news.
        assert_eq!(course.make(90, true, vec![a, b, c]).await, (3, 1, false));
    }

    #[tokio::test]
    async fn certificate_that_ends_is_told_by_one_more_list_on_schedule() {
        let (mut course, short) = (Course::begin().await, listed(1, 600));
        course.make(0, true, vec![]).await;
        assert_eq!(course.make(5, false, vec![short]).await.0, 1);
        assert_eq!(course.make(12, false, vec![]).await.0, 1, "no list on schedule after its end");
        assert_eq!(course.make(15, true, vec![]).await.0, 1, "this is the one");
        assert_eq!(course.make(16, false, vec![]).await.0, 0);
    }

    #[tokio::test]
    async fn parts_make_up_the_whole() {
        let mut course = Course::begin().await;
        let revoked: Vec<_> = (0..40).map(|seed| listed(seed, 9000)).collect();
        course.make(0, true, revoked).await;
        let lists = course.lists.unwrap();
        let shards = countersign_pki::Shards::new(4).unwrap();
        let mut found = 0;
        for index in 0..4 {
            let part = lists.part(shards.shard(index).unwrap()).await.unwrap();
            let read = Crl::parse(&part.der).unwrap();
            assert!(read.part.is_some_and(|part| part.ends_with(&format!(":4-{index}"))));
            assert!(read.entries.keys().all(|serial| shards.shard(index).unwrap().holds(*serial)));
            found += read.entries.len();
            let again = lists.part(shards.shard(index).unwrap()).await.unwrap();
            assert_eq!(again.der, part.der, "a part is signed once");
        }
        assert_eq!(found, 40);
    }
}
