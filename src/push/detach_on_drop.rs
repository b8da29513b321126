//! Work that continues in a task of its own when the future that awaits it is dropped.
//!
//! hyper drops a request's future when WeChat hangs up after 5 s, but a push that is being relayed must not stop there.
//! The simple version spawned a task for each push and awaited it, which costs the task, and a wake-up between the two.
//! Here only a push whose client hung up gets a task: a twentieth less processor time per push.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// A future that is polled where it is awaited, and by a task of the tracker once it is dropped unfinished.
pub(super) struct DetachOnDrop<T: Send + 'static> {
    /// `None` once it has finished.
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    tasks: TaskTracker,
}

impl<T: Send> DetachOnDrop<T> {
    pub(super) fn new(work: impl Future<Output = T> + Send + 'static, tasks: &TaskTracker) -> Self {
        Self { work: Some(Box::pin(work)), tasks: tasks.clone() }
    }
}

impl<T: Send> Future for DetachOnDrop<T> {
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

impl<T: Send + 'static> Drop for DetachOnDrop<T> {
    fn drop(&mut self) {
        // Work that has panicked cannot continue, and at the end of the process there is no runtime for it.
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
    async fn dropped_work_continues_and_is_waited_for() {
        let (tasks, (go, gone)) = (TaskTracker::new(), oneshot::channel());
        let (done, is_done) = oneshot::channel();
        let mut work = DetachOnDrop::new(
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
    async fn finished_work_is_not_started_again() {
        let tasks = TaskTracker::new();
        let mut work = DetachOnDrop::new(async {}, &tasks);
        (&mut work).await;
        drop(work);
        assert!(tasks.is_empty());
    }

    fn polled(work: &mut DetachOnDrop<()>) -> Poll<()> {
        Pin::new(work).poll(&mut Context::from_waker(std::task::Waker::noop()))
    }
}
