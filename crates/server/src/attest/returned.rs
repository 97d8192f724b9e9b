//! Who has proved itself again since a new incarnation began.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use countersign_audit::{Entry, EventKind};
use countersign_identity::{Incarnation, NodeId};
use countersign_store::{PAGE_MAX, Store, StoredEvent};

use crate::authority::internal;
use crate::refusal::Refused;

/// The nodes that got a certificate in this incarnation. The log begins anew with each, so that its leaves tell, and each of
/// them is read once; what was issued in earlier ones is not looked at, however much that is.
#[derive(Debug, Default)]
pub(crate) struct Returned {
    read: Mutex<Read>,
    // Held while a page is read, and never waited for by whom what was read tells enough: of many nodes that come back at once
    // one reads a page, and another the next.
    reads: tokio::sync::Mutex<()>,
}

/// As far as the log was read.
#[derive(Debug, Default)]
struct Read {
    of: Incarnation,
    leaves: u64,
    nodes: HashSet<NodeId>,
}

impl Returned {
    /// Whether the node has proved itself in this incarnation already: from then on the key on record counts, and what the
    /// store has lost of earlier ones does not.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn has(&self, node: NodeId, store: &dyn Store) -> Result<bool, Refused> {
        let mut head = store.head().await?;
        loop {
            let (of, size) = (head.revision.incarnation, head.log_size);
            if let Some(has) = self.read().tells(node, (of, size)) {
                return Ok(has);
            }
            let _reads = self.reads.lock().await;
            // Who read meanwhile may have read enough.
            if let Some(has) = self.read().tells(node, (of, size)) {
                return Ok(has);
            }
            let from = self.read().leaves_of(of);
            let page = store.events(from, PAGE_MAX).await?;
            // Another incarnation may have begun meanwhile, and what was read be of its log.
            head = store.head().await?;
            if head.revision.incarnation != of {
                continue;
            }
            if page.is_empty() {
                return Err(internal("the log has fewer leaves than are counted"));
            }
            self.read().take(of, from, &page);
            head.log_size = size;
        }
    }

    fn read(&self) -> MutexGuard<'_, Read> {
        // What a page tells is there before the page is counted as read, so a panic elsewhere does not spoil it.
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Read {
    /// What is known of a node, by a log of this size; nothing when too little of it was read.
    fn tells(&self, node: NodeId, (of, size): (Incarnation, u64)) -> Option<bool> {
        if self.of != of {
            return None;
        }
        let has = self.nodes.contains(&node);
        (has || size <= self.leaves).then_some(has)
    }

    /// How much was read of the log of an incarnation.
    fn leaves_of(&self, of: Incarnation) -> u64 {
        if self.of == of { self.leaves } else { 0 }
    }

    /// Takes in what a page of this log tells.
    fn take(&mut self, of: Incarnation, from: u64, page: &[StoredEvent]) {
        if self.of != of {
            *self = Self { of, ..Self::default() };
        }
        self.nodes.extend(page.iter().filter_map(|event| returns(&event.leaf)));
        self.leaves = from + page.len() as u64;
    }
}

