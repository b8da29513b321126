//! The way from a replica to the store, with the faults that a simulation injects: calls that never arrive, answers that
//! are lost or late, a replica that is frozen or dead.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::store::{ModelStore, StoreRows};
use crate::queue::Error;

/// Draws a number below the given one.
type Draw = Box<dyn FnMut(u64) -> u64 + Send>;

/// The link of one replica.
#[derive(Default)]
pub(crate) struct StoreLink(Mutex<LinkState>);

#[derive(Default)]
struct LinkState {
    draw: Option<Draw>,
    is_dead: bool,
    frozen_until: Option<Instant>,
    cut: Option<LinkCut>,
    /// How far the replica's wall clock is ahead, in milliseconds.
    ahead: i64,
}

/// What happens to the calls of a replica for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkCut {
    pub(crate) until: Instant,
    /// The percentage of calls that never arrive.
    pub(crate) lost: u64,
    /// The percentage of answers that never arrive, although the change is made.
    pub(crate) unanswered: u64,
    /// The longest delay of a call, and of an answer.
    pub(crate) delay: Duration,
}

/// When a call arrives, if it does, and how much later its answer.
struct CallFate {
    arrives: Option<Duration>,
    answered: Option<Duration>,
}

impl StoreLink {
    /// `draw` decides the faults; the replica's clock is `ahead` milliseconds ahead.
    pub(crate) fn new(draw: impl FnMut(u64) -> u64 + Send + 'static, ahead: i64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(LinkState { draw: Some(Box::new(draw)), ahead, ..LinkState::default() })))
    }

    /// The process has ended: none of its calls returns.
    pub(crate) fn kill(&self) {
        self.0.lock().is_dead = true;
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.0.lock().is_dead
    }

    /// The process does nothing until then.
    pub(crate) fn freeze(&self, until: Instant) {
        self.0.lock().frozen_until = Some(until);
    }

    pub(crate) fn cut(&self, cut: LinkCut) {
        self.0.lock().cut = Some(cut);
    }

    /// Ends the faults that end.
    pub(crate) fn heal(&self) {
        let mut state = self.0.lock();
        (state.frozen_until, state.cut) = (None, None);
    }

    pub(super) fn ahead(&self) -> i64 {
        self.0.lock().ahead
    }

    /// Waits while the process is frozen; never returns when it is dead.
    pub(crate) async fn runs(&self) {
        loop {
            let (is_dead, frozen) = {
                let state = self.0.lock();
                (state.is_dead, state.frozen_until.filter(|until| *until > Instant::now()))
            };
            match frozen {
                _ if is_dead => std::future::pending().await,
                // The fault may be ended before.
                Some(until) => sleep_until(until.min(Instant::now() + Duration::from_millis(100))).await,
                None => return,
            }
        }
    }

    fn fate(&self) -> CallFate {
        let mut state = self.0.lock();
        let state = &mut *state;
        let at_once = CallFate { arrives: Some(Duration::ZERO), answered: Some(Duration::ZERO) };
        let Some(cut) = state.cut.filter(|cut| cut.until > Instant::now()) else { return at_once };
        let Some(draw) = &mut state.draw else { return at_once };
        let delay = u64::try_from(cut.delay.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let arrives = (draw(100) >= cut.lost).then(|| Duration::from_millis(draw(delay)));
        let answered = (draw(100) >= cut.unanswered).then(|| Duration::from_millis(draw(delay)));
        CallFate { arrives, answered }
    }

    /// Executes a transaction. Where there is no answer within `limit`, it may be executed or not, also later.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        store: &Arc<ModelStore>,
        limit: Duration,
        transaction: impl FnOnce(&mut StoreRows) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.runs().await;
        let CallFate { arrives, answered } = self.fate();
        let Some(arrives) = arrives else {
            sleep(limit).await;
            self.runs().await;
            return Err(Error::Away);
        };
        if arrives.is_zero() && answered == Some(Duration::ZERO) {
            return Ok(transaction(&mut store.rows()));
        }
        let (answer, result) = oneshot::channel();
        let store = Arc::clone(store);
        // The store executes what has arrived, even if nobody waits for the answer.
        tokio::spawn(async move {
            sleep(arrives).await;
            let done = transaction(&mut store.rows());
            match answered {
                Some(later) => sleep(later).await,
                None => std::future::pending().await,
            }
            drop(answer.send(done));
        });
        let result = timeout(limit, result).await;
        self.runs().await;
        result.ok().and_then(Result::ok).ok_or(Error::Away)
    }
}
