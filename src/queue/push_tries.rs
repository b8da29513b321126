//! WeChat's tries of a push whose reply is awaited, as the target that is asked follows them.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;

/// Stored in place of the count once no further try comes.
const OVER: u32 = u32::MAX;

/// How often WeChat has tried a push that is in progress.
///
/// Not a `watch` channel: most targets do not follow the tries, and this costs their pushes one small allocation.
#[derive(Debug, Default)]
pub struct PushTries {
    count: AtomicU32,
    /// Notified at each change of the count.
    changed: Notify,
}

impl PushTries {
    /// Publishes how many tries WeChat has made.
    pub fn record(&self, count: u32) {
        // Pairs with the load in `more_than`.
        self.count.store(count, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Publishes that WeChat has its answer: it makes no further try.
    pub fn end(&self) {
        self.record(OVER);
    }

    /// Waits until WeChat has made more than `made` tries. False if it makes no further one.
    pub async fn more_than(&self, made: u32) -> bool {
        loop {
            // First, so that a change after the load is not missed.
            let changed = self.changed.notified();
            match self.count.load(Ordering::Acquire) {
                OVER => return false,
                count if count > made => return true,
                _ => changed.await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_a_try_hears_of_it_and_of_the_end() {
        let tries = Arc::new(PushTries::default());
        let waits = |made| {
            let tries = tries.clone();
            tokio::spawn(async move { tries.more_than(made).await })
        };
        tries.record(1);
        assert!(tries.more_than(0).await, "it is made already");
        let (second, third) = (waits(1), waits(2));
        tokio::task::yield_now().await;
        tries.record(2);
        assert!(second.await.unwrap());
        tries.end();
        assert!(!third.await.unwrap());
        assert!(!tries.more_than(0).await, "over");
    }
}
