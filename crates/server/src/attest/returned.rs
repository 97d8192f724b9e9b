//! Who has proved itself again since a new incarnation began.

use std::collections::HashSet;

use countersign_audit::{Entry, EventKind};
use countersign_identity::{Incarnation, NodeId};
use countersign_store::{PAGE_MAX, Store};
use tokio::sync::Mutex;

use crate::authority::internal;
use crate::refusal::Refused;

/// The nodes that got a certificate in this incarnation. The log begins anew with each, so that its leaves tell, and each of
/// them is read once; what was issued in earlier ones is not looked at, however much that is.
#[derive(Debug, Default)]
pub(crate) struct Returned {
    // Held while the log is read: of many nodes that come back at once, one reads, and the others find it read.
    read: Mutex<Read>,
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
        let mut read = self.read.lock().await;
        loop {
            let head = store.head().await?;
            let of = head.revision.incarnation;
            if read.of != of {
                *read = Read { of, ..Read::default() };
            }
            if read.nodes.contains(&node) {
                return Ok(true);
            }
            let whole = read.go_on(head.log_size, store).await?;
            // Another incarnation may have begun meanwhile, and what was read be of its log.
            if store.head().await?.revision.incarnation != of {
                *read = Read::default();
            } else if whole {
                return Ok(read.nodes.contains(&node));
            } else {
                return Err(internal("the log has fewer leaves than are counted"));
            }
        }
    }
}

impl Read {
    /// Reads up to a size of the log; says whether there is as much.
    async fn go_on(&mut self, size: u64, store: &dyn Store) -> Result<bool, Refused> {
        while self.leaves < size {
            let page = store.events(self.leaves, PAGE_MAX).await?;
            if page.is_empty() {
                return Ok(false);
            }
            for event in &page {
                let entry = Entry::parse(&event.leaf).map_err(internal)?;
                let proves = matches!(entry.kind, EventKind::NodeAttested | EventKind::NodeRenewed);
                if proves && let Ok(node) = entry.subject.parse() {
                    self.nodes.insert(node);
                }
            }
            self.leaves += page.len() as u64;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use countersign_audit::Event;
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
        assert_eq!(returned.read.lock().await.leaves, 4, "of ten thousand and four");
        returned.read.lock().await.nodes.remove(&node(2));
        store.commit(renewed(3..4)).await.unwrap();
        assert!(returned.has(node(3), &store).await.unwrap());
        assert!(!returned.has(node(2), &store).await.unwrap(), "its leaf was read again");
        let (of, leaves) = (incarnation, 5);
        let read = returned.read.lock().await;
        assert_eq!((read.of, read.leaves), (of, leaves));
        assert_eq!(store.head().await.unwrap().revision, Revision { incarnation, number: 1 });
    }
}