/// The node that has proved itself by what this leaf says.
///
/// A leaf of a later version is no reason to turn away everybody who comes back. It proves nothing of anybody, and where it is
/// about a node, it may say in other words that this one is back: then the key on record counts, and one that was lost lets
/// nobody in.
fn returns(leaf: &[u8]) -> Option<NodeId> {
    match Entry::parse(leaf) {
        Ok(Entry { kind: EventKind::NodeAttested | EventKind::NodeRenewed, subject, .. }) => {
            subject.parse().ok()
        }
        Ok(_) => None,
        Err(why) => {
            tracing::debug!(%why, "a leaf of the log does not read");
            let leaf: serde_json::Value = serde_json::from_slice(leaf).ok()?;
            leaf.get("subject")?.as_str()?.parse().ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use countersign_audit::{Event, Leaf};
    use countersign_identity::{Revision, SeededEntropy, Timestamp};
    use countersign_store::{Batch, Begins, MemoryStore};

    use super::*;

    fn renewed(nodes: std::ops::Range<u8>) -> Batch {
        let event = |number| {
            let subject = NodeId::from_bytes([number; 16]).to_string();
            Event::new(EventKind::NodeRenewed, Timestamp::EPOCH, "agent", subject)
        };
        Batch { events: nodes.map(event).collect(), ..Batch::default() }
    }

    /// A leaf as a later version writes it.
    fn of_a_later_version(kind: EventKind, subject: &str) -> Vec<u8> {
        let event = Event::new(kind, Timestamp::EPOCH, "agent", subject);
        let leaf = Leaf::new(&event, Revision::default(), [0; 16]).unwrap().bytes;
        let text = String::from_utf8(leaf).unwrap();
        text.replace(kind.as_str(), &format!("{kind}-anew")).into_bytes()
    }

    #[test]
    fn leaf_of_a_later_version_is_stepped_over_and_lets_nobody_in_whom_it_names() {
        let node = NodeId::from_bytes([7; 16]);
        let known = Event::new(EventKind::NodeRenewed, Timestamp::EPOCH, "agent", node.to_string());
        let known = Leaf::new(&known, Revision::default(), [0; 16]).unwrap().bytes;
        assert_eq!(returns(&known), Some(node));
        let later = of_a_later_version(EventKind::NodeRenewed, &node.to_string());
        assert!(Entry::parse(&later).is_err());
        assert_eq!(returns(&later), Some(node), "it may say that the node is back");
        let other = of_a_later_version(EventKind::SvidIssued, "spiffe://shop.example/web");
        for nobody in [other, b"{".to_vec(), b"[]".to_vec(), b"{\"subject\":7}".to_vec()] {
            assert_eq!(returns(&nobody), None);
        }
    }

    #[tokio::test]
    async fn who_is_known_to_be_back_or_not_waits_for_nobody_who_reads() {
        let store = MemoryStore::new(Arc::new(SeededEntropy::new(1)));
        store.commit(renewed(0..3)).await.unwrap();
        let returned = Returned::default();
        let node = |number| NodeId::from_bytes([number; 16]);
        assert!(returned.has(node(0), &store).await.unwrap());
        let reads = returned.reads.lock().await;
        let told = async |number| {
            let told = returned.has(node(number), &store);
            tokio::time::timeout(Duration::from_secs(60), told).await.expect("it waits").unwrap()
        };
        // Everything was read; and of who came back before, more is of no account.
        assert!(told(2).await && !told(3).await);
        store.commit(renewed(4..5)).await.unwrap();
        assert!(told(1).await);
        drop(reads);
        assert!(told(4).await);
    }

    #[tokio::test]
    async fn many_who_come_back_at_once_read_each_page_once() {
        let store = Arc::new(MemoryStore::new(Arc::new(SeededEntropy::new(1))));
        for _ in 0..10 {
            store.commit(renewed(0..250)).await.unwrap();
        }
        let returned = Arc::new(Returned::default());
        let mut tasks = tokio::task::JoinSet::new();
        for number in 240..=255 {
            let (returned, store) = (Arc::clone(&returned), Arc::clone(&store));
            let has = async move { returned.has(NodeId::from_bytes([number; 16]), &*store).await };
            tasks.spawn(async move { (number, has.await.unwrap()) });
        }
        while let Some(told) = tasks.join_next().await {
            let (number, has) = told.unwrap();
            assert_eq!(has, number < 250, "{number}");
        }
        assert_eq!(returned.read().leaves, 2500);
    }

    #[tokio::test]
    async fn each_leaf_of_the_incarnation_is_read_once_and_none_of_the_one_before() {
        let store = MemoryStore::new(Arc::new(SeededEntropy::new(1)));
        for _ in 0..40 {
            store.commit(renewed(0..250)).await.unwrap();
        }
        let head = store.head().await.unwrap();
        let incarnation = head.revision.incarnation + 6;
        let begins = Begins { incarnation, log_size: head.log_size };
        let (expected, narrows) = (Some(head.revision), true);
        let first = Event::new(EventKind::IncarnationBegan, Timestamp::EPOCH, "server", "domain");
        let begins = Batch {
            expected,
            narrows,
            begins: Some(begins),
            events: vec![first],
            ..Batch::default()
        };
        store.commit(begins).await.unwrap();
        store.commit(renewed(0..3)).await.unwrap();
        let returned = Returned::default();
        let node = |number| NodeId::from_bytes([number; 16]);
        for (number, has) in [(2, true), (3, false), (200, false)] {
            assert_eq!(returned.has(node(number), &store).await.unwrap(), has, "{number}");
        }
        assert_eq!(returned.read().leaves, 4, "of ten thousand and four");
        returned.read().nodes.remove(&node(2));
        store.commit(renewed(3..4)).await.unwrap();
        assert!(returned.has(node(3), &store).await.unwrap());
        assert!(!returned.has(node(2), &store).await.unwrap(), "its leaf was read again");
        let (of, leaves) = (incarnation, 5);
        let read = {
            let read = returned.read();
            (read.of, read.leaves)
        };
        assert_eq!(read, (of, leaves));
        assert_eq!(store.head().await.unwrap().revision, Revision { incarnation, number: 1 });
    }
}
