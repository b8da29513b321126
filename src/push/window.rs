//! The reply window: how long a late reply may take, and the budget of failures that this may cost.
//!
//! To wait for a late reply, the relay leaves WeChat's first tries unanswered. WeChat stops sending anything for a
//! minute to a server that fails too often (MarkFail), so each account has a budget of failures. Invariants: every
//! deliberate timeout is charged before it is made; other failures that WeChat sees are charged too, where the answer
//! is decided; when the budget is used up the window is closed, until half of it has aged out.
//!
//! Replicas divide the budget without asking each other: each has the part that it would have had among the most
//! replicas within `period`, so that all together never overdraw it.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metrics::AccountMetrics;

/// `reply_window` of an account, with the failures that it may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyWindow {
    /// How long after the first try a late reply is still useful; at most 14.5 s, as WeChat hangs up on its third try
    /// 15 s after the first.
    pub length: Duration,
    /// How many failures within `period` close the window, of all replicas together.
    pub failures: usize,
    /// How long a failure counts.
    pub period: Duration,
}

/// An account's recent failures; survives a reload, as WeChat's own count does.
pub(super) struct FailureBudget {
    account: Arc<str>,
    metrics: AccountMetrics,
    state: Mutex<BudgetState>,
}

struct BudgetState {
    window: Option<ReplyWindow>,
    /// The times of the failures, the oldest first; no more than close the window.
    failures: VecDeque<Instant>,
    open: bool,
    replicas: Replicas,
}

/// Among how many replicas the budget is divided.
#[derive(Clone, Copy)]
struct Replicas {
    live: usize,
    /// The most that lived at once within `period`, and until when that counts.
    most: usize,
    until: Option<Instant>,
}

impl Replicas {
    const ONE: Self = Self { live: 1, most: 1, until: None };

    fn set(&mut self, live: usize, period: Duration) {
        if live < self.live {
            self.until = Some(Instant::now() + period);
        }
        (self.live, self.most) = (live, self.most.max(live));
    }

    /// The divisor now.
    fn most(&mut self) -> usize {
        if self.until.is_none_or(|until| Instant::now() >= until) {
            (self.most, self.until) = (self.live, None);
        }
        self.most
    }
}

impl FailureBudget {
    pub(super) fn new(account: Arc<str>, metrics: AccountMetrics) -> Arc<Self> {
        let state = BudgetState { window: None, failures: VecDeque::new(), open: true, replicas: Replicas::ONE };
        Arc::new(Self { account, metrics, state: Mutex::new(state) })
    }

    /// Sets the window that the budget belongs to.
    pub(super) fn set_window(self: &Arc<Self>, window: Option<ReplyWindow>) {
        let mut state = self.state.lock();
        state.window = window;
        self.update(&mut state);
        self.metrics.reply_window(window.map(|_| state.open));
    }

    /// Ends the series of an account that is gone.
    pub(super) fn end(self: &Arc<Self>) {
        self.set_window(None);
        self.metrics.keep_replies(false);
    }

    /// Sets how many replicas live, this one among them.
    pub(super) fn set_replicas(self: &Arc<Self>, live: u32) {
        let mut state = self.state.lock();
        let period = state.window.map_or(Duration::ZERO, |window| window.period);
        state.replicas.set(usize::try_from(live).unwrap_or(usize::MAX).max(1), period);
        self.update(&mut state);
        if !state.open {
            // It may open when a replica that is gone counts no more.
            tokio::spawn(reopen(Arc::downgrade(self)));
        }
    }

    /// How long a late reply to a push that arrives now is useful; `None` while the window is closed, or if there is
    /// none.
    pub(super) fn window(&self) -> Option<Duration> {
        let state = self.state.lock();
        state.window.filter(|_| state.open).map(|window| window.length)
    }

    /// Charges one deliberate timeout; false if the budget is used up.
    fn spend(self: &Arc<Self>) -> bool {
        let mut state = self.state.lock();
        if !state.open || state.window.is_none() {
            return false;
        }
        self.metrics.reply_window_timeouts.inc();
        self.add_failure(&mut state);
        true
    }

