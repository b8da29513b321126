//! Load as from WeChat: one connection per push, HTTP/1.0, and a push that is not answered 200 is sent again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::http::try_exchange;
use super::soon;
use super::wechat::{PATH, WeChat, text};

/// Concurrent connections, each with one push.
pub(crate) const SENDERS: usize = 8;

/// Pushes as WeChat sends them, one connection each, until they are answered 200.
pub(crate) struct Storm {
    tally: Arc<Tally>,
    count: watch::Receiver<usize>,
    senders: JoinSet<()>,
}

struct Tally {
    over: AtomicBool,
    count: watch::Sender<usize>,
    answered: Mutex<Vec<(String, Duration)>>,
    failures: Mutex<Vec<String>>,
}

impl Storm {
    /// Runs until [`Storm::end`].
    pub(crate) fn begin(address: &str, wechat: &WeChat) -> Self {
        let (sender, count) = watch::channel(0);
        let (answered, failures) = (Mutex::default(), Mutex::default());
        let tally = Arc::new(Tally { over: AtomicBool::new(false), count: sender, answered, failures });
        let mut senders = JoinSet::new();
        for sender in 0..SENDERS {
            let (address, wechat, tally) = (address.to_owned(), wechat.clone(), Arc::clone(&tally));
            senders.spawn(async move {
                while !tally.over.load(Ordering::Relaxed) {
                    tally.push(&address, &wechat, &format!("o{sender}")).await;
                }
            });
        }
        Self { tally, count, senders }
    }

    /// Waits until this many more are answered.
    pub(crate) async fn answered(&self, more: usize) {
        let mut count = self.count.clone();
        let goal = *count.borrow() + more;
        soon("the load continues", count.wait_for(|count| *count >= goal)).await.expect("the senders live");
    }

    /// The tries so far that were not answered 200.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.tally.failures.lock().expect("no sender panics").clone()
    }

    /// Stops it; returns the texts of all pushes and the longest wait for an answer.
    pub(crate) async fn end(self) -> (BTreeSet<String>, Duration) {
        self.tally.over.store(true, Ordering::Relaxed);
        self.senders.join_all().await;
        let answered = self.tally.answered.lock().expect("no sender panics");
        let longest = answered.iter().map(|(_, wait)| *wait).max().unwrap_or_default();
        (answered.iter().map(|(clear, _)| clear.clone()).collect(), longest)
    }
}

impl Tally {
    async fn push(&self, address: &str, wechat: &WeChat, openid: &str) {
        let clear = text(openid, "under load");
        let request = wechat.push(&clear).request(PATH);
        // As often as WeChat tries.
        for _ in 0..3 {
            let begun = Instant::now();
            let failure = match try_exchange(address, &request).await {
                Ok(answer) if answer.status == 200 => {
                    self.answered.lock().expect("no sender panics").push((clear, begun.elapsed()));
                    self.count.send_modify(|count| *count += 1);
                    return;
                }
                Ok(answer) => format!("answered {}", answer.status),
                Err(error) => error.to_string(),
            };
            self.failures.lock().expect("no sender panics").push(failure);
        }
        let failures = self.failures.lock().expect("no sender panics").clone();
        panic!("three tries in vain: {failures:?}");
    }
}
