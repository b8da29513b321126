//! Work that goes on when whoever began it is gone.
//!
//! hyper drops a request's future when WeChat hangs up after 5 s. A task of its own for each push would outlive that, but
//! costs each of them a task, and the waking from one to the other; here only those that need it have one.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// A future that is driven where it is awaited, and in a task of the tracker's from where it is dropped unfinished.
pub(super) struct Persistent<T: Send + 'static> {
    /// `None` when it has ended.
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    tasks: TaskTracker,
}

impl<T: Send> Persistent<T> {
    pub(super) fn new(work: impl Future<Output = T> + Send + 'static, tasks: &TaskTracker) -> Self {
        Self { work: Some(Box::pin(work)), tasks: tasks.clone() }
    }
}

impl<T: Send> Future for Persistent<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let polled = work.as_mut().poll(context);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Persistent<T> {
    fn drop(&mut self) {
        // Work that has panicked cannot go on, and at the end of the process there is no runtime for it.
        if let Some(work) = self.work.take()
            && !std::thread::panicking()
            && let Ok(runtime) = Handle::try_current()
        {
            drop(self.tasks.spawn_on(work, &runtime));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_that_is_dropped_goes_on_and_is_waited_for() {
        let (tasks, (go, gone)) = (TaskTracker::new(), oneshot::channel());
        let (done, is_done) = oneshot::channel();
        let mut work = Persistent::new(
            async move {
                gone.await.unwrap();
                done.send(()).unwrap();
            },
            &tasks,
        );
        assert!(polled(&mut work).is_pending());
        assert!(tasks.is_empty(), "no task while it is awaited");
        drop(work);
        assert_eq!(tasks.len(), 1);
        tasks.close();
        go.send(()).unwrap();
        tasks.wait().await;
        is_done.await.unwrap();
    }

    #[tokio::test]
    async fn work_that_has_ended_is_not_begun_again() {
        let tasks = TaskTracker::new();
        let mut work = Persistent::new(async {}, &tasks);
        (&mut work).await;
        drop(work);
        assert!(tasks.is_empty());
    }

    fn polled(work: &mut Persistent<()>) -> Poll<()> {
        Pin::new(work).poll(&mut Context::from_waker(std::task::Waker::noop()))
    }
}