    /// Charges a failure that was not deliberate.
    fn charge(self: &Arc<Self>) {
        self.add_failure(&mut self.state.lock());
    }

    fn add_failure(self: &Arc<Self>, state: &mut BudgetState) {
        state.failures.push_back(Instant::now());
        self.update(state);
    }

    /// Removes the failures that have aged out, and closes or opens the window accordingly.
    fn update(self: &Arc<Self>, state: &mut BudgetState) {
        let Some(ReplyWindow { failures, period, .. }) = state.window else {
            state.failures.clear();
            state.open = true;
            return;
        };
        let (now, failures) = (Instant::now(), failures / state.replicas.most());
        while state.failures.len() > failures || state.failures.front().is_some_and(|at| now >= *at + period) {
            state.failures.pop_front();
        }
        let count = state.failures.len();
        if state.open && count >= failures {
            state.open = false;
            self.metrics.reply_window(Some(false));
            tracing::warn!(account = %self.account, failures, ?period, "reply window closed");
            tokio::spawn(reopen(Arc::downgrade(self)));
        } else if !state.open && failures > 0 && count <= failures / 2 {
            state.open = true;
            self.metrics.reply_window(Some(true));
            tracing::info!(account = %self.account, failures = count, "reply window opened");
        }
    }

    /// When enough failures will have aged out that the closed window opens, if no more come.
    fn reopens_at(self: &Arc<Self>) -> Option<Instant> {
        let mut state = self.state.lock();
        self.update(&mut state);
        let ReplyWindow { failures, period, .. } = state.window.filter(|_| !state.open)?;
        let failures = failures / state.replicas.most();
        let last = state.failures.len().checked_sub(failures / 2 + 1).filter(|_| failures > 0);
        let aged_out = last.and_then(|last| state.failures.get(last)).map(|at| *at + period);
        aged_out.into_iter().chain(state.replicas.until).min()
    }
}

#[cfg(test)]
impl FailureBudget {
    /// How many failures count now.
    pub(super) fn failures(&self) -> usize {
        self.state.lock().failures.len()
    }
}

/// Opens a closed window when enough has aged out, even if no push arrives.
async fn reopen(budget: Weak<FailureBudget>) {
    while let Some(at) = budget.upgrade().and_then(|budget| budget.reopens_at()) {
        tokio::time::sleep_until(at).await;
    }
}

/// The failure that one verified push may owe the budget.
///
/// [`settle`](Self::settle) decides, once the answer is known. A client that hangs up gets no answer: hyper drops the
/// request's future, and no code runs after that. WeChat has seen a failure then, and the guard charges it when it is
/// dropped unsettled.
pub(super) struct FailureCharge<'b> {
    budget: &'b Arc<FailureBudget>,
    /// Nothing more is owed: it is charged already, or there is an answer.
    settled: bool,
}

impl<'b> FailureCharge<'b> {
    pub(super) fn new(budget: &'b Arc<FailureBudget>) -> Self {
        Self { budget, settled: false }
    }

    /// Charges a deliberate timeout in advance; false if the budget is used up.
    pub(super) fn spend(&mut self) -> bool {
        let spent = self.budget.spend();
        self.settled |= spent;
        spent
    }

    /// Charges the push if WeChat takes its answer for a failure, unless it is charged already.
    pub(super) fn settle(mut self, failed: bool) {
        if failed && !self.settled {
            self.budget.charge();
        }
        self.settled = true;
    }
}

