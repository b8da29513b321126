//! The reply window: how long a late reply may take, and the guard over what that costs.
//!
//! Whoever waits for a late reply leaves WeChat's first tries unanswered. WeChat stops sending anything for a minute to
//! a server that fails too often (MarkFail), so each account has a budget of failures. Invariants: every timeout made
//! on purpose is paid for before it is made; other failures that WeChat sees count too; when the budget is used up the
//! window is closed, until half of it has aged out.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::metrics::AccountMetrics;

/// `reply_window` of an account, with the failures that it may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyWindow {
    /// How long after the first try a late reply is still of use; at most 14 s, as WeChat hangs up on its third try
    /// 15 s after the first.
    pub length: Duration,
    /// How many failures ..
    pub failures: usize,
    /// .. in how long a time make the window close.
    pub period: Duration,
}

/// Keeps count of an account's failures; outlives changes of the configuration, as WeChat's own count does.
pub(super) struct Guard {
    account: Arc<str>,
    metrics: AccountMetrics,
    state: Mutex<State>,
}

struct State {
    window: Option<ReplyWindow>,
    /// When there was a failure, the oldest first; no more than count.
    failures: VecDeque<Instant>,
    open: bool,
}

impl Guard {
    pub(super) fn new(account: Arc<str>, metrics: AccountMetrics) -> Arc<Self> {
        let state = State { window: None, failures: VecDeque::new(), open: true };
        Arc::new(Self { account, metrics, state: Mutex::new(state) })
    }

    /// Guards this window from now on.
    pub(super) fn adopt(self: &Arc<Self>, window: Option<ReplyWindow>) {
        let mut state = self.lock();
        state.window = window;
        self.look(&mut state);
        self.metrics.reply_window(window.map(|_| state.open));
    }

    /// How long a late reply to a push that arrives now is of use; `None` while the window is closed, or if there is none.
    pub(super) fn window(&self) -> Option<Duration> {
        let state = self.lock();
        state.window.filter(|_| state.open).map(|window| window.length)
    }

    /// Pays for one timeout made on purpose; false if there is nothing left to pay with.
    pub(super) fn spend(self: &Arc<Self>) -> bool {
        let mut state = self.lock();
        if !state.open || state.window.is_none() {
            return false;
        }
        self.metrics.reply_window_timeouts.inc();
        self.count(&mut state);
        true
    }

    /// Counts a failure that was not made on purpose.
    pub(super) fn failed(self: &Arc<Self>) {
        self.count(&mut self.lock());
    }

    fn count(self: &Arc<Self>, state: &mut State) {
        state.failures.push_back(Instant::now());
        self.look(state);
    }

    /// Forgets what has aged out, and closes or opens the window accordingly.
    fn look(self: &Arc<Self>, state: &mut State) {
        let Some(ReplyWindow { failures, period, .. }) = state.window else {
            state.failures.clear();
            state.open = true;
            return;
        };
        let now = Instant::now();
        while state.failures.len() > failures || state.failures.front().is_some_and(|at| now >= *at + period) {
            state.failures.pop_front();
        }
        let count = state.failures.len();
        if state.open && count == failures {
            state.open = false;
            self.metrics.reply_window(Some(false));
            tracing::warn!(account = %self.account, failures, ?period, "the reply window closes: too many pushes failed; all are answered in time now");
            tokio::spawn(open_again(Arc::downgrade(self)));
        } else if !state.open && count <= failures / 2 {
            state.open = true;
            self.metrics.reply_window(Some(true));
            tracing::info!(account = %self.account, failures = count, "the reply window opens again");
        }
    }

    /// When so many failures will have aged out that the closed window opens, if no more come.
    fn opens(self: &Arc<Self>) -> Option<Instant> {
        let mut state = self.lock();
        self.look(&mut state);
        let ReplyWindow { failures, period, .. } = state.window.filter(|_| !state.open)?;
        let last = state.failures.len().checked_sub(failures / 2 + 1)?;
        state.failures.get(last).map(|at| *at + period)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// Opens a closed window when its time has come, also while no push comes in.
async fn open_again(guard: Weak<Guard>) {
    while let Some(at) = guard.upgrade().and_then(|guard| guard.opens()) {
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    const WINDOW: ReplyWindow =
        ReplyWindow { length: Duration::from_secs(14), failures: 4, period: Duration::from_secs(300) };

    fn guard() -> (Arc<Guard>, Arc<Metrics>) {
        let metrics = Metrics::new();
        let guard = Guard::new("shop".into(), metrics.account("shop"));
        guard.adopt(Some(WINDOW));
        (guard, metrics)
    }

    fn gauge(metrics: &Metrics) -> Option<String> {
        let text = metrics.render();
        let line = text.lines().find(|line| line.starts_with("wxrelay_reply_window_open{"))?;
        line.rsplit_once(' ').map(|(_, value)| value.to_owned())
    }

    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_is_never_overdrawn_and_half_of_it_must_age_out() {
        let (guard, metrics) = guard();
        for _ in 0..4 {
            assert_eq!(guard.window(), Some(WINDOW.length));
            assert!(guard.spend());
            pass(10).await;
        }
        assert!(guard.window().is_none() && !guard.spend());
        assert_eq!(gauge(&metrics).as_deref(), Some("0"));
        // The failures were at 0, 10, 20 and 30; it is 40 now, and at 310 two are left.
        pass(269).await;
        assert!(guard.window().is_none(), "one is not enough");
        pass(2).await;
        assert_eq!(gauge(&metrics).as_deref(), Some("1"), "told without a push");
        assert!(guard.spend() && guard.spend() && !guard.spend(), "two of the old ones still count");
        assert!(metrics.render().contains("wxrelay_reply_window_timeouts_total{account=\"shop\"} 6"));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_not_made_on_purpose_count_too_and_keep_it_closed() {
        let (guard, metrics) = guard();
        for _ in 0..40 {
            guard.failed();
            pass(100).await;
        }
        assert_eq!(guard.window(), Some(WINDOW.length), "never 4 within 300 s");
        for _ in 0..10 {
            guard.failed();
            pass(30).await;
        }
        assert!(guard.window().is_none());
        pass(250).await;
        assert_eq!(gauge(&metrics).as_deref(), Some("1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_keeps_the_count() {
        let (guard, metrics) = guard();
        guard.failed();
        guard.failed();
        guard.adopt(Some(ReplyWindow { failures: 2, ..WINDOW }));
        assert!(guard.window().is_none());
        guard.adopt(None);
        assert!(gauge(&metrics).is_none(), "no window, no series");
        assert!(!guard.spend());
        guard.failed();
        guard.adopt(Some(WINDOW));
        assert_eq!(guard.window(), Some(WINDOW.length));
    }
}
