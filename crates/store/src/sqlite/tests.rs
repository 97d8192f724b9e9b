//! What a store that cannot be opened leaves behind.

use std::sync::mpsc;

use countersign_identity::SystemEntropy;

use super::*;

#[test]
fn store_that_nobody_can_watch_is_not_opened_and_leaves_no_writer_behind() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path();
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    drop(SqliteStore::create(directory, Arc::clone(&entropy)).unwrap());

    let (tell, ended) = mpsc::channel();
    let start = |name: &str, work: Work| {
        if name == "store-watch" {
            return Err(StoreError::Unavailable { why: "there are no more threads".to_owned() });
        }
        let tell = tell.clone();
        thread(
            name,
            Box::new(move || {
                work();
                tell.send(()).unwrap();
            }),
        )
    };
    let lock = Lock::take(directory).unwrap();
    let refused = SqliteStore::open_locked(directory, lock, Arc::clone(&entropy), &start);
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })));
    // It has ended before the directory was free for another.
    assert_eq!(ended.try_recv(), Ok(()));
    SqliteStore::open(directory, entropy).unwrap();
}