impl Drop for FailureCharge<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.budget.charge();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    const WINDOW: ReplyWindow =
        ReplyWindow { length: Duration::from_secs(14), failures: 4, period: Duration::from_secs(300) };

    fn budget() -> (Arc<FailureBudget>, Arc<Metrics>) {
        let metrics = Metrics::new();
        let budget = FailureBudget::new("shop".into(), metrics.account("shop"));
        budget.set_window(Some(WINDOW));
        (budget, metrics)
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
        let (budget, metrics) = budget();
        for _ in 0..4 {
            assert_eq!(budget.window(), Some(WINDOW.length));
            assert!(budget.spend());
            pass(10).await;
        }
        assert!(budget.window().is_none() && !budget.spend());
        assert_eq!(gauge(&metrics).as_deref(), Some("0"));
        // The failures were at 0, 10, 20 and 30; it is 40 now, and at 310 two are left.
        pass(269).await;
        assert!(budget.window().is_none(), "one is not enough");
        pass(2).await;
        assert_eq!(gauge(&metrics).as_deref(), Some("1"), "reported without a push");
        assert!(budget.spend() && budget.spend() && !budget.spend(), "two of the old ones still count");
        assert!(metrics.render().contains("wxrelay_reply_window_timeouts_total{account=\"shop\"} 6"));
    }

    #[tokio::test(start_paused = true)]
    async fn other_failures_count_too_and_keep_it_closed() {
        let (budget, metrics) = budget();
        for _ in 0..40 {
            budget.charge();
            pass(100).await;
        }
        assert_eq!(budget.window(), Some(WINDOW.length), "never 4 within 300 s");
        for _ in 0..10 {
            budget.charge();
            pass(30).await;
        }
        assert!(budget.window().is_none());
        pass(250).await;
        assert_eq!(gauge(&metrics).as_deref(), Some("1"));
    }

    #[tokio::test(start_paused = true)]
    async fn replicas_divide_the_budget_and_never_overdraw_it_together() {
        let (budget, metrics) = budget();
        budget.set_replicas(2);
        assert!(budget.spend() && budget.spend() && !budget.spend(), "two of four are this one's");
        pass(301).await;
        assert_eq!(gauge(&metrics).as_deref(), Some("1"));
        budget.set_replicas(1);
        assert!(budget.spend() && budget.spend() && !budget.spend(), "the other may have spent its part just now");
        pass(301).await;
        assert!(budget.spend() && budget.spend() && budget.spend() && budget.spend() && !budget.spend());
    }

    #[tokio::test(start_paused = true)]
    async fn more_replicas_than_failures_close_the_window_until_they_are_gone() {
        let (budget, metrics) = budget();
        budget.set_replicas(5);
        assert!(budget.window().is_none() && !budget.spend());
        pass(3000).await;
        assert_eq!(gauge(&metrics).as_deref(), Some("0"));
        budget.set_replicas(4);
        pass(299).await;
        assert!(budget.window().is_none(), "the fifth may have spent its part");
        pass(2).await;
        assert_eq!(gauge(&metrics).as_deref(), Some("1"), "without a push");
        assert!(budget.spend() && !budget.spend());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_keeps_the_count() {
        let (budget, metrics) = budget();
        budget.charge();
        budget.charge();
        budget.set_window(Some(ReplyWindow { failures: 2, ..WINDOW }));
        assert!(budget.window().is_none());
        budget.set_window(None);
        assert!(gauge(&metrics).is_none(), "no window, no series");
        assert!(!budget.spend());
        budget.charge();
        budget.set_window(Some(WINDOW));
        assert_eq!(budget.window(), Some(WINDOW.length));
    }

    #[tokio::test(start_paused = true)]
    async fn a_push_is_charged_once_when_it_fails_or_its_client_hangs_up() {
        let (budget, _) = budget();
        FailureCharge::new(&budget).settle(false);
        assert_eq!(budget.failures(), 0, "it was answered");
        drop(FailureCharge::new(&budget));
        assert_eq!(budget.failures(), 1, "the client hung up");
        let mut charge = FailureCharge::new(&budget);
        assert!(charge.spend());
        assert_eq!(budget.failures(), 2, "charged before the timeout is made");
        charge.settle(true);
        assert_eq!(budget.failures(), 2, "and not again when it fails");
        let mut charge = FailureCharge::new(&budget);
        assert!(charge.spend());
        drop(charge);
        assert_eq!(budget.failures(), 3, "nor when the client hangs up");
        FailureCharge::new(&budget).settle(true);
        assert_eq!(budget.failures(), 4, "it failed");
        assert!(budget.window().is_none() && !FailureCharge::new(&budget).spend());
    }
}
