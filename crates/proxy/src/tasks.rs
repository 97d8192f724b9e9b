//! Where every task of the data plane is started, so that shutdown can wait for all and then cut the rest.

use std::future::Future;

use countersign_program::seldom::Seldom;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Starts tasks, counts them, and cuts those that are left at the end of the drain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    running: TaskTracker,
    cut: CancellationToken,
}

impl Tasks {
    /// Starts a task, which ends by itself or is cut.
    pub(crate) fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cut = self.cut.clone();
        // Boxed first: what is moved into a block and awaited there has two places in it.
        let task = Box::pin(task);
        self.running.spawn(async move {
            tokio::select! {
                biased;
                () = Seldom::new(Box::pin(cut.cancelled())) => {}
                () = task => {}
            }
        });
    }

    /// Where tasks are started that are parts of what another task drives, and end when that one is cut: they are waited for only.
    pub(crate) fn parts(&self) -> TaskTracker {
        self.running.clone()
    }

    /// Waits until all tasks have ended, at most for `grace`, then cuts the rest. Says how many were cut.
    pub(crate) async fn drain(&self, grace: std::time::Duration) -> usize {
        self.running.close();
        if tokio::time::timeout(grace, self.running.wait()).await.is_ok() {
            return 0;
        }
        let left = self.running.len();
        self.cut.cancel();
        self.running.wait().await;
        left
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        self.start(async move {
            task.await;
        });
    }
}
